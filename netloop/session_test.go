package netloop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kvstore/wire"
)

// Goal: Session answers the same whatever the boundaries of reads, and hostile bytes cost a refusal or
// the connection, never more. Method: a Session fed by hand.

func containsText(s, sub string) bool { return strings.Contains(s, sub) }

// summary is what an answer says apart from timing.
func summary(all []*reply) []string {
	var out []string
	for _, r := range all {
		out = append(out, fmt.Sprintf("%d %s %s %x %x", r.h.ID, r.h.Op, r.h.Status(), r.ext, r.payload))
	}
	slices.Sort(out)
	return out
}

// stream is a mix of good and refused requests.
func stream(crc bool, codec wire.Codec, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b []byte
	big := bytes.Repeat([]byte("abcdefgh"), 12<<10) // 96 KiB: in pieces, and for a worker when compressed
	for id := uint32(1); id <= 60; id++ {
		key := fmt.Sprintf("key-%d", id)
		switch rnd.IntN(10) {
		case 0:
			b = append(b, encode(crc, codec, wire.OpPut, id, 0, key, big[:rnd.IntN(len(big))])...)
		case 1:
			b = append(b, encode(crc, 0, wire.OpGet, id, 0, "", nil)...) // bad key
		case 2:
			b = append(b, encode(crc, 0, wire.Opcode(0x7f), id, 0, "", []byte("?"))...)
		case 3:
			b = append(b, encode(crc, 0, wire.OpPing, id, 0, "", []byte(key))...)
		case 4:
			b = append(b, encode(crc, 0, wire.OpPut, id, wire.FlagQuiet, key, []byte("quiet"))...)
		case 5:
			b = append(b, encode(crc, 0, wire.OpGet, 0, 0, key, nil)...) // id of the connection
		case 6:
			b = append(b, encode(crc, codec, wire.OpPut, id, 0, key, big[:2000])...)
		default:
			b = append(b, encode(crc, 0, wire.OpGet, id, 0, "fixed", nil)...)
		}
	}
	return b
}

func feedAll(t *testing.T, b []byte, crc bool, codec wire.Codec, cut func(left int) int) []string {
	st := newStore()
	st.put("fixed", bytes.Repeat([]byte("v"), 3000))
	r := newRig(t, st, agreed{features: features(crc), codec: codec}, nil)
	for len(b) > 0 {
		n := min(cut(len(b)), len(b))
		// A fresh copy that is overwritten afterwards: a view kept beyond Feed shows.
		piece := append([]byte(nil), b[:n]...)
		r.feed(piece)
		for i := range piece {
			piece[i] = 0xee
		}
		b = b[n:]
	}
	eventually(t, "workers are done", func() bool { return r.s.inflightNow() == 0 })
	eventually(t, "answers are queued", func() bool { r.flush(); return r.s.pending.Load() == 0 })
	return summary(r.replies(crc, codec))
}

func features(crc bool) wire.Features {
	if crc {
		return wire.FeatureCRC
	}
	return 0
}

func TestFeed_AnyCuts_SameAnswers(t *testing.T) {
	for _, crc := range []bool{false, true} {
		for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecS2, wire.CodecZstd} {
			seed := rand.Uint64()
			t.Logf("crc %v codec %s seed %d", crc, codec, seed)
			b := stream(crc, codec, seed)
			want := feedAll(t, b, crc, codec, func(left int) int { return left })
			if len(want) < 30 {
				t.Fatalf("only %d answers", len(want))
			}
			rnd := rand.New(rand.NewPCG(seed, 2))
			for name, cut := range map[string]func(int) int{
				"byte by byte": func(int) int { return 1 },
				"7 bytes":      func(int) int { return 7 },
				"64 KiB":       func(int) int { return 64 << 10 },
				"random":       func(int) int { return 1 + rnd.IntN(5000) },
			} {
				if got := feedAll(t, b, crc, codec, cut); !slices.Equal(got, want) {
					t.Errorf("%s: %d answers differ from %d", name, len(got), len(want))
					for _, g := range got {
						if !slices.Contains(want, g) {
							t.Errorf("only in pieces: %.200s", g)
						}
					}
					for _, w := range want {
						if !slices.Contains(got, w) {
							t.Errorf("only whole: %.200s", w)
						}
					}
				}
			}
		}
	}
}

