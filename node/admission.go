package node

import (
	"bytes"

	"kvstore/internal/diskguard"
	"kvstore/wire"
)

// retryAfterMs is the pause that a BUSY answer suggests. The queues behind it drain in milliseconds when
// the disk keeps up, so a short pause with the client's jitter is enough.
const retryAfterMs = 5

// admit decides whether r may go on. It returns the numeric namespace, or a refusal: surely not applied. The namespace
// is wire.NamespaceNone where the name stands for none: what that means is for the state to say that answers the
// request (readItem.resolve, Service.write).
func (s *Service) admit(p *Principal, r *wire.Request) (ns uint32, refusal *wire.Refusal) {
	if s.draining.Load() {
		return 0, &wire.Refusal{Status: wire.StatusDraining}
	}
	if uint32(r.Group) != s.shard.id {
		return 0, &wire.Refusal{Status: wire.StatusBadRequest, Text: "this node has no such group"}
	}
	ns, _ = s.shard.namespace(r.Namespace)
	if !s.authorize(p, ns, r) {
		return 0, &wire.Refusal{Status: wire.StatusDenied}
	}
	if ok, after := s.o.Limiter.Allow(p, ns, r.Op, len(r.Body)); !ok {
		return 0, &wire.Refusal{Status: wire.StatusLimited, RetryAfterMs: after}
	}
	switch {
	case r.Op.IsWrite():
		return ns, s.admitWrite(ns, r)
	case r.Op.IsRead() || r.Op == wire.OpWatch:
		return ns, s.limits.allow(s.shard, ns, r.Items)
	}
	return ns, nil
}

// admitWrite refuses a write that cannot be stored here and now.
func (s *Service) admitWrite(ns uint32, r *wire.Request) *wire.Refusal {
	if !s.shard.leading() {
		return s.shard.notLeading()
	}
	if ref := s.tooNew(r); ref != nil {
		return ref
	}
	disks := s.shard.health.disks
	switch st := disks.writable(); {
	case st == diskguard.OK, st == diskguard.Low && onlyDeletes(r):
		if r.Op == wire.OpSessionOpen || r.Op == wire.OpSessionClose {
			return nil // they belong to no namespace
		}
		return s.limits.allow(s.shard, ns, r.Items)
	}
	return &wire.Refusal{Status: wire.StatusDiskFull, RetryAfterMs: 1000, Text: disks.fullText()}
}

// write starts a mutation that was admitted. A name that stands for nothing is refused at once where this node is sure of
// it, or created. Otherwise the log decides: it knows whether a write that is sent again was done before its namespace was
// dropped, and a node that others have replaced as leader does not get so far.
func (s *Service) write(c wire.Completer, p *Principal, ns uint32, r *wire.Request, deadline int64) {
	if len(r.Namespace) != 0 {
		level := s.shard.engine.Level()
		switch {
		case s.o.AutoCreateNamespaces && level >= levelNamespaces && (ns != wire.NamespaceNone || wire.ValidNamespaceName(string(r.Namespace))):
			if s.newcomers.hold(c, p, ns, r, deadline) {
				return
			}
		case ns == wire.NamespaceNone && (r.Session == 0 && len(r.Idempotency) == 0 || level < levelNamespaces) && s.shard.howToRead() == readNow:
			if ns, _ = s.shard.namespace(r.Namespace); ns == wire.NamespaceNone {
				refuse(c, r.Token(), s.noNamespace(r.Namespace))
				return
			}
			if !s.authorize(p, ns, r) {
				refuse(c, r.Token(), &wire.Refusal{Status: wire.StatusDenied})
				return
			}
		}
	}
	if ns == wire.NamespaceNone {
		c = &namelessWrite{Completer: c, s: s, name: bytes.Clone(r.Namespace)}
	}
	s.submit(c, p, ns, r, deadline)
}

// namelessWrite answers a write into an unknown namespace about which the log decides: that knows no names.
type namelessWrite struct {
	wire.Completer
	s    *Service
	name []byte
}

// Complete puts the name into the refusal.
func (w *namelessWrite) Complete(t wire.Token, r *wire.Response) {
	if r.Status == wire.StatusNoNamespace {
		refuse(w.Completer, t, w.s.noNamespace(w.name))
		return
	}
	w.Completer.Complete(t, r)
}

// submit hands a mutation to the batcher.
func (s *Service) submit(c wire.Completer, p *Principal, ns uint32, r *wire.Request, deadline int64) {
	op := wire.Op{
		Op: r.Op, Namespace: ns, Session: r.Session, Seq: r.Seq, Floor: r.Floor,
		Principal: p.ID, AuthRevision: p.AuthRevision,
	}
	if st := s.shard.batcher.Submit(&op, r.Body, len(r.Ext), len(r.Key), c, r.Token(), deadline); st != wire.StatusOK {
		refuse(c, r.Token(), &wire.Refusal{Status: st, RetryAfterMs: retryAfterMs})
	}
}

// onlyDeletes reports whether r stores nothing of a user's. A session counts as nothing: it is small, there
// are at most wire.SessionsMax, and a client opens one before its first delete.
func onlyDeletes(r *wire.Request) bool {
	switch r.Op {
	case wire.OpDelete, wire.OpSessionOpen, wire.OpSessionClose:
		return true
	case wire.OpBatch, wire.OpTxn:
		for it := range items(r.Payload) {
			if it.Op == wire.OpPut || it.Op == wire.OpTouch || it.Op == wire.OpIncrement {
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
	if r.Op == wire.OpWatch {
		var q wire.WatchRequest
		if wire.DecodeWatchRequest(r.Payload, &q) != nil {
			return false
		}
		a := Access{Op: r.Op, Namespace: ns, Key: q.Start, End: q.End}
		switch {
		case q.Flags&wire.WatchKey != 0:
			a.End = append(bytes.Clone(q.Start), 0)
		case len(q.Prefix) != 0:
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
	if !op.IsMutation() && op != wire.OpGet || len(ext) == 0 {
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
