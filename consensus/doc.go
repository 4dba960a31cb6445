// Package consensus runs one Raft group on this node: it orders commands, makes them durable and hands
// them to a state machine.
//
// What it does. Open starts hashicorp/raft over a fail-stop log (logstore.go), a vote file
// (stablestore.go) and a transport (transport.go), and drives a StateMachine (fsm.go). Propose appends a
// command and reports one of three outcomes: committed and applied, surely not done (ErrNotProposed),
// or unknown (ErrUnknown). A lone voter leads at once. The log is compacted behind the state machine's
// durable checkpoint, which is the only snapshot that raft ever hears of (snapshots.go).
//
// What it assumes. The state machine is deterministic and its checkpoint is never ahead of what this
// group applied. The disk keeps what fsync acknowledged and may tear or lose what it did not. One
// process opens a directory at a time (enforced with a file lock).
//
// Who owns what. raft's main goroutine writes log and vote and is the only caller of StoreLogs; raft's
// FSM goroutine is the only caller of StateMachine.Apply and ApplyConfiguration; raft's snapshot
// goroutine waits for checkpoints and deletes the head of the log. Of the group's own goroutines,
// deliver and expire answer proposals, watchLeadership tracks leadership, compact bounds the log's
// bytes; all four are owned by Group and end in Close.
//
// What it never does. It never reads a clock for anything that is replicated, never looks into a
// command, never retries a failed write or fsync, never compacts beyond the durable checkpoint, and
// never takes VerifyLeader, LeaderLeaseTimeout or heartbeat answers of the library for a read lease.
//
// DESIGN.md holds the reasons, the crash cases and the library defects that shape this package.
package consensus
