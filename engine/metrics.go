package engine

import (
	"expvar"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"kvstore/internal/hist"
)

// storeMetrics counts; every field may be written and read by anyone. A store that replaces another goes on
// with its metrics.
type storeMetrics struct {
	commit         hist.Histogram // Whole commits of entries.
	checkpoint     hist.Histogram // Whole checkpoints, without the empty ones.
	fdatasync      hist.Histogram // Single memtable logs.
	drain          hist.Histogram // Layers that were moved into Badger.
	stalls         hist.Histogram // Waits of the applier for room in the tail.
	drained        atomic.Uint64  // Versions that went to Badger.
	collapsed      atomic.Uint64  // Versions that didn't, because newer ones had taken their place.
	checkpoints    atomic.Uint64
	fenceRetries   atomic.Uint64
	pinsDropped    atomic.Uint64
	badgerWarnings atomic.Uint64 // Lines that Badger logged.
	badgerErrors   atomic.Uint64
	compress       compressMetrics
	damages        atomic.Uint64             // Reads, checks and entries that met damage.
	damageTold     atomic.Pointer[time.Time] // When Options.OnDamage was called last.
}

// LevelStats describes one level of Badger's tree.
type LevelStats struct {
	// Level is its number; 0 is where flushed memtables arrive.
	Level int
	// Tables is the number of its tables, each of which is one file and one mapping.
	Tables int
	// Bytes is their size, StaleBytes the part that a compaction could drop, as Badger estimates it.
	Bytes, StaleBytes int64
	// Score is Badger's wish to compact it: above 1 it does. At level 0, 3 means that flushes wait.
	Score float64
}

// FileStats sums the files of one kind in the generation's directory.
type FileStats struct {
	// Files is their number, DiskBytes the space that they occupy (blocks, not length: logs are sparse).
	Files     int
	DiskBytes int64
}

// StoreStats is a momentary view of the store below the engine. Counters count from Open.
type StoreStats struct {
	// AppliedIndex, DurableIndex and Fence: see Checkpoint. CheckpointLagBytes is what was stored since the
	// durable index, CheckpointLagTime the log time since.
	AppliedIndex, DurableIndex uint64
	AppliedTS, FenceTS         uint64
	CheckpointLagBytes         int64
	CheckpointLagTime          time.Duration
	// BytesWritten counts keys and values that entries have stored.
	BytesWritten int64
	// TailBytes is what stands in memory and not in Badger yet. Drained counts versions of keys that went there,
	// Collapsed those that did not have to, because newer ones had taken their place.
	TailBytes          int64
	Drained, Collapsed uint64
	// Commits, Checkpoints and Fdatasyncs are durations; so are Drains, of a part of the tail into Badger, and Stalls, of
	// Apply's waits because the tail was full.
	Commits, Checkpoints, Fdatasyncs, Drains, Stalls *hist.Snapshot
	// FenceRetries counts reads that were repeated because the fence had passed them, PinsDropped pins that
	// lost their hold by age or bytes, Pins those that are held now.
	FenceRetries, PinsDropped uint64
	Pins                      int
	// BadgerWarnings and BadgerErrors count lines that Badger logged. Neither is ever normal.
	BadgerWarnings, BadgerErrors uint64
	// Damages counts reads, scrubs and entries that met damage. It is never normal.
	Damages uint64
	// Compressed says by codec what compression has saved; CompressPlain counts values for which it was asked for and did
	// not pay.
	Compressed    []CompressStats
	CompressPlain uint64
	// Levels describes Badger's tree, from level 0 on.
	Levels []LevelStats
	// MemtableLogs, Tables and ValueLogs are the files. ValueLogs stay at one that holds nothing.
	MemtableLogs, Tables, ValueLogs FileStats
}

// stats gathers StoreStats. It lists the directory and takes Badger's level locks: for a scrape, not for a
// request. ErrClosed.
func (s *store) stats() (StoreStats, error) {
	if !s.gate.enter() {
		return StoreStats{}, ErrClosed
	}
	defer s.gate.leave()
	p, cp := s.newest.Load(), s.last.Load()
	st := StoreStats{
		AppliedIndex:       p.index,
		DurableIndex:       cp.Index,
		AppliedTS:          p.ts,
		FenceTS:            s.fence.Load(),
		CheckpointLagBytes: p.bytes - s.checkpointedBytes.Load(),
		CheckpointLagTime:  time.Duration(p.time-cp.Time) * time.Microsecond,
		BytesWritten:       s.bytesWritten.Load(),
		TailBytes:          s.tail.Load().bytes(),
		Drained:            s.metrics.drained.Load(),
		Collapsed:          s.metrics.collapsed.Load(),
		Drains:             s.metrics.drain.Snapshot(),
		Stalls:             s.metrics.stalls.Snapshot(),
		Commits:            s.metrics.commit.Snapshot(),
		Checkpoints:        s.metrics.checkpoint.Snapshot(),
		Fdatasyncs:         s.metrics.fdatasync.Snapshot(),
		FenceRetries:       s.metrics.fenceRetries.Load(),
		PinsDropped:        s.metrics.pinsDropped.Load(),
		BadgerWarnings:     s.metrics.badgerWarnings.Load(),
		BadgerErrors:       s.metrics.badgerErrors.Load(),
		Damages:            s.metrics.damages.Load(),
		Compressed:         s.metrics.compress.stats(),
		CompressPlain:      s.metrics.compress.plain.Load(),
	}
	s.mu.Lock()
	st.Pins = len(s.pins)
	s.mu.Unlock()
	for _, l := range s.db.Levels() {
		st.Levels = append(st.Levels, LevelStats{Level: l.Level, Tables: l.NumTables, Bytes: l.Size, StaleBytes: l.StaleDatSize, Score: l.Score})
	}
	files, err := os.ReadDir(s.genDir)
	if err != nil {
		return StoreStats{}, err
	}
	for _, f := range files {
		var sum *FileStats
		switch filepath.Ext(f.Name()) {
		case memSuffix:
			sum = &st.MemtableLogs
		case ".sst":
			sum = &st.Tables
		case ".vlog":
			sum = &st.ValueLogs
		default:
			continue
		}
		info, err := f.Info()
		if err != nil {
			continue // Flushed or compacted away since the listing.
		}
		sum.Files++
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			sum.DiskBytes += sys.Blocks * 512
		}
	}
	return st, nil
}

// badgerMetricPrefix begins the names of Badger's own counters.
const badgerMetricPrefix = "badger_"

// BadgerCounters calls fn for each of Badger's own counters: a name such as badger_get_num_lsm and, for
// those kept per level or directory, a label. They belong to the process: stores in one process are summed.
func BadgerCounters(fn func(name, label string, value int64)) {
	expvar.Do(func(kv expvar.KeyValue) {
		if !strings.HasPrefix(kv.Key, badgerMetricPrefix) {
			return
		}
		switch v := kv.Value.(type) {
		case *expvar.Int:
			fn(kv.Key, "", v.Value())
		case *expvar.Map:
			v.Do(func(inner expvar.KeyValue) {
				if n, ok := inner.Value.(*expvar.Int); ok {
					fn(kv.Key, inner.Key, n.Value())
				}
			})
		}
	})
}
