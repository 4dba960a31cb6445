package netloop

import (
	"net"
	"sync"
	"sync/atomic"

	"kvstore/wire"
)

// state of a session.
type state uint8

const (
	// stateOpen: requests are executed.
	stateOpen state = iota
	// stateClosing: input is ignored; what is under way is still answered and sent.
	stateClosing
	// stateFinished: all is sent and the sending side is shut; the peer may still read. Answers are dropped.
	stateFinished
	// stateDead: the connection is gone or to be cut off; answers are dropped.
	stateDead
)

// Session is the protocol engine of one connection behind HELLO: bytes go in, answers come out. It
// knows no socket; a driver reads for it and writes what next returns.
//
// Three parties use it: the feeder (one goroutine at a time calls Feed), the flusher (one goroutine at
// a time calls next and sent), and whoever answers (Complete, any goroutine).
type Session struct {
	// Immutable after newSession.
	core      *core
	shard     *shard
	drv       driver
	remote    net.Addr
	principal any
	crc       bool
	codec     wire.Codec
	answerMax int // largest body the client accepts

	// Owned by the feeder.
	scratch *scratch
	part    []byte // the beginning of a frame whose rest has not arrived
	// partCharge is what part counts in the budget of big frames.
	partCharge int
	// partServed: part holds a whole frame whose views are in the bunch; it is released after Serve.
	partServed bool
	// inPart: the frame being taken lies in part, not in the bytes that Feed was given.
	inPart bool
	sum    frameSum // of part, if that is large
	skip   int      // bytes of a refused frame that are still to be thrown away
	stop   bool     // the stream is given up; read no further
	view   view     // what mu guards, as of the start of the bunch

	// Owned by the flusher.
	cur    *outBuf
	curOff int
	// ordinaryTaken: the last buffer was none of streams, so that those have the next turn.
	ordinaryTaken bool

	// Read by any goroutine. Times are on core.now's clock; 0 means "not now".
	pending      atomic.Int64 // bytes of answers queued or being encoded, not yet written
	lastActive   atomic.Int64
	partSince    atomic.Int64 // written by the feeder
	partBytes    atomic.Int64 // written by the feeder
	stalledSince atomic.Int64 // written by the flusher: last progress while the peer takes no more
	closingSince atomic.Int64 // when stateClosing began
	finishedAt   atomic.Int64 // written by the flusher: everything is sent, lingering
	feedingAt    atomic.Int64 // fedAt while Feed runs; lets Complete spare a clock reading
	streamed     atomic.Int64 // those bytes of pending that are in streams or on their way there
	wanted       atomic.Bool  // a Push found no room: Handler.Writable is due when there is
	goneTold     atomic.Bool  // Handler.Gone was called

	// Guarded by mu.
	mu            sync.Mutex
	state         state
	reason        closeReason
	gone          bool // closed was called
	draining      bool
	feeding       bool // Feed flushes at its end: answers need no wake-up
	dirty         bool // a flusher is under way or has been woken
	fedAt         int64
	inflight      int
	inflightBytes int64
	buf           *outBuf   // small answers, in order of completion
	big           []*outBuf // one large answer each
	streams       []*outBuf // frames of streams, in order
}

// view is the feeder's copy of guarded fields. Others only ever lower inflight and bytes, so an old
// view errs towards BUSY.
type view struct {
	inflight int
	bytes    int64
	draining bool
}

// scratch is working memory of a feeder: one per event loop, or one per connection of the plain driver.
// Between Feeds it holds nothing.
type scratch struct {
	reqs     [BunchRequestsMax]wire.Request
	n        int
	cost     int64
	unpacked []byte // what compressed frames of the bunch unpacked to
	tally    tally  // guarded by the mu of the session being fed
}

// agreed is what HELLO settled.
type agreed struct {
	principal any
	features  wire.Features
	codec     wire.Codec
	maxFrame  uint32 // of the client
}

