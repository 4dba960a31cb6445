package consensus

import (
	"sync/atomic"

	"kvstore/internal/hist"
)

// Metrics counts what a group does. All fields may be read at any time.
type Metrics struct {
	// Append is the time of one write to the log: encoding, write and fsync of a batch of entries, and
	// the wait for a segment rotation if one is under way.
	Append hist.Histogram
	// Commit is the time from Propose to the answer "committed and applied".
	Commit hist.Histogram
	// AppendedEntries and AppendedBytes count what Append wrote (bytes of commands, without overhead).
	AppendedEntries, AppendedBytes atomic.Uint64
	// Elections counts how often this node became leader.
	Elections atomic.Uint64
	// Snapshots counts the snapshots that raft completed, after each of which the log may shrink.
	Snapshots atomic.Uint64
	// Refused, Failed and Unknown count proposals that were refused at once (ErrNotProposed from
	// Propose), reported as surely not done later, and reported as unknown.
	Refused, Failed, Unknown atomic.Uint64
}
