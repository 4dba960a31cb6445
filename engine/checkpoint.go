package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"

	"kvstore/internal/failpoint"
	"kvstore/internal/record"
)

// Checkpoint is what a node knows to be on disk: everything up to Index, and nothing is claimed above it.
type Checkpoint struct {
	// Generation names the directory (gen-<Generation>) that holds the state.
	Generation uint64
	// Index and Term are those of the last log entry that is durable here; 0 when nothing is.
	Index, Term uint64
	// TS is the store's timestamp of that entry: base + Index.
	TS uint64
	// Time is the log time T of that entry, Unix µs.
	Time int64
	// Fence bounds what may have been dropped: the state is complete at every ts >= Fence. Fence <= TS.
	Fence uint64
	// Configuration is the newest cluster configuration at or below Index, as the log brought it, and
	// ConfigurationIndex the index that brought it. Empty and 0 when none did.
	Configuration      []byte
	ConfigurationIndex uint64
	// Witness fields are those of the newest Raft snapshot that this state is known to reach.
	WitnessIndex, WitnessTerm uint64
	WitnessConfiguration      []byte
	WitnessConfigurationIndex uint64
	// Marker is the state machine's marker of Index. The store holds the same bytes at TS.
	Marker []byte
	// Installed says that this state came as a snapshot from another node and that no entry behind it is
	// durable yet.
	Installed bool
	// Manifest is the mark of the generation's MANIFEST, for the next open. Empty when nothing is known of it, as when
	// the state was just installed, or when an earlier build wrote the checkpoint.
	Manifest ManifestMark
}

// CheckpointLayout of the payload, integers little-endian; the record layer adds length and CRC:
//
//	0 u8 format | 1 u8 flags (1: installed, 2: mark) | 2 2×0 | 4 u64 generation | 12 u64 index | 20 u64 term | 28 u64 ts | 36 i64 time
//	44 u64 fence | 52 u64 configuration index | 60 u64 witness index | 68 u64 witness term
//	76 u64 witness configuration index | 84 u32+bytes configuration | u32+bytes witness configuration
//	u32+bytes marker | with a mark: 16 bytes head | u64 length | u32 checksum of the MANIFEST
//
// Format 2 has flags; it is written when there are any, so that a build that reads format 1 alone never
// meets flags that it can't know, and otherwise reads what this one writes.
const (
	checkpointFormat      = 1
	checkpointFormatFlags = 2
	checkpointFixedBytes  = 84

	checkpointInstalled = 1
	checkpointMarked    = 2
	checkpointFlags     = checkpointInstalled | checkpointMarked

	checkpointMarkBytes = manifestHeadBytes + 8 + 4

	// checkpointBytesMax bounds the file: configurations of a thousand members fit a hundred times.
	checkpointBytesMax = 16 << 20

	checkpointFile = "CHECKPOINT"
)

// errCheckpointFormat says that a checkpoint is whole but of a format that this build doesn't read. It is
// no damage: a newer build wrote it.
var errCheckpointFormat = errors.New("checkpoint has an unknown format")

// errCheckpointPayload says that the bytes of a checkpoint contradict each other.
var errCheckpointPayload = errors.New("checkpoint is malformed")

func appendCheckpoint(dst []byte, cp *Checkpoint) []byte {
	format, flags := byte(checkpointFormat), byte(0)
	if cp.Installed {
		flags |= checkpointInstalled
	}
	if cp.Manifest.Length > 0 {
		flags |= checkpointMarked
	}
	if flags != 0 {
		format = checkpointFormatFlags
	}
	dst = append(dst, format, flags, 0, 0)
	for _, v := range [...]uint64{
		cp.Generation, cp.Index, cp.Term, cp.TS, uint64(cp.Time), cp.Fence,
		cp.ConfigurationIndex, cp.WitnessIndex, cp.WitnessTerm, cp.WitnessConfigurationIndex,
	} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	for _, b := range [...][]byte{cp.Configuration, cp.WitnessConfiguration, cp.Marker} {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(b)))
		dst = append(dst, b...)
	}
	if m := &cp.Manifest; m.Length > 0 {
		dst = append(dst, m.Head[:]...)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Length))
		dst = binary.LittleEndian.AppendUint32(dst, m.Sum)
	}
	return dst
}

