package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/failpoint"
)

// StateMachine is what a group drives. Apply and ApplyConfiguration come from one goroutine, in log
// order, without gaps other than entries that raft keeps to itself (no-ops, barriers). Durable,
// WaitDurable, Witness and Applied may come from any goroutine, also while Apply runs.
type StateMachine interface {
	// Apply applies one committed command and returns the value for its proposer. It panics rather
	// than fail: a replica that skips an entry diverges. data must not be changed; it may be kept.
	Apply(index, term uint64, data []byte) any
	// ApplyConfiguration records the raft configuration (encoded by raft.EncodeConfiguration) that was
	// committed at index.
	ApplyConfiguration(index, term uint64, configuration []byte)
	// Durable returns the newest durable checkpoint, the single truth about what survives a crash; ok
	// is false when there is none. After a start, everything above it is applied again.
	Durable() (c Durable, ok bool)
	// WaitDurable blocks until the durable checkpoint reaches index, forcing one, or until ctx ends.
	// index is never above Applied.
	WaitDurable(ctx context.Context, index uint64) error
	// Witness tells that raft took a snapshot which the state at d.Index satisfies, with the
	// configuration that was committed then, to be carried in a checkpoint. d.Index is durable already
	// and never above Applied: raft may name its snapshot after a barrier, which the state machine never
	// sees, but that name does not reach it. An error, also when ctx ends, gives this snapshot up: raft
	// then keeps its log and tries again later.
	Witness(ctx context.Context, d Durable) error
	// Applied is the index of the last command or configuration applied, durable or not.
	Applied() uint64

	// OpenSnapshot returns the newest durable checkpoint and its contents as a stream that delimits
	// itself, for another node; what it returns describes the stream, whatever Durable said before. A stream with
	// a method Progress() SnapshotProgress tells how far it was read. It may be called from several goroutines at once; the checkpoint's
	// contents stay readable until the stream is closed. An error: there is none, or none can be read now.
	OpenSnapshot(ctx context.Context) (Durable, io.ReadCloser, error)
	// ReceiveSnapshot reads exactly one such stream, of the checkpoint d, into a place beside the live
	// state, and verifies it. Apply goes on meanwhile. One at a time, from any goroutine. After an error,
	// also when ctx ends, nothing of it is left. A state machine with a method Receiving() (SnapshotProgress,
	// bool) tells how far that is; false if nothing is being received.
	ReceiveSnapshot(ctx context.Context, d Durable, r io.Reader) (Received, error)
}

// Received is a verified state that waits beside the live one. Exactly one of its methods is called,
// once.
type Received interface {
	// Install makes it the state, on the goroutine of Apply. It is durable when Install returns: Durable
	// answers with it and Installed set, Applied with its index. A crash leaves the old state or this one.
	// After an error the old state stands, as if nothing had happened.
	Install() error
	// Discard removes it.
	Discard()
}

// Durable describes a durable checkpoint of the state machine.
type Durable struct {
	// Index and Term are those of the last entry that the checkpoint covers.
	Index, Term uint64
	// Configuration is the raft configuration as of Index, encoded by raft.EncodeConfiguration, and
	// ConfigurationIndex the index that it was committed at.
	Configuration      []byte
	ConfigurationIndex uint64
	// Installed says that this checkpoint came by Received.Install and that nothing above Index was made
	// durable since: the log below and beside it may be empty or older.
	Installed bool
}

// fsm adapts a StateMachine to raft.
type fsm struct {
	// Immutable.
	sm              StateMachine
	logs            *logStore
	snapshots       *snapshotStore
	metrics         *Metrics
	fault           *failStop
	watch           *watchdog       // on while entries are applied
	ctx             context.Context // ends when Close begins: no snapshot is waited for any longer
	snapshotTimeout time.Duration
	// configured is told each configuration that was committed, or came with a snapshot.
	configured func(index uint64, configuration []byte)

	// Owned by raft's FSM goroutine.
	last, lastTerm uint64 // the last entry handed to sm
}

var _ raft.BatchingFSM = (*fsm)(nil)