func TestFeed_SplitAtEveryOffset_SameAnswers(t *testing.T) {
	var b []byte
	b = append(b, encode(true, 0, wire.OpPut, 1, 0, "k", []byte("value"))...)
	b = append(b, encode(true, 0, wire.OpGet, 2, 0, "k", nil)...)
	b = append(b, encode(true, wire.CodecS2, wire.OpPut, 3, 0, "l", bytes.Repeat([]byte("x"), 3000))...)
	b = append(b, encode(true, 0, wire.OpExists, 4, 0, "l", nil)...)
	want := feedAll(t, b, true, wire.CodecS2, func(left int) int { return left })
	for at := 1; at < len(b); at++ {
		first := true
		got := feedAll(t, b, true, wire.CodecS2, func(left int) int {
			if first {
				first = false
				return at
			}
			return left
		})
		if !slices.Equal(got, want) {
			t.Fatalf("split at %d: %v, want %v", at, got, want)
		}
	}
}

func TestFeed_OneRead_OneBunch(t *testing.T) {
	st := newStore()
	r := newRig(t, st, agreed{}, nil)
	var b []byte
	for id := uint32(1); id <= BunchRequestsMax+5; id++ {
		b = append(b, encode(false, 0, wire.OpGet, id, 0, "k", nil)...)
	}
	r.feed(b)
	if n := st.bunches.Load(); n != 2 {
		t.Errorf("%d requests came in %d bunches", BunchRequestsMax+5, n)
	}
	if r.wakes != 0 {
		t.Errorf("inline answers woke the loop %d times", r.wakes)
	}
	if n := len(r.replies(false, 0)); n != BunchRequestsMax+5 {
		t.Errorf("%d answers", n)
	}
}

func TestFeed_BadChecksum_NothingOfItRunsAndGoAway(t *testing.T) {
	for name, spoil := range map[string]func(b []byte) []byte{
		"a bit of the body":    func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a bit of the header":  func(b []byte) []byte { b[8] ^= 1; return b },
		"a bit of the sum":     func(b []byte) []byte { b[16] ^= 1; return b },
		"no sum at all":        func([]byte) []byte { return encode(false, 0, wire.OpPut, 2, 0, "bad", []byte("v")) },
		"compressed, no codec": func([]byte) []byte { return encode(true, wire.CodecS2, wire.OpPut, 2, 0, "bad", make([]byte, 4000)) },
	} {
		t.Run(name, func(t *testing.T) {
			st := newStore()
			r := newRig(t, st, agreed{features: wire.FeatureCRC}, nil)
			good := encode(true, 0, wire.OpPut, 1, 0, "good", []byte("v"))
			bad := spoil(encode(true, 0, wire.OpPut, 2, 0, "bad", []byte("v")))
			after := encode(true, 0, wire.OpPut, 3, 0, "after", []byte("v"))
			r.feed(slices.Concat(good, bad, after))
			all := r.replies(true, 0)
			if len(all) != 2 || all[0].h.ID != 1 || all[0].h.Status() != wire.StatusOK || all[1].h.Op != wire.OpGoAway || all[1].h.Status() != wire.StatusBadRequest || all[1].h.ID != 0 {
				t.Fatalf("answers %v", all)
			}
			if st.executed.Load() != 1 || !r.s.finished() {
				t.Errorf("executed %d, finished %v", st.executed.Load(), r.s.finished())
			}
			if act := r.feed(after); act != ActionNone || st.executed.Load() != 1 {
				t.Errorf("after GOAWAY: action %d, executed %d", act, st.executed.Load())
			}
		})
	}
}

