package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
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
	snapshots *snapshotStore
	transport transport
	// applyWatch is on while entries are applied.
	applyWatch *watchdog
	raft       *raft.Raft
	proposals  *proposals
	book       *ackBook
	lease      lease
	clocks     *clockWatch
	reads      *readIndex
	barriers   chan struct{} // one token per barrier in flight
	changing   chan struct{} // holds a token while a change of the configuration is under way
	snapping   chan struct{} // holds a token while raft takes a snapshot
	ready      chan struct{}
	notify     chan bool             // leadership gained and lost, from raft
	observed   chan raft.Observation // a new leader or state, from raft
	changes    chan struct{}         // Leadership
	started    chan struct{}         // closed once raft is set: raft's own goroutines run earlier
	stop       chan struct{}         // closed when the group's goroutines must end
	running    context.Context       // ends when Close begins
	cancel     context.CancelFunc
	routines   sync.WaitGroup // all goroutines that end with stop; not deliver
	metrics    Metrics

	// leaderTerm is the term that this node leads and whose barrier is applied; 0 if none.
	leaderTerm atomic.Uint64
	// lone is true while this node is the only voter of the latest configuration and nothing is under way
	// that could change that. Written under leadershipMu. Meaningful while this node leads.
	lone atomic.Bool
	// sawLeader is true once this node has known a leader.
	sawLeader atomic.Bool
	// committed is the newest configuration that the state machine was told, or starts with; nil if none.
	committed atomic.Pointer[committedConfiguration]
	// transfers notices that raft takes leadership to be on its way for good.
	transfers transferWatch
	// autopilot is what runs while this node leads; nil: nothing does. Set by StartAutopilot.
	autopilot atomic.Pointer[pilot]

	leadershipMu sync.Mutex
	// Guarded by leadershipMu.
	epoch     uint64 // counts gains and losses of leadership
	readyOnce bool   // ready is closed
	underway  int    // changes of the configuration
	// failed holds, by id, the transfers of leadership that failed.
	failed map[string]failedTransfer

	handOver  sync.Once // HandOver
	closeOnce sync.Once
	closed    chan struct{} // closed when Close is done
	closeErr  error         // immutable once closed is closed
}

