package node

import (
	"bytes"
	"context"
	"time"

	"kvstore/wire"
)

// call is the Completer of one request that somebody waits for.
type call struct{ answer chan wire.Response }

// Complete copies the answer for the waiting goroutine. The channel has room for the only one there is,
// so that it never blocks even when nobody waits any more.
func (c *call) Complete(_ wire.Token, r *wire.Response) {
	c.answer <- wire.Response{Status: r.Status, Replayed: r.Replayed, Ext: bytes.Clone(r.Ext), Payload: bytes.Clone(r.Payload)}
}

// Do executes one request and waits for its answer: the way of doors that have a goroutine for each
// request. What another node must execute is passed on to it; see pursue. r's bytes may be used again once it
// returns. When ctx ends first, the answer to a read is StatusTooLate and that to a change StatusTimeout, whose
// outcome is unknown.
func (s *Service) Do(ctx context.Context, principal any, r *wire.Request) wire.Response {
	if d, ok := ctx.Deadline(); ok && r.TimeoutMs == 0 {
		// At least one millisecond: 0 would ask for the default.
		r.TimeoutMs = uint32(min(max(time.Until(d).Milliseconds(), 1), wire.TimeoutMax.Milliseconds()))
	}
	// A read that must be linearizable is answered here, whoever leads; the leader is asked in full only if that
	// fails.
	r.AnyNode = r.Op.IsRead() && !r.Stale
	a := s.attempt(ctx, principal, r)
	unserved := homeless(a.Status) || a.Status == wire.StatusRetryLater && r.Op.IsRead() ||
		a.Status == wire.StatusCompacted && r.AtRevision != 0 && !s.shard.leading() // another node may keep more of the past
	if unserved && (!r.Stale || r.MaxAgeMs != 0) {
		return s.pursue(ctx, principal, r, a)
	}
	return a
}

// attempt executes r on this node.
func (s *Service) attempt(ctx context.Context, principal any, r *wire.Request) wire.Response {
	c := call{answer: make(chan wire.Response, 1)}
	s.Serve(&c, principal, []wire.Request{*r})
	select {
	case a := <-c.answer:
		return a // most reads are answered at once, and waiting for ctx is not free
	default:
	}
	select {
	case a := <-c.answer:
		return a
	case <-ctx.Done():
		if r.Op.IsWrite() || r.Op == wire.OpAdmin {
			return wire.Response{Status: wire.StatusTimeout}
		}
		return wire.Response{Status: wire.StatusTooLate}
	}
}

// Anonymous is the principal of doors while there are no users.
func (s *Service) Anonymous() any { return anonymous }
