package netloop

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"kvstore/wire"
)

func TestMain(m *testing.M) {
	if child := os.Getenv(emfileChildEnv); child != "" {
		emfileChild()
		return
	}
	// gnet's worker pool starts goroutines when its package is loaded; they are no leak of ours.
	old := goleak.IgnoreCurrent()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(old); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// store is the Handler of the tests: a map behind a mutex. GET, EXISTS, PUT and DELETE work; every other
// operation is answered UNSUPPORTED. Answers come from Serve itself, or from where park sends them.
type store struct {
	mu       sync.Mutex
	m        map[string][]byte
	sum      [8]byte
	resp     wire.Response // reused: what goes through an interface would be allocated
	executed atomic.Int64
	cancels  atomic.Int64
	bunches  atomic.Int64

	// park, when set, gets every answer in place of the completer; it must call it later.
	park func(c wire.Completer, t wire.Token, r *wire.Response)
	// hello, when set, decides.
	hello func(h *wire.Hello) *wire.Refusal
	// panicOn is a key that Serve panics on.
	panicOn string
}

func newStore() *store { return &store{m: make(map[string][]byte)} }

func (st *store) Hello(_ net.Addr, h *wire.Hello) (wire.HelloAck, any, *wire.Refusal) {
	if st.hello != nil {
		if ref := st.hello(h); ref != nil {
			return wire.HelloAck{}, nil, ref
		}
	}
	return wire.HelloAck{Features: h.Features & wire.FeatureSessions, NodeID: "test", Version: "v0"}, "somebody", nil
}

func (st *store) Serve(c wire.Completer, principal any, reqs []wire.Request) {
	if principal != "somebody" {
		panic("principal got lost")
	}
	st.bunches.Add(1)
	for i := range reqs {
		st.one(c, &reqs[i])
	}
}

func (st *store) one(c wire.Completer, r *wire.Request) {
	st.executed.Add(1)
	if st.panicOn != "" && string(r.Key) == st.panicOn {
		panic("the test asked for it")
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	resp := &st.resp
	*resp = wire.Response{Status: wire.StatusOK}
	switch r.Op {
	case wire.OpGet:
		v, ok := st.m[string(r.Key)]
		if !ok {
			resp.Status = wire.StatusNotFound
		}
		resp.Payload = v
	case wire.OpExists:
		if _, ok := st.m[string(r.Key)]; !ok {
			resp.Status = wire.StatusNotFound
		}
	case wire.OpPut:
		v := st.m[string(r.Key)]
		st.m[string(r.Key)] = append(v[:0:cap(v)], r.Payload...)
		binary.LittleEndian.PutUint64(st.sum[:], uint64(len(r.Payload)))
		resp.Payload = st.sum[:]
	case wire.OpDelete:
		delete(st.m, string(r.Key))
		resp.Payload = make([]byte, wire.VersionBytes)
	default:
		resp.Status = wire.StatusUnsupported
	}
	if st.park != nil {
		held := &wire.Response{Status: resp.Status, Payload: append([]byte(nil), resp.Payload...)}
		st.park(c, r.Token(), held)
		return
	}
	c.Complete(r.Token(), resp)
}

func (st *store) Cancel(wire.Completer, uint32) { st.cancels.Add(1) }

func (st *store) Credit(wire.Completer, uint32, uint32) {}

func (st *store) Writable(wire.Completer) {}

func (st *store) Gone(wire.Completer) {}

func (st *store) put(key string, value []byte) {
	st.mu.Lock()
	st.m[key] = value
	st.mu.Unlock()
}

// quiet is a logger for tests that provoke errors.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a server on loopback for the test's duration.
func start(t testing.TB, h Handler, change func(*Options)) *Server {
	t.Helper()
	o := Options{Addr: "127.0.0.1:0", Handler: h, Logger: quiet(), Loops: 2}
	if change != nil {
		change(&o)
	}
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.ConnsOpen != 0 || st.BigFrameBytes != 0 || st.OutBufferBytes != 0 || s.conns.Load() != 0 {
			t.Errorf("after Close: %d connections (%d counted), %d bytes of big frames, %d of out buffers", st.ConnsOpen, s.conns.Load(), st.BigFrameBytes, st.OutBufferBytes)
		}
	})
	return s
}

