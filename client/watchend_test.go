package client

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"kvstore/wire"
)

func reviewServer(t *testing.T, onWatch func(n int, c *fakeConn, r *wire.Request) fault) *fakeServer {
	s := newFake(t, nil)
	s.mu.Lock()
	s.ack.Features |= wire.FeatureWatch
	s.mu.Unlock()
	n := 0
	s.on(func(c *fakeConn, r *wire.Request) fault {
		switch r.Op {
		case wire.OpWatch:
			s.hook.Lock()
			defer s.hook.Unlock()
			n++
			return onWatch(n, c, r)
		case wire.OpCancel:
			q := wire.Request{Op: wire.OpWatch, ID: binary.LittleEndian.Uint32(r.Payload)}
			c.append(&q, wire.StatusCancelled, false, nil, nil)
			return fault{ignore: true}
		case wire.OpCredit:
			return fault{ignore: true}
		}
		return fault{}
	})
	return s
}

var moreFlags = wire.FlagResponse | wire.FlagCRC | wire.FlagMore

func greet(c *fakeConn, r *wire.Request, rev wire.Revision) {
	ext := wire.AppendExtU32(wire.AppendExt(nil, wire.ExtHistory, fakeHistory[:]), wire.ExtNamespaceID, 1)
	c.mu.Lock()
	c.out = wire.AppendFrame(c.out, wire.Header{Op: r.Op, Flags: moreFlags, ID: r.ID}, ext, nil, wire.AppendEventBatchHeader(nil, rev, 0))
	c.mu.Unlock()
	c.flush()
}

