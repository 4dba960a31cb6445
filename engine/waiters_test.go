package engine

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// wait registers at index; fired tells how often it was called.
func wait(t testing.TB, e *Engine, index uint64) (cancel func(), fired *atomic.Int32) {
	t.Helper()
	fired = new(atomic.Int32)
	cancel, ok := e.WaitApplied(index, func() {
		if got := e.Applied().Index; got < index {
			t.Errorf("called for %d when %d is applied", index, got)
		}
		fired.Add(1)
	})
	if !ok {
		t.Fatalf("no room to wait for %d", index)
	}
	return cancel, fired
}

func TestWaitApplied_BelowAtAndAbove_CalledOnceWhenApplied(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	if _, fired := wait(t, d.e, d.index); fired.Load() != 1 {
		t.Fatal("what is applied was waited for")
	}
	_, fifth := wait(t, d.e, 5)
	_, third := wait(t, d.e, 3)
	cancel, fourth := wait(t, d.e, 4)
	_, configuration := wait(t, d.e, 4)
	for _, want := range [][4]int32{{0, 0, 0, 0}, {1, 0, 0, 0}, {1, 0, 1, 0}, {1, 0, 1, 1}, {1, 0, 1, 1}} {
		if d.index++; d.index == 4 {
			cancel()
			cancel()
			d.e.ApplyConfiguration(d.index, 1, []byte("c"))
		} else {
			d.e.Apply(d.index, 1, sealEntry(d.now, putOp("k", []byte("v"), nil)))
		}
		if got := [4]int32{third.Load(), fourth.Load(), configuration.Load(), fifth.Load()}; got != want {
			t.Fatalf("entry %d: called %v, want %v", d.index, got, want)
		}
	}
	if d.e.waiters.next.Load() != 1<<64-1 {
		t.Fatal("the applier still believes that somebody waits")
	}
}

func TestWaitApplied_InstalledSnapshot_CallsThoseItReaches(t *testing.T) {
	ahead, behind := pair(t)
	for range 5 {
		ahead.put("k", "v")
	}
	_, reached := wait(t, behind, ahead.index)
	_, beyond := wait(t, behind, ahead.index+1)
	if err := ahead.send(behind).Install(); err != nil {
		t.Fatal(err)
	}
	if reached.Load() != 1 || beyond.Load() != 0 {
		t.Fatalf("called %d and %d times", reached.Load(), beyond.Load())
	}
}

func TestWaitApplied_TooMany_AreRefused(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	var cancels []func()
	for i := range waitersMax {
		cancel, ok := d.e.WaitApplied(uint64(1000+i), func() { t.Error("called") })
		if !ok {
			t.Fatalf("no room for waiter %d", i)
		}
		cancels = append(cancels, cancel)
	}
	if _, ok := d.e.WaitApplied(5, func() { t.Error("called") }); ok {
		t.Fatal("one too many")
	}
	cancels[7]()
	if _, ok := d.e.WaitApplied(1_000_000, func() {}); !ok {
		t.Fatal("no room after one left")
	}
	for _, cancel := range cancels {
		cancel()
	}
	d.put("k", "v")
}

func TestWaitApplied_AppliedWhileRegistering_IsCalled(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	var d *driver
	o.hooks.beforeWait = func() { d.put("k", "v") }
	d = newDriver(t, o)
	if _, fired := wait(t, d.e, d.index+1); fired.Load() != 1 || len(d.e.waiters.queue) != 0 {
		t.Fatalf("called %d times, %d wait", fired.Load(), len(d.e.waiters.queue))
	}
}

// TestWaitApplied_BesideTheApplier_NobodyIsForgotten has many wait for entries at the moment of their application.
func TestWaitApplied_BesideTheApplier_NobodyIsForgotten(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	const entries = 2000
	seed := testSeed(t)
	var all sync.WaitGroup
	var started sync.WaitGroup
	for n := range 4 {
		started.Add(1)
		all.Go(func() { // ends when the last entry is applied
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			started.Done()
			for {
				index := d.e.Applied().Index + uint64(rng.IntN(3))
				if index > entries {
					return
				}
				done := make(chan struct{})
				cancel, ok := d.e.WaitApplied(index, func() { close(done) })
				if !ok {
					t.Error("no room")
					return
				}
				if rng.IntN(4) == 0 {
					cancel()
					continue
				}
				<-done
			}
		})
	}
	started.Wait()
	entry := sealEntry(d.now, putOp("k", []byte("v"), nil))
	for index := d.index + 1; index <= entries; index++ {
		d.e.Apply(index, 1, entry)
	}
	all.Wait()
}
