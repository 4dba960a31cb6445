package consensus

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// The outcomes of a proposal, besides success. Every error that a group reports about a proposal
// matches exactly one of the two.
var (
	// ErrNotProposed: the command is surely not in the log and never will be.
	ErrNotProposed = errors.New("not proposed")
	// ErrUnknown: the command may or may not be, or become, committed.
	ErrUnknown = errors.New("outcome unknown")
)

// Reasons for ErrNotProposed; each matches it.
var (
	// ErrNotLeader: this node does not lead the group.
	ErrNotLeader = fmt.Errorf("%w: this node is not the leader", ErrNotProposed)
	// ErrBusy: too many proposals, or too many bytes of them, are unanswered.
	ErrBusy = fmt.Errorf("%w: too many proposals in flight", ErrNotProposed)
	// ErrEntrySize: the command is empty or larger than Options.EntryBytesMax.
	ErrEntrySize = fmt.Errorf("%w: the command's size is out of bounds", ErrNotProposed)
	// ErrHalted: the group met a failure that forbids going on, see Options.Fatal.
	ErrHalted = fmt.Errorf("%w: the group has halted after a failure", ErrNotProposed)
	// ErrClosed: the group is closing.
	ErrClosed = fmt.Errorf("%w: the group is closed", ErrNotProposed)
)

// enqueueTimeout bounds a push into raft's queue. The queue is deeper than all that a group lets in, so
// the push does not wait; the bound is a backstop.
const enqueueTimeout = time.Second

// proposal is one command on its way. Fields other than answered are immutable once it is queued.
type proposal struct {
	future   raft.ApplyFuture
	done     func(result any, err error)
	bytes    int64
	start    time.Time
	deadline time.Time

	answered bool // guarded by proposals.answerMu
}

// proposals is the queue of unresolved proposals, in log order.
type proposals struct {
	// Immutable.
	max      int
	bytesMax int64
	timeout  time.Duration
	metrics  *Metrics
	answered func(err error, now time.Time) // is told what raft says to each proposal
	wake     chan struct{}                  // a token when the queue may have become non-empty
	drained  chan struct{}                  // closed once the queue is closed and empty

	mu sync.Mutex
	// Guarded by mu.
	queue  []*proposal
	bytes  int64
	closed bool

	// answerMu orders the calls of done: whoever holds it answers the first unanswered proposal.
	// Lock order: answerMu, then mu.
	answerMu sync.Mutex
}

func newProposals(o *Options, m *Metrics, answered func(error, time.Time)) *proposals {
	return &proposals{
		max: o.ProposalsMax, bytesMax: o.ProposalBytesMax, timeout: o.ProposalTimeout, metrics: m, answered: answered,
		wake: make(chan struct{}, 1), drained: make(chan struct{}),
	}
}

// submit queues what push hands to raft. push runs under mu, so that queue order is log order.
func (q *proposals) submit(n int64, done func(any, error), push func() raft.ApplyFuture) error {
	q.mu.Lock()
	switch {
	case q.closed:
		q.mu.Unlock()
		return ErrClosed
	case len(q.queue) >= q.max, len(q.queue) > 0 && q.bytes+n > q.bytesMax:
		q.mu.Unlock()
		return ErrBusy
	}
	now := time.Now()
	p := &proposal{done: done, bytes: n, start: now, deadline: now.Add(q.timeout), future: push()}
	q.queue = append(q.queue, p)
	q.bytes += n
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return nil
}

// head returns the oldest unresolved proposal, or nil.
func (q *proposals) head() *proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return nil
	}
	return q.queue[0]
}

// deliver waits for the proposals' futures one by one and answers them. It ends when stop is closed.
// A future that raft never resolves (it forgets its queue at shutdown) leaves deliver waiting for ever;
// Close has then answered the proposal in its place.
func (q *proposals) deliver(stop <-chan struct{}) {
	for {
		p := q.head()
		if p == nil {
			select {
			case <-q.wake:
				continue
			case <-stop:
				return
			}
		}
		err := p.future.Error()
		q.answered(err, time.Now())
		err = outcome(err, p.future)
		var result any
		if err == nil {
			result = p.future.Response()
		}
		q.answerMu.Lock()
		q.pop(p)
		q.answer(p, result, err)
		q.answerMu.Unlock()
	}
}

// pop removes the head p.
func (q *proposals) pop(p *proposal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue[0] != p {
		panic("BUG: the resolved proposal is not the oldest")
	}
	q.queue[0] = nil
	q.queue = q.queue[1:]
	q.bytes -= p.bytes
	if q.closed && len(q.queue) == 0 {
		close(q.drained)
	}
}

// answer calls done unless it was called. REQUIRES: answerMu held; all older proposals are answered.
func (q *proposals) answer(p *proposal, result any, err error) {
	if p.answered {
		return
	}
	p.answered = true
	switch {
	case err == nil:
		q.metrics.Commit.Observe(time.Since(p.start))
	case errors.Is(err, ErrNotProposed):
		q.metrics.Failed.Add(1)
	default:
		q.metrics.Unknown.Add(1)
	}
	p.done(result, err)
}

// expire answers proposals whose time is over as unknown, until stop is closed. They stay in the queue,
// and count against its bounds, until raft resolves them.
func (q *proposals) expire(stop <-chan struct{}) {
	ticker := time.NewTicker(max(q.timeout/10, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			q.giveUp(func(p *proposal) error {
				if now.Before(p.deadline) {
					return nil
				}
				return fmt.Errorf("%w: no answer within %v", ErrUnknown, q.timeout)
			})
		case <-stop:
			return
		}
	}
}

// giveUp answers, oldest first, every unanswered proposal for which verdict returns an error, and stops
// at the first other one.
func (q *proposals) giveUp(verdict func(*proposal) error) {
	q.answerMu.Lock()
	defer q.answerMu.Unlock()
	q.mu.Lock()
	queue := append([]*proposal(nil), q.queue...)
	q.mu.Unlock()
	for _, p := range queue {
		if p.answered {
			continue
		}
		err := verdict(p)
		if err == nil {
			return
		}
		q.answer(p, nil, err)
	}
}

// close refuses further proposals. drained is closed once none is left.
func (q *proposals) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		if len(q.queue) == 0 {
			close(q.drained)
		}
	}
}

// outcome sorts raft's answer into the three outcomes.
func outcome(err error, future raft.ApplyFuture) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return ErrNotLeader
	case errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrNotProposed, err)
	case errors.Is(err, raft.ErrRaftShutdown) && future.Index() == 0:
		// Refused at the queue. With an index the same error means: committed, but not applied here.
		return fmt.Errorf("%w: %w", ErrNotProposed, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}
