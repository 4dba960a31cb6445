package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

func TestCancel_WhileUnderWay_ReturnsAtOnceWithItsOutcome(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	started := make(chan struct{}, 1)
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op == wire.OpPut || r.Op == wire.OpGet {
			started <- struct{}{}
			return fault{ignore: true}
		}
		return fault{}
	})
	ctx, cancel := context.WithCancel(bg)
	go func() { <-started; cancel() }()
	_, err := c.Put(ctx, "k", nil)
	matches(t, err, ErrMaybeApplied)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(bg)
	go func() { <-started; cancel() }()
	_, err = c.Get(ctx, "k")
	matches(t, err)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ctx, cancel = context.WithTimeout(bg, 20*time.Millisecond)
	defer cancel()
	_, err = c.Get(ctx, "k")
	matches(t, err, ErrTimeout)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	eventually(t, "three CANCEL frames", func() bool { return s.store.count(func(st *fakeStore) int { return st.cancels }) == 3 })
}

func TestTimeout_NoDeadlineInContext_ClientsOwnApplies(t *testing.T) {
	s, c := fake(t, WithTimeout(60*time.Millisecond))
	mustPut(t, c, "k", "v")
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op != wire.OpPut && r.Op != wire.OpGet {
			return fault{}
		}
		if r.TimeoutMs == 0 || r.TimeoutMs > 60 {
			t.Errorf("deadline of %d ms", r.TimeoutMs)
		}
		return fault{ignore: true}
	})
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrMaybeApplied)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_, err = c.Get(bg, "k")
	matches(t, err, ErrTimeout)
	var wg sync.WaitGroup
	wg.Add(2)
	c.PutAsync("k", nil, func(_ Version, err error) { matches(t, err, ErrMaybeApplied); wg.Done() })
	c.GetAsync("k", func(_ Value, err error) { matches(t, err, ErrTimeout); wg.Done() })
	wg.Wait()
}

// The server works on a cancelled request and counts it: its place is free only with the final answer.
func TestZombie_HoldsItsSlotUntilTheFinalAnswer(t *testing.T) {
	s, c := fake(t, WithMaxInflight(1))
	mustPut(t, c, "k", "v")
	started, release := make(chan struct{}), make(chan struct{})
	s.onOp(wire.OpGet, func(n int, r *wire.Request) fault {
		if n == 1 {
			close(started)
			return fault{hold: release}
		}
		return fault{}
	})
	ctx, cancel := context.WithCancel(bg)
	go func() { <-started; cancel() }()
	if _, err := c.Get(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(bg, 30*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, "k", nil)
	matches(t, err, ErrNotApplied, ErrTimeout) // it never got a slot
	done := make(chan error)
	go func() { _, err := c.Get(bg, "k"); done <- err }()
	select {
	case err := <-done:
		t.Fatal("got the zombie's slot:", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// An answer that comes once more when its slot already serves another request falls on nothing.
func TestRepeatedAnswer_SlotUsedAgain_IsIgnored(t *testing.T) {
	s, c := fake(t, WithMaxInflight(1))
	mustPut(t, c, "a", "value of a")
	mustPut(t, c, "b", "value of b")
	var first uint32
	s.on(func(fc *fakeConn, r *wire.Request) fault {
		if first == 0 {
			first = r.ID
			return fault{}
		}
		stale := wire.Request{Op: wire.OpGet, ID: first}
		if first&(slotsMax-1) != r.ID&(slotsMax-1) || first == r.ID {
			t.Errorf("ids %#x and %#x", first, r.ID)
		}
		fc.append(&stale, wire.StatusOK, false, wire.AppendExtMeta(nil, &wire.Meta{Version: 1}), []byte("value of a"))
		fc.flush()
		return fault{}
	})
	for _, k := range []string{"a", "b"} {
		if v, err := c.Get(bg, k); err != nil || string(v.Data) != "value of "+k {
			t.Fatalf("%s = %q, %v", k, v.Data, err)
		}
	}
	s.on(nil)
}

func TestBackPressure_MaxInflight_IsNeverExceeded(t *testing.T) {
	s, c := fake(t, WithMaxInflight(5))
	var mu sync.Mutex
	under, most := 0, 0
	tick := make(chan struct{})
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op != wire.OpGet {
			return fault{}
		}
		mu.Lock()
		under++
		most = max(most, under)
		mu.Unlock()
		return fault{hold: tick}
	})
	go func() {
		for {
			mu.Lock()
			full := under == 5
			mu.Unlock()
			if full {
				break
			}
			time.Sleep(time.Millisecond)
		}
		s.on(nil)
		close(tick)
	}()
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := c.Get(bg, "k"); !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most != 5 {
		t.Fatalf("%d under way at once", most)
	}
}

func TestBackPressure_ServersCreditInBytes_IsKept(t *testing.T) {
	s := newFake(t, nil)
	s.ack.InflightBytes = 250_000
	c := open(t, []*fakeServer{s})
	mustPut(t, c, "k", "v")
	var mu sync.Mutex
	under, most := 0, 0
	release := make(chan struct{})
	s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
		mu.Lock()
		defer mu.Unlock()
		under += len(r.Body)
		most = max(most, under)
		return fault{hold: release}
	})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, err := c.Put(bg, fmt.Sprint(i), make([]byte, 100_000)); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "waiting puts", func() bool {
		_, cn := c.route.ready()
		cn.mu.Lock()
		defer cn.mu.Unlock()
		n := 0
		for w := cn.waiters.head; w != nil; w = w.next {
			n++
		}
		return n == 8
	})
	eventually(t, "two puts at the server", func() bool { mu.Lock(); defer mu.Unlock(); return under >= 200_000 })
	mu.Lock()
	if most > 250_000 {
		t.Errorf("%d bytes under way", most)
	}
	mu.Unlock()
	s.on(nil)
	close(release)
	wg.Wait()
}