// decodeCheckpoint reads what appendCheckpoint wrote. The slices are copies. Errors: errCheckpointFormat,
// errCheckpointPayload.
func decodeCheckpoint(b []byte) (Checkpoint, error) {
	if len(b) > 0 && b[0] != checkpointFormat && b[0] != checkpointFormatFlags {
		return Checkpoint{}, fmt.Errorf("%w: %d, this build reads up to %d", errCheckpointFormat, b[0], checkpointFormatFlags)
	}
	if len(b) >= checkpointFixedBytes && b[0] == checkpointFormatFlags && b[1]&^checkpointFlags != 0 {
		return Checkpoint{}, fmt.Errorf("%w: flags %#x", errCheckpointFormat, b[1])
	}
	if len(b) < checkpointFixedBytes || b[2]|b[3] != 0 || (b[0] == checkpointFormatFlags) != (b[1] != 0) {
		return Checkpoint{}, fmt.Errorf("%w: %d bytes", errCheckpointPayload, len(b))
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	cp := Checkpoint{
		Generation: u64(4), Index: u64(12), Term: u64(20), TS: u64(28), Time: int64(u64(36)), Fence: u64(44),
		ConfigurationIndex: u64(52), WitnessIndex: u64(60), WitnessTerm: u64(68), WitnessConfigurationIndex: u64(76),
		Installed: b[1]&checkpointInstalled != 0,
	}
	rest := b[checkpointFixedBytes:]
	for _, field := range [...]*[]byte{&cp.Configuration, &cp.WitnessConfiguration, &cp.Marker} {
		if len(rest) < 4 {
			return Checkpoint{}, fmt.Errorf("%w: a length is missing", errCheckpointPayload)
		}
		n := uint64(binary.LittleEndian.Uint32(rest))
		if uint64(len(rest)-4) < n {
			return Checkpoint{}, fmt.Errorf("%w: a field of %d bytes where %d are left", errCheckpointPayload, n, len(rest)-4)
		}
		if n > 0 {
			*field = append([]byte(nil), rest[4:4+n]...)
		}
		rest = rest[4+n:]
	}
	if b[1]&checkpointMarked != 0 {
		if len(rest) < checkpointMarkBytes {
			return Checkpoint{}, fmt.Errorf("%w: the mark is missing", errCheckpointPayload)
		}
		copy(cp.Manifest.Head[:], rest)
		cp.Manifest.Length = int64(binary.LittleEndian.Uint64(rest[manifestHeadBytes:]))
		cp.Manifest.Sum = binary.LittleEndian.Uint32(rest[manifestHeadBytes+8:])
		rest = rest[checkpointMarkBytes:]
		if cp.Manifest.Length < manifestHeadBytes {
			return Checkpoint{}, fmt.Errorf("%w: its mark ends at %d", errCheckpointPayload, cp.Manifest.Length)
		}
	}
	switch {
	case len(rest) > 0:
		return Checkpoint{}, fmt.Errorf("%w: %d bytes behind its end", errCheckpointPayload, len(rest))
	case cp.Generation == 0, cp.Fence > cp.TS, cp.TS < cp.Index, cp.ConfigurationIndex > cp.Index, cp.WitnessIndex > cp.Index,
		(cp.Index > 0) != (len(cp.Marker) > 0):
		return Checkpoint{}, fmt.Errorf("%w: its numbers contradict each other: %+v", errCheckpointPayload, cp)
	}
	return cp, nil
}

// readCheckpoint reads the checkpoint of a group. found is false when there is none. Damage is
// ErrDamaged.
func readCheckpoint(dir string) (cp Checkpoint, found bool, err error) {
	path := filepath.Join(dir, checkpointFile)
	payload, err := record.ReadFile(path, checkpointBytesMax)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Checkpoint{}, false, nil
	case errors.Is(err, record.ErrTorn), errors.Is(err, record.ErrCorrupt), errors.Is(err, record.ErrTooLarge):
		return Checkpoint{}, false, damaged("the checkpoint cannot be read", err)
	case err != nil:
		return Checkpoint{}, false, err
	}
	cp, err = decodeCheckpoint(payload)
	switch {
	case errors.Is(err, errCheckpointFormat):
		return Checkpoint{}, false, fmt.Errorf("cannot read %q: %w", path, err)
	case err != nil:
		return Checkpoint{}, false, damaged("the checkpoint cannot be read", err)
	}
	return cp, true, nil
}

// durable returns the newest checkpoint; ok is false when nothing is durable yet.
func (s *store) durable() (cp Checkpoint, ok bool) {
	cp = *s.last.Load()
	return cp, cp.Index > 0
}

// checkpointNow makes everything that is published at the call durable and returns when it is. Errors:
// ctx's, ErrClosed, the failure of the store.
func (s *store) checkpointNow(ctx context.Context) error {
	return s.waitDurable(ctx, s.current().index)
}

// waitDurable returns when a checkpoint of index or above is on disk; it asks for one at once. An index
// that is not applied yet is waited for. Errors: ctx's, ErrClosed, the failure of the store.
func (s *store) waitDurable(ctx context.Context, index uint64) error {
	return s.waitCheckpoint(ctx, func(cp *Checkpoint) bool { return cp.Index >= index })
}

