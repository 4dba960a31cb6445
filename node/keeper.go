package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

const (
	// keeperInterval is how often the keeper looks when nothing wakes it, keeperIntervalStart the same until
	// the node is ready.
	keeperInterval      = time.Second
	keeperIntervalStart = 25 * time.Millisecond
	// keeperTimeout bounds one change of the membership and one question to the leader.
	keeperTimeout = 5 * time.Second
	// keeperPauseMax bounds the pause after failures in a row, which begins with a second and doubles.
	keeperPauseMax = 30 * time.Second

	// promoteLagMax is how many entries a node may be behind the leader and count as one that keeps up: to be given a
	// vote, or the leadership. It is that of the autopilot.
	promoteLagMax = 128
	// expelledAfter is how long a node goes without a leader before it asks the others whether it is still a
	// member, and expelledInterval how often it asks then. An election is over in less.
	expelledAfter    = 3 * time.Second
	expelledInterval = 2 * time.Second
)

// keeper is the loop that keeps what the cluster knows of its nodes true. On the leader it gives a new
// cluster its identity, finishes a recovery, writes member records, finishes removals and demotions, follows changed
// addresses, raises the behaviour level, and hands the leadership to a node that should rather have it; on every node it finds out when the node
// has caught up for the first time.
type keeper struct {
	loop

	// Immutable after start.
	s *Shard
	// refused is told, once, that the cluster has no place for this node: the others do not take it, or it
	// was removed.
	refused func(error)

	// settled is closed once the node has known a leader and reached what that leader had applied then.
	settled chan struct{}
	// Owned by run.
	target    uint64    // what the leader had applied when it was first asked; 0: not asked yet
	failures  int       // in a row
	notBefore time.Time // no further change before
	term      uint64    // of the last look
	ledAt     time.Time // when a leader was last known
	askAt     time.Time // when expelled may ask again
	deniedBy  []string  // who said in the last round that this node is no member
	astrayAt  time.Time // since when it looks as if this node were in the wrong place
	balance   balance
}

func newKeeper(s *Shard) *keeper {
	return &keeper{s: s, settled: make(chan struct{})}
}

// start begins the loop.
func (k *keeper) start(refused func(error)) {
	k.refused = refused
	k.begin(k.run)
}

// isSettled reports whether the node has caught up once since its start.
func (k *keeper) isSettled() bool {
	select {
	case <-k.settled:
		return true
	default:
		return false
	}
}

func (k *keeper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.s.group.Leadership():
		case <-k.s.roster.news:
		case <-timer.C:
		}
		if k.look(ctx) {
			return
		}
		if k.isSettled() {
			timer.Reset(keeperInterval)
		} else {
			timer.Reset(keeperIntervalStart)
		}
	}
}

// look is one turn of the loop. It reports true when there is nothing left to look after.
func (k *keeper) look(ctx context.Context) (over bool) {
	s := k.s
	leader, _, term := s.group.Leader()
	if term != k.term {
		// A new term is a new chance.
		k.term, k.failures, k.notBefore = term, 0, time.Time{}
	}
	err := s.group.Refused()
	if err == nil {
		err = k.astray(leader)
	}
	if err == nil && k.expelled(ctx, leader) {
		err = fmt.Errorf("node %s was removed from the cluster: it takes no further part in it, and its data grows old. To take it in again, start it with --join and an empty --data-dir", s.roster.self.ID)
	}
	if err != nil {
		k.refused(err)
		return true
	}
	if _, ok := s.group.LeaderTerm(); ok && s.beginTime() {
		k.lead(ctx)
	}
	if !k.isSettled() {
		k.settle(ctx)
	}
	return false
}

// astray returns an error when this node holds another cluster's data: nodes with which it was started
// (Options.Expected) turn out to belong to another cluster (often the leader alone comes by), and for a while it
// has had no cluster of its own to be in, but at most itself. It would serve clients a different store at the
// address of a member.
func (k *keeper) astray(leader string) error {
	s := k.s
	text := ""
	// After a recovery the nodes that were given up are strangers: it is they who are in the wrong place.
	survivor := s.recovery != nil || len(s.engine.Recoveries()) != 0
	if len(s.expected) != 0 && !survivor && (leader == "" || len(s.group.Status().Configuration) == 1) {
		strangers := s.group.Strangers()
		for _, f := range s.expected {
			if t, ok := strangers[f.ID]; ok {
				text = t
			}
		}
	}
	if text == "" {
		k.astrayAt = time.Time{}
		return nil
	}
	now := time.Now()
	if k.astrayAt.IsZero() {
		k.astrayAt = now
	}
	if now.Sub(k.astrayAt) < expelledAfter {
		return nil
	}
	return fmt.Errorf("the data directory of node %s belongs to another cluster than the nodes of --initial-cluster: %s. If the data is not needed, empty the directory (or choose another --data-dir) and start the node with --join", s.roster.self.ID, text)
}

