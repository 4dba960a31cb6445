package node

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/feed"
	"kvstore/wire"
)

const (
	// streamsMaxDefault is ServiceOptions.StreamsMax's. A feed has room for some more watchers.
	streamsMaxDefault = 1 << 16
	// streamsPerConnMax bounds the streams of one connection: a client that needs more opens another.
	streamsPerConnMax = 1024
	// streamSendersMin is the fewest senders: they read from tables and files, and one that waits for a disk should
	// not be the only one.
	streamSendersMin = 4
)

// streams runs the answers of several frames: watches and streamed listings. A stream costs no goroutine: senders take
// those that may have something to send from a queue, give each a turn, and put it back or let it rest until somebody
// calls schedule: the feed, a CREDIT, room on its connection, its timer, its end.
type streams struct {
	// Immutable after newStreams.
	s    *Service
	max  int
	feed changeFeed

	queue  streamQueue
	timers streamTimers
	wg     sync.WaitGroup // senders, and the timers' goroutine
	leader loop           // lookForLeader

	counts streamCounts
	alone  atomic.Bool // no leader has been known for too long: watches are for other nodes

	mu sync.Mutex
	// Guarded by mu.
	conns    map[wire.Completer]*streamConn
	count    int
	draining bool
	idle     chan struct{} // closed when draining and count is 0
}

// changeFeed is the feed as streams use it. *feed.Feed implements it.
type changeFeed interface {
	Bounds() (first, last wire.Revision)
	Watch(o feed.WatchOptions, ready func()) (*feed.Watcher, error)
}

// streamConn is the streams of one connection.
type streamConn struct {
	streams map[uint32]*stream // by request id; guarded by streams.mu

	mu sync.Mutex
	// Guarded by mu.
	full    bool
	grants  uint64    // calls of Writable
	waiting []*stream // for the next one
}

// streamSource is what a stream sends. Its methods are called by one goroutine at a time.
type streamSource interface {
	// turn sends what there is, up to about a frame. final, when set, ends the stream.
	turn(w *sender) (next verdict, final *wire.Response)
	// close lets go of what the source holds.
	close()
}

// verdict is what becomes of a stream after its turn.
type verdict uint8

const (
	// turnRest: until somebody calls schedule.
	turnRest verdict = iota
	// turnAgain: another turn, behind those who wait.
	turnAgain
)

// The states of a stream between its turns.
const (
	streamResting int32 = iota
	streamQueued
	streamRunning
	streamCalled // running, and schedule was called since
	streamOver
)

// stream is one answer of several frames.
type stream struct {
	// Immutable after open, which sets the first group.
	all      *streams
	to       wire.Pusher
	conn     *streamConn
	token    wire.Token
	frameMax int // bytes of a frame's body

	source streamSource
	// interval is the period of the timer in nanoseconds.
	interval int64

	state  atomic.Int32
	credit atomic.Int64
	// ending is why the stream is to end; nil: it is not.
	ending atomic.Pointer[wire.Refusal]
	// start is set once it is known where to begin. See begin.
	start atomic.Pointer[streamStart]
	// sentAt is when the last frame was sent, on Shard.now.
	sentAt   atomic.Int64
	ticked   atomic.Bool // the timer has struck
	awaiting atomic.Bool // the timer is to strike when it is due, whatever was sent

	// Owned by the turns.
	release func() // gives back what the namespace counts; nil: nothing

	waits bool // it stands in conn.waiting; guarded by conn.mu

	dueAt int64 // guarded by timers.mu, like place
	place int   // in the heap, from 1; 0: not there
}

// streamCounts is what streams count.
type streamCounts struct {
	watches, listings                                 atomic.Int64
	events, eventBytes, progress, pages, previousLost atomic.Uint64
	ended                                             [256]atomic.Uint64 // by status
}

