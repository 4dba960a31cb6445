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
	// AutoCreateNamespaces has the leader create a namespace that a write names and that doesn't exist; a read in such a
	// one finds nothing. Default: both are refused with NO_NAMESPACE.
	AutoCreateNamespaces bool
	// FollowerReadTimeout bounds, on a node that does not lead, how long linearizable reads wait for the
	// leader's word on how far this node must have applied, and then for it to have applied as much; beyond
	// it they are refused with RETRY_LATER. Default 2 s: a leader takes up to twice its heartbeat timeout
	// (1.2 s) to be confirmed.
	FollowerReadTimeout time.Duration
	// StreamsMax bounds the watches and streamed listings of all doors together; more are refused with TOO_MANY.
	// Default and most 65,536.
	StreamsMax int
	// StreamSenders is the number of goroutines that send for them. Default one for each processor, 4 at least.
	StreamSenders int
	// WatchAlone is for how long a node that knows no leader goes on with its watches. Default 4 s.
	WatchAlone time.Duration
}

// Service executes requests for all doors. It implements the handler that netloop declares and the
// service that gateway declares.
type Service struct {
	// Immutable after newService.
	o     ServiceOptions
	shard *Shard
	reads *readPool
	// follower is where reads wait that this node may not answer by itself.
	follower *followerReads
	board    *board
	admin    *admin
	info     *nodeInfo
	// limits is what the requests of a namespace may take of this node.
	limits    *limits
	newcomers *newcomers
	streams   *streams
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
	s.follower = newFollowerReads(s, o.FollowerReadTimeout)
	s.board, s.admin = newBoard(s), newAdmin(s)
	s.limits, s.newcomers = shard.limits, newNewcomers(s)
	s.streams = newStreams(s, shard.feed, o.StreamsMax, o.StreamSenders, o.WatchAlone)
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
		Features:     h.Features & (wire.FeatureSessions | wire.FeatureWatch),
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
// the leadership, or the leader has said how far this node must have applied, where that is needed. It never
// blocks; each request is answered exactly once through c.
func (s *Service) Serve(c wire.Completer, principal any, reqs []wire.Request) {
	p := principal.(*Principal)
	now := s.shard.now()
	// One decision for all reads of the bunch, after their arrival and before the first of them.
	way := readUndecided
	age, aged := uint64(0), false
	var jobs [readVias]*readJob
	queue := func(via readVia, i int, ns uint32, age uint64) {
		if job := jobs[via]; job != nil && len(job.items) >= readJobItemsMax {
			s.reads.hand(via, job)
			jobs[via] = nil
		}
		jobs[via] = s.reads.add(jobs[via], c, ns, &reqs[i], now+int64(reqs[i].Timeout()), age)
	}
	var cached *cachedReads
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
		}
		if way == readUndecided {
			way = s.shard.howToRead()
		}
		via := viaNothing
		switch {
		case r.Op == wire.OpReadIndex:
			s.readIndex(c, r, way)
			continue
		case r.Op == wire.OpWatch:
			s.startWatch(c, ns, r, way, deadline)
			continue
		case r.Stale:
			if !s.shard.serves() {
				refuse(c, r.Token(), s.shard.notLeading())
				continue
			}
			if !aged {
				age, aged = s.follower.age(way), true
			}
			if r.MaxAgeMs != 0 && !young(age, r.MaxAgeMs) {
				// What is confirmed from now on has no age.
				via = way.via()
			}
		case way == readElsewhere && !(r.AnyNode && s.shard.serves()):
			refuse(c, r.Token(), s.shard.notLeading())
			continue
		default:
			via = way.via()
		}
		itsAge := age
		if via != viaNothing {
			itsAge = 0
		}
		single := r.Op == wire.OpGet || r.Op == wire.OpExists
		switch {
		case streamed(r):
			s.startListing(c, ns, r, via, deadline, itsAge)
		case !single:
			// A job of its own: it may be long, and others of its bunch should not wait behind it.
			s.reads.hand(via, s.reads.add(nil, c, ns, r, deadline, itsAge))
		case via != viaNothing:
			queue(via, i, ns, itsAge)
		default:
			if cached == nil {
				cached = cachedReadsOf(s, c, reqs)
			}
			if !cached.add(i, ns, itsAge) {
				queue(viaNothing, i, ns, itsAge)
			}
		}
	}
	if cached != nil {
		// Together, after the decision of howToRead for each of them: what was acknowledged before they came is in the state
		// that they are read from.
		cached.answer(func(i int, ns uint32, age uint64) { queue(viaNothing, i, ns, age) })
		cached.release()
	}
	for via, job := range jobs {
		if job != nil {
			s.reads.hand(readVia(via), job)
		}
	}
}

// refuse answers t with a refusal.
func refuse(c wire.Completer, t wire.Token, ref *wire.Refusal) {
	var scratch [64]byte
	r := wire.ErrorResponse(ref, scratch[:0])
	c.Complete(t, &r)
}
