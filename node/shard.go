package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"kvstore/batcher"
	"kvstore/client"
	"kvstore/consensus"
	"kvstore/engine"
	"kvstore/feed"
	"kvstore/internal/clustertime"
	"kvstore/internal/diskguard"
	"kvstore/wire"
)

// behaviourLevel is the newest behaviour of the state machine that this build knows; a new cluster
// starts with it. See engine for what each level means.
const behaviourLevel = levelIdempotency

// Shard is one Raft group with its batcher and its engine.
type Shard struct {
	// Immutable after openShard.
	id          uint32
	level       uint16 // the newest behaviour level that this node knows
	log         *slog.Logger
	engine      *engine.Engine
	feed        *feed.Feed
	sink        *feedSink
	group       *consensus.Group
	batcher     *batcher.Batcher
	guard       *diskguard.Guard
	roster      *roster
	forwarder   *client.Forwarder
	peers       *peers // passes on through the forwarder
	incarnation uint64
	epoch       time.Time // zero of now
	readIndex   bool      // every read is confirmed by a majority
	expected    []Founder // the nodes that should be of this cluster; see keeper.astray

	priorityAfter time.Duration
	recovery      *recovery // nil: none is to be finished
	// claimed is the history that this node belongs to, and claimedCluster its cluster; zero: those of its state.
	// See identity.
	claimed, claimedCluster [16]byte

	// reached is set once the state is of the history claimed, or of a later one.
	reached atomic.Bool
	// served is set once the cluster is known to have its identity: what clients may ask before that is
	// refused with StatusNotReady.
	served atomic.Bool
	// change holds the only token of whoever changes the membership.
	change chan struct{}

	readFailures atomic.Uint64

	keeper *keeper
	expiry expiry
	purge  purge
	limits *limits
	time   *clustertime.Clock
	health *health
	scrub  *scrubber

	// dataDir and fatal are Options.DataDir and Options.Fatal. Immutable after openShard.
	dataDir string
	fatal   func(error)
	// quarantined is set once the state may not be served any more; it stays set until the process ends.
	quarantined atomic.Bool
	// damage is the first damage that a read or a scrub met; nil: none.
	damage atomic.Pointer[string]
	// logDamage says the same of the log, as a scrub found it.
	logDamage atomic.Pointer[string]

	hold *hold
}

// shardOptions are what a shard needs beside the node's options.
type shardOptions struct {
	id       uint32
	identity *identity
	raft     net.Listener // owned by the shard from openShard on, also when it fails
	roster   *roster
	guard    *diskguard.Guard
	doors    *doors
	// progress is told what the start waits for.
	progress func(text string)
	// unbounded ends with the node alone: a copy of the state may take longer than --start-timeout.
	unbounded context.Context
	// logDir is the directory of the log. Set by openShard.
	logDir string
	// starting is called when the directory belongs to a cluster and before the node takes part in it.
	starting func() error
}

