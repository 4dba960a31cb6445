package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"kvstore/internal/record"
)

// ErrDamaged says that the stored state can't be trusted or opened. Nothing has been removed or changed.
// The node decides what follows: quarantine and rebuild from the log when that reaches back to its first
// entry, fetch a snapshot from a peer, or stop and say what is missing.
var ErrDamaged = errors.New("stored state is damaged")

// damaged wraps ErrDamaged with what was found and the cause, which may be nil.
func damaged(what string, cause error) error {
	if cause == nil {
		return fmt.Errorf("%w: %s", ErrDamaged, what)
	}
	return fmt.Errorf("%w: %s: %w", ErrDamaged, what, cause)
}

const (
	generationPrefix = "gen-"
	quarantinePrefix = "quarantine-"

	// openingFile holds the number of openings of Badger that have failed since the last one that ended
	// well. It is not there while none has.
	openingFile = "OPENING"
	// traceFile takes the trace of a process that dies while it opens Badger.
	traceFile = "OPENING.trace"
	// openFailuresMax is how many may fail in a row. The first may be left-overs of a crash, which are
	// removed before each attempt; the second may be bad luck.
	openFailuresMax = 3
)

func generationDir(dir string, generation uint64) string {
	return filepath.Join(dir, generationPrefix+strconv.FormatUint(generation, 10))
}

// open finds the generation that the checkpoint names, opens Badger in it, checks that both speak of
// the same state, and adopts it. On error nothing stays open.
func (s *store) open() error {
	if err := makeDirs(s.dir); err != nil {
		return err
	}
	warnOfLimits(s.log, s.dir)
	cp, found, err := readCheckpoint(s.dir)
	if err != nil {
		return err
	}
	generations, err := listGenerations(s.dir)
	if err != nil {
		return err
	}
	if !found {
		// A store that was being created when the process died has an empty first generation at most.
		cp = Checkpoint{Generation: 1}
		if len(generations) > 1 || len(generations) == 1 && generations[0] != cp.Generation {
			return damaged(fmt.Sprintf("there is no %s beside generations %d", checkpointFile, generations), nil)
		}
	} else {
		if !slices.Contains(generations, cp.Generation) {
			return damaged(fmt.Sprintf("generation %d of the checkpoint is missing", cp.Generation), nil)
		}
		if err := checkManifest(generationDir(s.dir, cp.Generation), cp.Manifest); err != nil {
			return err
		}
		if err := s.removeStaleGenerations(generations, cp.Generation); err != nil {
			return err
		}
	}
	s.setGeneration(cp.Generation)
	checked, err := s.checkAfterDeath()
	if err != nil {
		return err
	}
	if !checked && !s.o.hooks.largeStore {
		if err := s.checkTables("damage was found before the opening", openCheckBytesMax); err != nil {
			return err
		}
	}
	if s.db, err = s.openBadger(); err != nil {
		return err
	}
	s.tail.Store(&tail{active: newLayer(), flushed: cp.TS})
	var p point
	if found {
		p, err = s.checkMarker(&cp)
	} else {
		err = s.create(&cp)
	}
	if err != nil {
		return errors.Join(err, s.db.Close())
	}
	s.adopt(cp, p)
	return nil
}

// openReceived opens the generation of cp, which a snapshot has filled and CHECKPOINT doesn't name yet. Its
// failures don't count: what they say about the snapshot says nothing about what the next start opens.
func (s *store) openReceived(cp Checkpoint) (err error) {
	s.setGeneration(cp.Generation)
	if s.db, err = badger.OpenManaged(s.badgerOptions()); err != nil {
		return fmt.Errorf("cannot open Badger in %q: %w", s.genDir, err)
	}
	s.tail.Store(&tail{active: newLayer(), flushed: cp.TS})
	p, err := s.checkMarker(&cp)
	if err != nil {
		return errors.Join(err, s.db.Close())
	}
	s.adopt(cp, p)
	return nil
}

