// Package consensus runs one Raft group on this node: it orders commands, makes them durable and hands
// them to a state machine.
//
// What it does. Open starts hashicorp/raft over a fail-stop log (logstore.go), a vote file
// (stablestore.go) and the transport between nodes (network.go, package peer), and drives a StateMachine
// (fsm.go). Propose appends a command and reports one of three outcomes: committed and applied, surely not
// done (ErrNotProposed), or unknown (ErrUnknown). Lease and ReadIndex tell when a linearizable read may be
// served from the applied state (lease.go, readindex.go). Members come and go while it runs
// (membership.go), and the leader gives and takes votes by itself if it is told to (autopilot.go). Recover makes a
// node that does not run the only member, when the majority is lost (recover.go). ScrubLog reads the whole log for
// damage (scrub.go). The log is compacted behind the state machine's durable checkpoint, which is the only
// snapshot that raft ever hears of, and followers that lag too far are sent (snapshots.go).
//
// What it assumes. The state machine is deterministic and its checkpoint is never ahead of what this
// group applied or installed. The disk keeps what fsync acknowledged and may tear or lose what it did not.
// One process opens a directory at a time (enforced with a file lock). All nodes have the same
// HeartbeatTimeout and clocks that run at nearly the same rate.
//
// Who owns what. raft's main goroutine writes the vote and is the only caller of StoreLogs; it writes the log itself,
// but for a leader's, which the log's own goroutine writes while replication goes on (logqueue.go); raft's
// FSM goroutine is the only caller of StateMachine.Apply, ApplyConfiguration and Received.Install; raft's
// snapshot goroutine waits for checkpoints and deletes the head of the log; raft's replicators read the log
// and report acknowledgements. Of the group's own goroutines, deliver and expire answer proposals, run and
// provokeHeartbeats serve ReadIndex, watchLeadership tracks leadership, watchItself stops a process that only a
// restart can heal (restart.go), pilot runs the autopilot, compact bounds the log; all are owned by Group and end in
// Close.
//
// What it never does. It never reads a clock for anything that is replicated, never looks into a
// command, never retries a failed write or fsync, never compacts beyond the durable checkpoint, never
// wipes anything in order to start, and never takes VerifyLeader, LeaderLeaseTimeout or heartbeat answers
// of the library for a read lease.
//
// DESIGN.md holds the reasons, the proof of the lease, the crash cases and the library defects that shape
// this package.
package consensus
