package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestIterate_AnyBounds_SameAsASortedModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	// Keys over a tiny alphabet with the extreme bytes, so that one is often the prefix of another, spread
	// over tables and memtables by a reopening in the middle.
	randomKey := func() []byte {
		b := make([]byte, rng.IntN(5))
		for i := range b {
			b[i] = []byte{0, 'a', 'b', 0xff}[rng.IntN(4)]
		}
		return b
	}
	m := model{}
	for i := uint64(1); i <= 200; i++ {
		x := mutation{key: append([]byte("D"), randomKey()...)}
		if rng.IntN(5) > 0 {
			x.value = fmt.Appendf(nil, "value %d", i)
		}
		m.apply([]mutation{x})
		if err := applyEntry(s, i, []mutation{x}); err != nil {
			t.Fatal(err)
		}
		if i == 100 {
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			s = mustOpenStore(t, s.o)
		}
	}
	m[string(markerKey)] = string(storeTestMarker(testPoint(200)))

	for range 2000 {
		bound := func() []byte {
			switch rng.IntN(6) {
			case 0:
				return nil
			case 1:
				return randomKey()
			}
			return append([]byte("D"), randomKey()...)
		}
		lower, upper := bound(), bound()
		reverse, keysOnly, limit := rng.IntN(2) == 0, rng.IntN(2) == 0, rng.IntN(8)
		var want []string
		for k := range m {
			if k >= string(lower) && (len(upper) == 0 || k < string(upper)) {
				want = append(want, k)
			}
		}
		slices.Sort(want)
		if reverse {
			slices.Reverse(want)
		}
		if limit > 0 && len(want) > limit {
			want = want[:limit]
		}
		var got []string
		err := s.read(0, func(r *reader) error {
			got = nil
			return r.iterate(lower, upper, reverse, keysOnly, func(key []byte, value func() ([]byte, error)) (bool, error) {
				got = append(got, string(key))
				if keysOnly != (value == nil) {
					return false, fmt.Errorf("keysOnly %v, value is nil: %v", keysOnly, value == nil)
				}
				if !keysOnly {
					if v, err := value(); err != nil || string(v) != m[string(key)] {
						return false, fmt.Errorf("key %q: value %q, %v; want %q", key, v, err, m[string(key)])
					}
				}
				return len(got) != limit, nil
			})
		})
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("[%q, %q) reverse %v limit %d: %q, %v; want %q", lower, upper, reverse, limit, got, err, want)
		}
	}
}

