package engine

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/internal/record"
)

var goldenCheckpoint = Checkpoint{
	Generation: 1, Index: 2, Term: 3, TS: 0x0405, Time: -6, Fence: 0x0305,
	Configuration: []byte("cfg"), ConfigurationIndex: 1,
	WitnessIndex: 2, WitnessTerm: 3, WitnessConfiguration: []byte("wit"), WitnessConfigurationIndex: 1,
	Marker: []byte("marker"),
}

// If this test breaks, the format has changed, and nodes can't read the checkpoints that they have.
const goldenCheckpointHex = "01000000" + "0100000000000000" + "0200000000000000" + "0300000000000000" +
	"0504000000000000" + "faffffffffffffff" + "0503000000000000" + "0100000000000000" +
	"0200000000000000" + "0300000000000000" + "0100000000000000" +
	"03000000636667" + "03000000776974" + "060000006d61726b6572"

func TestCheckpoint_Golden_BytesStay(t *testing.T) {
	if got := hex.EncodeToString(appendCheckpoint(nil, &goldenCheckpoint)); got != goldenCheckpointHex {
		t.Fatalf("encoded\n%s, want\n%s", got, goldenCheckpointHex)
	}
	b, err := hex.DecodeString(goldenCheckpointHex)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeCheckpoint(b)
	if err != nil || !reflect.DeepEqual(got, goldenCheckpoint) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	for n := range b {
		if _, err := decodeCheckpoint(b[:n]); !errors.Is(err, errCheckpointPayload) {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	b[0] = checkpointFormatFlags + 1
	if _, err := decodeCheckpoint(b); !errors.Is(err, errCheckpointFormat) {
		t.Fatalf("next format: %v", err)
	}
	// The only difference of an installed one.
	installed := goldenCheckpoint
	installed.Installed = true
	b[0], b[1] = checkpointFormatFlags, checkpointInstalled
	if got := appendCheckpoint(nil, &installed); !bytes.Equal(got, b) {
		t.Fatalf("installed: encoded\n%x, want\n%x", got, b)
	}
	if got, err := decodeCheckpoint(b); err != nil || !reflect.DeepEqual(got, installed) {
		t.Fatalf("installed: decoded %+v, %v", got, err)
	}
	b[1] |= checkpointFlags + 1
	if _, err := decodeCheckpoint(b); !errors.Is(err, errCheckpointFormat) {
		t.Fatalf("a flag of the future: %v", err)
	}
}

func FuzzDecodeCheckpoint(f *testing.F) {
	f.Add(appendCheckpoint(nil, &goldenCheckpoint))
	f.Add(appendCheckpoint(nil, &Checkpoint{Generation: 1}))
	f.Add(appendCheckpoint(nil, &Checkpoint{Generation: 2, Index: 1, TS: 1, Marker: []byte("m"), Installed: true}))
	f.Add(appendCheckpoint(nil, &Checkpoint{Generation: 2, Index: 1, TS: 1, Marker: []byte("m"), Manifest: ManifestMark{Length: 16, Sum: 3}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		cp, err := decodeCheckpoint(b)
		if err != nil {
			if !errors.Is(err, errCheckpointFormat) && !errors.Is(err, errCheckpointPayload) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if again := appendCheckpoint(nil, &cp); string(again) != string(b) {
			t.Fatalf("%x decoded to %+v, which encodes to %x", b, cp, again)
		}
	})
}

func TestMemNameLess_NumbersOfAnyLength_NumericOrder(t *testing.T) {
	for n := range 3 {
		for _, base := range []int{1, 9, 99998, 99999, 100000, 999999} {
			a, b := fmt.Sprintf("%05d.mem", base), fmt.Sprintf("%05d.mem", base+n)
			if got, want := memNameLess(a, b), n > 0; got != want {
				t.Errorf("%s < %s is %v", a, b, got)
			}
		}
	}
}

// The order of a checkpoint's steps is its proof: every log that existed at the capture is synced before the
// record is written, and a log is skipped only when it was synced after its last write.
func TestCheckpoint_Always_SyncsEveryLogThatChangedBeforeTheRecord(t *testing.T) {
	const seed = 2
	o := storeOptions(t, t.TempDir())
	o.NumMemtables = 8
	var mu sync.Mutex
	var synced []string
	var s *store
	o.hooks.beforeSync = func(path string) {
		mu.Lock()
		synced = append(synced, filepath.Base(path))
		mu.Unlock()
	}
	logs := func() []string {
		files, err := filepath.Glob(filepath.Join(s.genDir, "*"+memSuffix))
		if err != nil {
			t.Fatal(err)
		}
		for i := range files {
			files[i] = filepath.Base(files[i])
		}
		return files
	}
	sealedBefore := map[string]bool{}
	o.hooks.beforeCheckpointRename = func(cp Checkpoint) {
		mu.Lock()
		defer mu.Unlock()
		present := logs()
		for _, name := range present {
			if !sealedBefore[name] && !slices.Contains(synced, name) {
				t.Errorf("checkpoint %d: %s was not synced", cp.Index, name)
			}
		}
		for _, name := range synced {
			if sealedBefore[name] {
				t.Errorf("checkpoint %d: %s was synced again", cp.Index, name)
			}
			if len(present) > 0 && name != present[len(present)-1] {
				sealedBefore[name] = true
			}
		}
		if old, _, err := readCheckpoint(s.dir); err != nil || old.Index >= cp.Index {
			t.Errorf("checkpoint %d is on disk already before its turn (%d, %v)", cp.Index, old.Index, err)
		}
	}
	s = mustOpenStore(t, o)
	rounds := uint64(40)
	for round := range rounds {
		// 100 entries are a third of a memtable.
		mustApply(t, s, seed, round*100+1, round*100+100)
		mu.Lock()
		synced = nil
		mu.Unlock()
		if err := s.checkpointNow(context.Background()); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if len(synced) == 0 {
			t.Errorf("round %d: nothing was synced", round)
		}
		mu.Unlock()
		cp, ok := s.durable()
		if onDisk, found, err := readCheckpoint(s.dir); !ok || !found || err != nil || !reflect.DeepEqual(onDisk, cp) || cp.Index != round*100+100 {
			t.Fatalf("round %d: durable %+v, on disk %+v, %v", round, cp, onDisk, err)
		}
	}
	if len(sealedBefore) < 5 {
		t.Fatalf("only %d logs were left behind: the test saw too few rotations", len(sealedBefore))
	}
	before := s.metrics.checkpoints.Load()
	if err := s.checkpointNow(context.Background()); err != nil || s.metrics.checkpoints.Load() != before {
		t.Fatalf("an idle store made a checkpoint (%v)", err)
	}
}

func TestCheckpoint_IntervalBytesOrDemand_ComesByItself(t *testing.T) {
	for name, set := range map[string]func(o *Options){
		"interval": func(o *Options) { o.CheckpointInterval = time.Millisecond },
		"bytes":    func(o *Options) { o.CheckpointBytes = 1000 },
	} {
		t.Run(name, func(t *testing.T) {
			o := storeOptions(t, t.TempDir())
			set(&o)
			s := mustOpenStore(t, o)
			mustApply(t, s, 1, 1, 20)
			for timeout := time.After(30 * time.Second); ; {
				s.mu.Lock()
				advanced := s.advanced
				s.mu.Unlock()
				if cp, ok := s.durable(); ok && cp.Index > 0 {
					return
				}
				select {
				case <-advanced:
				case <-timeout:
					t.Fatal("no checkpoint")
				}
			}
		})
	}
}

func TestWaitDurable_AheadOfApplyCancelledAndClosed_WaitsThenTells(t *testing.T) {
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	mustApply(t, s, 1, 1, 1)
	ahead := make(chan error, 1)
	// Waiter: owned by this test; ends with entry 3's checkpoint.
	go func() { ahead <- s.waitDurable(context.Background(), 3) }()
	ctx, cancel := context.WithCancel(context.Background())
	cancelled := make(chan error, 1)
	// Waiter: owned by this test; ends by cancel.
	go func() { cancelled <- s.waitDurable(ctx, 4) }()
	if err := s.waitDurable(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled wait: %v", err)
	}
	mustApply(t, s, 1, 2, 3)
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-ahead; err != nil {
		t.Fatal(err)
	}
	// Waiter: owned by this test; ends by close.
	go func() { ahead <- s.waitDurable(context.Background(), 100) }()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ahead; !errors.Is(err, ErrClosed) {
		t.Fatalf("wait over close: %v", err)
	}
	if err := s.waitDurable(context.Background(), 3); err != nil {
		t.Fatalf("wait for what is durable, after close: %v", err)
	}
}

func TestCheckpoint_FdatasyncFails_NothingIsClaimedAndTheStoreStops(t *testing.T) {
	errDisk := errors.New("disk is gone")
	dir := t.TempDir()
	o := storeOptions(t, dir)
	var mu sync.Mutex
	broken := false
	var fatal []error
	o.Fatal = func(err error) { mu.Lock(); fatal = append(fatal, err); mu.Unlock() }
	o.hooks.syncFile = func(f *os.File) error {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			// Once: a second try would succeed, as on a real disk, and prove nothing.
			broken = false
			return errDisk
		}
		return fdatasync(f)
	}
	s := mustOpenStore(t, o)
	mustApply(t, s, 1, 1, 10)
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, 1, 11, 20)
	mu.Lock()
	broken = true
	mu.Unlock()
	for range 2 {
		if err := s.checkpointNow(context.Background()); !errors.Is(err, errDisk) {
			t.Fatalf("checkpoint on a broken disk: %v", err)
		}
	}
	if err := applyEntry(s, 21, testEntry(1, 21)); !errors.Is(err, errDisk) {
		t.Fatalf("commit after the failure: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(fatal) != 1 || !errors.Is(fatal[0], errDisk) {
		t.Fatalf("Fatal was called with %v", fatal)
	}
	cp, _, err := readCheckpoint(groupDir(dir, 1))
	if err != nil || cp.Index != 10 {
		t.Fatalf("on disk %d, %v; want 10", cp.Index, err)
	}
}

func TestBadgerLog_FlushFails_StoreStopsAndOtherErrorsOnlyCount(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	var fatal []error
	o.Fatal = func(err error) { fatal = append(fatal, err) }
	s := mustOpenStore(t, o)
	s.badgerLog.Errorf("while deleting file: %s, err: %v", "x", "y")
	s.badgerLog.Warningf("While running doCompact: %v", "z")
	if len(fatal) != 0 {
		t.Fatalf("stopped by %v", fatal)
	}
	// The format string of v4.9.6, db.go.
	s.badgerLog.Errorf("error flushing memtable to disk: %v, retrying", errors.New("input/output error"))
	if len(fatal) != 1 || !strings.Contains(fatal[0].Error(), "input/output error") {
		t.Fatalf("Fatal was called with %v", fatal)
	}
	st, err := s.stats()
	if err != nil || st.BadgerErrors != 2 || st.BadgerWarnings != 1 {
		t.Fatalf("%d errors, %d warnings, %v; want 2, 1", st.BadgerErrors, st.BadgerWarnings, err)
	}
}

func TestWitness_NewerOlderAndRestart_NewestIsKept(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenStore(t, storeOptions(t, dir))
	mustApply(t, s, 1, 1, 20)
	ctx := context.Background()
	if err := s.witness(ctx, 10, 1, []byte("ten"), 3); err != nil {
		t.Fatal(err)
	}
	if err := s.witness(ctx, 5, 1, []byte("five"), 2); err != nil {
		t.Fatal(err)
	}
	check := func(cp Checkpoint, index uint64) {
		t.Helper()
		if cp.Index != index || cp.WitnessIndex != 10 || cp.WitnessTerm != 1 || string(cp.WitnessConfiguration) != "ten" || cp.WitnessConfigurationIndex != 3 {
			t.Fatalf("checkpoint %+v", cp)
		}
	}
	cp, _ := s.durable()
	check(cp, 20)
	mustApply(t, s, 1, 21, 21)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpenStore(t, storeOptions(t, dir))
	cp, _ = s.recovered()
	check(cp, 21)
}

func TestStats_AfterWork_NumbersAgree(t *testing.T) {
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	mustApply(t, s, 1, 1, 1000)
	st, err := s.stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.AppliedIndex != 1000 || st.DurableIndex != 0 || st.CheckpointLagBytes != st.BytesWritten || st.BytesWritten == 0 ||
		st.CheckpointLagTime != time.Second || st.Commits.Count() != 1000 || st.TailBytes == 0 || st.Drained != 0 {
		t.Fatalf("before the checkpoint: %+v", st)
	}
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st, err = s.stats(); err != nil || st.DurableIndex != 1000 || st.CheckpointLagBytes != 0 || st.Checkpoints.Count() != 1 || st.Fdatasyncs.Count() == 0 || st.TailBytes != 0 || st.Drained < 1000 || st.Collapsed != 0 {
		t.Fatalf("after the checkpoint: %+v, %v", st, err)
	}
	if st.MemtableLogs.Files == 0 || st.MemtableLogs.DiskBytes == 0 || st.Tables.Files == 0 || st.ValueLogs.Files != 1 || len(st.Levels) != 7 {
		t.Fatalf("files: %+v %+v %+v, %d levels", st.MemtableLogs, st.Tables, st.ValueLogs, len(st.Levels))
	}
	seen := map[string]int64{}
	BadgerCounters(func(name, _ string, value int64) { seen[name] += value })
	if seen["badger_put_num_user"] < 1000 {
		t.Fatalf("Badger's counters: %v", seen)
	}
	// The value log must stay empty: its collection brings deleted keys back, so it never runs.
	if seen["badger_write_bytes_vlog"] != 0 {
		t.Fatalf("%d bytes went to the value log", seen["badger_write_bytes_vlog"])
	}
}

func TestReadCheckpoint_DamagedOrNewer_IsToldApart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, checkpointFile)
	if _, found, err := readCheckpoint(dir); found || err != nil {
		t.Fatalf("absent: %v, %v", found, err)
	}
	whole := record.Append(nil, appendCheckpoint(nil, &goldenCheckpoint))
	newer := appendCheckpoint(nil, &goldenCheckpoint)
	newer[0] = checkpointFormatFlags + 1
	flipped := slices.Clone(whole)
	flipped[40] ^= 1
	for name, c := range map[string]struct {
		content []byte
		damaged bool
	}{
		"empty":    {nil, true},
		"torn":     {whole[:50], true},
		"flipped":  {flipped, true},
		"nonsense": {record.Append(nil, []byte("\x01nonsense")), true},
		"newer":    {record.Append(nil, newer), false},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readCheckpoint(dir); err == nil || errors.Is(err, ErrDamaged) != c.damaged {
			t.Errorf("%s: %v; ErrDamaged should be %v", name, err, c.damaged)
		}
	}
}
