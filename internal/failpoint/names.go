package failpoint

// The places. What is before is not done yet when the point is hit; what is after is done and nobody was told.
const (
	LogAppendBefore = "log.append.before" // a batch of entries is about to be written
	LogAppendAfter  = "log.append.after"  // it is written and synced
	LogFsyncBefore  = "log.fsync.before"  // written, not synced
	LogFsyncAfter   = "log.fsync.after"

	LogTruncateBefore = "log.truncate.before" // entries are about to be deleted at either end of the log
	LogTruncateAfter  = "log.truncate.after"

	VoteBefore = "vote.before" // term and candidate are about to be made durable
	VoteAfter  = "vote.after"

	AckBefore = "ack.before" // a follower is about to answer an append that it has stored
	AckAfter  = "ack.after"  // the leader has taken a follower's answer

	ApplyBefore = "apply.before" // an entry is about to be applied
	ApplyAfter  = "apply.after"  // it is applied and visible, nobody is answered yet

	CommitBefore = "badger.commit.before" // an entry's transaction is about to be committed to the store
	CommitAfter  = "badger.commit.after"

	CheckpointBefore = "checkpoint.before" // files are about to be synced
	CheckpointRename = "checkpoint.rename" // CHECKPOINT is written and not renamed yet
	CheckpointAfter  = "checkpoint.after"

	SnapshotCreateBefore  = "snapshot.create.before" // a stream is about to be opened for another node
	SnapshotCreateAfter   = "snapshot.create.after"
	SnapshotPersistBefore = "snapshot.persist.before" // raft is about to note a snapshot of this node's own
	SnapshotPersistAfter  = "snapshot.persist.after"
	SnapshotReceive       = "snapshot.receive"        // once for each block received
	SnapshotInstallBefore = "snapshot.install.before" // received and verified, the old state is live
	SnapshotInstallAfter  = "snapshot.install.after"

	GenerationSwapBefore = "generation.swap.before" // a new generation is complete, CHECKPOINT names the old one
	GenerationSwapAfter  = "generation.swap.after"

	MembershipBefore = "membership.before" // a change of the configuration is about to be proposed
	MembershipAfter  = "membership.after"

	LeaseGrant = "lease.grant" // a lease is about to be extended

	FeedSyncBefore = "feed.sync.before" // what the change feed has is about to be written and synced
	FeedSyncAfter  = "feed.sync.after"  // it is durable, old segments are not removed yet

	WatchSendBefore = "watch.send.before" // an event is about to be sent
	WatchSendAfter  = "watch.send.after"
)

// Names lists the places.
func Names() []string {
	return []string{
		LogAppendBefore, LogAppendAfter, LogFsyncBefore, LogFsyncAfter, LogTruncateBefore, LogTruncateAfter,
		VoteBefore, VoteAfter, AckBefore, AckAfter, ApplyBefore, ApplyAfter, CommitBefore, CommitAfter,
		CheckpointBefore, CheckpointRename, CheckpointAfter,
		SnapshotCreateBefore, SnapshotCreateAfter, SnapshotPersistBefore, SnapshotPersistAfter,
		SnapshotReceive, SnapshotInstallBefore, SnapshotInstallAfter,
		GenerationSwapBefore, GenerationSwapAfter, MembershipBefore, MembershipAfter, LeaseGrant,
		FeedSyncBefore, FeedSyncAfter, WatchSendBefore, WatchSendAfter,
	}
}
