package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"kvstore/wire"
)

// session is one registration at the servers. Within it each write has a sequence number, under which the
// state machine keeps its result, so that a write sent twice is applied once.
type session struct {
	// Immutable.
	id  uint64
	ttl time.Duration

	// Guarded by sessions.mu. Invariant: floor ≤ last < floor + wire.SessionWindow + 1.
	last  uint64 // highest sequence number given out
	floor uint64 // every number ≤ floor is finished: it will not be sent again
	live  int    // numbers given out and not finished
	fresh time.Duration
	done  [wire.SessionWindow / 64]uint64 // finished numbers above floor, by number modulo window
}

// usable reports whether a write may begin in the session. A session lives for its TTL after its last
// write; an idle client lets it lapse, and opens another one when half of that time may have passed.
func (s *session) usable(now time.Duration) bool {
	return s.live > 0 || now-s.fresh < s.ttl/2
}

// sessions opens sessions and hands out their sequence numbers.
type sessions struct {
	client *Client

	// Guarded by mu.
	mu      sync.Mutex
	cur     *session // nil: none is open
	opening bool
	err     error // of the last attempt to open
	off     bool  // the server knows no sessions
	waiters waitq // for an open session, or for room in its window
}

// acquire gives the write its place in a session, waiting for one to be opened and for room in its window.
// It reports false when that can't be had in time; cl.res says why.
func (s *sessions) acquire(ctx context.Context, cl *call) bool {
	for {
		s.mu.Lock()
		if s.off {
			s.mu.Unlock()
			cl.clearSession()
			return true
		}
		now := cl.time(s.client)
		if cur := s.cur; cur != nil && cur.usable(now) {
			if cur.last-cur.floor < wire.SessionWindow {
				cur.last++
				if cur.live++; cur.live == 1 {
					cur.fresh = now
				}
				cl.sess, cl.seq = cur, cur.last
				floor := cur.floor
				s.mu.Unlock()
				cl.setSession(cur.id, cl.seq, floor)
				return true
			}
		} else if !s.opening {
			// open: owned by the client; ends with the answer or the client.
			if !s.client.spawn(s.open) {
				s.mu.Unlock()
				cl.res.stop = ErrClosed
				return false
			}
			s.cur, s.opening = nil, true
		}
		s.waiters.push(cl)
		s.mu.Unlock()

		if err := s.client.wait(ctx, cl, cl.ch, forever); err != nil {
			s.mu.Lock()
			waiting := cl.waiting
			if waiting {
				s.waiters.remove(cl)
			}
			if s.err != nil {
				cl.res.err = s.err
			}
			s.mu.Unlock()
			if !waiting {
				<-cl.ch
			}
			if cl.res.err == nil {
				cl.res.err = s.client.route.trouble()
			}
			cl.res.stop = err
			return false
		}
		s.mu.Lock()
		err := s.err
		s.mu.Unlock()
		var e *Error
		if errors.As(err, &e) && e.Status.Class() == wire.ClassRefused {
			cl.res.err, cl.res.stop = err, err
			return false
		}
	}
}

// open registers a session.
func (s *sessions) open() {
	c := s.client
	start := c.now()
	cl := newCall(wire.OpSessionOpen, "", wantPayload)
	// An answer that got lost leaves a session that nobody uses and that expires: asking again is safe.
	cl.write = false
	c.steer(cl)
	c.do(c.ctx, cl)
	grant, ok := wire.DecodeSessionGrant(cl.res.data)
	err := c.errorOf(cl)
	c.route.resign(cl)
	if err == nil && (!ok || grant.Session == 0) {
		err = &Error{Op: cl.op.String(), kind: ErrProtocol, Message: "the grant of a session is malformed"}
	}
	status := cl.res.status
	cl.release()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening, s.err = false, err
	switch {
	case err == nil:
		s.cur = &session{id: grant.Session, ttl: time.Duration(grant.TTLMs) * time.Millisecond, fresh: start}
	case status == wire.StatusUnknownOp || status == wire.StatusUnsupported:
		s.off, s.err = true, nil
		c.o.logger.Warn("the server knows no sessions: a write whose outcome is unknown will not be retried")
	}
	s.wakeAll()
}

// wakeAll lets every waiter look again. REQUIRES: mu held.
func (s *sessions) wakeAll() {
	for cl := s.waiters.pop(); cl != nil; cl = s.waiters.pop() {
		cl.signal()
	}
}

// finish ends a write's claim on its sequence number: it will not be sent again. An abandoned write that
// the server meets only after a later one is refused then, since that one's floor is above it.
func (s *sessions) finish(cl *call) {
	ss := cl.sess
	if ss == nil {
		return
	}
	cl.sess = nil
	s.mu.Lock()
	ss.live--
	if cl.seq != ss.floor+1 {
		ss.done[cl.seq/64%uint64(len(ss.done))] |= 1 << (cl.seq % 64)
		s.mu.Unlock()
		return
	}
	ss.floor++
	for ss.floor < ss.last {
		n := ss.floor + 1
		w, bit := &ss.done[n/64%uint64(len(ss.done))], uint64(1)<<(n%64)
		if *w&bit == 0 {
			break
		}
		*w &^= bit
		ss.floor++
	}
	if s.waiters.head != nil {
		s.wakeAll()
	}
	s.mu.Unlock()
}

// discard gives up a session that the server no longer knows.
func (s *sessions) discard(ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur == ss {
		s.cur, s.err = nil, nil
		s.wakeAll()
	}
}

// closing gives the call that ends the session, nil when there is none.
func (s *sessions) closing() *call {
	s.mu.Lock()
	ss := s.cur
	s.cur = nil
	s.mu.Unlock()
	if ss == nil {
		return nil
	}
	cl := newCall(wire.OpSessionClose, "", wantNothing)
	cl.write, cl.once = false, true
	cl.setSession(ss.id, ss.last, ss.floor)
	return cl
}
