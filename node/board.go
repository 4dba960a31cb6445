package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

const (
	// boardAskTimeout bounds one question to another node: whoever takes longer is shown as unreachable.
	boardAskTimeout = 500 * time.Millisecond
	// boardKeep is how long the answers serve further questions, so that many who watch the status cost the
	// other nodes no more than one.
	boardKeep = 200 * time.Millisecond
	// boardWaitersMax bounds the requests that wait for a round of questions.
	boardWaitersMax = 4096
)

// board holds what the other nodes last said of themselves.
type board struct {
	// Immutable after newBoard.
	s      *Service
	ctx    context.Context // ends when close begins
	cancel context.CancelFunc

	mu sync.Mutex
	// Guarded by mu.
	peers   map[string]*statusDocument // by id; documents are immutable
	at      time.Time                  // when the last of them had answered
	asking  bool
	closed  bool
	waiting []*readJob

	running sync.WaitGroup // rounds under way: at most one
	// rounds counts them.
	rounds atomic.Uint64
}

func newBoard(s *Service) *board {
	b := &board{s: s}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// serve answers a STATUS by the read pool, after a round of questions to the other nodes where one is due.
// It never blocks.
func (b *board) serve(c wire.Completer, ns uint32, r *wire.Request, deadline int64) {
	job := b.s.reads.add(nil, c, ns, r, deadline, 0)
	if len(r.Payload) != 0 || len(b.s.shard.group.Status().Configuration) < 2 {
		b.s.reads.submit(job)
		return
	}
	if !b.s.reads.reserve(job) {
		return
	}
	b.mu.Lock()
	fresh := time.Since(b.at) < boardKeep
	if !fresh && !b.closed && len(b.waiting) < boardWaitersMax {
		b.waiting = append(b.waiting, job)
		if !b.asking {
			b.asking = true
			b.running.Go(b.ask) // owned by the board, whose close waits for it; ends after boardAskTimeout at the latest
		}
		b.mu.Unlock()
		return
	}
	closed := b.closed
	b.mu.Unlock()
	if fresh || closed {
		b.s.reads.enqueue(job)
	} else {
		b.s.reads.refuse(job, busy)
	}
}

// ask asks all other nodes at once and lets those who wait go on.
func (b *board) ask() {
	b.rounds.Add(1)
	ctx, cancel := context.WithTimeout(b.ctx, boardAskTimeout)
	defer cancel()
	peers := b.s.shard.askOthers(ctx, func(bool) bool { return true })
	b.mu.Lock()
	b.peers, b.at, b.asking = peers, time.Now(), false
	waiting := b.waiting
	b.waiting = nil
	b.mu.Unlock()
	for _, job := range waiting {
		b.s.reads.enqueue(job)
	}
}

// answers gives what the other nodes last said.
func (b *board) answers() map[string]*statusDocument {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peers
}

// close ends the questions under way. What waits for them is answered with what is known.
func (b *board) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	b.running.Wait()
}
