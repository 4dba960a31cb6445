package wire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

func mustPanic(t *testing.T, what string, fn func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if p := recover(); p == nil {
			t.Errorf("%s: no panic", what)
		} else if s, ok := p.(string); !ok || !strings.HasPrefix(s, "BUG: ") {
			t.Errorf("%s: panic %v", what, p)
		}
	}()
	fn()
}

func TestHeader_AnyFields_RoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for range 2000 {
		h := Header{Op: Opcode(rng.Uint32()), Flags: Flags(rng.Uint32()), StatusOrGroup: uint16(rng.Uint32()), ID: rng.Uint32(), TimeOrTimeout: rng.Uint32()}
		ext, key, payload := random(rng.IntN(400)), random(rng.IntN(40)), random(rng.IntN(400))
		prefix := random(rng.IntN(50))
		b := AppendFrame(bytes.Clone(prefix), h, ext, key, payload)
		if !bytes.Equal(b[:len(prefix)], prefix) {
			t.Fatal("AppendFrame changed what stood before")
		}
		b = b[len(prefix):]
		if err := VerifyFrame(b); err != nil {
			t.Fatal(err)
		}
		var got Header
		if err := DecodeHeader(b, &got); err != nil {
			t.Fatal(err)
		}
		h.BodyLen, h.ExtLen, h.KeyLen, h.CRC = uint32(len(ext)+len(key)+len(payload)), uint16(len(ext)), uint16(len(key)), got.CRC
		if got != h {
			t.Fatalf("got %+v, want %+v", got, h)
		}
		e, k, p, err := SplitBody(&got, b[HeaderBytes:])
		if err != nil || !bytes.Equal(e, ext) || !bytes.Equal(k, key) || !bytes.Equal(p, payload) {
			t.Fatalf("SplitBody: % x | % x | % x, %v", e, k, p, err)
		}
	}
}

// One flipped bit anywhere in a checksummed frame is found, the checksum's own flag included.
func TestVerifyFrame_AnyBitFlipped_IsCorrupt(t *testing.T) {
	frame := AppendFrame(nil, Header{Op: OpPut, Flags: FlagCRC, ID: 7, StatusOrGroup: 1}, nil, []byte("key"), []byte("value"))
	for i := range len(frame) * 8 {
		frame[i/8] ^= 1 << (i % 8)
		if err := VerifyFrame(frame); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bit %d flipped: %v", i, err)
		}
		frame[i/8] ^= 1 << (i % 8)
	}
	if err := VerifyFrame(frame); err != nil {
		t.Fatal(err)
	}
	if err := VerifyParts(frame[:HeaderBytes], bytes.Clone(frame[HeaderBytes:])); err != nil {
		t.Errorf("parts apart: %v", err)
	}
	if err := VerifyFrame(frame[:HeaderBytes-1]); !errors.Is(err, ErrShort) {
		t.Errorf("short frame: %v", err)
	}
	if err := DecodeHeader(frame[:HeaderBytes-1], &Header{}); !errors.Is(err, ErrShort) {
		t.Errorf("short header: %v", err)
	}
}

// CRC32C is the checksum that other languages know by that name: its check value is a published one.
func TestCRC32C_CheckValue(t *testing.T) {
	if got := CRC32C([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("CRC32C is %#x", got)
	}
}

// Views have no spare capacity: whoever appends to one does not write into its neighbour.
func TestViews_AppendDoesNotReachTheNeighbour(t *testing.T) {
	check := func(what string, views ...[]byte) {
		t.Helper()
		for i, v := range views {
			if cap(v) != len(v) {
				t.Errorf("%s: view %d has %d bytes and room for %d", what, i, len(v), cap(v))
			}
		}
	}
	frames := append(goldenRequest(OpPut, 1, goldenPutExt(), goldenKey, goldenValue)(), "the next frame"...)
	var h Header
	if err := DecodeHeader(frames, &h); err != nil {
		t.Fatal(err)
	}
	var r Request
	if ref := ParseRequest(&h, frames[HeaderBytes:HeaderBytes+int(h.BodyLen)], &r); ref != nil {
		t.Fatal(ref)
	}
	check("request", r.Body, r.Ext, r.Key, r.Payload)
	e, k, p, err := SplitBody(&h, frames[HeaderBytes:HeaderBytes+int(h.BodyLen)])
	if err != nil {
		t.Fatal(err)
	}
	check("body", e, k, p)
	ops, err := DecodeEntry(append(goldenEntry(), "x"...)[:len(goldenEntry())], &EntryHeader{})
	if err != nil {
		t.Fatal(err)
	}
	check("operations", ops)
	var o Op
	if _, err := NextOp(ops, &o); err != nil {
		t.Fatal(err)
	}
	check("operation", o.Ext, o.Key, o.Payload)
	var page ScanPage
	if err := DecodeScanPage(append(goldenScanPage(), "x"...)[:len(goldenScanPage())], &page); err != nil {
		t.Fatal(err)
	}
	check("page", page.Items, page.Cursor)
	var it Item
	if _, err := NextItem(page.Items, &it); err != nil {
		t.Fatal(err)
	}
	check("item", it.Ext, it.Key, it.Value)
	_, v, _, err := NextExt(it.Ext)
	if err != nil {
		t.Fatal(err)
	}
	check("element", v)
}

func TestSplitBody_LengthsThatLie_AreCorrupt(t *testing.T) {
	for _, h := range []Header{{ExtLen: 4}, {KeyLen: 4}, {ExtLen: 2, KeyLen: 2}, {ExtLen: 65535, KeyLen: 65535}} {
		if _, _, _, err := SplitBody(&h, []byte("abc")); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v in 3 bytes: %v", h, err)
		}
	}
}

// A length cut to its field would make another, valid message: that must never be sent.
func TestEncoders_LengthBeyondItsField_Panic(t *testing.T) {
	long := make([]byte, 1<<16)
	mustPanic(t, "key of a frame", func() { AppendFrame(nil, Header{}, nil, long, nil) })
	mustPanic(t, "ext of a frame", func() { AppendFrame(nil, Header{}, long, nil, nil) })
	mustPanic(t, "key of an item", func() { AppendItem(nil, &Item{Key: long}) })
	mustPanic(t, "ext of an item", func() { AppendItem(nil, &Item{Ext: long}) })
	mustPanic(t, "prefix of a scan", func() { AppendScanRequest(nil, &ScanRequest{Prefix: long}) })
	mustPanic(t, "cursor of a page", func() { PutScanPageHeader(long, 0, 0, len(long)) })
	mustPanic(t, "ext of an operation", func() { AppendOp(nil, &Op{}, append(long, 0), len(long), 0) })
	mustPanic(t, "body of an operation", func() { AppendOp(nil, &Op{}, []byte("ab"), 1, 2) })
	mustPanic(t, "name of a tag", func() { AppendExtTag(nil, string(long[:256]), "") })
	mustPanic(t, "id of a member", func() {
		AppendHelloAck(nil, &HelloAck{Members: []MemberInfo{{ID: string(long[:256])}}})
	})
	mustPanic(t, "revision", func() { MakeRevision(1<<44, 0) })
	mustPanic(t, "position", func() { MakeRevision(1, 1<<PositionBits) })
	if r := MakeRevision(1<<44-1, 1<<PositionBits-1); r != 1<<64-1 || RevisionTS(r) != 1<<44-1 {
		t.Errorf("largest revision %#x", r)
	}
}