// expelled reports whether this node was taken out of the cluster. Its own member record says so if that
// still reached it. More often it did not: a removed node is cut off at once and sees its leader vanish. Then it
// asks the others. One answer is proof: a configuration without this node, committed in this history by a node that
// has applied all that this one has, which holds its addition, was decided by a majority later than that. (The same
// data directory never comes back after it. Waiting for a majority to say so would never end where the others have
// been replaced since, or where one of three that were left is down.) What a status tells was not read at one
// moment; so the same node must say it again when asked anew.
func (k *keeper) expelled(ctx context.Context, leader string) bool {
	s := k.s
	self := &s.roster.self
	if m, ok := s.engine.Member(self.ID); ok && m.Removed && m.Incarnation == self.Incarnation {
		return true
	}
	now := time.Now()
	if leader != "" || k.ledAt.IsZero() {
		k.ledAt, k.deniedBy = now, nil
		return false
	}
	if now.Sub(k.ledAt) < expelledAfter || now.Before(k.askAt) {
		return false
	}
	cluster, history, ok := s.engine.Identity()
	applied := s.engine.Applied().Index
	isSelf := func(m consensus.Member) bool { return m.ID == self.ID }
	if !ok || !slices.ContainsFunc(s.group.Status().Committed, isSelf) {
		return false // nothing applied here says that it ever was a member
	}
	ctx, cancel := context.WithTimeout(ctx, boardAskTimeout)
	defer cancel()
	answers := s.askOthers(ctx, func(bool) bool { return true })
	k.askAt = time.Now().Add(expelledInterval)
	before := k.deniedBy
	k.deniedBy = nil
	for id, d := range answers {
		if d.ClusterID == hex.EncodeToString(cluster[:]) && d.HistoryID == hex.EncodeToString(history[:]) && d.AppliedIndex >= applied && d.excludes(self.ID) {
			if slices.Contains(before, id) {
				return true
			}
			k.deniedBy = append(k.deniedBy, id)
		}
	}
	return false
}

// excludes reports whether the node that d describes knows a committed configuration without the member id.
func (d *statusDocument) excludes(id string) bool {
	return d.PendingConfig == nil && len(d.CurrentConfig) != 0 &&
		!slices.ContainsFunc(d.CurrentConfig, func(m memberStatus) bool { return m.NodeID == id })
}

// settle finds out whether the node has caught up. A leader has, by its barrier. Others ask the leader once
// how far it is: raft's own commit index would not do, since a follower that is far behind is told of no
// more than it holds.
func (k *keeper) settle(ctx context.Context) {
	s := k.s
	if !s.serves() {
		return
	}
	if s.leading() {
		close(k.settled)
		return
	}
	if k.target == 0 {
		address, _, ok := s.leaderElsewhere()
		if !ok {
			return
		}
		st, err := s.askStatus(ctx, address)
		if err != nil || !st.IsLeader {
			return // the next look asks again
		}
		k.target = st.AppliedIndex
	}
	if s.engine.Applied().Index >= k.target {
		close(k.settled)
	}
}

// lead does what is the leader's to do, in the order of its worth, and pauses after a failure.
func (k *keeper) lead(ctx context.Context) {
	if time.Now().Before(k.notBefore) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	err := k.found(ctx)
	if err == nil {
		err = k.s.recovery.finish(ctx, k.s)
	}
	if err == nil {
		err = k.tidy(ctx)
	}
	if err == nil {
		k.failures = 0
		k.balance.look(ctx, k.s)
		return
	}
	pause := min(time.Second<<min(k.failures, 5), keeperPauseMax)
	k.failures++
	k.notBefore = time.Now().Add(pause)
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		k.s.log.Warn("cannot bring the membership up to date, trying again", "error", err, "pause", pause)
	}
}

// found gives a new cluster its identity. Of two leaders that try, one after the other, the first succeeds.
func (k *keeper) found(ctx context.Context) error {
	if _, _, ok := k.s.engine.Identity(); ok {
		return nil
	}
	in := wire.Init{Level: k.s.level}
	rand.Read(in.ClusterID[:]) // never fails: it ends the process if the system has no randomness
	rand.Read(in.HistoryID[:])
	r := k.s.propose(ctx, &wire.Op{Op: wire.OpInit}, wire.AppendInit(nil, &in))
	if _, _, ok := k.s.engine.Identity(); !ok {
		return fmt.Errorf("cannot give the new cluster an identity: %s", r.Status)
	}
	return nil
}