// Goal: a stream that ends with OK after it began is a protocol violation, not a closed watch.
func TestWatch_StreamEndsWithOK_IsAProtocolViolation(t *testing.T) {
	s := reviewServer(t, func(n int, c *fakeConn, r *wire.Request) fault {
		greet(c, r, 5)
		c.append(r, wire.StatusOK, false, nil, nil)
		c.flush()
		return fault{ignore: true}
	})
	c := open(t, []*fakeServer{s})
	w, err := c.Watch(context.Background(), WatchOptions{After: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(context.Background()); !errors.Is(err, ErrProtocol) {
		t.Fatalf("%v", err)
	}
}

// Goal: while a watch looks for a server, the end of Next's context is what Next tells, and the watch lives on.
func TestWatch_ContextEndsWhileServersRefuse_ErrorMatchesIt(t *testing.T) {
	s := reviewServer(t, func(n int, c *fakeConn, r *wire.Request) fault {
		if n == 1 {
			greet(c, r, 5)
			return fault{cutBefore: true}
		}
		return fault{status: wire.StatusBusy, ext: wire.AppendExt(nil, wire.ExtRetryAfter, le32(60000))}
	})
	c := open(t, []*fakeServer{s})
	w, err := c.Watch(context.Background(), WatchOptions{After: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
}

// Goal: a server that begins watches and ends each at once, asking for a pause, is not asked without one.
func TestWatch_StreamsEndAtOnce_IsNoSpin(t *testing.T) {
	asked := 0
	s := reviewServer(t, func(n int, c *fakeConn, r *wire.Request) fault {
		asked = n
		greet(c, r, 5)
		c.append(r, wire.StatusRetryLater, false, wire.AppendExt(nil, wire.ExtRetryAfter, le32(60000)), nil)
		c.flush()
		return fault{ignore: true}
	})
	c := open(t, []*fakeServer{s})
	w, err := c.Watch(context.Background(), WatchOptions{After: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, err = w.Next(ctx)
	s.quiet()
	s.hook.Lock()
	defer s.hook.Unlock()
	t.Logf("%d watches asked for in half a second: %v", asked, err)
	if asked > 3 {
		t.Fatalf("asked %d times", asked)
	}
}

// Goal: with several connections to a node, each node is asked before COMPACTED is told.
func TestWatch_CompactedWithManyConnections_EveryNodeIsAsked(t *testing.T) {
	for range 5 {
		f := newFakeFeed(t, 20)
		c := open(t, f.servers(3), WithConns(4))
		late := f.events[15].Revision
		f.mu.Lock()
		f.floor = []wire.Revision{late, late, 0}
		f.mu.Unlock()
		w, err := c.Watch(context.Background(), WatchOptions{After: Version(f.events[3].Revision)})
		if err != nil {
			f.mu.Lock()
			t.Errorf("%v; watches begun at each: %v", err, f.begun)
			f.mu.Unlock()
			continue
		}
		f.follow(w, 4, 16)
		w.Close()
	}
}

// Goal: a server that greets with another history than the one that is watched is not believed.
func TestWatch_ResumesInAnotherHistory_IsFoundOut(t *testing.T) {
	s := reviewServer(t, func(n int, c *fakeConn, r *wire.Request) fault {
		if n == 1 {
			greet(c, r, 5)
			return fault{cutBefore: true}
		}
		ext := wire.AppendExtU32(wire.AppendExt(nil, wire.ExtHistory, make([]byte, 16)), wire.ExtNamespaceID, 1)
		c.mu.Lock()
		c.out = wire.AppendFrame(c.out, wire.Header{Op: r.Op, Flags: moreFlags, ID: r.ID}, ext, nil, wire.AppendEventBatchHeader(nil, 9, 0))
		c.mu.Unlock()
		c.flush()
		return fault{ignore: true}
	})
	c := open(t, []*fakeServer{s})
	w, err := c.Watch(context.Background(), WatchOptions{After: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, ErrCompacted) {
		t.Fatalf("%v, revision %d", err, w.Revision())
	}
}

// Goal: closing while Next asks other nodes for what one has compacted is ErrClosed, not ErrCompacted.
func TestWatch_ClosedWhileOtherNodesAreAsked_SaysClosed(t *testing.T) {
	hold, asked := make(chan struct{}), make(chan struct{}, 64)
	handler := func(n int, c *fakeConn, r *wire.Request) fault {
		select {
		case <-hold:
			asked <- struct{}{}
			return fault{ignore: true}
		default:
		}
		greet(c, r, 5)
		go func() { // ends with hold
			<-hold
			q := wire.Request{Op: r.Op, ID: r.ID}
			c.append(&q, wire.StatusCompacted, false, nil, nil)
			c.flush()
		}()
		return fault{ignore: true}
	}
	c := open(t, []*fakeServer{reviewServer(t, handler), reviewServer(t, handler)})
	w, err := c.Watch(context.Background(), WatchOptions{After: 5})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends with the watch
		_, err := w.Next(context.Background())
		done <- err
	}()
	time.Sleep(5 * time.Millisecond)
	close(hold)
	<-asked
	w.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("%v", err)
	}
}

// Goal: frames without payload, which cost no credit, do not pile up.
func TestStream_FramesWithoutPayload_AreRefused(t *testing.T) {
	s := newStream(1 << 10)
	for range 100_000 {
		if s.push(make([]byte, 64), nil, false) != nil {
			return
		}
	}
	t.Fatalf("%d frames wait", len(s.frames))
}

// Goal: a silent peer's connection is let go once the writes that hold it are answered, watches or not.
func TestWatch_SilentPeerComesBack_ConnectionIsLetGo(t *testing.T) {
	s := reviewServer(t, func(n int, c *fakeConn, r *wire.Request) fault {
		greet(c, r, 5)
		return fault{ignore: true}
	})
	gone := make(chan struct{}, 8)
	c := open(t, []*fakeServer{s}, quick, func(o *options) { o.deadAfter = time.Minute }, WithoutSession(), WithHooks(Hooks{OnDisconnect: func(string, error) { gone <- struct{}{} }}))
	w, err := c.Watch(context.Background(), WatchOptions{After: 5})
	if err != nil {
		t.Fatal(err)
	}
	s.freeze()
	done := make(chan error, 1)
	go func() { // ends with the put
		_, err := c.Put(context.Background(), "k", nil)
		done <- err
	}()
	cn := w.feed.cl.cn
	eventually(t, "the peer is suspected", func() bool { cn.mu.Lock(); defer cn.mu.Unlock(); return cn.suspected })
	s.thaw()
	if err := <-done; err != nil {
		t.Logf("put: %v", err)
	}
	w.Close()
	select {
	case <-gone:
	case <-time.After(3 * time.Second):
		cn.mu.Lock()
		t.Errorf("the connection lives on with %d unanswered", cn.inflight)
		cn.mu.Unlock()
	}
}

// Goal: a node that has as many watches as it may, or is too old for them, is not the last word.
func TestWatch_RefusedByOneNode_BeginsAtAnother(t *testing.T) {
	for _, st := range []wire.Status{wire.StatusTooMany, wire.StatusUnsupported} {
		refusing := func(n int, c *fakeConn, r *wire.Request) fault { return fault{status: st} }
		taking := func(n int, c *fakeConn, r *wire.Request) fault {
			greet(c, r, 5)
			return fault{ignore: true}
		}
		c := open(t, []*fakeServer{reviewServer(t, refusing), reviewServer(t, taking)})
		for range 4 { // whichever is asked first
			w, err := c.Watch(context.Background(), WatchOptions{After: 5})
			if err != nil {
				t.Fatalf("%v: %v", st, err)
			}
			w.Close()
		}
		c = open(t, []*fakeServer{reviewServer(t, refusing), reviewServer(t, refusing)})
		if _, err := c.Watch(context.Background(), WatchOptions{After: 5}); !errors.Is(err, kindOf(st)) {
			t.Errorf("%v of both: %v", st, err)
		}
	}
}
