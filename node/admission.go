package node

import (
	"kvstore/internal/diskguard"
	"kvstore/wire"
)

// retryAfterMs is the pause that a BUSY answer suggests. The queues behind it drain in milliseconds when
// the disk keeps up, so a short pause with the client's jitter is enough.
const retryAfterMs = 5

// admit decides whether r may go on. It returns the numeric namespace, or a refusal: surely not applied.
func (s *Service) admit(p *Principal, r *wire.Request) (ns uint32, refusal *wire.Refusal) {
	if s.draining.Load() {
		return 0, &wire.Refusal{Status: wire.StatusDraining}
	}
	if uint32(r.Group) != s.shard.id {
		return 0, &wire.Refusal{Status: wire.StatusBadRequest, Text: "this node has no such group"}
	}
	if ns = wire.NamespaceDefault; len(r.Namespace) != 0 && string(r.Namespace) != "default" {
		return 0, &wire.Refusal{Status: wire.StatusNoNamespace}
	}
	if !s.authorize(p, ns, r) {
		return 0, &wire.Refusal{Status: wire.StatusDenied}
	}
	if ok, after := s.o.Limiter.Allow(p, r.Op, len(r.Body)); !ok {
		return 0, &wire.Refusal{Status: wire.StatusLimited, RetryAfterMs: after}
	}
	if r.Op.IsWrite() {
		return ns, s.admitWrite(r)
	}
	return ns, nil
}

// admitWrite refuses a write that cannot be stored here and now.
func (s *Service) admitWrite(r *wire.Request) *wire.Refusal {
	if !s.shard.leading() {
		return s.shard.notLeading()
	}
	disks := s.shard.health.disks
	switch disks.writable() {
	case diskguard.OK:
		return nil
	case diskguard.Low:
		if onlyDeletes(r) {
			return nil
		}
	}
	return &wire.Refusal{Status: wire.StatusDiskFull, RetryAfterMs: 1000, Text: disks.fullText()}
}

// onlyDeletes reports whether r stores nothing of a user's. A session counts as nothing: it is small, there
// are at most wire.SessionsMax, and a client opens one before its first delete.
func onlyDeletes(r *wire.Request) bool {
	switch r.Op {
	case wire.OpDelete, wire.OpSessionOpen, wire.OpSessionClose:
		return true
	case wire.OpBatch, wire.OpTxn:
		for it := range items(r.Payload) {
			if it.Op == wire.OpPut {
				return false
			}
		}
		return true
	}
	return false
}

// items walks the items of a validated batch, transaction or MULTIGET.
func items(payload []byte) func(yield func(*wire.Item) bool) {
	return func(yield func(*wire.Item) bool) {
		_, n, b, err := wire.DecodeGroup(payload)
		if err != nil {
			return
		}
		var it wire.Item
		for range n {
			if b, err = wire.NextItem(b, &it); err != nil || !yield(&it) {
				return
			}
		}
	}
}

// authorize asks for every operation that r holds and tells the audit sink.
func (s *Service) authorize(p *Principal, ns uint32, r *wire.Request) bool {
	if s.o.Authorizer.Open() && !s.auditing {
		return true
	}
	switch r.Op {
	case wire.OpBatch, wire.OpTxn, wire.OpMultiGet:
		for it := range items(r.Payload) {
			if !s.askItem(p, ns, it.Op, it.Key, it.Ext) {
				return false
			}
		}
		return true
	case wire.OpScan:
		var q wire.ScanRequest
		if wire.DecodeScanRequest(r.Payload, &q) != nil {
			return false
		}
		a := Access{Op: r.Op, Namespace: ns, Key: q.Start, End: q.End}
		if len(q.Prefix) != 0 {
			a.Key, a.Prefix = q.Prefix, true
		}
		return s.ask(p, &a)
	}
	return s.askItem(p, ns, r.Op, r.Key, r.Ext)
}

// askItem asks for one operation on one key, and once more as OpCheck when it carries conditions: whether
// they hold tells something of the record to those who may not read it.
func (s *Service) askItem(p *Principal, ns uint32, op wire.Opcode, key, ext []byte) bool {
	if !s.ask(p, &Access{Op: op, Namespace: ns, Key: key}) {
		return false
	}
	if op != wire.OpPut && op != wire.OpDelete && op != wire.OpGet || len(ext) == 0 {
		return true
	}
	if _, _, conditional := wire.NextCondition(ext); !conditional {
		return true
	}
	return s.ask(p, &Access{Op: wire.OpCheck, Namespace: ns, Key: key})
}

func (s *Service) ask(p *Principal, a *Access) bool {
	ok := s.o.Authorizer.Authorize(p, a)
	if s.o.Audit.Wants(a.Op, ok) {
		s.o.Audit.Audit(&AuditEvent{Principal: p, Op: a.Op, Namespace: a.Namespace, Key: a.Key, Allowed: ok})
	}
	return ok
}
