package bench

import (
	"context"
	"sync"
)

// Spawn is a Pipeline for a Target whose client has no asynchronous form: each operation runs on a goroutine of its own.
func Spawn(ctx context.Context, t Target, depth int) Pipeline {
	return &spawned{ctx: ctx, t: t, ended: make([]Ended, 0, depth), ready: make(chan struct{}, 1)}
}

type spawned struct {
	ctx   context.Context
	t     Target
	ready chan struct{} // has room for one: ended is no longer empty

	mu    sync.Mutex
	ended []Ended // guarded by mu
}

// Get implements Pipeline.
func (s *spawned) Get(slot int, key string) {
	// Owned by the pipeline; ends with the answer or the timeout.
	go func() {
		_, found, err := s.t.Get(s.ctx, key, nil)
		s.end(Ended{Slot: slot, Found: found, Err: err})
	}()
}

// Put implements Pipeline.
func (s *spawned) Put(slot int, key string, value []byte) {
	// Owned by the pipeline; ends with the answer or the timeout.
	go func() { s.end(Ended{Slot: slot, Err: s.t.Put(s.ctx, key, value)}) }()
}

func (s *spawned) end(e Ended) {
	s.mu.Lock()
	s.ended = append(s.ended, e)
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default: // it stands there from before
	}
}

// Flush implements Pipeline.
func (s *spawned) Flush() {}

// Ready implements Pipeline.
func (s *spawned) Ready() <-chan struct{} { return s.ready }

// Take implements Pipeline.
func (s *spawned) Take(ended []Ended) []Ended {
	s.mu.Lock()
	defer s.mu.Unlock()
	ended = append(ended, s.ended...)
	s.ended = s.ended[:0]
	return ended
}
