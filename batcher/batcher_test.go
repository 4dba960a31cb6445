package batcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// fakeLog is a Proposer under the test's control: it decodes what it is given and keeps it until the
// test lets it answer.
type fakeLog struct {
	mu      sync.Mutex
	entries []fakeEntry
	arrived chan struct{} // one token for each Propose
	refuse  wire.Status   // answer of Propose when not StatusOK
	auto    bool          // answer at once
}

type fakeEntry struct {
	bytes []byte
	head  wire.EntryHeader
	ops   []wire.Op
	done  func([]wire.Result, wire.Status)
}

func newFakeLog() *fakeLog { return &fakeLog{arrived: make(chan struct{}, 1<<16)} }

func (l *fakeLog) Propose(entry []byte, done func([]wire.Result, wire.Status)) wire.Status {
	fe := fakeEntry{bytes: entry, done: done}
	rest, err := wire.DecodeEntry(entry, &fe.head)
	if err != nil {
		panic(err)
	}
	for range fe.head.Count {
		var op wire.Op
		if rest, err = wire.NextOp(rest, &op); err != nil {
			panic(err)
		}
		fe.ops = append(fe.ops, op)
	}
	if len(rest) != 0 {
		panic("bytes after the last operation")
	}
	l.mu.Lock()
	refuse, auto := l.refuse, l.auto
	if refuse == wire.StatusOK {
		l.entries = append(l.entries, fe)
	}
	l.mu.Unlock()
	if auto && refuse == wire.StatusOK {
		fe.answer(wire.StatusOK)
	}
	l.arrived <- struct{}{}
	return refuse
}

// answer ends the entry: each operation's revision is the number in its key.
func (fe *fakeEntry) answer(st wire.Status) {
	if st != wire.StatusOK {
		fe.done(nil, st)
		return
	}
	results := make([]wire.Result, len(fe.ops))
	for i, op := range fe.ops {
		results[i] = wire.Result{Rev: binary.BigEndian.Uint64(op.Key)}
	}
	fe.done(results, st)
}

func (l *fakeLog) waitEntry(t *testing.T, n int) *fakeEntry {
	t.Helper()
	for {
		l.mu.Lock()
		if len(l.entries) > n {
			defer l.mu.Unlock()
			return &l.entries[n]
		}
		l.mu.Unlock()
		select {
		case <-l.arrived:
		case <-time.After(10 * time.Second):
			t.Fatalf("entry %d did not arrive", n)
		}
	}
}

// answers counts and checks completions: each token exactly once.
type answers struct {
	mu   sync.Mutex
	got  map[uint32]wire.Response
	more chan struct{}
}

func newAnswers() *answers {
	return &answers{got: map[uint32]wire.Response{}, more: make(chan struct{}, 1<<16)}
}

func (a *answers) Complete(tk wire.Token, r *wire.Response) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, twice := a.got[tk.ID]; twice {
		panic(fmt.Sprintf("request %d answered twice", tk.ID))
	}
	a.got[tk.ID] = wire.Response{Status: r.Status, Payload: bytes.Clone(r.Payload)}
	a.more <- struct{}{}
}

