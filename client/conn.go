package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// A request id is {18 bits generation, 14 bits slot}: the generation makes a late or repeated answer to an
// earlier request of the same slot recognisable. Generations begin at 1, so that no id is 0.
const (
	slotBits = 14
	slotsMax = 1 << slotBits
	genMax   = 1<<(32-slotBits) - 1
)

// slotsMax must hold what a server may grant.
const _ = uint(slotsMax - wire.ConnInflightMax)

var (
	errSilent = errors.New("the server has stopped answering")
	errGoAway = errors.New("the server asked to close the connection")
	errIdle   = errors.New("the connection was idle")
)

// slot is one place for an unanswered request. It is live from admission to the final answer or the
// connection's end, also when nobody waits any longer (call == nil: a zombie), because the server works on
// it and counts it just the same.
type slot struct {
	call     *call
	stream   *stream // takes the frames before the last, see wire.FlagMore; nil: there is but one
	gen      uint32
	op       wire.Opcode
	live     bool
	enqueued bool
	start    uint64 // offset of the frame in the stream of bytes sent
	credit   int
	deadline time.Duration
}

// ref is a payload that is written straight from a slice. It outlives its call when the caller gives up
// while it is being written; data is then a copy.
type ref struct {
	// Guarded by conn.mu.
	data []byte
	off  int // bytes handed to the kernel
	done bool
}

// placedRef says where in conn.buf a ref's bytes belong.
type placedRef struct {
	at  int
	ref *ref
}

// conn is one connection: a buffer that callers append frames to, and a table of unanswered requests.
//
// Two goroutines belong to it: read, which ends with the connection and then settles every call, and
// write, which ends after read. A third may watch a context that many calls share, see shared. The right to write
// to the socket (flushing) passes between callers and write; it is held by one at a time.
type conn struct {
	// Immutable after the handshake.
	client           *Client
	link             *link
	nc               net.Conn
	raw              rawWriter // nil: only the writer goroutine writes
	ack              wire.HelloAck
	flags            wire.Flags // of every request
	inflightMax      int
	inflightBytesMax int
	bufferBytes      int

	gone atomic.Bool // no new requests

	// Set once by link.fly before read begins: ends the watch over the client's context.
	unwatch func() bool

	// Progress, for the watch over a silent peer.
	reads, writes atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	err           error // why the connection ended; set once
	goingAway     bool
	buf, spare    []byte
	refs          []placedRef
	spareRefs     []placedRef
	rest          []byte // what a caller's write left over, for the writer goroutine
	restBuf       []byte // the buffer that rest is the end of
	flushing      bool
	writing       *ref // being written at this moment
	poked         bool // a write deadline in the past was set to interrupt the write of writing
	queued        int  // bytes of the shared buffer that are promised or not yet handed to the kernel
	enqueuedBytes uint64
	sentBytes     uint64 // handed to the kernel
	slots         []slot
	free          []uint32
	inflight      int
	inflightBytes int
	streams       int // slots with a stream
	waiters       waitq
	sweeping      bool
	swept         time.Duration // time of the last sweep
	silence       time.Duration // how long nothing has come from the peer while something was unanswered
	lastProgress  uint64
	shared        *shared         // nil: none
	lastDone      <-chan struct{} // that of the context of the last call
	pinged        bool
	suspected     bool
	// settled is broadcast when flushing or writing ends.
	settled sync.Cond

	// Has room for one: the right to write is handed to the writer goroutine through it. Closed by read
	// once nobody can hold that right any more.
	wake  chan struct{}
	timer *time.Timer

	// Owned by the holder of flushing.
	wb      []byte
	wn      int
	werr    error
	writeFn func(fd uintptr) bool
	iov     net.Buffers

	// Owned by read.
	in reader
}