func TestFeed_LargeFrame_IsSummedInPieces(t *testing.T) {
	for _, crc := range []bool{false, true} {
		for _, spoilAt := range []int{-1, 9, 16, 30, 299_999} {
			st := newStore()
			r := newRig(t, st, agreed{features: features(crc)}, nil)
			b := encode(crc, 0, wire.OpPut, 1, 0, "k", bytes.Repeat([]byte("x"), 300_000))
			if spoilAt >= 0 {
				b[spoilAt] ^= 4
			}
			sound := wire.VerifyFrame(b) == nil
			for len(b) > 0 {
				n := min(50_000, len(b))
				r.feed(b[:n])
				b = b[n:]
			}
			if executed := st.executed.Load() == 1; executed != sound {
				t.Errorf("crc %v, spoilt at %d: executed %v, want %v", crc, spoilAt, executed, sound)
			}
		}
	}
}

func TestFeed_FrameTooLarge_IsRefusedAndSkipped(t *testing.T) {
	for _, piece := range []int{1000, 1 << 20} {
		st := newStore()
		r := newRig(t, st, agreed{features: wire.FeatureCRC}, func(o *Options) { o.MaxFrame = 8 << 10 })
		h, off := wire.BeginFrame(nil)
		large := wire.FinishFrame(append(h, make([]byte, 100<<10)...), off, wire.Header{Op: wire.OpPut, ID: 5, Flags: wire.FlagCRC})
		b := append(large, encode(true, 0, wire.OpPut, 6, 0, "k", []byte("v"))...)
		for len(b) > 0 {
			n := min(piece, len(b))
			r.feed(b[:n])
			b = b[n:]
		}
		all := r.replies(true, 0)
		if len(all) != 2 || all[0].h.ID != 5 || all[0].h.Status() != wire.StatusTooLarge || all[1].h.Status() != wire.StatusOK {
			t.Fatalf("answers %v", all)
		}
		if want := wire.AppendExtU64(nil, wire.ExtLimit, 8<<10); !bytes.Equal(all[0].ext, want) {
			t.Errorf("extension %x, want %x", all[0].ext, want)
		}
		if r.s.partSince.Load() != 0 {
			t.Error("the deadline of an incomplete frame still runs")
		}
	}
}

func TestFeed_AbsurdLength_EndsTheConnection(t *testing.T) {
	r := newRig(t, newStore(), agreed{}, nil)
	var h [wire.HeaderBytes]byte
	binary.LittleEndian.PutUint32(h[:], skipBytesMax+1)
	h[4] = byte(wire.OpPut)
	r.feed(h[:])
	all := r.replies(false, 0)
	if len(all) != 1 || all[0].h.Op != wire.OpGoAway || all[0].h.Status() != wire.StatusTooLarge || !r.s.finished() {
		t.Fatalf("answers %v", all)
	}
}

func TestFeed_LyingLength_CostsNoMoreThanTheBytesSent(t *testing.T) {
	r := newRig(t, newStore(), agreed{}, nil)
	b := encode(false, 0, wire.OpPut, 1, 0, "k", make([]byte, 1000))
	binary.LittleEndian.PutUint32(b, wire.FrameBodyBytesMax) // "16 MiB follow"
	r.feed(b)
	if c := cap(r.s.part); c > 2*len(b) {
		t.Errorf("%d bytes arrived, %d are reserved", len(b), c)
	}
	sent := len(b)
	for sent < 3<<20 {
		r.feed(make([]byte, 50_000))
		sent += 50_000
	}
	if used := r.core.big.used.Load(); used > 2*int64(sent) || used != int64(cap(r.s.part)) {
		t.Errorf("%d bytes arrived, %d are reserved, %d are counted", sent, cap(r.s.part), used)
	}
	r.s.closed()
	if used := r.core.big.used.Load(); used != 0 {
		t.Errorf("%d bytes are still counted after the end", used)
	}
}

func TestFeed_BigFramesUsedUp_BusyAndSkipped(t *testing.T) {
	st := newStore()
	r := newRig(t, st, agreed{}, nil)
	if !r.core.big.take(int(r.core.big.limit) - 100<<10) {
		t.Fatal("no room")
	}
	large := encode(false, 0, wire.OpPut, 1, 0, "k", make([]byte, 1<<20))
	b := append(large, encode(false, 0, wire.OpPut, 2, 0, "k", []byte("v"))...)
	for len(b) > 0 {
		n := min(60_000, len(b))
		r.feed(b[:n])
		b = b[n:]
	}
	all := r.replies(false, 0)
	if len(all) != 2 || all[0].h.ID != 1 || all[0].h.Status() != wire.StatusBusy || all[1].h.ID != 2 || all[1].h.Status() != wire.StatusOK {
		t.Fatalf("answers %v", all)
	}
	if used, was := r.core.big.used.Load(), r.core.big.limit-100<<10; used != was {
		t.Errorf("counted %d, want %d", used, was)
	}
}

