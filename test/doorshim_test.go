package test

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"kvstore/netloop"
	"kvstore/wire"
)

// A door is looked at through the eyes of the Go client: a small server speaks the binary protocol to the client and
// calls the door for each request. What a door can't say, or says otherwise, fails a case that the binary protocol passes.

// translator executes requests of the binary protocol by another door. All slices of a request are its own.
type translator interface {
	// do executes r, which is neither a watch nor a streamed listing.
	do(ctx context.Context, r *wire.Request) wire.Response
	// watch executes a watch: push is called with the payload of each frame, and the elements beside it.
	watch(ctx context.Context, r *wire.Request, push func(ext, payload []byte)) wire.Response
}

// doorShim is the small server.
type doorShim struct {
	t    *testing.T
	door translator
	addr string
	ctx  context.Context

	mu sync.Mutex
	// Guarded by mu.
	running map[wire.Completer]map[uint32]*shimmed
	work    sync.WaitGroup
}

// shimmed is one request under way.
type shimmed struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu sync.Mutex
	// Guarded by mu.
	credit int64
	more   chan struct{} // a token: there is more credit
}

// pay waits until there is credit, and takes n bytes off it, of which the last may be more than there is.
func (x *shimmed) pay(n int) {
	for x.ctx.Err() == nil {
		x.mu.Lock()
		ok := x.credit > 0
		if ok {
			x.credit -= int64(n)
		}
		x.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-x.more:
		case <-x.ctx.Done():
		}
	}
}

