package netloop

import (
	"fmt"

	"kvstore/wire"
)

// FrameMax is the largest body, extension block and payload together, that the client takes in one frame.
func (s *Session) FrameMax() int { return s.answerMax }

// Push implements wire.Pusher. It encodes, and packs where a codec was agreed, on the caller's goroutine, which is
// therefore never an event loop; frames of one stream keep their order by that.
// REQUIRES: the frame's body is at most FrameMax.
func (s *Session) Push(t wire.Token, r *wire.Response) wire.PushResult {
	body := len(r.Ext) + len(r.Payload)
	if body > s.answerMax || len(r.Ext) > wire.ExtBytesMax {
		panic(fmt.Sprintf("BUG: a frame of %d bytes, %d of them extensions, pushed to a client that takes %d", body, len(r.Ext), s.answerMax))
	}
	size := wire.HeaderBytes + body
	frame := *r
	frame.More = true

	s.mu.Lock()
	if s.state != stateOpen {
		s.mu.Unlock()
		return wire.PushGone
	}
	if !s.room() {
		s.mu.Unlock()
		s.core.counters.pushFull.Add(1)
		return wire.PushFull
	}
	s.pending.Add(int64(size))
	s.streamed.Add(int64(size))
	if body < bigAnswerBytes && (s.codec == wire.CodecNone || body < wire.CompressBytesMin) {
		b := s.streamTail()
		b.b = wire.AppendResponse(b.b, t, &frame, s.crc, 0)
		s.charge(b)
		s.unlockAndWake()
		return wire.PushOK
	}
	s.mu.Unlock()
	var b *outBuf
	if s.codec == wire.CodecNone || body < wire.CompressBytesMin {
		b = &outBuf{b: make([]byte, 0, size)}
		b.b = wire.AppendResponse(b.b, t, &frame, s.crc, 0)
	} else {
		raw := append(append(make([]byte, 0, body), r.Ext...), r.Payload...)
		b = packAnswer(s.answerHeader(t, &frame, 0), s.codec, raw)
	}
	s.mu.Lock()
	if s.state >= stateFinished {
		s.mu.Unlock()
		b.recycle()
		return wire.PushGone
	}
	shrunk := int64(len(b.b) - size)
	s.pending.Add(shrunk)
	s.streamed.Add(shrunk)
	s.queueStream(b)
	return wire.PushOK
}

// room reports whether a frame of a stream may be queued; where not, the flusher will call Handler.Writable.
// REQUIRES: mu held.
func (s *Session) room() bool {
	most := int64(s.core.o.StreamBytes)
	if s.core.out.used.Load() > s.core.out.limit {
		most = min(most, outShareBytes)
	}
	if s.pending.Load() <= most {
		return true
	}
	// The flusher may have passed the half before it could see the wish: then it is taken back here, or it has
	// been granted.
	s.wanted.Store(true)
	return s.pending.Load() <= most/2 && s.wanted.CompareAndSwap(true, false)
}

// grant tells the handler that streams have room again, if it waits for that. Flusher only; no lock held.
func (s *Session) grant() {
	if s.pending.Load() > int64(s.core.o.StreamBytes)/2 || !s.wanted.CompareAndSwap(true, false) {
		return
	}
	defer s.core.survive("writable", func() { s.abort(closedPanic) })
	s.core.handler.Writable(s)
}

// tellGone tells the handler, once, that streams are over. No lock held.
func (s *Session) tellGone() {
	if s.goneTold.Swap(true) {
		return
	}
	defer s.core.survive("gone", func() {})
	s.core.handler.Gone(s)
}

// streamTail is the buffer that small frames of streams are appended to; call charge afterwards. Frames of streams
// have a queue of their own, in which none overtakes another. REQUIRES: mu held.
func (s *Session) streamTail() *outBuf {
	if n := len(s.streams); n > 0 && len(s.streams[n-1].b) < bigAnswerBytes {
		return s.streams[n-1]
	}
	b := getOut()
	b.stream = true
	s.streams = append(s.streams, b)
	return b
}

// queueStream adds an encoded frame that pending and streamed hold. REQUIRES: mu held; it is released.
func (s *Session) queueStream(b *outBuf) {
	if len(b.b) >= bigAnswerBytes {
		b.stream = true
		s.charge(b)
		s.streams = append(s.streams, b)
		s.unlockAndWake()
		return
	}
	to := s.streamTail()
	to.b = append(to.b, b.b...)
	s.charge(to)
	s.unlockAndWake()
	b.recycle()
}

// behindStream reports whether the answer to an operation that may be a stream has to wait behind frames of streams:
// its own may be among them. REQUIRES: mu held.
func (s *Session) behindStream(op wire.Opcode) bool {
	return len(s.streams) > 0 && (op == wire.OpWatch || op == wire.OpScan)
}

// ordinary is what waits to be written and is no frame of a stream: what the caps of requests look at. The two numbers
// are not read at one instant, so it may be off by what is written or queued meanwhile.
func (s *Session) ordinary() int64 { return s.pending.Load() - s.streamed.Load() }