// Open starts this node's part of the group in o.Dir.
//
// A directory that never held one, with a state machine that has no checkpoint, becomes a new group: of
// this node alone, or of o.Founders once all of them have met (ctx bounds that wait; an error that matches
// ErrRefused says that one of them refuses for good); with o.Joined it waits for a leader instead.
// Otherwise the group continues: the state machine must be as of its durable checkpoint and gets
// everything above it again. Contradictory states are refused with an error that matches
// ErrContradiction, or one that tells of a damaged log.
//
// A lone voter stands for election at once; Ready tells when this node leads, Leader who does.
func Open(ctx context.Context, o Options, sm StateMachine) (_ *Group, err error) {
	listener := o.Listener
	defer func() {
		if err != nil && listener != nil {
			_ = listener.Close() // at the latest here; it may be closed already
		}
	}()
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open consensus: %w", err)
	}
	running, cancel := context.WithCancel(context.Background())
	g := &Group{
		o: o, log: o.Logger, sm: sm, lock: lock,
		fault:    newFailStop(o.Fatal),
		lease:    lease{clock: o.clock, duration: int64(o.LeaseDuration)},
		barriers: make(chan struct{}, barriersMax),
		changing: make(chan struct{}, 1),
		snapping: make(chan struct{}, 1),
		ready:    make(chan struct{}),
		notify:   make(chan bool, 16), // raft blocks on it when it is full; watchLeadership never does
		observed: make(chan raft.Observation, 16),
		changes:  make(chan struct{}, 1),
		started:  make(chan struct{}),
		stop:     make(chan struct{}),
		running:  running,
		cancel:   cancel,
		closed:   make(chan struct{}),
		failed:   make(map[string]failedTransfer),
	}
	defer func() {
		if err != nil {
			cancel()
			g.fault.close()
			if g.transport != nil {
				err = errors.Join(err, g.transport.Close())
			}
			if g.logs != nil {
				err = errors.Join(err, g.logs.close())
			}
			err = errors.Join(err, lock.unlock())
		}
	}()
	g.proposals = newProposals(&g.o, &g.metrics, g.transfers.answered)
	g.book = newAckBook(raft.ServerID(o.NodeID), func(ids []raft.ServerID) []raft.ServerID {
		return voterIDs(g.raft.GetConfiguration().Configuration(), ids) // answers from a copy, never fails
	})
	g.clocks = newClockWatch(o.clock, o.HeartbeatTimeout, o.LeaseDuration)
	g.clocks.blind = o.broken.rates || o.broken.bound
	g.book.counts = g.clocks.counts
	g.reads = newReadIndex(o.clock, 2*o.HeartbeatTimeout, &g.metrics, g.book.confirmed, func(term uint64) bool {
		return g.leaderTerm.Load() == term && g.leads(term)
	})
	if g.stable, err = openStableStore(o.Dir, o.WriteStallTimeout, g.fault); err != nil {
		return nil, err
	}
	if g.logs, err = g.openLog(); err != nil {
		return nil, err
	}
	g.logs.overlap, g.stable.logged = g.overlaps, g.logs.queue.drain
	g.snapshots = newSnapshotStore(running, sm, g.logs, &g.metrics, o.crash)
	g.snapshots.room = o.Room
	if err := g.start(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// openLog opens the log for the state machine.
func (g *Group) openLog() (*logStore, error) {
	return openLogStore(logStoreOptions{
		dir: g.o.Dir, log: g.log, fault: g.fault, metrics: &g.metrics,
		segmentBytes: g.o.SegmentBytes, entryMax: max(g.o.EntryBytesMax, configurationBytesMax), bytesMax: g.o.LogBytesMax,
		keep: g.o.LogKeepBytes, keepMax: g.o.LogKeepBytesMax, cache: g.o.LogCacheBytes, grace: g.o.SnapshotGrace,
		stall: g.o.WriteStallTimeout, vfs: g.o.vfs, meta: g.o.meta, crash: g.o.crash, durable: g.sm.Durable,
		queueMax: g.o.logQueueBytes,
	})
}

// overlaps tells whether entries may be replicated while this node's disk still writes them. raft counts them as stored
// here at once, so it must need another node as well for a majority, and not become a majority alone by going back
// to the configuration before the latest. That node's acknowledgement waits for this disk (networkTransport).
func (g *Group) overlaps() bool {
	select {
	case <-g.started:
	default:
		return false
	}
	if g.raft.State() != raft.Leader {
		return false
	}
	c := g.committed.Load()
	if c == nil || c.voters() < 2 {
		return false
	}
	var buf [membersMax]raft.ServerID
	return len(voterIDs(g.raft.GetConfiguration().Configuration(), buf[:0])) > 1 // answers from a copy, never fails
}

// configurationBytesMax is room for raft's own entries where a small EntryBytesMax is set.
const configurationBytesMax = 64 << 10

// start inspects, founds, joins or repairs, and starts raft and the group's goroutines. ctx bounds the
// founding.
func (g *Group) start(ctx context.Context) error {
	f, err := g.inspect()
	if err != nil {
		return err
	}
	act, err := f.decide(g.o.Dir)
	if err != nil {
		return err
	}
	if err := g.logs.adopt(f.durable, f.hasDurable); err != nil {
		return err
	}
	g.stable.setLog(f.logSeed)
	virgin := act == actionBootstrap || act == actionJoin && !f.voteExists
	if g.transport, err = g.openTransport(virgin); err != nil {
		return err
	}
	if act == actionRebuild {
		if err := g.rebuild(ctx, f); err != nil {
			return err
		}
		if f, act, err = g.reconsider(); err != nil {
			return err
		}
	}
	config := g.raftConfig()
	switch act {
	case actionBootstrap:
		if err := g.bootstrap(ctx, config, f.voteExists); err != nil {
			return err
		}
	case actionJoin:
		if err := g.stable.join(); err != nil {
			return err
		}
		if g.o.Joined != nil {
			if err := g.transport.join(g.o.Joined); err != nil {
				return fmt.Errorf("cannot note the members of the cluster: %w", err)
			}
		}
	case actionEmptyLog:
		if err := g.emptyLog(f); err != nil {
			return err
		}
	}
	g.applyWatch = newWatchdogFor(applyStallMax, g.fault, func(took, _ time.Duration) error {
		return fmt.Errorf("%w: the state machine has taken %v for one batch of entries: it hangs", ErrRestart, took)
	})
	machine := &fsm{
		sm: g.sm, logs: g.logs, snapshots: g.snapshots, metrics: &g.metrics, fault: g.fault,
		ctx: g.running, snapshotTimeout: g.o.SnapshotTimeout, configured: g.configured,
		watch: g.applyWatch,
	}
	if f.hasDurable {
		g.configured(f.durable.ConfigurationIndex, f.durable.Configuration)
	}
	if g.o.Starting != nil {
		if err := g.o.Starting(); err != nil {
			return err
		}
	}
	g.raft, err = newRaft(config, machine, g.logs, g.stable, g.snapshots, g.transport)
	if err != nil {
		return fmt.Errorf("cannot start raft: %w", err)
	}
	close(g.started)
	// From here on a failure stops the process instead of being returned.
	g.fault.armed.Store(true)
	if err := g.fault.err(); err != nil {
		g.fault.close()
		return errors.Join(err, g.raft.Shutdown().Error())
	}

	voters, member := g.voters()
	joined := act == actionJoin || f.vote.joined
	if !member && !joined {
		// A node that joined may have stopped before its log told of itself. For others the newest configuration
		// is not enough: it may never have been committed, and the next leader takes it back.
		if member, err = g.wasMember(f); err != nil {
			g.fault.close()
			return errors.Join(err, g.raft.Shutdown().Error())
		}
	}
	if !member && !joined {
		g.fault.close()
		err := g.raft.Shutdown().Error()
		var names []string
		for _, m := range g.members() {
			names = append(names, m.ID)
		}
		return errors.Join(fmt.Errorf("%w in %q: its members are %s, and node %q is none of them. If it was removed from the cluster, it joins again with an empty directory and --join; otherwise start with the node id that this directory was created with",
			ErrContradiction, g.o.Dir, strings.Join(names, ", "), g.o.NodeID), err)
	}
	g.raft.RegisterObserver(raft.NewObserver(g.observed, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	}))
	for _, routine := range []func(){
		func() { g.proposals.expire(g.stop) },
		func() { g.reads.run(g.stop) },
		g.provokeHeartbeats,
		g.watchLeadership,
		g.watchItself,
		g.compact,
	} {
		g.routines.Go(routine) // owned by Group; end when Close closes stop
	}
	go g.proposals.deliver(g.stop) // owned by Group; ends when Close closes stop, see deliver
	g.transport.start(node{g})
	if voters == 1 && g.isVoter() {
		if err := g.transport.campaign(); err != nil {
			g.log.Warn("cannot stand for election at once, waiting for the election timeout", "error", err)
		}
	}
	g.log.Info("opened", "first_index", f.first, "last_index", f.last, "checkpoint_index", f.durable.Index,
		"term", f.vote.currentTerm, "new_group", act == actionBootstrap, "joining", act == actionJoin)
	return nil
}

