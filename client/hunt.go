package client

import (
	"math/rand/v2"
	"time"

	"kvstore/wire"
)

// While no leader is known, one call, the pilot, goes from node to node at short intervals with its own
// request; the others wait until an answer shows that there is a leader, and then follow all at once. So a
// client with thousands of callers asks a cluster that is electing no more often than one with a single
// caller does, and is as quick to find the new leader. Those who wait still try by themselves once in a
// while: the pilot's own request may take long.
//
// The baton is a channel with room for one, which holds a token while nobody is the pilot.

// hunt enters the hunt for a leader: nil makes cl the pilot, else what is given is closed when a leader was
// found.
func (r *route) hunt(cl *call) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hunting.Store(true)
	if !cl.pilot {
		select {
		case <-r.baton:
			cl.pilot = true
		default:
			if r.found == nil {
				r.found = make(chan struct{})
			}
			return r.found
		}
	}
	return nil
}

// met ends the hunt: a leader has answered.
func (r *route) met() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hunting.Store(false)
	if r.found != nil {
		close(r.found)
		r.found = nil
	}
}

// resign gives up the pilot's place with the end of the call.
func (r *route) resign(cl *call) {
	if cl.pilot {
		cl.pilot = false
		r.baton <- struct{}{}
	}
}

// seek readies another attempt of a call that found no leader: the pilot soon, others when it succeeds, or
// after a while. It costs nothing of the budget: the pilot is one, and the others wait as long as a spent
// budget demands.
func (c *Client) seek(cl *call, asked time.Duration) (again bool, pause time.Duration) {
	cl.backoffs++
	if cl.found = c.route.hunt(cl); cl.found != nil {
		return c.fit(cl, max(asked, backoffMax/2+rand.N(backoffMax/2)))
	}
	// Most often a connection that ended, or a leader that moved: the first retry finds it.
	if cl.backoffs > 1 {
		pause = backoff(cl.backoffs-2, huntMax)
	}
	return c.fit(cl, max(asked, pause))
}

// leaderless tells the route of an answer that no leader gives, and reports whether it was one. moved: the
// leader is known to be another node.
func (c *Client) leaderless(cl *call) (is, moved bool) {
	n, r := cl.cn.link.node, &cl.res
	switch r.status {
	case wire.StatusNotLeader:
		if c.route.redirect(n, r.fail.leader, r.fail.term) {
			return true, true
		}
		c.route.leave(n)
	case wire.StatusNoLeader, wire.StatusNotReady, wire.StatusLeadershipLost:
		c.route.leave(n)
	case wire.StatusDraining, wire.StatusShutdown:
		// Others may name it for a while yet.
		c.route.shun(n)
	default:
		return false, false
	}
	return true, false
}
