package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"kvstore/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fault is what a fake server does to one request besides serving it.
type fault struct {
	cutBefore bool // close the connection, execute nothing
	cutAfter  bool // execute, then close without an answer
	half      bool // execute, send half of the answer, close
	drop      bool // execute, never answer
	ignore    bool // execute nothing, never answer
	twice     bool // answer twice
	corrupt   bool // execute, answer with a wrong byte

	// Answer with status, ext and text; execute only with exec.
	status wire.Status
	ext    []byte
	text   string
	exec   bool

	// Execute; answer when hold is closed.
	hold <-chan struct{}

	// tail stands behind the elements of an answer to what was executed.
	tail []byte
}

// fakeStore is the state that fake servers share: records, and sessions with their results.
type fakeStore struct {
	mu       sync.Mutex
	rev      wire.Revision
	recs     map[string]*fakeRec
	sessions map[uint64]*fakeSession
	nextID   uint64
	opened   int
	closed   int
	cancels  int
	replays  int
	applied  map[string]int // executions of put per key; nil: not counted
	ttl      time.Duration
	// truncate replays results of batches as status and revision only.
	truncate bool
}

type fakeRec struct {
	meta  wire.Meta
	kept  []byte
	value []byte
}

type fakeResult struct {
	seq     uint64
	status  wire.Status
	payload []byte
	room    [wire.VersionBytes]byte // a slot's first payload, so that a put allocates nothing
}

type fakeSession struct {
	floor   uint64
	top     uint64
	results [wire.SessionWindow]fakeResult
}

func newFakeStore() *fakeStore {
	return &fakeStore{recs: map[string]*fakeRec{}, sessions: map[uint64]*fakeSession{}, ttl: wire.SessionTTL}
}

// fakeServer speaks wire on a real socket.
type fakeServer struct {
	t     testing.TB
	ln    net.Listener
	store *fakeStore
	ack   wire.HelloAck
	// hello, when not OK, refuses HELLO.
	hello wire.Status

	// Guarded by mu.
	mu     sync.Mutex
	conns  map[*fakeConn]struct{}
	dead   bool
	onReq  func(*fakeConn, *wire.Request) fault
	accept func() bool   // false: close at once
	frozen chan struct{} // not nil: nothing is read or answered until it is closed

	hook    sync.Mutex // held while a function given to onOp runs
	reqs    atomic.Int64
	hooked  atomic.Bool
	helloes atomic.Int64
	wg      sync.WaitGroup
}

type fakeConn struct {
	s     *fakeServer
	nc    net.Conn
	codec wire.Codec
	buf   []byte
	raw   []byte
	ext   []byte
	pay   []byte
	req   wire.Request

	mu  sync.Mutex
	out []byte
}

func newFake(t testing.TB, store *fakeStore) *fakeServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveFake(t, ln, store)
}

func serveFake(t testing.TB, ln net.Listener, store *fakeStore) *fakeServer {
	if store == nil {
		store = newFakeStore()
	}
	s := &fakeServer{t: t, ln: ln, store: store, conns: map[*fakeConn]struct{}{}}
	s.ack = wire.HelloAck{
		Features: wire.FeatureCRC | wire.FeatureSessions, MaxFrame: wire.FrameBodyBytesMax,
		Inflight: wire.ConnInflightMax, InflightBytes: wire.ConnInflightBytesMax,
		ClusterID: [16]byte{1, 2, 3}, NodeID: ln.Addr().String(), Version: "test", SessionTTLMs: uint64(wire.SessionTTL / time.Millisecond),
	}
	s.wg.Add(1)
	go s.listen()
	t.Cleanup(s.stop)
	return s
}

func (s *fakeServer) addr() string { return s.ln.Addr().String() }

func (s *fakeServer) on(f func(*fakeConn, *wire.Request) fault) {
	s.mu.Lock()
	s.onReq = f
	s.mu.Unlock()
	s.hooked.Store(f != nil)
}

// onOp runs f for requests of one operation, one at a time; f gets their number from 1.
func (s *fakeServer) onOp(op wire.Opcode, f func(n int, r *wire.Request) fault) {
	n := 0
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op != op {
			return fault{}
		}
		s.hook.Lock()
		defer s.hook.Unlock()
		n++
		return f(n, r)
	})
}