// stuck opens a client on a server that says HELLO and then reads nothing until resume; what it reads then
// is parsed by frames.
type stuck struct {
	ln     net.Listener
	nc     net.Conn
	ready  chan struct{}
	resume chan struct{}
	frames chan []byte // whole frames; closed at the end
}

func newStuck(t *testing.T) *stuck {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stuck{ln: ln, ready: make(chan struct{}), resume: make(chan struct{}), frames: make(chan []byte, 1<<16)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(s.frames)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		if err := nc.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Error(err)
		}
		f := &fakeServer{t: t, ack: wire.HelloAck{Features: wire.FeatureCRC, MaxFrame: wire.FrameBodyBytesMax, NodeID: "stuck"}}
		if err := (&fakeConn{s: f, nc: nc}).greet(); err != nil {
			t.Error(err)
			return
		}
		s.nc = nc
		close(s.ready)
		<-s.resume
		for {
			head := make([]byte, wire.HeaderBytes)
			if _, err := io.ReadFull(nc, head); err != nil {
				return
			}
			frame := append(head, make([]byte, binary.LittleEndian.Uint32(head))...)
			if _, err := io.ReadFull(nc, frame[wire.HeaderBytes:]); err != nil {
				return
			}
			s.frames <- frame
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		select {
		case <-s.resume:
		default:
			close(s.resume)
		}
		<-done
		if s.nc != nil {
			_ = s.nc.Close()
		}
	})
	return s
}

func (s *stuck) open(t *testing.T, opts ...Option) *Client {
	t.Helper()
	c, err := Open(bg, []string{s.ln.Addr().String()}, append([]Option{WithoutSession()}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	<-s.ready
	return c
}

// The caller's slice is being written by writev when the context ends: the call returns although the
// socket is full, the caller overwrites the slice, and what the server finally reads is what was put.
func TestCancel_LargeValueBeingWritten_CallersBytesAreLeftAlone(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	s := newStuck(t)
	c := s.open(t)
	const callers = 4
	values := make([][]byte, callers)
	wants := make([][]byte, callers)
	var wg sync.WaitGroup
	for i := range callers {
		block := make([]byte, 4093) // prime: a shift by a chunk would show
		for j := range block {
			block[j] = byte(rnd.Uint32())
		}
		values[i] = bytes.Repeat(block, 1500)
		wants[i] = bytes.Clone(values[i])
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(bg, time.Duration(20+10*i)*time.Millisecond)
			defer cancel()
			_, err := c.Put(ctx, fmt.Sprint(i), values[i])
			if errors.Is(err, ErrNotApplied) {
				t.Error("it was queued by then:", err)
			}
			matches(t, err, ErrMaybeApplied)
			clear(values[i]) // the race detector watches this
		})
	}
	wg.Wait()
	close(s.resume)
	for range callers {
		frame := <-s.frames
		for frame[4] != byte(wire.OpPut) { // CANCEL, or PING on a slow day
			frame = <-s.frames
		}
		if err := wire.VerifyFrame(frame); err != nil {
			t.Fatal(err)
		}
		var h wire.Header
		if err := wire.DecodeHeader(frame, &h); err != nil {
			t.Fatal(err)
		}
		_, key, value, err := wire.SplitBody(&h, frame[wire.HeaderBytes:])
		if err != nil || !bytes.Equal(value, wants[key[0]-'0']) {
			t.Fatalf("%q: %d bytes differ from what was put, %v", key, len(value), err)
		}
	}
}

