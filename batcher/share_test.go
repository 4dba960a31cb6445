package batcher

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// overloaded gives a batcher whose only slot is taken, with four operations to an entry and a clock to set.
func overloaded(t *testing.T) (b *Batcher, l *fakeLog, hog *answers, clock *atomic.Int64) {
	t.Helper()
	clock = new(atomic.Int64)
	l, hog = newFakeLog(), newAnswers()
	b = newBatcher(t, l, func(o *Options) {
		o.InFlightMax, o.EntryOpsMax, o.QueueAgeMax, o.Now = 1, 4, time.Second, clock.Load
	})
	if st := submit(b, hog, 1, 1, math.MaxInt64); st != wire.StatusOK {
		t.Fatal(st)
	}
	l.waitEntry(t, 0)
	return b, l, hog, clock
}

// drain lets the log answer everything.
func drain(t *testing.T, b *Batcher, l *fakeLog) {
	t.Helper()
	l.mu.Lock()
	l.auto = true
	first := l.entries[0]
	l.mu.Unlock()
	first.answer(wire.StatusOK)
	closeBatcher(t, b)
}

func TestBatcher_OldQueue_RefusesUntilItHasDrained(t *testing.T) {
	b, l, a, clock := overloaded(t)
	n := 1
	put := func() wire.Status { n++; return submit(b, a, n, 1, math.MaxInt64) }
	for range 4 * agedOpsMin {
		if st := put(); st != wire.StatusOK {
			t.Fatalf("a young queue refused operation %d: %s", n, st)
		}
	}
	clock.Store(int64(1100 * time.Millisecond))
	refused := 0
	for range 8 { // the age is looked at with each entry that is opened
		if put() == wire.StatusBusy {
			refused++
		}
	}
	if refused < 4 {
		t.Fatalf("%d of 8 operations were refused behind a queue that is too old", refused)
	}
	l.mu.Lock()
	l.auto = true
	first := l.entries[0]
	l.mu.Unlock()
	first.answer(wire.StatusOK)
	a.wait(t, n-refused)
	if st := put(); st != wire.StatusOK {
		t.Fatalf("after the queue drained: %s", st)
	}
	closeBatcher(t, b)
}

func TestBatcher_FewOldOperations_AreNotOverload(t *testing.T) {
	b, l, a, clock := overloaded(t)
	for id := 2; id < agedOpsMin; id++ {
		clock.Add(int64(time.Second)) // a disk that hangs
		if st := submit(b, a, id, 1, math.MaxInt64); st != wire.StatusOK {
			t.Fatalf("operation %d: %s", id, st)
		}
	}
	drain(t, b, l)
}

func TestBatcher_GreedySender_DoesNotPushOthersOut(t *testing.T) {
	b, l, hog, clock := overloaded(t)
	id := 1
	for range 4 * agedOpsMin {
		id++
		submit(b, hog, id, 1, math.MaxInt64)
	}
	clock.Store(int64(700 * time.Millisecond)) // more than half of what is allowed
	meek := newAnswers()
	var greedy, taken int
	for i := range 200 {
		id++
		if submit(b, hog, id, 1, math.MaxInt64) == wire.StatusOK {
			greedy++
		}
		if i%20 == 0 {
			id++
			if submit(b, meek, id, 1, math.MaxInt64) == wire.StatusOK {
				taken++
			}
		}
	}
	if taken != 10 {
		t.Errorf("%d of 10 operations of a modest sender were taken", taken)
	}
	// Up to the first entry that is opened after the clock moved, nobody is refused; nor is somebody who has
	// everything that waits, as long as nobody else came.
	if greedy > 30 {
		t.Errorf("%d of 200 operations of the greedy sender were taken", greedy)
	}
	drain(t, b, l)
}

func TestShares_AnyOrder_CountsBackToNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var s shares
	var waiting []waiter
	for range 10000 {
		if len(waiting) == 0 || r.IntN(3) > 0 {
			w := waiter{slot: uint16(r.IntN(shareSlots))}
			s.add(w.slot)
			waiting = append(waiting, w)
			continue
		}
		n := 1 + r.IntN(len(waiting))
		s.drop(waiting[:n])
		waiting = waiting[n:]
		used := make(map[uint16]bool)
		for _, w := range waiting {
			used[w.slot] = true
		}
		if s.total != len(waiting) || s.used != len(used) {
			t.Fatalf("total %d used %d, want %d and %d", s.total, s.used, len(waiting), len(used))
		}
	}
}
