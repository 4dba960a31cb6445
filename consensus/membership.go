package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/failpoint"
)

const (
	// changeTimeout is how long a change of the configuration waits for its turn when the caller's context
	// has no end: raft makes one change at a time, and none before the first entry of its term is committed.
	changeTimeout = 10 * time.Second
	// changeAnswerMax is how long such a call takes in all. A leader whose followers answer but store nothing
	// keeps its place, and a change without an end would wait with it.
	changeAnswerMax = 30 * time.Second
)

// PeerStatus is another member as this node sees it.
type PeerStatus struct {
	// ID, Address and Voter are those of the latest configuration.
	ID, Address string
	Voter       bool
	// Match is the last index that the member surely holds, as far as this leader knows; 0 if this node
	// does not lead or has not heard yet.
	Match uint64
	// Acked says whether the member has acknowledged anything in this term, and LastAck how long ago the
	// request was sent that it last acknowledged. Leader only.
	Acked   bool
	LastAck time.Duration
	// Connected says whether there is a connection to it or from it.
	Connected bool
	// Refused is why it refuses this node, or this node it, for good; empty if neither does.
	Refused string
}

// Peers returns the other members of the latest configuration. Match and LastAck are those of a leader.
func (g *Group) Peers() []PeerStatus {
	term := g.leaderTerm.Load()
	if !g.leads(term) {
		term = 0
	}
	connections := g.transport.connections()
	now := int64(g.o.clock.Boot())
	var out []PeerStatus
	for _, m := range g.members() {
		if m.ID == g.o.NodeID {
			continue
		}
		p := PeerStatus{ID: m.ID, Address: m.Address, Voter: m.Voter}
		if a, ok := g.book.of(raft.ServerID(m.ID), term); ok {
			p.Acked, p.Match, p.LastAck = true, a.match, time.Duration(max(now-a.sentAt, 0))
		}
		if c, ok := connections[m.ID]; ok {
			p.Connected, p.Refused = c.connected, c.refused
		}
		out = append(out, p)
	}
	return out
}

// AddLearner adds a member that receives the log and has no vote, or changes the address of one that
// is there, voter or not. It returns once the change is committed. Errors match ErrNotProposed or
// ErrUnknown.
func (g *Group) AddLearner(ctx context.Context, id, address string) error {
	if id == "" || address == "" || len(id) > candidateBytesMax || len(address) > candidateBytesMax {
		return fmt.Errorf("%w: a member needs an id and an address of at most %d bytes", ErrNotProposed, candidateBytesMax)
	}
	return g.change(ctx, "add "+id, func(members []Member, index uint64, timeout time.Duration) (raft.IndexFuture, error) {
		for _, m := range members {
			if m.ID == id && m.Address == address {
				return nil, nil
			}
			if m.ID != id && m.Address == address {
				return nil, fmt.Errorf("%w: %s is the address of member %s", ErrNotProposed, address, m.ID)
			}
		}
		if len(members) >= membersMax && !slices.ContainsFunc(members, func(m Member) bool { return m.ID == id }) {
			return nil, fmt.Errorf("%w: the group has %d members already", ErrNotProposed, len(members))
		}
		return g.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), index, timeout), nil
	})
}

// Promote gives a learner a vote. Whether it has caught up is the caller's care: until then it counts
// for majorities and holds nothing. Errors as with AddLearner; a voter is no error.
func (g *Group) Promote(ctx context.Context, id string) error {
	return g.change(ctx, "promote "+id, func(members []Member, index uint64, timeout time.Duration) (raft.IndexFuture, error) {
		i := slices.IndexFunc(members, func(m Member) bool { return m.ID == id })
		switch {
		case i < 0:
			return nil, fmt.Errorf("%w: there is no member %q", ErrNotProposed, id)
		case members[i].Voter:
			return nil, nil
		}
		return g.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(members[i].Address), index, timeout), nil
	})
}

