package netloop

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"kvstore/wire"
)

// Goal: answers say what is known, are packed only where it pays, and cost no allocation. Method: a
// Session fed by hand.

func TestComplete_Twice_IsABugOfTheHandler(t *testing.T) {
	r := newRig(t, newStore(), agreed{}, nil)
	defer func() {
		if p := recover(); p == nil || !containsText(fmt.Sprint(p), "BUG") {
			t.Errorf("recovered %v", p)
		}
		r.s.inflightNow() // the lock is free
	}()
	r.s.Complete(wire.Token{ID: 1, Op: wire.OpGet}, &wire.Response{})
}

func TestComplete_TooLongForTheClient_SaysWhatIsKnown(t *testing.T) {
	st := newStore()
	st.put("k", make([]byte, 10<<10))
	r := newRig(t, st, agreed{maxFrame: 4 << 10}, nil)
	r.feed(encode(false, 0, wire.OpGet, 1, 0, "k", nil))
	if all := r.replies(false, 0); len(all) != 1 || all[0].h.Status() != wire.StatusTooLarge {
		t.Errorf("read: %v", all)
	}
	if got := tooLongAnswer(wire.OpTxn, 1).Status.Class(); got != wire.ClassUnknown {
		t.Errorf("write: class %d, want unknown", got)
	}
}

func TestComplete_Compression_OnlyWhereItPays(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecS2, wire.CodecZstd} {
		st := newStore()
		text := bytes.Repeat([]byte("all work and no play "), 1<<20/21)
		noise := make([]byte, 1<<20)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range noise {
			noise[i] = byte(rnd.Uint32())
		}
		type c struct {
			value  []byte
			packed bool
		}
		cases := []c{{text[:500], false}, {text[:5000], true}, {text, true}, {noise[:5000], false}, {noise, false}}
		r := newRig(t, st, agreed{codec: codec, features: wire.FeatureCRC}, nil)
		for i, c := range cases {
			st.put(fmt.Sprint(i), c.value)
			r.feed(encode(true, 0, wire.OpGet, uint32(i+1), 0, fmt.Sprint(i), nil))
			eventually(t, "answered", func() bool { r.flush(); return r.out.Len() > 0 && r.s.pending.Load() == 0 })
			all := r.replies(true, codec)
			if len(all) != 1 || !bytes.Equal(all[0].payload, c.value) {
				t.Fatalf("%s %d: wrong value", codec, i)
			}
			if packed := all[0].h.Flags&wire.FlagCompressed != 0; packed != c.packed {
				t.Errorf("%s %d: packed %v, want %v", codec, i, packed, c.packed)
			}
		}
	}
}

func TestFeedAndComplete_GetAndPut_AllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget at random")
	}
	st := newStore()
	st.put("k", make([]byte, 64))
	for _, crc := range []bool{false, true} {
		r := newRig(t, st, agreed{features: features(crc)}, nil)
		var b []byte
		for id := uint32(1); id <= 32; id += 2 {
			b = append(b, encode(crc, 0, wire.OpGet, id, 0, "k", nil)...)
			b = append(b, encode(crc, 0, wire.OpPut, id+1, 0, "k", make([]byte, 64))...)
		}
		cut := len(b) - 11 // the last frame comes in two pieces
		run := func() {
			for _, piece := range [][]byte{b[:cut], b[cut:]} {
				if n, act := r.s.Feed(piece); n != len(piece) || act != ActionFlush {
					t.Fatalf("consumed %d, action %d", n, act)
				}
				for o := r.s.next(); len(o) > 0; o = r.s.next() {
					r.s.sent(len(o))
				}
			}
		}
		run()
		if n := testing.AllocsPerRun(200, run); n != 0 {
			t.Errorf("crc %v: %v allocations per 32 requests", crc, n)
		}
	}
}