// bootstrap writes the first configuration of a new group. Each founder does, with the same one, and
// only after all of them have met: what a founder that lost its disk would found again is then refused
// by the others, who know it. A crash anywhere before the end is taken up again by the next start.
func (g *Group) bootstrap(ctx context.Context, config *raft.Config, voteExists bool) error {
	founders := g.o.Founders
	if len(founders) < 2 {
		if g.transport.met() {
			// A lone voter meets nobody before it exists. Here a cluster's log and vote were deleted, or its
			// founding was begun and is to be gone on with.
			return fmt.Errorf("%w in %q: the file of known nodes names others, but there is neither a log nor a vote: this node would begin a group of its own beside theirs. Start it with the founders that it was first started with, or, if their cluster never ran, with an empty data directory; if it has lost its log, remove this member (kvctl member remove), then let it join again with an empty data directory",
				ErrContradiction, g.o.Dir)
		}
		founders = []Member{{ID: g.o.NodeID, Address: g.o.Address}}
	} else {
		if !slices.ContainsFunc(founders, func(m Member) bool { return m.ID == g.o.NodeID && m.Address == g.o.Address }) {
			return fmt.Errorf("cannot found the group: its founders %v do not name this node, %s at %s", founders, g.o.NodeID, g.o.Address)
		}
		founders = slices.Clone(founders)
		slices.SortFunc(founders, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
		if err := g.transport.found(ctx, founders); err != nil {
			return fmt.Errorf("cannot found the group: %w", err)
		}
	}
	var c raft.Configuration
	for _, m := range founders {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Address)})
	}
	if voteExists {
		if err := g.stable.reset(); err != nil {
			return err
		}
	}
	if err := raft.BootstrapCluster(config, g.logs, g.stable, g.snapshots, g.transport, c); err != nil {
		return fmt.Errorf("cannot bootstrap the group: %w", err)
	}
	return nil
}

