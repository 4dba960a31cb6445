package consensus

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"kvstore/internal/clock"
	"kvstore/internal/failpoint"
)

// ack says that a follower answered an AppendEntries with success in the request's own term.
type ack struct {
	peer raft.ServerID
	term uint64
	// sentAt is the boot time in nanoseconds before the request was sent. What the follower then
	// promises (not to vote for a while) it promises from a later instant on.
	sentAt int64
	// match is the last index that the follower surely holds; 0 says nothing.
	match uint64
}

// peerAck is what is known of one follower in one term.
type peerAck struct {
	term   uint64
	sentAt int64
	match  uint64
}

// ackBook keeps the newest acknowledgement of each follower and derives from them how far back this
// node was surely the leader.
type ackBook struct {
	// Immutable.
	self raft.ServerID
	// voters appends the voters of the latest configuration, committed or not, to its argument. It is called
	// under mu.
	voters func([]raft.ServerID) []raft.ServerID
	// counts tells whether a follower's acknowledgements count for a lease. It is called under mu.
	counts func(id string) bool

	mu sync.Mutex
	// Guarded by mu.
	acks map[raft.ServerID]peerAck
}

func newAckBook(self raft.ServerID, voters func([]raft.ServerID) []raft.ServerID) *ackBook {
	return &ackBook{
		self: self, voters: voters, counts: func(string) bool { return true },
		acks: make(map[raft.ServerID]peerAck),
	}
}

// record notes an acknowledgement. Those of earlier terms than the newest known are dropped.
func (b *ackBook) record(a ack) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := b.acks[a.peer]
	switch {
	case a.term < known.term:
		return
	case a.term > known.term:
		known = peerAck{term: a.term, sentAt: math.MinInt64}
	}
	known.sentAt = max(known.sentAt, a.sentAt)
	known.match = max(known.match, a.match)
	b.acks[a.peer] = known
}

// of returns what is known of a follower in term.
func (b *ackBook) of(peer raft.ServerID, term uint64) (peerAck, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.acks[peer]
	return a, a.term == term && term > 0
}

// forget drops what is known of a node that is no longer a member.
func (b *ackBook) forget(peer raft.ServerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.acks, peer)
}

// The results of confirmed at its ends.
const (
	neverConfirmed  = math.MinInt64
	alwaysConfirmed = math.MaxInt64 // this node is a majority by itself
)

// confirmed returns Q(term): the newest instant (boot time) for which it is sure that a majority of the
// voters had not gone beyond term. It is the majority-th newest of the send times that the voters
// acknowledged in term, this node's own being now.
func (b *ackBook) confirmed(term uint64) int64 { return b.majority(term, false) }

// leased is confirmed by those voters alone whose clocks are known to keep the promise that a lease counts on.
func (b *ackBook) leased(term uint64) int64 { return b.majority(term, true) }

func (b *ackBook) majority(term uint64, leased bool) int64 {
	var idBuf [membersMax]raft.ServerID
	var timeBuf [membersMax]int64
	times := timeBuf[:0]
	b.mu.Lock()
	// Under mu: no acknowledgement that counts came after the configuration was asked for. Otherwise one of
	// a voter that was replaced twice over meanwhile could count for more than the old configuration can say.
	voters := b.voters(idBuf[:0])
	for _, v := range voters {
		at := int64(neverConfirmed)
		if v == b.self {
			at = alwaysConfirmed
		} else if a := b.acks[v]; a.term == term && (!leased || b.counts(string(v))) {
			at = a.sentAt
		}
		// Insertion, newest first: there are a handful.
		i := len(times)
		times = append(times, at)
		for ; i > 0 && times[i-1] < at; i-- {
			times[i] = times[i-1]
		}
		times[i] = at
	}
	b.mu.Unlock()
	if len(times) == 0 {
		return neverConfirmed
	}
	return times[len(times)/2] // the (n/2 + 1)-th newest
}

