package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Group is this node's part of one Raft group. Its methods may be called from any goroutine.
type Group struct {
	// Immutable after Open.
	o         Options
	log       *slog.Logger
	sm        StateMachine
	lock      *dirLock
	fault     *failStop
	logs      *logStore
	stable    *stableStore
	transport transport
	raft      *raft.Raft
	proposals *proposals
	barriers  chan struct{} // one token per barrier in flight
	ready     chan struct{}
	notify    chan bool     // leadership gained and lost, from raft
	stop      chan struct{} // closed when the group's goroutines must end
	cancel    context.CancelFunc
	routines  sync.WaitGroup // expire, watchLeadership, compact, establish; not deliver
	metrics   Metrics

	// leaderTerm is the term that this node leads and whose barrier is applied; 0 if none.
	leaderTerm atomic.Uint64

	leadershipMu sync.Mutex
	// Guarded by leadershipMu.
	epoch     uint64 // counts gains and losses of leadership
	readyOnce bool   // ready is closed

	closeOnce sync.Once
	closed    chan struct{} // closed when Close is done
	closeErr  error         // immutable once closed is closed
}

// Open starts the group in o.Dir. A directory that never held one, with a state machine that has no
// checkpoint, becomes a new group with this node as its only voter. Otherwise the group continues: the
// state machine must be as of its durable checkpoint and gets everything above it again. Contradictory
// states are refused with an error that matches ErrContradiction, or one that tells of a damaged log.
//
// A lone voter stands for election at once; Ready tells when it leads.
func Open(o Options, sm StateMachine) (_ *Group, err error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open consensus: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := &Group{
		o: o, log: o.Logger, sm: sm, lock: lock,
		fault:    newFailStop(o.Fatal),
		barriers: make(chan struct{}, barriersMax),
		ready:    make(chan struct{}),
		notify:   make(chan bool, 16), // raft blocks on it when it is full; watchLeadership never does
		stop:     make(chan struct{}),
		cancel:   cancel,
		closed:   make(chan struct{}),
	}
	defer func() {
		if err != nil {
			cancel()
			g.fault.close()
			if g.logs != nil {
				err = errors.Join(err, g.logs.close())
			}
			err = errors.Join(err, lock.unlock())
		}
	}()
	g.proposals = newProposals(&g.o, &g.metrics)
	if g.stable, err = openStableStore(o.Dir, o.WriteStallTimeout, g.fault); err != nil {
		return nil, err
	}
	g.logs, err = openLogStore(logStoreOptions{
		dir: o.Dir, log: g.log, fault: g.fault, metrics: &g.metrics,
		segmentBytes: o.SegmentBytes, entryMax: max(o.EntryBytesMax, configurationBytesMax), bytesMax: o.LogBytesMax,
		stall: o.WriteStallTimeout, vfs: o.vfs, meta: o.meta,
		durable: func() (uint64, bool) { d, ok := sm.Durable(); return d.Index, ok },
	})
	if err != nil {
		return nil, err
	}
	if g.transport, err = newTransport(&g.o); err != nil {
		return nil, err
	}
	if err := g.start(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// configurationBytesMax is room for raft's own entries where a small EntryBytesMax is set.
const configurationBytesMax = 64 << 10

// start inspects, bootstraps or repairs, and starts raft and the group's goroutines.
func (g *Group) start(ctx context.Context) error {
	f, err := inspect(g.logs, g.stable, g.sm)
	if err != nil {
		return err
	}
	act, err := f.decide(g.o.Dir)
	if err != nil {
		return err
	}
	config := g.raftConfig()
	snapshots := &snapshotStore{g.sm}
	switch act {
	case actionBootstrap:
		if f.voteExists {
			if err := g.stable.reset(); err != nil {
				return err
			}
		}
		if err := raft.BootstrapCluster(config, g.logs, g.stable, snapshots, g.transport, g.initialConfiguration()); err != nil {
			return fmt.Errorf("cannot bootstrap the group: %w", err)
		}
	case actionEmptyLog:
		g.log.Warn("the checkpoint has overtaken the log: emptying the log",
			"first_index", f.first, "last_index", f.last, "checkpoint_index", f.durable.Index)
		if err := g.logs.DeleteRange(f.first, f.last); err != nil {
			return err
		}
	}
	machine := &fsm{sm: g.sm, metrics: &g.metrics, ctx: ctx, snapshotTimeout: g.o.SnapshotTimeout}
	g.raft, err = newRaft(config, machine, g.logs, g.stable, snapshots, g.transport)
	if err != nil {
		return fmt.Errorf("cannot start raft: %w", err)
	}
	// From here on a failure stops the process instead of being returned.
	g.fault.armed.Store(true)
	if err := g.fault.err(); err != nil {
		g.fault.close()
		return errors.Join(err, g.raft.Shutdown().Error())
	}

	voters, member := g.voters()
	if !member {
		g.fault.close()
		err := g.raft.Shutdown().Error()
		return errors.Join(fmt.Errorf("%w in %q: it belongs to the group of %v, which does not know node %q. Start with the node id that this directory was created with, or with an empty directory",
			ErrContradiction, g.o.Dir, g.members(), g.o.NodeID), err)
	}
	for _, routine := range []func(){
		func() { g.proposals.expire(g.stop) },
		g.watchLeadership,
		g.compact,
	} {
		g.routines.Go(routine) // owned by Group; end when Close closes stop
	}
	go g.proposals.deliver(g.stop) // owned by Group; ends when Close closes stop, see deliver
	if voters == 1 {
		if err := g.transport.campaign(); err != nil {
			g.log.Warn("cannot stand for election at once, waiting for the election timeout", "error", err)
		}
	}
	g.log.Info("opened", "first_index", f.first, "last_index", f.last, "checkpoint_index", f.durable.Index,
		"term", f.vote.currentTerm, "new_group", act == actionBootstrap)
	return nil
}

// newRaft is raft.NewRaft, which panics where it cannot read the log.
func newRaft(c *raft.Config, m raft.FSM, logs raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore, t raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			if cause, ok := p.(error); ok {
				err = cause
			} else {
				err = fmt.Errorf("%v", p)
			}
		}
	}()
	return raft.NewRaft(c, m, logs, stable, snapshots, t)
}