func newSession(c *core, sh *shard, sc *scratch, drv driver, remote net.Addr, a agreed) *Session {
	s := &Session{
		core: c, shard: sh, scratch: sc, drv: drv, remote: remote, principal: a.principal,
		crc: a.features&wire.FeatureCRC != 0, codec: a.codec,
		answerMax: int(min(a.maxFrame, wire.FrameBodyBytesMax)),
	}
	s.lastActive.Store(c.now())
	return s
}

// Remote is the peer's address.
func (s *Session) Remote() net.Addr { return s.remote }

// Feed takes bytes of the stream, whatever their boundaries: it serves every complete frame and keeps
// the beginning of an incomplete one. It consumes everything unless it gives the stream up; views into
// in die when it returns. REQUIRES: one call at a time.
func (s *Session) Feed(in []byte) (consumed int, action Action) {
	total := len(in)
	if !s.begin() {
		// The end is on its way out; what the client still sends is nobody's.
		return total, ActionNone
	}
	s.shard.bytesIn.Add(uint64(total))
	for len(in) > 0 && !s.stop {
		switch {
		case s.skip > 0:
			n := min(s.skip, len(in))
			s.skip -= n
			in = in[n:]
			if s.skip == 0 {
				s.partSince.Store(0)
			} else {
				s.partBytes.Add(int64(n))
			}
		case len(s.part) > 0 && !s.partServed:
			in = s.fill(in)
		default:
			in = s.parse(in)
		}
	}
	if !s.stop {
		s.serve()
	}
	return total - len(in), s.end()
}

// parse takes the frame at the start of in, or keeps in for later when it is incomplete. It returns
// what follows.
func (s *Session) parse(in []byte) []byte {
	if len(in) < wire.HeaderBytes {
		return s.stash(in)
	}
	var h wire.Header
	if err := wire.DecodeHeader(in, &h); err != nil {
		panic("BUG: header of enough bytes does not decode: " + err.Error())
	}
	if !s.checkLength(&h) {
		return in[wire.HeaderBytes:]
	}
	end := wire.HeaderBytes + int(h.BodyLen)
	if len(in) < end {
		return s.stash(in)
	}
	s.frame(&h, in[wire.HeaderBytes:end:end], wire.VerifyFrame(in[:end]) == nil)
	return in[end:]
}

// stash keeps the beginning of a frame and returns what it did not take. The bunch is served first, as it
// may hold views into part.
func (s *Session) stash(in []byte) []byte {
	s.serve()
	if s.stop {
		return in
	}
	s.partSince.Store(s.fedAt)
	s.partBytes.Store(0)
	return s.fill(in)
}

// fill adds to the incomplete frame in part and takes the frame once it is whole. It returns what
// follows it.
func (s *Session) fill(in []byte) []byte {
	if need := wire.HeaderBytes - len(s.part); need > 0 {
		n := min(need, len(in))
		s.grow(n, wire.HeaderBytes)
		s.part = append(s.part, in[:n]...)
		in = in[n:]
		if n < need {
			return in
		}
		var h wire.Header
		if err := wire.DecodeHeader(s.part, &h); err != nil {
			panic("BUG: header of enough bytes does not decode: " + err.Error())
		}
		if !s.checkLength(&h) {
			s.releasePart()
			return in
		}
	}
	var h wire.Header
	if err := wire.DecodeHeader(s.part, &h); err != nil {
		panic("BUG: header of enough bytes does not decode: " + err.Error())
	}
	total := wire.HeaderBytes + int(h.BodyLen)
	n := min(total-len(s.part), len(in))
	if !s.grow(n, total) {
		// No room among the big frames of all connections: refuse it and throw the rest away.
		s.skip = total - len(s.part)
		s.releasePart()
		s.busy(&h, busyBigFrames)
		return in
	}
	s.part = append(s.part, in[:n]...)
	s.partBytes.Store(int64(len(s.part)))
	if total >= bigFrameBytes {
		s.sum.add(s.part)
	}
	if len(s.part) < total {
		return in[n:]
	}
	s.partSince.Store(0)
	s.partServed = true
	sound := s.sum.done > 0 && s.sum.holds(&h) || s.sum.done == 0 && wire.VerifyFrame(s.part) == nil
	s.sum.done = 0
	s.inPart = true
	s.frame(&h, s.part[wire.HeaderBytes:], sound)
	s.inPart = false
	return in[n:]
}

