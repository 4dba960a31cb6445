package wire

import (
	"bytes"
	"testing"
)

// The fixed forms: what is read is written as it was, and any other length is refused.
func FuzzFixedForms(f *testing.F) {
	f.Add(AppendReadPoint(nil, ReadPoint{1, 2, 3}), uint16(0))
	f.Add(AppendVersion(nil, 7), uint16(StatusNotLeader))
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		if p, ok := DecodeReadPoint(b); ok != (len(b) == ReadPointBytes) || ok && !bytes.Equal(AppendReadPoint(nil, p), b) {
			t.Fatalf("%x: %+v, %v", b, p, ok)
		}
		if v, ok := DecodeVersion(b); ok != (len(b) == VersionBytes) || ok && !bytes.Equal(AppendVersion(nil, v), b) {
			t.Fatalf("%x: %d, %v", b, v, ok)
		}
		if n, ok := DecodeIncrement(b); ok != (len(b) == IncrementBytes) || ok && !bytes.Equal(AppendIncrement(nil, n), b) {
			t.Fatalf("%x: %d, %v", b, n, ok)
		}
		if v, n, ok := DecodeCounter(b); ok != (len(b) == CounterBytes) || ok && !bytes.Equal(AppendCounter(nil, v, n), b) {
			t.Fatalf("%x: %d, %d, %v", b, v, n, ok)
		}
		if id, n, ok := DecodeCredit(b); ok != (len(b) == CreditBytes) || ok && !bytes.Equal(AppendCredit(nil, id, n), b) {
			t.Fatalf("%x: %d, %d, %v", b, id, n, ok)
		}
		if l, err := DecodeLevel(b); (err == nil) != (len(b) == LevelBytes) || err == nil && !bytes.Equal(AppendLevel(nil, l), b) {
			t.Fatalf("%x: %d, %v", b, l, err)
		}
		// Any number may stand where a status or an opcode is: it has a name and a class, and no class but a known one.
		if s := Status(n); s.String() == "" || s.Info().Message == "" && s.Class() == ClassRefused {
			t.Fatalf("status %d: %q, %+v", n, s, s.Info())
		}
		if op := Opcode(n); op.String() == "" {
			t.Fatalf("opcode %d has no name", n)
		}
	})
}

// A frame that was cut asks for more, and never passes for damaged: its checksum can't be told yet. Where it is whole,
// one flipped bit is found.
func FuzzFrame_CutOrFlipped(f *testing.F) {
	seed(f, func(_ string, b []byte) []byte { return b })
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		for n := range min(len(b), HeaderBytes) {
			if DecodeHeader(b[:n], &h) == nil {
				t.Fatalf("%d bytes pass for a header", n)
			}
		}
		if DecodeHeader(b, &h) != nil || int64(h.BodyLen) > int64(len(b)-HeaderBytes) {
			return
		}
		h.Flags |= FlagCRC
		frame := FinishFrame(append(make([]byte, HeaderBytes), b[HeaderBytes:HeaderBytes+int(h.BodyLen)]...), 0, h)
		if err := VerifyFrame(frame); err != nil {
			t.Fatalf("own frame is refused: %v", err)
		}
		if VerifyParts(frame[:HeaderBytes], frame[HeaderBytes:]) != nil {
			t.Fatal("in parts it is refused")
		}
		if DecodeHeader(frame, &h) != nil || h.CRC == 0 {
			return // the bit that says that there is a checksum is guarded by the checksum not being 0
		}
		// A few places, spread over the frame: each costs a pass over it.
		for i := range min(len(frame), 64) {
			at := i * len(frame) / min(len(frame), 64)
			frame[at] ^= 1 << (i % 8)
			if VerifyFrame(frame) == nil && VerifyParts(frame[:HeaderBytes], frame[HeaderBytes:]) == nil {
				t.Fatalf("bit %d of byte %d is not found", i%8, at)
			}
			frame[at] ^= 1 << (i % 8)
		}
	})
}
