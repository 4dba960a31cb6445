package netloop

import (
	"crypto/tls"
	"io"
	"testing"
	"time"

	"kvstore/wire"
)

// Goal: every way to begin a connection ends as documented. Method: real sockets against a real server.

func TestHello_Agreed_AckNamesWhatIsInForce(t *testing.T) {
	s := start(t, newStore(), nil)
	p := greet(t, dialRaw(t, s.Addr().String()), wire.Hello{
		Features: wire.FeatureCRC | wire.FeatureCompression | wire.FeatureSessions | wire.FeatureWatch,
		Codecs:   []wire.Codec{9, wire.CodecZstd, wire.CodecS2},
	})
	if want := wire.FeatureCRC | wire.FeatureCompression | wire.FeatureSessions; p.ack.Features != want {
		t.Errorf("features %b, want %b", p.ack.Features, want)
	}
	if p.ack.Codec != wire.CodecZstd || p.ack.MaxFrame != wire.FrameBodyBytesMax || p.ack.Inflight != wire.ConnInflightMax || p.ack.InflightBytes != wire.ConnInflightBytesMax || p.ack.NodeID != "test" {
		t.Errorf("ack %+v", p.ack)
	}
	if st := p.call(wire.OpGet, 1, "k", nil).h.Status(); st != wire.StatusNotFound {
		t.Errorf("first request: %s", st)
	}
}

func TestHello_NothingOffered_NothingInForce(t *testing.T) {
	s := start(t, newStore(), nil)
	p := greet(t, dialRaw(t, s.Addr().String()), wire.Hello{})
	if p.ack.Features != 0 || p.ack.Codec != wire.CodecNone {
		t.Errorf("ack %+v", p.ack)
	}
	if r := p.call(wire.OpPut, 7, "k", []byte("v")); r.h.Status() != wire.StatusOK || r.h.Flags&wire.FlagCRC != 0 {
		t.Errorf("%s flags %x", r, r.h.Flags)
	}
}

func TestHello_RequestsBehindIt_AreServed(t *testing.T) {
	s := start(t, newStore(), nil)
	c := dialRaw(t, s.Addr().String())
	p := &peer{t: t, c: c, crc: true}
	b := wire.AppendHello(wire.AppendPreface(nil, wire.Version, wire.Version), &everything)
	b = append(b, p.frame(wire.OpPut, 1, "k", []byte("v"))...)
	half := p.frame(wire.OpGet, 2, "k", nil)
	p.send(append(b, half[:11]...))
	if _, err := io.ReadFull(c, make([]byte, wire.PrefaceBytes)); err != nil {
		t.Fatal(err)
	}
	p.recv() // hello
	if r := p.recv(); r.h.ID != 1 || r.h.Status() != wire.StatusOK {
		t.Fatalf("%s", r)
	}
	p.send(half[11:])
	if r := p.recv(); r.h.ID != 2 || string(r.payload) != "v" {
		t.Fatalf("%s", r)
	}
}

func TestHello_OtherVersion_GetsPrefaceZeroAndEnd(t *testing.T) {
	s := start(t, newStore(), nil)
	c := dialRaw(t, s.Addr().String())
	if _, err := c.Write(wire.AppendPreface(nil, 2, 9)); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil || len(all) != wire.PrefaceBytes {
		t.Fatalf("%x, %v", all, err)
	}
	if v, _, err := wire.DecodePreface(all); err != nil || v != 0 {
		t.Errorf("version %d, %v", v, err)
	}
	eventually(t, "counted", func() bool { return s.Stats().Refused["version"] == 1 })
}

func TestHello_HandlerRefuses_ClientReadsWhy(t *testing.T) {
	h := newStore()
	h.hello = func(*wire.Hello) *wire.Refusal { return &wire.Refusal{Status: wire.StatusDenied, Text: "not you"} }
	s := start(t, h, nil)
	expectRefusal(t, s, wire.AppendHello(wire.AppendPreface(nil, 1, 1), &everything), wire.StatusDenied)
	eventually(t, "counted", func() bool { return s.Stats().Refused["handler"] == 1 })
}

func expectRefusal(t *testing.T, s *Server, first []byte, want wire.Status) {
	t.Helper()
	c := dialRaw(t, s.Addr().String())
	p := &peer{t: t, c: c}
	p.send(first)
	if _, err := io.ReadFull(c, make([]byte, wire.PrefaceBytes)); err != nil {
		t.Fatal(err)
	}
	all := p.expectEnd()
	if len(all) != 1 || all[0].h.Op != wire.OpHello || all[0].h.Status() != want {
		t.Fatalf("answered %v, want one HELLO with %s", all, want)
	}
}