// peer is a client that knows the wire and nothing else.
type peer struct {
	t     testing.TB
	c     net.Conn
	ack   wire.HelloAck
	crc   bool
	codec wire.Codec
}

// reply is one decoded frame of the server, unpacked.
type reply struct {
	h       wire.Header
	ext     []byte
	payload []byte
}

func (r *reply) String() string {
	return fmt.Sprintf("%s %s id=%d %q", r.h.Op, r.h.Status(), r.h.ID, r.payload)
}

var everything = wire.Hello{Features: wire.FeatureCRC | wire.FeatureSessions, ClientName: "test"}

func dialRaw(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(t testing.TB, s *Server) *peer {
	t.Helper()
	return greet(t, dialRaw(t, s.Addr().String()), everything)
}

// greet runs the client's side of the handshake.
func greet(t testing.TB, c net.Conn, h wire.Hello) *peer {
	t.Helper()
	p := &peer{t: t, c: c}
	p.send(wire.AppendHello(wire.AppendPreface(nil, wire.Version, wire.Version), &h))
	pre := make([]byte, wire.PrefaceBytes)
	if _, err := io.ReadFull(c, pre); err != nil {
		t.Fatalf("no preface: %v", err)
	}
	if v, _, err := wire.DecodePreface(pre); err != nil || v != wire.Version {
		t.Fatalf("preface: version %d, %v", v, err)
	}
	r := p.recv()
	if r.h.Op != wire.OpHello || r.h.Status() != wire.StatusOK {
		t.Fatalf("hello was answered %s", r)
	}
	if err := wire.DecodeHelloAck(r.ext, &p.ack); err != nil {
		t.Fatal(err)
	}
	p.crc = p.ack.Features&wire.FeatureCRC != 0
	p.codec = p.ack.Codec
	return p
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.c.Write(b); err != nil {
		p.t.Fatalf("cannot send: %v", err)
	}
}

// frame encodes a request as this connection agreed.
func (p *peer) frame(op wire.Opcode, id uint32, key string, payload []byte) []byte {
	return encode(p.crc, wire.CodecNone, op, id, 0, key, payload)
}

func encode(crc bool, codec wire.Codec, op wire.Opcode, id uint32, flags wire.Flags, key string, payload []byte) []byte {
	h := wire.Header{Op: op, ID: id, Flags: flags}
	if crc {
		h.Flags |= wire.FlagCRC
	}
	if codec == wire.CodecNone {
		return wire.AppendFrame(nil, h, nil, []byte(key), payload)
	}
	h.KeyLen = uint16(len(key))
	b, off := wire.BeginFrame(nil)
	raw := append([]byte(key), payload...)
	var ok bool
	if b, ok = wire.AppendCompressed(b, codec, raw); !ok {
		return encode(crc, wire.CodecNone, op, id, flags, key, payload)
	}
	h.Flags |= wire.FlagCompressed
	return wire.FinishFrame(b, off, h)
}

// try reads one frame.
func (p *peer) try() (*reply, error) {
	var head [wire.HeaderBytes]byte
	if _, err := io.ReadFull(p.c, head[:]); err != nil {
		return nil, err
	}
	return p.body(head[:], p.c)
}

func (p *peer) body(head []byte, from io.Reader) (*reply, error) {
	r := new(reply)
	if err := wire.DecodeHeader(head, &r.h); err != nil {
		return nil, err
	}
	if r.h.BodyLen > wire.FrameBodyBytesMax {
		return nil, fmt.Errorf("answer of %d bytes", r.h.BodyLen)
	}
	body := make([]byte, r.h.BodyLen)
	if _, err := io.ReadFull(from, body); err != nil {
		return nil, err
	}
	if err := wire.VerifyParts(head, body); err != nil {
		return nil, err
	}
	if p.crc && r.h.Flags&wire.FlagCRC == 0 {
		return nil, fmt.Errorf("an answer without checksum: %s", r)
	}
	if r.h.Flags&wire.FlagResponse == 0 {
		return nil, fmt.Errorf("not an answer: %s", r)
	}
	if r.h.Flags&wire.FlagCompressed != 0 {
		var err error
		if body, err = wire.Decompress(nil, p.codec, body, wire.FrameBodyBytesMax); err != nil {
			return nil, err
		}
	}
	var err error
	r.ext, _, r.payload, err = wire.SplitBody(&r.h, body)
	return r, err
}

func (p *peer) recv() *reply {
	p.t.Helper()
	r, err := p.try()
	if err != nil {
		p.t.Fatalf("cannot receive: %v", err)
	}
	return r
}

// call sends one request and expects its answer next.
func (p *peer) call(op wire.Opcode, id uint32, key string, payload []byte) *reply {
	p.t.Helper()
	p.send(p.frame(op, id, key, payload))
	r := p.recv()
	if r.h.ID != id || r.h.Op != op {
		p.t.Fatalf("sent %s id=%d, got %s", op, id, r)
	}
	return r
}

// expectEnd reads until the server closes, and returns the frames before.
func (p *peer) expectEnd() []*reply {
	p.t.Helper()
	var all []*reply
	for {
		r, err := p.try()
		if err == io.EOF {
			return all
		}
		if err != nil {
			p.t.Fatalf("expected an orderly end, got %v after %v", err, all)
		}
		all = append(all, r)
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// rig drives a Session by hand.
type rig struct {
	t     testing.TB
	core  *core
	s     *Session
	sc    scratch
	wakes int
	kills int
	// holdOutput keeps answers pending.
	holdOutput bool
	out        bytes.Buffer
	mu         sync.Mutex
}

func newRig(t testing.TB, h Handler, a agreed, change func(*Options)) *rig {
	t.Helper()
	o := Options{Addr: "unused", Handler: h, Logger: quiet()}
	if change != nil {
		change(&o)
	}
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, core: newCore(o)}
	t.Cleanup(r.core.codecs.close)
	if a.maxFrame == 0 {
		a.maxFrame = wire.FrameBodyBytesMax
	}
	if a.principal == nil {
		a.principal = "somebody"
	}
	r.s = newSession(r.core, r.core.newShard(), &r.sc, r, nil, a)
	r.core.register(r.s)
	return r
}

func (r *rig) wake()     { r.mu.Lock(); r.wakes++; r.mu.Unlock() }
func (r *rig) kill()     { r.mu.Lock(); r.kills++; r.mu.Unlock() }
func (r *rig) flushNow() { r.flush() }

// flush moves everything to out.
func (r *rig) flush() {
	if r.holdOutput {
		return
	}
	for b := r.s.next(); len(b) > 0; b = r.s.next() {
		r.out.Write(b)
		r.s.sent(len(b))
	}
}

// feed checks what Feed promises.
func (r *rig) feed(b []byte) Action {
	r.t.Helper()
	n, act := r.s.Feed(b)
	if n < 0 || n > len(b) {
		r.t.Fatalf("consumed %d of %d", n, len(b))
	}
	if n < len(b) && !r.s.stop {
		r.t.Fatalf("consumed %d of %d without giving up", n, len(b))
	}
	r.flush()
	return act
}

// replies decodes what was written.
func (r *rig) replies(crc bool, codec wire.Codec) []*reply {
	r.t.Helper()
	p := &peer{t: r.t, crc: crc, codec: codec}
	var all []*reply
	for r.out.Len() > 0 {
		head := r.out.Next(wire.HeaderBytes)
		if len(head) < wire.HeaderBytes {
			r.t.Fatalf("output ends within a header")
		}
		head = append([]byte(nil), head...)
		a, err := p.body(head, &r.out)
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