// quiet makes what functions given to onOp wrote visible to the caller.
func (s *fakeServer) quiet() {
	s.hook.Lock()
	//lint:ignore SA2001 the order is all that is wanted
	s.hook.Unlock()
}

func (s *fakeServer) stop() {
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	_ = s.ln.Close()
	s.cutAll()
	s.thaw()
	s.wg.Wait()
}

// freeze makes the server silent, as a stopped process or a cut line is: connections stay, also new ones are
// taken by the kernel, and nothing answers.
func (s *fakeServer) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen == nil {
		s.frozen = make(chan struct{})
	}
}

// thaw ends freeze; what has arrived meanwhile is served now.
func (s *fakeServer) thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen != nil {
		close(s.frozen)
		s.frozen = nil
	}
}

func (s *fakeServer) awake() {
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
}

func (s *fakeServer) cutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.nc.Close()
	}
}

func (s *fakeServer) each(f func(*fakeConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		f(c)
	}
}

func (s *fakeServer) listen() {
	defer s.wg.Done()
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.dead || s.accept != nil && !s.accept() {
			s.mu.Unlock()
			_ = nc.Close()
			continue
		}
		c := &fakeConn{s: s, nc: nc}
		s.conns[c] = struct{}{}
		s.wg.Add(1)
		s.mu.Unlock()
		go c.serve()
	}
}

func (c *fakeConn) serve() {
	defer c.s.wg.Done()
	defer func() {
		_ = c.nc.Close()
		c.s.mu.Lock()
		delete(c.s.conns, c)
		c.s.mu.Unlock()
	}()
	if err := c.greet(); err != nil {
		return
	}
	c.buf = make([]byte, 128<<10)
	n := 0
	for {
		m, err := c.nc.Read(c.buf[n:])
		n += m
		c.s.awake()
		used := 0
		for {
			var h wire.Header
			if wire.DecodeHeader(c.buf[used:n], &h) != nil {
				break
			}
			size := wire.HeaderBytes + int(h.BodyLen)
			if n-used < size {
				if size > len(c.buf) {
					grown := make([]byte, size)
					copy(grown, c.buf[used:n])
					c.buf, n, used = grown, n-used, 0
				}
				break
			}
			if e := wire.VerifyFrame(c.buf[used : used+size]); e != nil {
				c.s.t.Errorf("the client sent a broken frame: %v", e)
				return
			}
			if !c.request(&h, c.buf[used+wire.HeaderBytes:used+size]) {
				return
			}
			used += size
		}
		if !c.flush() || err != nil {
			return
		}
		n = copy(c.buf, c.buf[used:n])
	}
}

func (c *fakeConn) greet() error {
	p := make([]byte, wire.PrefaceBytes)
	if _, err := io.ReadFull(c.nc, p); err != nil {
		return err
	}
	if _, _, err := wire.DecodePreface(p); err != nil {
		return err
	}
	head := make([]byte, wire.HeaderBytes)
	if _, err := io.ReadFull(c.nc, head); err != nil {
		return err
	}
	var h wire.Header
	if err := wire.DecodeHeader(head, &h); err != nil {
		return err
	}
	body := make([]byte, h.BodyLen)
	if _, err := io.ReadFull(c.nc, body); err != nil {
		return err
	}
	if err := wire.VerifyParts(head, body); err != nil {
		return err
	}
	var hello wire.Hello
	if ref := wire.DecodeHello(body[:h.ExtLen], &hello); ref != nil {
		c.s.t.Errorf("HELLO is refused: %v", ref)
		return ref
	}
	c.s.awake()
	c.s.helloes.Add(1)
	out := wire.AppendPreface(nil, wire.Version, 0)
	if s := c.s.hello; s != wire.StatusOK {
		out = wire.AppendFrame(out, wire.Header{Op: wire.OpHello, Flags: wire.FlagResponse | wire.FlagCRC, StatusOrGroup: uint16(s)}, nil, nil, []byte("go away"))
		_, err := c.nc.Write(out)
		return errors.Join(errors.New("refused"), err)
	}
	c.s.mu.Lock()
	ack := c.s.ack
	c.s.mu.Unlock()
	ack.Codec = wire.ChooseCodec(hello.Codecs)
	ack.Features &= hello.Features
	c.codec = ack.Codec
	out = wire.AppendHelloAck(out, &ack)
	_, err := c.nc.Write(out)
	return err
}

