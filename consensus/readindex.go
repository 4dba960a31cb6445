package consensus

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"kvstore/internal/clock"
)

// readersMax bounds the callers that wait for a confirmation. One stands for a bunch of requests; more
// of them than this wait only when no confirmation comes at all.
const readersMax = 16384

// ErrTimeout says that no majority confirmed in time that this node still leads. Nothing was read.
var ErrTimeout = errors.New("this node was not confirmed as the leader in time")

// reader is one caller of ReadIndex.
type reader struct {
	term  uint64
	asked int64 // boot time, nanoseconds
	done  func(error)
}

// readIndex keeps the callers of ReadIndex until a majority has answered a heartbeat that was sent
// after they asked. One round of heartbeats serves all who asked before it was sent.
type readIndex struct {
	// Immutable.
	clock   clock.Clock
	timeout int64 // nanoseconds
	metrics *Metrics
	// confirmed is ackBook.confirmed; leads reports whether this node leads a term, its barrier applied.
	confirmed func(term uint64) int64
	leads     func(term uint64) bool
	wake      chan struct{} // a token when an acknowledgement, a reader or a change of leadership came
	provoke   chan struct{} // a token when heartbeats are wanted at once

	mu sync.Mutex
	// Guarded by mu.
	readers []reader // in the order of asked
	closed  bool

	// provoked is when heartbeats were last asked for; 0 if never. Owned by run.
	provoked int64
}

func newReadIndex(c clock.Clock, timeout time.Duration, m *Metrics, confirmed func(uint64) int64, leads func(uint64) bool) *readIndex {
	return &readIndex{
		clock: c, timeout: int64(timeout), metrics: m, confirmed: confirmed, leads: leads,
		wake: make(chan struct{}, 1), provoke: make(chan struct{}, 1),
	}
}

// signal wakes run. It never blocks.
func (r *readIndex) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// ask queues a reader; it returns an error, without calling done, if there is no room.
func (r *readIndex) ask(term uint64, done func(error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return ErrClosed
	case len(r.readers) >= readersMax:
		return ErrBusy
	}
	// The clock is read under mu, so that readers are in the order of their times.
	r.readers = append(r.readers, reader{term: term, asked: int64(r.clock.Boot()), done: done})
	return nil
}

// step answers whoever can be answered and reports whether somebody still waits.
func (r *readIndex) step() (waiting bool) {
	type verdict struct {
		reader reader
		err    error
	}
	var verdicts []verdict
	r.mu.Lock()
	now := int64(r.clock.Boot())
	for len(r.readers) > 0 {
		ready, err := r.judge(r.readers[0], now)
		if !ready {
			break
		}
		verdicts = append(verdicts, verdict{r.readers[0], err})
		r.readers[0] = reader{}
		r.readers = r.readers[1:]
	}
	if waiting = len(r.readers) > 0; waiting {
		// One round at a time: the next is sent once the last is answered, for all who came meanwhile.
		// A round that gets lost is made up for by the heartbeats that raft sends anyway.
		newest := r.readers[len(r.readers)-1]
		if newest.asked > r.provoked && (r.confirmed(newest.term) >= r.provoked || now-r.provoked > r.timeout/8) {
			r.provoked = now
			r.metrics.ReadIndexRounds.Add(1)
			select {
			case r.provoke <- struct{}{}:
			default:
			}
		}
	}
	r.mu.Unlock()
	for _, v := range verdicts {
		r.answer(v.reader, now, v.err)
	}
	return waiting
}

// judge tells whether a reader can be answered now, and how.
func (r *readIndex) judge(a reader, now int64) (ready bool, err error) {
	q := r.confirmed(a.term)
	switch {
	case !r.leads(a.term): // asked after q was taken: a confirmation counts for a node that leads at its end
		return true, ErrNotLeader
	case q >= a.asked:
		return true, nil
	case now-a.asked > r.timeout:
		return true, fmt.Errorf("%w (%v)", ErrTimeout, time.Duration(r.timeout))
	}
	return false, nil
}

func (r *readIndex) answer(a reader, now int64, err error) {
	if err == nil {
		r.metrics.ReadIndex.Observe(time.Duration(now - a.asked))
	} else {
		r.metrics.ReadIndexFailed.Add(1)
	}
	a.done(err)
}

// run answers readers until stop is closed, and then those that are left with ErrClosed.
func (r *readIndex) run(stop <-chan struct{}) {
	ticker := time.NewTicker(max(time.Duration(r.timeout)/16, time.Millisecond))
	defer ticker.Stop()
	for waiting := false; ; {
		tick := ticker.C
		if !waiting {
			tick = nil
		}
		select {
		case <-r.wake:
		case <-tick:
		case <-stop:
			r.close()
			return
		}
		waiting = r.step()
	}
}

// close answers all readers with ErrClosed and lets no more in.
func (r *readIndex) close() {
	r.mu.Lock()
	r.closed = true
	left := r.readers
	r.readers = nil
	r.mu.Unlock()
	for _, a := range left {
		r.answer(a, 0, ErrClosed)
	}
}

// ReadIndex calls done, exactly once, as soon as a majority has confirmed after the call that this node
// leads; then the applied state may be read: it holds everything that was acknowledged before the call.
// Errors: ErrNotLeader, ErrBusy beyond 16,384 callers, ErrTimeout after twice HeartbeatTimeout,
// ErrClosed; then nothing may be read. done must not block; it may be called before ReadIndex returns,
// and on a goroutine of the group.
//
// No clock of another node is trusted. A lone voter is its own majority.
func (g *Group) ReadIndex(done func(err error)) {
	term := g.leaderTerm.Load()
	if term == 0 || !g.leads(term) {
		g.metrics.ReadIndexFailed.Add(1)
		done(ErrNotLeader)
		return
	}
	if g.book.confirmed(term) == alwaysConfirmed && g.leads(term) {
		done(nil)
		return
	}
	if err := g.reads.ask(term, done); err != nil {
		g.metrics.ReadIndexFailed.Add(1)
		done(err)
		return
	}
	g.reads.signal()
}

// provokeHeartbeats asks raft for heartbeats at once whenever readers want them. What VerifyLeader
// answers is ignored: it counts answers to requests that were sent before it was asked. It may wait
// until raft's main goroutine takes the request, hence a goroutine of its own.
func (g *Group) provokeHeartbeats() {
	for {
		select {
		case <-g.reads.provoke:
			g.raft.VerifyLeader()
		case <-g.stop:
			return
		}
	}
}