// newConn wraps an established connection whose HELLO is done, and starts its goroutines.
func newConn(c *Client, l *link, nc net.Conn, ack *wire.HelloAck) *conn {
	cn := &conn{
		client:           c,
		link:             l,
		nc:               nc,
		ack:              *ack,
		inflightMax:      c.o.maxInflight,
		inflightBytesMax: wire.ConnInflightBytesMax,
		bufferBytes:      c.o.bufferBytes,
		wake:             make(chan struct{}, 1),
	}
	if ack.Features&wire.FeatureCRC != 0 {
		cn.flags |= wire.FlagCRC
	}
	if n := int(ack.Inflight); n > 0 {
		cn.inflightMax = min(cn.inflightMax, n)
	}
	if n := int(ack.InflightBytes); n > 0 {
		cn.inflightBytesMax = n
	}
	if cn.ack.MaxFrame == 0 {
		cn.ack.MaxFrame = wire.FrameBodyBytesMax
	}
	if !c.o.noRawWrite {
		cn.raw = rawConn(nc)
	}
	cn.settled.L = &cn.mu
	cn.writeFn = cn.writeOnce
	cn.timer = time.AfterFunc(time.Hour, cn.sweep)
	cn.timer.Stop()
	return cn
}

// prepare computes what admission needs to know. An error: the request can't be sent over this connection.
func (c *conn) prepare(cl *call) error {
	n := len(cl.head) - cl.skip + len(cl.value)
	cl.credit = n
	if n > int(c.ack.MaxFrame) {
		return local(cl.op, cl.key, ErrTooLarge, uint64(c.ack.MaxFrame), "request of %d bytes; the server takes %d", n, c.ack.MaxFrame)
	}
	if c.ack.Codec != wire.CodecNone && n >= wire.CompressBytesMin {
		cl.pack(c.ack.Codec)
	}
	if len(cl.packed) > 0 && cl.packedCodec == c.ack.Codec {
		n = len(cl.packed)
		cl.inline = wire.HeaderBytes + n
		if n >= largeBytesMin {
			cl.inline = wire.HeaderBytes
		}
	} else {
		cl.packed, cl.packedTried = nil, false
		cl.inline = wire.HeaderBytes + n
		if len(cl.value) >= largeBytesMin {
			cl.inline -= len(cl.value)
		}
	}
	cl.bodyBytes = n
	return nil
}

// pack compresses the body, once per codec.
func (cl *call) pack(codec wire.Codec) {
	if cl.packedTried && cl.packedCodec == codec {
		return
	}
	body := make([]byte, 0, len(cl.head)-cl.skip+len(cl.value))
	body = append(append(body, cl.head[cl.skip:]...), cl.value...)
	cl.packedTried, cl.packedCodec = true, codec
	if out, ok := wire.AppendCompressed(nil, codec, body); ok {
		cl.packed = out
	} else {
		cl.packed = nil
	}
}

// fits reports whether cl may be sent now. REQUIRES: mu held.
func (c *conn) fits(cl *call) bool {
	return c.inflight < c.inflightMax &&
		(c.inflight == 0 || c.inflightBytes+cl.credit <= c.inflightBytesMax) &&
		(c.queued == 0 || c.queued+cl.inline <= c.bufferBytes)
}

// crowded reports whether cl is one stream too many: streams last, and what waits behind them would wait for as long. So
// they get half of the slots, and are refused beyond. REQUIRES: mu held.
func (c *conn) crowded(cl *call) bool {
	return cl.stream != nil && c.streams >= max(1, c.inflightMax/2)
}

// refused is crowded, and says so in cl.res. REQUIRES: mu held.
func (c *conn) refused(cl *call) bool {
	if !c.crowded(cl) {
		return false
	}
	most := max(1, c.inflightMax/2)
	cl.res.stop = local(cl.op, cl.key, ErrTooMany, uint64(most), "the connection to %s has %d watches and listings under way: end some first", c.link.node.addr, most)
	return true
}