// witness records, durably, that this state reaches the Raft snapshot (index, term, configuration): after a
// restart Raft need not restore it. It waits for a checkpoint of index first. An older witness than the
// recorded one changes nothing. Errors: those of waitDurable.
func (s *store) witness(ctx context.Context, index, term uint64, configuration []byte, configurationIndex uint64) error {
	if err := s.waitDurable(ctx, index); err != nil {
		return err
	}
	s.mu.Lock()
	if s.witnessNext == nil || s.witnessNext.WitnessIndex < index {
		s.witnessNext = &Checkpoint{
			WitnessIndex: index, WitnessTerm: term,
			WitnessConfiguration:      append([]byte(nil), configuration...),
			WitnessConfigurationIndex: configurationIndex,
		}
	}
	s.mu.Unlock()
	return s.waitCheckpoint(ctx, func(cp *Checkpoint) bool { return cp.WitnessIndex >= index })
}

// waitCheckpoint waits until the last checkpoint satisfies reached, asking for new ones until then.
func (s *store) waitCheckpoint(ctx context.Context, reached func(cp *Checkpoint) bool) error {
	for {
		s.mu.Lock()
		advanced := s.advanced
		s.mu.Unlock()
		// Looked at after advanced was taken: what happens from here on closes it.
		if reached(s.last.Load()) {
			return nil
		}
		if err := s.failure(); err != nil {
			return err
		}
		s.wantCheckpoint()
		select {
		case <-advanced:
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for the checkpoint: %w", ctx.Err())
		case <-s.done:
			if reached(s.last.Load()) {
				return nil
			}
			if err := s.failure(); err != nil {
				return err // it ended because of that
			}
			return ErrClosed
		}
	}
}

// wantCheckpoint asks for a checkpoint ahead of its interval. It never blocks.
func (s *store) wantCheckpoint() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// checkpointer makes checkpoints until close. See openStore for its owner and end.
func (s *store) checkpointer() {
	defer close(s.done)
	ticker := time.NewTicker(s.o.CheckpointInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
		case <-ticker.C:
		}
		if s.failed.Load() != nil {
			return
		}
		if err := s.checkpoint(); err != nil {
			// After a failed fdatasync nobody knows which pages are on disk, and a second one that succeeds
			// proves nothing.
			s.fail(err)
			return
		}
	}
}

// checkpoint makes the newest published point durable, unless it is, and moves the fence.
//
// The order is the proof (DESIGN.md has it case by case):
//  1. Seal the layer that is being filled; the point is its end.
//  2. Move the fence to where the history begins, as seen from that point, and then the layer into Badger: what the fence
//     has passed needn't go there. Now all of the point's writes are in memtables, or in tables that Badger made durable itself.
//  3. List the memtable logs. One that is created after the listing holds nothing of it. One that is
//     gone was flushed: Badger removes a log only when its table and its MANIFEST entry are synced.
//  4. fdatasync each listed log that may have changed.
//  5. fsync the directory: names of new logs, and of new tables, which Badger's flush doesn't sync.
//  6. Have the sink make its effects durable, up to the point: a replay brings only those above CHECKPOINT again.
//  7. Read what is new in MANIFEST, and fsync it: the mark for the next open (checkManifest).
//  8. Replace CHECKPOINT.
//  9. Tell Badger the fence: what it drops from now on, the log needn't bring back.
//
// A store that was replaced has nothing to say any more.
//
// REQUIRES: caller is the checkpointer.
func (s *store) checkpoint() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.replaced {
		return nil
	}
	start := time.Now()
	s.mu.Lock()
	witness := s.witnessNext
	s.mu.Unlock()
	last := s.last.Load()
	p, sealed := s.seal()
	cp := *last
	if witness != nil && witness.WitnessIndex > last.WitnessIndex {
		cp.WitnessIndex, cp.WitnessTerm = witness.WitnessIndex, witness.WitnessTerm
		cp.WitnessConfiguration, cp.WitnessConfigurationIndex = witness.WitnessConfiguration, witness.WitnessConfigurationIndex
	} else if !sealed {
		s.advanceFence()
		return nil
	}
	if err := failpoint.Err(failpoint.CheckpointBefore); err != nil {
		return err
	}
	if sealed {
		s.broadcast() // another layer takes what is stored now
		cp.Installed = false
		cp.Index, cp.Term, cp.TS, cp.Time = p.index, p.term, p.ts, p.time
		cp.Configuration, cp.ConfigurationIndex, cp.Marker = p.configuration, p.configurationIndex, p.marker
		cp.Fence = s.history.advance(p)
		s.moveFence(cp.Fence)
		if err := s.drain(p); err != nil {
			return fmt.Errorf("cannot bring entries up to %d to Badger: %w", p.index, err)
		}
		if err := s.syncMemtables(); err != nil {
			return fmt.Errorf("cannot make entry %d durable: %w", p.index, err)
		}
		if s.o.Sink != nil {
			if err := s.o.Sink.Sync(pointOf(p.point)); err != nil {
				return fmt.Errorf("cannot make the effects up to entry %d durable: %w", p.index, err)
			}
		}
	}
	var err error
	if cp.Manifest, err = s.manifest.next(filepath.Join(s.genDir, badger.ManifestFilename), s.o.hooks.syncFile); err != nil {
		return fmt.Errorf("cannot mark what the checkpoint of entry %d relies on: %w", cp.Index, err)
	}
	if s.o.hooks.beforeCheckpointRename != nil {
		s.o.hooks.beforeCheckpointRename(cp)
	}
	if err := writeCheckpoint(s.dir, &cp); err != nil {
		return err
	}
	if err := failpoint.Err(failpoint.CheckpointAfter); err != nil {
		return err
	}
	s.last.Store(&cp)
	if sealed {
		s.checkpointedBytes.Store(p.bytes)
	}
	s.metrics.checkpoints.Add(1)
	s.metrics.checkpoint.Observe(time.Since(start))
	s.advanceFence()
	s.broadcast()
	return nil
}