func newStreams(s *Service, source changeFeed, most, senders int, alone time.Duration) *streams {
	if most <= 0 {
		most = streamsMaxDefault
	}
	if senders <= 0 {
		senders = runtime.GOMAXPROCS(0)
	}
	t := &streams{s: s, max: most, feed: source, conns: make(map[wire.Completer]*streamConn), idle: make(chan struct{})}
	t.queue.init()
	t.timers.init(t)
	for range max(senders, streamSendersMin) {
		t.wg.Go(t.send) // owned by t; ends when close closes the queue
	}
	t.wg.Go(t.timers.run) // owned by t; ends when close stops the timers
	if alone == 0 {
		alone = watchAloneDefault
	}
	if s.shard.group != nil {
		t.leader.begin(func(ctx context.Context) { t.lookForLeader(ctx, alone) })
	}
	return t
}

// open registers st, which has its source, as the answer to r, or gives the refusal. The caller begins it then.
func (t *streams) open(st *stream, c wire.Completer, r *wire.Request) *wire.Refusal {
	to, ok := c.(wire.Pusher)
	if !ok {
		return &wire.Refusal{Status: wire.StatusUnsupported, Text: "this door gives no answers of several frames"}
	}
	st.all, st.to, st.token, st.frameMax = t, to, r.Token(), wire.FrameBodyBytesMax
	if b, ok := c.(interface{ FrameMax() int }); ok {
		st.frameMax = b.FrameMax()
	}
	st.sentAt.Store(t.s.shard.now())
	t.mu.Lock()
	defer t.mu.Unlock()
	conn := t.conns[c]
	switch {
	case t.draining:
		return &wire.Refusal{Status: wire.StatusDraining}
	case t.count >= t.max:
		return &wire.Refusal{Status: wire.StatusTooMany, Limit: uint64(t.max), Text: fmt.Sprintf("this node has %d watches and streamed listings open, as many as it may", t.count)}
	case conn == nil:
		conn = &streamConn{streams: make(map[uint32]*stream)}
		t.conns[c] = conn
	case conn.streams[r.ID] != nil:
		return &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf("request id %d is that of a stream which has not ended", r.ID)}
	case len(conn.streams) >= streamsPerConnMax:
		return &wire.Refusal{Status: wire.StatusTooMany, Limit: streamsPerConnMax, Text: fmt.Sprintf("this connection has %d watches and streamed listings open, as many as it may: end some, or open another connection", streamsPerConnMax)}
	}
	st.conn = conn
	conn.streams[r.ID] = st
	t.count++
	t.gauge(st.token.Op).Add(1)
	return nil
}

// find gives an open stream, nil for none.
func (t *streams) find(c wire.Completer, id uint32) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	if conn := t.conns[c]; conn != nil {
		return conn.streams[id]
	}
	return nil
}

// endWith has a stream end, for the first reason that it is given.
func (st *stream) endWith(why *wire.Refusal) {
	st.ending.CompareAndSwap(nil, why)
	st.schedule()
}

// schedule sees to it that the stream has a turn that begins after this call. It never blocks.
func (st *stream) schedule() {
	for {
		switch state := st.state.Load(); state {
		case streamResting:
			if st.state.CompareAndSwap(state, streamQueued) {
				st.all.queue.push(st)
				return
			}
		case streamRunning:
			if st.state.CompareAndSwap(state, streamCalled) {
				return
			}
		default:
			return
		}
	}
}

// finish gives the final answer. Sender only.
func (st *stream) finish(final *wire.Response) {
	t := st.all
	st.state.Store(streamOver)
	t.timers.disarm(st)
	st.source.close()
	if st.release != nil {
		st.release()
	}
	t.mu.Lock()
	delete(st.conn.streams, st.token.ID)
	if len(st.conn.streams) == 0 {
		delete(t.conns, wire.Completer(st.to))
	}
	t.count--
	last := t.draining && t.count == 0
	t.mu.Unlock()
	t.counts.ended[final.Status].Add(1)
	t.gauge(st.token.Op).Add(-1)
	// Once it is counted out: whoever has the answer may use the id again.
	st.to.Complete(st.token, final)
	if last {
		close(t.idle)
	}
}

// room reports whether the connection takes frames as far as is known; where not, the stream will be scheduled. grants
// is for waitForRoom.
func (st *stream) room() (grants uint64, ok bool) {
	c := st.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full {
		st.waitLocked()
	}
	return c.grants, !c.full
}

