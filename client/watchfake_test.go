package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

var fakeHistory = [16]byte{7: 7}

// fakeFeed serves watches of a fixed history of events on fake servers, and cuts connections as it likes.
type fakeFeed struct {
	t      testing.TB
	events []wire.Event // in order
	// floor is the revision behind which a watch may begin, by number of server.
	floor []wire.Revision
	// cut says whether to end the connection before the next frame, or in its middle.
	cut func() (before, within bool)
	// frame changes a frame before it is sent; nil: nothing.
	frame func(n int, ext, payload []byte) (e, p []byte)

	mu sync.Mutex
	// Guarded by mu.
	credit map[fakeStream]int64
	ended  map[fakeStream]bool
	begun  []int // watches by server
	wake   sync.Cond
}

type fakeStream struct {
	c  *fakeConn
	id uint32
}

func newFakeFeed(t testing.TB, n int) *fakeFeed {
	f := &fakeFeed{t: t, credit: make(map[fakeStream]int64), ended: make(map[fakeStream]bool), cut: func() (bool, bool) { return false, false }}
	f.wake.L = &f.mu
	for i := range n {
		m := wire.Meta{Version: wire.MakeRevision(uint64(10+i), 0), CreatedAt: 1, UpdatedAt: 1}
		value := fmt.Appendf(nil, "value %d", i)
		m.Checksum = wire.Checksum(value)
		f.events = append(f.events, wire.Event{Kind: wire.EventPut, Flags: wire.EventLast, Revision: m.Version, Ext: wire.AppendExtMeta(nil, &m), Key: fmt.Appendf(nil, "k%d", i%7), Value: value})
	}
	return f
}

// serve makes s a server of the feed; it is number i.
func (f *fakeFeed) serve(s *fakeServer, i int) {
	f.floor, f.begun = append(f.floor, 0), append(f.begun, 0)
	s.mu.Lock()
	s.ack.Features |= wire.FeatureWatch
	s.mu.Unlock()
	s.on(func(c *fakeConn, r *wire.Request) fault {
		switch r.Op {
		case wire.OpWatch:
			var q wire.WatchRequest
			if ref := wire.DecodeWatchRequest(slices.Clone(r.Payload), &q); ref != nil {
				f.t.Errorf("the client asks for what is refused: %v", ref)
			}
			k := fakeStream{c, r.ID}
			f.mu.Lock()
			f.begun[i]++
			f.credit[k] = int64(q.Credit)
			floor := f.floor[i]
			f.mu.Unlock()
			if q.Flags&wire.WatchFromNow == 0 && q.After < floor {
				return fault{status: wire.StatusCompacted, text: "no longer kept"}
			}
			s.wg.Add(1)
			go func() { // ends with the events, a cut or the connection
				defer s.wg.Done()
				f.send(k, &q)
			}()
			return fault{ignore: true}
		case wire.OpCredit:
			id, n, _ := wire.DecodeCredit(r.Payload)
			f.mu.Lock()
			f.credit[fakeStream{c, id}] += int64(n)
			f.wake.Broadcast()
			f.mu.Unlock()
			return fault{ignore: true}
		case wire.OpCancel:
			id := uint32(r.Payload[0]) | uint32(r.Payload[1])<<8 | uint32(r.Payload[2])<<16 | uint32(r.Payload[3])<<24
			f.mu.Lock()
			f.ended[fakeStream{c, id}] = true
			f.wake.Broadcast()
			f.mu.Unlock()
			return fault{ignore: true}
		}
		return fault{}
	})
}

// close lets waiting streams go.
func (f *fakeFeed) close() {
	f.mu.Lock()
	for k := range f.credit {
		f.ended[k] = true
	}
	f.wake.Broadcast()
	f.mu.Unlock()
}

