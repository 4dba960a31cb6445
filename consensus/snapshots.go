package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"kvstore/internal/failpoint"
)

// snapshotSize is what raft is told as the size of the snapshot that it lists. Nothing depends on it: the stream
// delimits itself, and the one that is opened tells how much the state takes up.
const snapshotSize = 1 << 40

// roomStep is how many bytes of a stream come in between two looks at the free space.
const roomStep = 64 << 20

// ErrNoRoom says that a copy of the state was refused because it may not fit on this node's disk.
var ErrNoRoom = errors.New("there is no room for a copy of the state")

// errOvertaken says that a snapshot from the leader came while this node took one of its own.
var errOvertaken = errors.New("a snapshot from the leader has overtaken this one")

// snapshotStore is raft's SnapshotStore, without a file of its own: the only snapshot there is, is the
// durable checkpoint of the state machine. What raft believes about its snapshot and what the state
// machine has on disk can therefore never differ.
//
// A snapshot from the leader does not pass through raft: receive hands it to the state machine, which
// puts it beside the live state. raft gets a descriptor that names it, stores that here (Create, Write,
// Close), and has it restored (Open, fsm.Restore), which makes it the state.
//
// raft takes and installs snapshots on two goroutines and does not keep them apart: one that was begun
// before an installation could be completed after it, and set raft's idea of the newest snapshot back.
// The node would then vote for candidates that lack what it holds. Here a snapshot of this node's own is
// given up while a received one waits, and when one was installed since it began.
type snapshotStore struct {
	// Immutable.
	sm      StateMachine
	logs    *logStore
	metrics *Metrics
	ctx     context.Context // ends when Close begins
	crash   func(step string)
	// room returns an error unless so many bytes can be stored.
	room func(bytes int64) error

	// transfers provides its own synchronisation.
	transfers transfers

	// last is the index of the newest snapshot that raft knows.
	last atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	number     uint64               // names descriptors and sinks
	received   map[string]*received // by descriptor: waits beside the state
	sinks      map[string]*snapshotSink
	installs   uint64     // counts the installations begun
	completing bool       // a snapshot of this node's own is past its last check and not yet known to raft
	idle       *sync.Cond // signalled when completing ends
}

// received is a snapshot that waits beside the state.
type received struct {
	durable  Durable
	state    Received
	transfer *transfer
}

// discard removes it.
func (r *received) discard() {
	r.state.Discard()
	r.transfer.end(false)
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

func newSnapshotStore(ctx context.Context, sm StateMachine, logs *logStore, m *Metrics, crash func(string)) *snapshotStore {
	s := &snapshotStore{
		sm: sm, logs: logs, metrics: m, ctx: ctx, crash: crash,
		received: make(map[string]*received), sinks: make(map[string]*snapshotSink),
		room: func(int64) error { return nil },
	}
	logs.restoreTime, logs.compacting = s.transfers.longest, s.isCompleting
	s.idle = sync.NewCond(&s.mu)
	if d, ok := sm.Durable(); ok {
		s.last.Store(d.Index)
	}
	return s
}

// meta describes a checkpoint to raft.
func meta(d Durable, id string, size int64) (*raft.SnapshotMeta, error) {
	configuration, err := decodeConfiguration(d.Configuration)
	if err != nil {
		return nil, fmt.Errorf("cannot use the checkpoint at index %d: %w", d.Index, err)
	}
	return &raft.SnapshotMeta{
		Version:            raft.SnapshotVersionMax,
		ID:                 id,
		Index:              d.Index,
		Term:               d.Term,
		Configuration:      configuration,
		ConfigurationIndex: d.ConfigurationIndex,
		Size:               size,
	}, nil
}

// List implements raft.SnapshotStore: the durable checkpoint, or nothing.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	d, ok := s.sm.Durable()
	if !ok {
		return nil, nil
	}
	m, err := meta(d, snapshotID(d.Term, d.Index), snapshotSize)
	if err != nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{m}, nil
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("cannot create a snapshot of version %d", version)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	return &snapshotSink{
		store: s, id: fmt.Sprintf("%s-%d", snapshotID(term, index), s.number),
		durable: Durable{
			Index: index, Term: term,
			Configuration:      raft.EncodeConfiguration(configuration),
			ConfigurationIndex: configurationIndex,
		},
	}, nil
}