// waitForRoom notes that a Push found none, and has the stream scheduled once there is some. grants is what room gave
// before that Push.
func (st *stream) waitForRoom(grants uint64) {
	c := st.conn
	c.mu.Lock()
	granted := c.grants != grants
	if !granted {
		c.full = true
		st.waitLocked()
	}
	c.mu.Unlock()
	if granted {
		st.schedule()
	}
}

// waitLocked is for room and waitForRoom. REQUIRES: conn.mu held.
func (st *stream) waitLocked() {
	if !st.waits {
		st.waits = true
		st.conn.waiting = append(st.conn.waiting, st)
	}
}

// push sends a frame and takes its payload off the credit. ok is false when it was not sent: then final ends the
// stream, or it will be scheduled once there is room. grants is what room gave. Sender only.
func (st *stream) push(r *wire.Response, grants uint64) (ok bool, final *wire.Response) {
	switch st.to.Push(st.token, r) {
	case wire.PushFull:
		st.waitForRoom(grants)
		return false, nil
	case wire.PushGone:
		return false, refusal(gone)
	}
	st.credit.Add(-int64(len(r.Payload)))
	st.sentAt.Store(st.all.s.shard.now())
	return true, nil
}

// Cancel ends the stream with this id. Anything else is left to run: an operation in the open entry or in flight
// cannot be taken back, and reads are short.
func (s *Service) Cancel(c wire.Completer, id uint32) {
	if st := s.streams.find(c, id); st != nil {
		st.endWith(&wire.Refusal{Status: wire.StatusCancelled, Text: "the client cancelled it"})
	}
}

// Credit lets the stream with this id send that many bytes more.
func (s *Service) Credit(c wire.Completer, id, bytes uint32) {
	st := s.streams.find(c, id)
	if st == nil {
		return
	}
	for {
		old := st.credit.Load()
		now := min(old+int64(bytes), wire.StreamCreditMax)
		if now == old {
			return
		}
		if st.credit.CompareAndSwap(old, now) {
			if old <= 0 && now > 0 {
				st.schedule()
			}
			return
		}
	}
}

// Writable lets the streams of c go on that had found no room.
func (s *Service) Writable(c wire.Completer) {
	t := s.streams
	t.mu.Lock()
	conn := t.conns[c]
	t.mu.Unlock()
	if conn == nil {
		return
	}
	conn.mu.Lock()
	conn.grants++
	conn.full = false
	waiting := conn.waiting
	conn.waiting = nil
	for _, st := range waiting {
		st.waits = false
	}
	conn.mu.Unlock()
	for _, st := range waiting {
		st.schedule()
	}
}

// Gone ends the streams of c: nobody takes them any more.
func (s *Service) Gone(c wire.Completer) {
	t := s.streams
	t.mu.Lock()
	var all []*stream
	if conn := t.conns[c]; conn != nil {
		all = conn.all(nil)
	}
	t.mu.Unlock()
	for _, st := range all {
		st.endWith(gone)
	}
}

// gone is why the streams of a connection end that has ended.
var gone = &wire.Refusal{Status: wire.StatusCancelled, Text: "the connection ended"}

// all appends the connection's streams. REQUIRES: streams.mu held.
func (c *streamConn) all(to []*stream) []*stream {
	for _, st := range c.streams {
		to = append(to, st)
	}
	return to
}

// drain ends all streams with DRAINING and refuses those that come later.
func (t *streams) drain() {
	t.mu.Lock()
	if t.draining {
		t.mu.Unlock()
		return
	}
	t.draining = true
	if t.count == 0 {
		close(t.idle)
	}
	t.mu.Unlock()
	for _, st := range t.all() {
		st.endWith(&wire.Refusal{Status: wire.StatusDraining})
	}
}

// close ends all streams, waits until each has its final answer, and stops the senders.
func (t *streams) close() {
	t.leader.stop()
	t.drain()
	<-t.idle
	t.timers.stop()
	t.queue.close()
	t.wg.Wait()
}

// gauge gives the gauge of streams that answer op.
func (t *streams) gauge(op wire.Opcode) *atomic.Int64 {
	if op == wire.OpWatch {
		return &t.counts.watches
	}
	return &t.counts.listings
}
