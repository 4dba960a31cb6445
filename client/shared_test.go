package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// sharedNow gives the context that the client's connection watches; nil: none.
func sharedNow(c *Client) context.Context {
	_, cn := c.route.ready()
	if cn == nil {
		return nil
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.shared == nil {
		return nil
	}
	return cn.shared.ctx
}

// Goal: calls that share a context end with it at once, each with its outcome, and the server is told of each; afterwards another
// context is watched in its turn.
func TestShared_ContextEnds_AllItsCallsEndAndNoOther(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	for round := range 3 {
		var ignored atomic.Int64
		release := make(chan struct{})
		s.on(func(_ *fakeConn, r *wire.Request) fault {
			if string(r.Key) == "other" {
				return fault{hold: release}
			}
			if ignored.Add(1); r.Op == wire.OpPut || r.Op == wire.OpGet {
				return fault{ignore: true}
			}
			return fault{}
		})
		ctx, cancel := context.WithCancel(bg)
		own, cancelOwn := context.WithCancel(bg)
		before := s.store.count(func(st *fakeStore) int { return st.cancels })
		var wg, others sync.WaitGroup
		others.Go(func() {
			if _, err := c.Get(own, "other"); !errors.Is(err, ErrNotFound) {
				t.Errorf("a call with a context of its own: %v", err)
			}
		})
		const callers = 40
		for i := range callers {
			wg.Go(func() {
				if i%2 == 0 {
					_, err := c.Get(ctx, "k")
					matches(t, err)
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				_, err := c.Put(ctx, fmt.Sprint(i), nil)
				matches(t, err, ErrMaybeApplied)
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		eventually(t, "all requests", func() bool { return ignored.Load() == callers })
		if sharedNow(c) != ctx {
			t.Errorf("round %d: the context of %d calls is not watched", round, callers)
		}
		cancel()
		wg.Wait()
		if sharedNow(c) != nil {
			t.Error("a context that has ended is watched")
		}
		close(release)
		others.Wait()
		cancelOwn()
		eventually(t, "a CANCEL for each", func() bool {
			return s.store.count(func(st *fakeStore) int { return st.cancels }) == before+callers
		})
		s.on(nil)
	}
}

// Goal: a watch that nobody uses makes room for the next context, but not while a call relies on it.
func TestShared_AnotherContextTakesOver_TheFirstIsStillHeardByWhoWaits(t *testing.T) {
	s, c := fake(t, withLimits(func(o *options) { o.sweepEvery = 2 * time.Millisecond }))
	mustPut(t, c, "k", "v")
	var held atomic.Int64
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if string(r.Key) == "held" {
			held.Add(1)
			return fault{ignore: true}
		}
		return fault{}
	})
	first, cancelFirst := context.WithCancel(bg)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := c.Get(first, "held"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	eventually(t, "the first is watched", func() bool { return held.Load() == 4 && sharedNow(c) == first })
	second, cancelSecond := context.WithCancel(bg)
	defer cancelSecond()
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.Get(second, "k"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	_, cn := c.route.ready()
	sweeps := func() time.Duration { cn.mu.Lock(); defer cn.mu.Unlock(); return cn.swept }
	for range 5 {
		before := sweeps()
		eventually(t, "a sweep", func() bool { return sweeps() != before })
	}
	if sharedNow(c) != first {
		t.Error("the watch was given up while four calls rely on it")
	}
	cancelFirst()
	wg.Wait()
	eventually(t, "the second is watched", func() bool { return sharedNow(c) == second })
	third, cancelThird := context.WithCancel(bg)
	defer cancelThird()
	close(stop)
	workers.Wait()
	eventually(t, "a watch without calls ends", func() bool { return sharedNow(c) == nil })
	stop = make(chan struct{})
	for range 4 {
		workers.Go(func() {
			for sharedNow(c) != third && !t.Failed() {
				if _, err := c.Get(third, "k"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
}

// Goal: answers, ends of shared contexts and ends of connections at the same time mix nothing up, and each call ends once.
func TestShared_RacingWithAnswersAndCuts_NothingIsMixedUp(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s, c := fake(t, WithMaxInflight(16), withLimits(func(o *options) { o.sweepEvery = time.Millisecond }))
	for i := range 32 {
		mustPut(t, c, fmt.Sprint(i), fmt.Sprint("value of ", i))
	}
	done := make(chan struct{})
	var cutter sync.WaitGroup
	cutter.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(3 * time.Millisecond):
				s.cutAll()
			}
		}
	})
	rnd := rand.New(rand.NewPCG(seed, 99))
	watched := 0
	for range 60 {
		ctx, cancel := context.WithCancel(bg)
		stop := time.AfterFunc(time.Duration(rnd.IntN(3000))*time.Microsecond, cancel)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(w)))
				buf := make([]byte, 0, 64)
				for ctx.Err() == nil {
					i := rnd.IntN(32)
					out, _, err := c.GetAppend(ctx, buf[:0], fmt.Sprint(i))
					if err == nil && string(out) != fmt.Sprint("value of ", i) {
						t.Errorf("%d: %q", i, out)
					}
					if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrUnavailable) {
						t.Error(err)
					}
					for j := range buf[:cap(buf)] {
						buf[:cap(buf)][j] = 'x' // the room is the caller's again: the race detector watches
					}
					if w == 0 && sharedNow(c) == ctx {
						watched++
					}
				}
			})
		}
		wg.Wait()
		stop.Stop()
		cancel()
	}
	close(done)
	cutter.Wait()
	if watched == 0 {
		t.Error("no context was ever watched")
	}
}