// raftConfig returns raft's configuration.
func (g *Group) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(g.o.NodeID)
	c.HeartbeatTimeout = g.o.HeartbeatTimeout
	c.ElectionTimeout = g.o.ElectionTimeout
	// How long a leader goes without a majority before it steps down. It is not a read lease.
	c.LeaderLeaseTimeout = g.o.HeartbeatTimeout
	// A leader tells a new commit index with the next entry or after this time; the default of 50 ms
	// would be the staleness of followers when writes pause.
	c.CommitTimeout = 5 * time.Millisecond
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false // a removed node must still answer what it was asked
	c.TrailingLogs = g.o.TrailingLogs
	c.SnapshotInterval = g.o.SnapshotInterval
	c.SnapshotThreshold = g.o.SnapshotThreshold
	c.NotifyCh = g.notify
	c.Logger = newHCLog(g.log.With("part", "raft"))
	c.NoSnapshotRestoreOnStart = true // the state machine starts from its own checkpoint
	c.NoLegacyTelemetry = true
	// c.RestoreCommittedLogs stays off: in v1.8.0 it blocks NewRaft for ever beyond 128 batches.
	return c
}

// initialConfiguration is that of a new group: this node alone.
func (g *Group) initialConfiguration() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(g.o.NodeID), Address: raft.ServerAddress(g.o.Address),
	}}}
}