func (s *store) setGeneration(generation uint64) {
	s.generation = generation
	s.genDir = generationDir(s.dir, generation)
}

// create writes the first checkpoint of a virgin store, so that from here on a missing checkpoint can only
// be damage.
func (s *store) create(cp *Checkpoint) error {
	if v := s.db.MaxVersion(); v != 0 {
		return damaged(fmt.Sprintf("there is no %s, but generation %d holds data up to ts %d", checkpointFile, cp.Generation, v), nil)
	}
	if err := syncTree(s.genDir); err != nil {
		return err
	}
	if err := record.SyncDir(s.dir); err != nil {
		return err
	}
	return writeCheckpoint(s.dir, cp)
}

// checkMarker compares the checkpoint with its marker, and that with what Badger holds at its ts. p is what
// the checkpoint makes visible.
func (s *store) checkMarker(cp *Checkpoint) (p point, err error) {
	if cp.Index == 0 {
		return point{}, nil
	}
	if p, err = s.o.hooks.markerPoint(cp.Marker); err != nil {
		return point{}, damaged("the marker in the checkpoint cannot be read", err)
	}
	if p.index != cp.Index || p.term != cp.Term || p.ts != cp.TS || p.time != cp.Time {
		return point{}, damaged(fmt.Sprintf("the checkpoint %+v and its marker %+v contradict each other", *cp, p), nil)
	}
	var stored []byte
	found, err := s.getAt(cp.TS, markerKey, func(value []byte) error {
		stored = append([]byte(nil), value...)
		return nil
	})
	switch {
	case err != nil:
		return point{}, damaged("the marker of the checkpoint cannot be read", err)
	case !found:
		return point{}, damaged(fmt.Sprintf("the checkpoint claims entry %d, but the store has no marker at ts %d", cp.Index, cp.TS), nil)
	case !bytes.Equal(stored, cp.Marker):
		return point{}, damaged(fmt.Sprintf("the checkpoint claims entry %d, but the store's marker at ts %d is another: %x, not %x", cp.Index, cp.TS, stored, cp.Marker), nil)
	}
	return p, nil
}

// badgerOptions are the options that the whole package relies on; DESIGN.md argues each.
func (s *store) badgerOptions() badger.Options {
	o := &s.o
	b := badger.DefaultOptions(s.genDir).
		WithSyncWrites(false). // The Raft log is synced; checkpoints make this durable.
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithLogger(s.badgerLog).
		WithMetricsEnabled(true).
		WithMemTableSize(o.MemtableBytes).
		WithNumMemtables(o.NumMemtables).
		WithValueThreshold(min(valueThresholdMax, badgerBatchBytes(o.MemtableBytes))).
		WithValueLogFileSize(64 << 20). // It stays empty; twice this is mapped, sparse.
		WithCompression(options.None).
		WithBlockCacheSize(0). // Tables are mapped: twice as fast as through Badger's cache.
		WithIndexCacheSize(0).
		WithNumCompactors(o.NumCompactors).
		WithCompactL0OnClose(false)
	b.LmaxCompaction = true // Else what is deleted in the last level keeps its space for ever.
	return b
}

