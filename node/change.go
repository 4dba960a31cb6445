package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

// The changes that administrators ask for. Each is asked of the leader, holds the only token of whoever changes
// the membership, and may be asked again: what is done already is no error. Where one takes several steps, the
// member's record is written in an order that tells the keeper of whoever leads after a crash what is left to do.

// configured gives a member of the configuration.
func (a *admin) configured(id string) (m consensus.Member, all []consensus.Member, ok bool) {
	all = a.s.shard.group.Status().Configuration
	i := slices.IndexFunc(all, func(m consensus.Member) bool { return m.ID == id })
	if i < 0 {
		return m, all, false
	}
	return all[i], all, true
}

// add takes a node in as a learner: first its record, so that every node knows which data directory the id
// stands for before it talks to it, then the configuration. Asking again changes nothing.
func (a *admin) add(ctx context.Context, q *adminRequest) error {
	incarnation, err := parseBits(q.Incarnation)
	if err != nil {
		return refusef(wire.StatusBadRequest, "incarnation %v: a node is added by starting it with --join, which tells all of this by itself", err)
	}
	want := wire.Member{
		ID: q.ID, Incarnation: incarnation, RaftAddress: q.RaftAddress, Address: q.Address,
		HTTPAddress: q.HTTPAddress, GRPCAddress: q.GRPCAddress, Version: q.Version,
	}
	if err := checkMember(&want); err != nil {
		return refusef(wire.StatusBadRequest, "%v", err)
	}
	shard := a.s.shard
	configured, all, isMember := a.configured(want.ID)
	known, isKnown := shard.engine.Member(want.ID)
	if !isKnown && isMember {
		if known, isKnown = shard.roster.member(want.ID); !isKnown {
			return refusef(wire.StatusRetryLater, "%s is a member whose data directory is not known yet; nothing was changed: try again", want.ID)
		}
	}
	switch {
	case isKnown && known.Removed && known.Incarnation == want.Incarnation:
		return refusef(wire.StatusDenied, "node %s was removed with this data directory, which is refused for ever: start it with --join and an empty --data-dir", want.ID)
	case isMember && known.Removed:
		return refusef(wire.StatusRetryLater, "the removal of the old %s is not finished; nothing was changed: try again", want.ID)
	case isKnown && isMember && known.Incarnation != want.Incarnation:
		return refusef(wire.StatusDenied, "node %s is a member with another data directory (incarnation %x). If that one is lost, take it out first (kvctl member remove %s), then start this node with --join again; "+
			"if this is another node, give it another --node-id", want.ID, known.Incarnation, want.ID)
	}
	for _, m := range all {
		if err := checkAddress(m.Address); err != nil {
			return refusef(wire.StatusDenied, "%s could not be reached by a further node: raft address %v: restart it with --raft-advertise, --advertise and --http-advertise", m.ID, err)
		}
		if m.ID != want.ID && m.Address == want.RaftAddress {
			return refusef(wire.StatusDenied, "%s has the raft address %s already: give the new node another --raft-listen or --raft-advertise", m.ID, m.Address)
		}
	}
	if !isMember && len(all) >= clusterNodesMax {
		return refusef(wire.StatusDenied, "the cluster has %d nodes, the most there may be", len(all))
	}
	// What a renewed card told besides is kept, and so is what operators wish of the name.
	want.Level, want.Priority = known.Level, known.Priority
	want.NoPromote = known.NoPromote && known.Incarnation == want.Incarnation
	if !isKnown || known != want {
		if err := shard.proposeMember(ctx, &want); err != nil {
			return err
		}
	}
	if isMember && configured.Address == want.RaftAddress {
		return nil
	}
	return shard.group.AddLearner(ctx, want.ID, want.RaftAddress)
}

