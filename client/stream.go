package client

import (
	"fmt"
	"sync"

	"kvstore/wire"
)

// stream gathers the frames of one attempt of a call whose answer has many; the last one goes to the call itself. The
// reader of a connection pushes and never waits; whoever made the call takes, and gives credit back. What it holds is
// bounded by the credit: a server that sends more breaks the protocol.
type stream struct {
	// Immutable.
	credit int
	ready  chan struct{} // capacity 1: there is a frame

	mu sync.Mutex
	// Guarded by mu.
	frames []streamFrame
	bytes  int // of payload that was pushed and not given back
	exts   int // bytes of elements in frames
}

// streamFrame is one frame; its slices belong to it.
type streamFrame struct {
	ext, payload []byte
}

func newStream(credit int) *stream { return &stream{credit: credit, ready: make(chan struct{}, 1)} }

// push takes a frame that came. ErrProtocol: the server has sent beyond its credit.
func (s *stream) push(ext, payload []byte, owned bool) error {
	if !owned {
		b := make([]byte, len(ext)+len(payload))
		n := copy(b, ext)
		copy(b[n:], payload)
		ext, payload = b[:n:n], b[n:]
	}
	s.mu.Lock()
	// Frames that cost nothing could pile up without end, and so could elements, which credit does not count.
	if len(payload) == 0 || s.exts > max(s.credit, wire.ExtBytesMax) {
		s.mu.Unlock()
		return fmt.Errorf("%w: a frame of a stream with %d bytes of payload, behind %d bytes of elements", ErrProtocol, len(payload), s.exts)
	}
	// Each frame takes the length of its payload, and the last one may take more than there is.
	if s.bytes >= s.credit {
		s.mu.Unlock()
		return fmt.Errorf("%w: a stream has sent %d bytes of a credit of %d, and %d more", ErrProtocol, s.bytes, s.credit, len(payload))
	}
	s.bytes += len(payload)
	s.exts += len(ext)
	s.frames = append(s.frames, streamFrame{ext, payload})
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default:
	}
	return nil
}

// pop gives the next frame; ok is false when there is none.
func (s *stream) pop() (f streamFrame, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.frames) == 0 {
		return f, false
	}
	f = s.frames[0]
	s.frames[0] = streamFrame{}
	s.exts -= len(f.ext)
	if s.frames = s.frames[1:]; len(s.frames) == 0 {
		s.frames = nil
	}
	return f, true
}

// giveBack returns credit for n bytes of payload that were consumed to the server, over the connection that cl was
// sent over. REQUIRES: cl is the call of this stream, and was not released.
func (s *stream) giveBack(cl *call, n int) {
	s.mu.Lock()
	s.bytes -= n
	s.mu.Unlock()
	c := cl.cn
	c.mu.Lock()
	sl := &c.slots[cl.slot]
	if c.err != nil || sl.call != cl {
		c.mu.Unlock()
		return // it has ended
	}
	c.appendControl(wire.OpCredit, wire.AppendCredit(nil, cl.id, uint32(n)))
	lead, gather := c.lead()
	c.mu.Unlock()
	if lead {
		c.flush(gather)
	}
}

// feed is a stream under way, for one caller at a time: it takes frames in order and gives credit back by halves.
type feed struct {
	cl    *call
	st    *stream
	spent int  // consumed and not given back yet
	taken int  // of the frame that pop gave last
	ended bool // cl has its result
}

// next gives the next frame that is there. It counts the frame before as consumed.
func (f *feed) next() (streamFrame, bool) {
	if f.taken > 0 {
		f.spent, f.taken = f.spent+f.taken, 0
		if !f.ended && 2*f.spent >= f.st.credit {
			f.st.giveBack(f.cl, f.spent)
			f.spent = 0
		}
	}
	fr, ok := f.st.pop()
	if ok {
		f.taken = len(fr.payload)
	}
	return fr, ok
}

// end gives the stream up, if it has not ended, and releases its call.
func (f *feed) end() {
	if f.cl == nil {
		return
	}
	if !f.ended && !f.cl.cn.abandon(f.cl) {
		<-f.cl.ch
	}
	f.cl.release()
	f.cl = nil
}
