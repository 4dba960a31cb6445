package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"kvstore/internal/hist"
	"kvstore/wire"
)

// Engine is the state machine of one Raft group and the store below it. Apply and ApplyConfiguration belong
// to one goroutine, the applier; every other method may be called from any.
//
// An Engine outlives its state: ReceiveSnapshot builds another beside it, and Received.Install puts that in
// its place.
type Engine struct {
	// Immutable after Open.
	o           Options // with defaults
	start       Checkpoint
	hadStart    bool
	transferred transferMetrics

	// Provides its own synchronisation.
	applyTime hist.Histogram
	waiters   waiters // for entries to be applied

	// Written by Open and, on the applier's goroutine, by Install; read by anyone.
	live atomic.Pointer[instance]

	// scrubbing is held by the scrub under way.
	scrubbing sync.Mutex

	// tasks are receptions of snapshots and removals of replaced generations: Close waits for them.
	tasks sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	disarm    func() error // ends the keeping of a trace, see deathFile; nil once it has ended
	closing   bool
	receiving bool      // a reception is under way
	received  *Received // the last one that ended well and was neither installed nor discarded
	past      counters  // of the instances that were replaced
}

// Point is a state that readers see.
type Point struct {
	// Index and Term are those of the newest entry applied; 0 in a virgin engine.
	Index, Term uint64
	// Time is the log time, Unix µs: what has expired is decided by it.
	Time int64
	// Revision is that of the state: that of the entry's last mutation, or the entry's first revision when
	// it made none. A read at this revision shows this state.
	Revision wire.Revision
}

func pointOf(p point) Point {
	return Point{Index: p.index, Term: p.term, Time: p.time, Revision: p.revision}
}

// Open opens the group's state at the newest checkpoint, or creates it. The caller then applies the log from
// Applied().Index + 1 on. Errors: ErrDamaged when what is stored can't be trusted; others from the disk or
// the options.
func Open(o Options) (*Engine, error) {
	s, err := openStore(o)
	if err != nil {
		return nil, err
	}
	in, err := loadInstance(s)
	if err == nil {
		err = in.checkIdentity()
	}
	if errors.Is(err, ErrRecordDamaged) || errors.Is(err, ErrDigestMismatch) {
		err = damaged("cannot load the state machine", err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot load the state machine: %w", err), s.close())
	}
	e := &Engine{o: s.o}
	e.waiters.init()
	e.start, e.hadStart = s.recovered()
	e.live.Store(in)
	if e.disarm, err = armTrace(filepath.Join(s.dir, deathFile)); err != nil {
		return nil, errors.Join(err, in.close())
	}
	return e, nil
}

// Close ends reads, writes a last checkpoint and closes the store. The applier must have stopped before.
// It waits for a ReceiveSnapshot under way, which ends with ErrClosed at its next frame or with its
// reader: end that first.
func (e *Engine) Close() error {
	err := errors.Join(e.endReceptions(), e.live.Load().close())
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.disarm != nil {
		err = errors.Join(err, e.disarm())
		e.disarm = nil
	}
	return err
}

// Applied gives the newest state that readers see.
func (e *Engine) Applied() Point { return pointOf(e.live.Load().store.current()) }

// Digest gives the state's digest and the index that it belongs to: equal on all replicas at equal index.
func (e *Engine) Digest() (index uint64, digest [16]byte) {
	in := e.live.Load()
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.newest.index, in.newest.digest.bytes()
}

// Identity gives the ids that OpInit has set; ok is false before it. The history id changes whenever the
// cluster forgets history; cursors of another history are refused.
func (e *Engine) Identity() (clusterID, historyID [16]byte, ok bool) {
	id := e.live.Load().identity.Load()
	return id.clusterID, id.historyID, id.level != levelNone
}

// Level gives the behaviour level of the state; 0 before OpInit.
func (e *Engine) Level() uint16 { return e.live.Load().identity.Load().level }

// Durable gives the newest checkpoint; ok is false while there is none.
func (e *Engine) Durable() (cp Checkpoint, ok bool) { return e.live.Load().store.durable() }

// Recovered gives the checkpoint that Open started from; ok is false if it found none.
func (e *Engine) Recovered() (cp Checkpoint, ok bool) { return e.start, e.hadStart }

// CheckpointNow makes the newest state durable and returns when it is. Errors: ctx's, ErrClosed, or the
// failure that has stopped the engine.
func (e *Engine) CheckpointNow(ctx context.Context) error {
	return e.waiting(func(s *store) error { return s.checkpointNow(ctx) })
}

// WaitDurable returns when the state is durable up to index. Errors as CheckpointNow.
func (e *Engine) WaitDurable(ctx context.Context, index uint64) error {
	return e.waiting(func(s *store) error { return s.waitDurable(ctx, index) })
}

// Witness records in the checkpoint that the state reaches the Raft snapshot of index and term, with the
// configuration that the snapshot holds, and returns when that is durable. Errors as CheckpointNow.
func (e *Engine) Witness(ctx context.Context, index, term uint64, configuration []byte, configurationIndex uint64) error {
	return e.waiting(func(s *store) error { return s.witness(ctx, index, term, configuration, configurationIndex) })
}
