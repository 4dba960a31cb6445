package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
)

// openTestLog opens a log outside a group: failures are returned, Fatal is not called.
func openTestLog(tb testing.TB, dir string, change ...func(*logStoreOptions)) (*logStore, error) {
	tb.Helper()
	o := logStoreOptions{
		dir: dir, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		fault: newFailStop(func(error) {}), metrics: &Metrics{},
		segmentBytes: 64 << 10, entryMax: 17 << 20, bytesMax: 1 << 40, stall: testWait,
		vfs: fs.New(), meta: func(m types.MetaStore) types.MetaStore { return m },
		durable: func() (Durable, bool) { return Durable{}, false }, crash: func(string) {},
	}
	for _, c := range change {
		c(&o)
	}
	// Tests name the checkpoint that is to come; one that is there before its log is refused.
	durable := o.durable
	o.durable = func() (Durable, bool) { return Durable{}, false }
	s, err := openLogStore(o)
	if err != nil {
		return nil, err
	}
	s.durable = durable
	return s, nil
}

func mustOpenLog(tb testing.TB, dir string, change ...func(*logStoreOptions)) *logStore {
	tb.Helper()
	s, err := openTestLog(tb, dir, change...)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s *logStore) mustClose(tb testing.TB) {
	tb.Helper()
	s.fault.close()
	if err := s.close(); err != nil {
		tb.Fatal(err)
	}
}

func testEntry(i uint64, size int) *raft.Log {
	return &raft.Log{Index: i, Term: 3, Type: raft.LogCommand, AppendedAt: time.Unix(0, int64(i)),
		Data: bytes.Repeat([]byte{byte(i)}, size), Extensions: []byte("ext")}
}

// appendEntries stores n entries one by one: one batch each.
func appendEntries(tb testing.TB, s *logStore, n, size int) {
	tb.Helper()
	_, last, err := s.bounds()
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		if err := s.StoreLog(testEntry(last+uint64(i)+1, size)); err != nil {
			tb.Fatal(err)
		}
	}
}

// checkEntries verifies that the log is exactly first..last and readable.
func checkEntries(tb testing.TB, s *logStore, first, last uint64, size int) {
	tb.Helper()
	f, l, err := s.bounds()
	if err != nil || f != first || l != last {
		tb.Fatalf("log is %d to %d (%v), want %d to %d", f, l, err, first, last)
	}
	for i := first; i <= last; i++ {
		var got raft.Log
		if err := s.GetLog(i, &got); err != nil {
			tb.Fatal(err)
		}
		want := testEntry(i, size)
		if got.Index != i || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
			!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
			tb.Fatalf("entry %d is not what was stored", i)
		}
	}
}

func tailFile(tb testing.TB, dir string) string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no segments in %s (%v)", dir, err)
	}
	return files[len(files)-1]
}

// usedBytes is the offset behind the last byte of the file that is not zero.
func usedBytes(tb testing.TB, path string) int {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return len(bytes.TrimRight(b, "\x00"))
}

// edit changes a file's bytes in place.
func edit(tb testing.TB, path string, change func(b []byte)) {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	change(b)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

func TestLogStore_ThroughCacheAndFromDisk_SameEntries(t *testing.T) {
	s := mustOpenLog(t, t.TempDir())
	defer s.mustClose(t)
	cache, err := raft.NewLogCache(8, s)
	if err != nil {
		t.Fatal(err)
	}
	if !cache.IsMonotonic() {
		t.Error("the cache hides that the log takes no gaps")
	}
	in := []*raft.Log{testEntry(1, 100), {Index: 2, Term: 3, Type: raft.LogNoop}}
	if err := cache.StoreLogs(in); err != nil {
		t.Fatal(err)
	}
	if in[0].Index != 1 || !bytes.Equal(in[0].Data, testEntry(1, 100).Data) || string(in[0].Extensions) != "ext" {
		t.Error("storing changed the entry that raft holds")
	}
	for i := uint64(1); i <= 2; i++ {
		var cached, stored raft.Log
		if err := cache.GetLog(i, &cached); err != nil {
			t.Fatal(err)
		}
		if err := s.GetLog(i, &stored); err != nil {
			t.Fatal(err)
		}
		if cached.Index != stored.Index || cached.Term != stored.Term || cached.Type != stored.Type || !bytes.Equal(cached.Data, stored.Data) ||
			!bytes.Equal(cached.Extensions, stored.Extensions) || !cached.AppendedAt.Equal(stored.AppendedAt) {
			t.Errorf("entry %d: cache %+v, disk %+v", i, cached, stored)
		}
	}
	if err := s.GetLog(3, &raft.Log{}); err != raft.ErrLogNotFound {
		t.Errorf("absent entry: %v; raft compares by identity", err)
	}
}

func TestLogStore_EntryAboveCap_RefusedAndLogGoesOn(t *testing.T) {
	s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) { o.entryMax = 1000 })
	defer s.mustClose(t)
	appendEntries(t, s, 1, 997)
	if err := s.StoreLog(testEntry(2, 998)); err == nil {
		t.Error("an entry above the cap was stored")
	}
	appendEntries(t, s, 1, 10)
}