// take gives cl a slot and its share of the bounds. REQUIRES: mu held; fits.
func (c *conn) take(cl *call) {
	var i uint32
	if n := len(c.free); n > 0 {
		i, c.free = c.free[n-1], c.free[:n-1]
	} else {
		i = uint32(len(c.slots))
		c.slots = append(c.slots, slot{gen: 1})
	}
	s := &c.slots[i]
	s.call, s.op, s.live, s.enqueued, s.credit, s.deadline = cl, cl.op, true, false, cl.credit, cl.deadline
	if s.stream = cl.stream; s.stream != nil {
		s.deadline = forever // it lives for as long as it is wanted
		c.streams++
	}
	cl.slot, cl.id, cl.admitted = i, s.gen<<slotBits|i, true
	c.inflight++
	c.inflightBytes += cl.credit
	c.queued += cl.inline
	c.startSweep(cl)
}

// freeSlot ends a slot. It reports whether the connection has nothing left to wait for and should be
// closed. REQUIRES: mu held.
func (c *conn) freeSlot(i uint32) (finished bool) {
	s := &c.slots[i]
	if s.gen++; s.gen > genMax {
		s.gen = 1
	}
	c.inflight--
	c.inflightBytes -= s.credit
	if s.stream != nil {
		c.streams--
	}
	*s = slot{gen: s.gen}
	c.free = append(c.free, i)
	return c.goingAway && c.inflight == 0
}

// admitWaiters admits as many waiting calls as fit, in their order. REQUIRES: mu held.
func (c *conn) admitWaiters() {
	for cl := c.waiters.head; cl != nil && (c.crowded(cl) || c.fits(cl)); cl = c.waiters.head {
		c.waiters.remove(cl)
		if !c.refused(cl) {
			c.take(cl)
		}
		cl.signal()
	}
}

// failWaiters sends every waiting call away; nothing of them was sent. REQUIRES: mu held.
func (c *conn) failWaiters(err error) {
	for cl := c.waiters.pop(); cl != nil; cl = c.waiters.pop() {
		cl.res.err = err
		cl.signal()
	}
}

// admit waits until cl may be sent. It reports whether that is so; else cl.res says why not.
func (c *conn) admit(ctx context.Context, cl *call) bool {
	cl.admitted = false
	c.mu.Lock()
	if c.err != nil || c.goingAway {
		cl.res.err = c.why()
		c.mu.Unlock()
		return false
	}
	if c.refused(cl) {
		c.mu.Unlock()
		return false
	}
	if c.waiters.head == nil && c.fits(cl) {
		c.take(cl)
		c.mu.Unlock()
		return true
	}
	cl.waited = true
	c.waiters.push(cl)
	c.startSweep(cl)
	c.mu.Unlock()

	select {
	case <-cl.ch:
		return cl.admitted
	case <-ctx.Done():
	}
	c.mu.Lock()
	if cl.waiting {
		c.waiters.remove(cl)
		c.mu.Unlock()
	} else {
		c.mu.Unlock()
		<-cl.ch
		if cl.admitted {
			c.giveBack(cl)
		}
	}
	cl.res.stop = ctx.Err()
	return false
}

// giveBack returns the slot of a call that was admitted and will not be sent.
func (c *conn) giveBack(cl *call) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.queued -= cl.inline
	finished := c.freeSlot(cl.slot)
	c.admitWaiters()
	c.mu.Unlock()
	if finished {
		c.kill(errGoAway)
	}
}

// why gives the reason for refusing new requests. REQUIRES: mu held.
func (c *conn) why() error {
	if c.err != nil {
		return c.err
	}
	return errGoAway
}

// seal writes the frame's header. It runs outside mu, since the checksum of a large body takes time.
func (c *conn) seal(cl *call, timeoutMs uint32) {
	h := wire.Header{
		Op:            cl.op,
		Flags:         c.flags,
		ID:            cl.id,
		TimeOrTimeout: timeoutMs,
		StatusOrGroup: cl.group,
		ExtLen:        uint16(cl.extLen()),
		KeyLen:        uint16(cl.keyLen),
	}
	if len(cl.packed) > 0 {
		h.Flags |= wire.FlagCompressed
		putHeader(&cl.hdr, &h, cl.packed, nil)
		return
	}
	putHeader(&cl.hdr, &h, cl.head[cl.skip:], cl.value)
}