// flush writes what has been answered.
func (c *fakeConn) flush() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) == 0 {
		return true
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err == nil
}

func (c *fakeConn) append(r *wire.Request, st wire.Status, replayed bool, ext, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := wire.FlagResponse | wire.FlagCRC
	if replayed {
		f |= wire.FlagReplayed
	}
	h := wire.Header{Op: r.Op, Flags: f, StatusOrGroup: uint16(st), ID: r.ID}
	if c.codec != wire.CodecNone && len(ext)+len(payload) >= wire.CompressBytesMin {
		body := append(append([]byte(nil), ext...), payload...)
		if packed, ok := wire.AppendCompressed(nil, c.codec, body); ok {
			h.Flags |= wire.FlagCompressed
			h.ExtLen = uint16(len(ext))
			var off int
			c.out, off = wire.BeginFrame(c.out)
			c.out = append(c.out, packed...)
			c.out = wire.FinishFrame(c.out, off, h)
			return
		}
	}
	c.out = wire.AppendFrame(c.out, h, ext, nil, payload)
}

// send writes a frame of the connection itself at once.
func (c *fakeConn) send(h wire.Header, payload []byte) {
	c.mu.Lock()
	c.out = wire.AppendFrame(c.out, h, nil, nil, payload)
	c.mu.Unlock()
	c.flush()
}

func (c *fakeConn) request(h *wire.Header, body []byte) bool {
	if h.Flags&wire.FlagCompressed != 0 {
		raw, err := wire.Decompress(c.raw[:0], c.codec, body, wire.FrameBodyBytesMax)
		if err != nil {
			c.s.t.Errorf("the client sent a broken compressed frame: %v", err)
			return false
		}
		c.raw, body = raw, raw
	}
	r := &c.req
	if ref := wire.ParseRequest(h, body, r); ref != nil {
		c.append(r, ref.Status, false, nil, []byte(ref.Text))
		return true
	}
	if r.Op == wire.OpCancel {
		c.s.store.mu.Lock()
		c.s.store.cancels++
		c.s.store.mu.Unlock()
		if c.s.hooked.Load() {
			c.s.mu.Lock()
			f := c.s.onReq
			c.s.mu.Unlock()
			f(c, r)
		}
		return true
	}
	c.s.reqs.Add(1)
	if !c.s.hooked.Load() {
		st, replayed, ext, payload := c.s.store.exec(r, c)
		c.append(r, st, replayed, ext, payload)
		return true
	}
	c.s.mu.Lock()
	hook := c.s.onReq
	c.s.mu.Unlock()
	f := fault{}
	if hook != nil {
		f = hook(c, r)
	}
	if f.cutBefore {
		c.flush()
		return false
	}
	if f.ignore {
		return true
	}
	if f.status != wire.StatusOK {
		if f.exec {
			c.s.store.exec(r, c)
		}
		c.append(r, f.status, false, f.ext, []byte(f.text))
		return true
	}
	st, replayed, ext, payload := c.s.store.exec(r, c)
	if len(f.tail) > 0 {
		ext = append(slices.Clone(ext), f.tail...)
	}
	switch {
	case f.cutAfter:
		c.flush()
		return false
	case f.drop:
		return true
	case f.hold != nil:
		ext, payload := slices.Clone(ext), slices.Clone(payload)
		r := wire.Request{Op: r.Op, ID: r.ID}
		c.s.wg.Add(1)
		go func() {
			defer c.s.wg.Done()
			<-f.hold
			c.append(&r, st, replayed, ext, payload)
			c.flush()
		}()
		return true
	}
	c.mu.Lock()
	at := len(c.out)
	c.mu.Unlock()
	c.append(r, st, replayed, ext, payload)
	if f.twice {
		c.append(r, st, replayed, ext, payload)
	}
	// A held answer may have been written, and this one with it, meanwhile.
	c.mu.Lock()
	if f.corrupt && len(c.out) > 0 {
		c.out[len(c.out)-1] ^= 1
	}
	if f.half && len(c.out) > at {
		c.out = c.out[:at+(len(c.out)-at)/2]
	}
	c.mu.Unlock()
	if f.half {
		c.flush()
		return false
	}
	return true
}