func TestLogStore_BitFlip_DetectedOnReadAndNamed(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s := mustOpenLog(t, dir)
	appendEntries(t, s, 40, 4000) // three segments
	s.mustClose(t)
	sealed, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(sealed) < 3 {
		t.Fatalf("%d segments (%v)", len(sealed), err)
	}
	path := sealed[0] // base index 1
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := usedBytes(t, path)
	for range 60 {
		at, bit := segmentHeaderBytes+rnd.IntN(used-segmentHeaderBytes), byte(1)<<rnd.IntN(8)
		edit(t, path, func(b []byte) { b[at] ^= bit })
		s := mustOpenLog(t, dir)
		first, last, err := s.bounds()
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		for i := first; i <= last; i++ {
			var l raft.Log
			if err := s.GetLog(i, &l); err != nil {
				failed = err
				break
			} else if want := testEntry(i, 4000); !bytes.Equal(l.Data, want.Data) || l.Term != want.Term {
				t.Fatalf("flip at %d: entry %d is wrong and was not detected", at, i)
			}
		}
		if failed != nil && (!strings.Contains(failed.Error(), path) || !strings.Contains(failed.Error(), "log entry")) {
			t.Errorf("flip at %d: %v does not name the place", at, failed)
		}
		// Padding, commit frames and the length of the index frame are not read any more in a sealed
		// segment; everything else must have failed.
		if failed == nil && s.fault.err() != nil {
			t.Error("a failure was recorded but not returned")
		}
		s.mustClose(t)
		edit(t, path, func(b []byte) { copy(b, original) })
	}
	// The middle of an entry's data must always be noticed.
	edit(t, path, func(b []byte) { b[segmentHeaderBytes+frameHeaderBytes+entryHeaderBytes+2000] ^= 1 })
	s = mustOpenLog(t, dir)
	if err := s.GetLog(1, &raft.Log{}); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("flip in data: %v", err)
	}
	s.mustClose(t)
}

func TestRecovery_TornLastBatch_DroppedAndLogGoesOn(t *testing.T) {
	// Method: write k whole batches and one more of three entries, then make the last one torn at every
	// kind of place, in ways a disk can: a cut, a missing sector, junk. Recovery must end at batch k,
	// take appends, and survive a second recovery.
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	base := t.TempDir()
	s := mustOpenLog(t, base, func(o *logStoreOptions) { o.segmentBytes = 256 << 10 })
	appendEntries(t, s, 5, 700)
	start := usedBytes(t, tailFile(t, base))
	start = (start + 7) &^ 7 // the CRC in the commit frame may end in zeros
	if err := s.StoreLogs([]*raft.Log{testEntry(6, 3000), testEntry(7, 3000), testEntry(8, 3000)}); err != nil {
		t.Fatal(err)
	}
	end := usedBytes(t, tailFile(t, base))
	s.mustClose(t)
	for i := range 60 {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		at := start + rnd.IntN(end-start-1)
		edit(t, tailFile(t, dir), func(b []byte) {
			switch i % 3 {
			case 0: // everything from here on never reached the disk
				clear(b[at:end])
			case 1: // one sector did not
				sector := max(at&^511, start)
				clear(b[sector:min(at&^511+512, end)])
			case 2: // it was written wrongly
				b[at] ^= 0x55
			}
		})
		s := mustOpenLog(t, dir)
		checkEntries(t, s, 1, 5, 700)
		appendEntries(t, s, 2, 700)
		s.mustClose(t)
		s = mustOpenLog(t, dir)
		checkEntries(t, s, 1, 7, 700)
		s.mustClose(t)
	}
}