// openShard opens the engine, then the log that drives it, which may mean to wait for the other founders,
// then the batcher in front.
func openShard(ctx context.Context, o *Options, so *shardOptions) (s *Shard, err error) {
	s = &Shard{
		id: so.id, level: o.level, log: o.Logger.With("group", so.id), guard: so.guard, epoch: time.Now(), roster: so.roster,
		readIndex: o.ReadMode == readModeReadIndex, change: make(chan struct{}, 1), expected: o.Expected, priorityAfter: o.PriorityAfter,
	}
	if s.recovery, err = openRecovery(o.DataDir); err != nil {
		return nil, errors.Join(err, so.raft.Close())
	}
	if s.claimedCluster, s.claimed, err = so.identity.claims(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot read the ids of cluster and history in the identity of data directory %s: %w", o.DataDir, err), so.raft.Close())
	}
	var bits [8]byte
	rand.Read(bits[:]) // never fails: it ends the process if the system has no randomness
	s.incarnation = binary.LittleEndian.Uint64(bits[:])

	s.dataDir, s.fatal = o.DataDir, o.Fatal
	s.time = clustertime.New(o.NodeID)
	s.health = newHealth(s, o.Consensus.HeartbeatTimeout)

	dir := filepath.Join(o.DataDir, "groups", strconv.FormatUint(uint64(so.id), 10))
	eo := o.Engine
	eo.Dir, eo.Group, eo.Logger, eo.Fatal, eo.OnDamage = o.DataDir, so.id, o.Logger, s.failed, s.damaged
	s.sink = &feedSink{fatal: s.failed}
	eo.Sink = s.sink
	so.logDir = filepath.Join(dir, "log")
	rebuild := false
	if s.hold, err = openHold(o.DataDir); err == nil {
		err = s.hold.stopped()
	}
	if err == nil {
		rebuild, err = s.openEngine(o, eo, so)
	}
	if err != nil {
		return nil, errors.Join(err, so.raft.Close())
	}
	e, opened := s.engine, s // s is nil where an error is returned
	var group *consensus.Group
	defer func() {
		if err == nil {
			return
		}
		if group != nil {
			ctx, cancel := context.WithTimeout(context.Background(), o.DrainTimeout)
			defer cancel()
			err = errors.Join(err, group.Close(ctx))
		}
		err = errors.Join(err, opened.closeEngine())
	}()
	if err = s.openFeed(o, dir); err != nil {
		return nil, errors.Join(err, so.raft.Close())
	}
	so.roster.engine = e
	co := o.Consensus
	co.Dir, co.Group, co.NodeID, co.Address, co.Logger, co.Fatal = so.logDir, so.id, o.NodeID, so.roster.self.RaftAddress, o.Logger, s.failed
	co.EntryBytesMax = wire.EntryBytesMax
	co.Listener, co.Incarnation = so.raft, so.roster.self.Incarnation
	co.Cluster, co.StateLevel, co.Level = s.identity, e.Level, s.level
	co.Record = func(id string) (incarnation [16]byte, removed, ok bool) {
		m, ok := e.Member(id)
		return m.Incarnation, m.Removed, ok
	}
	co.OnCard = so.roster.onCard
	if !so.identity.Served {
		for _, f := range o.InitialCluster {
			co.Founders = append(co.Founders, consensus.Member{ID: f.ID, Address: f.Address, Voter: true})
		}
		if so.identity.Joined != nil {
			if co.Joined, err = so.identity.Joined.forLog(); err != nil {
				return nil, errors.Join(err, so.raft.Close())
			}
		}
	}
	co.Starting = so.starting
	co.Storing, co.Room = s.health.disks.storing, s.health.disks.room
	co.Vitals = s.health.tell
	co.OnPulse = s.onPulse
	co.Rebuild, co.RebuildReach, co.Unfit = rebuild, s.hold.state().Reach, s.health.unfit
	co.OnRebuild = func(t consensus.Transfer) {
		so.progress(fmt.Sprintf("building the state anew from %s: %d of about %d bytes", t.ID, t.RecordBytes, t.TotalBytes))
	}
	if co.Lineage, err = so.identity.countStart(o.DataDir); err != nil {
		return nil, errors.Join(err, so.raft.Close())
	}
	co.Starts, co.Nonce = so.identity.Starts, co.Lineage[len(co.Lineage)-1]
	co.Card = encodeCard(&so.roster.self, co.Starts)
	opening := ctx
	if rebuild {
		opening = so.unbounded // nobody is waited for but who gives the state; a stream that stands still is given up
	}
	if group, err = consensus.Open(opening, co, stateMachine{s.engine}); err != nil {
		return nil, err
	}
	s.group = group
	s.health.disks.log.Store(s.group.Metrics())
	if err := errors.Join(s.rebuilt(), s.reachable()); err != nil {
		return nil, err
	}
	bo := o.Batcher
	bo.Proposer, bo.Stamp, bo.Now = proposer{s.group}, s.stamp, s.now
	bo.Bracket = so.doors.hold
	s.limits = newLimits()
	bo.OverQuota = s.limits.overQuota
	if s.batcher, err = batcher.New(bo); err != nil {
		return nil, err
	}
	s.forwarder = client.NewForwarder(client.ForwarderOptions{Logger: o.Logger, Name: "node " + o.NodeID, Cluster: func() (id [16]byte, ok bool) {
		id, _, ok = e.Identity()
		return id, ok
	}})
	s.peers = newPeers(s)
	s.keeper = newKeeper(s)
	if err := s.startAutopilot(o.DeadAfter); err != nil {
		panic("BUG: " + err.Error())
	}
	s.scrub = newScrubber(o.ScrubInterval, o.ScrubRate)
	s.scrub.state, s.scrub.log, s.scrub.told = s.engine.Scrub, s.scrubLog, s.scrubbed
	s.limits.start(s)
	return s, nil
}

