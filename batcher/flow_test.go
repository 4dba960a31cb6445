package batcher

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

func submitIn(b *Batcher, ns uint32, a wire.Completer, id, valueBytes int) wire.Status {
	body := make([]byte, 8+valueBytes)
	binary.BigEndian.PutUint64(body, uint64(id))
	return b.Submit(&wire.Op{Op: wire.OpPut, Namespace: ns}, body, 0, 8, a, wire.Token{ID: uint32(id), Op: wire.OpPut}, math.MaxInt64)
}

func idOf(op *wire.Op) int { return int(binary.BigEndian.Uint64(op.Key)) }

func sizeOf(op *wire.Op) int {
	return wire.OpHeaderBytes + len(op.Ext) + len(op.Key) + len(op.Payload)
}

// Some namespaces flood the queue with operations of all sizes, others put a small one into it now and then. Every
// small one is sealed before the floods have put more than one round of theirs in front of it; nothing is lost or said
// twice; and each connection's operations of one namespace keep their order.
func TestBatcher_Floods_DelayOthersByOneRoundAtMost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for run := range 12 {
		rng := rand.New(rand.NewPCG(seed, uint64(run)))
		floods, meek := 1+rng.IntN(5), 1+rng.IntN(6)
		const target, opMax = 32 << 10, 12 << 10
		t.Run(fmt.Sprintf("floods=%d/meek=%d", floods, meek), func(t *testing.T) {
			l := newFakeLog()
			b := newBatcher(t, l, func(o *Options) { o.InFlightMax, o.EntryBytesTarget = 1, target })
			conns := []*answers{newAnswers(), newAnswers(), newAnswers()}
			id, sent := 0, 0
			type origin struct{ ns, conn int }
			origins := map[int]origin{}
			put := func(ns, bytes int) int {
				id++
				conn := rng.IntN(len(conns))
				if st := submitIn(b, uint32(ns), conns[conn], id, bytes); st != wire.StatusOK {
					t.Fatalf("operation %d in namespace %d: %s", id, ns, st)
				}
				sent += wire.OpHeaderBytes + 8 + bytes
				origins[id] = origin{ns, conn}
				return id
			}
			queued := make([]int, floods+1)
			refill := func() {
				for ns := 1; ns <= floods; ns++ {
					for queued[ns] < 3*target {
						n := rng.IntN(opMax - 200)
						if rng.IntN(2) == 0 {
							n = rng.IntN(100)
						}
						put(ns, n)
						queued[ns] += wire.OpHeaderBytes + 8 + n
					}
				}
			}
			put(1, 10)
			queued[1] = wire.OpHeaderBytes + 18
			l.waitEntry(t, 0) // the slot is taken: what comes now waits
			refill()

			// ahead is what floods have put in front of the one operation that each meek namespace has waiting.
			ahead := map[int]int{}
			waiting := map[int]int{} // its id, by namespace
			got, last := 0, map[origin]int{}
			bound := floods * (target/max(floods, 2) + opMax)
			take := func(e *fakeEntry) {
				for i := range e.ops {
					op := &e.ops[i]
					n, ns := idOf(op), int(op.Namespace)
					o := origins[n]
					got += sizeOf(op)
					if o.ns != ns || n <= last[o] {
						t.Fatalf("operation %d of namespace %d stands in %d behind %d", n, o.ns, ns, last[o])
					}
					last[o] = n
					if ns <= floods {
						queued[ns] -= sizeOf(op)
						for m := range waiting {
							if ahead[m] += sizeOf(op); ahead[m] > bound {
								t.Fatalf("%d bytes of floods stand in front of an operation of namespace %d; at most %d should", ahead[m], m, bound)
							}
						}
					} else if waiting[ns] == n {
						delete(waiting, ns)
						delete(ahead, ns)
					}
				}
				if len(e.bytes) > target {
					t.Fatalf("an entry of %d bytes", len(e.bytes))
				}
			}
			entry := 0
			for ; entry < 60; entry++ {
				e := *l.waitEntry(t, entry) // sealed before what comes now
				take(&e)
				refill()
				for m := floods + 1; m <= floods+meek; m++ {
					if waiting[m] == 0 && rng.IntN(3) == 0 {
						waiting[m] = put(m, rng.IntN(500))
					}
				}
				e.answer(wire.StatusOK)
			}
			e := *l.waitEntry(t, entry)
			l.mu.Lock()
			l.auto = true
			l.mu.Unlock()
			e.answer(wire.StatusOK)
			closeBatcher(t, b)
			for ; entry < len(l.entries); entry++ {
				take(&l.entries[entry])
			}
			if got != sent || b.Stats().QueuedBytes != 0 {
				t.Errorf("%d bytes were queued, %d sealed, %d are still counted as queued", sent, got, b.Stats().QueuedBytes)
			}
			for _, f := range b.flows {
				if f.bytes != 0 || f.shares.total != 0 || f.shares.used != 0 || f.active {
					t.Errorf("namespace %d still counts %d bytes of %d operations of %d senders", f.ns, f.bytes, f.shares.total, f.shares.used)
				}
			}
			answered := 0
			for _, a := range conns {
				answered += len(a.got)
			}
			if answered != id {
				t.Errorf("%d of %d operations were answered", answered, id)
			}
		})
	}
}