// exec serves a request; the slices are scratch space of c.
func (st *fakeStore) exec(r *wire.Request, c *fakeConn) (s wire.Status, replayed bool, ext, payload []byte) {
	st.mu.Lock()
	defer st.mu.Unlock()
	var ses *fakeSession
	if r.Op.IsWrite() && r.Session != 0 && r.Op != wire.OpSessionClose {
		ses = st.sessions[r.Session]
		if ses == nil {
			return wire.StatusSessionExpired, false, nil, nil
		}
		if r.Seq <= ses.floor {
			return wire.StatusSessionStale, false, nil, nil
		}
		ses.floor = max(ses.floor, r.Floor)
		if r.Seq > ses.floor+wire.SessionWindow {
			return wire.StatusSessionStale, false, nil, nil
		}
		ses.top = max(ses.top, r.Seq)
		if k := &ses.results[r.Seq%wire.SessionWindow]; k.seq == r.Seq {
			st.replays++
			c.pay = append(c.pay[:0], k.payload...)
			return k.status, true, nil, c.pay
		}
	}
	s, ext, payload = st.run(r, c)
	if ses != nil && s.Class() == wire.ClassResult {
		k := &ses.results[r.Seq%wire.SessionWindow]
		k.seq, k.status = r.Seq, s
		if k.payload == nil {
			k.payload = k.room[:0]
		}
		k.payload = append(k.payload[:0], payload...)
		if st.truncate && (r.Op == wire.OpBatch || r.Op == wire.OpTxn) {
			k.payload = wire.AppendVersion(k.payload[:0], st.rev)
		}
	}
	return s, false, ext, payload
}

func (st *fakeStore) run(r *wire.Request, c *fakeConn) (s wire.Status, ext, payload []byte) {
	switch r.Op {
	case wire.OpGet, wire.OpExists:
		rec := st.recs[string(r.Key)]
		if rec == nil {
			return wire.StatusNotFound, nil, nil
		}
		c.ext = append(wire.AppendExtMeta(c.ext[:0], &rec.meta), rec.kept...)
		if r.Op == wire.OpExists {
			return wire.StatusOK, c.ext, nil
		}
		c.pay = append(c.pay[:0], rec.value...)
		return wire.StatusOK, c.ext, c.pay
	case wire.OpPut, wire.OpDelete:
		if f := st.failed(nil, 0, r.Key, r.Ext); len(f) > 0 {
			return wire.StatusConditionFailed, nil, wire.AppendFailed(nil, f)
		}
		rev, found := st.mutate(r.Op, r.Key, r.Ext, r.Payload)
		c.pay = wire.AppendVersion(c.pay[:0], rev)
		if !found {
			return wire.StatusNotFound, nil, nil
		}
		return wire.StatusOK, nil, c.pay
	case wire.OpBatch, wire.OpTxn:
		return st.group(r)
	case wire.OpMultiGet:
		_, n, items, _ := wire.DecodeGroup(r.Payload)
		out := wire.AppendResultHeader(nil, st.rev, n)
		var it wire.Item
		for range n {
			items, _ = wire.NextItem(items, &it)
			res := wire.Item{Op: wire.OpGet, Status: wire.StatusNotFound}
			if rec := st.recs[string(it.Key)]; rec != nil {
				res = wire.Item{Op: wire.OpGet, Ext: append(wire.AppendExtMeta(nil, &rec.meta), rec.kept...), Value: rec.value}
				if len(out)+len(rec.value) > wire.FrameBodyBytesMax-64<<10 {
					res = wire.Item{Op: wire.OpGet, Status: wire.StatusReplyFull}
				}
			}
			out = wire.AppendItem(out, &res)
		}
		return wire.StatusOK, nil, out
	case wire.OpScan:
		return wire.StatusOK, nil, st.scan(r.Payload)
	case wire.OpStatus:
		return wire.StatusOK, nil, []byte(`{"node_id":"fake"}`)
	case wire.OpSessionOpen:
		st.nextID++
		st.opened++
		st.sessions[st.nextID] = &fakeSession{}
		return wire.StatusOK, nil, wire.AppendSessionGrant(nil, wire.SessionGrant{Session: st.nextID, TTLMs: uint64(st.ttl / time.Millisecond)})
	case wire.OpSessionClose:
		delete(st.sessions, r.Session)
		st.closed++
		return wire.StatusOK, nil, nil
	case wire.OpPing, wire.OpAdmin:
		return wire.StatusOK, nil, r.Payload
	}
	return wire.StatusUnknownOp, nil, nil
}

