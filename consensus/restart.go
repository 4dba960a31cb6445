package consensus

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ErrRestart marks failures, told to Options.Fatal, that lie in the memory of this process alone: nothing is
// damaged, and the same program is well again once it is started anew.
var ErrRestart = errors.New("a restart of this process heals this")

const (
	// transferStuckAfter is how long raft may refuse everything because of a transfer of leadership that this
	// node does not make. A transfer that fails is over after ElectionTimeout and one message's time.
	transferStuckAfter = 10 * time.Second
	// overratedFactor times HeartbeatTimeout is how long a node that overrates its log waits for a leader.
	overratedFactor = 10
	// applyStallMax is how long the state machine may take for one batch of entries. A leader whose state
	// machine hangs keeps its followers loyal, as one with a hanging disk does, and its clients wait for ever.
	// The disk's own watch is much shorter; what takes this long is no stall of compaction any more.
	applyStallMax = time.Minute
	// establishPause is the pause before the barrier of a new term is tried again.
	establishPause = 50 * time.Millisecond
)

// transferWatch notices that raft believes in a transfer of leadership that nobody makes: it then refuses
// every proposal and every change, in all terms to come. See DESIGN.md, the library's defects. The zero value
// is ready for use.
type transferWatch struct {
	after time.Duration // immutable; 0: transferStuckAfter. Tests put less here.

	mu sync.Mutex
	// Guarded by mu.
	underway int       // transfers that this node makes
	since    time.Time // of the first refusal since anything else was answered; zero if there was none
	stuck    error     // once it is sure
}

// begin and end enclose a transfer of this node's own.
func (w *transferWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.underway++
	w.since = time.Time{}
}

func (w *transferWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.underway--
	w.since = time.Time{} // raft may need a moment more
}

// answered takes raft's answer, which came at now, to a proposal, a barrier or a change.
func (w *transferWatch) answered(err error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !errors.Is(err, raft.ErrLeadershipTransferInProgress):
		w.since = time.Time{}
	case w.underway > 0:
	case w.since.IsZero():
		w.since = now
	case now.Sub(w.since) > cmp.Or(w.after, transferStuckAfter) && w.stuck == nil:
		w.stuck = fmt.Errorf("%w: for %v raft has refused all work because of a transfer of leadership that this node does not make",
			ErrRestart, now.Sub(w.since).Round(time.Millisecond))
	}
}

// err returns an error that matches ErrRestart once raft is stuck.
func (w *transferWatch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stuck
}

// termBarrier waits until everything of earlier terms is applied, for as long as this node leads term. While
// raft takes a transfer of leadership to be under way, also one of an earlier term, it refuses the barrier:
// then it is tried again, for without it this node would lead the term and serve nobody.
func (g *Group) termBarrier(term uint64) error {
	for {
		err := g.raft.Barrier(0).Error()
		g.transfers.answered(err, time.Now())
		if !errors.Is(err, raft.ErrLeadershipTransferInProgress) || !g.leads(term) {
			return err
		}
		select {
		case <-time.After(establishPause):
		case <-g.stop:
			return err
		}
	}
}

// watchItself stops the process, by Fatal, when this node is of no use to its group until it is started anew.
func (g *Group) watchItself() {
	ticker := time.NewTicker(g.o.HeartbeatTimeout)
	defer ticker.Stop()
	alone := 0 // looks in a row at which the log was overrated and no leader known
	for {
		select {
		case <-ticker.C:
		case <-g.stop:
			return
		}
		if err := g.transfers.err(); err != nil {
			g.fault.report(err)
			return
		}
		if _, id := g.raft.LeaderWithID(); id != "" || !g.logs.overrated() {
			alone = 0
		} else if alone++; alone > overratedFactor {
			g.fault.report(fmt.Errorf("%w: this node overrates its log since a snapshot took the log's place, and so must not stand for election, but there is no leader either", ErrRestart))
			return
		}
	}
}
