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
	board *board
	admin *admin
	info  *nodeInfo
	// auditing: there is a sink, so that every operation must be looked at.
	auditing bool

	draining  atomic.Bool
	forwarded forwardStats
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
	s.board, s.admin = newBoard(s), newAdmin(s)
	return s
}

// Hello decides on a new connection of the binary protocol.
func (s *Service) Hello(_ net.Addr, h *wire.Hello) (ack wire.HelloAck, principal any, refusal *wire.Refusal) {
	cluster, _, ok := s.shard.engine.Identity()
	if len(h.ClusterID) != 0 && !ok {
		return ack, nil, &wire.Refusal{Status: wire.StatusNotReady, Text: "this node does not know its cluster yet", RetryAfterMs: leaderRetryMs}
	}
	if len(h.ClusterID) != 0 && [16]byte(h.ClusterID) != cluster {
		return ack, nil, &wire.Refusal{Status: wire.StatusDenied, Text: "this node belongs to another cluster than the client expects"}
	}
	members, term := s.members()
	// The door adds what is its own: checksums, compression, the largest frame and the credits.
	ack = wire.HelloAck{
		Features:     h.Features & wire.FeatureSessions,
		ClusterID:    cluster,
		NodeID:       s.info.NodeID,
		Version:      s.info.Version,
		Term:         term,
		SessionTTLMs: uint64(wire.SessionTTL / time.Millisecond),
		Members:      members,
	}
	return ack, anonymous, nil
}

// members lists the nodes of the cluster whose binary port is known, with the leader as far as it is, and the
// term that it leads.
func (s *Service) members() ([]wire.MemberInfo, uint64) {
	leader, _, term := s.shard.group.Leader()
	if leader == s.info.NodeID && !s.shard.leading() {
		leader = "" // it has won the election, but can't serve yet
	}
	var out []wire.MemberInfo
	for _, m := range s.shard.group.Status().Configuration {
		if known, ok := s.shard.roster.member(m.ID); ok && known.Address != "" {
			out = append(out, wire.MemberInfo{ID: m.ID, Address: known.Address, Voter: m.Voter, Leader: m.ID == leader})
		}
	}
	return out, term
}

// Serve starts the requests of one bunch. Writes are copied into the batcher's open entry; reads are
// answered from the hot-record cache at once or go to the read pool together, after a majority has confirmed
// the leadership where that is needed. It never blocks; each request is answered exactly once through c.
func (s *Service) Serve(c wire.Completer, principal any, reqs []wire.Request) {
	p := principal.(*Principal)
	now := s.shard.now()
	// One decision for all linearizable reads of the bunch, after their arrival and before the first of them.
	way := readUndecided
	var job, unconfirmed *readJob
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
			continue
		case r.Op == wire.OpStatus:
			s.board.serve(c, ns, r, deadline)
			continue
		case r.Op == wire.OpAdmin:
			s.admin.begin(c, r, deadline)
			continue
		case r.Stale:
			if !s.shard.serves() {
				refuse(c, r.Token(), s.shard.notLeading())
				continue
			}
		default:
			if way == readUndecided {
				way = s.shard.howToRead()
			}
			if way == readElsewhere {
				refuse(c, r.Token(), s.shard.notLeading())
				continue
			}
		}
		single := r.Op == wire.OpGet || r.Op == wire.OpExists
		switch {
		case way == readConfirmed && !r.Stale && single:
			if unconfirmed != nil && len(unconfirmed.items) >= readJobItemsMax {
				s.reads.confirm(unconfirmed)
				unconfirmed = nil
			}
			unconfirmed = s.reads.add(unconfirmed, c, ns, r, deadline)
		case way == readConfirmed && !r.Stale:
			s.reads.confirm(s.reads.add(nil, c, ns, r, deadline))
		case !single:
			s.reads.solo(c, ns, r, deadline)
		case !s.cached(c, ns, r):
			if job != nil && len(job.items) >= readJobItemsMax {
				s.reads.submit(job)
				job = nil
			}
			job = s.reads.add(job, c, ns, r, deadline)
		}
	}
	if job != nil {
		s.reads.submit(job)
	}
	if unconfirmed != nil {
		s.reads.confirm(unconfirmed)
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