// Open implements raft.SnapshotStore, for two callers: a replicator that wants to send the state, and
// raft's FSM goroutine that wants to restore what a sink has taken.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	sink := s.sinks[id]
	delete(s.sinks, id)
	s.mu.Unlock()
	if sink != nil {
		m, err := meta(sink.durable, id, int64(len(sink.descriptor)))
		if err != nil {
			return nil, nil, err
		}
		return m, io.NopCloser(bytes.NewReader(sink.descriptor)), nil
	}

	d, stream, err := s.open(s.ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := meta(d, snapshotID(d.Term, d.Index), int64(stream.Progress().TotalBytes))
	if err != nil {
		return nil, nil, errors.Join(err, stream.Close())
	}
	return m, stream, nil
}

// open opens the newest checkpoint for sending, which may be newer than the one that List named. What it returns
// describes the stream itself.
func (s *snapshotStore) open(ctx context.Context) (Durable, *pinnedStream, error) {
	if err := failpoint.Err(failpoint.SnapshotCreateBefore); err != nil {
		return Durable{}, nil, err
	}
	d, ok := s.sm.Durable()
	if !ok {
		return Durable{}, nil, errors.New("cannot send a snapshot: there is no checkpoint yet")
	}
	pin := s.logs.pins.pin(d.Index)
	d, stream, err := s.sm.OpenSnapshot(ctx)
	if err != nil {
		s.logs.pins.release(pin, 0)
		return Durable{}, nil, fmt.Errorf("cannot open the state for sending: %w", err)
	}
	s.logs.pins.move(pin, d.Index)
	s.metrics.SnapshotsSent.Add(1)
	failpoint.Hit(failpoint.SnapshotCreateAfter)
	return d, &pinnedStream{ReadCloser: stream, pins: &s.logs.pins, pin: pin}, nil
}

// pinnedStream keeps the log that continues a snapshot while the snapshot is read, and Options.SnapshotGrace longer.
type pinnedStream struct {
	io.ReadCloser
	pins *logPins
	pin  *logPin
}

// Progress tells how much of the state has gone through the stream.
func (s *pinnedStream) Progress() SnapshotProgress { return sendingOf(s.ReadCloser)() }

// Close ends the stream and lets go of the log.
func (s *pinnedStream) Close() error {
	s.pins.release(s.pin, s.pins.grace)
	return s.ReadCloser.Close()
}

// receive reads a snapshot from the leader into a place beside the live state. The descriptor names it
// until it was restored or discarded.
func (s *snapshotStore) receive(ctx context.Context, req *raft.InstallSnapshotRequest, stream io.Reader) (descriptor []byte, discard func(), err error) {
	s.crash("receive")
	d := Durable{Index: req.LastLogIndex, Term: req.LastLogTerm, Configuration: req.Configuration, ConfigurationIndex: req.ConfigurationIndex}
	came, err := s.take(ctx, string(req.ID), DirectionReceive, d, req.Size, stream)
	if err != nil {
		return nil, nil, err
	}
	s.crash("received")
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.completing { // a matter of milliseconds
		s.idle.Wait()
	}
	s.number++
	name := fmt.Sprintf("received snapshot %d of entry %d in term %d", s.number, d.Index, d.Term)
	s.received[name] = came
	return []byte(name), func() {
		s.mu.Lock()
		r := s.received[name]
		delete(s.received, name)
		s.mu.Unlock()
		if r != nil {
			r.discard()
		}
	}, nil
}

// take reads a copy of the state at d, which takes up about size bytes, from another node into a place beside the
// live state.
func (s *snapshotStore) take(ctx context.Context, from string, way Direction, d Durable, size int64, stream io.Reader) (*received, error) {
	fail := func(err error) (*received, error) {
		return nil, fmt.Errorf("cannot take the snapshot of entry %d: %w", d.Index, err)
	}
	if _, err := decodeConfiguration(d.Configuration); err != nil {
		return fail(err)
	}
	// Once for the copy, once for what compacting it takes; the old state stays until the copy is installed.
	if err := s.hasRoom(2 * size); err != nil {
		return fail(err)
	}
	x := s.transfers.begin(from, way, d.Index, &s.metrics.SnapshotBytesReceived, s.receiving)
	state, err := s.sm.ReceiveSnapshot(ctx, d, x.reader(&roomyReader{r: stream, room: s.hasRoom}))
	if err != nil {
		x.end(false)
		return fail(err)
	}
	x.streamed.Store(true)
	s.metrics.SnapshotsReceived.Add(1)
	return &received{d, state, x}, nil
}