func TestRecovery_DamageBeforeAcknowledgedBatches_RefusedAndNamed(t *testing.T) {
	// raft-wal by itself drops every batch behind the damage without a word.
	base := t.TempDir()
	s := mustOpenLog(t, base, func(o *logStoreOptions) { o.segmentBytes = 256 << 10 })
	appendEntries(t, s, 1, 700)
	frames := usedBytes(t, tailFile(t, base))
	frames = (frames + 7) &^ 7
	appendEntries(t, s, 9, 700)
	s.mustClose(t)
	batch := frames - segmentHeaderBytes
	for name, at := range map[string]int{
		"file header":          9,
		"first frame's header": segmentHeaderBytes,
		"frame header":         frames,
		"frame length":         frames + 4,
		"data":                 frames + frameHeaderBytes + entryHeaderBytes + 10,
		"commit frame":         frames + batch - frameHeaderBytes,
		"commit checksum":      frames + batch - 3,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
				t.Fatal(err)
			}
			path := tailFile(t, dir)
			edit(t, path, func(b []byte) { b[at] ^= 0x10 })
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = openTestLog(t, dir)
			if !errors.Is(err, errLogDamaged) || !strings.Contains(err.Error(), path) {
				t.Fatalf("open = %v", err)
			}
			t.Log(err)
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Error("refusing changed the file")
			}
		})
	}
}

func TestRecovery_TornBeforeTheFirstEntryOfTheLog_RefusedAndNamed(t *testing.T) {
	// What was torn off reaches to entries that were cut off the front before: raft-wal opens such a log, says that it
	// goes from 7 to 3, and has neither.
	dir := t.TempDir()
	s := mustOpenLog(t, dir, func(o *logStoreOptions) { o.segmentBytes = 256 << 10 })
	appendEntries(t, s, 3, 700)
	at := usedBytes(t, tailFile(t, dir))
	at = (at + 7) &^ 7
	appendEntries(t, s, 7, 700)
	if err := s.wal.DeleteRange(1, 6); err != nil {
		t.Fatal(err)
	}
	s.mustClose(t)
	path := tailFile(t, dir)
	edit(t, path, func(b []byte) { clear(b[at:]) })
	_, err := openTestLog(t, dir)
	if !errors.Is(err, errLogDamaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "begins at 7") {
		t.Errorf("open = %v", err)
	}
}

func TestRecovery_FileCutShort_Refused(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenLog(t, dir)
	appendEntries(t, s, 5, 700)
	s.mustClose(t)
	if err := os.Truncate(tailFile(t, dir), 2000); err != nil {
		t.Fatal(err)
	}
	if _, err := openTestLog(t, dir); !errors.Is(err, errLogDamaged) || !strings.Contains(err.Error(), "was cut") {
		t.Errorf("open = %v", err)
	}
}

func TestRecovery_FileNeverAllocated_AllocatedAndUsedForGood(t *testing.T) {
	// A crash right after the creation of a segment leaves it empty. It must not look like one that was
	// cut short later on.
	dir := t.TempDir()
	s := mustOpenLog(t, dir)
	s.mustClose(t)
	if err := os.Truncate(tailFile(t, dir), 0); err != nil {
		t.Fatal(err)
	}
	s = mustOpenLog(t, dir)
	appendEntries(t, s, 5, 700)
	s.mustClose(t)
	s = mustOpenLog(t, dir)
	checkEntries(t, s, 1, 5, 700)
	s.mustClose(t)
}

// failingMeta fails CommitState on demand: to the log that is a crash at that instant.
type failingMeta struct {
	types.MetaStore
	fail *atomic.Bool
}

func (m failingMeta) CommitState(s types.PersistentState) error {
	if m.fail.Load() {
		return errors.New("injected crash")
	}
	return m.MetaStore.CommitState(s)
}

// crashInRotation fills a segment and crashes between the write that fills it and the metadata commit.
// It returns the number of entries stored.
func crashInRotation(tb testing.TB, dir string) uint64 {
	tb.Helper()
	var fail atomic.Bool
	s := mustOpenLog(tb, dir, func(o *logStoreOptions) {
		o.meta = func(m types.MetaStore) types.MetaStore { return failingMeta{m, &fail} }
	})
	appendEntries(tb, s, 1, 4000)
	fail.Store(true)
	for i := uint64(2); ; i++ {
		if err := s.StoreLog(testEntry(i, 4000)); err != nil {
			if !errors.Is(err, wal.ErrSealed) {
				tb.Fatal(err)
			}
			s.mustClose(tb)
			return i - 1
		}
	}
}