// openBadger opens Badger with at most openFailuresMax failures in a row, counted across processes,
// because some damage makes Badger panic in a goroutine of its own, which ends the process. Such a death
// leaves its trace in a file of its own (armTrace), which the next process finds and counts. A process that
// is killed while opening leaves no trace and doesn't count: killing proves nothing about the data.
func (s *store) openBadger() (*badger.DB, error) {
	flag, trace := filepath.Join(s.dir, openingFile), filepath.Join(s.dir, traceFile)
	failures, err := readOpening(flag)
	if err != nil {
		return nil, err
	}
	fail := func() error {
		failures++
		return writeOpening(flag, failures)
	}
	var last error
	if last, err = diedOpening(trace); err != nil {
		return nil, err
	}
	if last != nil {
		s.log.Warn("the last process died while opening Badger", "dir", s.genDir, "cause", last)
		if err := fail(); err != nil {
			return nil, err
		}
	}
	for failures < openFailuresMax {
		if err := os.MkdirAll(s.genDir, 0o700); err != nil {
			return nil, err
		}
		if err := s.removeEmptyLogs(); err != nil {
			return nil, err
		}
		disarm, err := armTrace(trace)
		if err != nil {
			return nil, err
		}
		var db *badger.DB
		if last = nil; s.o.hooks.openBadger != nil {
			last = s.o.hooks.openBadger(s.genDir)
		}
		if last == nil {
			db, last = badger.OpenManaged(s.badgerOptions())
		}
		counts := last != nil && !environmental(last) // else not the data's fault
		if counts {
			// Before the trace is given up: another goroutine of this opening may still meet the damage, and end the process.
			if err := fail(); err != nil {
				return nil, errors.Join(err, disarm())
			}
		}
		if err := disarm(); err != nil {
			if db != nil {
				err = errors.Join(err, db.Close())
			}
			return nil, err
		}
		switch {
		case counts:
			s.log.Warn("cannot open Badger", "dir", s.genDir, "failures", failures, "error", last)
		case last != nil:
			return nil, fmt.Errorf("cannot open Badger in %q: %w", s.genDir, last)
		default:
			if err := removeOpening(flag); err != nil {
				return nil, errors.Join(err, db.Close())
			}
			return db, nil
		}
	}
	return nil, damaged(fmt.Sprintf("Badger could not be opened %d times in a row (the count is in %s; remove that file to try again)", failures, flag), last)
}

// armTrace has the runtime write the trace of a fatal panic or fault to path as well, until disarm, which removes
// the file. It is a setting of the process: groups open their stores one after the other, and of several that
// are open the last one gets the trace.
func armTrace(path string) (disarm func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make room for the trace of a death: %w", err)
	}
	// The runtime keeps a descriptor of its own.
	err = errors.Join(debug.SetCrashOutput(f, debug.CrashOptions{}), f.Close())
	if err != nil {
		return nil, fmt.Errorf("cannot have the trace of a death kept in %q: %w", path, err)
	}
	return func() error {
		err := os.Remove(path)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return errors.Join(debug.SetCrashOutput(nil, debug.CrashOptions{}), err)
	}, nil
}

// diedOpening tells how an earlier process died while it opened Badger, by the first line of its trace;
// died is nil when none did, or when one was killed, which leaves an empty trace or none. The trace is
// removed: it counts once.
func diedOpening(trace string) (died, err error) {
	f, err := os.Open(trace)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var head [256]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Close(), os.Remove(trace)); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	first, _, _ := bytes.Cut(head[:n], []byte("\n"))
	return fmt.Errorf("the process died: %s", first), nil
}