// hasRoom asks whether so many bytes can be stored.
func (s *snapshotStore) hasRoom(bytes int64) error {
	if err := s.room(bytes); err != nil {
		s.metrics.SnapshotsRefused.Add(1)
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return nil
}

// roomyReader looks for room now and then for what is to come.
type roomyReader struct {
	r    io.Reader
	room func(bytes int64) error
	left int64 // until the next look
}

// Read implements io.Reader.
func (r *roomyReader) Read(b []byte) (int, error) {
	if r.left <= 0 {
		if err := r.room(2 * roomStep); err != nil {
			return 0, err
		}
		r.left = roomStep
	}
	n, err := r.r.Read(b)
	r.left -= int64(n)
	return n, err
}

// install begins the installation of what a descriptor names, which is removed; nil if it is gone. It is
// called on raft's FSM goroutine.
func (s *snapshotStore) install(descriptor string) *received {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.received[descriptor]
	delete(s.received, descriptor)
	s.installs++
	return r
}

// close discards what was received and never restored. REQUIRES: raft has ended.
func (s *snapshotStore) close() {
	s.mu.Lock()
	left := s.received
	s.received = make(map[string]*received)
	s.mu.Unlock()
	for _, r := range left {
		r.discard()
	}
}

// generation counts the installations begun. A snapshot of this node's own notes it when it pins its
// index, also on raft's FSM goroutine.
func (s *snapshotStore) generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.installs
}

// current returns an error if a snapshot that was begun in generation has no business any more.
func (s *snapshotStore) current(generation uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.currentLocked(generation)
}

func (s *snapshotStore) currentLocked(generation uint64) error {
	if s.installs != generation || len(s.received) > 0 {
		return errOvertaken
	}
	return nil
}

// complete lets a snapshot that was begun in generation become raft's newest. From then on received ones
// wait until completed.
func (s *snapshotStore) complete(generation uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.currentLocked(generation); err != nil {
		return err
	}
	s.completing = true
	return nil
}

// isCompleting tells whether raft may be busy with the end of a snapshot of this node's own: it compacts the log
// then, and only then.
func (s *snapshotStore) isCompleting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.completing
}

// completed says that raft has finished its snapshot, or given it up.
func (s *snapshotStore) completed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.completing = false
	s.idle.Broadcast()
}

// snapshotSink takes one of two things: from Persist, nothing, since the state is durable in the state
// machine; from an installation the descriptor of what was received. Owned by the goroutine of raft that
// created it.
type snapshotSink struct {
	// Immutable.
	store   *snapshotStore
	id      string
	durable Durable // what raft calls the snapshot

	persisted  bool
	generation uint64 // of the snapshot that was persisted
	index      uint64 // last entry that the persisted state covers
	descriptor []byte
}

// ID implements raft.SnapshotSink.
func (s *snapshotSink) ID() string { return s.id }

// Write implements raft.SnapshotSink.
func (s *snapshotSink) Write(b []byte) (int, error) {
	if s.persisted {
		return 0, errors.New("BUG: the state is durable in the state machine, a snapshot holds no data")
	}
	s.descriptor = append(s.descriptor, b...)
	return len(b), nil
}

// Close implements raft.SnapshotSink.
func (s *snapshotSink) Close() error {
	switch {
	case s.persisted:
		if err := s.store.complete(s.generation); err != nil {
			return err
		}
		s.store.last.Store(s.index)
		return nil
	case len(s.descriptor) > 0:
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		s.store.sinks[s.id] = s
		return nil
	}
	return errors.New("BUG: a snapshot without contents")
}

// Cancel implements raft.SnapshotSink.
func (s *snapshotSink) Cancel() error { return nil }

func snapshotID(term, index uint64) string { return fmt.Sprintf("%d-%d", term, index) }

// voterIDs appends the voters of a configuration to ids.
func voterIDs(c raft.Configuration, ids []raft.ServerID) []raft.ServerID {
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}