func (st *fakeStore) failed(f []wire.FailedCondition, op int, key, ext []byte) []wire.FailedCondition {
	rec := st.recs[string(key)]
	for i := 0; ; i++ {
		cond, rest, ok := wire.NextCondition(ext)
		if !ok {
			return f
		}
		ext = rest
		hold := false
		switch cond.Kind {
		case wire.ConditionAbsent:
			hold = rec == nil
		case wire.ConditionExists:
			hold = rec != nil
		case wire.ConditionVersion:
			hold = rec != nil && cond.HasVersion(rec.meta.Version)
		case wire.ConditionValue:
			hold = rec != nil && bytes.Equal(rec.value, cond.Operand)
		}
		if !hold {
			f = append(f, wire.FailedCondition{Operation: uint32(op), Condition: uint32(i)})
		}
	}
}

func (st *fakeStore) mutate(op wire.Opcode, key, ext, value []byte) (rev wire.Revision, found bool) {
	rec := st.recs[string(key)]
	if op == wire.OpDelete {
		if rec == nil {
			return 0, false
		}
		st.rev++
		delete(st.recs, string(key))
		return st.rev, true
	}
	st.rev++
	if rec == nil {
		rec = &fakeRec{meta: wire.Meta{CreatedAt: int64(st.rev)}}
		st.recs[string(key)] = rec
	}
	if st.applied != nil {
		st.applied[string(key)]++
	}
	rec.value = append(rec.value[:0], value...)
	rec.kept = wire.AppendKept(rec.kept[:0], ext)
	rec.meta.Version, rec.meta.UpdatedAt, rec.meta.Checksum = st.rev, int64(st.rev), wire.Checksum(value)
	var m wire.Mutation
	rec.meta.ExpiresAt = 0
	if wire.DecodeMutation(op, ext, &m) == nil && m.TTLMs > 0 {
		rec.meta.ExpiresAt = int64(m.TTLMs) * 1000
	}
	return st.rev, true
}

func (st *fakeStore) group(r *wire.Request) (wire.Status, []byte, []byte) {
	flags, n, items, _ := wire.DecodeGroup(r.Payload)
	its := make([]wire.Item, n)
	for i := range its {
		items, _ = wire.NextItem(items, &its[i])
	}
	if r.Op == wire.OpTxn || flags&wire.GroupAtomic != 0 {
		var f []wire.FailedCondition
		for i := range its {
			f = st.failed(f, i, its[i].Key, its[i].Ext)
		}
		if len(f) > 0 {
			return wire.StatusConditionFailed, nil, wire.AppendFailed(nil, f)
		}
	}
	var res []byte
	for i := range its {
		it := &its[i]
		out := wire.Item{Op: it.Op}
		switch it.Op {
		case wire.OpGet:
			if rec := st.recs[string(it.Key)]; rec == nil {
				out.Status = wire.StatusNotFound
			} else {
				out.Ext, out.Value = append(wire.AppendExtMeta(nil, &rec.meta), rec.kept...), rec.value
			}
		case wire.OpCheck:
		default:
			if len(st.failed(nil, i, it.Key, it.Ext)) > 0 {
				out.Status = wire.StatusConditionFailed
			} else if rev, found := st.mutate(it.Op, it.Key, it.Ext, it.Value); found {
				out.Value = wire.AppendVersion(nil, rev)
			} else {
				out.Status = wire.StatusNotFound
			}
		}
		res = wire.AppendItem(res, &out)
	}
	return wire.StatusOK, nil, append(wire.AppendResultHeader(nil, st.rev, n), res...)
}