// remove takes a member out for ever. A voter loses its vote first: what follows then needs nobody's word but that
// of those who stay. (Of two voters the one that is to go stops as soon as it reads in its record that it was
// removed; were it still a voter after a crash at that moment, the other could never lead again.) Then its record
// is marked, and the keeper of whoever leads will finish the rest: it is taken out of the configuration.
func (a *admin) remove(ctx context.Context, id string) error {
	shard := a.s.shard
	m, all, isMember := a.configured(id)
	record, isKnown := shard.roster.member(id)
	switch {
	case !isMember && isKnown && record.Removed:
		return nil
	case !isMember && !isKnown:
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	case isMember && len(all) == 1:
		return refusef(wire.StatusDenied, "%s is the only member; nothing was changed", id)
	}
	if m.Voter {
		if err := a.disenfranchise(ctx, id); err != nil {
			return err
		}
	}
	if !isKnown {
		// A founder that never connected since this node started: nothing is known but its place.
		record = wire.Member{ID: id, RaftAddress: m.Address}
	}
	record.Removed = true
	if err := shard.proposeMember(ctx, &record); err != nil {
		if m.Voter {
			return &statusError{wire.StatusLeadershipLost, fmt.Sprintf("the removal of %s has begun and is not finished: it has no vote at present, and becomes a voter again by itself unless it is removed: ask again (%v)", id, err)}
		}
		return err
	}
	if !isMember {
		return nil
	}
	return begun("removal", id, shard.group.Remove(ctx, id))
}

// disenfranchise takes the vote of the voter id, after the checks; a leader hands its leadership over instead, so
// that the next one does it.
func (a *admin) disenfranchise(ctx context.Context, id string) error {
	if err := a.spare(ctx, id, ""); err != nil {
		return err
	}
	return a.s.shard.group.Demote(ctx, id)
}

// spare refuses to do without the voter id where the others, with one more unless that is empty, would be no majority,
// and where it is this leader, which hands its leadership over instead.
func (a *admin) spare(ctx context.Context, id, with string) error {
	if err := a.enoughWithout(ctx, id, with); err != nil {
		return err
	}
	if id == a.s.shard.roster.self.ID {
		return a.yield(ctx)
	}
	return nil
}

// yield hands the leadership over and refuses the change, which the next leader shall make: callers follow the
// leadership by themselves.
func (a *admin) yield(ctx context.Context) error {
	if err := a.transfer(ctx, ""); err != nil {
		return refusef(wire.StatusRetryLater, "%s leads the cluster and could not hand the leadership over first (%v); nothing was changed: try again", a.s.shard.roster.self.ID, err)
	}
	return refusef(wire.StatusNotLeader, "")
}

// begun says of a change whose record is written that it is under way, however certain err is about the change
// of the configuration: the keeper of whoever leads will make it.
func begun(what, id string, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{wire.StatusLeadershipLost, fmt.Sprintf("the %s of %s has begun, and whoever leads will finish it by itself; it is not finished yet: %v", what, id, err)}
}

// enoughWithout refuses a change after which the voters that can be reached would be no majority: the cluster
// would stand still. The voter id is gone then, and with is one, unless it is empty. A voter counts only once it has
// answered something that was sent after the question: one that died a moment ago has been heard of lately.
func (a *admin) enoughWithout(ctx context.Context, id, with string) error {
	voters, alive := 0, 0
	enough := a.await(ctx, a.patience(), func(since time.Duration) bool {
		voters, alive = 0, 0
		for _, d := range a.document().Members {
			if d.ID == id || d.Role != "voter" && d.ID != with {
				continue
			}
			voters++
			if d.ID == a.s.shard.roster.self.ID || d.heardWithin(since) {
				alive++
			}
		}
		return voters == 0 || alive >= voters/2+1
	})
	switch {
	case voters == 0:
		return refusef(wire.StatusDenied, "%s is the only voter; nothing was changed: add another node first", id)
	case !enough:
		return refusef(wire.StatusDenied, "without %s, %d of %d voters could be reached, which is no majority; nothing was changed: bring the others back first", id, alive, voters)
	}
	return nil
}

// inReach refuses unless the member answers this leader now.
func (a *admin) inReach(ctx context.Context, id string) error {
	if a.await(ctx, a.patience(), func(since time.Duration) bool {
		return slices.ContainsFunc(a.document().Members, func(d memberDocument) bool { return d.ID == id && d.heardWithin(since) })
	}) {
		return nil
	}
	return refusef(wire.StatusDenied, "%s does not answer the leader, so it cannot lead; nothing was changed: bring it back first, or leave the name out", id)
}