// send sends the events of a watch, in frames of one to five.
func (f *fakeFeed) send(k fakeStream, q *wire.WatchRequest) {
	h := wire.Header{Op: wire.OpWatch, Flags: wire.FlagResponse | wire.FlagCRC | wire.FlagMore, ID: k.id}
	n := 0
	frame := func(ext, payload []byte) bool {
		f.mu.Lock()
		for f.credit[k] <= 0 && !f.ended[k] {
			f.wake.Wait()
		}
		if f.ended[k] {
			f.mu.Unlock()
			return false
		}
		before, within := f.cut()
		f.mu.Unlock()
		if before {
			_ = k.c.nc.Close()
			return false
		}
		if f.frame != nil {
			ext, payload = f.frame(n, ext, payload)
		}
		n++
		f.mu.Lock()
		f.credit[k] -= int64(len(payload))
		f.mu.Unlock()
		b := wire.AppendFrame(nil, h, ext, nil, payload)
		if within {
			b = b[:len(b)/2]
		}
		k.c.mu.Lock()
		_, err := k.c.nc.Write(b)
		k.c.mu.Unlock()
		if within {
			_ = k.c.nc.Close()
		}
		return err == nil && !within
	}
	after := q.After
	if q.Flags&wire.WatchFromNow != 0 {
		after = 0
	}
	first := wire.AppendExtU32(wire.AppendExt(nil, wire.ExtHistory, fakeHistory[:]), wire.ExtNamespaceID, 1)
	if !frame(first, wire.AppendEventBatchHeader(nil, after, 0)) {
		return
	}
	at := slices.IndexFunc(f.events, func(e wire.Event) bool { return e.Revision > after })
	for size := 1; at >= 0 && at < len(f.events); size = size%5 + 1 {
		batch := f.events[at:min(at+size, len(f.events))]
		at += len(batch)
		p := wire.AppendEventBatchHeader(nil, batch[len(batch)-1].Revision, len(batch))
		for i := range batch {
			p = wire.AppendEvent(p, &batch[i])
		}
		if !frame(nil, p) {
			return
		}
	}
}

// servers makes n fake servers of the feed.
func (f *fakeFeed) servers(n int) (all []*fakeServer) {
	for i := range n {
		s := newFake(f.t, nil)
		f.serve(s, i)
		all = append(all, s)
	}
	f.t.Cleanup(f.close)
	return all
}

// follow takes n events, which must be those of the feed from number from on.
func (f *fakeFeed) follow(w *Watch, from, n int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := from; i < from+n; i++ {
		e, err := w.Next(ctx)
		if err != nil {
			f.t.Fatalf("event %d: %v", i, err)
		}
		want := &f.events[i]
		if e.Revision != Version(want.Revision) || e.Key != string(want.Key) || string(e.Value.Data) != string(want.Value) || e.Kind != EventPut || !e.Last || w.Revision() < e.Revision {
			f.t.Fatalf("event %d: %+v, want %+v", i, e, want)
		}
	}
}

// Goal: whatever connections break, before a frame or within it, at whichever of three servers, each event comes once
// and in order; and no server has to send beyond its credit.
func TestWatch_ConnectionsBreakAtAnyFrame_EachEventOnceInOrder(t *testing.T) {
	for _, credit := range []int{1, 300, 1 << 20} {
		t.Run(fmt.Sprint(credit), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			f := newFakeFeed(t, 400)
			f.cut = func() (bool, bool) { return rng.IntN(40) == 0, rng.IntN(40) == 0 }
			c := open(t, f.servers(3))
			w, err := c.Watch(context.Background(), WatchOptions{FromStart: true, Credit: credit})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			f.follow(w, 0, len(f.events))
			f.mu.Lock()
			defer f.mu.Unlock()
			if n := f.begun[0] + f.begun[1] + f.begun[2]; n < 2 {
				t.Errorf("only %d watches were begun: nothing broke", n)
			}
		})
	}
}