// enqueue appends the frame and, when nobody writes, writes it with all that gathered. It reports whether
// the frame was taken; if not, cl.res says why and nothing of it was sent. Once it was taken, cl belongs
// to the connection until it is completed or abandoned.
func (c *conn) enqueue(cl *call) bool {
	c.mu.Lock()
	if c.err != nil || c.goingAway {
		cl.res.err = c.why()
		finished := false
		if c.err == nil {
			c.queued -= cl.inline
			finished = c.freeSlot(cl.slot)
		}
		c.mu.Unlock()
		if finished {
			c.kill(errGoAway)
		}
		return false
	}
	s := &c.slots[cl.slot]
	s.enqueued, s.start = true, c.enqueuedBytes
	c.enqueuedBytes += uint64(wire.HeaderBytes + cl.bodyBytes)
	c.buf = append(c.buf, cl.hdr[:]...)
	cl.ref = nil
	if len(cl.packed) > 0 {
		c.place(cl, cl.packed)
	} else {
		c.buf = append(c.buf, cl.head[cl.skip:]...)
		c.place(cl, cl.value)
	}
	c.dispatch(cl)
	return true
}

// dispatch has written what was appended for cl, unless somebody is writing already. REQUIRES: mu held; it is given up.
func (c *conn) dispatch(cl *call) {
	// One goroutine that pipelines would write each of its frames alone: the writer goroutine does it
	// instead, and takes what was appended meanwhile.
	pipelined := cl.onDone != nil
	start := c.share(cl)
	lead, gather := c.lead()
	c.mu.Unlock()
	c.watch(start)
	switch {
	case lead && pipelined:
		c.wake <- struct{}{}
	case lead:
		c.flush(gather)
	}
}

// enqueueSmall does prepare, admit, seal and enqueue under one lock, for a call that is small and need not wait. It reports whether
// it has taken the call; if not, the call goes the long way, from prepare on.
func (c *conn) enqueueSmall(cl *call, now time.Duration) bool {
	c.mu.Lock()
	if !c.takeSmall(cl, now) {
		c.mu.Unlock()
		return false
	}
	c.dispatch(cl)
	return true
}

// takeSmall is enqueueSmall without its locking and writing. REQUIRES: mu held.
func (c *conn) takeSmall(cl *call, now time.Duration) bool {
	size := len(cl.head) - cl.skip + len(cl.value)
	if size > min(smallBytesMax, int(c.ack.MaxFrame)) || cl.stream != nil || c.err != nil || c.goingAway || c.waiters.head != nil {
		return false
	}
	cl.credit, cl.bodyBytes, cl.inline = size, size, wire.HeaderBytes+size // as prepare, which computes them anew
	if !c.fits(cl) {
		return false
	}
	cl.packed, cl.packedTried, cl.ref = nil, false, nil
	cl.attempts++
	c.take(cl)
	s := &c.slots[cl.slot]
	s.enqueued, s.start = true, c.enqueuedBytes
	c.enqueuedBytes += uint64(cl.inline)
	h := wire.Header{Op: cl.op, Flags: c.flags, ID: cl.id, TimeOrTimeout: timeoutMs(cl.deadline - now), StatusOrGroup: cl.group}
	key := len(cl.head) - cl.keyLen
	c.buf = wire.AppendFrame(c.buf, h, cl.head[cl.skip:key], cl.head[key:], cl.value)
	return true
}

// enqueueReads does enqueueSmall for the calls at the start of calls, which are asynchronous, as far as each is a read that goes to
// this connection. It returns how many it has taken: they belong to the connection then.
func (c *conn) enqueueReads(calls []*call, now time.Duration) (n int) {
	c.mu.Lock()
	for _, cl := range calls[:min(len(calls), readsMax)] {
		if cl.write || cl.spread {
			break
		}
		cl.res, cl.cn, cl.onDone = result{}, c, c.client.onAnswer
		if !c.takeSmall(cl, now) {
			cl.onDone = nil
			break
		}
		n++
	}
	lead := false
	if n > 0 {
		lead, _ = c.lead()
	}
	c.mu.Unlock()
	if lead {
		c.flush(false)
	}
	return n
}

