package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"kvstore/internal/record"
)

// point is a published state: what a reader may see.
type point struct {
	index uint64 // Raft index of the last entry.
	term  uint64 // Its term.
	ts    uint64 // base + index: Badger's ts.
	time  int64  // Log time T, Unix µs.

	// revision is that of the state; see marker.revision. 0 in a virgin store.
	revision uint64
}

// published is a point with what a checkpoint of it carries. Immutable once it is published.
type published struct {
	point
	marker             []byte
	configuration      []byte
	configurationIndex uint64
	bytes              int64 // store.bytesWritten when it was published.
}

// store keeps the versioned keys of one group in Badger and makes them durable by checkpoints.
//
// Invariants: Badger's discard ts <= fence, and <= durable TS <= tail.flushed; fence <= current().ts <= committedTS.
type store struct {
	// Immutable after openStore.
	o           Options
	log         *slog.Logger
	dir         string // groups/<Group>
	genDir      string // groups/<Group>/gen-<generation>
	generation  uint64
	db          *badger.DB
	badgerLog   *badgerLog
	txnBytesMax int64
	txnCountMax int
	from        Checkpoint // The checkpoint that the store was opened from.
	// onDrained, if there is one, is told of each key of a layer that goes to Badger, with its newest version there (nil:
	// deleted), before readers go there for it: while the layer still stands in the tail. Set before start.
	onDrained func(hash uint64, key []byte, ts uint64, value []byte)

	// Owned by the applier.
	write              write
	committedTS        uint64
	configuration      []byte
	configurationIndex uint64

	// Written by the applier, read by anyone.
	newest       atomic.Pointer[published]
	tail         atomic.Pointer[tail] // By the applier's entries, and by the checkpointer.
	sealing      atomic.Bool          // The checkpointer found an entry that was not published yet.
	bytesWritten atomic.Int64         // Keys and values stored since openStore.

	// Written by the checkpointer, read by anyone.
	fence atomic.Uint64 // Reads below it are not to be believed. Published before Badger learns of it.
	last  atomic.Pointer[Checkpoint]
	// checkpointedBytes is bytesWritten of the last checkpoint's point.
	checkpointedBytes atomic.Int64

	// Written and read by anyone; handed on to the store that replaces this one.
	metrics *storeMetrics

	// Owned by the checkpointer: its goroutine, and close once that has ended.
	sealedMems map[string]struct{} // Memtable logs that were synced after their last write.
	manifest   manifestMarker
	history    history
	discarded  uint64 // Badger's discard ts.

	gate gate          // Readers in flight.
	kick chan struct{} // Capacity 1: a checkpoint is wanted now.
	stop chan struct{} // Closed by close.
	done chan struct{} // Closed when the checkpointer has ended.

	// writing is held by whoever writes CHECKPOINT: the checkpointer, close, or an installation.
	writing sync.Mutex
	// Guarded by writing: CHECKPOINT names, or may name, another generation.
	replaced bool

	// Owned by whoever opened the store, before anyone else knows it: the checkpointer runs.
	begun bool

	closeOnce sync.Once
	closeErr  error

	failed atomic.Pointer[error] // The first failure; never reset.

	// Guarded by mu.
	mu       sync.Mutex
	advanced chan struct{} // Closed and replaced when a layer is sealed, at each new checkpoint, and at failure.
	pins     map[*pin]struct{}
	// snapshots are the pins of snapshots that are being sent.
	snapshots map[*snapshotPin]struct{}
	// witnessNext holds the witness fields that the next checkpoint has to carry; nil: those of the last.
	witnessNext *Checkpoint
}

// openStore opens or creates the store of a group. Nothing above the checkpoint is visible: whatever
// Badger holds above it is overwritten when the caller replays the log. ErrDamaged: see there.
func openStore(o Options) (*store, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := newStore(o, new(storeMetrics))
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("cannot open engine at %q: %w", s.dir, err)
	}
	s.start()
	return s, nil
}

// newStore makes a store that has no directory yet. REQUIRES: o has its defaults and is valid.
func newStore(o Options, metrics *storeMetrics) *store {
	s := &store{
		o:           o,
		log:         o.Logger,
		dir:         groupDir(o.Dir, o.Group),
		txnBytesMax: txnBytesMax(o.MemtableBytes),
		txnCountMax: txnCountMax(o.MemtableBytes),
		sealedMems:  make(map[string]struct{}),
		kick:        make(chan struct{}, 1),
		stop:        make(chan struct{}),
		done:        make(chan struct{}),
		advanced:    make(chan struct{}),
		pins:        make(map[*pin]struct{}),
		snapshots:   make(map[*snapshotPin]struct{}),
		metrics:     metrics,
	}
	s.badgerLog = &badgerLog{log: s.log, metrics: metrics}
	s.write.s = s
	s.gate.init()
	return s
}

// adopt takes cp, which the open database holds, as what is durable and visible.
func (s *store) adopt(cp Checkpoint, p point) {
	s.from = cp
	s.committedTS = cp.TS
	s.configuration, s.configurationIndex = cp.Configuration, cp.ConfigurationIndex
	s.newest.Store(&published{
		point:              p,
		marker:             cp.Marker,
		configuration:      cp.Configuration,
		configurationIndex: cp.ConfigurationIndex,
	})
	s.last.Store(&cp)
	s.fence.Store(cp.Fence)
	// Badger forgets its discard ts: until told, it drops nothing.
	s.discarded = cp.Fence
	s.db.SetDiscardTs(cp.Fence)
	s.history.init(s.o.HistoryWindow, s.o.HistoryBytes, cp)
}

