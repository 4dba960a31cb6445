package test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// translator serves the binary protocol by a door. It belongs to a test, which waits for all that it does.
type translator struct {
	t    *testing.T
	d    door
	ctx  context.Context // ends with the test
	work sync.WaitGroup
}

// translate serves d on a port of loopback until the test ends.
func translate(t *testing.T, d door) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr := &translator{t: t, d: d, ctx: ctx}
	tr.work.Go(func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tr.work.Go(func() { tr.serve(c) }) // ends with ctx or the connection
		}
	})
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		tr.work.Wait()
	})
	return l.Addr().String()
}

// clientConn is a client's connection.
type clientConn struct {
	tr   *translator
	conn net.Conn
	ctx  context.Context

	mu sync.Mutex
	// Guarded by mu.
	calls map[uint32]*clientCall
}

// clientCall is a request under way.
type clientCall struct {
	cancel context.CancelFunc
	credit chan uint32 // what the client gives back
}

// creditsMax bounds the frames of credit that wait for a stream; a client gives credit back by halves of what it has.
const creditsMax = 1 << 10

func (tr *translator) serve(conn net.Conn) {
	ctx, cancel := context.WithCancel(tr.ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // which ends the reading
	defer stop()
	defer cancel()
	c := &clientConn{tr: tr, conn: conn, ctx: ctx, calls: make(map[uint32]*clientCall)}
	f := &framer{c: conn, r: bufio.NewReader(conn)}
	if err := c.greet(f); err != nil {
		return // the client tells
	}
	for {
		h, body, err := f.next()
		if err != nil {
			return
		}
		ext, key, payload, err := wire.SplitBody(&h, body)
		if err != nil {
			tr.t.Errorf("the client sends what is no frame: %v", err)
			return
		}
		switch h.Op {
		case wire.OpPing:
			c.answer(h, &wire.Response{Payload: payload})
		case wire.OpCancel:
			c.end(binary.LittleEndian.Uint32(payload))
		case wire.OpCredit:
			if id, n, ok := wire.DecodeCredit(payload); ok {
				c.give(id, n)
			}
		default:
			call := &clientCall{credit: make(chan uint32, creditsMax)}
			a := &asked{op: h.Op, timeout: patience, key: string(key), value: payload}
			if h.TimeOrTimeout != 0 {
				a.timeout = time.Duration(h.TimeOrTimeout) * time.Millisecond
			}
			if err := a.take(ext); err != nil {
				tr.t.Errorf("%s: %v", h.Op, err)
				return
			}
			var ctx context.Context
			ctx, call.cancel = context.WithCancel(c.ctx)
			c.mu.Lock()
			c.calls[h.ID] = call
			c.mu.Unlock()
			tr.work.Go(func() { // ends with ctx
				r := c.do(ctx, call, h, a)
				c.end(h.ID)
				c.answer(h, &r)
			})
		}
	}
}

// greet takes preface and HELLO, and offers watches and nothing else.
func (c *clientConn) greet(f *framer) error {
	var preface [wire.PrefaceBytes]byte
	if _, err := io.ReadFull(f.r, preface[:]); err != nil {
		return err
	}
	if _, _, err := f.next(); err != nil {
		return err
	}
	ack := wire.HelloAck{Features: wire.FeatureWatch, MaxFrame: wire.FrameBodyBytesMax, Inflight: wire.ConnInflightMax, InflightBytes: wire.ConnInflightBytesMax, NodeID: "door"}
	_, err := c.conn.Write(wire.AppendHelloAck(wire.AppendPreface(nil, wire.Version, 0), &ack))
	return err
}

// answer sends the last frame of an answer.
func (c *clientConn) answer(h wire.Header, r *wire.Response) {
	if len(r.Ext)+len(r.Payload) > wire.FrameBodyBytesMax {
		c.tr.t.Errorf("%s: an answer of %d bytes is more than the binary protocol gives", h.Op, len(r.Payload))
	}
	c.send(h, r)
}

func (c *clientConn) send(h wire.Header, r *wire.Response) {
	b := wire.AppendResponse(nil, wire.Token{ID: h.ID, Op: h.Op}, r, false, 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.conn.Write(b) // the client is gone, which its side tells
}

// end gives up a call, if it is still under way.
func (c *clientConn) end(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.calls[id]; call != nil {
		call.cancel()
		delete(c.calls, id)
	}
}

func (c *clientConn) give(id, n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.calls[id]; call != nil {
		select {
		case call.credit <- n:
		default:
			c.tr.t.Errorf("more than %d frames of credit wait", creditsMax)
		}
	}
}

// do executes a request through the door.
func (c *clientConn) do(ctx context.Context, call *clientCall, h wire.Header, a *asked) wire.Response {
	t, d := c.tr.t, c.tr.d
	broken := func(err error) wire.Response {
		t.Errorf("%s %.40q: %v", a.op, a.key, err)
		return errorAnswer(wire.StatusInternal, err.Error(), 0, nil)
	}
	if a.op != wire.OpWatch {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	switch a.op {
	case wire.OpGet, wire.OpExists, wire.OpPut, wire.OpDelete, wire.OpTouch, wire.OpIncrement:
		return d.single(ctx, a)
	case wire.OpMultiGet, wire.OpTxn, wire.OpBatch:
		flags, items, err := a.items()
		if err != nil {
			return broken(err)
		}
		if a.op == wire.OpBatch && flags&wire.GroupAtomic == 0 {
			for i := range items {
				if len(items[i].conditions) != 0 || items[i].op == wire.OpIncrement {
					return eachAlone(ctx, d, items)
				}
			}
		}
		return d.group(ctx, a, items)
	case wire.OpScan:
		var s wire.ScanRequest
		if ref := wire.DecodeScanRequest(a.value, &s); ref != nil {
			return broken(ref)
		}
		if s.Flags&wire.ScanStream != 0 {
			return errorAnswer(wire.StatusUnsupported, "listings come page by page", 0, nil)
		}
		return d.list(ctx, a, &s)
	case wire.OpWatch:
		var w wire.WatchRequest
		if ref := wire.DecodeWatchRequest(a.value, &w); ref != nil {
			return broken(ref)
		}
		credit := int64(w.Credit)
		return d.watch(ctx, a, &w, func(ext, payload []byte) error {
			for credit <= 0 {
				select {
				case n := <-call.credit:
					credit += int64(n)
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			credit -= int64(len(payload))
			c.send(h, &wire.Response{More: true, Ext: ext, Payload: payload})
			return nil
		})
	case wire.OpAdmin:
		return d.admin(ctx, a.value)
	case wire.OpSessionOpen:
		return errorAnswer(wire.StatusUnknownOp, "no sessions", 0, nil)
	}
	return broken(errors.New("not translated"))
}

// eachAlone executes the items of a batch one after the other.
func eachAlone(ctx context.Context, d door, items []asked) wire.Response {
	var rev wire.Revision
	results := make([]wire.Item, len(items))
	for i := range items {
		r := d.single(ctx, &items[i])
		if r.Status == wire.StatusNoNamespace {
			return r // which the batch as a whole has not
		}
		results[i] = wire.Item{Op: items[i].op, Status: r.Status, Value: r.Payload}
		if v, ok := wire.DecodeVersion(r.Payload); ok && rev == 0 && r.Status == wire.StatusOK {
			rev = v
		}
	}
	return groupResult(rev, results)
}
