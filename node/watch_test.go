package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// history is what a watch of everything must show.
type history struct {
	mu     sync.Mutex
	events []string // guarded by mu
	plain  []wire.Event
}

// write makes count random changes, one after another: alone and in batches in which one key may stand often.
func (h *history) write(t *testing.T, n *Node, count int) {
	rng := seeded(t)
	state := map[string]string{}
	note := func(op wire.Opcode, key, value string, rev wire.Revision) {
		kind := wire.EventPut
		if op == wire.OpDelete {
			kind = wire.EventDelete
		}
		e := wire.Event{Kind: kind, Key: []byte(key), Value: []byte(value), Revision: rev}
		if old, had := state[key]; had {
			e.PreviousExt, e.Previous = []byte{1}, []byte(old)
		}
		if delete(state, key); op == wire.OpPut {
			state[key] = value
		}
		h.events = append(h.events, eventText(&e))
		h.plain = append(h.plain, e)
	}
	for i := range count {
		var items []wire.Item
		for range 1 + rng.IntN(4) {
			key := fmt.Sprintf("%c/%d", 'a'+rune(rng.IntN(3)), rng.IntN(4))
			if rng.IntN(3) == 0 {
				items = append(items, wire.Item{Op: wire.OpDelete, Key: []byte(key)})
			} else {
				items = append(items, wire.Item{Op: wire.OpPut, Key: []byte(key), Value: []byte(fmt.Sprintf("%d-%s", i, strings.Repeat("x", rng.IntN(200))))})
			}
		}
		r := do(t, n, wire.OpTxn, nil, "", group(wire.OpTxn, 0, items...))
		if r.Status != wire.StatusOK {
			t.Errorf("transaction: %s %s", r.Status, r.Payload)
			return
		}
		h.mu.Lock()
		_, count, b, err := wire.DecodeResult(r.Payload)
		if err != nil || count != len(items) {
			t.Errorf("%d results of %d: %v", count, len(items), err)
		}
		for j := range items {
			var it wire.Item
			if b, err = wire.NextItem(b, &it); err != nil {
				t.Error(err)
			}
			if rev, ok := wire.DecodeVersion(it.Value); ok && rev != 0 {
				note(items[j].Op, string(items[j].Key), string(items[j].Value), rev)
			}
		}
		h.mu.Unlock()
	}
}

// Goal: watches on one connection show exactly the changes of their ranges, in order, under random credit, with what
// was there before each; cut at a random place and begun again behind the last batch, they go on there.
func TestWatch_RandomCreditCancelAndResume_EventsOnceInOrder(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	rng := seeded(t)
	var h history
	var wg sync.WaitGroup
	wg.Go(func() { h.write(t, n, 400) }) // ends by itself; waited for below
	p := dialStreams(t, n, 0)
	type running struct {
		q      wire.WatchRequest
		x      *watchReader
		id     uint32
		begun  bool
		ending bool
	}
	var all []*running
	byID := map[uint32]*running{}
	next := uint32(1)
	begin := func(r *running) {
		r.q.After, r.q.Credit = r.x.after, uint32(1+rng.IntN(600))
		r.id, r.begun, r.ending, r.x.begun = next, false, false, false
		byID[next] = r
		next++
		p.watch(r.id, &r.q)
	}
	for i := range 6 {
		r := &running{x: &watchReader{t: t}, q: wire.WatchRequest{ProgressMs: 100, Flags: wire.WatchPrevious}}
		if i < 3 {
			r.q.Prefix = []byte(fmt.Sprintf("%c/", 'a'+rune(i)))
		} else if i == 3 {
			r.q.Flags |= wire.WatchNoPut
		}
		all = append(all, r)
		begin(r)
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }() // ends with the writer
	var last wire.Revision
	for finished := false; !finished; {
		f := p.read()
		r := byID[f.ID]
		if f.more() {
			at := r.x.after
			r.x.take(f)
			if at != 0 && !r.begun && r.x.after < at {
				t.Fatalf("begun behind %d at %d", at, r.x.after)
			}
			r.begun = true
			switch {
			case r.ending:
			case rng.IntN(40) == 0:
				r.ending = true
				p.cancel(r.id)
			default:
				p.credit(r.id, uint32(len(f.payload)+rng.IntN(3)*rng.IntN(500)))
			}
		} else {
			if f.Status() != wire.StatusCancelled || !r.ending {
				t.Fatalf("stream %d ended with %s %s", f.ID, f.Status(), f.payload)
			}
			delete(byID, f.ID)
			begin(r)
		}
		if last == 0 {
			select {
			case <-done:
				last = n.shard.engine.Applied().Revision
			default:
			}
		}
		finished = last != 0 && !slices.ContainsFunc(all, func(r *running) bool { return r.x.after < last })
	}
	for i, r := range all {
		var want []string
		for j := range h.plain {
			if e := &h.plain[j]; strings.HasPrefix(string(e.Key), string(r.q.Prefix)) && (r.q.Flags&wire.WatchNoPut == 0 || e.Kind != wire.EventPut) {
				want = append(want, eventText(e))
			}
		}
		if !slices.Equal(r.x.events, want) {
			t.Errorf("watch %d saw %d events of %d", i, len(r.x.events), len(want))
			for j := range want {
				if j >= len(r.x.events) || r.x.events[j] != want[j] {
					t.Fatalf("first difference at %d: want %.120s, got %.120s", j, want[j], append(r.x.events, "nothing")[min(j, len(r.x.events))])
				}
			}
		}
	}
	_ = p.c.Close()
	quietStreams(t, n)
}

