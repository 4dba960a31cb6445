package node

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

const (
	// pursueMax bounds how long Do follows the leadership for one request: an election takes one to two
	// seconds, and a caller that has waited for two of them should hear that there is none.
	pursueMax = 5 * time.Second
	// pursuePauseMin and pursuePauseMax bound the pause between two attempts; it doubles, with full jitter.
	pursuePauseMin = 5 * time.Millisecond
	pursuePauseMax = 100 * time.Millisecond
)

// forwardStats counts requests passed on to the leader by what came of them.
type forwardStats struct {
	done, retry, refused, unknown atomic.Uint64
}

// observe counts one answer.
func (f *forwardStats) observe(st wire.Status) {
	switch st.Class() {
	case wire.ClassResult:
		f.done.Add(1)
	case wire.ClassRetry:
		f.retry.Add(1)
	case wire.ClassRefused:
		f.refused.Add(1)
	default:
		f.unknown.Add(1)
	}
}

// homeless reports whether an answer says that the request surely was not executed because the node that was
// asked does not lead at present, while another node or a later moment may serve it.
func homeless(st wire.Status) bool {
	return st == wire.StatusNotLeader || st == wire.StatusNoLeader || st == wire.StatusNotReady
}

// pursue finds the leader for a request that this node cannot serve, passes it on, and goes on doing so while
// the answers say that it surely was not executed. An unknown outcome is never followed by another attempt. Nobody
// waits for a leader that others follow while this node has not reached it for as long as that.
func (s *Service) pursue(ctx context.Context, principal any, r *wire.Request, a wire.Response) wire.Response {
	end := time.Now().Add(min(pursueMax, r.Timeout()))
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	ctx, cancel := context.WithDeadline(ctx, time.Now().Add(r.Timeout()))
	defer cancel()
	pause := pursuePauseMin
	asked, hinted := "", ""
	for {
		var denied *denial
		address, _, known := s.shard.leaderElsewhere()
		if hinted != "" {
			address, known = hinted, true
		}
		switch {
		case s.draining.Load():
			return wire.Response{Status: wire.StatusDraining}
		case s.shard.leading():
			a, asked = s.attempt(ctx, principal, r), ""
		case known:
			a, denied = s.forward(ctx, address, r)
			asked = address
		}
		if !s.again(r, a.Status, asked != "") || denied != nil && denied.hopeless {
			return a
		}
		// Another node than the one that was asked leads: that one can be asked at once, but only once.
		if hint := leaderHint(a.Ext); a.Status == wire.StatusNotLeader && hint != "" && hint != asked && hint != hinted && hint != s.shard.roster.self.Address {
			hinted = hint
			continue
		}
		hinted = ""
		wait := rand.N(pause) + pause/2
		if pause = min(2*pause, pursuePauseMax); time.Now().Add(wait).After(end) {
			return a
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return a
		}
	}
}

// again reports whether r may be tried again after an answer. A leader that is stopping hands its leadership
// over, so that its DRAINING is worth another attempt elsewhere; a read may be repeated whatever became of it.
func (s *Service) again(r *wire.Request, st wire.Status, forwarded bool) bool {
	return homeless(st) || forwarded && st == wire.StatusDraining || st == wire.StatusRetryLater && r.Op.IsRead()
}

// forward passes r on to the node at address, with what is left of its time. With a denial it was not sent.
func (s *Service) forward(ctx context.Context, address string, r *wire.Request) (wire.Response, *denial) {
	q := *r
	if d, ok := ctx.Deadline(); ok {
		q.TimeoutMs = uint32(min(max(time.Until(d).Milliseconds(), 1), wire.TimeoutMax.Milliseconds()))
	}
	a, denied := s.shard.peers.do(ctx, address, &q)
	if denied == nil {
		s.forwarded.observe(a.Status)
	}
	return a, denied
}

// leaderHint gives the leader's address that an answer names, "" when it names none.
func leaderHint(ext []byte) string {
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return ""
		}
		if ext = rest; t == wire.ExtLeader {
			return string(v)
		}
	}
	return ""
}
