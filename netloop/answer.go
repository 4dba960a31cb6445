package netloop

import (
	"kvstore/wire"
)

// Complete implements wire.Completer: it queues the answer to a request that Serve was given. Any
// goroutine may call it; it copies what it keeps and never blocks. On a connection that is gone the
// answer is dropped.
func (s *Session) Complete(t wire.Token, r *wire.Response) { s.answer(t, r, true) }

// answer queues an answer. credited: the request was handed on and holds credit; else the door itself
// answers.
func (s *Session) answer(t wire.Token, r *wire.Response, credited bool) {
	// Answers given within the Feed that brought the request are timed together at its end; their header
	// says 0 µs.
	var elapsed int64
	inline := s.feedingAt.Load() == t.Start
	if !inline {
		elapsed = s.core.now() - t.Start
	}

	s.mu.Lock()
	if credited {
		s.release(t)
	}
	if inline && !(s.feeding && s.fedAt == t.Start && s.scratch.tally.add(t.Op, r.Status.Class())) {
		inline = false
		elapsed = s.core.now() - t.Start
	}
	if !inline && t.Op != wire.OpWatch { // a watch takes as long as its client likes
		s.shard.observe(t.Op, r.Status, elapsed)
	}
	if s.state >= stateFinished {
		s.mu.Unlock()
		return
	}
	if t.Flags&wire.FlagQuiet != 0 && r.Status == wire.StatusOK {
		if s.state == stateClosing {
			s.unlockAndWake() // it may have been the last that the end waits for
		} else {
			s.mu.Unlock()
		}
		return
	}
	body := len(r.Ext) + len(r.Payload)
	var instead wire.Response
	if body > s.answerMax || len(r.Ext) > wire.ExtBytesMax {
		instead = tooLongAnswer(t.Op, s.answerMax)
		r, body = &instead, len(instead.Ext)+len(instead.Payload)
	}
	o := &s.core.o
	pending := s.ordinary()
	if t.Op.IsRead() && r.Status.Class() == wire.ClassResult {
		// A read had no effect, so BUSY stays true after it ran.
		why := busyReasons
		if pending > int64(o.OutHardBytes) {
			why = busyOutHard
		} else if pending > outShareBytes && s.core.out.used.Load() > s.core.out.limit {
			why = busyOutTotal
		}
		if why != busyReasons {
			s.core.counters.busy[why].Add(1)
			instead = wire.Response{Status: wire.StatusBusy, Ext: s.core.busyExt}
			r, body = &instead, len(instead.Ext)
		}
	}
	size := wire.HeaderBytes + body
	if pending+int64(size) > int64(o.OutHardBytes)+answerBytesMax {
		s.mu.Unlock()
		s.abort(closedHardCap)
		return
	}
	s.pending.Add(int64(size))
	us := uint32(min(elapsed/1000, 1<<32-1))
	if body < bigAnswerBytes && (s.codec == wire.CodecNone || body < wire.CompressBytesMin) {
		var b *outBuf
		if s.behindStream(t.Op) {
			b = s.streamTail()
			s.streamed.Add(int64(size))
		} else {
			b = s.tail()
		}
		b.b = wire.AppendResponse(b.b, t, r, s.crc, us)
		s.charge(b)
		s.unlockAndWake()
		return
	}
	s.mu.Unlock()
	s.answerLarge(t, r, us, size)
}

// release gives back the credit of a request. REQUIRES: mu held.
func (s *Session) release(t wire.Token) {
	s.inflight--
	s.inflightBytes -= int64(t.Cost)
	if s.inflight < 0 || s.inflightBytes < 0 {
		s.mu.Unlock() // the caller's panic may be caught
		panic("BUG: a request was answered twice, or one that was never handed on")
	}
}

// tooLongAnswer stands in for an answer that the client can't take. A write may have been executed, and
// its result is lost: the outcome is unknown to the client. A read had no effect.
func tooLongAnswer(op wire.Opcode, limit int) wire.Response {
	if op.IsWrite() {
		return wire.Response{Status: wire.StatusInternal, Payload: []byte("the answer is larger than the client accepts; the write may be applied")}
	}
	return wire.ErrorResponse(&wire.Refusal{Status: wire.StatusTooLarge, Text: "the answer is larger than the client accepts", Limit: uint64(limit)}, nil)
}

// answerLarge encodes outside the connection's lock, so that copying 16 MiB holds nobody up. reserved is
// what pending counts for it already.
func (s *Session) answerLarge(t wire.Token, r *wire.Response, us uint32, reserved int) {
	body := len(r.Ext) + len(r.Payload)
	if s.codec == wire.CodecNone || body < wire.CompressBytesMin {
		b := &outBuf{b: make([]byte, 0, wire.HeaderBytes+body)}
		b.b = wire.AppendResponse(b.b, t, r, s.crc, us)
		s.queue(t.Op, b, reserved)
		return
	}
	raw := make([]byte, 0, body)
	raw = append(raw, r.Ext...)
	raw = append(raw, r.Payload...)
	h := s.answerHeader(t, r, us)
	if body <= loopCodecBytesMax {
		s.queue(t.Op, packAnswer(h, s.codec, raw), reserved)
		return
	}
	job := func() {
		defer s.core.survive("pack", func() { s.abort(closedPanic) })
		s.queue(t.Op, packAnswer(h, s.codec, raw), reserved)
	}
	if !s.core.codecs.submit(job) {
		s.queue(t.Op, packAnswer(h, wire.CodecNone, raw), reserved) // plain is always legal
	}
}