// reachable refuses a member of a cluster that tells others no address by which they can reach it.
func (s *Shard) reachable() error {
	if err := checkMember(&s.roster.self); err != nil && len(s.group.Status().Configuration) > 1 {
		return fmt.Errorf("cannot take part in a cluster: %w: set --advertise, --http-advertise and --raft-advertise", err)
	}
	return nil
}

// begin starts the shard's loops. refused is told, once, that the cluster has no place for this node.
func (s *Shard) begin(refused func(error)) {
	s.keeper.start(refused)
	s.expiry.start(s)
	s.purge.start(s)
	s.health.start()
	s.scrub.start()
}

// now is the monotonic clock on which deadlines of requests are measured, in nanoseconds.
func (s *Shard) now() int64 { return int64(time.Since(s.epoch)) }

// stamp fills the header of an entry that is about to be proposed. Only a leader whose barrier is
// applied proposes, so the time never runs behind an entry of an earlier leader by more than Apply mends.
func (s *Shard) stamp(h *wire.EntryHeader) {
	h.Level = behaviourLevel
	h.Group = s.id
	h.Incarnation = s.incarnation
	h.Time = s.time.Stamp(readClocks())
}

// serves reports whether the cluster has its identity, as far as this node has applied, the state is not in
// quarantine, and the log holds the recovery that this node is to finish: what is written before that would get
// revisions that the lost majority may have given already.
func (s *Shard) serves() bool {
	if s.served.Load() {
		return true
	}
	if _, _, ok := s.engine.Identity(); !ok || s.quarantined.Load() || s.recovery.pending(s) {
		return false
	}
	s.served.Store(true)
	if s.quarantined.Load() { // since it was asked; whoever sets it clears served then
		s.served.Store(false)
		return false
	}
	return true
}

// leading reports whether this node leads, has applied everything of earlier terms, knows the cluster's time, and
// serves.
func (s *Shard) leading() bool {
	_, ok := s.group.LeaderTerm()
	return ok && s.time.Begun() && s.serves()
}

// readWay is how a linearizable read may be served at a moment.
type readWay uint8

const (
	readUndecided readWay = iota
	readNow               // from the applied state
	readConfirmed         // likewise, once a majority has confirmed that this node leads
	readElsewhere         // not here
)

// howToRead decides for all reads that have arrived before the call. It is called once for a bunch.
func (s *Shard) howToRead() readWay {
	switch {
	case !s.serves():
		return readElsewhere
	case !s.readIndex && s.group.Lease():
		return readNow
	case s.leading():
		return readConfirmed
	}
	return readElsewhere
}

// unconfirmed is the refusal for a read for which the leadership was not confirmed.
func (s *Shard) unconfirmed(err error) *wire.Refusal {
	switch {
	case errors.Is(err, consensus.ErrBusy):
		return busy
	case errors.Is(err, consensus.ErrClosed):
		return &wire.Refusal{Status: wire.StatusDraining}
	case errors.Is(err, consensus.ErrNotLeader):
		return s.notLeading()
	}
	return &wire.Refusal{Status: wire.StatusRetryLater, RetryAfterMs: leaderRetryMs, Text: "no majority of the nodes confirmed in time that this one leads: try again"}
}

