package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"kvstore/wire"
)

// Goal: watches, which last, never take all the slots of a connection: other calls go on, and a watch too many is told so.
func TestWatch_AsManyAsThereAreSlots_OthersAreServed(t *testing.T) {
	f := newFakeFeed(t, 3)
	c := open(t, f.servers(1), WithMaxInflight(4))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all []*Watch
	for range 2 {
		w, err := c.Watch(ctx, WatchOptions{FromStart: true})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		all = append(all, w)
	}
	if _, err := c.Watch(ctx, WatchOptions{FromStart: true}); !errors.Is(err, ErrTooMany) {
		t.Fatalf("a watch in the last half of the slots: %v", err)
	}
	mustPut(t, c, "k", "v")
	if v, err := c.Get(ctx, "k"); err != nil || string(v.Data) != "v" {
		t.Fatalf("beside watches: %q, %v", v.Data, err)
	}
	for _, w := range all {
		f.follow(w, 0, 3)
	}
}

// Goal: what the credit does not count, the elements of the greeting, is no violation where the credit is small.
func TestStream_ElementsAboveASmallCredit_AreTaken(t *testing.T) {
	greeting := wire.AppendExtU32(wire.AppendExt(nil, wire.ExtHistory, fakeHistory[:]), wire.ExtNamespaceID, 1)
	batch := wire.AppendEventBatchHeader(nil, 1, 0)
	for credit := len(batch) + 1; credit <= len(batch)+len(greeting); credit++ {
		s := newStream(credit)
		if err := s.push(greeting, batch, false); err != nil {
			t.Fatal(err)
		}
		if err := s.push(nil, batch, false); err != nil {
			t.Errorf("a credit of %d, of which %d are used: %v", credit, len(batch), err)
		}
	}
	s := newStream(1 << 20)
	n := 0
	for s.push(make([]byte, wire.ExtBytesMax), []byte{1}, false) == nil {
		if n++; n > 1<<20/wire.ExtBytesMax+2 {
			t.Fatal("elements pile up without end")
		}
	}
}

// Goal: an event costs its key, and no more memory than that where there is nothing of before.
func TestAllocations_PerEvent(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const events = 5
	f := newFakeFeed(t, events)
	p := wire.AppendEventBatchHeader(nil, f.events[events-1].Revision, events)
	for i := range f.events {
		p = wire.AppendEvent(p, &f.events[i])
	}
	w := &Watch{}
	n := testing.AllocsPerRun(1000, func() {
		w.base.After = 0
		if err := w.frame(streamFrame{payload: p}); err != nil {
			t.Fatal(err)
		}
		for range events {
			if _, err := w.event(); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n > events {
		t.Errorf("%v allocations for %d events", n, events)
	}
}

// Whatever a frame holds, the events told are all that it counts, in order, behind the last one, of keys asked for.
func FuzzEventFrames(f *testing.F) {
	feed := newFakeFeed(f, 6)
	for _, n := range []int{0, 1, 3, 6} {
		var rev wire.Revision
		if n > 0 {
			rev = feed.events[n-1].Revision
		}
		p := wire.AppendEventBatchHeader(nil, rev, n)
		for i := range n {
			p = wire.AppendEvent(p, &feed.events[i])
		}
		f.Add(p, uint64(0), "k")
		f.Add(p, feed.events[2].Revision, "k3")
	}
	f.Fuzz(func(t *testing.T, p []byte, after uint64, prefix string) {
		w := &Watch{base: wire.WatchRequest{After: after, Prefix: []byte(prefix)}}
		if w.frame(streamFrame{payload: p}) != nil {
			return
		}
		count, rev, told := w.batch.Count, w.batch.Revision, 0
		for last := after; w.batch.Count > 0; told++ {
			e, err := w.event()
			if err != nil {
				return
			}
			if r := uint64(e.Revision); r <= last || r > rev || !w.base.Covers([]byte(e.Key)) {
				t.Fatalf("told %+v behind %d in a batch up to %d", e, last, rev)
			}
			last = uint64(e.Revision)
			e.Value.Tags()
			if e.Previous != nil {
				e.Previous.Tags()
			}
		}
		if told != count || len(w.batch.Events) != 0 {
			t.Fatalf("%d of %d events, %d bytes left", told, count, len(w.batch.Events))
		}
	})
}