// patience is as long as a leader may need to hear of a member that is well: several heartbeats.
func (a *admin) patience() time.Duration { return max(heardMax, a.s.shard.health.kept) }

// await asks until the answer is yes, for that long. The function is told how long ago the asking began.
func (a *admin) await(ctx context.Context, long time.Duration, is func(since time.Duration) bool) bool {
	begun := time.Now()
	end := begun.Add(long)
	for {
		if is(time.Since(begun)) {
			return true
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// heardWithin tells whether the member answered something that was sent within the last d.
func (m *memberDocument) heardWithin(d time.Duration) bool {
	return m.LastContactMs >= 0 && time.Duration(m.LastContactMs+1)*time.Millisecond <= d
}

// heardMax bounds the wait for a first sign of life of the members under a new leader: they answer its first
// heartbeat, or not at all.
const heardMax = time.Second

// heard waits until this leader has heard of all members in its term, for heardMax at most: a leader that was asked
// as soon as it was elected knows of nobody that he is alive.
func (a *admin) heard(ctx context.Context) {
	a.await(ctx, heardMax, func(time.Duration) bool {
		return !slices.ContainsFunc(a.document().Members, func(d memberDocument) bool { return d.LastContactMs < 0 })
	})
}

// caughtUp refuses unless the member keeps up with this leader: a voter that does not makes the others wait.
func (a *admin) caughtUp(id string) error {
	for _, d := range a.document().Members {
		if d.ID == id && (d.State != stateOK || d.Lag > promoteLagMax) {
			return refusef(wire.StatusRetryLater, "%s has not caught up (%s, %d entries behind); nothing was changed: try again once it has", id, d.State, d.Lag)
		}
	}
	return nil
}

// promote makes a learner a voter without waiting for the time that it would take by itself, and also one that an
// operator had demoted.
func (a *admin) promote(ctx context.Context, id string) error {
	m, _, isMember := a.configured(id)
	if !isMember {
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	}
	if !m.Voter {
		if err := a.caughtUp(id); err != nil {
			return err
		}
	}
	shard := a.s.shard
	if record, ok := shard.engine.Member(id); ok && record.NoPromote {
		// First, or the keeper would take the vote away again. From here on the learner is promoted in any case.
		record.NoPromote = false
		if err := shard.proposeMember(ctx, &record); err != nil {
			return err
		}
		if !m.Voter {
			return begun("promotion", id, shard.group.Promote(ctx, id))
		}
	}
	if m.Voter {
		return nil
	}
	return shard.group.Promote(ctx, id)
}

// demote makes a voter a learner, which it stays until it is promoted: it goes on to hold all data and to serve what
// needs no leader. First its record says so, then the configuration.
func (a *admin) demote(ctx context.Context, id string) error {
	shard := a.s.shard
	m, _, isMember := a.configured(id)
	record, isKnown := shard.roster.member(id)
	switch {
	case !isMember:
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	case !isKnown:
		return refusef(wire.StatusRetryLater, "%s is a member whose data directory is not known yet; nothing was changed: try again", id)
	}
	if m.Voter {
		if err := a.spare(ctx, id, ""); err != nil {
			return err
		}
	}
	if !record.NoPromote {
		record.NoPromote = true
		if err := shard.proposeMember(ctx, &record); err != nil {
			return err
		}
	}
	if !m.Voter {
		return nil
	}
	return begun("demotion", id, shard.group.Demote(ctx, id))
}

// replace takes id out for ever. With another member, that one has its vote first, so that there are never fewer
// voters than before; it has caught up, or nothing happens. Without one, the node itself comes back under the same
// name with an empty directory: its old one is lost or refused.
func (a *admin) replace(ctx context.Context, id, with string) error {
	shard := a.s.shard
	old, _, isMember := a.configured(id)
	record, isKnown := shard.roster.member(id)
	gone := !isMember && isKnown && record.Removed
	if !isMember && !gone {
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	}
	if with == "" {
		// Now, not lately: it may just have been stopped for this.
		if isMember && (id == shard.roster.self.ID || a.inReach(ctx, id) == nil) {
			return refusef(wire.StatusDenied, "%s runs with the data directory that the cluster knows: there is nothing to replace; nothing was changed. To take it out all the same: kvctl member remove %s", id, id)
		}
		return a.remove(ctx, id)
	}
	successor, _, ok := a.configured(with)
	switch {
	case with == id:
		return refusef(wire.StatusBadRequest, "%s cannot take its own place: leave the other name out if it comes back with an empty data directory; nothing was changed", id)
	case !ok:
		return refusef(wire.StatusDenied, "%s is no member, so it cannot take the place of %s; nothing was changed: start it with --join first", with, id)
	}
	if old.Voter && !successor.Voter {
		if err := a.caughtUp(with); err != nil {
			return err
		}
	}
	if old.Voter {
		if err := a.spare(ctx, id, with); err != nil {
			return err
		}
		if err := a.promote(ctx, with); err != nil {
			return err
		}
	}
	if gone {
		return nil
	}
	if err := a.remove(ctx, id); err != nil {
		if successor.Voter || !old.Voter {
			return err
		}
		return &statusError{wire.StatusLeadershipLost, fmt.Sprintf("%s is a voter now and %s is not removed yet: ask again (%v)", with, id, err)}
	}
	return nil
}

// prioritise sets how much a member is wished for as the leader. What a node says of itself (--leader-priority)
// stands against it: the keeper would write it again.
func (a *admin) prioritise(ctx context.Context, q *adminRequest) error {
	shard := a.s.shard
	if q.Priority == nil || *q.Priority < 0 || *q.Priority > wire.MemberPriorityMax {
		return refusef(wire.StatusBadRequest, "a priority is a whole number from 0 to %d; nothing was changed", wire.MemberPriorityMax)
	}
	want := uint8(*q.Priority)
	_, _, isMember := a.configured(q.ID)
	record, isKnown := shard.engine.Member(q.ID)
	own, _ := shard.roster.card(q.ID)
	if q.ID == shard.roster.self.ID {
		own = shard.roster.self
	}
	switch {
	case !isMember:
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", q.ID)
	case !isKnown:
		return refusef(wire.StatusRetryLater, "%s is a member whose data directory is not known yet; nothing was changed: try again", q.ID)
	case own.Priority != 0 && own.Priority != want && own.Incarnation == record.Incarnation:
		return refusef(wire.StatusDenied, "%s was started with --leader-priority %d, which stands; nothing was changed: restart it without, or with another", q.ID, own.Priority)
	case record.Priority == want:
		return nil
	}
	record.Priority = want
	return shard.proposeMember(ctx, &record)
}

// transfer hands the leadership over and returns when the new leader is known.
func (a *admin) transfer(ctx context.Context, id string) error {
	shard := a.s.shard
	self := shard.roster.self.ID
	if id == self {
		return nil
	}
	if m, all, isMember := a.configured(id); id != "" && !isMember {
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	} else if id != "" && !m.Voter {
		return refusef(wire.StatusDenied, "%s is a learner, which cannot lead; nothing was changed", id)
	} else if id == "" && len(all) == 1 {
		return refusef(wire.StatusDenied, "%s is the only member; nothing was changed", self)
	}
	if id != "" {
		// raft would ask a node that does not answer all the same, and take no write meanwhile.
		if err := a.inReach(ctx, id); err != nil {
			return err
		}
	}
	switch err := shard.group.Transfer(ctx, id); {
	case errors.Is(err, consensus.ErrNotProposed), err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return refusef(wire.StatusRetryLater, "%v; this node still leads: try again", err)
	}
	for {
		if leader, _, _ := shard.group.Leader(); leader != "" && leader != self {
			if id != "" && leader != id {
				return refusef(wire.StatusRetryLater, "%s leads now, not %s: try again", leader, id)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new leader is not known yet: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
