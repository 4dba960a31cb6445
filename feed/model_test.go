package feed

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"kvstore/wire"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock")

func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -seed=%d", seed)
	return seed
}

// entry is what one entry of the log did.
type entry struct {
	index, ts uint64
	rev       wire.Revision
	events    []Event
}

// history is all that ever happened; entries that are lost in a crash come again from it.
type history struct {
	rng     *rand.Rand
	base    uint64
	entries []entry // by index, from 1 on; index 0 is zero
}

func newHistory(rng *rand.Rand) *history { return &history{rng: rng, entries: make([]entry, 1)} }

func (h *history) key() []byte {
	return fmt.Appendf(nil, "%c%c%d", 'a'+h.rng.IntN(3), 'a'+h.rng.IntN(3), h.rng.IntN(3))
}

// grow makes up the next entry.
func (h *history) grow(eventsMax, valueMax int) {
	index := uint64(len(h.entries))
	if h.rng.IntN(300) == 0 {
		h.base += uint64(1 + h.rng.IntN(1000)) // a recovery
	}
	e := entry{index: index, ts: h.base + index, rev: wire.MakeRevision(h.base+index, 0)}
	n := 0
	if h.rng.IntN(4) > 0 {
		n = 1 + h.rng.IntN(eventsMax)
	}
	for i := range n {
		x := Event{
			Kind: wire.EventKind(1 + h.rng.IntN(3)), Last: h.rng.IntN(2) == 0 || i == n-1, HadPrevious: h.rng.IntN(2) == 0,
			Namespace: uint32(h.rng.IntN(2)), Revision: wire.MakeRevision(e.ts, i), Key: h.key(),
		}
		if x.Kind == wire.EventPut {
			x.Record.Meta = wire.Meta{Version: x.Revision, CreatedAt: h.rng.Int64(), UpdatedAt: h.rng.Int64(), ExpiresAt: h.rng.Int64(), Checksum: h.rng.Uint64()}
			x.Record.Ext = bytes.Repeat([]byte{byte(i)}, h.rng.IntN(20))
			x.Record.Value = bytes.Repeat([]byte{byte(index)}, h.rng.IntN(valueMax))
		}
		e.rev = x.Revision
		e.events = append(e.events, x)
	}
	h.entries = append(h.entries, e)
}

// give appends and publishes the entry at index.
func (h *history) give(f *Feed, index uint64) {
	h.append(f, index)
	f.Publish(index)
}

func (h *history) append(f *Feed, index uint64) {
	e := &h.entries[index]
	f.Append(index, e.ts, int64(index), e.rev, e.events)
}

// newest is the newest index.
func (h *history) newest() uint64 { return uint64(len(h.entries) - 1) }

// gapped reports whether rev is one that no entry had: between two bases.
func (h *history) gapped(rev wire.Revision) bool {
	for i := 1; i < len(h.entries); i++ {
		if e := &h.entries[i]; rev < wire.MakeRevision(e.ts, 0) {
			before := &h.entries[i-1]
			return e.ts != before.ts+1 && rev > before.rev
		}
	}
	return false
}

// wish is a random watch and what it must be given.
type wish struct {
	o     WatchOptions
	after wire.Revision
	next  uint64 // index of the entry from which on to look
}

func (h *history) wish(after wire.Revision) *wish {
	w := &wish{after: after}
	r := &w.o.Request
	w.o.Namespace = uint32(h.rng.IntN(2))
	r.After = after
	switch h.rng.IntN(4) {
	case 0:
		r.Flags |= wire.WatchKey
		r.Start = h.key()
	case 1:
		r.Prefix = h.key()[:h.rng.IntN(3)]
	case 2:
		r.Start, r.End = h.key(), h.key()
	case 3:
		r.Prefix, r.Start = h.key()[:1], h.key()
	}
	if h.rng.IntN(3) == 0 {
		r.Flags |= []uint8{wire.WatchNoPut, wire.WatchNoDelete, wire.WatchNoExpire, wire.WatchNoPut | wire.WatchNoDelete}[h.rng.IntN(4)]
	}
	w.next = 1
	return w
}

func (w *wish) wants(e *Event) bool {
	no := map[wire.EventKind]uint8{wire.EventPut: wire.WatchNoPut, wire.EventDelete: wire.WatchNoDelete, wire.EventExpire: wire.WatchNoExpire}
	return e.Revision > w.after && e.Namespace == w.o.Namespace && w.o.Request.Flags&no[e.Kind] == 0 && w.o.Request.Covers(e.Key)
}

// expect gives the first event that is due, of entries up to limit; nil: none.
func (w *wish) expect(h *history, limit uint64) *Event {
	for ; w.next <= limit; w.next++ {
		for i := range h.entries[w.next].events {
			if e := &h.entries[w.next].events[i]; w.wants(e) {
				return e
			}
		}
	}
	return nil
}

// differs says what is wrong about got; "": nothing.
func differs(got, want *Event) string {
	switch {
	case want == nil:
		return fmt.Sprintf("%v %q at %d where nothing was due", got.Kind, got.Key, got.Revision)
	case got.Kind != want.Kind || got.Last != want.Last || got.HadPrevious != want.HadPrevious || got.Namespace != want.Namespace ||
		got.Revision != want.Revision || !bytes.Equal(got.Key, want.Key) || got.Record.Meta != want.Record.Meta ||
		!bytes.Equal(got.Record.Ext, want.Record.Ext) || !bytes.Equal(got.Record.Value, want.Record.Value):
		return fmt.Sprintf("%+v, want %+v", *got, *want)
	}
	return ""
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openFeed(t testing.TB, o Options) *Feed {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet()
	}
	f, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}
