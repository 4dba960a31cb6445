package netloop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
)

// ErrClosed is returned for connections offered to a server that was closed.
var ErrClosed = errors.New("netloop: server is closed")

// Server is a running door. Its methods may be called from any goroutine.
type Server struct {
	// Immutable after Start.
	core   *core
	ln     net.Listener
	client *gnet.Client // gnet's name for an engine that does not accept by itself
	watch  *writeWatch
	// handshakes and refusals bound the goroutines that talk to peers nobody knows yet.
	handshakes chan struct{}
	refusals   chan struct{}
	stop       chan struct{}
	watchDone  chan struct{}

	conns atomic.Int64 // accepted and not yet gone
	holds atomic.Int64 // HoldFlush less ReleaseFlush

	// Guarded by mu.
	mu     sync.Mutex
	closed bool
	loops  []*loop
	plain  *shard
	// early holds connections that have no session yet, and all those of the plain driver: Close closes them.
	early map[net.Conn]struct{}
	tasks sync.WaitGroup // Add only with mu held and closed false

	closeOnce sync.Once
	closeErr  error
}

// Start listens and serves until Drain or Close.
func Start(o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	ln := o.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", o.Addr); err != nil {
			return nil, fmt.Errorf("cannot listen for clients on %q: %w", o.Addr, err)
		}
	}
	watch, err := newWriteWatch()
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s := &Server{
		core:       newCore(o),
		ln:         ln,
		watch:      watch,
		handshakes: make(chan struct{}, o.Handshakes),
		refusals:   make(chan struct{}, 64),
		stop:       make(chan struct{}),
		watchDone:  make(chan struct{}),
		early:      make(map[net.Conn]struct{}),
	}
	s.client, err = gnet.NewClient(&events{}, gnet.WithNumEventLoop(o.Loops), gnet.WithReadBufferCap(readBufferBytes), gnet.WithLogger(gnetLogger{o.Logger}))
	if err == nil {
		err = s.client.Start()
	}
	if err != nil {
		s.core.codecs.close()
		return nil, errors.Join(fmt.Errorf("cannot start event loops: %w", err), watch.close(), ln.Close())
	}
	go func() { // owned by Server; ends when Close closes s.stop
		defer close(s.watchDone)
		s.core.watch(s.stop)
	}()
	s.tasks.Add(1)
	go s.accept() // owned by Server; ends when the listener is closed
	return s, nil
}

// events is gnet's view of this package. All methods run on the connection's event loop.
type events struct{ gnet.BuiltinEventEngine }

// OnOpen implements gnet.EventHandler.
func (*events) OnOpen(gc gnet.Conn) ([]byte, gnet.Action) { return nil, gc.Context().(*conn).open(gc) }

// OnTraffic implements gnet.EventHandler. Everything is taken at once, so gnet's in buffer stays empty
// and Next is a view of the loop's own buffer.
func (*events) OnTraffic(gc gnet.Conn) gnet.Action {
	b, err := gc.Next(-1)
	if err != nil {
		return gnet.Close
	}
	return gc.Context().(*conn).feed(b)
}

// OnClose implements gnet.EventHandler.
func (*events) OnClose(gc gnet.Conn, _ error) gnet.Action {
	if c, ok := gc.Context().(*conn); ok {
		c.close()
	}
	return gnet.None
}

// loopOf finds what belongs to an event loop of gnet, at the first connection on it.
func (s *Server) loopOf(el gnet.EventLoop) *loop {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.loops {
		if l.el == el {
			return l
		}
	}
	l := &loop{srv: s, el: el, shard: s.core.newShard()}
	s.loops = append(s.loops, l)
	return l
}

// plainShard is what connections of the plain driver share.
func (s *Server) plainShard() *shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plain == nil {
		s.plain = s.core.newShard()
	}
	return s.plain
}

// connGone counts a connection out.
func (s *Server) connGone() { s.conns.Add(-1) }

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Stats returns a snapshot of the counters.
func (s *Server) Stats() Stats { return s.core.stats() }

// HoldFlush begins a batch of answers: until ReleaseFlush, answers wake no event loop. Whoever answers
// many requests in a row brackets them, so that each loop wakes once and each connection gets one write.
// Brackets may nest and overlap; they must be short and must not block inside, since answers of others
// wait too.
func (s *Server) HoldFlush() { s.holds.Add(1) }

// ReleaseFlush ends a batch and wakes the loops that have answers to write, also when another bracket
// is still open.
func (s *Server) ReleaseFlush() {
	if s.holds.Add(-1) < 0 {
		panic("BUG: ReleaseFlush without HoldFlush")
	}
	s.mu.Lock()
	loops := s.loops
	s.mu.Unlock()
	for _, l := range loops {
		l.release()
	}
}

// Drain stops in order: it accepts no more, tells every client with GOAWAY, refuses new requests with
// DRAINING, waits until those under way are answered and the answers sent, and closes. When ctx ends
// first, it closes at once and returns an error that says how many requests were left unanswered; their
// outcome is unknown to the clients.
func (s *Server) Drain(ctx context.Context) error {
	s.core.draining.Store(true)
	lnErr := s.ln.Close()
	if errors.Is(lnErr, net.ErrClosed) {
		lnErr = nil
	}
	for _, ss := range s.core.appendSessions(nil) {
		ss.startDrain()
	}
	// A drain happens once in a server's life: looking every 2 ms is simpler than a signal in Complete.
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	until := func(d time.Duration, done func() bool) error {
		var limit <-chan time.Time
		if d > 0 {
			t := time.NewTimer(d)
			defer t.Stop()
			limit = t.C
		}
		for !done() {
			select {
			case <-tick.C:
			case <-limit:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	empty := func() bool { return s.core.sessionCount() == 0 && s.core.counters.handshakes.Load() == 0 }
	err := until(0, func() bool {
		for _, ss := range s.core.appendSessions(nil) {
			if ss.inflightNow() > 0 || ss.pending.Load() > 0 {
				return false
			}
		}
		return true
	})
	if err != nil {
		st := s.Stats()
		err = fmt.Errorf("cannot drain: %d requests are unanswered and %d bytes of answers unsent: %w", st.Inflight, st.OutBytes, err)
	} else if until(s.core.o.DrainGrace, empty) == nil {
		// Clients that did not hang up are sent off: their answers are out, and the socket is shut in a
		// way that does not destroy them.
		for _, ss := range s.core.appendSessions(nil) {
			ss.finish(closedDrain)
		}
		// Whether the last peers saw it in time is theirs to notice.
		_ = until(s.core.o.Linger, empty)
	}
	return errors.Join(err, lnErr, s.Close())
}

// Close stops at once: connections are cut, answers that wait are dropped. When it returns no method of
// the Handler runs and none will be called; late answers are ignored.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.early {
		_ = c.Close() // its own goroutine sees to the rest
	}
	s.mu.Unlock()
	close(s.stop)
	err := s.ln.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	// Handing a socket to a stopped event loop would wait for ever, so whoever does that ends first.
	s.tasks.Wait()
	<-s.watchDone
	s.mu.Lock()
	loops := s.loops
	s.mu.Unlock()
	for _, l := range loops {
		l.stop()
	}
	if e := s.client.Stop(); e != nil {
		err = errors.Join(err, fmt.Errorf("cannot stop the event loops: %w", e))
	}
	s.core.codecs.close()
	if e := s.watch.close(); e != nil {
		err = errors.Join(err, fmt.Errorf("cannot close the write watch: %w", e))
	}
	return err
}
