package node

import (
	"net"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// ServiceOptions are the decisions that a Service leaves to others, and the bounds of its reads.
type ServiceOptions struct {
	// Authorizer decides on each operation. Default AllowAll.
	Authorizer Authorizer
	// Limiter bounds the rate of requests. Default NoLimit.
	Limiter Limiter
	// Audit is told of access. Default NoAudit.
	Audit AuditSink
	// ReadWorkers is the number of goroutines that read from the engine's tables. Default one for each
	// processor.
	ReadWorkers int
	// ReadQueueBytes bounds the copies of requests that wait for them. Default 16 MiB.
	ReadQueueBytes int
}

// Service executes requests for all doors. It implements the handler that netloop declares and the
// service that gateway declares.
type Service struct {
	// Immutable after newService.
	o     ServiceOptions
	shard *Shard
	reads *readPool
	info  *nodeInfo
	// auditing: there is a sink, so that every operation must be looked at.
	auditing bool

	draining atomic.Bool
}

func newService(o ServiceOptions, shard *Shard, info *nodeInfo) *Service {
	if o.Authorizer == nil {
		o.Authorizer = AllowAll{}
	}
	if o.Limiter == nil {
		o.Limiter = NoLimit{}
	}
	if o.Audit == nil {
		o.Audit = NoAudit{}
	}
	_, silent := o.Audit.(NoAudit)
	s := &Service{o: o, shard: shard, info: info, auditing: !silent}
	s.reads = newReadPool(s, o.ReadWorkers, o.ReadQueueBytes)
	return s
}

// Hello decides on a new connection of the binary protocol.
func (s *Service) Hello(_ net.Addr, h *wire.Hello) (ack wire.HelloAck, principal any, refusal *wire.Refusal) {
	cluster, _, ok := s.shard.engine.Identity()
	if len(h.ClusterID) != 0 && (!ok || [16]byte(h.ClusterID) != cluster) {
		return ack, nil, &wire.Refusal{Status: wire.StatusDenied, Text: "this node belongs to another cluster than the client expects"}
	}
	st := s.shard.group.Status()
	// The door adds what is its own: checksums, compression, the largest frame and the credits.
	ack = wire.HelloAck{
		Features:     h.Features & wire.FeatureSessions,
		ClusterID:    cluster,
		NodeID:       s.info.NodeID,
		Version:      s.info.Version,
		Term:         st.Term,
		SessionTTLMs: uint64(wire.SessionTTL / time.Millisecond),
		Members:      []wire.MemberInfo{{ID: s.info.NodeID, Address: s.info.Advertise, Voter: true, Leader: s.shard.leading()}},
	}
	return ack, anonymous, nil
}

// Serve starts the requests of one bunch. Writes are copied into the batcher's open entry; reads are
// answered from the hot-record cache at once or go to the read pool together. It never blocks; each
// request is answered exactly once through c.
func (s *Service) Serve(c wire.Completer, principal any, reqs []wire.Request) {
	p := principal.(*Principal)
	now := s.shard.now()
	// One check for all reads of the bunch, after their arrival and before the first of them.
	readable := s.shard.readable()
	var job *readJob
	for i := range reqs {
		r := &reqs[i]
		ns, refusal := s.admit(p, r)
		if refusal != nil {
			refuse(c, r.Token(), refusal)
			continue
		}
		deadline := now + int64(r.Timeout())
		switch {
		case r.Op.IsWrite():
			s.write(c, p, ns, r, deadline)
		case r.Op == wire.OpStatus:
			s.reads.solo(c, ns, r, deadline)
		case !readable && !r.Stale:
			refuse(c, r.Token(), s.shard.notLeading())
		case r.Op == wire.OpGet || r.Op == wire.OpExists:
			if !s.cached(c, ns, r) {
				job = s.reads.add(job, c, ns, r, deadline)
			}
		default:
			s.reads.solo(c, ns, r, deadline)
		}
	}
	if job != nil {
		s.reads.submit(job)
	}
}

// Cancel does nothing: an operation in the open entry or in flight cannot be taken back, and reads are
// short. The request is answered by its final frame as always, which is all that the protocol promises.
func (s *Service) Cancel(wire.Completer, uint32) {}

// write hands a mutation to the batcher.
func (s *Service) write(c wire.Completer, p *Principal, ns uint32, r *wire.Request, deadline int64) {
	op := wire.Op{
		Op: r.Op, Namespace: ns, Session: r.Session, Seq: r.Seq, Floor: r.Floor,
		Principal: p.ID, AuthRevision: p.AuthRevision,
	}
	if st := s.shard.batcher.Submit(&op, r.Body, len(r.Ext), len(r.Key), c, r.Token(), deadline); st != wire.StatusOK {
		refuse(c, r.Token(), &wire.Refusal{Status: st, RetryAfterMs: retryAfterMs})
	}
}

// refuse answers t with a refusal.
func refuse(c wire.Completer, t wire.Token, ref *wire.Refusal) {
	var scratch [64]byte
	r := wire.ErrorResponse(ref, scratch[:0])
	c.Complete(t, &r)
}