// lease is the read lease: while it holds, no other node can have become leader, so that the leader
// may serve linearizable reads from what it has applied without asking anyone. DESIGN.md has the proof.
type lease struct {
	// Immutable.
	clock    clock.Clock
	duration int64 // nanoseconds; not positive: never held

	mu sync.Mutex // orders extend and shorten

	// span is the newest lease; nil if there was none. Written under mu.
	span atomic.Pointer[leaseSpan]
	// revoked is the highest term whose lease was given up for good.
	revoked atomic.Uint64
}

// leaseSpan says that term's leader is alone until end. Immutable.
type leaseSpan struct {
	term uint64
	end  int64 // boot time in nanoseconds
}

// extend publishes that a majority was confirmed in term at the instant that leased returns, which is asked
// under mu: what shorten knew is known to whoever comes after it.
func (l *lease) extend(term uint64, leased func(term uint64) int64) {
	if l.duration <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	q := leased(term)
	if q == neverConfirmed || q == alwaysConfirmed {
		return
	}
	failpoint.Hit(failpoint.LeaseGrant)
	end := q + l.duration
	s := l.span.Load()
	if s == nil || s.term < term || s.term == term && s.end < end {
		l.span.Store(&leaseSpan{term: term, end: end})
	}
}

// shorten ends the lease where leased says now that it ends: an acknowledgement that it counted on does not
// count any more.
func (l *lease) shorten(leased func(term uint64) int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.span.Load()
	if s == nil {
		return
	}
	end := int64(math.MinInt64)
	if q := leased(s.term); q != neverConfirmed && q != alwaysConfirmed {
		end = q + l.duration
	}
	l.span.Store(&leaseSpan{term: s.term, end: min(s.end, end)})
}

// revoke gives up the leases of term and of all earlier terms for good. It returns true if term had not
// been revoked before.
func (l *lease) revoke(term uint64) bool {
	for {
		r := l.revoked.Load()
		if r >= term {
			return false
		}
		if l.revoked.CompareAndSwap(r, term) {
			return true
		}
	}
}

// holds reports whether the lease of term held at some instant during the call. The clock is read
// before revoked: had a transfer been announced before that reading, it would be seen.
func (l *lease) holds(term uint64) bool {
	s := l.span.Load()
	return s != nil && s.term == term && int64(l.clock.Boot()) < s.end && l.revoked.Load() < term
}

// Lease reports whether a linearizable read may be served from the applied state now. It costs one
// reading of the clock and a few atomic loads; ask once for a bunch of requests, after the last of them
// arrived and before the first is read. Only a leader holds a lease. A lone voter needs none.
func (g *Group) Lease() bool {
	term := g.leaderTerm.Load()
	if term == 0 {
		return false
	}
	if !g.lone.Load() && !g.lease.holds(term) {
		return false
	}
	// Last: a vote of this node's own for another would show here.
	return g.leads(term)
}

// leads reports whether raft says that this node leads term.
func (g *Group) leads(term uint64) bool {
	return g.raft.State() == raft.Leader && g.raft.CurrentTerm() == term
}

// onAck takes what a follower acknowledged. It runs on raft's replication goroutines.
func (g *Group) onAck(a ack) {
	<-g.started
	g.book.record(a)
	failpoint.Hit(failpoint.AckAfter)
	g.lease.extend(a.term, g.book.leased)
	g.reads.signal()
}

// revokeLease gives up the lease of the current term before leadership is handed over: the successor is
// elected at once, without waiting for the lease to end.
func (g *Group) revokeLease() {
	<-g.started
	if g.o.broken.revocation {
		return
	}
	// leaderTerm may not be set yet, or not any more; raft's term is never below it.
	if term := g.raft.CurrentTerm(); g.lease.revoke(term) {
		g.metrics.LeasesRevoked.Add(1)
		g.log.Info("gave up the read lease", "term", term)
	}
}
