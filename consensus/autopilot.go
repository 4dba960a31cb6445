package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// votersMin is how many voters the autopilot leaves: with fewer than three the group stands still when the
// next one fails, whether the dead one has a vote or not.
const votersMin = 3

// Pauses after changes that failed.
const (
	autopilotPauseMin = time.Second
	autopilotPauseMax = 30 * time.Second
)

// AutopilotOptions configures what the leader does about votes by itself. The zero value of a field means its
// default.
type AutopilotOptions struct {
	// Interval is how often members are looked at, and at most one change is begun. Default 1 s; 10 ms to
	// 1 min.
	Interval time.Duration
	// StableAfter is how long a learner must have kept up, as this leader sees it, before it gets a vote.
	// Default 2 s; not negative.
	StableAfter time.Duration
	// LagMax is how many entries a member may be behind this leader and yet keep up. Default 128.
	LagMax uint64
	// DeadAfter is how long a voter must have been silent, as this leader sees it, before it loses its vote.
	// Each leader counts anew. Default 10 min; negative: no voter loses its vote.
	DeadAfter time.Duration
	// Permit tells whether a member's vote may be given or taken by the autopilot. It must not block. Default:
	// always.
	Permit func(id string) bool
	// OnDead is told, once in a term, of each voter that was silent for DeadAfter, whether it may lose its vote
	// or not. It must not block. Default: nothing.
	OnDead func(id string)
	// BeginChange claims the right to change the configuration; end gives it back. ok is false when somebody
	// else has it: then the autopilot waits. It must not block. Default: always.
	BeginChange func() (end func(), ok bool)
}

func (o AutopilotOptions) withDefaults() AutopilotOptions {
	setDefault(&o.Interval, time.Second)
	setDefault(&o.StableAfter, 2*time.Second)
	setDefault(&o.LagMax, 128)
	setDefault(&o.DeadAfter, 10*time.Minute)
	if o.Permit == nil {
		o.Permit = func(string) bool { return true }
	}
	if o.OnDead == nil {
		o.OnDead = func(string) {}
	}
	if o.BeginChange == nil {
		o.BeginChange = func() (func(), bool) { return func() {}, true }
	}
	return o
}

func (o AutopilotOptions) validate() error {
	switch {
	case o.Interval < 10*time.Millisecond || o.Interval > time.Minute:
		return fmt.Errorf("invalid autopilot options: Interval %v is outside 10ms to 1m", o.Interval)
	case o.StableAfter < 0:
		return fmt.Errorf("invalid autopilot options: StableAfter %v is negative", o.StableAfter)
	}
	return nil
}

// AutopilotState is how the leader judges its group.
type AutopilotState struct {
	// Healthy says that all members are.
	Healthy bool
	// FailureTolerance is how many voters may fail now without the group standing still.
	FailureTolerance int
	// Servers are the members, sorted by id.
	Servers []AutopilotServer
}

// AutopilotServer is how the leader judges one member, itself included.
type AutopilotServer struct {
	ID    string
	Voter bool
	// Healthy says that it answers, and is at most LagMax entries behind.
	Healthy bool
	// StableSince is when Healthy last changed, or this leader began to look.
	StableSince time.Time
	// LastContact is how long ago the request was sent that it last acknowledged; negative: never in this term.
	LastContact time.Duration
	// Lag is how many entries of the leader's log it may be missing.
	Lag uint64
}

// StartAutopilot lets this node, whenever it leads, give learners that keep up a vote, and take it from voters
// that are dead. A dead voter becomes a learner, so that the majority is counted without it; it keeps its place
// and its data, and gets its vote back when it keeps up again. It never takes the vote of one of three voters,
// nor one without which a majority of the others is not alive. One change at a time, by the same way as all
// others. It ends with Close. A second call is an error.
func (g *Group) StartAutopilot(o AutopilotOptions) error {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	p := &pilot{g: g, o: o, done: make(chan struct{})}
	if !g.autopilot.CompareAndSwap(nil, p) {
		return errors.New("the autopilot was started already")
	}
	go p.run() // owned by Group; ends when Close closes stop
	return nil
}

// Autopilot returns how this node judges its group; ok is false while it does not lead, or the autopilot was
// not started.
func (g *Group) Autopilot() (state AutopilotState, ok bool) {
	p := g.autopilot.Load()
	if p == nil {
		return AutopilotState{}, false
	}
	p.mu.Lock()
	f := p.flight
	p.mu.Unlock()
	if f == nil || !g.leads(f.term) {
		return AutopilotState{}, false
	}
	return f.state()
}