// The server refuses a large put from its header: the answer comes while the value is still being
// written.
func TestEarlyAnswer_LargeValueBeingWritten_CallersBytesAreLeftAlone(t *testing.T) {
	s := newStuck(t)
	c := s.open(t)
	value := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	want := bytes.Clone(value)
	done := make(chan error)
	go func() {
		_, err := c.Put(bg, "k", value)
		clear(value)
		done <- err
	}()
	_, cn := c.route.ready()
	var id uint32
	eventually(t, "the put is being written", func() bool {
		cn.mu.Lock()
		defer cn.mu.Unlock()
		if len(cn.slots) == 1 && cn.writing != nil {
			id = cn.slots[0].gen << slotBits
			return true
		}
		return false
	})
	b := wire.AppendFrame(nil, wire.Header{Op: wire.OpPut, Flags: wire.FlagResponse, StatusOrGroup: uint16(wire.StatusTooLarge), ID: id}, nil, nil, []byte("no"))
	if _, err := s.nc.Write(b); err != nil {
		t.Fatal(err)
	}
	matches(t, <-done, ErrTooLarge, ErrNotApplied)
	close(s.resume)
	frame := <-s.frames
	if err := wire.VerifyFrame(frame); err != nil || !bytes.HasSuffix(frame, want) {
		t.Fatal("the frame was damaged:", err)
	}
}

// A caller that happens to write for others never waits for the socket, and the shared buffer has a bound.
func TestBackPressure_ServerReadsNothing_CallersWaitAndCanLeave(t *testing.T) {
	s := newStuck(t)
	c := s.open(t, withLimits(func(o *options) { o.pingAfter, o.deadAfter = time.Hour, time.Hour }))
	ctx, cancel := context.WithCancel(bg)
	var mu sync.Mutex
	outcomes := map[string]int{}
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			_, err := c.Put(ctx, fmt.Sprint(i), make([]byte, 20_000))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrMaybeApplied):
				outcomes["maybe"]++
			case errors.Is(err, ErrNotApplied):
				outcomes["not"]++
			}
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	_, cn := c.route.ready()
	eventually(t, "callers wait for room", func() bool {
		cn.mu.Lock()
		defer cn.mu.Unlock()
		if len(cn.buf) > bufferBytesMax {
			t.Fatalf("%d bytes gathered", len(cn.buf))
		}
		return cn.waiters.head != nil && len(cn.buf) > bufferBytesMax/2
	})
	cancel()
	wg.Wait()
	if outcomes["maybe"] == 0 || outcomes["not"] == 0 || outcomes["maybe"]+outcomes["not"] != 3000 {
		t.Fatalf("%v", outcomes)
	}
}

// What was still in the client's buffer when the connection broke was surely not sent: even without a
// session it is sent again, over the next connection.
func TestCut_StillInTheBuffer_SentAgainWithoutSession(t *testing.T) {
	s := newFake(t, nil)
	s.store.applied = map[string]int{}
	c := open(t, []*fakeServer{s}, WithoutSession(), withLimits(func(o *options) { o.noRawWrite = true }))
	mustPut(t, c, "k", "v")
	_, cn := c.route.ready()
	// Hold the right to write, so that frames stay in the buffer.
	eventually(t, "the right to write is free", func() bool {
		cn.mu.Lock()
		defer cn.mu.Unlock()
		free := !cn.flushing
		cn.flushing = true
		return free
	})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { mustPut(t, c, fmt.Sprint(i), "w") })
	}
	eventually(t, "ten frames in the buffer", func() bool {
		cn.mu.Lock()
		defer cn.mu.Unlock()
		return cn.inflight == 10 && len(cn.buf) > 10*wire.HeaderBytes
	})
	s.cutAll()
	eventually(t, "the connection is lost", cn.gone.Load)
	cn.mu.Lock()
	cn.flushing = false
	cn.settled.Broadcast()
	cn.mu.Unlock()
	wg.Wait()
	for i := range 10 {
		if n := s.store.count(func(st *fakeStore) int { return st.applied[fmt.Sprint(i)] }); n != 1 {
			t.Errorf("%d was applied %d times", i, n)
		}
	}
}