func TestFeed_Bomb_IsRefusedByItsRawLength(t *testing.T) {
	st := newStore()
	r := newRig(t, st, agreed{codec: wire.CodecS2}, nil)
	// Claims 4 GiB.
	b, off := wire.BeginFrame(nil)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 1, 2, 3)
	b = wire.FinishFrame(b, off, wire.Header{Op: wire.OpPut, ID: 1, Flags: wire.FlagCompressed})
	r.feed(append(b, encode(false, 0, wire.OpPing, 2, 0, "", nil)...))
	all := r.replies(false, wire.CodecS2)
	if len(all) != 2 || all[0].h.Status() != wire.StatusTooLarge || all[1].h.Status() != wire.StatusOK {
		t.Fatalf("answers %v", all)
	}
	// Within the limit, but beyond the room for large frames.
	zip, ok := wire.AppendCompressed(nil, wire.CodecS2, make([]byte, 15<<20))
	if !ok || len(zip) > 1<<20 {
		t.Fatalf("bomb of %d bytes", len(zip))
	}
	if !r.core.big.take(int(r.core.big.limit) - 10<<20) {
		t.Fatal("no room")
	}
	b, off = wire.BeginFrame(nil)
	b = wire.FinishFrame(append(b, zip...), off, wire.Header{Op: wire.OpPut, ID: 3, Flags: wire.FlagCompressed})
	r.feed(b)
	if all = r.replies(false, wire.CodecS2); len(all) != 1 || all[0].h.Status() != wire.StatusBusy || st.executed.Load() != 0 {
		t.Fatalf("answers %v, executed %d", all, st.executed.Load())
	}
}

func TestFeed_CompressedLie_EndsTheConnection(t *testing.T) {
	for _, raw := range []uint32{100, 200 << 10} { // on the loop, on a worker
		r := newRig(t, newStore(), agreed{codec: wire.CodecS2}, nil)
		b, off := wire.BeginFrame(nil)
		b = binary.LittleEndian.AppendUint32(b, raw)
		b = append(b, bytes.Repeat([]byte{0xfe}, 50)...)
		b = wire.FinishFrame(b, off, wire.Header{Op: wire.OpPut, ID: 1, Flags: wire.FlagCompressed})
		r.feed(b)
		eventually(t, "GOAWAY", func() bool { r.flush(); return r.s.finished() })
		if all := r.replies(false, wire.CodecS2); len(all) != 1 || all[0].h.Op != wire.OpGoAway {
			t.Fatalf("answers %v", all)
		}
		eventually(t, "budget is given back", func() bool { return r.core.big.used.Load() == 0 })
	}
}

func TestFeed_UnpackedBunch_IsCutByItsBytes(t *testing.T) {
	// 30 frames of 40 KiB unpacked would need 1.2 MiB of scratch at once.
	st := newStore()
	r := newRig(t, st, agreed{codec: wire.CodecS2}, nil)
	var b []byte
	for id := uint32(1); id <= 30; id++ {
		b = append(b, encode(false, wire.CodecS2, wire.OpPut, id, 0, fmt.Sprint("k", id), bytes.Repeat([]byte{byte(id)}, 40<<10))...)
	}
	r.feed(b)
	if len(r.replies(false, wire.CodecS2)) != 30 || st.bunches.Load() < 5 || cap(r.sc.unpacked) > unpackBlockBytes {
		t.Errorf("bunches %d, scratch %d", st.bunches.Load(), cap(r.sc.unpacked))
	}
	for id := 1; id <= 30; id++ {
		if v := st.m[fmt.Sprint("k", id)]; len(v) != 40<<10 || v[0] != byte(id) || v[len(v)-1] != byte(id) {
			t.Fatalf("value %d is damaged", id)
		}
	}
}