// place appends a payload, or a reference to a large one. REQUIRES: mu held.
func (c *conn) place(cl *call, b []byte) {
	if len(b) < largeBytesMin {
		c.buf = append(c.buf, b...)
		return
	}
	cl.ref = &ref{data: b}
	c.refs = append(c.refs, placedRef{len(c.buf), cl.ref})
}

// lead takes the right to write, if it is free, and tells whether waiting for others is worth while.
// REQUIRES: mu held.
func (c *conn) lead() (lead, gather bool) {
	lead = !c.flushing
	c.flushing = true
	return lead, c.inflight > 1
}

// appendControl appends a frame of the connection itself. REQUIRES: mu held; err == nil.
func (c *conn) appendControl(op wire.Opcode, payload []byte) {
	n := len(c.buf)
	c.buf = wire.AppendFrame(c.buf, wire.Header{Op: op, Flags: c.flags}, nil, nil, payload)
	c.queued += len(c.buf) - n
	c.enqueuedBytes += uint64(len(c.buf) - n)
}

// cancel turns the slot into a zombie and asks the server to forget the request. REQUIRES: mu held;
// the slot is live and enqueued; err == nil.
func (c *conn) cancel(i uint32) {
	s := &c.slots[i]
	s.call = nil
	id := s.gen<<slotBits | i
	c.appendControl(wire.OpCancel, []byte{byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
}

// abandon detaches a call that nobody waits for any longer. It reports false when an answer or a failure
// is being delivered at this moment: the signal on cl.ch comes at once then.
func (c *conn) abandon(cl *call) bool {
	c.mu.Lock()
	s := &c.slots[cl.slot]
	if s.call != cl {
		c.mu.Unlock()
		return false
	}
	if c.err != nil {
		s.call = nil
		c.mu.Unlock()
		return true
	}
	c.cancel(cl.slot)
	lead, gather := c.lead()
	c.mu.Unlock()
	if lead {
		c.flush(gather)
	}
	return true
}

// letGo makes sure that the caller's payload is not read after the operation returns. Most often it is
// written by then; else a copy takes its place, and a write that is under way is interrupted.
func (c *conn) letGo(cl *call) {
	r := cl.ref
	cl.ref = nil
	if cl.owned || len(cl.packed) > 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.done || c.err != nil && !c.flushing {
		return
	}
	data := r.data
	c.mu.Unlock()
	copied := append([]byte(nil), data...)
	c.mu.Lock()
	if r.done {
		return
	}
	r.data = copied
	if c.writing == r {
		c.poked = true
		// An error means that the connection is closed: the write returns anyway.
		_ = c.nc.SetWriteDeadline(time.Unix(1, 0))
		// Only the end of this very chunk broadcasts now; the next one comes from the copy.
		c.settled.Wait()
	}
}

// kill ends the connection; the reader settles the rest.
func (c *conn) kill(err error) {
	c.gone.Store(true)
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	// Close unblocks reader and writer. Its error tells nothing: the connection is given up.
	_ = c.nc.Close()
}

// drain completes every call with the connection's end. It is the reader's last deed.
func (c *conn) drain() {
	c.timer.Stop()
	c.mu.Lock()
	for c.flushing {
		// The socket is closed: whoever writes returns now.
		c.settled.Wait()
	}
	lost := fmt.Errorf("connection to %s lost: %w", c.link.node.addr, c.err)
	var orphans []*call
	for i := range c.slots {
		s := &c.slots[i]
		cl := s.call
		// A call that is admitted and not enqueued finds err by itself.
		if cl == nil || !s.enqueued {
			continue
		}
		s.call = nil
		cl.res.err = lost
		cl.res.sent = s.start < c.sentBytes
		orphans = append(orphans, cl)
	}
	c.failWaiters(lost)
	c.endShared()
	c.buf, c.spare, c.refs, c.spareRefs = nil, nil, nil, nil
	c.mu.Unlock()
	for _, cl := range orphans {
		cl.complete()
	}
	close(c.wake)
}