func (st *fakeStore) scan(payload []byte) []byte {
	var q wire.ScanRequest
	if ref := wire.DecodeScanRequest(payload, &q); ref != nil {
		panic(ref)
	}
	var keys []string
	for k := range st.recs {
		if len(k) >= len(q.Prefix) && k[:len(q.Prefix)] == string(q.Prefix) && k >= string(q.Start) && (len(q.End) == 0 || k < string(q.End)) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	if q.Flags&wire.ScanReverse != 0 {
		slices.Reverse(keys)
	}
	if len(q.Cursor) > 0 {
		i := slices.Index(keys, string(q.Cursor))
		keys = keys[i+1:]
	}
	var cursor []byte
	if len(keys) > int(q.Limit) {
		keys = keys[:q.Limit]
		cursor = []byte(keys[len(keys)-1])
	}
	out := make([]byte, wire.ScanPageHeaderBytes)
	wire.PutScanPageHeader(out, st.rev, len(keys), len(cursor))
	for _, k := range keys {
		rec := st.recs[k]
		it := wire.Item{Op: wire.OpGet, Ext: append(wire.AppendExtMeta(nil, &rec.meta), rec.kept...), Key: []byte(k)}
		if q.Flags&wire.ScanKeysOnly == 0 {
			it.Value = rec.value
		}
		out = wire.AppendItem(out, &it)
	}
	return append(out, cursor...)
}

func (st *fakeStore) value(key string) (string, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	rec := st.recs[key]
	if rec == nil {
		return "", false
	}
	return string(rec.value), true
}

func (st *fakeStore) count(f func(*fakeStore) int) int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return f(st)
}

// open opens a client on the servers and closes it with the test.
func open(t testing.TB, servers []*fakeServer, opts ...Option) *Client {
	t.Helper()
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.addr())
	}
	c, err := Open(context.Background(), addrs, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// fake opens one server and a client on it.
func fake(t testing.TB, opts ...Option) (*fakeServer, *Client) {
	t.Helper()
	s := newFake(t, nil)
	return s, open(t, []*fakeServer{s}, opts...)
}

func withLimits(f func(*options)) Option { return func(o *options) { f(o) } }

var allSentinels = map[string]error{
	"ErrNotApplied": ErrNotApplied, "ErrMaybeApplied": ErrMaybeApplied, "ErrNotFound": ErrNotFound, "ErrConditionFailed": ErrConditionFailed,
	"ErrTooLarge": ErrTooLarge, "ErrBadKey": ErrBadKey, "ErrBadRequest": ErrBadRequest, "ErrUnsupported": ErrUnsupported,
	"ErrCompacted": ErrCompacted, "ErrFutureRevision": ErrFutureRevision, "ErrChecksum": ErrChecksum, "ErrDamaged": ErrDamaged,
	"ErrNoNamespace": ErrNoNamespace, "ErrDenied": ErrDenied, "ErrUnauthenticated": ErrUnauthenticated, "ErrUnavailable": ErrUnavailable,
	"ErrBusy": ErrBusy, "ErrDiskFull": ErrDiskFull, "ErrTooManySessions": ErrTooManySessions, "ErrTimeout": ErrTimeout, "ErrClosed": ErrClosed,
	"ErrProtocol": ErrProtocol, "ErrInternal": ErrInternal,
	"ErrQuota": ErrQuota, "ErrTooMany": ErrTooMany, "ErrNamespaceExists": ErrNamespaceExists, "ErrNotANumber": ErrNotANumber, "ErrLimited": ErrLimited,
}

// matches checks that err matches exactly the given sentinels.
func matches(t testing.TB, err error, want ...error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for name, s := range allSentinels {
		if got := errors.Is(err, s); got != slices.Contains(want, s) {
			t.Errorf("errors.Is(%v, %s) = %v", err, name, got)
		}
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%v is no *Error", err)
	}
}

func mustPut(t testing.TB, c *Client, key, value string, opts ...PutOption) Version {
	t.Helper()
	v, err := c.Put(context.Background(), key, []byte(value), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func le32(ms uint32) []byte { return binary.LittleEndian.AppendUint32(nil, ms) }

// eventually waits for something that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never happened: " + what)
		}
	}
}