func TestFeed_Credits_BeyondThemBusy(t *testing.T) {
	st := newStore()
	var held []func()
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) {
		held = append(held, func() { c.Complete(tok, r) })
	}
	r := newRig(t, st, agreed{}, func(o *Options) { o.Inflight = 4; o.MaxFrame = 8 << 10; o.InflightBytes = 10 << 10 })
	get := func(id uint32) []byte { return encode(false, 0, wire.OpGet, id, 0, "k", nil) }
	var b []byte
	for id := uint32(1); id <= 6; id++ {
		b = append(b, get(id)...)
	}
	r.feed(b)
	all := r.replies(false, 0)
	if len(all) != 2 || all[0].h.ID != 5 || all[1].h.ID != 6 || all[0].h.Status() != wire.StatusBusy {
		t.Fatalf("answers %v", all)
	}
	if want := wire.AppendExtU32(nil, wire.ExtRetryAfter, 20); !bytes.Equal(all[0].ext, want) {
		t.Errorf("extension %x, want %x", all[0].ext, want)
	}
	held[0]()
	r.feed(get(7))
	r.flush()
	if len(held) != 5 || st.executed.Load() != 5 {
		t.Fatalf("executed %d after one credit came back", st.executed.Load())
	}
	for _, f := range held[1:] {
		f()
	}
	r.flush()
	r.out.Reset()
	// Bytes.
	held = held[:0]
	put := func(id uint32) []byte { return encode(false, 0, wire.OpPut, id, 0, "k", make([]byte, 6<<10)) }
	r.feed(append(put(10), put(11)...))
	if all = r.replies(false, 0); len(all) != 1 || all[0].h.ID != 11 || all[0].h.Status() != wire.StatusBusy {
		t.Fatalf("answers %v", all)
	}
	held[0]()
	r.flush()
	if r.s.inflight != 0 || r.s.inflightBytes != 0 {
		t.Errorf("credit %d, %d bytes after all was answered", r.s.inflight, r.s.inflightBytes)
	}
}

func TestFeed_Cancel_ComesAfterWhatItNames(t *testing.T) {
	st := newStore()
	seen := int64(-1)
	r := newRig(t, cancelProbe{st, &seen}, agreed{}, nil)
	b := encode(false, 0, wire.OpGet, 9, 0, "k", nil)
	b = append(b, encode(false, 0, wire.OpCancel, 0, 0, "", []byte{9, 0, 0, 0})...)
	r.feed(b)
	if seen != 1 {
		t.Errorf("cancel came after %d requests", seen)
	}
	if all := r.replies(false, 0); len(all) != 1 || all[0].h.ID != 9 {
		t.Errorf("answers %v: a cancel has none of its own", all)
	}
}

type cancelProbe struct {
	*store
	seen *int64
}

func (p cancelProbe) Cancel(_ wire.Completer, id uint32) {
	if id == 9 {
		*p.seen = p.executed.Load()
	}
}

func FuzzFeed(f *testing.F) {
	f.Add(stream(false, wire.CodecS2, 1)[:1500], uint16(100), false)
	f.Add(stream(true, wire.CodecS2, 2)[:1500], uint16(1), true)
	f.Add(encode(true, 0, wire.OpPut, 1, 0, "k", []byte("v")), uint16(5), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0x03, 0x20}, uint16(3), false)
	f.Fuzz(func(t *testing.T, b []byte, piece uint16, crc bool) {
		st := newStore()
		r := newRig(t, st, agreed{features: features(crc), codec: wire.CodecS2}, func(o *Options) { o.MaxFrame = 64 << 10; o.Inflight = 50 })
		for len(b) > 0 {
			n := min(int(piece)+1, len(b))
			r.feed(b[:n])
			b = b[n:]
		}
		eventually(t, "workers are done", func() bool {
			r.flush()
			return r.s.inflightNow() == 0 || r.s.finished()
		})
		r.s.closed()
		eventually(t, "all memory is given back", func() bool { return r.core.big.used.Load() == 0 && r.core.out.used.Load() == 0 })
		r.replies(crc, wire.CodecS2)
	})
}