func TestRecovery_CrashBetweenSealAndRotation_RotationCompleted(t *testing.T) {
	dir := t.TempDir()
	n := crashInRotation(t, dir)
	s := mustOpenLog(t, dir)
	if !s.tail.finished {
		t.Error("there was no rotation to finish: the test does not test it")
	}
	checkEntries(t, s, 1, n, 4000)
	appendEntries(t, s, 40, 4000)
	s.mustClose(t)
	s = mustOpenLog(t, dir)
	checkEntries(t, s, 1, n+40, 4000)
	s.mustClose(t)
}

func TestRecovery_SealingWriteTorn_DroppedAndLogGoesOn(t *testing.T) {
	dir := t.TempDir()
	n := crashInRotation(t, dir)
	path := tailFile(t, dir)
	used := usedBytes(t, path)
	edit(t, path, func(b []byte) { clear(b[used-4 : used]) }) // the commit frame's checksum
	s := mustOpenLog(t, dir)
	checkEntries(t, s, 1, n-1, 4000)
	appendEntries(t, s, 40, 4000)
	s.mustClose(t)
	s = mustOpenLog(t, dir)
	checkEntries(t, s, 1, n+39, 4000)
	s.mustClose(t)
}

func TestRaftWAL_CrashBetweenSealAndRotation_StillRefusesAppends(t *testing.T) {
	// Why recoverTail exists. When this test fails, raft-wal has been repaired: simplify.
	dir := t.TempDir()
	n := crashInRotation(t, dir)
	meta := codecMeta{&metadb.BoltMetaDB{}}
	w, err := wal.Open(dir, wal.WithCodec(&entryCodec{}), wal.WithMetaStore(meta), wal.WithSegmentSize(64<<10),
		wal.WithLogger(newHCLog(slog.New(slog.NewTextHandler(io.Discard, nil)))))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // nothing was written
	if err := w.StoreLog(testEntry(n+1, 10)); !errors.Is(err, wal.ErrSealed) {
		t.Errorf("append after the crash: %v", err)
	}
}

func TestRecovery_ValueThatImitatesABatch_DoesNotStopATornWrite(t *testing.T) {
	// A client may store bytes that look like frames. Without the log's seed their checksum is wrong.
	dir := t.TempDir()
	s := mustOpenLog(t, dir)
	appendEntries(t, s, 2, 100)
	var forged bytes.Buffer
	if err := (&entryCodec{}).Encode(testEntry(9, 500), &forged); err != nil {
		t.Fatal(err)
	}
	frame := []byte{frameEntry, 0, 0, 0, byte(forged.Len()), byte(forged.Len() >> 8), 0, 0}
	frame = append(frame, forged.Bytes()...)
	for len(frame)%8 != 0 {
		frame = append(frame, 0)
	}
	sum := crc32.Checksum(frame, castagnoli)
	frame = append(frame, frameCommit, 0, 0, 0, byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24))
	var data []byte
	for shift := range 8 { // one copy is aligned as frames are
		data = append(data, make([]byte, shift)...)
		data = append(data, frame...)
	}
	if err := s.StoreLog(&raft.Log{Index: 3, Term: 3, Data: data}); err != nil {
		t.Fatal(err)
	}
	s.mustClose(t)
	path := tailFile(t, dir)
	used := usedBytes(t, path)
	edit(t, path, func(b []byte) { clear(b[used-4 : used]) })
	s = mustOpenLog(t, dir)
	checkEntries(t, s, 1, 2, 100)
	s.mustClose(t)
}

// failingFS fails writes or fsyncs of segments on demand.
type failingFS struct {
	types.VFS
	failWrite, failSync, failCreate atomic.Bool
	hang                            atomic.Pointer[chan struct{}]
}

func (v *failingFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if v.failCreate.Load() {
		// As a full disk does it: the file is there, its space is not.
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			return nil, err
		}
		return nil, syscall.ENOSPC
	}
	f, err := v.VFS.Create(dir, name, size)
	return &failingFile{f, v}, err
}