// emptyLog completes the installation of a snapshot that a crash cut short.
func (g *Group) emptyLog(f found) error {
	g.log.Warn("a snapshot has overtaken the log: emptying the log",
		"first_index", f.first, "last_index", f.last, "checkpoint_index", f.durable.Index)
	if err := g.logs.installed(f.durable.Index, f.durable.Term); err != nil {
		return err
	}
	if err := g.logs.DeleteRange(f.first, f.last); err != nil {
		return err
	}
	return g.logs.adopt(f.durable, true)
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

// never is an interval that ends no more.
const never = 100 * 365 * 24 * time.Hour

// raftConfig returns raft's configuration.
func (g *Group) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(g.o.NodeID)
	c.HeartbeatTimeout = g.o.timers(g.o.HeartbeatTimeout)
	c.ElectionTimeout = g.o.timers(g.o.ElectionTimeout)
	// How long a leader goes without a majority before it steps down. It is not a read lease.
	c.LeaderLeaseTimeout = c.HeartbeatTimeout
	// A leader tells a new commit index with the next entry or after this time; the default of 50 ms
	// would be the staleness of followers when writes pause.
	c.CommitTimeout = 10 * time.Millisecond
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false // a removed node must still answer what it was asked
	c.TrailingLogs = g.o.TrailingLogs
	// Snapshots are asked for by compact alone: only then it is known when raft has finished one, which
	// snapshotStore must know.
	c.SnapshotInterval = never
	c.SnapshotThreshold = math.MaxUint64
	c.NotifyCh = g.notify
	c.Logger = newHCLog(g.log.With("part", "raft"))
	c.NoSnapshotRestoreOnStart = true // the state machine starts from its own checkpoint
	c.NoLegacyTelemetry = true
	// c.RestoreCommittedLogs stays off: in v1.8.0 it blocks NewRaft for ever beyond 128 batches.
	return c
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
// node that does not lead, with ErrBusy beyond 8 at once, and when ctx ends, or Options.ProposalTimeout
// after the call if it has no end. Success says nothing about still being the leader.
func (g *Group) Barrier(ctx context.Context) error {
	select {
	case g.barriers <- struct{}{}:
	default:
		return ErrBusy
	}
	return g.await(ctx, g.o.ProposalTimeout, func() error {
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
// behind it, as happens by itself in the background. It returns nil if there is nothing new. A ctx without
// an end gets twice Options.SnapshotTimeout.
func (g *Group) Snapshot(ctx context.Context) error {
	ctx, cancel := bounded(ctx, 2*g.o.SnapshotTimeout)
	defer cancel()
	// Here and not on the goroutine of await: should raft hang, those who wait behind it must not gather.
	select {
	case g.snapping <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("another snapshot is under way: %w", ctx.Err())
	case <-g.stop:
		return ErrClosed
	}
	return g.await(ctx, 2*g.o.SnapshotTimeout, g.snapshot)
}

// snapshot takes a snapshot. REQUIRES: the caller put the token into snapping.
func (g *Group) snapshot() error {
	defer func() { <-g.snapping }()
	err := g.raft.Snapshot().Error()
	g.snapshots.completed()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err == nil {
		g.logs.compacted()
	}
	return err
}

// bounded gives ctx an end if it has none.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limit)
}

// await runs op, which may never return once raft shuts down, and waits for it, for ctx or Close; for
// limit if ctx has no end.
func (g *Group) await(ctx context.Context, limit time.Duration, op func() error) error {
	ctx, cancel := bounded(ctx, limit)
	defer cancel()
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

// Metrics returns the group's counters.
func (g *Group) Metrics() *Metrics { return &g.metrics }

// compact asks for a snapshot whenever SnapshotThreshold entries or LogBytesMax bytes were appended
// since the last one: 2,048 entries of 16 MiB are 32 GiB.
func (g *Group) compact() {
	for {
		wait := time.NewTimer(g.o.SnapshotInterval + rand.N(g.o.SnapshotInterval))
		select {
		case <-g.logs.full:
		case <-wait.C:
			last, err := g.logs.LastIndex()
			if err != nil || last < g.snapshots.last.Load() || last-g.snapshots.last.Load() < g.o.SnapshotThreshold {
				continue // the only error is: closed
			}
		case <-g.stop:
			wait.Stop()
			return
		}
		wait.Stop()
		g.logs.compacted() // first, so that a failing snapshot is tried again after as many bytes
		ctx, cancel := context.WithTimeout(context.Background(), g.o.SnapshotTimeout)
		if err := g.Snapshot(ctx); err != nil && !errors.Is(err, ErrClosed) {
			g.log.Warn("cannot compact the log", "error", err)
		}
		cancel()
	}
}

// handoverTimeout bounds how long HandOver waits for another node to take over. An election that follows a
// silent end costs the clients one to three times HeartbeatTimeout; more than that would be no gain.
const handoverTimeout = time.Second

// closeTimeout bounds Close when the caller's context has no end.
const closeTimeout = time.Minute

// Close refuses new proposals, waits until those in flight are answered, hands leadership to another
// voter if there is one in reach (for at most a second), shuts raft down and closes the log. When ctx ends
// first (after a minute if it has no end), what is still unanswered is answered with ErrUnknown and the rest is closed as far as it goes; the
// error then says what was not done. Later calls wait for the first and return its result.
func (g *Group) Close(ctx context.Context) error {
	g.closeOnce.Do(func() {
		g.closeErr = g.close(ctx)
		close(g.closed)
	})
	<-g.closed
	return g.closeErr
}

func (g *Group) close(ctx context.Context) error {
	ctx, cancel := bounded(ctx, closeTimeout)
	defer cancel()
	g.cancel() // a snapshot that waits for a checkpoint gives up
	g.proposals.close()
	select {
	case <-g.proposals.drained:
	case <-g.fault.failed:
	case <-ctx.Done():
	}
	g.HandOver(ctx)
	shutdown := make(chan error, 1)
	future := g.raft.Shutdown()
	if g.fault.err() != nil {
		g.fault.close() // releases raft's goroutines that the failure holds
	}
	go func() { // owned by close; ends when raft's goroutines have ended
		// First, so that calls to nodes that do not answer end now and not at their timeout.
		err := errors.Join(g.transport.Close(), future.Error())
		g.logs.queue.finish() // after raft, which appends; here, because the disk may hang
		shutdown <- err
	}()
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
	if p := g.autopilot.Load(); p != nil {
		select {
		case <-p.done:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("the autopilot has not ended yet: %w", ctx.Err()))
		}
	}
	if len(errs) == 0 {
		// With raft still writing, closing the log under it would wait for that write without a bound.
		g.snapshots.close()
		errs = append(errs, g.logs.close(), g.lock.unlock())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot close the group: %w", err)
	}
	g.log.Info("closed")
	return nil
}

// HandOver gives the leadership to another voter before this node goes away, if it leads and one is in reach: an
// election would cost the clients more. It waits for a second at most. Only the first call does anything; Close
// makes it where nobody did.
func (g *Group) HandOver(ctx context.Context) {
	g.handOver.Do(func() {
		term, ok := g.LeaderTerm()
		if !ok || g.fault.err() != nil {
			return
		}
		if _, err := g.successor("", term); err != nil {
			return // nobody is there to take over
		}
		ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
		defer cancel()
		if err := g.Transfer(ctx, ""); err != nil {
			g.log.Warn("cannot hand the leadership over before stopping: an election will follow", "error", err)
		}
	})
}