// tidy compares the configuration with the member records and mends the first difference of each member.
func (k *keeper) tidy(ctx context.Context) error {
	s := k.s
	if !s.tryChange() {
		return nil // an administrator's change is under way: afterwards is early enough
	}
	defer s.endChange()
	st := s.group.Status()
	for _, m := range st.Configuration {
		if err := k.tidyMember(ctx, &m); err != nil {
			return err
		}
	}
	return s.raiseLevel(ctx)
}

func (k *keeper) tidyMember(ctx context.Context, m *consensus.Member) error {
	s := k.s
	record, recorded := s.engine.Member(m.ID)
	if recorded && record.Removed {
		// Its removal was begun and not finished; see admin.remove. (It is not this node, which would have
		// stopped.)
		return s.group.Remove(ctx, m.ID)
	}
	if recorded && record.NoPromote && m.Voter {
		// Its demotion was begun and not finished; see admin.demote.
		if m.ID == s.roster.self.ID {
			return s.group.Transfer(ctx, "") // whoever leads next will finish it
		}
		return s.group.Demote(ctx, m.ID)
	}
	want := s.roster.self
	if m.ID != want.ID {
		var ok bool
		if want, ok = s.roster.card(m.ID); !ok || recorded && record.Incarnation != want.Incarnation {
			return nil // nothing newer is known
		}
	} else if checkMember(&want) != nil {
		return nil // a lone node that tells no address of its own: there is nobody to read its record
	}
	// What operators decided is not the node's own to tell. A node that wishes nothing keeps the wish for it.
	want.NoPromote = record.NoPromote
	want.Priority = cmp.Or(want.Priority, record.Priority)
	if want.RaftAddress != m.Address && len(s.group.Status().Configuration) > 1 {
		// It has moved: the others must reach it there before anything else makes sense.
		s.log.Info("a member has moved", "member", m.ID, "from", m.Address, "to", want.RaftAddress)
		if err := s.group.AddLearner(ctx, m.ID, want.RaftAddress); err != nil {
			return fmt.Errorf("cannot record the new address %s of %s: %w", want.RaftAddress, m.ID, err)
		}
	}
	if recorded && record == want {
		return nil
	}
	return s.proposeMember(ctx, &want)
}

// proposeMember writes a member record through the log.
func (s *Shard) proposeMember(ctx context.Context, m *wire.Member) error {
	r := s.propose(ctx, &wire.Op{Op: wire.OpMember}, wire.AppendMember(nil, m))
	if r.Status != wire.StatusOK {
		return &statusError{r.Status, fmt.Sprintf("cannot write the member record of %s: %s", m.ID, r.Status)}
	}
	return nil
}

// statusError is an error with a status for whoever asked.
type statusError struct {
	status wire.Status
	text   string
}

// Error gives the text.
func (e *statusError) Error() string { return e.text }

// askOthers asks the other members whose binary port is known, all at once, for what they say of themselves. It
// asks those for which want, called for each, says so. The answers are by id; who did not give one is missing.
func (s *Shard) askOthers(ctx context.Context, want func(voter bool) bool) map[string]*statusDocument {
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := make(map[string]*statusDocument) // guarded by mu
	for _, m := range s.group.Status().Configuration {
		if m.ID == s.roster.self.ID || !want(m.Voter) {
			continue
		}
		known, ok := s.roster.member(m.ID)
		if !ok || known.Address == "" {
			continue
		}
		wg.Go(func() { // owned by this call, which waits for it
			d, err := s.askStatus(ctx, known.Address)
			if err != nil || d.NodeID != m.ID {
				return // unreachable, or another node at its address
			}
			mu.Lock()
			answers[m.ID] = d
			mu.Unlock()
		})
	}
	wg.Wait()
	return answers
}

// askStatus asks another node for what it says of itself.
func (s *Shard) askStatus(ctx context.Context, address string) (*statusDocument, error) {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	payload := []byte{wire.StatusLocal}
	r := s.forwarder.Do(ctx, address, &wire.Request{Op: wire.OpStatus, Group: wire.GroupDefault, ID: 1, Body: payload, Payload: payload})
	if r.Status != wire.StatusOK {
		return nil, &statusError{r.Status, fmt.Sprintf("cannot ask %s for its status: %s", address, r.Status)}
	}
	var d statusDocument
	if err := json.Unmarshal(r.Payload, &d); err != nil {
		return nil, fmt.Errorf("cannot read the status of %s: %w", address, err)
	}
	return &d, nil
}