func (v *failingFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	return &failingFile{f, v}, err
}

type failingFile struct {
	types.WritableFile
	v *failingFS
}

func (f *failingFile) WriteAt(b []byte, off int64) (int, error) {
	if f.v.failWrite.Load() {
		return 0, errors.New("injected write error")
	}
	return f.WritableFile.WriteAt(b, off)
}

func (f *failingFile) Sync() error {
	if c := f.v.hang.Load(); c != nil {
		<-*c
	}
	if f.v.failSync.Load() {
		return errors.New("injected fsync error")
	}
	return f.WritableFile.Sync()
}

func TestFailStop_SecondFailure_FirstStandsAndFatalIsCalledOnce(t *testing.T) {
	calls := 0
	f := newFailStop(func(error) { calls++ })
	f.armed.Store(true)
	first := errors.New("first")
	f.report(first)
	f.report(errors.New("second"))
	f.close()
	if err := f.check(); err != first || calls != 1 {
		t.Errorf("check = %v, Fatal was called %d times", err, calls)
	}
}

func TestGroup_WriteOrFsyncFails_FatalBeforeAnyAnswerAndNothingAcknowledged(t *testing.T) {
	for name, arm := range map[string]func(*failingFS){
		"write": func(v *failingFS) { v.failWrite.Store(true) },
		"fsync": func(v *failingFS) { v.failSync.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := testOptions(dir)
			vfs := &failingFS{VFS: fs.New()}
			o.vfs = vfs
			fatal := make(chan error, 10)
			var answered atomic.Int32
			o.Fatal = func(err error) {
				if answered.Load() != 0 {
					t.Error("a proposal was answered before Fatal")
				}
				fatal <- err
			}
			m := openMachine(t, dir)
			g := openGroup(t, o, m)
			mustPropose(t, g, "good")
			arm(vfs)
			answers := make(chan error, 3)
			accepted := 0
			for range 3 {
				switch err := g.Propose([]byte("bad"), func(_ any, err error) { answered.Add(1); answers <- err }); {
				case err == nil:
					accepted++
				case !errors.Is(err, ErrHalted): // the failure may be there before the last proposal
					t.Fatal(err)
				}
			}
			select {
			case err := <-fatal:
				if !strings.Contains(err.Error(), "injected "+name+" error") {
					t.Errorf("Fatal got %v", err)
				}
			case <-time.After(testWait):
				t.Fatal("Fatal was not called")
			}
			vfs.failWrite.Store(false) // the disk "recovers": it must not help
			vfs.failSync.Store(false)
			closeGroup(t, g)
			for range accepted {
				if err := <-answers; !errors.Is(err, ErrUnknown) {
					t.Errorf("answer = %v", err)
				}
			}
			if c := m.commands(); len(c) != 1 || len(fatal) != 0 {
				t.Errorf("applied %q, %d more calls of Fatal", c, len(fatal))
			}
			// The disk is well again: whatever the log holds of the three is applied, once.
			o.vfs, o.Fatal = nil, nil
			m = openMachine(t, dir)
			g = openGroup(t, o, m)
			mustPropose(t, g, "again")
			if c := m.commands(); c[0] != "good" || c[len(c)-1] != "again" || len(c) > 5 {
				t.Errorf("after restart: %q", c)
			}
			closeGroup(t, g)
		})
	}
}