// environmental tells errors of the machine and its set-up from those of the data. Badger formats the
// causes of its errors into text, so text is all there is.
func environmental(err error) bool {
	text := err.Error()
	for _, part := range [...]string{
		"Cannot acquire directory lock",
		"Cannot write pid file",
		"too many open files",
		"cannot allocate memory",
		"no space left on device",
		"disk quota exceeded",
		"permission denied",
		"operation not permitted",
		"read-only file system",
	} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// removeEmptyLogs removes memtable and value logs of length zero. Badger leaves them behind when it stops
// between its truncation and its removal of a log, and then cannot open them ("Create a new file"). One
// that was ever synced by a checkpoint has a length, and Badger truncates a log only when its contents
// are in a synced table: so an empty log holds nothing that is durable nowhere else.
func (s *store) removeEmptyLogs() error {
	files, err := os.ReadDir(s.genDir)
	if err != nil {
		return err
	}
	for _, f := range files {
		ext := filepath.Ext(f.Name())
		if ext != memSuffix && ext != ".vlog" {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		if info.Size() > 0 {
			continue
		}
		s.log.Info("removing an empty log that Badger left behind", "file", f.Name())
		if err := os.Remove(filepath.Join(s.genDir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

func readOpening(path string) (failures int, err error) {
	payload, err := record.ReadFile(path, 8)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, damaged("the count of failed openings cannot be read", err)
	case len(payload) != 8:
		return 0, damaged(fmt.Sprintf("the count of failed openings has %d bytes", len(payload)), nil)
	}
	return int(min(binary.LittleEndian.Uint64(payload), openFailuresMax)), nil
}

func writeOpening(path string, failures int) error {
	return record.WriteFileAtomic(path, binary.LittleEndian.AppendUint64(nil, uint64(failures)), 0o600)
}

// removeOpening needs no sync: a count that comes back after a power cut is one too many, once.
func removeOpening(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// listGenerations returns the numbers of the generation directories, ascending.
func listGenerations(dir string) ([]uint64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var generations []uint64
	for _, f := range files {
		number, ok := strings.CutPrefix(f.Name(), generationPrefix)
		if !ok || !f.IsDir() {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
			return nil, fmt.Errorf("%q is not a generation: remove or rename it", filepath.Join(dir, f.Name()))
		}
		generations = append(generations, n)
	}
	slices.Sort(generations)
	return generations, nil
}

// removeStaleGenerations removes the generations that the checkpoint doesn't name: a new one whose
// installation never ended, or an old one whose removal didn't.
func (s *store) removeStaleGenerations(generations []uint64, keep uint64) error {
	for _, g := range generations {
		if g == keep {
			continue
		}
		s.log.Info("removing a generation that the checkpoint does not name", "generation", g, "kept", keep)
		if err := os.RemoveAll(generationDir(s.dir, g)); err != nil {
			return err
		}
	}
	return nil
}

// Quarantine moves the stored state of a group (checkpoint, generations, traces and counts of failures) into a
// directory of its own below the group's, whose path it returns. The next Open finds a virgin store. For
// a node that got ErrDamaged and can rebuild: it must know that the log reaches back to its first entry, or
// that a peer's snapshot is at hand. Nothing is deleted. A crash in the middle leaves a store that still
// reports ErrDamaged, and Quarantine may be called again. The store must not be open.
func Quarantine(dir string, group uint32) (moved string, err error) {
	if group == 0 {
		group = 1
	}
	source := groupDir(dir, group)
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("cannot quarantine %q: %w", source, err)
	}
	files, err := os.ReadDir(source)
	if err != nil {
		return fail(err)
	}
	for n := 1; ; n++ {
		moved = filepath.Join(source, quarantinePrefix+strconv.Itoa(n))
		err := os.Mkdir(moved, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) {
			return fail(err)
		}
	}
	// In order of names, the checkpoint goes first and the generations last: a generation with data and
	// without a checkpoint is never taken for a virgin store.
	slices.SortFunc(files, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, f := range files {
		name := f.Name()
		if name != checkpointFile && name != openingFile && name != traceFile && name != deathFile && !strings.HasPrefix(name, generationPrefix) {
			continue
		}
		if err := os.Rename(filepath.Join(source, name), filepath.Join(moved, name)); err != nil {
			return fail(err)
		}
	}
	if err := errors.Join(record.SyncDir(moved), record.SyncDir(source)); err != nil {
		return fail(err)
	}
	return moved, nil
}

// makeDirs creates dir and its missing parents, and makes their names durable.
func makeDirs(dir string) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(dir); err == nil || parent == dir {
		return err
	}
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return record.SyncDir(parent)
}

// syncTree syncs the files of a directory and the directory.
func syncTree(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue
		}
		file, err := os.Open(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return err
		}
	}
	return record.SyncDir(dir)
}