// With every slot busy, two namespaces share one entry: nobody pays for the other's company with an entry of its own.
func TestBatcher_SmallWritesOfManyNamespaces_ShareAnEntry(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax = 1 })
	submitIn(b, 1, a, 1, 1)
	l.waitEntry(t, 0)
	for id := 2; id <= 1000; id++ {
		if st := submitIn(b, uint32(id), a, id, 10); st != wire.StatusOK {
			t.Fatal(st)
		}
	}
	l.waitEntry(t, 0).answer(wire.StatusOK)
	e := l.waitEntry(t, 1)
	if len(e.ops) != 999 {
		t.Fatalf("the entry has %d operations, want 999", len(e.ops))
	}
	e.answer(wire.StatusOK)
	for id, r := range a.wait(t, 1000) {
		if r.Status != wire.StatusOK || binary.LittleEndian.Uint64(r.Payload) != uint64(id) {
			t.Fatalf("request %d got %s % x", id, r.Status, r.Payload)
		}
	}
	closeBatcher(t, b)
	if n := len(b.flows); n > 1000 {
		t.Errorf("%d namespaces are remembered", n)
	}
}

// A large value waits for the one in flight; the small ones of another namespace don't wait for it.
func TestBatcher_LargeValueWaits_OthersPassIt(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, nil)
	submitIn(b, 1, a, 1, 2<<20)
	first := l.waitEntry(t, 0)
	submitIn(b, 1, a, 2, 2<<20)
	submitIn(b, 2, a, 3, 10)
	e := l.waitEntry(t, 1)
	if len(e.ops) != 1 || idOf(&e.ops[0]) != 3 {
		t.Fatalf("the second entry begins with operation %d, want 3", idOf(&e.ops[0]))
	}
	e.answer(wire.StatusOK)
	first.answer(wire.StatusOK)
	l.waitEntry(t, 2).answer(wire.StatusOK)
	a.wait(t, 3)
	closeBatcher(t, b)
}

// Who floods fills the queue; who has nothing there still finds room, and may queue as much as a fair share.
func TestBatcher_FullQueue_TakesThoseWithLittle(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax, o.QueueBytesMax = 1, 20<<20 })
	submitIn(b, 1, a, 1, 1)
	first := l.waitEntry(t, 0)
	id := 1
	flood := func(ns uint32) (bytes int) {
		for {
			id++
			if submitIn(b, ns, a, id, 64<<10) != wire.StatusOK {
				return bytes
			}
			bytes += 64 << 10
		}
	}
	hog := flood(7)
	if hog < 17<<20 || hog > 18<<20 {
		t.Errorf("alone, a namespace may queue %d bytes of %d", hog, 20<<20)
	}
	for ns := uint32(100); ns < 200; ns++ {
		id++
		if st := submitIn(b, ns, a, id, 1<<10); st != wire.StatusOK {
			t.Fatalf("namespace %d has nothing queued and is refused: %s", ns, st)
		}
	}
	if second := flood(8); second < 1<<20 {
		t.Errorf("a second flood may queue %d bytes", second)
	}
	if st := submitIn(b, 300, a, id+1, 1<<10); st != wire.StatusOK {
		t.Errorf("behind two floods: %s", st)
	}
	if q := b.Stats().QueuedBytes; q > 20<<20 {
		t.Errorf("%d bytes are queued", q)
	}
	l.mu.Lock()
	l.auto = true
	l.mu.Unlock()
	first.answer(wire.StatusOK)
	closeBatcher(t, b)
}