func TestGroup_NoSpaceForNextSegment_FatalAndWholeOnceThereIsSpace(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 64 << 10
	vfs := &failingFS{VFS: fs.New()}
	o.vfs = vfs
	fatal := make(chan error, 10)
	o.Fatal = func(err error) { fatal <- err }
	g := openGroup(t, o, openMachine(t, dir))
	vfs.failCreate.Store(true)
	acked := make(chan struct{}, 100)
	slots := make(chan struct{}, 1)
	var stop error
	for stop == nil {
		slots <- struct{}{}
		err := g.Propose(make([]byte, 4000), func(_ any, err error) {
			if err == nil {
				acked <- struct{}{}
			}
			<-slots
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case slots <- struct{}{}:
			<-slots
		case stop = <-fatal:
		}
	}
	if !strings.Contains(stop.Error(), "disk is full") {
		t.Errorf("Fatal got %v", stop)
	}
	closeGroup(t, g)
	o.vfs, o.Fatal = nil, nil
	m := openMachine(t, dir)
	g = openGroup(t, o, m)
	if n := len(m.commands()); n < len(acked) {
		t.Errorf("%d acknowledged, %d there", len(acked), n)
	}
	for range 30 {
		mustPropose(t, g, strings.Repeat("v", 4000))
	}
	closeGroup(t, g)
}

func TestGroup_WriteStalls_FatalAndNotAcknowledgedEvenIfItEndsLater(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	vfs := &failingFS{VFS: fs.New()}
	o.vfs = vfs
	o.WriteStallTimeout = testWait
	fatal := make(chan error, 10)
	o.Fatal = func(err error) { fatal <- err }
	g := openGroup(t, o, openMachine(t, dir))
	// Short only from here on: a busy disk may hold up the start for as long.
	g.logs.watch.mu.Lock()
	g.logs.watch.limit = 50 * time.Millisecond
	g.logs.watch.mu.Unlock()
	hang := make(chan struct{})
	vfs.hang.Store(&hang)
	answers := make(chan error, 1)
	if err := g.Propose([]byte("x"), func(_ any, err error) { answers <- err }); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-fatal:
		if !strings.Contains(err.Error(), "hangs") {
			t.Errorf("Fatal got %v", err)
		}
	case <-time.After(testWait):
		t.Fatal("Fatal was not called")
	}
	if err := g.Propose([]byte("y"), func(any, error) {}); !errors.Is(err, ErrHalted) || !errors.Is(err, ErrNotProposed) {
		t.Errorf("Propose on a halted group = %v", err)
	}
	vfs.hang.Store(nil)
	close(hang)
	select {
	case err := <-answers:
		t.Fatalf("answered with %v once the write ended", err)
	case <-time.After(100 * time.Millisecond): // would take a millisecond or two
	}
	closeGroup(t, g)
	if err := <-answers; !errors.Is(err, ErrUnknown) || len(fatal) != 0 {
		t.Errorf("answer = %v, %d more calls of Fatal", err, len(fatal))
	}
}

func TestOpen_DamagedEntryInReplay_RefusedAndNamed(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 64 << 10
	g := openGroup(t, o, openMachine(t, dir))
	for i := range 40 {
		mustPropose(t, g, fmt.Sprintf("%d-%s", i, strings.Repeat("v", 4000)))
	}
	closeGroup(t, g)
	files, err := filepath.Glob(filepath.Join(o.Dir, "*.wal"))
	if err != nil || len(files) < 3 {
		t.Fatal(len(files), err)
	}
	edit(t, files[1], func(b []byte) { b[3000] ^= 4 })
	_, err = Open(context.Background(), o, openMachine(t, dir))
	if !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), files[1]) {
		t.Errorf("Open = %v", err)
	}
	edit(t, files[1], func(b []byte) { b[3000] ^= 4 })
	closeGroup(t, openGroup(t, o, openMachine(t, dir)))
}

func FuzzEntryCodec_Decode(f *testing.F) {
	c := &entryCodec{seed: 7}
	for _, l := range []*raft.Log{testEntry(1, 10), {Index: 2, Term: 3, Type: raft.LogNoop}} {
		var b bytes.Buffer
		if err := c.Encode(l, &b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, in := range [][]byte{b, resum(c, b)} { // as it is, and past the checksum
			var l raft.Log
			if err := c.Decode(in, &l); err != nil {
				if !errors.Is(err, errDamaged) || l.Index != 0 {
					t.Fatalf("%v, entry %+v", err, l)
				}
				continue
			}
			var out bytes.Buffer
			if err := c.Encode(&l, &out); err != nil {
				t.Fatal(err)
			}
			var again raft.Log
			if err := c.Decode(out.Bytes(), &again); err != nil || again.Index != l.Index || again.Term != l.Term ||
				!bytes.Equal(again.Data, l.Data) || !bytes.Equal(again.Extensions, l.Extensions) {
				t.Fatalf("round trip: %v", err)
			}
		}
	})
}

// resum gives b a right checksum.
func resum(c *entryCodec, b []byte) []byte {
	if len(b) < entryOverhead {
		return b
	}
	out := bytes.Clone(b)
	sum := crc32.Update(c.seed, castagnoli, out[:len(out)-4])
	out[len(out)-4], out[len(out)-3], out[len(out)-2], out[len(out)-1] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	return out
}