// answerHeader is the header of the frame of an answer, but for what depends on its body.
func (s *Session) answerHeader(t wire.Token, r *wire.Response, us uint32) wire.Header {
	h := wire.Header{Op: t.Op, Flags: wire.FlagResponse, StatusOrGroup: uint16(r.Status), ID: t.ID, TimeOrTimeout: us, ExtLen: uint16(len(r.Ext))}
	if s.crc {
		h.Flags |= wire.FlagCRC
	}
	if r.Replayed {
		h.Flags |= wire.FlagReplayed
	}
	if r.More {
		h.Flags |= wire.FlagMore
	}
	return h
}

// packAnswer builds the frame of an answer, compressed if that pays. raw is ext | payload.
func packAnswer(h wire.Header, codec wire.Codec, raw []byte) *outBuf {
	b := getOut()
	var off int
	b.b, off = wire.BeginFrame(b.b)
	var packed bool
	if b.b, packed = wire.AppendCompressed(b.b, codec, raw); packed {
		h.Flags |= wire.FlagCompressed
	} else {
		b.b = append(b.b, raw...)
	}
	b.b = wire.FinishFrame(b.b, off, h)
	return b
}

// queue adds an encoded answer to an operation, whose size pending holds as reserved.
func (s *Session) queue(op wire.Opcode, b *outBuf, reserved int) {
	s.mu.Lock()
	if s.state >= stateFinished {
		s.mu.Unlock()
		b.recycle()
		return
	}
	s.pending.Add(int64(len(b.b) - reserved))
	if s.behindStream(op) {
		s.streamed.Add(int64(len(b.b)))
		s.queueStream(b)
		return
	}
	if len(b.b) >= bigAnswerBytes {
		s.charge(b)
		s.big = append(s.big, b)
		s.unlockAndWake()
		return
	}
	// A compressed answer is small: one write for many of them is worth a copy.
	to := s.tail()
	to.b = append(to.b, b.b...)
	s.charge(to)
	s.unlockAndWake()
	b.recycle()
}

// unlockAndWake sees to it that what was just queued gets written. REQUIRES: mu held; it is released.
func (s *Session) unlockAndWake() {
	wake := !s.dirty && !s.feeding
	s.dirty = true
	s.mu.Unlock()
	if wake {
		s.drv.wake()
	}
}

// appendGoAway queues a GOAWAY: request id 0, a status, a text. REQUIRES: mu held.
func (s *Session) appendGoAway(st wire.Status, text string) {
	b := s.tail()
	before := len(b.b)
	b.b = wire.AppendGoAway(b.b, st, text, s.crc)
	s.charge(b)
	s.pending.Add(int64(len(b.b) - before))
}

// goAway ends the session in order: GOAWAY, then what is still under way, then no more. Any goroutine.
func (s *Session) goAway(st wire.Status, reason closeReason, text string) {
	s.mu.Lock()
	if s.state != stateOpen {
		s.mu.Unlock()
		return
	}
	s.state, s.reason = stateClosing, reason
	s.closingSince.Store(max(1, s.core.now()))
	s.appendGoAway(st, text)
	s.unlockAndWake()
	s.tellGone()
}

// startDrain tells the client to leave: requests are refused with DRAINING from the next bunch on, those
// under way are answered.
func (s *Session) startDrain() {
	s.mu.Lock()
	if s.state != stateOpen || s.draining {
		s.mu.Unlock()
		return
	}
	s.draining = true
	s.appendGoAway(wire.StatusDraining, wire.StatusDraining.Info().Message)
	s.unlockAndWake()
}

// finish ends the session without a word: what is under way is answered, then the connection is closed.
func (s *Session) finish(reason closeReason) {
	s.mu.Lock()
	if s.state != stateOpen {
		s.mu.Unlock()
		return
	}
	s.state, s.reason = stateClosing, reason
	s.closingSince.Store(max(1, s.core.now()))
	s.unlockAndWake()
	s.tellGone()
}

// abort ends the session at once; what is pending is dropped. Any goroutine.
func (s *Session) abort(reason closeReason) {
	s.mu.Lock()
	if s.state != stateDead {
		if s.state == stateOpen {
			s.reason = reason
		}
		s.state = stateDead
		s.dropQueues()
	}
	s.mu.Unlock()
	s.drv.kill()
}

// closed ends the session for good: the connection is gone. The driver calls it when neither feeder nor
// flusher runs. Calling it again does nothing.
func (s *Session) closed() {
	s.core.unregister(s)
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return
	}
	s.gone = true
	s.state = stateDead
	s.dropQueues()
	reason := s.reason // closedPeer unless someone decided otherwise
	s.mu.Unlock()
	s.core.counters.closed[reason].Add(1)
	s.releasePart()
	s.part = nil
	if s.cur != nil {
		s.cur.recycle()
		s.cur = nil
	}
	s.tellGone()
}