// grow makes room in part for n more bytes of a frame of total bytes. Capacity at most doubles what has
// arrived, so a length that lies costs the server no more than the bytes sent. It reports false when the
// budget of big frames is used up.
func (s *Session) grow(n, total int) bool {
	need := len(s.part) + n
	if need <= cap(s.part) {
		return true
	}
	size := max(min(total, max(2*len(s.part), need)), 256)
	if size >= bigFrameBytes {
		if !s.core.big.take(size - s.partCharge) {
			return false
		}
		s.partCharge = size
	}
	grown := make([]byte, len(s.part), size)
	copy(grown, s.part)
	s.part = grown
	return true
}

// releasePart empties part and gives back its budget.
func (s *Session) releasePart() {
	s.sum.done = 0
	s.partServed = false
	if s.partCharge > 0 {
		s.core.big.give(s.partCharge)
		s.partCharge = 0
	}
	if cap(s.part) > partKeepBytes {
		s.part = nil
	} else {
		s.part = s.part[:0]
	}
}

// begin opens a Feed; false: the session executes nothing any more.
func (s *Session) begin() bool {
	now := s.core.now()
	s.lastActive.Store(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen {
		return false
	}
	s.feeding = true
	s.fedAt = now
	s.feedingAt.Store(now)
	s.look()
	sc := s.scratch
	sc.n, sc.cost, sc.tally.n = 0, 0, 0 // a panic may have left something
	return true
}

// look refreshes the feeder's view. REQUIRES: mu held.
func (s *Session) look() {
	s.view = view{inflight: s.inflight, bytes: s.inflightBytes, draining: s.draining}
}

// end closes a Feed.
func (s *Session) end() Action {
	s.feedingAt.Store(0)
	s.mu.Lock()
	s.feeding = false
	dirty, dead := s.dirty, s.state == stateDead
	s.mu.Unlock()
	if t := &s.scratch.tally; t.n > 0 {
		t.observe(s.shard, s.core.now()-s.fedAt)
	}
	switch {
	case dead:
		return ActionClose
	case dirty:
		return ActionFlush
	}
	return ActionNone
}

// abandon ends a Feed that panicked.
func (s *Session) abandon() {
	s.feedingAt.Store(0)
	s.mu.Lock()
	s.feeding = false
	s.mu.Unlock()
	s.abort(closedPanic)
}

// inflightNow is the number of unanswered requests.
func (s *Session) inflightNow() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inflight
}

// checkDeadlines ends the session if it is overdue. Called by core.watch alone.
func (s *Session) checkDeadlines(now int64) {
	o := &s.core.o
	if t := s.finishedAt.Load(); t != 0 {
		if now-t > int64(o.Linger) {
			s.drv.kill()
		}
		return
	}
	if t := s.stalledSince.Load(); t != 0 && now-t > int64(o.StallTimeout) {
		s.abort(closedStalled)
		return
	}
	if t := s.closingSince.Load(); t != 0 {
		// What is still under way is waited for as long as a client that takes no answers would be.
		if now-t > int64(o.StallTimeout) {
			s.abort(closedStalled)
		}
		return
	}
	if t := s.partSince.Load(); t != 0 {
		// A client that sends at least at the minimum rate gains as much time as it uses.
		allowed := int64(o.PartialTimeout) + int64(float64(s.partBytes.Load())/float64(o.PartialRateMin)*1e9)
		if now-t > allowed {
			s.goAway(wire.StatusTooLate, closedPartial, "the rest of a frame did not arrive in time")
			return
		}
	}
	if s.inflightNow() > 0 || s.pending.Load() > 0 {
		s.lastActive.Store(now)
	} else if now-s.lastActive.Load() > int64(o.IdleTimeout) {
		s.goAway(wire.StatusRetryLater, closedIdle, "the connection was idle; connect again when needed")
	}
}