// Propose hands data to raft. It returns an error, which matches ErrNotProposed, if the command is
// refused at once; done is then not called. Otherwise done is called exactly once, in proposal order,
// on a goroutine of the group, with
//   - a nil error and what StateMachine.Apply returned: committed and applied here;
//   - an error matching ErrNotProposed: surely not committed, now or later;
//   - an error matching ErrUnknown: anyone's guess. That includes no answer within
//     Options.ProposalTimeout and Close.
//
// Propose does not wait for the disk; it returns within microseconds and in any case within a second.
// The group keeps data (raft may read it again much later): never change it after Propose, whatever
// the outcome. done must not block, and must not call Close.
//
// A leader may propose before LeaderTerm holds; what it stamps into a command (such as the time) must
// wait for that.
func (g *Group) Propose(data []byte, done func(result any, err error)) error {
	err := g.propose(data, done)
	if err != nil {
		g.metrics.Refused.Add(1)
	}
	return err
}

func (g *Group) propose(data []byte, done func(result any, err error)) error {
	if len(data) == 0 || len(data) > g.o.EntryBytesMax {
		return ErrEntrySize
	}
	if g.fault.err() != nil {
		return ErrHalted
	}
	if g.raft.State() != raft.Leader {
		return ErrNotLeader
	}
	return g.proposals.submit(int64(len(data)), done, func() raft.ApplyFuture {
		return g.raft.ApplyLog(raft.Log{Data: data}, enqueueTimeout)
	})
}

// Barrier waits until everything committed before it is applied here. It fails with ErrNotLeader on a
// node that does not lead, with ErrBusy beyond 8 at once, and when ctx ends. Success says nothing about
// still being the leader.
func (g *Group) Barrier(ctx context.Context) error {
	select {
	case g.barriers <- struct{}{}:
	default:
		return ErrBusy
	}
	return g.await(ctx, func() error {
		defer func() { <-g.barriers }()
		f := g.raft.Barrier(enqueueTimeout)
		err := f.Error()
		if errors.Is(err, raft.ErrNotLeader) {
			return ErrNotLeader
		}
		return err
	})
}

// Snapshot makes everything applied so far durable in the state machine and lets raft delete the log
// behind it, as happens by itself in the background. It returns nil if there is nothing new.
func (g *Group) Snapshot(ctx context.Context) error {
	return g.await(ctx, g.snapshot)
}

func (g *Group) snapshot() error {
	err := g.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err == nil {
		g.logs.compacted()
	}
	return err
}

// await runs op, which may never return once raft shuts down, and waits for it, ctx or Close.
func (g *Group) await(ctx context.Context, op func() error) error {
	result := make(chan error, 1)
	go func() { result <- op() }() // owned by this call; ends with op, at the latest with the process
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-g.stop:
		return ErrClosed
	}
}

// Ready is closed once this node has led a term whose barrier was applied, for the first time. Whether
// it still leads, LeaderTerm tells.
func (g *Group) Ready() <-chan struct{} { return g.ready }

// LeaderTerm returns the term that this node leads, and true if everything committed in earlier terms
// is applied here. It costs three atomic loads. It is this node's own belief: another node may already
// lead a later term.
func (g *Group) LeaderTerm() (term uint64, ok bool) {
	term = g.leaderTerm.Load()
	if term == 0 || g.raft.CurrentTerm() != term || g.raft.State() != raft.Leader {
		return 0, false
	}
	return term, true
}

// Metrics returns the group's counters.
func (g *Group) Metrics() *Metrics { return &g.metrics }

// watchLeadership follows raft's notifications.
func (g *Group) watchLeadership() {
	for {
		select {
		case leads := <-g.notify:
			g.leadershipMu.Lock()
			g.epoch++
			epoch := g.epoch
			g.leaderTerm.Store(0)
			g.leadershipMu.Unlock()
			if !leads {
				g.log.Info("lost leadership", "term", g.raft.CurrentTerm())
				continue
			}
			g.metrics.Elections.Add(1)
			// Not in routines: raft may never answer the barrier. Owned by Group; ends with the barrier.
			go g.establish(epoch, g.raft.CurrentTerm(), time.Now())
		case <-g.stop:
			return
		}
	}
}