// Goal: a client that reads nothing, and one that gives no credit, cost no more than their bounds; the watch goes on
// where it stood, and disconnecting leaves nothing behind.
func TestWatch_SlowReaders_BoundedMemory(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	p := dialStreams(t, n, 0)
	for id := range uint32(20) {
		p.watch(id+1, &wire.WatchRequest{Credit: wire.StreamCreditMax})
	}
	big := strings.Repeat("v", 100<<10)
	const puts = 60
	for i := range puts {
		put(t, n, fmt.Sprintf("k%d", i), big)
	}
	until(t, "frames find no room", func() bool { return n.doors.open.Load().Stats().StreamWaitsTotal > 0 })
	if st := n.doors.open.Load().Stats(); st.StreamBytes > 512<<10+5*wire.EventBytesMax { // one frame of each sender may pass the bound at once
		t.Errorf("%d bytes of streams are pending", st.StreamBytes)
	}
	p.send(wire.OpExists, 900, nil, "k1", nil)
	left, exists := 20, false
	readers := map[uint32]*watchReader{}
	for left > 0 || !exists {
		f := p.read()
		if f.ID == 900 {
			if exists = f.Status() == wire.StatusOK; !exists {
				t.Fatalf("a request beside full streams got %s", f.Status())
			}
			continue
		}
		if !f.more() {
			t.Fatalf("stream %d ended with %s %s", f.ID, f.Status(), f.payload)
		}
		x := readers[f.ID]
		if x == nil {
			x = &watchReader{t: t}
			readers[f.ID] = x
		}
		before := len(x.events)
		if x.take(f); before < puts && len(x.events) == puts {
			left--
		}
	}
	_ = p.c.Close()
	quietStreams(t, n)
}

// Goal: more streams than a connection may have are refused with TOO_MANY, an id that is in use with BAD_REQUEST; the
// others all show a change.
func TestWatch_ThousandOnOneConnection_AllSeeAChange(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	p := dialStreams(t, n, 0)
	for id := range uint32(streamsPerConnMax) {
		p.watch(id+1, &wire.WatchRequest{Flags: wire.WatchFromNow | wire.WatchKey, Start: []byte("k"), ProgressMs: wire.ProgressMsMax})
	}
	for range streamsPerConnMax {
		if f := p.read(); !f.more() {
			t.Fatalf("stream %d: %s %s", f.ID, f.Status(), f.payload)
		}
	}
	p.watch(5000, &wire.WatchRequest{Flags: wire.WatchFromNow})
	if f := p.read(); f.ID != 5000 || f.more() || f.Status() != wire.StatusTooMany {
		t.Errorf("one too many: id %d %s", f.ID, f.Status())
	}
	p.watch(7, &wire.WatchRequest{Flags: wire.WatchFromNow})
	if f := p.read(); f.ID != 7 || f.more() || f.Status() != wire.StatusBadRequest {
		t.Errorf("an id that is in use: id %d %s", f.ID, f.Status())
	}
	put(t, n, "other", "v")
	put(t, n, "k", "v")
	seen := map[uint32]bool{}
	for len(seen) < streamsPerConnMax {
		f := p.read()
		if _, events := batchOf(t, f.payload); len(events) != 1 || string(events[0].Key) != "k" || seen[f.ID] {
			t.Fatalf("stream %d: %v", f.ID, events)
		}
		seen[f.ID] = true
	}
	_ = p.c.Close()
	quietStreams(t, n)
}

