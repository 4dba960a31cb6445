package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"kvstore/internal/failpoint"
)

// ErrReceiving says that another snapshot is being received: one at a time.
var ErrReceiving = errors.New("another snapshot is being received")

// Received is a snapshot that was received whole and verified. It stands beside the engine's state, in a
// generation of its own, and is to be either installed or discarded.
type Received struct {
	// Immutable after ReceiveSnapshot.
	engine *Engine
	cp     Checkpoint
	in     *instance

	// Guarded by engine.mu.
	state receivedState
}

type receivedState uint8

const (
	receivedReady receivedState = iota
	receivedInstalling
	receivedInstalled // or nobody knows: the switch failed half-way, and the engine has failed
	receivedDiscarded
)

// ReceiveSnapshot reads the stream of a Snapshot from r, and not one byte beyond it, into a new generation
// beside the live one, which goes on. It checks every frame, the order of keys, and then, by reading all of
// it back, every record's checksum and the state's digest. What it returns is durable, and is installed by
// Received.Install. want says which state is expected; the configuration is compared if there is one in it.
//
// One snapshot at a time: while one is being received, others get ErrReceiving; one that was received and
// not yet installed is discarded by the next call. Nothing is left after an error, nor after a crash: the
// next Open removes what CHECKPOINT does not name.
//
// ctx ends it between two frames; r must have bounds of its own for a sender that falls silent. Errors:
// ErrSnapshotDamaged, ErrReceiving, ErrClosed, ctx's, those of r, and those of the disk.
func (e *Engine) ReceiveSnapshot(ctx context.Context, want SnapshotMeta, r io.Reader) (*Received, error) {
	if err := e.beginReception(); err != nil {
		return nil, fmt.Errorf("cannot receive a snapshot: %w", err)
	}
	received, err := e.receive(ctx, &want, r)
	e.endReception(received)
	if err != nil {
		e.transferred.refused.Add(1)
		return nil, fmt.Errorf("cannot receive the snapshot of index %d: %w", want.Index, err)
	}
	e.transferred.received.Add(1)
	return received, nil
}

// reception tells how far a snapshot has been received. Written by ReceiveSnapshot, read by anyone.
type reception struct {
	// Immutable.
	records, recordBytes uint64 // all that there will be

	items, bytes, read, recordsDone atomic.Uint64
}

// Receiving tells how far the snapshot that is being received has been; ok is false when there is none. Sent counts
// what was read of its stream.
func (e *Engine) Receiving() (p SnapshotProgress, ok bool) {
	r := e.transferred.reception.Load()
	if r == nil {
		return SnapshotProgress{}, false
	}
	return SnapshotProgress{
		Items: r.items.Load(), Bytes: r.bytes.Load(), Sent: r.read.Load(), RecordsDone: r.recordsDone.Load(),
		Records: r.records, RecordBytes: r.recordBytes,
	}, true
}

// beginReception takes the place of the one who receives. An older snapshot that waits makes room.
func (e *Engine) beginReception() error {
	e.mu.Lock()
	var older *Received
	switch {
	case e.closing:
		e.mu.Unlock()
		return ErrClosed
	case e.receiving, e.received != nil && e.received.state == receivedInstalling:
		e.mu.Unlock()
		return ErrReceiving
	case e.received != nil:
		older, e.received = e.received, nil
		older.state = receivedDiscarded
	}
	e.receiving = true
	e.tasks.Add(1) // under mu: Close waits only after it has set closing
	e.mu.Unlock()
	if older == nil {
		return nil
	}
	if err := older.in.discard(); err != nil {
		e.endReception(nil)
		return err
	}
	return nil
}

// endReception gives the place back; received is nil when there is nothing to install.
func (e *Engine) endReception(received *Received) {
	e.mu.Lock()
	e.receiving, e.received = false, received
	e.mu.Unlock()
	e.tasks.Done()
}

// endReceptions refuses new receptions, has the one under way end at its next frame, and discards what waits
// to be installed. REQUIRES: the applier has stopped.
func (e *Engine) endReceptions() error {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	e.tasks.Wait()
	e.mu.Lock()
	r := e.received
	e.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.discard()
}

func (e *Engine) closed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing
}

// receive is ReceiveSnapshot with the place taken.
func (e *Engine) receive(ctx context.Context, want *SnapshotMeta, r io.Reader) (received *Received, err error) {
	sr := &snapshotReader{r: r}
	defer func() { e.transferred.bytesReceived.Add(sr.at) }()
	h, err := sr.start()
	if err != nil {
		return nil, err
	}
	live := e.live.Load()
	if err := h.check(want, live); err != nil {
		return nil, err
	}
	m, err := decodeMarker(h.marker)
	if err != nil {
		return nil, untrusted(err)
	}
	e.transferred.reception.Store(&reception{records: m.records, recordBytes: m.bytes})
	defer e.transferred.reception.Store(nil)
	generations, err := listGenerations(live.store.dir)
	if err != nil {
		return nil, err
	}
	// Above all that are there: an older one may be in removal.
	generation := live.store.generation
	for _, g := range generations {
		generation = max(generation, g)
	}
	cp := h.checkpoint(generation + 1)
	s := newStore(e.o, live.store.metrics)
	s.setGeneration(cp.Generation)
	if err := e.fill(ctx, s, sr); err != nil {
		return nil, err
	}
	in, err := openInstance(ctx, s, cp)
	if err != nil {
		return nil, err
	}
	if err := in.belongs(live); err != nil {
		return nil, errors.Join(err, in.discard())
	}
	s.o.hooks.step(stepVerified)
	return &Received{engine: e, cp: cp, in: in}, nil
}