// Goal: a node that does not keep what follows is not the last word; all of them are asked before COMPACTED is told.
func TestWatch_CompactedAtOneNode_GoesOnAtAnother_AndEndsWhenAllSaySo(t *testing.T) {
	f := newFakeFeed(t, 20)
	c := open(t, f.servers(3))
	late := f.events[15].Revision
	f.mu.Lock()
	f.floor = []wire.Revision{late, late, 0}
	f.mu.Unlock()
	for range 6 { // whichever node is asked first
		w, err := c.Watch(context.Background(), WatchOptions{After: Version(f.events[3].Revision)})
		if err != nil {
			t.Fatal(err)
		}
		f.follow(w, 4, 16)
		w.Close()
	}
	f.mu.Lock()
	f.floor[2] = late
	was := slices.Clone(f.begun)
	f.mu.Unlock()
	if _, err := c.Watch(context.Background(), WatchOptions{After: Version(f.events[3].Revision)}); !errors.Is(err, ErrCompacted) {
		t.Fatalf("no node keeps it: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range was {
		if f.begun[i] == was[i] {
			t.Errorf("node %d was not asked", i)
		}
	}
}

// Goal: what a server may not send ends the watch with ErrProtocol, and is never told as an event.
func TestWatch_ServerBreaksTheProtocol_IsFoundOut(t *testing.T) {
	batch := func(rev wire.Revision, count int, events ...wire.Event) []byte {
		p := wire.AppendEventBatchHeader(nil, rev, count)
		for i := range events {
			p = wire.AppendEvent(p, &events[i])
		}
		return p
	}
	model := newFakeFeed(t, 10).events
	other := model[5]
	other.Key = []byte("elsewhere")
	for name, p := range map[string][]byte{
		"no batch":                              {1, 2, 3},
		"a count without events":                batch(model[5].Revision, 2, model[5]),
		"events without a count":                batch(model[5].Revision, 1, model[5], model[6]),
		"events behind a count of none":         batch(model[5].Revision, 0, model[5]),
		"an event above the batch's revision":   batch(model[4].Revision, 1, model[5]),
		"events in the wrong order":             batch(model[6].Revision, 2, model[6], model[5]),
		"an event that was told before":         batch(model[6].Revision, 1, model[0]),
		"a batch behind what was told":          batch(model[0].Revision-1, 0),
		"an event of a key that is not watched": batch(model[5].Revision, 1, other),
		"an event of an unknown kind":           batch(model[5].Revision, 1, wire.Event{Kind: 9, Revision: model[5].Revision, Key: []byte("k1")}),
		"a put without metadata":                batch(model[5].Revision, 1, wire.Event{Kind: wire.EventPut, Revision: model[5].Revision, Key: []byte("k1")}),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeFeed(t, 3)
			f.frame = func(n int, ext, payload []byte) ([]byte, []byte) {
				if n == 2 { // behind the greeting and the first event
					return nil, p
				}
				return ext, payload
			}
			c := open(t, f.servers(1))
			w, err := c.Watch(context.Background(), WatchOptions{Prefix: "k", FromStart: true})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			f.follow(w, 0, 1)
			var last Version
			for {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				e, err := w.Next(ctx)
				cancel()
				if errors.Is(err, ErrProtocol) {
					return
				}
				if err != nil {
					t.Fatalf("ended with %v", err)
				}
				if last = e.Revision; last != Version(model[5].Revision) && last != Version(model[6].Revision) {
					t.Fatalf("told of %+v", e)
				}
			}
		})
	}
}

// Goal: Next gives up with its context and can be called again; Close wakes it; a watch that nobody takes from holds up
// nobody else on its connection.
func TestWatch_NextAndClose_AndACallerThatDoesNotTake(t *testing.T) {
	f := newFakeFeed(t, 200)
	servers := f.servers(1)
	c := open(t, servers)
	w, err := c.Watch(context.Background(), WatchOptions{FromStart: true, Credit: 500})
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, c, "k", "v") // 500 bytes of events wait; the connection serves others
	if v, err := c.Get(context.Background(), "k"); err != nil || string(v.Data) != "v" {
		t.Fatalf("%q, %v", v.Data, err)
	}
	f.follow(w, 0, 200)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing happens: %v", err)
	}
	done := make(chan error)
	go func() { // ends with the watch
		_, err := w.Next(context.Background())
		done <- err
	}()
	time.Sleep(time.Millisecond)
	w.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("closed while it waits: %v", err)
	}
	if _, err := w.Next(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	w.Close()
}

// Goal: a listing in one answer that breaks off goes on by pages, each entry once.
func TestList_StreamBreaksOff_GoesOnByPages(t *testing.T) {
	s := newFake(t, nil)
	s.mu.Lock()
	s.ack.Features |= wire.FeatureWatch
	s.mu.Unlock()
	c := open(t, []*fakeServer{s})
	for i := range 50 {
		mustPut(t, c, fmt.Sprintf("k%02d", i), "v")
	}
	for pages := range 4 {
		var streams atomic.Int64
		s.on(func(fc *fakeConn, r *wire.Request) fault {
			if r.Op != wire.OpScan || r.Payload[0]&wire.ScanStream == 0 {
				return fault{}
			}
			streams.Add(1)
			var q wire.ScanRequest
			if ref := wire.DecodeScanRequest(r.Payload, &q); ref != nil {
				t.Error(ref)
			}
			q.Limit = 7
			for range pages {
				s.store.mu.Lock()
				page := s.store.scan(wire.AppendScanRequest(nil, &q))
				s.store.mu.Unlock()
				fc.send(wire.Header{Op: wire.OpScan, Flags: wire.FlagResponse | wire.FlagCRC | wire.FlagMore, ID: r.ID}, page)
				var p wire.ScanPage
				if err := wire.DecodeScanPage(page, &p); err != nil {
					t.Error(err)
				}
				q.Cursor = slices.Clone(p.Cursor)
			}
			return fault{cutBefore: true}
		})
		var got []string
		for e, err := range c.List(context.Background(), ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Key)
		}
		if len(got) != 50 || !slices.IsSorted(got) || streams.Load() == 0 {
			t.Errorf("after %d pages of a stream: %d entries, %d streams: %v", pages, len(got), streams.Load(), got)
		}
		s.quiet()
	}
}