// Remove takes a member out of the group; it never takes the last voter. A leader that removes itself
// gives up its lease, and steps down once that is committed. Errors as with AddLearner; an id that is no
// member is no error.
func (g *Group) Remove(ctx context.Context, id string) error {
	return g.change(ctx, "remove "+id, func(members []Member, index uint64, timeout time.Duration) (raft.IndexFuture, error) {
		found, voters := find(members, id)
		switch {
		case found.ID == "":
			return nil, nil
		case found.Voter && voters == 1:
			return nil, fmt.Errorf("%w: %s is the last voter", ErrNotProposed, id)
		}
		if id == g.o.NodeID {
			// From now on this node may lead without a vote. If one voter is left, that one stands as soon as
			// it starts, and needs nobody else: what it promised before it restarted binds it no longer.
			g.revokeLease()
		}
		return g.raft.RemoveServer(raft.ServerID(id), index, timeout), nil
	})
}

// Demote takes the vote of a member, which goes on receiving the log. It never takes the last one, nor that
// of the leader itself: leadership has to be handed over first, or the clients would wait for an election.
// Errors as with AddLearner; a learner is no error.
func (g *Group) Demote(ctx context.Context, id string) error {
	return g.demote(ctx, id, func([]Member) error { return nil })
}

// demote is Demote, unless check objects to the configuration that is changed.
func (g *Group) demote(ctx context.Context, id string, check func([]Member) error) error {
	return g.change(ctx, "demote "+id, func(members []Member, index uint64, timeout time.Duration) (raft.IndexFuture, error) {
		found, voters := find(members, id)
		switch {
		case found.ID == "":
			return nil, fmt.Errorf("%w: there is no member %q", ErrNotProposed, id)
		case !found.Voter:
			return nil, nil
		case voters == 1:
			return nil, fmt.Errorf("%w: %s is the last voter", ErrNotProposed, id)
		case id == g.o.NodeID:
			return nil, fmt.Errorf("%w: %s leads, and has to hand leadership over before it gives up its vote", ErrNotProposed, id)
		}
		if err := check(members); err != nil {
			return nil, err
		}
		return g.raft.DemoteVoter(raft.ServerID(id), index, timeout), nil
	})
}

// find returns a member, with an empty id if there is none, and the number of voters.
func find(members []Member, id string) (found Member, voters int) {
	for _, m := range members {
		if m.Voter {
			voters++
		}
		if m.ID == id {
			found = m
		}
	}
	return found, voters
}

// changeFunc starts one change, after a decision upon the configuration that was committed at index: it
// returns nil if there is nothing to do. raft is given the index and refuses the change of any other
// configuration.
type changeFunc func(members []Member, index uint64, timeout time.Duration) (raft.IndexFuture, error)

// change makes one change of the configuration. Changes of one node come one after the other, so that the
// latest configuration is the committed one; should another node have led meanwhile and changed it, raft
// refuses.
func (g *Group) change(ctx context.Context, what string, start changeFunc) error {
	timeout := changeTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Millisecond)
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, changeAnswerMax)
		defer cancel()
	}
	select {
	case g.changing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("cannot %s: %w: another change is under way: %w", what, ErrNotProposed, ctx.Err())
	case <-g.stop:
		return ErrClosed
	}
	if _, ok := g.LeaderTerm(); !ok {
		<-g.changing
		return ErrNotLeader
	}
	base := g.committed.Load()
	if base == nil {
		panic("BUG: this node leads, and its state machine was told no configuration")
	}
	if err := failpoint.Err(failpoint.MembershipBefore); err != nil {
		<-g.changing
		return fmt.Errorf("cannot %s: %w: %w", what, ErrNotProposed, err)
	}
	result := make(chan error, 1)
	// Owned by this call; ends with raft's answer, at the latest with the process: raft may forget a
	// change when it shuts down. The next change waits for it.
	go func() {
		// A lone leader's reads need nobody's word: that must end before raft may act on a second voter.
		g.countChange(+1)
		err := g.sorted(start(base.members, base.index, timeout))
		failpoint.Hit(failpoint.MembershipAfter)
		result <- err
		g.countChange(-1)
		<-g.changing
	}()
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	case <-g.stop:
		err = fmt.Errorf("%w: the group was closed", ErrUnknown)
	}
	if err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

// sorted waits for a change and sorts its outcome.
func (g *Group) sorted(f raft.IndexFuture, err error) error {
	if f == nil || err != nil {
		return err
	}
	err = f.Error()
	g.transfers.answered(err, time.Now())
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return ErrNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotProposed, err)
	case f.Index() == 0: // refused before it got a place in the log
		return fmt.Errorf("%w: %w", ErrNotProposed, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}