func (a *answers) wait(t *testing.T, n int) map[uint32]wire.Response {
	t.Helper()
	for range n {
		select {
		case <-a.more:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d answers", len(a.got), n)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got
}

func newBatcher(t *testing.T, l *fakeLog, change func(*Options)) *Batcher {
	t.Helper()
	o := Options{Proposer: l, Stamp: func(h *wire.EntryHeader) { h.Level, h.Group, h.Time = 1, 1, 42 }, Now: func() int64 { return 0 }}
	if change != nil {
		change(&o)
	}
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func submit(b *Batcher, a *answers, id int, valueBytes int, deadline int64) wire.Status {
	body := make([]byte, 8+valueBytes)
	binary.BigEndian.PutUint64(body, uint64(id))
	return b.Submit(&wire.Op{Op: wire.OpPut, Namespace: 1}, body, 0, 8, a, wire.Token{ID: uint32(id), Op: wire.OpPut}, deadline)
}

func TestBatcher_WritesWhileSlotsAreBusy_ShareOneEntryInOrder(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax = 1 })
	submit(b, a, 1, 10, math.MaxInt64)
	l.waitEntry(t, 0)
	for id := 2; id <= 50; id++ {
		if st := submit(b, a, id, 10, math.MaxInt64); st != wire.StatusOK {
			t.Fatal(st)
		}
	}
	l.waitEntry(t, 0).answer(wire.StatusOK)
	e := l.waitEntry(t, 1)
	if len(e.ops) != 49 {
		t.Fatalf("second entry has %d operations, want 49", len(e.ops))
	}
	for i, op := range e.ops {
		if got := binary.BigEndian.Uint64(op.Key); got != uint64(i+2) {
			t.Fatalf("operation %d is %d: order lost", i, got)
		}
	}
	if e.head.Proposal != 2 || e.head.Time != 42 {
		t.Fatalf("header %+v", e.head)
	}
	e.answer(wire.StatusOK)
	for id, r := range a.wait(t, 50) {
		if r.Status != wire.StatusOK || binary.LittleEndian.Uint64(r.Payload) != uint64(id) {
			t.Fatalf("request %d got %s % x", id, r.Status, r.Payload)
		}
	}
	closeBatcher(t, b)
}

func TestBatcher_UnknownOutcome_ReachesEveryOperationAsUnknown(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax = 1 })
	submit(b, a, 1, 1, math.MaxInt64)
	e := l.waitEntry(t, 0)
	submit(b, a, 2, 1, math.MaxInt64)
	submit(b, a, 3, 1, math.MaxInt64)
	e.answer(wire.StatusOK)
	l.waitEntry(t, 1).answer(wire.StatusLeadershipLost)
	got := a.wait(t, 3)
	if got[1].Status != wire.StatusOK || got[2].Status != wire.StatusLeadershipLost || got[3].Status != wire.StatusLeadershipLost {
		t.Fatalf("answers %v", got)
	}
	closeBatcher(t, b)
}

func TestBatcher_RefusedProposal_AnswersSurelyNotApplied(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	l.refuse = wire.StatusNotLeader
	b := newBatcher(t, l, nil)
	submit(b, a, 1, 1, math.MaxInt64)
	if got := a.wait(t, 1)[1]; got.Status != wire.StatusNotLeader {
		t.Fatalf("answer %v", got)
	}
	closeBatcher(t, b)
}

func TestBatcher_DeadlinePassedInQueue_IsDroppedBeforeTheLog(t *testing.T) {
	var now atomic.Int64
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax = 1; o.Now = now.Load })
	submit(b, a, 1, 5, 100)
	first := l.waitEntry(t, 0)
	for id := 2; id <= 9; id++ {
		submit(b, a, id, id, int64(100+100*(id%2))) // even: 100, odd: 200
	}
	now.Store(150)
	first.answer(wire.StatusOK)
	e := l.waitEntry(t, 1)
	for i, op := range e.ops {
		want := uint64(3 + 2*i)
		if got := binary.BigEndian.Uint64(op.Key); got != want || len(op.Payload) != int(want) {
			t.Fatalf("operation %d: key %d with %d bytes, want %d", i, got, len(op.Payload), want)
		}
	}
	e.answer(wire.StatusOK)
	for id, r := range a.wait(t, 9) {
		want := wire.StatusOK
		if id > 1 && id%2 == 0 {
			want = wire.StatusTooLate
		}
		if r.Status != want {
			t.Fatalf("request %d got %s, want %s", id, r.Status, want)
		}
	}
	closeBatcher(t, b)
}

func TestBatcher_QueueFull_RefusesAndRecovers(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax = 1; o.QueueBytesMax = wire.EntryBytesMax })
	submit(b, a, 1, 1, math.MaxInt64)
	l.waitEntry(t, 0)
	accepted := 1
	for id := 2; ; id++ {
		st := submit(b, a, id, 1<<20, math.MaxInt64)
		if st == wire.StatusBusy {
			break
		}
		if accepted++; accepted > 64 {
			t.Fatal("the queue has no bound")
		}
	}
	l.mu.Lock()
	l.auto = true
	first := l.entries[0]
	l.mu.Unlock()
	first.answer(wire.StatusOK)
	a.wait(t, accepted)
	if st := submit(b, a, 1000, 1<<20, math.MaxInt64); st != wire.StatusOK {
		t.Fatalf("after the queue drained: %s", st)
	}
	a.wait(t, 1)
	closeBatcher(t, b)
}

func TestBatcher_LargeValues_TravelAloneAndOneAtATime(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, nil)
	submit(b, a, 1, 2<<20, math.MaxInt64)
	e1 := l.waitEntry(t, 0)
	submit(b, a, 2, 2<<20, math.MaxInt64)
	submit(b, a, 3, 10, math.MaxInt64)
	select {
	case <-l.arrived:
		l.mu.Lock()
		n := len(l.entries)
		l.mu.Unlock()
		if n > 1 {
			t.Fatal("a second large entry was proposed while the first was in flight")
		}
	default:
	}
	e1.answer(wire.StatusOK)
	e2 := l.waitEntry(t, 1)
	if len(e2.ops) != 1 {
		t.Fatalf("large entry holds %d operations", len(e2.ops))
	}
	l.waitEntry(t, 2).answer(wire.StatusOK)
	e2.answer(wire.StatusOK)
	a.wait(t, 3)
	closeBatcher(t, b)
}