// establish waits for the barrier of term and then publishes it, unless leadership changed meanwhile.
// raft reports leadership before the term's first entry is committed; until the barrier is applied this
// node may not have applied what earlier leaders acknowledged.
func (g *Group) establish(epoch, term uint64, start time.Time) {
	if err := g.raft.Barrier(0).Error(); err != nil {
		g.log.Debug("the barrier of a new term failed", "term", term, "error", err)
		return
	}
	if g.publish(epoch, term) {
		g.log.Info("leads", "term", term, "barrier", time.Since(start), "last_index", g.raft.LastIndex())
		g.correctAddress()
	}
}

// publish makes term visible in LeaderTerm if this node still leads it.
func (g *Group) publish(epoch, term uint64) bool {
	g.leadershipMu.Lock()
	defer g.leadershipMu.Unlock()
	if g.epoch != epoch || g.raft.CurrentTerm() != term || g.raft.State() != raft.Leader {
		return false
	}
	g.leaderTerm.Store(term)
	if !g.readyOnce {
		g.readyOnce = true
		close(g.ready)
	}
	return true
}

// correctAddress records a changed Address. A lone voter may move as it likes; with more members the
// others must learn a new address from whoever moves the node.
func (g *Group) correctAddress() {
	members := g.members()
	if len(members) != 1 || members[0].ID != g.o.NodeID || members[0].Address == g.o.Address {
		return
	}
	g.log.Info("recording the changed address", "from", members[0].Address, "to", g.o.Address)
	// The answer is not awaited: should the change fail, the next term tries again.
	g.raft.AddVoter(raft.ServerID(g.o.NodeID), raft.ServerAddress(g.o.Address), 0, enqueueTimeout)
}

// compact asks for a snapshot whenever LogBytesMax bytes were appended: raft itself counts entries
// only, and 2,048 entries of 16 MiB are 32 GiB.
func (g *Group) compact() {
	for {
		select {
		case <-g.logs.full:
		case <-g.stop:
			return
		}
		g.logs.compacted() // first, so that a failing snapshot is tried again after as many bytes
		ctx, cancel := context.WithTimeout(context.Background(), g.o.SnapshotTimeout)
		if err := g.Snapshot(ctx); err != nil && !errors.Is(err, ErrClosed) {
			g.log.Warn("cannot compact the log", "error", err)
		}
		cancel()
	}
}

// Close refuses new proposals, waits until those in flight are answered, shuts raft down and closes the
// log. When ctx ends first, what is still unanswered is answered with ErrUnknown and the rest is closed
// as far as it goes; the error then says what was not done. Later calls wait for the first and return
// its result.
func (g *Group) Close(ctx context.Context) error {
	g.closeOnce.Do(func() {
		g.closeErr = g.close(ctx)
		close(g.closed)
	})
	<-g.closed
	return g.closeErr
}

func (g *Group) close(ctx context.Context) error {
	g.cancel() // a snapshot that waits for a checkpoint gives up
	g.proposals.close()
	select {
	case <-g.proposals.drained:
	case <-g.fault.failed:
	case <-ctx.Done():
	}
	shutdown := make(chan error, 1)
	future := g.raft.Shutdown()
	if g.fault.err() != nil {
		g.fault.close() // releases raft's goroutines that the failure holds
	}
	go func() { shutdown <- future.Error() }() // owned by close; ends when raft's goroutines have ended
	var errs []error
	select {
	case err := <-shutdown:
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot shut raft down: %w", err))
		}
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("raft has not ended yet: %w", ctx.Err()))
	}
	// From here on log and vote refuse, harmlessly, whatever raft still wants of them.
	g.fault.close()
	g.proposals.giveUp(func(*proposal) error { return fmt.Errorf("%w: the group was closed", ErrUnknown) })
	close(g.stop)
	g.routines.Wait()
	if len(errs) == 0 {
		// With raft still writing, closing the log under it would wait for that write without a bound.
		errs = append(errs, g.logs.close(), g.lock.unlock())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot close the group: %w", err)
	}
	g.log.Info("closed")
	return nil
}
