package netloop

import "sync"

// outBuf holds encoded answers.
type outBuf struct {
	b []byte
	// charge is the capacity that core.out counts for it.
	charge int
	owner  *budget
	// stream: it is one of Session.streams, or was.
	stream bool
}

var outPool = sync.Pool{New: func() any { return &outBuf{b: make([]byte, 0, 4<<10)} }}

func getOut() *outBuf { return outPool.Get().(*outBuf) }

// recycle gives the memory back; b must not be used afterwards.
func (b *outBuf) recycle() {
	if b.charge > 0 {
		b.owner.give(b.charge)
		b.charge, b.owner = 0, nil
	}
	if cap(b.b) <= outKeepBytes {
		b.b, b.stream = b.b[:0], false
		outPool.Put(b)
	}
}

// tail is the buffer that small answers are appended to; call charge afterwards. REQUIRES: mu held.
func (s *Session) tail() *outBuf {
	if s.buf == nil {
		s.buf = getOut()
	}
	return s.buf
}

// charge counts the memory of b after it grew. REQUIRES: mu held.
func (s *Session) charge(b *outBuf) {
	if c := cap(b.b); c != b.charge {
		b.owner = &s.core.out
		b.owner.force(c - b.charge)
		b.charge = c
	}
}

// dropQueues forgets what is queued. REQUIRES: mu held.
func (s *Session) dropQueues() {
	if s.buf != nil {
		s.buf.recycle()
		s.buf = nil
	}
	for _, b := range s.big {
		b.recycle()
	}
	for _, b := range s.streams {
		b.recycle()
	}
	s.big, s.streams = nil, nil
}

// next gives bytes to write, or nil when there are none; then the next answer wakes the driver again.
// Small answers overtake large ones; frames of streams, which keep their order, take turns with both. Flusher only.
func (s *Session) next() []byte {
	if s.cur != nil && s.curOff < len(s.cur.b) {
		return s.cur.b[s.curOff:]
	}
	done := s.cur
	s.cur, s.curOff = nil, 0
	s.mu.Lock()
	switch {
	case s.state >= stateFinished:
		s.dirty = false
	case len(s.streams) > 0 && (s.ordinaryTaken || s.buf == nil && len(s.big) == 0):
		s.cur, s.ordinaryTaken = cutFirst(&s.streams), false
	case s.buf != nil:
		s.cur, s.buf, s.ordinaryTaken = s.buf, nil, true
	case len(s.big) > 0:
		s.cur, s.ordinaryTaken = cutFirst(&s.big), true
	default:
		s.dirty = false
		// An answer that is still being encoded counts in pending and will wake us.
		if s.state == stateClosing && s.inflight == 0 && s.pending.Load() == 0 {
			s.state = stateFinished
			s.finishedAt.Store(max(1, s.core.now()))
		}
	}
	s.mu.Unlock()
	if done != nil {
		done.recycle()
	}
	if s.cur == nil {
		if s.stalledSince.Load() != 0 {
			s.stalledSince.Store(0)
		}
		return nil
	}
	return s.cur.b
}

// cutFirst takes the first buffer off a queue that has one.
func cutFirst(q *[]*outBuf) *outBuf {
	b := (*q)[0]
	(*q)[0] = nil
	if *q = (*q)[1:]; len(*q) == 0 {
		*q = nil
	}
	return b
}

// sent tells that n bytes of what next gave are written. Flusher only.
func (s *Session) sent(n int) {
	s.curOff += n
	s.pending.Add(int64(-n))
	if s.cur.stream {
		s.streamed.Add(int64(-n))
	}
	s.shard.bytesOut.Add(uint64(n))
	if s.wanted.Load() {
		s.grant()
	}
}

// stalled tells that the peer takes no more for now; progress says whether it took something since the
// last call. Flusher only.
func (s *Session) stalled(progress bool) {
	if progress || s.stalledSince.Load() == 0 {
		s.stalledSince.Store(s.core.now())
	}
}

// finished reports whether everything is sent and the sending side may be shut. Flusher only.
func (s *Session) finished() bool { return s.finishedAt.Load() != 0 }
