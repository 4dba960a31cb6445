package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Found returns nil once this node and every other founder know each other's data directory, durably:
// only then may raft be bootstrapped with the list of founders, because from then on none of them can
// come back with an empty directory and begin another cluster. It tries until ctx ends. A founder that
// refuses this node for good, or is refused by it, ends it with ErrRefused and the way back.
// REQUIRES: SetFounders.
func (t *Transport) Found(ctx context.Context) error {
	known := t.book.read()
	if known.founded {
		return nil
	}
	if len(known.founders) == 0 {
		return errors.New("cannot found a cluster: no founders were named")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.ctx, func() { cancel(ErrClosed) })()

	missing := missingFounders{reason: map[string]error{}}
	var wg sync.WaitGroup
	for _, f := range known.founders {
		if f.ID == t.o.NodeID {
			continue
		}
		missing.reason[f.ID] = errors.New("not yet reached")
	}
	for _, f := range known.founders {
		if f.ID == t.o.NodeID {
			continue
		}
		wg.Add(1)
		go func() { // owned by Found, which waits for it; ends with ctx or when the founder is met
			defer wg.Done()
			if err := t.meetFounder(ctx, f, &missing); err != nil {
				cancel(err)
			}
		}()
	}
	met := make(chan struct{})
	go func() { // owned by Found; ends when the last founder is met or given up
		wg.Wait()
		close(met)
	}()
	ticker := time.NewTicker(foundLogEvery)
	defer ticker.Stop()
	for waiting := true; waiting; {
		select {
		case <-met:
			waiting = false
		case <-ticker.C:
			t.log.Info("waiting for the other founders of the cluster", "missing", missing.list())
		}
	}
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		if errors.Is(cause, ErrRefused) || errors.Is(cause, ErrClosed) {
			return fmt.Errorf("cannot found the cluster: %w", cause)
		}
		return fmt.Errorf("cannot found the cluster: %w; missing: %v", cause, missing.list())
	}
	return t.book.change(func(p *page) bool {
		p.founded = true
		return true
	})
}

// meetFounder tries until the founder has accepted this node and been accepted by it.
func (t *Transport) meetFounder(ctx context.Context, f Founder, missing *missingFounders) error {
	for wait := foundPauseMin; ; wait = min(2*wait, foundPauseMax) {
		c, err := t.dial(ctx, f.ID, f.Address, PurposeFound, false)
		if err == nil {
			missing.met(f.ID)
			closeQuietly(t, c)
			return nil
		}
		if errors.Is(err, ErrRefused) {
			return err
		}
		missing.failed(f.ID, err)
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// missingFounders tells who is missing, and why.
type missingFounders struct {
	mu sync.Mutex
	// Guarded by mu.
	reason map[string]error
}

func (m *missingFounders) met(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.reason, id)
}

func (m *missingFounders) failed(id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reason[id] = err
}

func (m *missingFounders) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(m.reason)) {
		out = append(out, fmt.Sprintf("%s: %v", id, m.reason[id]))
	}
	return out
}