// A namespace whose queue is too old is refused; another whose queue is young is not.
func TestBatcher_OldQueueOfOneNamespace_DoesNotRefuseAnother(t *testing.T) {
	b, l, a, clock := overloaded(t)
	id := 1
	for range 4 * agedOpsMin {
		id++
		submitIn(b, 1, a, id, 1)
	}
	clock.Store(int64(1100 * time.Millisecond))
	refused := 0
	for range 8 {
		id++
		if submitIn(b, 1, a, id, 1) == wire.StatusBusy {
			refused++
		}
	}
	if refused < 4 {
		t.Fatalf("%d of 8 operations were refused behind a queue that is too old", refused)
	}
	for range 100 {
		id++
		if st := submitIn(b, 2, a, id, 1); st != wire.StatusOK {
			t.Fatalf("another namespace: %s", st)
		}
	}
	drain(t, b, l)
}

// What the state machine refuses for a quota is counted for its namespace.
func TestBatcher_OverQuota_IsToldTheNamespace(t *testing.T) {
	told := make(chan uint32, 1)
	a := newAnswers()
	b, err := New(Options{
		Proposer: quotaLog{}, Stamp: func(h *wire.EntryHeader) { h.Level, h.Group = 1, 1 }, Now: func() int64 { return 0 },
		OverQuota: func(ns uint32) { told <- ns },
	})
	if err != nil {
		t.Fatal(err)
	}
	if st := submitIn(b, 9, a, 1, 1); st != wire.StatusOK {
		t.Fatal(st)
	}
	if got := a.wait(t, 1)[1]; got.Status != wire.StatusQuota {
		t.Fatalf("answer %v", got)
	}
	if ns := <-told; ns != 9 {
		t.Fatalf("namespace %d", ns)
	}
	closeBatcher(t, b)
}

type quotaLog struct{}

func (quotaLog) Propose(_ []byte, done func([]wire.Result, wire.Status)) wire.Status {
	done([]wire.Result{{Status: wire.StatusQuota}}, wire.StatusOK)
	return wire.StatusOK
}

// Every operation of many submitters in many namespaces is answered once, with its own result.
func TestBatcher_ManySubmittersInManyNamespaces_EachAnsweredOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l := newFakeLog()
	l.auto = true
	b := newBatcher(t, l, func(o *Options) { o.EntryBytesTarget, o.EntryOpsMax = 8<<10, 64 })
	const workers, each = 8, 400
	all := make([]*answers, workers)
	var wg sync.WaitGroup
	for w := range workers {
		all[w] = newAnswers()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range each {
				n := rng.IntN(600)
				if rng.IntN(50) == 0 {
					n = 20 << 10 // travels alone
				}
				if st := submitIn(b, uint32(1+rng.IntN(5)), all[w], w*each+i+1, n); st != wire.StatusOK {
					panic(st)
				}
			}
		})
	}
	wg.Wait()
	type stream struct {
		ns uint32
		w  int
	}
	for w, a := range all {
		for id, r := range a.wait(t, each) {
			if r.Status != wire.StatusOK || binary.LittleEndian.Uint64(r.Payload) != uint64(id) {
				t.Fatalf("request %d of %d got %s % x", id, w, r.Status, r.Payload)
			}
		}
	}
	closeBatcher(t, b)
	last := map[stream]int{}
	for i, e := range l.entries {
		var h wire.EntryHeader
		if _, err := wire.DecodeEntry(e.bytes, &h); err != nil {
			t.Fatalf("entry %d changed after it was proposed: %v", i, err)
		}
		for j := range e.ops {
			s := stream{e.ops[j].Namespace, (idOf(&e.ops[j]) - 1) / each}
			if id := idOf(&e.ops[j]); id <= last[s] {
				t.Fatalf("operation %d of %v stands behind %d", id, s, last[s])
			} else {
				last[s] = id
			}
		}
	}
}

func BenchmarkSubmit_Namespaces(b *testing.B) {
	for _, n := range []int{1, 4, 64} {
		b.Run(fmt.Sprintf("namespaces=%d", n), func(b *testing.B) {
			bt, err := New(Options{Proposer: &nullLog{}, Stamp: func(*wire.EntryHeader) {}, Now: func() int64 { return 0 }})
			if err != nil {
				b.Fatal(err)
			}
			body := make([]byte, 150)
			var c nullCompleter
			op := &wire.Op{Op: wire.OpPut}
			b.ReportAllocs()
			for i := uint32(0); b.Loop(); i++ {
				op.Namespace = 1 + i%uint32(n)
				for bt.Submit(op, body, 0, 16, &c, wire.Token{Op: wire.OpPut}, math.MaxInt64) == wire.StatusBusy {
				}
			}
			if err := bt.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