func TestCancel_RacingWithAnswers_NothingIsMixedUp(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	_, c := fake(t, WithMaxInflight(16))
	for i := range 32 {
		mustPut(t, c, fmt.Sprint(i), fmt.Sprint("value of ", i))
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			buf := make([]byte, 0, 64)
			for range 400 {
				i := rnd.IntN(32)
				ctx, cancel := context.WithCancel(bg)
				stop := time.AfterFunc(time.Duration(rnd.IntN(150))*time.Microsecond, cancel)
				out, _, err := c.GetAppend(ctx, buf[:0], fmt.Sprint(i))
				if err == nil && string(out) != fmt.Sprint("value of ", i) {
					t.Errorf("%d: %q", i, out)
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				for j := range buf[:cap(buf)] {
					buf[:cap(buf)][j] = 'x' // the room is the caller's again: the race detector watches
				}
				stop.Stop()
				cancel()
			}
		})
	}
	wg.Wait()
}

func TestSilentPeer_IsPingedThenGivenUp(t *testing.T) {
	for _, alive := range []bool{false, true} {
		t.Run(fmt.Sprint("answers pings=", alive), func(t *testing.T) {
			s := newFake(t, nil)
			disconnected := make(chan error, 1000)
			c := open(t, []*fakeServer{s}, withLimits(func(o *options) {
				o.sweepEvery, o.pingAfter, o.deadAfter = 5*time.Millisecond, 30*time.Millisecond, 300*time.Millisecond
			}), WithHooks(Hooks{OnDisconnect: func(_ string, err error) { disconnected <- err }}))
			mustPut(t, c, "k", "v")
			pings := make(chan struct{}, 1000)
			release := make(chan struct{})
			n := 0
			s.on(func(_ *fakeConn, r *wire.Request) fault {
				switch r.Op {
				case wire.OpPing:
					pings <- struct{}{}
					return fault{ignore: !alive}
				case wire.OpGet:
					if n++; n == 1 && alive {
						return fault{hold: release}
					} else if n == 1 {
						return fault{ignore: true}
					}
				}
				return fault{}
			})
			if alive {
				go func() {
					for range 15 { // far beyond deadAfter
						<-pings
					}
					close(release)
				}()
			}
			if v, err := c.Get(bg, "k"); err != nil || string(v.Data) != "v" {
				t.Fatal(err)
			}
			if !alive {
				// The hook may run behind the retry that was answered.
				if err := <-disconnected; !errors.Is(err, errSilent) {
					t.Fatal(err)
				}
				return
			}
			select {
			case err := <-disconnected:
				t.Fatal("a peer that answers pings was given up:", err)
			default:
			}
		})
	}
}

// Every error that can be built for an unknown outcome matches ErrMaybeApplied alone.
func TestErrors_UnknownOutcome_MatchesNothingElse(t *testing.T) {
	c := &Client{}
	stops := []error{nil, context.Canceled, context.DeadlineExceeded, ErrClosed, &Error{kind: ErrDenied, Status: wire.StatusDenied}}
	errs := []error{nil, io.EOF, ErrClosed, ErrProtocol, &Error{kind: ErrUnauthenticated}, fmt.Errorf("wrapped: %w", ErrBusy), wire.ErrCorrupt}
	for st := range 256 {
		for _, stop := range stops {
			for _, e := range errs {
				for _, answered := range []bool{true, false} {
					cl := newCall(wire.OpPut, "k", wantVersion)
					cl.uncertain = true
					cl.res = result{answered: answered, status: wire.Status(st), stop: stop, err: e}
					err := c.errorOf(cl)
					certain := answered && stop == nil && (st == int(wire.StatusOK) || st == int(wire.StatusNotFound) || st == int(wire.StatusConditionFailed))
					if certain {
						if errors.Is(err, ErrMaybeApplied) {
							t.Errorf("status %d: %v", st, err)
						}
						cl.release()
						continue
					}
					matches(t, err, ErrMaybeApplied)
					if ctxEnd := stop != nil && (stop == context.Canceled || stop == context.DeadlineExceeded); ctxEnd && !errors.Is(err, stop) {
						t.Errorf("%v does not match %v", err, stop)
					}
					cl.release()
				}
			}
		}
	}
}
