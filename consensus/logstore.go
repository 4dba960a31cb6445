package consensus

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"kvstore/internal/failpoint"
	"kvstore/internal/record"
)

// seedKey is where the log's metadata keeps the seed of entryCodec.
var seedKey = []byte("kvstore.entry-seed")

// logStore is raft's LogStore: raft-wal made fail-stop, checked on every read, bounded in entry size
// and in how long a write may take, and never compacted beyond the durable checkpoint.
//
// raft's main goroutine calls StoreLogs; the snapshot goroutine calls DeleteRange; any goroutine reads. While overlap
// allows it, StoreLogs returns before the entries are on disk: they are in queue, whose writer writes them.
type logStore struct {
	// Immutable after openLogStore.
	wal      *wal.WAL
	dir      string
	log      *slog.Logger
	fault    *failStop
	metrics  *Metrics
	watch    *watchdog
	entryMax int
	bytesMax int64
	keep     int64  // bytes that stay in the log for followers
	keepMax  int64  // bytes that may stay for as long as a follower needs for a copy of the state
	seed     uint32 // names this log
	// durable returns the durable checkpoint of the state machine.
	durable func() (Durable, bool)
	crash   func(step string)
	// compacting tells whether raft may be compacting the log just now. Set before raft runs.
	compacting func() bool
	// restoreTime tells how long a follower needs for a copy of the state. Set before raft runs.
	restoreTime func() time.Duration
	// overlap tells whether StoreLogs need not wait for the disk. Set before raft runs.
	overlap func() bool
	// full receives a token when bytesMax bytes were appended since the last compaction.
	full chan struct{}
	tail tailReport

	// appended counts bytes since compacted() was called last.
	appended atomic.Int64
	// writing counts writes under way, to which a scrub gives way.
	writing atomic.Int32

	// deleteMu orders deletions: what is the head to one could else become all there is through another.
	deleteMu sync.Mutex

	queue *logQueue
	cache logCache
	pins  logPins
	sizes logSizes

	// base tells what lies before the log; nil until adopt. emptying is the base that the log gets when
	// raft empties it for a snapshot that has become the state; else nil. See logbase.go.
	base     atomic.Pointer[logBase]
	emptying atomic.Pointer[logBase]

	// closeMu keeps close apart from calls under way: raft-wal answers a read that overlaps its Close
	// with a nil dereference, and raft's gauge of the oldest entry reads from a goroutine of its own
	// that nobody waits for.
	closeMu sync.RWMutex
	closed  bool // guarded by closeMu
}

// logStoreOptions are the parts of Options that the log needs, and its neighbours.
type logStoreOptions struct {
	dir          string
	log          *slog.Logger
	fault        *failStop
	metrics      *Metrics
	segmentBytes int
	entryMax     int
	bytesMax     int64
	keep, cache  int64         // as Options.LogKeepBytes and LogCacheBytes
	keepMax      int64         // as Options.LogKeepBytesMax
	grace        time.Duration // as Options.SnapshotGrace
	stall        time.Duration
	vfs          types.VFS
	meta         func(types.MetaStore) types.MetaStore
	crash        func(step string)
	durable      func() (Durable, bool)
	queueMax     int64 // as logQueueBytes
}

// openLogStore opens or creates the log in o.dir, which must exist and be locked by the caller.
func openLogStore(o logStoreOptions) (*logStore, error) {
	meta := codecMeta{o.meta(&fileMeta{hasState: o.hasState})}
	opened := false
	defer func() {
		if !opened {
			_ = meta.Close() // the error that matters is on its way already
		}
	}()
	state, err := meta.Load(o.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log's metadata in %q: %w", o.dir, err)
	}
	codec, err := loadCodec(meta, len(state.Segments) > 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log in %q: %w", o.dir, err)
	}
	tail, err := recoverTail(o.dir, meta, codec, o.log)
	if err != nil {
		return nil, fmt.Errorf("cannot recover the log in %q: %w", o.dir, err)
	}
	w, err := wal.Open(o.dir,
		wal.WithCodec(codec),
		wal.WithMetaStore(meta),
		wal.WithSegmentFiler(codecFiler{segment.NewFiler(o.dir, o.vfs)}),
		wal.WithSegmentSize(o.segmentBytes),
		wal.WithLogger(newHCLog(o.log.With("part", "raft-wal"))),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log in %q: %w", o.dir, err)
	}
	opened = true
	// raft-wal syncs the directory with a file's first fsync, but not for a file that a crashed process
	// had created and this one only found.
	if err := record.SyncDir(o.dir); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("cannot sync directory %q: %w", o.dir, err)
	}
	s := &logStore{
		wal: w, dir: o.dir, log: o.log, fault: o.fault, metrics: o.metrics,
		watch:    newWatchdog(o.stall, "log", o.fault),
		entryMax: o.entryMax, bytesMax: o.bytesMax, keep: o.keep, keepMax: o.keepMax, seed: codec.seed, durable: o.durable, crash: o.crash,
		full: make(chan struct{}, 1), tail: tail, pins: logPins{grace: o.grace},
		restoreTime: func() time.Duration { return restoreMin },
		compacting:  func() bool { return false },
		overlap:     func() bool { return false },
		queue:       newLogQueue(o.queueMax, o.fault.closing),
		cache:       logCache{bytesMax: o.cache}, sizes: logSizes{step: max(o.keep/64, 64<<10)},
	}
	go s.queue.run(s.write) // owned by logStore; ends in close
	return s, nil
}