// pilot runs hashicorp/raft-autopilot while this node leads: one instance for each term.
type pilot struct {
	// Immutable.
	g    *Group
	o    AutopilotOptions
	done chan struct{} // closed when run has ended

	mu sync.Mutex
	// Guarded by mu.
	flight *flight // of the term that this node leads; nil: none
}

// run follows the leadership of this node.
func (p *pilot) run() {
	defer close(p.done)
	ticker := time.NewTicker(p.o.Interval)
	defer ticker.Stop()
	var current *flight
	for {
		select {
		case <-ticker.C:
		case <-p.g.stop:
			if current != nil {
				current.land()
			}
			return
		}
		term, ok := p.g.LeaderTerm()
		if current != nil && (!ok || current.term != term) {
			p.set(nil)
			current.land()
			current = nil
		}
		if current == nil && ok {
			current = p.takeOff(term)
			p.set(current)
		}
	}
}

func (p *pilot) set(f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flight = f
}

// flight is the autopilot of one term. It is what raft-autopilot asks (autopilot.ApplicationIntegration),
// what it is advised by (autopilot.Promoter), and what it takes for raft (autopilot.Raft).
type flight struct {
	autopilot.StablePromoter

	// Immutable.
	g      *Group
	o      AutopilotOptions
	term   uint64
	pilot  *autopilot.Autopilot
	ctx    context.Context // ends when the flight does
	cancel context.CancelFunc

	mu sync.Mutex
	// Guarded by mu.
	looked    time.Time                // of the last look at who is silent
	silent    map[string]time.Duration // how long a voter has been silent
	told      map[string]bool          // OnDead knows
	failures  int                      // of changes, in a row
	notBefore time.Time                // no change before
}

var (
	_ autopilot.ApplicationIntegration = (*flight)(nil)
	_ autopilot.Promoter               = (*flight)(nil)
	_ autopilot.Raft                   = (*flight)(nil)
)

func (p *pilot) takeOff(term uint64) *flight {
	ctx, cancel := context.WithCancel(context.Background())
	f := &flight{g: p.g, o: p.o, term: term, ctx: ctx, cancel: cancel,
		silent: make(map[string]time.Duration), told: make(map[string]bool)}
	f.pilot = autopilot.New(f, f,
		autopilot.WithLogger(newHCLog(p.g.log.With("part", "autopilot"))),
		autopilot.WithUpdateInterval(p.o.Interval),
		autopilot.WithReconcileInterval(p.o.Interval),
		autopilot.WithPromoter(f))
	f.pilot.Start(ctx) // its goroutines are owned by this flight; they end in land
	return f
}

// land ends the flight and waits until nothing of it is left; a change under way is not waited for.
func (f *flight) land() {
	f.cancel()
	<-f.pilot.Stop()
}

// fresh tells whether a member acknowledged something that was sent not long ago.
func (f *flight) fresh(id string) bool {
	if id == f.g.o.NodeID {
		return true
	}
	a, ok := f.g.book.of(raft.ServerID(id), f.term)
	return ok && time.Duration(int64(f.g.o.clock.Boot())-a.sentAt) <= f.contactMax()
}

// contactMax is how old a member's last sign of life may be for it to be alive.
func (f *flight) contactMax() time.Duration { return 2 * f.g.o.HeartbeatTimeout }

// look counts for how long voters have been silent. Only time that passed between two looks close to each
// other counts: a process that was stopped, or a machine that slept, has heard nobody meanwhile, and nobody is
// to blame.
func (f *flight) look(members []Member, now time.Time) {
	var dead []string
	f.mu.Lock()
	var passed time.Duration
	if !f.looked.IsZero() {
		passed = min(now.Sub(f.looked), 2*f.o.Interval)
	}
	f.looked = now
	for _, m := range members {
		if !m.Voter || f.fresh(m.ID) {
			delete(f.silent, m.ID)
			delete(f.told, m.ID)
			continue
		}
		f.silent[m.ID] += passed
		if f.deadLocked(m.ID) && !f.told[m.ID] {
			f.told[m.ID] = true
			dead = append(dead, m.ID)
		}
	}
	f.mu.Unlock()
	for _, id := range dead {
		f.g.log.Warn("a voter is dead", "id", id, "silent_for_at_least", f.o.DeadAfter, "term", f.term)
		f.o.OnDead(id)
	}
}

// deadLocked reports whether a voter was silent for too long. REQUIRES: mu held.
func (f *flight) deadLocked(id string) bool {
	return f.o.DeadAfter > 0 && f.silent[id] >= f.o.DeadAfter
}

