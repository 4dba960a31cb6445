package test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// rawConn speaks the binary protocol byte by byte, well or badly.
type rawConn struct {
	t    *testing.T
	c    *net.TCPConn
	r    *bufio.Reader
	ack  wire.HelloAck
	crc  bool
	last uint32 // request id
}

// dial connects and says nothing.
func dial(t *testing.T, n *testcluster.Node) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return &rawConn{t: t, c: c.(*net.TCPConn), r: bufio.NewReaderSize(c, 64<<10)}
}

// hello connects and agrees on the features.
func hello(t *testing.T, n *testcluster.Node, f wire.Features, codecs ...wire.Codec) *rawConn {
	t.Helper()
	c := dial(t, n)
	c.send(wire.AppendHello(wire.AppendPreface(nil, wire.Version, wire.Version), &wire.Hello{Features: f, Codecs: codecs, ClientName: "raw"}))
	if v := c.preface(); v != wire.Version {
		t.Fatalf("the server chose version %d", v)
	}
	h, body := c.frame()
	if h.Op != wire.OpHello || h.Status() != wire.StatusOK {
		t.Fatalf("HELLO is answered by %s %s %q", h.Op, h.Status(), body)
	}
	if err := wire.DecodeHelloAck(body[:h.ExtLen], &c.ack); err != nil {
		t.Fatal(err)
	}
	if c.ack.Features&f != f {
		t.Fatalf("asked for features %#x, got %#x", f, c.ack.Features)
	}
	c.crc = f&wire.FeatureCRC != 0
	return c
}

// send writes bytes. A connection that the server has closed is no failure here: what it answers is read.
func (c *rawConn) send(b []byte) {
	c.t.Helper()
	if err := c.c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.c.Write(b); err != nil && !isClosed(err) {
		c.t.Fatal(err)
	}
}

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// preface reads the server's preface and returns the version that it chose.
func (c *rawConn) preface() uint16 {
	c.t.Helper()
	var b [wire.PrefaceBytes]byte
	c.deadline()
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		c.t.Fatalf("no preface: %v", err)
	}
	v, _, err := wire.DecodePreface(b[:])
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

func (c *rawConn) deadline() {
	c.t.Helper()
	if err := c.c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
}

// next reads one frame; the error is that of the connection.
func (c *rawConn) next() (h wire.Header, body []byte, err error) {
	c.t.Helper()
	c.deadline()
	var head [wire.HeaderBytes]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return h, nil, err
	}
	if err := wire.DecodeHeader(head[:], &h); err != nil {
		c.t.Fatal(err)
	}
	if h.BodyLen > wire.FrameBodyBytesMax {
		c.t.Fatalf("the server announces a body of %d bytes", h.BodyLen)
	}
	body = make([]byte, h.BodyLen)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return h, nil, err
	}
	if err := wire.VerifyParts(head[:], body); err != nil {
		c.t.Fatalf("a frame of the server: %v", err)
	}
	if h.Flags&wire.FlagCompressed != 0 {
		if body, err = wire.Decompress(nil, c.ack.Codec, body, wire.FrameBodyBytesMax); err != nil {
			c.t.Fatalf("a frame of the server: %v", err)
		}
	}
	return h, body, nil
}

// frame reads one frame that must come.
func (c *rawConn) frame() (wire.Header, []byte) {
	c.t.Helper()
	h, body, err := c.next()
	if err != nil {
		c.t.Fatalf("instead of a frame: %v", err)
	}
	return h, body
}

// request appends a well-formed frame with the next request id.
func (c *rawConn) request(op wire.Opcode, ext, key, payload []byte) []byte {
	c.last++
	h := wire.Header{Op: op, ID: c.last}
	if c.crc {
		h.Flags |= wire.FlagCRC
	}
	return wire.AppendFrame(nil, h, ext, key, payload)
}

// ask sends bytes that hold one request with the id last, and returns its answer.
func (c *rawConn) ask(frame []byte) (wire.Status, wire.Header, []byte) {
	c.t.Helper()
	c.send(frame)
	return c.answer()
}

// answer reads the answer to the request with the id last.
func (c *rawConn) answer() (wire.Status, wire.Header, []byte) {
	c.t.Helper()
	h, body := c.frame()
	if h.ID != c.last || h.Flags&wire.FlagResponse == 0 {
		c.t.Fatalf("request %d is answered by %s %s for request %d: %q", c.last, h.Op, h.Status(), h.ID, body)
	}
	return h.Status(), h, body
}

// alive checks that the connection still serves.
func (c *rawConn) alive() {
	c.t.Helper()
	if st, _, body := c.ask(c.request(wire.OpPing, nil, nil, []byte("alive?"))); st != wire.StatusOK || string(body) != "alive?" {
		c.t.Fatalf("PING is answered by %s %q", st, body)
	}
}

// end reads until the server closes the connection, and returns the status of its GOAWAY and whether
// there was one.
func (c *rawConn) end() (goAway wire.Status, told bool) {
	c.t.Helper()
	for {
		h, _, err := c.next()
		switch {
		case err == nil && h.Op == wire.OpGoAway && h.ID == 0:
			goAway, told = h.Status(), true
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.t.Fatalf("the server keeps the connection open for %v", patience)
		case isClosed(err):
			return goAway, told
		default:
			c.t.Fatal(err)
		}
	}
}

// silent reads until the server closes the connection before HELLO, and returns what it said.
func (c *rawConn) silent() []byte {
	c.t.Helper()
	c.deadline()
	b, err := io.ReadAll(c.r)
	if err != nil && !isClosed(err) {
		c.t.Fatalf("the server does not close the connection: %v", err)
	}
	return b
}

// put is a PUT that must succeed.
func (c *rawConn) put(key string, value []byte) {
	c.t.Helper()
	if st, _, body := c.ask(c.request(wire.OpPut, nil, []byte(key), value)); st != wire.StatusOK {
		c.t.Fatalf("PUT %q: %s %q", key, st, body)
	}
}

// get is a GET; found is false for a missing key.
func (c *rawConn) get(key string) (value []byte, found bool) {
	c.t.Helper()
	st, h, body := c.ask(c.request(wire.OpGet, nil, []byte(key), nil))
	switch st {
	case wire.StatusOK:
		return body[h.ExtLen:], true
	case wire.StatusNotFound:
		return nil, false
	}
	c.t.Fatalf("GET %q: %s %q", key, st, body)
	return nil, false
}
