package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"kvstore/batcher"
	"kvstore/consensus"
	"kvstore/engine"
	"kvstore/internal/diskguard"
	"kvstore/wire"
)

// behaviourLevel is the newest behaviour of the state machine that this build knows; a new cluster
// starts with it. See engine for what each level means.
const behaviourLevel = 1

// Shard is one Raft group with its batcher and its engine.
type Shard struct {
	// Immutable after openShard.
	id          uint32
	log         *slog.Logger
	engine      *engine.Engine
	group       *consensus.Group
	batcher     *batcher.Batcher
	guard       *diskguard.Guard
	incarnation uint64
	epoch       time.Time // zero of now

	// serving is set once the group leads and the cluster has its identity: what clients may ask before
	// that is refused with StatusNotReady.
	serving atomic.Bool

	readFailures atomic.Uint64

	expiry expiry
}

// openShard opens the engine, then the log that drives it, then the batcher in front.
func openShard(o *Options, id uint32, guard *diskguard.Guard, doors *doors) (s *Shard, err error) {
	s = &Shard{id: id, log: o.Logger.With("group", id), guard: guard, epoch: time.Now()}
	var bits [8]byte
	rand.Read(bits[:]) // never fails: it ends the process if the system has no randomness
	s.incarnation = binary.LittleEndian.Uint64(bits[:])

	dir := filepath.Join(o.DataDir, "groups", strconv.FormatUint(uint64(id), 10))
	eo := o.Engine
	eo.Dir, eo.Group, eo.Logger, eo.Fatal = o.DataDir, id, o.Logger, o.Fatal
	if s.engine, err = engine.Open(eo); err != nil {
		return nil, err
	}
	e := s.engine // s is nil where an error is returned
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	co := o.Consensus
	co.Dir, co.Group, co.NodeID, co.Address, co.Logger, co.Fatal = filepath.Join(dir, "log"), id, o.NodeID, o.RaftAdvertise, o.Logger, o.Fatal
	co.EntryBytesMax = wire.EntryBytesMax
	if s.group, err = consensus.Open(co, stateMachine{s.engine}); err != nil {
		return nil, err
	}
	bo := o.Batcher
	bo.Proposer, bo.Stamp, bo.Now = proposer{s.group}, s.stamp, s.now
	bo.Bracket = doors.hold
	if s.batcher, err = batcher.New(bo); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), o.DrainTimeout)
		defer cancel()
		return nil, errors.Join(err, s.group.Close(ctx))
	}
	return s, nil
}

// now is the monotonic clock on which deadlines of requests are measured, in nanoseconds.
func (s *Shard) now() int64 { return int64(time.Since(s.epoch)) }

// stamp fills the header of an entry that is about to be proposed. Only a leader whose barrier is
// applied proposes, so the time never runs behind an entry of an earlier leader by more than Apply mends.
func (s *Shard) stamp(h *wire.EntryHeader) {
	h.Level = behaviourLevel
	h.Group = s.id
	h.Incarnation = s.incarnation
	h.Time = time.Now().UnixMicro()
}

// leading reports whether this node leads, has applied everything of earlier terms, and serves.
func (s *Shard) leading() bool {
	_, ok := s.group.LeaderTerm()
	return ok && s.serving.Load()
}

// readable reports whether a linearizable read may be served from the applied state now. A group of one
// voter is always its own majority: leading is enough. (More voters need a lease or a read index.)
func (s *Shard) readable() bool { return s.leading() }

// notLeading is the refusal for a request that this node cannot serve at present.
func (s *Shard) notLeading() *wire.Refusal {
	if !s.serving.Load() {
		return &wire.Refusal{Status: wire.StatusNotReady, RetryAfterMs: 50}
	}
	return &wire.Refusal{Status: wire.StatusNoLeader, RetryAfterMs: 50}
}

// readFailed counts and logs a read that met damage. (One that met a closing engine is no news.)
func (s *Shard) readFailed(op wire.Opcode, st wire.Status, err error) {
	if st != wire.StatusDamaged {
		s.log.Debug("a read failed", "operation", op.String(), "status", st.String(), "error", err)
		return
	}
	s.readFailures.Add(1)
	s.log.Error("a read met damaged data: the node refuses to answer from it", "operation", op.String(), "error", err)
}

// begin waits until the group leads and the cluster has an identity, which the first leader commits.
func (s *Shard) begin(ctx context.Context) error {
	select {
	case <-s.group.Ready():
	case <-ctx.Done():
		return fmt.Errorf("cannot start group %d: no leader: %w", s.id, ctx.Err())
	}
	if _, _, ok := s.engine.Identity(); !ok {
		in := wire.Init{Level: behaviourLevel}
		rand.Read(in.ClusterID[:])
		rand.Read(in.HistoryID[:])
		r := s.propose(ctx, &wire.Op{Op: wire.OpInit}, wire.AppendInit(nil, &in))
		if r.Status != wire.StatusOK {
			return fmt.Errorf("cannot give the new cluster an identity: %s", r.Status)
		}
	}
	s.serving.Store(true)
	s.expiry.start(s)
	return nil
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
	s.expiry.stop()
	err := s.batcher.Close(ctx)
	err = errors.Join(err, s.group.Close(ctx))
	return errors.Join(err, s.engine.Close())
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
		done(result.([]wire.Result), wire.StatusOK)
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

// stateMachine lets the group drive the engine.
type stateMachine struct{ engine *engine.Engine }

// Apply implements consensus.StateMachine.
func (m stateMachine) Apply(index, term uint64, data []byte) any {
	return m.engine.Apply(index, term, data)
}

// ApplyConfiguration implements consensus.StateMachine.
func (m stateMachine) ApplyConfiguration(index, term uint64, configuration []byte) {
	m.engine.ApplyConfiguration(index, term, configuration)
}

// Applied implements consensus.StateMachine.
func (m stateMachine) Applied() uint64 { return m.engine.Applied().Index }

// Durable implements consensus.StateMachine.
func (m stateMachine) Durable() (consensus.Durable, bool) {
	c, ok := m.engine.Durable()
	return consensus.Durable{Index: c.Index, Term: c.Term, Configuration: c.Configuration, ConfigurationIndex: c.ConfigurationIndex}, ok
}

// WaitDurable implements consensus.StateMachine.
func (m stateMachine) WaitDurable(ctx context.Context, index uint64) error {
	return m.engine.WaitDurable(ctx, index)
}

// Witness implements consensus.StateMachine.
func (m stateMachine) Witness(ctx context.Context, d consensus.Durable) error {
	return m.engine.Witness(ctx, d.Index, d.Term, d.Configuration, d.ConfigurationIndex)
}