// countChange counts, by n, the changes of the configuration under way. While there is one, this node does not
// take itself for the only voter.
func (g *Group) countChange(n int) {
	g.leadershipMu.Lock()
	defer g.leadershipMu.Unlock()
	g.underway += n
	g.refreshLoneLocked()
}

// refreshLoneLocked works out whether this node is its own majority. REQUIRES: leadershipMu held.
func (g *Group) refreshLoneLocked() {
	g.lone.Store(g.underway == 0 && g.book.confirmed(g.raft.CurrentTerm()) == alwaysConfirmed)
}

// Transfer hands leadership to the voter id, or to the one that is furthest when id is empty. It gives
// up the read lease of this term first, for good: if the transfer fails, reads are confirmed by
// ReadIndex until the next election. Meanwhile proposals fail with ErrNotProposed. It returns nil once
// this node no longer leads; that the other one does is likely, not sure. After a failure the same node is
// asked again in the same term only once it has what it was missing then.
func (g *Group) Transfer(ctx context.Context, id string) error {
	term, ok := g.LeaderTerm()
	if !ok {
		return ErrNotLeader
	}
	target, err := g.successor(id, term)
	if err != nil {
		return err
	}
	g.revokeLease()
	g.log.Info("handing leadership over", "to", target.ID, "term", term)
	return g.await(ctx, g.o.ElectionTimeout+changeTimeout, func() error {
		g.transfers.begin()
		defer g.transfers.end()
		err := g.raft.LeadershipTransferToServer(raft.ServerID(target.ID), raft.ServerAddress(target.Address)).Error()
		switch {
		case err == nil, !g.leads(term):
			return nil
		case errors.Is(err, raft.ErrNotLeader):
			return ErrNotLeader
		}
		g.leadershipMu.Lock()
		g.failed[target.ID] = failedTransfer{term: term, last: g.raft.LastIndex()}
		g.leadershipMu.Unlock()
		return fmt.Errorf("cannot hand leadership to %s: %w", target.ID, err)
	})
}

// failedTransfer is a transfer of leadership that failed in term, when the log ended at last. raft asks the
// replicator of the target to hurry, through a channel with one place, and does not take the question back
// when its time is over. While the replicator is busy, with a node that does not answer or with a snapshot,
// a second question would wait, and with it raft, which refuses all proposals meanwhile; and should this
// node lose its leadership then, also those of all later terms.
type failedTransfer struct{ term, last uint64 }

// stuck tells whether raft's replicator may still have the question of a transfer to id that failed.
func (g *Group) stuck(id string, term uint64) bool {
	g.leadershipMu.Lock()
	f, ok := g.failed[id]
	g.leadershipMu.Unlock()
	if !ok || f.term != term {
		return false
	}
	a, ok := g.book.of(raft.ServerID(id), term)
	return !ok || a.match < f.last
}

// successor picks who is to lead next.
func (g *Group) successor(id string, term uint64) (Member, error) {
	if id == g.o.NodeID {
		return Member{}, fmt.Errorf("%w: %s leads already", ErrNotProposed, id)
	}
	var best Member
	var bestMatch uint64
	now := int64(g.o.clock.Boot())
	for _, m := range g.members() {
		if !m.Voter || m.ID == g.o.NodeID {
			continue
		}
		if id == m.ID && g.stuck(id, term) {
			return Member{}, fmt.Errorf("%w: handing leadership to %s has failed, and it still lags behind", ErrNotProposed, id)
		}
		if id == m.ID {
			return m, nil
		}
		a, ok := g.book.of(raft.ServerID(m.ID), term)
		fresh := ok && now-a.sentAt < int64(g.o.HeartbeatTimeout)
		if id == "" && fresh && !g.stuck(m.ID, term) && (best.ID == "" || a.match > bestMatch) {
			best, bestMatch = m, a.match
		}
	}
	switch {
	case id != "":
		return Member{}, fmt.Errorf("%w: there is no voter %q", ErrNotProposed, id)
	case best.ID == "":
		return Member{}, fmt.Errorf("%w: no other voter is in reach", ErrNotProposed)
	}
	return best, nil
}