// expendable returns an error unless the dead voter id may lose its vote in a configuration of members.
func (f *flight) expendable(id string, members []Member) error {
	voters, alive := 0, 0
	for _, m := range members {
		if !m.Voter || m.ID == id {
			continue
		}
		voters++
		if f.fresh(m.ID) {
			alive++
		}
	}
	f.mu.Lock()
	dead := f.deadLocked(id)
	f.mu.Unlock()
	switch {
	case id == f.g.o.NodeID || !dead || f.fresh(id):
		return fmt.Errorf("%w: %s is not dead", ErrNotProposed, id)
	case !f.o.Permit(id):
		return fmt.Errorf("%w: the vote of %s is none of the autopilot's business", ErrNotProposed, id)
	case voters < votersMin:
		return fmt.Errorf("%w: without %s there would be %d voters", ErrNotProposed, id, voters)
	case alive < voters/2+1:
		return fmt.Errorf("%w: of the %d voters besides %s only %d are alive", ErrNotProposed, voters, id, alive)
	}
	return nil
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter: it proposes at most one change.
func (f *flight) CalculatePromotionsAndDemotions(_ *autopilot.Config, s *autopilot.State) (changes autopilot.RaftChanges) {
	now := time.Now()
	f.mu.Lock()
	waits := now.Before(f.notBefore)
	f.mu.Unlock()
	base := f.g.committed.Load()
	if waits || base == nil || !f.g.leads(f.term) {
		return changes
	}
	for _, m := range base.members {
		server := s.Servers[raft.ServerID(m.ID)]
		switch {
		case m.Voter && f.expendable(m.ID, base.members) == nil:
			changes.Demotions = append(changes.Demotions, raft.ServerID(m.ID))
		case !m.Voter && server != nil && server.Health.IsStable(now, f.o.StableAfter) && f.o.Permit(m.ID):
			changes.Promotions = append(changes.Promotions, raft.ServerID(m.ID))
		}
	}
	// A dead voter first: its place is counted in every majority.
	if len(changes.Demotions) > 0 {
		changes.Demotions, changes.Promotions = changes.Demotions[:1], nil
	} else if len(changes.Promotions) > 0 {
		changes.Promotions = changes.Promotions[:1]
	} else {
		return changes
	}
	end, ok := f.o.BeginChange() // only asked: what cannot be done would be complained of at each look
	if !ok {
		return autopilot.RaftChanges{}
	}
	end()
	return changes
}

// AutopilotConfig implements autopilot.ApplicationIntegration. Members are never removed.
func (f *flight) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		CleanupDeadServers:      false,
		LastContactThreshold:    f.contactMax(),
		MaxTrailingLogs:         f.o.LagMax,
		MinQuorum:               votersMin,
		ServerStabilizationTime: f.o.StableAfter,
	}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (f *flight) NotifyState(*autopilot.State) {}

// KnownServers implements autopilot.ApplicationIntegration.
func (f *flight) KnownServers() map[raft.ServerID]*autopilot.Server {
	members := f.g.members()
	f.look(members, time.Now())
	servers := make(map[raft.ServerID]*autopilot.Server, len(members))
	for _, m := range members {
		s := &autopilot.Server{ID: raft.ServerID(m.ID), Name: m.ID, Address: raft.ServerAddress(m.Address),
			NodeStatus: autopilot.NodeAlive, IsLeader: m.ID == f.g.o.NodeID, RaftVersion: int(raft.ProtocolVersionMax)}
		if !f.fresh(m.ID) {
			s.NodeStatus = autopilot.NodeFailed
		}
		servers[s.ID] = s
	}
	return servers
}

// FetchServerStats implements autopilot.ApplicationIntegration: from what the members have acknowledged.
func (f *flight) FetchServerStats(_ context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	now := int64(f.g.o.clock.Boot())
	last := f.g.raft.LastIndex()
	stats := make(map[raft.ServerID]*autopilot.ServerStats, len(servers))
	for id := range servers {
		// What a member has not acknowledged in this term it does not have.
		s := &autopilot.ServerStats{LastContact: -1}
		if string(id) == f.g.o.NodeID {
			s.LastContact, s.LastIndex = 0, last
		} else if a, ok := f.g.book.of(id, f.term); ok {
			s.LastContact, s.LastIndex = time.Duration(max(now-a.sentAt, 0)), a.match
		}
		if s.LastIndex > 0 {
			s.LastTerm, _ = f.g.logs.termOf(s.LastIndex) // 0, which no leader's log ends with, if that is not known
		}
		stats[id] = s
	}
	return stats
}

// RemoveFailedServer implements autopilot.ApplicationIntegration.
func (f *flight) RemoveFailedServer(s *autopilot.Server) {
	panic(fmt.Sprintf("BUG: the autopilot would remove %s, though removals are off", s.ID))
}