// rewriteAndForget stores versions first..last of key, makes them durable, and returns when the fence has
// moved as far as the checkpoint and the pins allow.
func rewriteAndForget(t *testing.T, s *store, key []byte, first, last uint64) {
	t.Helper()
	for i := first; i <= last; i++ {
		if err := applyEntry(s, i, []mutation{{key, fmt.Appendf(bytes.Repeat([]byte("x"), 1000), "v%d", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitFence(t, s)
}

// waitFence returns when the fence has moved as far as the last checkpoint and the pins allow.
func waitFence(t *testing.T, s *store) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		s.dropStalePinsLocked()
		target := s.last.Load().Fence
		for p := range s.pins {
			target = min(target, p.ts)
		}
		s.mu.Unlock()
		if s.fence.Load() >= target {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the fence stays at %d, the checkpoint and the pins allow %d", s.fence.Load(), target)
		}
	}
}

// The danger that the fence is there for, and the fence: after discard and compaction Badger answers a
// read below the discard ts with "not found", although the key was there all the time.
func TestRead_PastThatWasCompacted_IsRefusedWhereBadgerSaysNotFound(t *testing.T) {
	key := []byte("Dk")
	o := storeOptions(t, t.TempDir())
	o.HistoryWindow = -1
	s := mustOpenStore(t, o)
	past, last := testPoint(1).ts, uint64(0)
	for round := 0; ; round++ {
		rewriteAndForget(t, s, key, last+1, last+1500) // 1.5 MB: more than a memtable
		last += 1500
		if err := s.close(); err != nil { // flushes the rest
			t.Fatal(err)
		}
		s = mustOpenStore(t, o)
		if err := s.db.Flatten(2); err != nil {
			t.Fatal(err)
		}
		found, err := s.getAt(past, key, func([]byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if !found {
			break
		}
		// Badger's own workers may have been there first, before the discard ts had moved.
		if round == 10 {
			t.Fatal("no compaction dropped the oldest version: the test proves nothing")
		}
	}
	for _, ts := range []uint64{past, testPoint(last - 1).ts} {
		if err := s.read(ts, func(*reader) error { return nil }); !errors.Is(err, ErrCompacted) {
			t.Fatalf("read at %d: %v, want ErrCompacted", ts, err)
		}
	}
	if err := s.read(testPoint(last+1).ts, func(*reader) error { return nil }); !errors.Is(err, ErrFuture) {
		t.Fatalf("read of the future: %v, want ErrFuture", err)
	}
	for _, ts := range []uint64{0, testPoint(last).ts} {
		err := s.read(ts, func(r *reader) error {
			found, err := r.get(key, func([]byte) error { return nil })
			if !found {
				return fmt.Errorf("not found: %v", err)
			}
			return err
		})
		if err != nil {
			t.Fatalf("read at %d: %v", ts, err)
		}
	}
}

func TestRead_FencePassesWhileReading_ReadIsRepeatedAtTheNewPoint(t *testing.T) {
	key := []byte("Dk")
	o := storeOptions(t, t.TempDir())
	o.HistoryWindow = -1
	index, passes := uint64(10), 0
	var s *store
	o.hooks.duringRead = func() {
		// While the reader pauses, a newer version is written, made durable, and the fence moves onto it.
		if passes > 0 {
			passes--
			index++
			rewriteAndForget(t, s, key, index, index)
		}
	}
	s = mustOpenStore(t, o)
	rewriteAndForget(t, s, key, 1, index)
	read := func(at uint64) (runs int, value string, err error) {
		err = s.read(at, func(r *reader) error {
			runs++
			_, err := r.get(key, func(v []byte) error { value = string(bytes.TrimLeft(v, "x")); return nil })
			return err
		})
		return runs, value, err
	}
	for _, c := range []struct{ passes, runs int }{
		{0, 1},
		{1, 2},
		{fenceRetriesMax, fenceRetriesMax + 1},
		// The fence passes every time: the last run holds a pin, which the fence stops at. The value is then
		// that of the pinned point, which was the newest when that run began.
		{fenceRetriesMax + 1, fenceRetriesMax + 1},
	} {
		passes = c.passes
		want := fmt.Sprintf("v%d", index+uint64(min(c.passes, fenceRetriesMax)))
		runs, value, err := read(0)
		if err != nil || runs != c.runs || value != want {
			t.Fatalf("%d passes: %d runs, %q, %v; want %d runs, %q", c.passes, runs, value, err, c.runs, want)
		}
	}
	passes = 1
	if runs, _, err := read(testPoint(index).ts); runs != 1 || !errors.Is(err, ErrCompacted) {
		t.Fatalf("a past read that the fence passed: %d runs, %v; want one and ErrCompacted", runs, err)
	}
}

func TestRead_PastInsideTheWindow_ShowsThatPointWithItsTime(t *testing.T) {
	const seed, last = 9, 50
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	mustApply(t, s, seed, 1, last)
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= last; i++ {
		got, p, err := contents(s, testPoint(i).ts)
		if err != nil || p != testPoint(i) {
			t.Fatalf("at %d: %+v, %v", i, p, err)
		}
		if d := difference(got, modelAt(seed, i)); d != "" {
			t.Fatalf("at %d: %s", i, d)
		}
	}
	errOwn := errors.New("of the function")
	if err := s.read(0, func(*reader) error { return errOwn }); err != errOwn {
		t.Fatalf("the function's error came back as %v", err)
	}
}

func TestPin_HeldReleasedOldFullOrTooLate_FenceObeys(t *testing.T) {
	o := storeOptions(t, t.TempDir())
	o.HistoryWindow = -1
	o.PinsMax = 2
	o.PinBytesMax = 1 << 20
	now := time.Unix(1000, 0)
	o.hooks.now = func() time.Time { return now }
	s := mustOpenStore(t, o)
	key := []byte("Dk")
	index := uint64(10)
	next := func() uint64 {
		index++
		rewriteAndForget(t, s, key, index, index)
		return s.fence.Load()
	}
	rewriteAndForget(t, s, key, 1, index)

	release, err := s.pin(testPoint(index).ts)
	if err != nil {
		t.Fatal(err)
	}
	pinned := testPoint(index).ts
	if fence := next(); fence != pinned {
		t.Fatalf("fence at %d beyond the pin at %d", fence, pinned)
	}
	if _, err := s.pin(pinned - 1); !errors.Is(err, ErrCompacted) {
		t.Fatalf("pin below the fence: %v", err)
	}
	if _, err := s.pin(testPoint(index).ts + 1); !errors.Is(err, ErrFuture) {
		t.Fatalf("pin above the newest: %v", err)
	}
	release2, err := s.pin(pinned + 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.pin(pinned + 1); !errors.Is(err, ErrPinsExhausted) {
		t.Fatalf("third pin of two: %v", err)
	}
	release()
	release()
	if fence := next(); fence != pinned+1 {
		t.Fatalf("fence at %d, want the second pin's %d", fence, pinned+1)
	}
	// An idle store moves the fence too when a pin goes, up to what the last checkpoint allows.
	release2()
	s.wantCheckpoint()
	for deadline := time.Now().Add(10 * time.Second); s.fence.Load() != testPoint(index).ts; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("fence stays at %d", s.fence.Load())
		}
	}

	if _, err = s.pin(testPoint(index).ts); err != nil {
		t.Fatal(err)
	}
	now = now.Add(o.withDefaults().PinAgeMax + 1)
	if fence := next(); fence != testPoint(index).ts {
		t.Fatalf("an old pin holds the fence at %d", fence)
	}
	if _, err = s.pin(testPoint(index).ts); err != nil {
		t.Fatal(err)
	}
	first := index + 1
	index += 1200
	rewriteAndForget(t, s, key, first, index) // 1.2 MB
	if fence := s.fence.Load(); fence != testPoint(index).ts {
		t.Fatalf("a pin that holds too much holds the fence at %d", fence)
	}
	if st, err := s.stats(); err != nil || st.PinsDropped != 2 || st.Pins != 0 {
		t.Fatalf("%d pins dropped, %d held, %v; want 2, 0", st.PinsDropped, st.Pins, err)
	}
}
