package netloop

import (
	"bytes"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// What a connection makes of a stream depends on the stream alone, not on how it arrives: neither the answers nor
// what is stored.
func FuzzFeed_AnyPieces(f *testing.F) {
	f.Add(stream(false, wire.CodecS2, 1)[:1500], uint16(100), false)
	f.Add(stream(true, wire.CodecS2, 2)[:1500], uint16(1), true)
	f.Add(encode(true, 0, wire.OpPut, 1, 0, "k", []byte("v")), uint16(5), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0x03, 0x20}, uint16(3), false)
	f.Fuzz(func(t *testing.T, b []byte, piece uint16, crc bool) {
		// Frames stay below what a worker unpacks: workers answer in any order.
		const frameMax = loopCodecBytesMax
		if len(b) > frameMax {
			return
		}
		run := func(n int) ([]string, map[string][]byte) {
			st := newStore()
			r := newRig(t, st, agreed{features: features(crc), codec: wire.CodecS2}, func(o *Options) { o.MaxFrame = frameMax })
			for rest := b; len(rest) > 0; {
				n := min(n, len(rest))
				p := bytes.Clone(rest[:n])
				r.feed(p)
				clear(p) // a view that is kept beyond Feed shows
				rest = rest[n:]
			}
			r.flush()
			out := summary(r.replies(crc, wire.CodecS2))
			r.s.closed()
			if big, out := r.core.big.used.Load(), r.core.out.used.Load(); big != 0 || out != 0 {
				t.Fatalf("%d bytes of big frames, %d of answers are not given back", big, out)
			}
			return out, st.m
		}
		want, stored := run(len(b) + 1)
		for _, n := range []int{1, int(piece) + 1} {
			got, kept := run(n)
			if !slices.Equal(got, want) {
				t.Fatalf("in pieces of %d bytes\n%q\nwhole\n%q", n, got, want)
			}
			if len(kept) != len(stored) {
				t.Fatalf("in pieces of %d bytes %d keys, whole %d", n, len(kept), len(stored))
			}
			for k, v := range stored {
				if w, ok := kept[k]; !ok || !bytes.Equal(v, w) {
					t.Fatalf("in pieces of %d bytes key %q holds %q, whole %q", n, k, w, v)
				}
			}
		}
	})
}

// A whole connection, from its first byte to its end: whatever a client says, the server ends the connection when the
// client has, answers in whole frames, and keeps nothing of it.
func FuzzServeConn(f *testing.F) {
	preface := wire.AppendPreface(nil, wire.Version, wire.Version)
	greeting := wire.AppendHello(bytes.Clone(preface), &everything)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	f.Add([]byte{tlsRecordHandshake, 3, 1, 0, 5}, false)
	f.Add(wire.AppendPreface(nil, 77, 99), false)
	f.Add(append(preface, wire.AppendFrame(nil, wire.Header{Op: wire.OpGet, ID: 1}, nil, []byte("k"), nil)...), false)
	f.Add(greeting[:len(greeting)-3], false)
	f.Add(stream(true, wire.CodecNone, 3)[:1500], true)
	f.Add(append(encode(true, 0, wire.OpPut, 1, 0, "k", []byte("v")), encode(true, 0, wire.OpGet, 2, 0, "k", nil)...), true)
	server := start(f, newStore(), func(o *Options) { o.MaxFrame = 64 << 10 })
	f.Fuzz(func(t *testing.T, b []byte, greeted bool) {
		if greeted {
			b = append(bytes.Clone(greeting), b...)
		}
		c := &script{in: b}
		if err := server.ServeConn(c); err != nil {
			t.Fatal(err)
		}
		checkSaid(t, c.out.Bytes())
		if st := server.Stats(); st.ConnsOpen != 0 || st.BigFrameBytes != 0 || st.OutBufferBytes != 0 {
			t.Fatalf("left behind: %+v", st)
		}
	})
}

// script is a connection whose other side has said all that it will say, and takes everything.
type script struct {
	net.Conn // none: what is not below is not to be called

	in []byte

	mu     sync.Mutex
	out    bytes.Buffer // guarded by mu
	closed bool
}

func (s *script) Read(b []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	return s.out.Write(b)
}

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// checkSaid checks that what a server said is a preface and frames, the last of which may be cut.
func checkSaid(t *testing.T, out []byte) {
	t.Helper()
	if len(out) == 0 {
		return
	}
	if len(out) < wire.PrefaceBytes {
		return // cut
	}
	if _, _, err := wire.DecodePreface(out[:wire.PrefaceBytes]); err != nil {
		t.Fatalf("it begins with %x: %v", out[:wire.PrefaceBytes], err)
	}
	for out = out[wire.PrefaceBytes:]; len(out) >= wire.HeaderBytes; {
		var h wire.Header
		if err := wire.DecodeHeader(out, &h); err != nil {
			t.Fatal(err)
		}
		if h.Op != wire.OpHello && h.Op != wire.OpGoAway && h.Flags&wire.FlagResponse == 0 {
			t.Fatalf("a frame of the server that is no answer: %+v", h)
		}
		end := wire.HeaderBytes + int(h.BodyLen)
		if end > len(out) {
			return
		}
		if err := wire.VerifyFrame(out[:end]); err != nil {
			t.Fatal(err)
		}
		out = out[end:]
	}
}

// What is read as HELLO is within the bounds of the protocol, and is read without a byte beyond it.
func FuzzReadHello(f *testing.F) {
	good := wire.AppendHello(nil, &everything)
	f.Add(good, false)
	f.Add(good[:len(good)-1], true)
	f.Add(wire.AppendFrame(nil, wire.Header{Op: wire.OpHello}, nil, nil, nil), true)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		var h wire.Header
		if mend && wire.DecodeHeader(b, &h) == nil {
			h.Op, h.Flags = wire.OpHello, h.Flags|wire.FlagCRC
			b = wire.FinishFrame(append(make([]byte, wire.HeaderBytes), b[wire.HeaderBytes:]...), 0, h)
		}
		r := bytes.NewReader(b)
		hello, ref, err := readHello(r)
		n := 0
		for _, there := range []bool{hello != nil, ref != nil, err != nil} {
			if there {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("%+v, %v, %v", hello, ref, err)
		}
		if ref != nil && (ref.Text == "" || ref.Status.Class() != wire.ClassRefused) {
			t.Fatalf("refused with %+v", ref)
		}
		if hello != nil && (hello.MaxFrame < wire.MaxFrameMin || wire.DecodeHeader(b, &h) != nil || len(b)-r.Len() != wire.HeaderBytes+int(h.BodyLen)) {
			t.Fatalf("%+v after %d of %d bytes", hello, len(b)-r.Len(), len(b))
		}
	})
}