// Goal: a stop ends watches with DRAINING, and doesn't wait for their clients.
func TestWatch_NodeStops_EndsWithDraining(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	p := dialStreams(t, n, 0)
	p.watch(1, &wire.WatchRequest{Flags: wire.WatchFromNow})
	p.read()
	closed := make(chan error, 1)
	go func() { closed <- n.Close(context.Background()) }() // ends with the stop
	for {
		f := p.read()
		if f.ID == 0 {
			continue // GOAWAY
		}
		if f.more() || f.Status() != wire.StatusDraining {
			t.Fatalf("the watch got %s, more %v", f.Status(), f.more())
		}
		break
	}
	_ = p.c.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// Goal: where a watch may not begin it is refused with a status that says why.
func TestWatch_Start_RefusalsSayWhy(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	put(t, n, "k", "v")
	p := dialStreams(t, n, 0)
	now := n.shard.engine.Applied().Revision
	expect := func(want wire.Status, ext []byte, q *wire.WatchRequest) {
		t.Helper()
		p.send(wire.OpWatch, 1, ext, "", wire.AppendWatchRequest(nil, q))
		if f := p.read(); f.more() || f.Status() != want {
			t.Errorf("got %s %s, more %v, want %s", f.Status(), f.payload, f.more(), want)
		}
	}
	expect(wire.StatusCompacted, wire.AppendExt(nil, wire.ExtHistory, make([]byte, 16)), &wire.WatchRequest{After: now})
	expect(wire.StatusNoNamespace, wire.AppendExtString(nil, wire.ExtNamespace, "absent"), &wire.WatchRequest{After: now})
	expect(wire.StatusNoNamespace, wire.AppendExtString(nil, wire.ExtNamespace, "absent"), &wire.WatchRequest{Flags: wire.WatchFromNow})

	// A revision that comes in time is waited for.
	future := now + 3<<wire.PositionBits
	p.watch(2, &wire.WatchRequest{After: future, ProgressMs: wire.ProgressMsMax})
	for n.shard.engine.Applied().Revision < future {
		put(t, n, "k", "w")
	}
	if f := p.read(); !f.more() {
		t.Errorf("a revision that came in time: %s %s", f.Status(), f.payload)
	}
	p.cancel(2)
	for f := p.read(); f.more(); f = p.read() {
	}
	if !testing.Short() {
		expect(wire.StatusFutureRevision, nil, &wire.WatchRequest{After: future + 1<<40})
	}
	quietStreams(t, n)
}

// Goal: an event that the client's largest frame can't hold ends the watch, behind all before it; the watch may go on
// behind it. What was there before is left out where it has no room.
func TestWatch_EventLargerThanTheClientTakes_EndsWithTooLarge(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	const most = 64 << 10
	value := strings.Repeat("v", most-1000)
	put(t, n, "k", value)
	put(t, n, "k", value)
	put(t, n, "k", value+strings.Repeat("w", 2000))
	put(t, n, "k", "small")
	p := dialStreams(t, n, most)
	x := &watchReader{t: t}
	p.watch(1, &wire.WatchRequest{Flags: wire.WatchPrevious})
	f := p.read()
	for ; f.more(); f = p.read() {
		x.take(f)
	}
	if f.Status() != wire.StatusTooLarge || len(x.events) != 2 || !strings.HasSuffix(x.events[1], "lost") || strings.HasSuffix(x.events[0], "lost") {
		t.Fatalf("%s %s behind %d events", f.Status(), f.payload, len(x.events))
	}
	var rev wire.Revision
	if _, err := fmt.Sscanf(string(f.payload), "the event of revision %d,", &rev); err != nil || rev <= x.after {
		t.Fatalf("%q names no revision above %d: %v", f.payload, x.after, err)
	}
	x = &watchReader{t: t}
	p.watch(2, &wire.WatchRequest{After: rev})
	for len(x.events) == 0 {
		x.take(p.read())
	}
	if !strings.Contains(x.events[0], "=small@") {
		t.Errorf("behind it came %.50s", x.events[0])
	}
}

// Goal: a watch from now at a follower begins no earlier than what the leader had acknowledged, and shows what is
// acknowledged after its first frame.
func TestWatch_FromNowAtAFollower_BeginsBehindWhatWasAcknowledged(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	for _, n := range others {
		recorded(t, n)
	}
	for i := range 30 {
		n := others[i%len(others)]
		p := dialStreams(t, n, 0)
		r := put(t, leader, "k", fmt.Sprint(i))
		acknowledged, ok := wire.DecodeVersion(r.Payload)
		if !ok {
			t.Fatalf("put: %s %s", r.Status, r.Payload)
		}
		p.watch(1, &wire.WatchRequest{Flags: wire.WatchFromNow})
		x := &watchReader{t: t}
		f := p.read()
		if !f.more() {
			t.Fatalf("%s %s", f.Status(), f.payload)
		}
		x.take(f)
		if x.after < acknowledged {
			t.Fatalf("it began behind %d, %d was acknowledged", x.after, acknowledged)
		}
		put(t, leader, "k", "after")
		for len(x.events) == 0 {
			x.take(p.read())
		}
		if !strings.HasPrefix(x.events[0], "put k=after@") {
			t.Fatalf("first came %s", x.events[0])
		}
		_ = p.c.Close()
	}
}

// Goal: a door with a goroutine for each request gets the frames in order at its own pace, and its end ends the stream.
func TestStream_Call_FramesInOrderUntilItLeaves(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	const puts = 300
	for i := range puts {
		put(t, n, "k", fmt.Sprint(i, strings.Repeat("x", 5000)))
	}
	r := request(t, wire.OpWatch, nil, "", wire.AppendWatchRequest(nil, &wire.WatchRequest{Credit: 20_000}))
	x := &watchReader{t: t}
	enough := errors.New("enough")
	a := n.service.Stream(t.Context(), n.service.Anonymous(), r, func(r *wire.Response) error {
		if x.take(&frame{ext: r.Ext, payload: r.Payload}); len(x.events) == puts {
			return enough
		}
		return nil
	})
	if a.Status != wire.StatusCancelled || len(x.events) != puts {
		t.Errorf("%s behind %d events of %d", a.Status, len(x.events), puts)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a = n.service.Stream(ctx, n.service.Anonymous(), r, func(*wire.Response) error { cancel(); return nil })
	if a.Status != wire.StatusCancelled {
		t.Errorf("its caller's end gave %s", a.Status)
	}
	quietStreams(t, n)
}

// Goal: a node that is cut off from the others does not go on telling that nothing happens: its watches end, so that
// clients watch elsewhere, and begin again once there is a leader.
func TestWatch_NodeWithoutLeader_EndsItsWatches(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, func(o *Options) { o.Service.WatchAlone = 300 * time.Millisecond })
	c.start(c.ids...)
	leader, others := c.leader()
	n := others[0]
	p := dialStreams(t, n, 0)
	// On a busy machine a heartbeat may be late by WatchAlone: then the watch ends at once, and is begun again.
	id := uint32(1)
	for ; ; id++ {
		p.watch(id, &wire.WatchRequest{Flags: wire.WatchFromNow, ProgressMs: wire.ProgressMsMin})
		if f := p.read(); f.more() {
			break
		} else if f.Status() != wire.StatusNoLeader {
			t.Fatalf("%s %s", f.Status(), f.payload)
		}
	}
	after := leader.shard.engine.Applied().Revision
	c.stop(leader.info.NodeID)
	c.stop(others[1].info.NodeID)
	for {
		if f := p.read(); !f.more() {
			if f.Status() != wire.StatusNoLeader {
				t.Fatalf("it ended with %s %s", f.Status(), f.payload)
			}
			break
		}
	}
	p.watch(id+1, &wire.WatchRequest{After: after})
	if f := p.read(); f.more() || f.Status() != wire.StatusNoLeader {
		t.Fatalf("a watch at a node without a leader: %s", f.Status())
	}
	c.start(others[1].info.NodeID)
	for id := uint32(3); ; id++ {
		p.watch(id, &wire.WatchRequest{After: after})
		f := p.read()
		if f.more() {
			return
		}
		if f.Status() != wire.StatusNoLeader {
			t.Fatalf("a watch once there is a leader: %s %s", f.Status(), f.payload)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