// check compares the header with what is wanted and with the node's own state.
func (h *snapshotHeader) check(want *SnapshotMeta, live *instance) error {
	switch {
	case h.index != want.Index || h.term != want.Term || h.configurationIndex != want.ConfigurationIndex:
		return fmt.Errorf("%w: it holds index %d of term %d with the configuration of index %d; wanted are %d, %d, %d",
			ErrSnapshotDamaged, h.index, h.term, h.configurationIndex, want.Index, want.Term, want.ConfigurationIndex)
	case len(want.Configuration) > 0 && !bytes.Equal(h.configuration, want.Configuration):
		return fmt.Errorf("%w: its configuration is not the one that is wanted", ErrSnapshotDamaged)
	case h.group != live.group:
		return fmt.Errorf("%w: it is of group %d, this is group %d", ErrSnapshotDamaged, h.group, live.group)
	case h.level > LevelNewest:
		return fmt.Errorf("the snapshot has behaviour level %d, this build knows up to %d: use a newer build", h.level, LevelNewest)
	}
	if id := live.identity.Load(); id.level != levelNone && id.clusterID != h.clusterID {
		return fmt.Errorf("the snapshot is of cluster %x, this node's state is of cluster %x", h.clusterID, id.clusterID)
	}
	return nil
}

// checkpoint is what a node knows to be on disk once the snapshot is installed in generation.
func (h *snapshotHeader) checkpoint(generation uint64) Checkpoint {
	return Checkpoint{
		Generation: generation, Index: h.index, Term: h.term, TS: h.ts, Time: h.time,
		Fence:         h.ts, // a snapshot holds no past
		Configuration: h.configuration, ConfigurationIndex: h.configurationIndex,
		WitnessIndex: h.index, WitnessTerm: h.term,
		WitnessConfiguration: h.configuration, WitnessConfigurationIndex: h.configurationIndex,
		Marker: h.marker, Installed: true,
	}
}

// fill writes the items of the stream into the generation of s and makes it durable. On error nothing is
// left of it.
func (e *Engine) fill(ctx context.Context, s *store, sr *snapshotReader) error {
	w, err := newGenerationWriter(s)
	if err != nil {
		return err
	}
	s.o.hooks.step(stepCreated)
	progress := e.transferred.reception.Load()
	for more := true; more && err == nil; {
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case e.closed():
			err = ErrClosed
		default:
			more, err = sr.next(w.set)
			progress.items.Store(sr.count.items)
			progress.bytes.Store(sr.count.bytes)
			progress.recordsDone.Store(sr.records)
			progress.read.Store(sr.at)
			if err == nil {
				err = failpoint.Err(failpoint.SnapshotReceive)
			}
		}
	}
	if err == nil {
		err = w.finish()
	}
	if err != nil {
		return errors.Join(err, w.abort())
	}
	return nil
}

// openInstance opens the generation of s as a normal store, builds the state machine from it, and verifies
// every byte of it. On error nothing is left of the generation.
func openInstance(ctx context.Context, s *store, cp Checkpoint) (*instance, error) {
	if err := s.openReceived(cp); err != nil {
		return nil, errors.Join(untrusted(err), removeGeneration(s))
	}
	in, err := loadInstance(s)
	if err != nil {
		return nil, errors.Join(untrusted(err), s.discard())
	}
	if err := in.verify(ctx); err != nil {
		return nil, errors.Join(untrusted(err), in.discard())
	}
	return in, nil
}

// untrusted turns what says that this node's state is damaged into what says it of the snapshot.
func untrusted(err error) error {
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrRecordDamaged) || errors.Is(err, ErrDigestMismatch) {
		return fmt.Errorf("%w: %v", ErrSnapshotDamaged, err)
	}
	return err
}

// belongs reports, by an error, that in is the state of another cluster than live.
func (in *instance) belongs(live *instance) error {
	id, own := in.identity.Load(), live.identity.Load()
	if own.level != levelNone && id.clusterID != own.clusterID {
		return fmt.Errorf("the snapshot holds the state of cluster %x, this node's is of cluster %x", id.clusterID, own.clusterID)
	}
	return nil
}

// Discard removes the snapshot. After Install, or a second time, it does nothing. It may be called from any
// goroutine.
func (r *Received) Discard() {
	if err := r.discard(); err != nil {
		r.in.store.log.Error("cannot remove a snapshot that is not wanted; the next start will", "error", err)
	}
}

func (r *Received) discard() error {
	e := r.engine
	e.mu.Lock()
	if r.state != receivedReady {
		e.mu.Unlock()
		return nil
	}
	r.state = receivedDiscarded
	if e.received == r {
		e.received = nil
	}
	e.mu.Unlock()
	return r.in.discard()
}