// shim begins to translate on a port of its own, and gives its address.
func shim(t *testing.T, door translator) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &doorShim{t: t, door: door, addr: l.Addr().String(), ctx: ctx, running: make(map[wire.Completer]map[uint32]*shimmed)}
	server, err := netloop.Start(netloop.Options{Listener: l, Handler: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		s.work.Wait()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.addr
}

// Hello implements netloop.Handler: to the client this is a cluster of one node, without sessions.
func (s *doorShim) Hello(_ net.Addr, h *wire.Hello) (wire.HelloAck, any, *wire.Refusal) {
	return wire.HelloAck{
		Features: h.Features & wire.FeatureWatch, NodeID: "door", Version: "test", Term: 1,
		Members: []wire.MemberInfo{{ID: "door", Address: s.addr, Voter: true, Leader: true}},
	}, nil, nil
}

// Serve implements netloop.Handler.
func (s *doorShim) Serve(c wire.Completer, _ any, reqs []wire.Request) {
	for i := range reqs {
		r := reqs[i]
		body := bytes.Clone(r.Body)
		h := wire.Header{Op: r.Op, Flags: r.Flags, StatusOrGroup: r.Group, ID: r.ID, TimeOrTimeout: r.TimeoutMs, ExtLen: uint16(len(r.Ext)), KeyLen: uint16(len(r.Key))}
		token := r.Token()
		var own wire.Request
		if ref := wire.ParseRequest(&h, body, &own); ref != nil {
			panic("BUG: a request that the door let through: " + ref.Text)
		}
		ctx, cancel := context.WithTimeout(s.ctx, r.Timeout())
		if r.Op == wire.OpWatch {
			cancel()
			ctx, cancel = context.WithCancel(s.ctx)
		}
		x := &shimmed{ctx: ctx, cancel: cancel, credit: wire.StreamCreditDefault, more: make(chan struct{}, 1)}
		var q wire.WatchRequest
		if r.Op == wire.OpWatch && wire.DecodeWatchRequest(own.Payload, &q) == nil {
			x.credit = int64(q.Credit)
		}
		s.mu.Lock()
		if s.running[c] == nil {
			s.running[c] = make(map[uint32]*shimmed)
		}
		s.running[c][r.ID] = x
		s.mu.Unlock()
		s.work.Go(func() { // ends with the request
			defer cancel()
			resp := s.execute(x, c.(wire.Pusher), token, &own)
			s.mu.Lock()
			delete(s.running[c], token.ID)
			s.mu.Unlock()
			c.Complete(token, &resp)
		})
	}
}

func (s *doorShim) execute(x *shimmed, c wire.Pusher, token wire.Token, r *wire.Request) wire.Response {
	ctx := x.ctx
	push := func(ext, payload []byte) {
		x.pay(len(payload))
		for c.Push(token, &wire.Response{More: true, Ext: ext, Payload: payload}) == wire.PushFull && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	if r.Op == wire.OpWatch {
		return s.door.watch(ctx, r, push)
	}
	if r.Op != wire.OpScan {
		return s.door.do(ctx, r)
	}
	var q wire.ScanRequest
	if ref := wire.DecodeScanRequest(r.Payload, &q); ref != nil {
		panic("BUG: a listing that the door let through: " + ref.Text)
	}
	streamed := q.Flags&wire.ScanStream != 0
	q.Flags &^= wire.ScanStream
	// Page after page, where all of it was asked for.
	for {
		resp := s.door.do(ctx, again(r, wire.AppendScanRequest(nil, &q)))
		var page wire.ScanPage
		if !streamed || resp.Status != wire.StatusOK || wire.DecodeScanPage(resp.Payload, &page) != nil || len(page.Cursor) == 0 {
			return resp
		}
		push(resp.Ext, resp.Payload)
		q.Cursor = bytes.Clone(page.Cursor)
	}
}

// again gives r with another payload.
func again(r *wire.Request, payload []byte) *wire.Request {
	h := wire.Header{Op: r.Op, StatusOrGroup: r.Group, ID: r.ID, TimeOrTimeout: r.TimeoutMs, ExtLen: uint16(len(r.Ext)), KeyLen: uint16(len(r.Key))}
	var out wire.Request
	if ref := wire.ParseRequest(&h, append(append(bytes.Clone(r.Ext), r.Key...), payload...), &out); ref != nil {
		panic("BUG: a request that was let through before: " + ref.Text)
	}
	return &out
}

// Cancel implements netloop.Handler.
func (s *doorShim) Cancel(c wire.Completer, id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.running[c][id]; x != nil {
		x.cancel()
	}
}

// Gone implements netloop.Handler.
func (s *doorShim) Gone(c wire.Completer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.running[c] {
		x.cancel()
	}
	delete(s.running, c)
}

// Credit implements netloop.Handler.
func (s *doorShim) Credit(c wire.Completer, id, bytes uint32) {
	s.mu.Lock()
	x := s.running[c][id]
	s.mu.Unlock()
	if x == nil {
		return
	}
	x.mu.Lock()
	x.credit += int64(bytes)
	x.mu.Unlock()
	select {
	case x.more <- struct{}{}:
	default:
	}
}

// Writable implements netloop.Handler: Push is tried again after a pause.
func (s *doorShim) Writable(wire.Completer) {}

// statusByCode finds the status that a door told as KV-NNNN.
func statusByCode(code string) wire.Status {
	for _, info := range wire.Statuses() {
		if info.Code == code {
			return info.Status
		}
	}
	return wire.StatusInternal
}

// record rebuilds the elements of a record from what a door told of it.
type doorRecord struct {
	version                     uint64
	created, updated, expires   time.Time
	sum                         uint64
	contentType, encoding, name string
	tags                        map[string]string
}

func (d *doorRecord) ext() []byte {
	m := wire.Meta{Version: d.version, CreatedAt: d.created.UnixMicro(), UpdatedAt: d.updated.UnixMicro(), Checksum: d.sum}
	if !d.expires.IsZero() {
		m.ExpiresAt = d.expires.UnixMicro()
	}
	ext := wire.AppendExtMeta(nil, &m)
	for _, name := range sorted(d.tags) {
		ext = wire.AppendExtTag(ext, name, d.tags[name])
	}
	if d.contentType != "" {
		ext = wire.AppendExtString(ext, wire.ExtContentType, d.contentType)
	}
	if d.encoding != "" {
		ext = wire.AppendExtString(ext, wire.ExtEncoding, d.encoding)
	}
	return ext
}

// asked is what the elements of a request, or of one operation of a group, say.
type asked struct {
	namespace             string
	stale                 bool
	maxAgeMs, at, atLeast uint64
	ttlMs                 uint64
	tags                  map[string]string
	contentType, encoding string
	sum                   *uint64
	compress              *wire.Codec
	conditions            []wire.Condition
	history               []byte
	namespaceID           uint32
}

func readExt(ext []byte) (a asked) {
	a.tags = make(map[string]string)
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			panic("BUG: elements that were let through: " + err.Error())
		}
		ext = rest
		u64 := func() uint64 { return le.Uint64(v) }
		switch t {
		case wire.ExtNamespace:
			a.namespace = string(v)
		case wire.ExtConsistency:
			a.stale = v[0] == wire.ConsistencyStale
		case wire.ExtMaxAge:
			a.maxAgeMs = u64()
		case wire.ExtAtRevision:
			a.at = u64()
		case wire.ExtMinRevision:
			a.atLeast = u64()
		case wire.ExtTTL:
			a.ttlMs = u64()
		case wire.ExtTag:
			name, value, err := wire.SplitTag(v)
			if err != nil {
				panic("BUG: a tag that was let through: " + err.Error())
			}
			a.tags[string(name)] = string(value)
		case wire.ExtContentType:
			a.contentType = string(v)
		case wire.ExtEncoding:
			a.encoding = string(v)
		case wire.ExtChecksum:
			sum := u64()
			a.sum = &sum
		case wire.ExtCompress:
			c := wire.Codec(v[0])
			a.compress = &c
		case wire.ExtCondition:
			c, err := wire.DecodeCondition(v)
			if err != nil {
				panic("BUG: a condition that was let through: " + err.Error())
			}
			a.conditions = append(a.conditions, c)
		case wire.ExtHistory:
			a.history = v
		case wire.ExtNamespaceID:
			a.namespaceID = le.Uint32(v)
		default:
			panic("element " + strconv.Itoa(int(t)) + " is none that a door knows")
		}
	}
	return a
}

// versions gives the operand of a condition on versions.
func versionsOf(c wire.Condition) (all []uint64) {
	for b := c.Operand; len(b) >= 8; b = b[8:] {
		all = append(all, le.Uint64(b))
	}
	return all
}

// eachOperation walks the operations of a group.
func eachOperation(r *wire.Request, do func(it *wire.Item)) {
	_, n, b, err := wire.DecodeGroup(r.Payload)
	var it wire.Item
	for range n {
		if err == nil {
			b, err = wire.NextItem(b, &it)
		}
		if err != nil {
			panic("BUG: a group that was let through: " + err.Error())
		}
		do(&it)
	}
}
