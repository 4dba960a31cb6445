package consensus

import (
	"sync/atomic"

	"kvstore/internal/hist"
)

// Metrics counts what a group does. All fields may be read at any time. What belongs to single
// followers, such as their lag, Group.Peers tells; whether the read lease is held, Group.Lease.
type Metrics struct {
	// Append is the time of one write to the log: encoding, write and fsync of a batch of entries, and
	// the wait for a segment rotation if one is under way.
	Append hist.Histogram
	// Commit is the time from Propose to the answer "committed and applied".
	Commit hist.Histogram
	// ReadIndex is the time from a call of ReadIndex to its success.
	ReadIndex hist.Histogram
	// AppendedEntries and AppendedBytes count what Append wrote (bytes of commands, without overhead).
	AppendedEntries, AppendedBytes atomic.Uint64
	// Elections counts how often this node became leader.
	Elections atomic.Uint64
	// Promotions and Demotions count the votes that the autopilot of this node gave and took.
	Promotions, Demotions atomic.Uint64
	// Snapshots counts the snapshots that raft completed, after each of which the log may shrink.
	Snapshots atomic.Uint64
	// SnapshotsSent counts the copies of the state whose sending to a follower began, SnapshotsReceived
	// those that were received whole and verified, SnapshotsInstalled those that became the state.
	SnapshotsSent, SnapshotsReceived, SnapshotsInstalled atomic.Uint64
	// SnapshotBytesSent and SnapshotBytesReceived count the bytes of their streams, those that came to nothing
	// included. SnapshotsRefused counts copies that were refused here, or given up, for want of room on the
	// disk; SnapshotsFetched those that this node asked for at its start because it had lost its state.
	SnapshotBytesSent, SnapshotBytesReceived, SnapshotsRefused, SnapshotsFetched atomic.Uint64
	// ReadIndexRounds counts the rounds of heartbeats that ReadIndex provoked; each serves all who wait.
	ReadIndexRounds atomic.Uint64
	// ReadIndexFailed counts calls of ReadIndex that ended with an error.
	ReadIndexFailed atomic.Uint64
	// LeasesRevoked counts the terms whose read lease was given up for a transfer of leadership.
	LeasesRevoked atomic.Uint64
	// ClocksDistrusted counts how often another node's clock was found too fast for a read lease to count on its
	// word, or this node's too slow.
	ClocksDistrusted atomic.Uint64
	// CacheHits and CacheMisses count reads of the log that memory answered, and that went to the disk.
	CacheHits, CacheMisses atomic.Uint64
	// Refused, Failed and Unknown count proposals that were refused at once (ErrNotProposed from
	// Propose), reported as surely not done later, and reported as unknown.
	Refused, Failed, Unknown atomic.Uint64
}
