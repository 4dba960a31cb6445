package netloop

import (
	"bufio"
	"io"
	"net"
	"time"

	"kvstore/wire"
)

// tlsRecordHandshake is the first byte of every TLS connection.
const tlsRecordHandshake = 0x16

// handshake reads preface and HELLO and answers them, all within HandshakeTimeout. leftover is what
// arrived behind HELLO. When ok is false the connection is to be closed; the reason is counted and, where
// the peer speaks our protocol, said.
func (s *Server) handshake(c net.Conn) (a agreed, leftover []byte, ok bool) {
	defer s.core.survive("hello", func() { ok = false })
	if c.SetDeadline(time.Now().Add(s.core.o.HandshakeTimeout)) != nil {
		return s.refused(refusedTimeout)
	}
	r := bufio.NewReaderSize(c, 4<<10)
	first, err := r.Peek(1)
	if err != nil {
		return s.refused(refusedTimeout)
	}
	if first[0] == tlsRecordHandshake {
		// Nothing that this port could say would be understood. TLS begins here one day: crypto/tls over c
		// and r, then the same handshake inside it, then servePlain.
		s.sayAndLeave(c, nil)
		return s.refused(refusedTLS)
	}
	preface, err := r.Peek(wire.PrefaceBytes)
	if err != nil {
		return s.refused(refusedTimeout)
	}
	oldest, newest, err := wire.DecodePreface(preface)
	if err != nil {
		s.sayAndLeave(c, nil)
		return s.refused(refusedPreface)
	}
	version := wire.ChooseVersion(oldest, newest)
	out := wire.AppendPreface(nil, version, 0)
	if version == 0 {
		s.sayAndLeave(c, out)
		return s.refused(refusedVersion)
	}
	if _, err := r.Discard(wire.PrefaceBytes); err != nil {
		return s.refused(refusedTimeout)
	}
	if r.Buffered() == 0 { // the client may be waiting for our preface
		if _, err := c.Write(out); err != nil {
			return s.refused(refusedTimeout)
		}
		out = out[:0]
	}
	refuse := func(why refuseReason, ref *wire.Refusal) (agreed, []byte, bool) {
		s.sayAndLeave(c, s.appendRefusal(out, ref))
		return s.refused(why)
	}
	hello, ref, err := readHello(r)
	if err != nil {
		return s.refused(refusedTimeout)
	}
	if ref != nil {
		return refuse(refusedHello, ref)
	}
	if s.core.draining.Load() {
		return refuse(refusedDraining, &wire.Refusal{Status: wire.StatusDraining, Text: wire.StatusDraining.Info().Message})
	}
	ack, principal, ref := s.core.handler.Hello(c.RemoteAddr(), hello)
	if ref != nil {
		return refuse(refusedHandler, ref)
	}
	a = s.agree(hello, &ack)
	a.principal = principal
	if _, err := c.Write(wire.AppendHelloAck(out, &ack)); err != nil {
		return s.refused(refusedTimeout)
	}
	if c.SetDeadline(time.Time{}) != nil {
		return s.refused(refusedTimeout)
	}
	if n := r.Buffered(); n > 0 {
		leftover = make([]byte, n)
		if _, err := io.ReadFull(r, leftover); err != nil {
			panic("BUG: buffered bytes can't be read: " + err.Error())
		}
	}
	s.core.counters.connsTotal.Add(1)
	return a, leftover, true
}

func (s *Server) refused(why refuseReason) (agreed, []byte, bool) {
	s.core.counters.refused[why].Add(1)
	return agreed{}, nil, false
}

// readHello reads the HELLO frame. The refusal is for a peer that sent something else; the error is that
// of the connection.
func readHello(r io.Reader) (*wire.Hello, *wire.Refusal, error) {
	bad := func(text string) (*wire.Hello, *wire.Refusal, error) {
		return nil, &wire.Refusal{Status: wire.StatusBadRequest, Text: text}, nil
	}
	frame := make([]byte, wire.HeaderBytes, 256)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, nil, err
	}
	var h wire.Header
	if err := wire.DecodeHeader(frame, &h); err != nil {
		return nil, nil, err
	}
	if h.Op != wire.OpHello {
		return bad("a connection begins with HELLO") // and its length means nothing
	}
	if h.BodyLen > wire.HelloBytesMax {
		return nil, &wire.Refusal{Status: wire.StatusTooLarge, Text: "hello is too large", Limit: wire.HelloBytesMax}, nil
	}
	body := make([]byte, h.BodyLen)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, nil, err
	}
	if wire.VerifyParts(frame, body) != nil {
		return bad("hello fails its checksum")
	}
	var hello wire.Hello
	if ref := wire.ParseHello(&h, body, &hello); ref != nil {
		return nil, ref, nil
	}
	return &hello, nil, nil
}

// agree settles what both sides can do and fills the door's part of the answer.
func (s *Server) agree(hello *wire.Hello, ack *wire.HelloAck) agreed {
	o := &s.core.o
	const ours = wire.FeatureCRC | wire.FeatureCompression
	f := ack.Features&^ours&hello.Features | hello.Features&wire.FeatureCRC
	ack.Codec = wire.CodecNone
	if hello.Features&wire.FeatureCompression != 0 && !o.NoCompression {
		if ack.Codec = wire.ChooseCodec(hello.Codecs); ack.Codec != wire.CodecNone {
			f |= wire.FeatureCompression
		}
	}
	ack.Features = f
	ack.MaxFrame = uint32(o.MaxFrame)
	ack.Inflight = uint32(o.Inflight)
	ack.InflightBytes = uint32(o.InflightBytes)
	return agreed{features: f, codec: ack.Codec, maxFrame: hello.MaxFrame}
}