func TestHello_Malformed_IsRefused(t *testing.T) {
	s := start(t, newStore(), nil)
	pre := wire.AppendPreface(nil, 1, 1)
	with := func(b []byte) []byte { return append(append([]byte(nil), pre...), b...) }
	corrupt := wire.AppendHello(nil, &everything)
	corrupt[len(corrupt)-1] ^= 1
	huge, off := wire.BeginFrame(nil)
	huge = wire.FinishFrame(append(huge, make([]byte, wire.HelloBytesMax+1)...), off, wire.Header{Op: wire.OpHello})
	small := wire.Hello{MaxFrame: 1}
	for name, f := range map[string]struct {
		b    []byte
		want wire.Status
	}{
		"a request first":     {with(encode(true, 0, wire.OpGet, 1, 0, "k", nil)), wire.StatusBadRequest},
		"bad checksum":        {with(corrupt), wire.StatusBadRequest},
		"too large":           {with(huge), wire.StatusTooLarge},
		"with a payload":      {with(wire.AppendFrame(nil, wire.Header{Op: wire.OpHello}, nil, nil, []byte("x"))), wire.StatusBadRequest},
		"unknown critical":    {with(wire.AppendFrame(nil, wire.Header{Op: wire.OpHello}, wire.AppendExtU8(nil, 101, 1), nil, nil)), wire.StatusUnsupported},
		"tiny largest answer": {with(wire.AppendHello(nil, &small)), wire.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) { expectRefusal(t, s, f.b, f.want) })
	}
}

func TestHello_NotOurProtocol_IsClosed(t *testing.T) {
	s := start(t, newStore(), nil)
	c := dialRaw(t, s.Addr().String())
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(c); err != nil || len(all) != 0 {
		t.Errorf("%q, %v", all, err)
	}
	eventually(t, "counted", func() bool { return s.Stats().Refused["preface"] == 1 })
}

func TestHello_TLS_IsClosedCleanly(t *testing.T) {
	s := start(t, newStore(), nil)
	c := dialRaw(t, s.Addr().String())
	if err := tls.Client(c, &tls.Config{ServerName: "x"}).Handshake(); err != io.EOF {
		t.Errorf("TLS handshake ended with %v, want a clean close", err)
	}
	eventually(t, "counted", func() bool { return s.Stats().Refused["tls"] == 1 })
}

func TestHello_NotOurs_UnreadBytesCauseNoReset(t *testing.T) {
	s := start(t, newStore(), nil)
	for _, first := range []byte{tlsRecordHandshake, 'G'} {
		c := dialRaw(t, s.Addr().String())
		if _, err := c.Write(append([]byte{first}, make([]byte, 30<<10)...)); err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(c); err != nil || len(all) != 0 {
			t.Errorf("after %#x: %q, %v", first, all, err)
		}
	}
}

func TestHello_Silence_EndsAtTheDeadline(t *testing.T) {
	s := start(t, newStore(), func(o *Options) { o.HandshakeTimeout = 50 * time.Millisecond })
	for _, first := range [][]byte{nil, wire.AppendPreface(nil, 1, 1)[:3], wire.AppendPreface(nil, 1, 1)} {
		c := dialRaw(t, s.Addr().String())
		if len(first) > 0 {
			if _, err := c.Write(first); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("after %x: %v", first, err)
		}
	}
	eventually(t, "counted", func() bool { st := s.Stats(); return st.Refused["timeout"] == 3 && st.Handshakes == 0 })
}

func TestAccept_BeyondMaxConns_GetsBusy(t *testing.T) {
	s := start(t, newStore(), func(o *Options) { o.MaxConns = 2 })
	a, b := dial(t, s), dial(t, s)
	expectRefusal(t, s, wire.AppendHello(wire.AppendPreface(nil, 1, 1), &everything), wire.StatusBusy)
	if err := a.c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the place is free", func() bool { return s.conns.Load() == 1 })
	dial(t, s).call(wire.OpGet, 1, "k", nil)
	b.call(wire.OpGet, 1, "k", nil)
}

func TestAccept_BeyondHandshakes_GetsBusy(t *testing.T) {
	s := start(t, newStore(), func(o *Options) { o.Handshakes = 1 })
	silent := dialRaw(t, s.Addr().String())
	eventually(t, "the silent one is there", func() bool { return s.Stats().Handshakes == 1 })
	expectRefusal(t, s, wire.AppendHello(wire.AppendPreface(nil, 1, 1), &everything), wire.StatusBusy)
	if err := silent.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the place is free", func() bool { return s.Stats().Handshakes == 0 })
	dial(t, s).call(wire.OpGet, 1, "k", nil)
}

func TestOptions_Faults_AreListedTogether(t *testing.T) {
	_, err := Start(Options{Loops: -1, InflightBytes: 5, IdleTimeout: -time.Second})
	if err == nil {
		t.Fatal("started")
	}
	for _, want := range []string{"Listener", "Handler", "Loops", "InflightBytes", "IdleTimeout"} {
		if !containsText(err.Error(), want) {
			t.Errorf("%q does not mention %s", err, want)
		}
	}
}