// leaderElsewhere gives the address of another node's binary port that leads as far as is known here, and
// its term.
func (s *Shard) leaderElsewhere() (address string, term uint64, ok bool) {
	id, _, term := s.group.Leader()
	if id == "" || id == s.roster.self.ID {
		return "", 0, false
	}
	m, ok := s.roster.member(id)
	return m.Address, term, ok && m.Address != ""
}

// leaderRetryMs is the pause that is suggested while no leader is known: an election takes longer, but its
// end should not be missed by much.
const leaderRetryMs = 50

// notLeading is the refusal for a request that this node cannot serve at present.
func (s *Shard) notLeading() *wire.Refusal {
	if address, term, ok := s.leaderElsewhere(); ok {
		return &wire.Refusal{Status: wire.StatusNotLeader, Leader: address, Term: term}
	}
	if !s.serves() {
		return &wire.Refusal{Status: wire.StatusNotReady, RetryAfterMs: leaderRetryMs}
	}
	return &wire.Refusal{Status: wire.StatusNoLeader, RetryAfterMs: leaderRetryMs}
}

// beginChange waits until nobody else changes the membership: raft takes one change at a time.
func (s *Shard) beginChange(ctx context.Context) error {
	select {
	case s.change <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tryChange is beginChange without waiting.
func (s *Shard) tryChange() bool {
	select {
	case s.change <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Shard) endChange() { <-s.change }

// readFailed counts and logs a read that met damage. (One that met a closing engine is no news.)
func (s *Shard) readFailed(op wire.Opcode, st wire.Status, err error) {
	if st != wire.StatusDamaged {
		s.log.Debug("a read failed", "operation", op.String(), "status", st.String(), "error", err)
		return
	}
	s.readFailures.Add(1)
	s.log.Error("a read met damaged data: the node refuses to answer from it", "operation", op.String(), "error", err)
}

// propose puts an operation of the server's own into the log and waits for its outcome.
func (s *Shard) propose(ctx context.Context, op *wire.Op, payload []byte) wire.Response {
	c := call{answer: make(chan wire.Response, 1)}
	if st := s.batcher.Submit(op, payload, 0, 0, &c, wire.Token{Op: op.Op}, s.now()+int64(wire.TimeoutDefault)); st != wire.StatusOK {
		return wire.Response{Status: st}
	}
	select {
	case r := <-c.answer:
		return r
	case <-ctx.Done():
		return wire.Response{Status: wire.StatusTimeout}
	}
}

// close ends the shard: no more proposals, everything answered, a last checkpoint, then the files.
func (s *Shard) close(ctx context.Context) error {
	s.scrub.stop()
	s.health.stop()
	s.expiry.stop()
	s.purge.stop()
	s.limits.stop()
	s.keeper.stop()
	err := s.batcher.Close(ctx)
	err = errors.Join(err, s.group.Close(ctx), s.forwarder.Close())
	return errors.Join(err, s.closeEngine())
}

// proposer lets the batcher propose to the group.
type proposer struct{ group *consensus.Group }

// Propose implements batcher.Proposer.
func (p proposer) Propose(entry []byte, done func([]wire.Result, wire.Status)) wire.Status {
	err := p.group.Propose(entry, func(result any, err error) {
		if err != nil {
			done(nil, outcome(err))
			return
		}
		results := result.([]wire.Result)
		if results == nil { // the engine has failed at this entry, which others may apply: nobody knows
			done(nil, wire.StatusLeadershipLost)
			return
		}
		done(results, wire.StatusOK)
	})
	if err == nil {
		return wire.StatusOK
	}
	return outcome(err)
}

// outcome turns the log's error into a status of the same certainty: what is not surely not applied is
// unknown.
func outcome(err error) wire.Status {
	switch {
	case errors.Is(err, consensus.ErrBusy):
		return wire.StatusBusy
	case errors.Is(err, consensus.ErrClosed):
		return wire.StatusDraining
	case errors.Is(err, consensus.ErrNotProposed):
		return wire.StatusNoLeader
	}
	return wire.StatusLeadershipLost
}