// hasState tells whether something beside the log says that it was used: the log's metadata is durable before any vote,
// and a log before any checkpoint.
func (o *logStoreOptions) hasState() bool {
	_, checkpoint := o.durable()
	_, err := os.Lstat(filepath.Join(o.dir, voteFileName))
	return checkpoint || err == nil
}

// loadCodec reads the log's seed, or draws it for a log that has no segment yet.
func loadCodec(meta types.MetaStore, exists bool) (*entryCodec, error) {
	raw, err := meta.GetStable(seedKey)
	if err != nil {
		return nil, err
	}
	if len(raw) == 4 {
		return &entryCodec{seed: binary.LittleEndian.Uint32(raw)}, nil
	}
	if exists || len(raw) != 0 {
		return nil, fmt.Errorf("its metadata holds no entry seed (%d bytes): it was not written by this program, or is damaged", len(raw))
	}
	seed := make([]byte, 4)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	if err := meta.SetStable(seedKey, seed); err != nil {
		return nil, err
	}
	return &entryCodec{seed: binary.LittleEndian.Uint32(seed)}, nil
}

// IsMonotonic implements raft.MonotonicLogStore. raft-wal takes no gaps, so raft must empty the log
// when it installs a snapshot.
func (s *logStore) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (s *logStore) FirstIndex() (index uint64, err error) {
	err = s.use(func() error { index, err = s.wal.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore, which asks at its start. It is the last entry on disk.
func (s *logStore) LastIndex() (index uint64, err error) {
	err = s.use(func() error { index, err = s.wal.LastIndex(); return err })
	return index, err
}

// use runs op on the open log.
func (s *logStore) use(op func() error) error {
	s.closeMu.RLock()
	defer s.closeMu.RUnlock()
	if s.closed {
		return errStoreClosed
	}
	return op()
}

// GetLog implements raft.LogStore: it is get for raft's goroutines, which panic if an entry cannot be read.
func (s *logStore) GetLog(index uint64, out *raft.Log) error {
	err := s.get(index, out)
	if errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	return s.fault.leave(err)
}

// get reads an entry. It returns raft.ErrLogNotFound itself (raft compares by identity) for an absent entry; any
// other failure stops the group, because raft would otherwise go on with a log that it cannot read.
func (s *logStore) get(index uint64, out *raft.Log) error {
	if err := s.fault.check(); err != nil {
		return err
	}
	if s.cache.get(index, out) {
		s.metrics.CacheHits.Add(1)
		return nil
	}
	if s.queue.get(index, out) { // before the disk: an entry leaves the queue when it is there
		s.metrics.CacheHits.Add(1)
		return nil
	}
	var l raft.Log
	err := s.use(func() error {
		// raft-wal still answers for deleted entries as long as their file is there.
		first, err := s.wal.FirstIndex()
		if err != nil {
			return err
		}
		if index < first {
			return raft.ErrLogNotFound
		}
		return s.wal.GetLog(index, &l)
	})
	if err == nil && l.Index != index {
		err = fmt.Errorf("%w: its place holds entry %d", errDamaged, l.Index)
	}
	switch {
	case err == nil:
		s.metrics.CacheMisses.Add(1)
		*out = l
		return nil
	case errors.Is(err, raft.ErrLogNotFound):
		if l, ok := s.base.Load().entry(index); ok {
			*out = l
			return nil
		}
		return raft.ErrLogNotFound
	default:
		return s.fault.fail(fmt.Errorf("cannot read log entry %d in %s: %w", index, s.segmentOf(index), err))
	}
}

// segmentOf names the file that holds index, for messages.
func (s *logStore) segmentOf(index uint64) string {
	name := s.dir
	files, err := os.ReadDir(s.dir) // sorted, and names begin with the first index
	if err != nil {
		return name
	}
	for _, f := range files {
		var base, id uint64
		if n, _ := fmt.Sscanf(f.Name(), "%020d-%016x.wal", &base, &id); n == 2 && base <= index {
			name = filepath.Join(s.dir, f.Name())
		}
	}
	return name
}

// StoreLog implements raft.LogStore.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: when it returns nil the entries are on disk, or in the queue if overlap allows
// it. A change of the members is always on disk: with it the majority may become this node alone, which commits what
// raft counts as stored. After a failure StoreLogs does not return before Close.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if err := s.fault.check(); err != nil {
		return err
	}
	bytes, overlap := 0, true
	for _, l := range logs {
		n := len(l.Data) + len(l.Extensions)
		if n > s.entryMax {
			return fmt.Errorf("cannot store log entry %d: %d bytes are more than %d", l.Index, n, s.entryMax)
		}
		bytes += n
		overlap = overlap && l.Type != raft.LogConfiguration
	}
	if len(logs) == 0 {
		return nil
	}
	if err := s.checkNext(logs[0].Index); err != nil {
		return s.fault.fail(err)
	}
	var err error
	if overlap && s.overlap() {
		err = s.queue.push(logs)
	} else if err = s.queue.drain(); err == nil {
		// Here and not by the writer, which has nothing to do now: that would be two more switches of goroutines.
		err = s.write(logs)
	}
	if err == nil {
		err = s.fault.check()
	}
	if err != nil {
		return err
	}
	s.begun()
	s.cache.add(logs)
	for _, l := range logs {
		s.sizes.add(l.Index, entryBytes(l))
	}
	if s.appended.Add(int64(bytes)) > s.bytesMax {
		select {
		case s.full <- struct{}{}:
		default:
		}
	}
	return nil
}

// write makes entries durable. One goroutine at a time calls it. After a failure it does not return before Close.
func (s *logStore) write(logs []*raft.Log) error {
	if err := s.fault.check(); err != nil {
		return err
	}
	start := time.Now()
	s.writing.Add(1)
	s.watch.start()
	err := failpoint.Err(failpoint.LogAppendBefore)
	if err == nil {
		err = s.use(func() error { return s.wal.StoreLogs(logs) })
	}
	if err == nil {
		err = failpoint.Err(failpoint.LogAppendAfter)
	}
	s.watch.stop()
	s.writing.Add(-1)
	if errors.Is(err, wal.ErrSealed) {
		err = fmt.Errorf("the next segment could not be created, most likely because the disk is full: %w", err)
	}
	if err != nil {
		return s.fault.fail(fmt.Errorf("cannot append %d entries at %d to the log in %q: %w", len(logs), logs[0].Index, s.dir, err))
	}
	// The watchdog may have called Fatal while this write hung: what it stored is not acknowledged.
	if err := s.fault.check(); err != nil {
		return err
	}
	bytes := 0
	for _, l := range logs {
		bytes += len(l.Data) + len(l.Extensions)
	}
	s.metrics.Append.Observe(time.Since(start))
	s.metrics.AppendedEntries.Add(uint64(len(logs)))
	s.metrics.AppendedBytes.Add(uint64(bytes))
	return nil
}

// compacted restarts the count of bytes towards the next compaction.
func (s *logStore) compacted() { s.appended.Store(0) }

// DeleteRange implements raft.LogStore. There are three kinds:
//   - At the head (compaction). It is cut back, whatever raft asks for, to the durable checkpoint
//     (entries beyond it exist nowhere else), to what a snapshot under way to a follower needs to be
//     continued from, and to what is kept for followers that were away or are taking a copy of the state.
//   - At the end: a tail that raft gives up for the leader's. Everything in a checkpoint was committed, so
//     a tail that reaches into it is refused: the state machine would hold what no other node has.
//   - All of it, after a snapshot has become the state.
func (s *logStore) DeleteRange(low, high uint64) error {
	if err := s.fault.check(); err != nil {
		return err
	}
	// Before the lock, which is not to be held for as long as a write takes.
	if err := s.queue.drain(); err != nil {
		return err
	}
	s.deleteMu.Lock()
	defer s.deleteMu.Unlock()
	first, last, err := s.bounds()
	if err != nil {
		return err
	}
	if last == 0 || high < first || low > last {
		return nil // also raft's attempt to delete what it only believes in, see logBase
	}
	emptied := s.emptying.Load()
	d, ok := s.durable()
	switch {
	case emptied != nil && low <= first && high >= last:
	case high >= last && ok && low <= d.Index && (low > first || !s.compacting()):
		// A compaction begins at the first entry, and can be overtaken by the end of a tail. A tail that begins
		// there, inside the checkpoint, is met where little is kept behind it.
		return s.fault.fail(fmt.Errorf("entries %d to %d would be replaced by the leader's, but the checkpoint at %d holds them as committed: the group's histories have parted", low, last, d.Index))
	case high >= last && (!ok || low > d.Index):
	default:
		if high = s.cutBack(min(high, last-1), d, ok); high < max(low, first) {
			s.log.Debug("kept the log", "from", low, "durable_index", d.Index, "first_index", first)
			return nil
		}
	}
	s.watch.start()
	if err = failpoint.Err(failpoint.LogTruncateBefore); err == nil {
		err = s.use(func() error { return s.wal.DeleteRange(low, high) })
	}
	if err == nil {
		err = failpoint.Err(failpoint.LogTruncateAfter)
	}
	s.watch.stop()
	if err != nil {
		return s.fault.fail(fmt.Errorf("cannot delete entries %d to %d from the log in %q: %w", low, high, s.dir, err))
	}
	s.deleted(low, high, first, last, emptied)
	return s.fault.check()
}

// cutBack returns up to where a compaction that was asked for up to high may go.
func (s *logStore) cutBack(high uint64, d Durable, ok bool) uint64 {
	if !ok {
		return 0
	}
	// The checkpoint's last entry stays: a follower that was given the checkpoint is asked about that entry next,
	// by its term, and would be given the checkpoint again and again if this log could not tell it. raft itself
	// remembers the term only if its name for the snapshot is the same index, which a barrier makes it not be.
	high = min(high, d.Index-1)
	keepFrom := func(index uint64) { high = min(high, max(index, 1)-1) }
	if pinned, ok := s.pins.lowest(); ok {
		keepFrom(pinned)
	}
	if s.keep > 0 {
		keepFrom(s.sizes.newest(s.keep))
	}
	if s.keepMax > 0 {
		// While a follower takes a copy of the state the log grows behind that. Should the leader change
		// meanwhile, no pin of the next one holds what follows the copy; twice the time, because it begins anew.
		keepFrom(max(s.sizes.since(2*s.restoreTime()), s.sizes.newest(s.keepMax)))
	}
	return high
}

// deleted notes that the entries from low to high are gone from a log that was first to last.
func (s *logStore) deleted(low, high, first, last uint64, emptied *logBase) {
	s.cache.drop(low, high)
	switch {
	case low > first: // the tail
		s.sizes.cut(first, low)
	case high < last: // the head
		s.sizes.cut(high+1, last+1)
	default:
		s.sizes.cut(last+1, last+1)
		b := logBase{next: low}
		if emptied != nil {
			b = *emptied
			if last > b.index {
				b.overrated = last
			}
			s.emptying.Store(nil)
		} else if old := s.base.Load(); old != nil {
			b.index, b.term = old.index, old.term
		}
		s.base.Store(&b)
		if emptied != nil {
			s.crash("emptied")
		}
	}
}

// bounds returns the first and last index, zeros for an empty log.
func (s *logStore) bounds() (first, last uint64, err error) {
	if first, err = s.FirstIndex(); err != nil {
		return 0, 0, err
	}
	last, err = s.LastIndex()
	return first, last, err
}

// close closes the log; it waits for calls under way. REQUIRES: fault.close was called, so that late
// callers do no harm.
func (s *logStore) close() error {
	s.queue.finish()
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	s.closed = true
	if err := s.wal.Close(); err != nil {
		return fmt.Errorf("cannot close the log in %q: %w", s.dir, err)
	}
	return nil
}

// codecMeta and codecFiler put the id of entryCodec into metadata and file headers. raft-wal v0.4.1
// always writes the id of its own codec there and then refuses to reopen a log with any other.
type codecMeta struct{ types.MetaStore }

// CommitState implements types.MetaStore.
func (m codecMeta) CommitState(s types.PersistentState) error {
	segments := make([]types.SegmentInfo, len(s.Segments))
	for i, info := range s.Segments {
		info.Codec = entryCodecID
		segments[i] = info
	}
	s.Segments = segments
	return m.MetaStore.CommitState(s)
}

type codecFiler struct{ types.SegmentFiler }

// Create implements types.SegmentFiler.
func (f codecFiler) Create(info types.SegmentInfo) (types.SegmentWriter, error) {
	info.Codec = entryCodecID
	return f.SegmentFiler.Create(info)
}

// RecoverTail implements types.SegmentFiler.
func (f codecFiler) RecoverTail(info types.SegmentInfo) (types.SegmentWriter, error) {
	info.Codec = entryCodecID
	return f.SegmentFiler.RecoverTail(info)
}

// Open implements types.SegmentFiler.
func (f codecFiler) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	info.Codec = entryCodecID
	return f.SegmentFiler.Open(info)
}