// LastIndex implements autopilot.Raft.
func (f *flight) LastIndex() uint64 { return f.g.raft.LastIndex() }

// Leader implements autopilot.Raft.
func (f *flight) Leader() raft.ServerAddress {
	address, _ := f.g.raft.LeaderWithID()
	return address
}

// GetConfiguration implements autopilot.Raft.
func (f *flight) GetConfiguration() raft.ConfigurationFuture { return f.g.raft.GetConfiguration() }

// Stats implements autopilot.Raft.
func (f *flight) Stats() map[string]string { return f.g.raft.Stats() }

// State implements autopilot.Raft.
func (f *flight) State() raft.RaftState { return f.g.raft.State() }

// AddVoter implements autopilot.Raft: a promotion. The library's bounds are left aside, as with the others.
func (f *flight) AddVoter(id raft.ServerID, _ raft.ServerAddress, _ uint64, _ time.Duration) raft.IndexFuture {
	return f.do(&f.g.metrics.Promotions, func(ctx context.Context) error {
		if !f.o.Permit(string(id)) {
			return fmt.Errorf("%w: %s is to stay a learner", ErrNotProposed, id)
		}
		return f.g.Promote(ctx, string(id))
	})
}

// DemoteVoter implements autopilot.Raft. Whether the voter may go is decided upon the very configuration that
// is changed.
func (f *flight) DemoteVoter(id raft.ServerID, _ uint64, _ time.Duration) raft.IndexFuture {
	return f.do(&f.g.metrics.Demotions, func(ctx context.Context) error {
		return f.g.demote(ctx, string(id), func(members []Member) error { return f.expendable(string(id), members) })
	})
}

// do makes a change and counts it, and pauses after a failure.
func (f *flight) do(count *atomic.Uint64, change func(context.Context) error) raft.IndexFuture {
	end, ok := f.o.BeginChange()
	if !ok {
		return changed{fmt.Errorf("%w: somebody else changes the configuration", ErrNotProposed)}
	}
	defer end()
	ctx, cancel := context.WithTimeout(f.ctx, changeTimeout)
	defer cancel()
	err := ErrNotLeader
	if f.g.leads(f.term) {
		err = change(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		count.Add(1)
		f.failures = 0
		return changed{}
	}
	pause := min(autopilotPauseMin<<min(f.failures, 10), autopilotPauseMax)
	f.failures++
	f.notBefore = time.Now().Add(pause)
	return changed{err}
}

// AddNonvoter implements autopilot.Raft; the autopilot is never asked to add a member.
func (f *flight) AddNonvoter(id raft.ServerID, _ raft.ServerAddress, _ uint64, _ time.Duration) raft.IndexFuture {
	panic(fmt.Sprintf("BUG: the autopilot would add %s", id))
}

// RemoveServer implements autopilot.Raft; removals are off.
func (f *flight) RemoveServer(id raft.ServerID, _ uint64, _ time.Duration) raft.IndexFuture {
	panic(fmt.Sprintf("BUG: the autopilot would remove %s", id))
}

// LeadershipTransferToServer implements autopilot.Raft; the promoter names no leader.
func (f *flight) LeadershipTransferToServer(id raft.ServerID, _ raft.ServerAddress) raft.Future {
	panic(fmt.Sprintf("BUG: the autopilot would hand leadership to %s", id))
}

// changed is the future of a change that is over.
type changed struct{ err error }

// Error implements raft.Future.
func (c changed) Error() error { return c.err }

// Index implements raft.IndexFuture; nobody asks.
func (c changed) Index() uint64 { return 0 }

// state is what Group.Autopilot tells.
func (f *flight) state() (AutopilotState, bool) {
	s := f.pilot.GetState()
	self := s.Servers[raft.ServerID(f.g.o.NodeID)]
	if self == nil {
		return AutopilotState{}, false // not looked yet
	}
	out := AutopilotState{Healthy: s.Healthy, FailureTolerance: s.FailureTolerance}
	for id, server := range s.Servers {
		a := AutopilotServer{ID: string(id), Voter: server.HasVotingRights(), Healthy: server.Health.Healthy,
			StableSince: server.Health.StableSince, LastContact: server.Stats.LastContact}
		if self.Stats.LastIndex > server.Stats.LastIndex {
			a.Lag = self.Stats.LastIndex - server.Stats.LastIndex
		}
		out.Servers = append(out.Servers, a)
	}
	slices.SortFunc(out.Servers, func(a, b AutopilotServer) int { return strings.Compare(a.ID, b.ID) })
	return out, true
}
