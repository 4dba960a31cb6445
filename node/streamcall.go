package node

import (
	"bytes"
	"context"
	"sync/atomic"

	"kvstore/wire"
)

// streamCallFrames is how many frames wait for the caller of Service.Stream.
const streamCallFrames = 2

// streamCall is the Pusher of one request whose frames somebody waits for.
type streamCall struct {
	frames chan wire.Response
	answer chan wire.Response // room for the only one
	wanted atomic.Bool        // a frame found no room
	left   atomic.Bool        // nobody takes frames any more
}

// Push implements wire.Pusher.
func (c *streamCall) Push(_ wire.Token, r *wire.Response) wire.PushResult {
	if c.left.Load() {
		return wire.PushGone
	}
	if len(c.frames) == cap(c.frames) {
		// Looked at again behind the wish: the caller sees it with the next frame that it takes, or has taken one.
		c.wanted.Store(true)
		if len(c.frames) == cap(c.frames) {
			return wire.PushFull
		}
	}
	// There is room: one sender at a time pushes for a stream, and this is the only one of c.
	c.frames <- wire.Response{Status: r.Status, More: true, Ext: bytes.Clone(r.Ext), Payload: bytes.Clone(r.Payload)}
	return wire.PushOK
}

// Complete implements wire.Completer.
func (c *streamCall) Complete(_ wire.Token, r *wire.Response) {
	c.answer <- wire.Response{Status: r.Status, Ext: bytes.Clone(r.Ext), Payload: bytes.Clone(r.Payload)}
}

// Stream executes a WATCH or a streamed SCAN for a door that has a goroutine for each request: it calls each with every
// frame in order and returns the final answer. While each runs, no more than a few frames are fetched, so that its
// pace is the stream's; credit is given back by itself. When each fails, or ctx ends, the stream ends and its final
// answer is StatusCancelled, unless it had another already. The frames are each's to keep.
func (s *Service) Stream(ctx context.Context, principal any, r *wire.Request, each func(*wire.Response) error) wire.Response {
	q := *r
	if q.ID == 0 {
		q.ID = 1
	}
	// As with Do: whoever leads, this node answers.
	q.AnyNode = !q.Stale
	c := &streamCall{frames: make(chan wire.Response, streamCallFrames), answer: make(chan wire.Response, 1)}
	s.Serve(c, principal, []wire.Request{q})
	take := func(f wire.Response) bool {
		if c.wanted.Swap(false) {
			s.Writable(c)
		}
		if each(&f) != nil {
			return false
		}
		s.Credit(c, q.ID, uint32(len(f.Payload)))
		return true
	}
	for {
		select {
		case f := <-c.frames:
			if !take(f) {
				return s.leave(c, q.ID)
			}
		case a := <-c.answer:
			// Whatever was pushed before it is in frames by now.
			for len(c.frames) > 0 {
				if !take(<-c.frames) {
					break
				}
			}
			return a
		case <-ctx.Done():
			return s.leave(c, q.ID)
		}
	}
}

// leave ends the stream that answers the only request of c, and waits for its final answer.
func (s *Service) leave(c *streamCall, id uint32) wire.Response {
	c.left.Store(true)
	s.Cancel(c, id)
	return <-c.answer
}