func TestBatcher_Close_AnswersEverythingAndRefusesNewWork(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, func(o *Options) { o.InFlightMax = 1 })
	for id := 1; id <= 20; id++ {
		submit(b, a, id, 1, math.MaxInt64)
	}
	first := l.waitEntry(t, 0)
	l.mu.Lock()
	l.auto = true
	l.mu.Unlock()
	closed := make(chan error)
	go func() { closed <- b.Close(context.Background()) }()
	first.answer(wire.StatusOK)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	a.wait(t, 20)
	if st := submit(b, a, 99, 1, math.MaxInt64); st != wire.StatusDraining {
		t.Fatalf("after Close: %s", st)
	}
}

func TestBatcher_CloseWithAnEntryThatNeverEnds_IsBoundedByItsContext(t *testing.T) {
	l, a := newFakeLog(), newAnswers()
	b := newBatcher(t, l, nil)
	submit(b, a, 1, 1, math.MaxInt64)
	e := l.waitEntry(t, 0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Close(ctx); err == nil {
		t.Fatal("Close says that all is answered while an entry is in flight")
	}
	e.answer(wire.StatusShutdown)
	if got := a.wait(t, 1)[1]; got.Status != wire.StatusShutdown {
		t.Fatalf("answer %v", got)
	}
}

// Every operation of many concurrent submitters is answered exactly once, with its own result, and the
// bytes that the log was given do not change afterwards although buffers are recycled.
func TestBatcher_ManySubmitters_EachAnsweredOnceWithItsOwnResult(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l, a := newFakeLog(), newAnswers()
	l.auto = true
	b := newBatcher(t, l, func(o *Options) { o.EntryBytesTarget = 4 << 10; o.EntryOpsMax = 64 })
	const workers, each = 8, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range each {
				if st := submit(b, a, w*each+i+1, rng.IntN(600), math.MaxInt64); st != wire.StatusOK {
					panic(st)
				}
			}
		})
	}
	wg.Wait()
	for id, r := range a.wait(t, workers*each) {
		if r.Status != wire.StatusOK || binary.LittleEndian.Uint64(r.Payload) != uint64(id) {
			t.Fatalf("request %d got %s % x", id, r.Status, r.Payload)
		}
	}
	closeBatcher(t, b)
	for i, e := range l.entries {
		var h wire.EntryHeader
		if _, err := wire.DecodeEntry(e.bytes, &h); err != nil {
			t.Fatalf("entry %d changed after it was proposed: %v", i, err)
		}
		if h.Proposal != uint64(i+1) {
			t.Fatalf("entry %d has proposal number %d", i, h.Proposal)
		}
	}
}

func TestOptions_Validate_ListsEveryFault(t *testing.T) {
	_, err := New(Options{EntryBytesTarget: 1, InFlightMax: 1000, QueueBytesMax: 5})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"Proposer", "EntryBytesTarget", "InFlightMax", "QueueBytesMax"} {
		if !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

func closeBatcher(t *testing.T, b *Batcher) {
	t.Helper()
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	<-b.stopped
}

// nullLog answers at once; it measures the batcher alone.
type nullLog struct{ results []wire.Result }

func (l *nullLog) Propose(entry []byte, done func([]wire.Result, wire.Status)) wire.Status {
	n := int(binary.LittleEndian.Uint32(entry[32:]))
	for len(l.results) < n {
		l.results = append(l.results, wire.Result{})
	}
	done(l.results[:n], wire.StatusOK)
	return wire.StatusOK
}

type nullCompleter struct{ n atomic.Int64 }

func (c *nullCompleter) Complete(wire.Token, *wire.Response) { c.n.Add(1) }

func BenchmarkSubmit(b *testing.B) {
	bt, err := New(Options{Proposer: &nullLog{}, Stamp: func(*wire.EntryHeader) {}, Now: func() int64 { return 0 }})
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 150)
	var c nullCompleter
	op := &wire.Op{Op: wire.OpPut, Namespace: 1}
	b.ReportAllocs()
	for b.Loop() {
		for bt.Submit(op, body, 0, 16, &c, wire.Token{Op: wire.OpPut}, math.MaxInt64) == wire.StatusBusy {
		}
	}
	if err := bt.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}