// ApplyBatch implements raft.BatchingFSM. raft sends commands and configurations only.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	// Invariant: applied <= on this disk. A checkpoint would otherwise cover what a crash takes from the log.
	if last := logs[len(logs)-1].Index; !f.logs.queue.synced(last) {
		err := f.fault.fail(fmt.Errorf("BUG: entry %d was committed before this node's disk held it", last))
		_ = f.fault.leave(err)
		panic(err) // raft runs, so the line before does not return
	}
	f.watch.start()
	defer f.watch.stop()
	results := make([]any, len(logs))
	for i, l := range logs {
		results[i] = f.Apply(l)
	}
	return results
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	if l.Index <= f.last {
		panic(fmt.Sprintf("BUG: entry %d after entry %d", l.Index, f.last))
	}
	f.last, f.lastTerm = l.Index, l.Term
	switch l.Type {
	case raft.LogCommand:
		return f.sm.Apply(l.Index, l.Term, l.Data)
	case raft.LogConfiguration:
		f.sm.ApplyConfiguration(l.Index, l.Term, l.Data)
		f.configured(l.Index, l.Data)
		return nil
	default:
		panic(fmt.Sprintf("BUG: entry %d of type %v reached the state machine", l.Index, l.Type))
	}
}

// Snapshot implements raft.FSM: it pins the entry that Persist must find durable. It costs nothing, so
// Apply is not held up.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	s := &fsmSnapshot{fsm: f, index: f.sm.Applied(), term: f.lastTerm, generation: f.snapshots.generation()}
	if s.index != f.last {
		// Nothing was applied since the start but barriers: the state is that of the checkpoint.
		d, ok := f.sm.Durable()
		if !ok || d.Index != s.index {
			return nil, fmt.Errorf("BUG: the state machine is at %d, its checkpoint at %d, the last entry it was handed was %d", s.index, d.Index, f.last)
		}
		s.term = d.Term
	}
	return s, nil
}

// Restore implements raft.FSM: it makes the state what was received beside it. raft's main goroutine
// waits meanwhile, and next empties the log.
func (f *fsm) Restore(r io.ReadCloser) error {
	descriptor, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("cannot read which snapshot to restore: %w", err)
	}
	received := f.snapshots.install(string(descriptor))
	if received == nil {
		return fmt.Errorf("there is no %s any more", descriptor)
	}
	d := received.durable
	if d.Index <= f.sm.Applied() {
		received.discard()
		return fmt.Errorf("cannot restore the snapshot of entry %d: %d is applied", d.Index, f.sm.Applied())
	}
	f.snapshots.crash("install")
	failpoint.Hit(failpoint.SnapshotInstallBefore)
	if err := received.state.Install(); err != nil {
		received.transfer.end(false)
		return fmt.Errorf("cannot install the snapshot of entry %d: %w", d.Index, err)
	}
	if got, ok := f.sm.Durable(); !ok || got.Index != d.Index || got.Term != d.Term || f.sm.Applied() != d.Index {
		return f.fault.fail(fmt.Errorf("BUG: installed the snapshot of entry %d, but the checkpoint is at %d and %d is applied", d.Index, got.Index, f.sm.Applied()))
	}
	failpoint.Hit(failpoint.SnapshotInstallAfter)
	received.transfer.end(true)
	f.last, f.lastTerm = d.Index, d.Term
	f.snapshots.last.Store(d.Index)
	f.configured(d.ConfigurationIndex, d.Configuration)
	if err := f.logs.installed(d.Index, d.Term); err != nil {
		return err
	}
	f.metrics.SnapshotsInstalled.Add(1)
	f.snapshots.crash("installed")
	return nil
}

// fsmSnapshot is a promise that the state as of an entry is durable.
type fsmSnapshot struct {
	fsm         *fsm
	index, term uint64
	generation  uint64 // of snapshotStore when it was pinned
}

// Persist implements raft.FSMSnapshot. It writes nothing: the state is durable in the state machine.
// raft deletes log entries only after it returns nil.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	named, ok := sink.(*snapshotSink)
	if !ok {
		panic(fmt.Sprintf("BUG: snapshot sink is a %T", sink))
	}
	if err := s.fsm.snapshots.current(s.generation); err != nil {
		return err
	}
	if err := failpoint.Err(failpoint.SnapshotPersistBefore); err != nil {
		return err
	}
	named.persisted, named.generation, named.index = true, s.generation, s.index
	ctx, cancel := context.WithTimeout(s.fsm.ctx, s.fsm.snapshotTimeout)
	defer cancel()
	if err := s.fsm.sm.WaitDurable(ctx, s.index); err != nil {
		return fmt.Errorf("cannot make index %d durable: %w", s.index, err)
	}
	// raft names the snapshot after the last entry that passed its FSM goroutine, which may be a barrier
	// above s.index. A state machine that waited for that index would wait for the next write.
	d := named.durable
	d.Index, d.Term = s.index, s.term
	if err := s.fsm.sm.Witness(ctx, d); err != nil {
		return fmt.Errorf("cannot note the snapshot of index %d: %w", d.Index, err)
	}
	s.fsm.metrics.Snapshots.Add(1)
	failpoint.Hit(failpoint.SnapshotPersistAfter)
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() {}
