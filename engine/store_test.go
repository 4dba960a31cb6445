package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The tests of the store apply a made-up log: entry i is a pure function of (seed, i), so that a model, a
// second process and a replay after a crash all know it without passing it around. Markers are the test's
// own (storeTestMarker), so that these tests stand without the state machine.

// storeOptions are small: a memtable turns over every few hundred entries.
func storeOptions(t testing.TB, dir string) Options {
	t.Helper()
	return Options{
		Dir:           dir,
		Logger:        slog.New(slog.NewTextHandler(io.Discard, nil)),
		MemtableBytes: 1 << 20,
		// Checkpoints only on demand, unless a test wants others.
		CheckpointInterval: time.Hour,
		CheckpointBytes:    1 << 30,
		Fatal:              func(err error) { t.Errorf("engine failed: %v", err) },
		hooks:              hooks{markerPoint: decodeStoreTestMarker},
	}
}

func mustOpenStore(t testing.TB, o Options) *store {
	t.Helper()
	s, err := openStore(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func storeTestMarker(p point) []byte {
	b := make([]byte, 0, 32)
	for _, v := range [...]uint64{p.index, p.term, p.ts, uint64(p.time)} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeStoreTestMarker(b []byte) (point, error) {
	if len(b) != 32 {
		return point{}, fmt.Errorf("test marker of %d bytes", len(b))
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	return point{index: u64(0), term: u64(8), ts: u64(16), time: int64(u64(24))}, nil
}

// storeTestBase is not 0, so that index and ts are never mistaken for each other.
const storeTestBase = 1000

func testPoint(index uint64) point {
	return point{index: index, term: 1 + index/100, ts: storeTestBase + index, time: int64(index) * 1000}
}

// mutation sets key, or deletes it when value is nil.
type mutation struct {
	key, value []byte
}

const storeTestKeys = 300

// testEntry is entry index of the made-up log.
func testEntry(seed, index uint64) []mutation {
	rng := rand.New(rand.NewPCG(seed, index))
	var entry []mutation
	for _, k := range rng.Perm(storeTestKeys)[:1+rng.IntN(6)] {
		m := mutation{key: fmt.Appendf(nil, "D%04d", k)}
		if rng.IntN(4) > 0 {
			m.value = bytes.Repeat(fmt.Appendf(nil, "%d/%d ", index, k), 1+rng.IntN(300))
		}
		entry = append(entry, m)
	}
	return entry
}

// model is the state that the made-up log makes.
type model map[string]string

func (m model) apply(entry []mutation) {
	for _, x := range entry {
		if x.value == nil {
			delete(m, string(x.key))
		} else {
			m[string(x.key)] = string(x.value)
		}
	}
}

func modelAt(seed, index uint64) model {
	m := model{}
	for i := uint64(1); i <= index; i++ {
		m.apply(testEntry(seed, i))
	}
	return m
}

// applyEntry commits and publishes one entry.
func applyEntry(s *store, index uint64, entry []mutation) error {
	p := testPoint(index)
	w := s.begin(p.ts)
	for _, m := range entry {
		if m.value == nil {
			w.del(m.key)
		} else {
			w.set(m.key, m.value)
		}
	}
	marker := storeTestMarker(p)
	if err := w.commit(marker); err != nil {
		return err
	}
	s.publish(p, marker)
	return nil
}

func mustApply(t testing.TB, s *store, seed, from, to uint64) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := applyEntry(s, i, testEntry(seed, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// contents reads everything at ts (0: newest) through one iterator.
func contents(s *store, ts uint64) (model, point, error) {
	var m model
	var p point
	err := s.read(ts, func(r *reader) error {
		m, p = model{}, r.point()
		return r.iterate([]byte("D"), []byte("E"), false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
			v, err := value()
			m[string(key)] = string(v)
			return true, err
		})
	})
	return m, p, err
}

// difference tells where two states differ, or "".
func difference(got, want model) string {
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[k]; !ok {
			return fmt.Sprintf("key %s is missing, want %.40q", k, want[k])
		} else if g != want[k] {
			return fmt.Sprintf("key %s is %.40q, want %.40q", k, g, want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			return fmt.Sprintf("key %s is there, %.40q, and should not be", k, got[k])
		}
	}
	return ""
}

func TestStore_ApplyCloseOpen_SameStateAndSamePoint(t *testing.T) {
	const seed, last = 1, 400
	dir := t.TempDir()
	s := mustOpenStore(t, storeOptions(t, dir))
	if _, ok := s.recovered(); ok {
		t.Fatal("a new store says that it recovered something")
	}
	s.setConfiguration(7, []byte("three voters"))
	mustApply(t, s, seed, 1, last)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := s.read(0, func(*reader) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Fatalf("read after close: %v, want ErrClosed", err)
	}

	s = mustOpenStore(t, storeOptions(t, dir))
	cp, ok := s.recovered()
	if !ok || cp.Index != last || string(cp.Configuration) != "three voters" || cp.ConfigurationIndex != 7 {
		t.Fatalf("recovered %+v, %v", cp, ok)
	}
	got, p, err := contents(s, 0)
	if err != nil || p != testPoint(last) {
		t.Fatalf("read at %+v, %v; want %+v", p, err, testPoint(last))
	}
	if d := difference(got, modelAt(seed, last)); d != "" {
		t.Fatal(d)
	}
	// The configuration stays in the checkpoints of a process that saw none.
	mustApply(t, s, seed, last+1, last+1)
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	if cp, _ := s.durable(); cp.ConfigurationIndex != 7 || cp.Index != last+1 {
		t.Fatalf("checkpoint %+v lost the configuration", cp)
	}
}

func TestOpenStore_TwiceAtOnce_SecondIsRefusedAndNothingCounts(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	s := mustOpenStore(t, o)
	for range openFailuresMax + 1 {
		if _, err := openStore(o); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "lock") {
			t.Fatalf("second open: %v, want an error about the lock", err)
		}
	}
	mustApply(t, s, 1, 1, 10)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	mustOpenStore(t, o)
}

func TestOpenStore_BadOptions_AllFaultsAtOnce(t *testing.T) {
	_, err := openStore(Options{MemtableBytes: 1, NumCompactors: 2, ChunkBytes: 1 << 30})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{"Dir", "MemtableBytes", "NumCompactors", "ChunkBytes"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%q does not name %s", err, field)
		}
	}
}

// One applier, readers of the present and the past, pins and checkpoints, all at once, with every read
// compared with the model of its point. Meant for -race too.
func TestStore_ReadersBesideApplierAndCheckpoints_EveryReadIsOfOnePoint(t *testing.T) {
	const seed, last = 5, 1500
	o := storeOptions(t, t.TempDir())
	o.CheckpointInterval = time.Millisecond
	o.HistoryWindow = 20 * 1000 * time.Microsecond // 20 entries
	s := mustOpenStore(t, o)

	// states[i] is what entry i made; written by the applier before it publishes i.
	var states [last + 1]model
	states[0] = model{}
	var done atomic.Bool
	var wg sync.WaitGroup
	check := func(ts uint64) error {
		got, p, err := contents(s, ts)
		if err != nil {
			if ts != 0 && errors.Is(err, ErrCompacted) {
				return nil
			}
			return err
		}
		if ts != 0 && p.ts != ts {
			return fmt.Errorf("asked for ts %d, read at %d", ts, p.ts)
		}
		if d := difference(got, states[p.index]); d != "" {
			return fmt.Errorf("at index %d: %s", p.index, d)
		}
		return nil
	}
	report := make(chan error, 8)
	for range 2 {
		wg.Add(1)
		// Readers: owned by this test; end when done is set.
		go func() {
			defer wg.Done()
			for !done.Load() {
				if err := check(0); err != nil {
					report <- err
					return
				}
				if p := s.current(); p.index > 5 {
					if err := check(p.ts - 5); err != nil {
						report <- err
						return
					}
				}
				p, release, err := s.pinCurrent()
				if err != nil {
					report <- err
					return
				}
				for range 3 {
					if p.index == 0 {
						break
					}
					if got, _, err := contents(s, p.ts); err != nil {
						report <- fmt.Errorf("pinned read: %w", err)
						return
					} else if d := difference(got, states[p.index]); d != "" {
						report <- fmt.Errorf("pinned read at index %d: %s", p.index, d)
						return
					}
				}
				release()
			}
		}()
	}
	current := model{}
	for i := uint64(1); i <= last && len(report) == 0; i++ {
		entry := testEntry(seed, i)
		current.apply(entry)
		states[i] = maps.Clone(current)
		if err := applyEntry(s, i, entry); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 { // However slow the disk is, the fence has to move beside the readers.
			if err := s.checkpointNow(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	done.Store(true)
	wg.Wait()
	select {
	case err := <-report:
		t.Fatal(err)
	default:
	}
	st, err := s.stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.BadgerErrors+st.BadgerWarnings > 0 || st.FenceTS <= storeTestBase {
		t.Fatalf("%d errors, %d warnings, fence at %d", st.BadgerErrors, st.BadgerWarnings, st.FenceTS)
	}
	t.Logf("%d checkpoints, %d fence retries", st.Checkpoints.Count(), st.FenceRetries)
}

func TestClose_ReaderInside_WaitsForIt(t *testing.T) {
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	inside, finish := make(chan struct{}), make(chan struct{})
	readErr := make(chan error, 1)
	// Reader: owned by this test; ends when finish is closed.
	go func() {
		readErr <- s.read(0, func(r *reader) error {
			close(inside)
			<-finish
			_, err := r.get([]byte("x"), nil)
			return err
		})
	}()
	<-inside
	closed := make(chan error, 1)
	// Closer: owned by this test; ends when the reader has left.
	go func() { closed <- s.close() }()
	for s.gate.state.Load() < gateClosed {
		time.Sleep(time.Millisecond)
	}
	if s.gate.enter() {
		t.Fatal("a closing store lets a reader in")
	}
	select {
	case err := <-closed:
		t.Fatalf("closed (%v) while a reader is inside", err)
	default:
	}
	close(finish)
	if err := <-readErr; err != nil {
		t.Fatal(err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

func TestPublish_OutOfOrder_Panics(t *testing.T) {
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	mustApply(t, s, 1, 1, 2)
	for name, f := range map[string]func(){
		"published without commit": func() { s.publish(testPoint(3), []byte("m")) },
		"published twice":          func() { s.publish(testPoint(2), []byte("m")) },
		"begun twice":              func() { s.begin(testPoint(2).ts) },
		"empty value":              func() { s.begin(testPoint(3).ts).set([]byte("k"), nil) },
		"too long a value":         func() { s.begin(testPoint(3).ts).set([]byte("k"), make([]byte, s.valueBytesMax()+1)) },
	} {
		func() {
			defer func() {
				if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), "BUG") {
					t.Errorf("%s: recovered %v, want a panic that says BUG", name, v)
				}
			}()
			f()
		}()
	}
}

// copyTree copies the files of a group's directory, as they are.
func copyTree(t testing.TB, source, target string) {
	t.Helper()
	err := filepath.WalkDir(source, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(target, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(target, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