// markClosed has CHECKPOINT carry the mark of what Badger's end has flushed. REQUIRES: Badger is closed without an error,
// and its directory is synced.
func (s *store) markClosed() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	last := s.last.Load()
	if s.replaced || last.Index == 0 {
		return nil
	}
	mark, err := s.manifest.next(filepath.Join(s.genDir, badger.ManifestFilename), s.o.hooks.syncFile)
	if err != nil || mark == last.Manifest {
		return err
	}
	cp := *last
	cp.Manifest = mark
	return writeCheckpoint(s.dir, &cp)
}

func writeCheckpoint(dir string, cp *Checkpoint) error {
	path := filepath.Join(dir, checkpointFile)
	before := func() error { return failpoint.Err(failpoint.CheckpointRename) }
	if err := record.WriteFileAtomicBefore(path, appendCheckpoint(nil, cp), 0o600, before); err != nil {
		return fmt.Errorf("cannot write checkpoint %d: %w", cp.Index, err)
	}
	return nil
}

// memSuffix ends the names of memtable logs; the part before is a number of at least five digits that
// only grows.
const memSuffix = ".mem"

// syncMemtables makes every write that was committed before the call durable.
//
// Only the log with the highest number is written to: Badger's one writer creates the next log and never
// returns to the one before. So a log beside which the listing shows a higher one gets no more writes,
// and once it is synced after that listing it never has to be synced again.
func (s *store) syncMemtables() error {
	files, err := os.ReadDir(s.genDir)
	if err != nil {
		return err
	}
	newest := ""
	present := make(map[string]struct{}, len(files))
	for _, f := range files {
		name := f.Name()
		if !strings.HasSuffix(name, memSuffix) {
			continue
		}
		present[name] = struct{}{}
		if memNameLess(newest, name) {
			newest = name
		}
	}
	for name := range present {
		if _, sealed := s.sealedMems[name]; sealed {
			continue
		}
		synced, err := s.syncMemtable(filepath.Join(s.genDir, name))
		if err != nil {
			return err
		}
		if synced && name != newest {
			s.sealedMems[name] = struct{}{}
		}
	}
	for name := range s.sealedMems {
		if _, ok := present[name]; !ok {
			delete(s.sealedMems, name)
		}
	}
	return record.SyncDir(s.genDir)
}

// memNameLess orders the names of memtable logs by their number: five digits with leading zeros, and more
// when the number has more.
func memNameLess(a, b string) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}

// syncMemtable syncs one memtable log. synced is false when it is gone, which means that Badger has its
// contents in a synced table. The file is opened anew each time: Badger's own descriptor is out of reach,
// and fdatasync is of the file, with the pages that were dirtied through Badger's mapping.
func (s *store) syncMemtable(path string) (synced bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	if s.o.hooks.beforeSync != nil {
		s.o.hooks.beforeSync(path)
	}
	start := time.Now()
	err = s.o.hooks.syncFile(f)
	s.metrics.fdatasync.Observe(time.Since(start))
	if err != nil {
		return false, errors.Join(fmt.Errorf("cannot fdatasync %q: %w", path, err), f.Close())
	}
	return true, f.Close()
}

// fdatasync is the system call, repeated while signals interrupt it.
func fdatasync(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return err
		}
	}
}
