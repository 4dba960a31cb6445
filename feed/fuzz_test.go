package feed

import (
	"bytes"
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"kvstore/internal/record"
	"kvstore/wire"
)

// Whatever stands in a record, it is either refused or is the one encoding of what it says.
func FuzzDecode_AnyPayload_IsRefusedOrExact(f *testing.F) {
	h := newHistory(rand.New(rand.NewPCG(1, 2)))
	for range 20 {
		h.grow(5, 20)
		e := &h.entries[h.newest()]
		b := appendHead(nil, &head{kind: kindEntry, count: uint32(len(e.events)), state: state{e.index, e.ts, 5, e.rev}})
		for i := range e.events {
			b = appendEvent(b, &e.events[i])
		}
		f.Add(b)
	}
	f.Add(appendHeader(nil, &segmentHeader{state: state{1, 2, 3, 4}, offset: 5, follows: 6}))
	f.Add(appendHead(nil, &head{kind: kindMark, state: state{1, 2, 3, 4}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h head
		rest, err := decodeHead(b, &h)
		if err != nil {
			return
		}
		again := appendHead(nil, &h)
		if h.kind == kindHeader {
			s, err := decodeHeader(b)
			if err != nil {
				return
			}
			again, rest = appendHeader(nil, &s), nil
		}
		for range h.count {
			var e Event
			if rest, err = nextEvent(rest, &e); err != nil {
				return
			}
			if e.Kind == wire.EventPut && len(e.Record.Value) > wire.ValueBytesMax {
				return
			}
			again = appendEvent(again, &e)
		}
		if !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("%x reads as %x", b, again)
		}
	})
}

// Whatever stands in the segments, Open begins anew or takes them over; a watcher is given events in order or is told.
func FuzzOpen_AnyBytesInSegments_GivesEventsInOrderOrTells(f *testing.F) {
	whole := func(rng *rand.Rand) []byte {
		dir := filepath.Join(f.TempDir(), "f")
		feed, err := Open(Options{Dir: dir, Logger: quiet()})
		if err != nil {
			f.Fatal(err)
		}
		h := newHistory(rng)
		for i := range uint64(10) {
			h.grow(5, 30)
			h.give(feed, i+1)
		}
		path := feed.segments[0].path
		if err := feed.Close(); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for i := range 3 {
		b := whole(rand.New(rand.NewPCG(uint64(i), 0)))
		f.Add(b, []byte{}, uint64(10))
		f.Add(b[:len(b)/2], b[len(b)/2:], uint64(3))
		f.Add(b, b, uint64(9))
	}
	// A payload that is not a record itself is framed, so that the checksum does not stop everything.
	framed := func(b []byte) (out []byte) {
		for len(b) > 0 {
			if payload, rest, err := record.Decode(b); err == nil {
				out, b = record.Append(out, payload), rest
				continue
			}
			n := min(len(b), 100)
			out, b = record.Append(out, b[:n]), b[n:]
		}
		return out
	}
	f.Fuzz(func(t *testing.T, first, second []byte, index uint64) {
		index = min(index, 1<<20)
		for _, frame := range []bool{false, true} {
			dir := filepath.Join(t.TempDir(), "f")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if frame {
				first, second = framed(first), framed(second)
			}
			for start, b := range map[int64][]byte{0: first, int64(len(first)): second} {
				if len(b) > 0 {
					if err := os.WriteFile(filepath.Join(dir, segmentName(start)), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			at := Options{Dir: dir, Index: index, TS: index, Revision: wire.MakeRevision(index, 9), Logger: quiet()}
			feed, err := Open(at)
			if err != nil {
				t.Fatal(err)
			}
			begin, last := feed.Bounds()
			if last != at.Revision || begin > last {
				t.Fatalf("bounds %d to %d", begin, last)
			}
			w, err := feed.Watch(WatchOptions{Namespace: 1, Request: wire.WatchRequest{After: begin}}, func() {})
			if err != nil {
				t.Fatal(err)
			}
			for newest := begin; err == nil; {
				var through wire.Revision
				through, err = w.Next(func(e *Event) bool {
					if e.Revision <= newest {
						t.Fatalf("event at %d behind %d", e.Revision, newest)
					}
					newest = e.Revision
					return true
				})
				if through >= last {
					break
				}
			}
			if err := feed.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

var update = flag.Bool("update", false, "write testdata/*.hex anew; review the difference: it is a change of the format on disk")

// The formats are on disks: what an earlier build wrote has to be read.
func TestFormat_GoldenBytes_AreWrittenAndRead(t *testing.T) {
	put := Event{
		Kind: wire.EventPut, Last: true, HadPrevious: true, Namespace: 7, Revision: 0x0102030405060708, Key: []byte("key"),
		Record: wire.Record{Meta: wire.Meta{Version: 1, CreatedAt: 2, UpdatedAt: 3, ExpiresAt: 4, Checksum: 5}, Ext: []byte("ext"), Value: []byte("value")},
	}
	expire := Event{Kind: wire.EventExpire, Namespace: 1, Revision: 9, Key: []byte("k")}
	entry := appendHead(nil, &head{kind: kindEntry, more: true, count: 2, state: state{1, 2, 3, 4}})
	entry = appendEvent(appendEvent(entry, &put), &expire)
	for name, b := range map[string][]byte{
		"entry":  entry,
		"mark":   appendHead(nil, &head{kind: kindMark, state: state{1, 2, 3, 4}}),
		"header": appendHeader(nil, &segmentHeader{state: state{1, 2, 3, 4}, offset: 5, follows: 6}),
	} {
		path := filepath.Join("testdata", name+".hex")
		text := hex.EncodeToString(b) + "\n"
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || string(want) != text {
			t.Errorf("%s: %s, want %s (%v)", name, text, want, err)
		}
	}
}