// start begins the checkpoints. REQUIRES: CHECKPOINT names this store's generation.
func (s *store) start() {
	s.begun = true
	s.badgerLog.arm(s.fail)
	// checkpointer: owned by the store; ends when close or discard closes s.stop.
	go s.checkpointer()
}

// recovered returns the checkpoint that open started from; ok is false when the store is virgin: it
// holds nothing, and the log has to be applied from its first entry.
func (s *store) recovered() (cp Checkpoint, ok bool) {
	return s.from, s.from.Index > 0
}

// setConfiguration notes the cluster configuration that the entry at index brought. The next publish
// carries it into the checkpoints. It takes ownership of the slice.
//
// REQUIRES: caller is the applier.
func (s *store) setConfiguration(index uint64, configuration []byte) {
	s.configuration, s.configurationIndex = configuration, index
}

// publish makes p, whose writes are committed, what readers see. The marker is the one that was
// committed with it (copied here); a checkpoint of p carries it, and the next open compares the two.
//
// REQUIRES: caller is the applier; the cache is up to date with p.
func (s *store) publish(p point, marker []byte) {
	before := s.newest.Load()
	if p.ts != s.committedTS || p.index <= before.index || p.ts <= before.ts || p.time < before.time {
		panic(fmt.Sprintf("BUG: published %+v after %+v, committed is ts %d", p, before.point, s.committedTS))
	}
	next := &published{
		point:              p,
		marker:             append([]byte(nil), marker...),
		configuration:      s.configuration,
		configurationIndex: s.configurationIndex,
		bytes:              s.bytesWritten.Load(),
	}
	s.history.note(next)
	s.newest.Store(next)
	if s.sealing.Swap(false) {
		s.wantCheckpoint()
	}
}

// current returns the newest published point.
func (s *store) current() point { return s.newest.Load().point }

// valueBytesMax is the longest stored value: one that is alone in its transaction, and below Badger's
// threshold for the value log.
func (s *store) valueBytesMax() int {
	return int(min(s.txnBytesMax-keyOverheadBytesMax, valueThresholdMax-1))
}

// keyOverheadBytesMax bounds a stored key (family prefix, namespace, user key, chunk number) and the
// entry's overhead.
const keyOverheadBytesMax = 4 << 10

// fail marks the store as failed for good and tells Options.Fatal, once.
func (s *store) fail(err error) {
	if !s.failed.CompareAndSwap(nil, &err) {
		return
	}
	s.broadcast()
	s.o.Fatal(err)
}

// failure returns the first failure, or nil.
func (s *store) failure() error {
	if err := s.failed.Load(); err != nil {
		return fmt.Errorf("engine has failed: %w", *err)
	}
	return nil
}

// broadcast wakes everyone in waitDurable.
func (s *store) broadcast() {
	s.mu.Lock()
	close(s.advanced)
	s.advanced = make(chan struct{})
	s.mu.Unlock()
}

// close waits for readers, writes a last checkpoint (unless the store was never started) and closes Badger.
// The applier must have stopped. Later calls return what the first one did. After a failed flush it doesn't
// return: Badger goes on trying; that is why Options.Fatal should end the process.
func (s *store) close() error {
	s.closeOnce.Do(func() {
		s.gate.close()
		var err error
		if s.begun {
			close(s.stop)
			<-s.done
		}
		if s.begun && s.failed.Load() == nil {
			// A restart then replays nothing.
			err = s.checkpoint()
		}
		s.badgerLog.disarm()
		if e := s.db.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("cannot close Badger: %w", e))
		}
		// Badger's flush doesn't sync the directory; see DESIGN.md.
		err = errors.Join(err, record.SyncDir(s.genDir))
		if err == nil && s.begun && s.failed.Load() == nil {
			err = s.markClosed()
		}
		if err != nil {
			s.closeErr = fmt.Errorf("cannot close engine at %q: %w", s.dir, err)
		}
	})
	return s.closeErr
}

// discard ends the store without a last checkpoint and removes its generation: CHECKPOINT names another
// one, or has never named this. It waits for readers; those who wait for checkpoints get ErrClosed. The
// applier must have left. Calls of close and discard after the first return what that did.
func (s *store) discard() error {
	s.closeOnce.Do(func() {
		if s.begun {
			close(s.stop)
			<-s.done
		}
		s.gate.close()
		// Badger flushes its memtables first; that is not worth a way around it. A flush that fails is tried
		// for ever, so the alarm stays on.
		err := s.db.Close()
		s.badgerLog.disarm()
		if err = errors.Join(err, os.RemoveAll(s.genDir)); err != nil {
			s.closeErr = fmt.Errorf("cannot remove %q: %w", s.genDir, err)
		}
	})
	return s.closeErr
}

// gate counts readers, so that close can wait for the last.
type gate struct {
	state atomic.Int64 // Readers inside, plus gateClosed once it is closed.
	empty chan struct{}
}

const gateClosed = 1 << 62

func (g *gate) init() { g.empty = make(chan struct{}) }

// enter lets a reader in unless the gate is closed. Each true must be followed by one leave.
func (g *gate) enter() bool {
	if g.state.Add(1) > gateClosed {
		g.leave()
		return false
	}
	return true
}

func (g *gate) leave() {
	// The last of those inside tells close if it listens; if not, close looks for itself. Readers that are
	// turned away count for a moment too, so this may come more than once.
	if g.state.Add(-1) == gateClosed {
		select {
		case g.empty <- struct{}{}:
		default:
		}
	}
}

// close turns readers away from now on and waits for those inside.
func (g *gate) close() {
	for n := g.state.Add(gateClosed); n > gateClosed; n = g.state.Load() {
		select {
		case <-g.empty:
		case <-time.After(10 * time.Millisecond):
			// The last reader may have left before we listened.
		}
	}
}
