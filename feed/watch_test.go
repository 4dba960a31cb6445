package feed

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"kvstore/wire"
)

func keyWatch(key string, after wire.Revision, flags uint8) WatchOptions {
	return WatchOptions{Namespace: 1, Request: wire.WatchRequest{Flags: wire.WatchKey | flags, Start: []byte(key), After: after}}
}

func prefixWatch(prefix string, after wire.Revision, flags uint8) WatchOptions {
	return WatchOptions{Namespace: 1, Request: wire.WatchRequest{Flags: flags, Prefix: []byte(prefix), After: after}}
}

// writer appends entries of puts.
type writer struct {
	f     *Feed
	index uint64
}

func (w *writer) put(value string, keys ...string) wire.Revision {
	w.append(value, keys...)
	w.f.Publish(w.index)
	return wire.MakeRevision(w.index, max(0, len(keys)-1))
}

func (w *writer) append(value string, keys ...string) {
	w.index++
	rev := wire.MakeRevision(w.index, 0)
	var events []Event
	for i, k := range keys {
		rev = wire.MakeRevision(w.index, i)
		events = append(events, Event{
			Kind: wire.EventPut, Last: i == len(keys)-1, Namespace: 1, Revision: rev, Key: []byte(k),
			Record: wire.Record{Meta: wire.Meta{Version: rev}, Value: []byte(value)},
		})
	}
	w.f.Append(w.index, w.index, 0, rev, events)
}

// drain gives the keys of all events that there are.
func drain(t testing.TB, w *Watcher) (keys []string, through wire.Revision) {
	t.Helper()
	for {
		n := len(keys)
		through, err := w.Next(func(e *Event) bool {
			keys = append(keys, string(e.Key))
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, last := w.feed.Bounds(); len(keys) == n || through == last {
			return keys, through
		}
	}
}

func watch(t testing.TB, f *Feed, o WatchOptions, ready func()) *Watcher {
	t.Helper()
	if ready == nil {
		ready = func() {}
	}
	w, err := f.Watch(o, ready)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWatch_AppendedAndNotPublished_IsNotSeen(t *testing.T) {
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f")})
	wr := writer{f: f}
	past, now := watch(t, f, prefixWatch("", 0, 0), nil), watch(t, f, prefixWatch("", 0, wire.WatchFromNow), nil)
	wr.append("v", "a")
	for _, w := range []*Watcher{past, now, watch(t, f, prefixWatch("", 0, 0), nil)} {
		if keys, through := drain(t, w); len(keys) != 0 || through != 0 {
			t.Fatalf("%q through %d before it was published", keys, through)
		}
	}
	f.Publish(1)
	for _, w := range []*Watcher{past, now} {
		if keys, through := drain(t, w); len(keys) != 1 || through != wire.MakeRevision(1, 0) {
			t.Fatalf("%q through %d", keys, through)
		}
	}
}

func TestReady_WatcherThatFoundNothing_IsCalledOnceWhenThereIsSomething(t *testing.T) {
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f")})
	wr := writer{f: f}
	calls := 0
	w := watch(t, f, keyWatch("a", 0, 0), func() { calls++ })
	wr.put("v", "a")
	if calls != 0 {
		t.Fatal("called before a Next has found nothing")
	}
	if keys, _ := drain(t, w); len(keys) != 1 {
		t.Fatalf("%q", keys)
	}
	if _, err := w.Next(nil); err != nil { // nothing
		t.Fatal(err)
	}
	wr.put("v", "b")
	if calls != 0 {
		t.Fatal("called for another key")
	}
	wr.put("v", "b", "a", "c", "a")
	wr.put("v", "a")
	if calls != 1 {
		t.Fatalf("called %d times", calls)
	}
	if keys, _ := drain(t, w); !slices.Equal(keys, []string{"a", "a", "a"}) {
		t.Fatalf("%q", keys)
	}
	f.EndNamespace(2)
	if calls != 1 {
		t.Fatal("another namespace was dropped")
	}
	f.EndNamespace(1)
	if _, err := w.Next(nil); calls != 2 || !errors.Is(err, ErrNoNamespace) {
		t.Fatalf("%d calls, %v", calls, err)
	}
	w.Close()
	if st := f.Stats(); st.Watchers != 0 || st.Behind != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestClose_WaitingWatcher_IsToldAndNothingGoesOn(t *testing.T) {
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f")})
	calls := 0
	w := watch(t, f, keyWatch("a", 0, 0), func() { calls++ })
	drain(t, w)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Next(nil); calls != 1 || !errors.Is(err, ErrClosed) {
		t.Fatalf("%d calls, %v", calls, err)
	}
	if _, err := f.Watch(keyWatch("a", 0, 0), func() {}); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := f.Sync(0); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// One that never reads, and one that reads now and then, cost a queue that is bounded, and nobody else anything.
func TestWatcher_NeverReads_CostsBoundedMemoryAndIsCompacted(t *testing.T) {
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f"), SegmentBytes: 64 << 10, RetainBytes: 256 << 10, RingBytes: 64 << 10})
	wr := writer{f: f}
	never := watch(t, f, prefixWatch("", 0, wire.WatchFromNow), nil)
	always := watch(t, f, prefixWatch("", 0, wire.WatchFromNow), nil)
	value := string(make([]byte, 500))
	for i := range 5000 {
		wr.put(value, fmt.Sprint(i))
		if keys, _ := drain(t, always); len(keys) != 1 || keys[0] != fmt.Sprint(i) {
			t.Fatalf("%d: %q", i, keys)
		}
		if i%100 == 0 {
			if err := f.Sync(wr.index); err != nil {
				t.Fatal(err)
			}
		}
	}
	if never.synced || cap(never.queue.offsets) > queueMax {
		t.Fatalf("synced %v, a queue of %d", never.synced, cap(never.queue.offsets))
	}
	st := f.Stats()
	if st.RingBytes > 2*64<<10 || st.Bytes > 400<<10 || st.Behind != 1 || st.Overflows != 1 {
		t.Fatalf("%+v", st)
	}
	if _, err := never.Next(nil); !errors.Is(err, ErrCompacted) {
		t.Fatal(err)
	}
	if st := f.Stats(); st.Watchers != 1 || st.Compacted != 1 {
		t.Fatalf("%+v", st)
	}
}

func TestSegment_RemovedUnderItsReader_IsReadToItsEndAndThenCompacted(t *testing.T) {
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f"), SegmentBytes: 64 << 10, RetainBytes: 64 << 10, RingBytes: 4 << 10})
	wr := writer{f: f}
	value := string(make([]byte, 1000))
	for i := range 50 {
		wr.put(value, fmt.Sprintf("%04d", i))
	}
	if err := f.Sync(wr.index); err != nil {
		t.Fatal(err)
	}
	w := watch(t, f, prefixWatch("", 0, 0), nil)
	n := 0
	_, err := w.Next(func(e *Event) bool {
		if string(e.Key) != fmt.Sprintf("%04d", n) {
			t.Fatalf("event %d is of %q", n, e.Key)
		}
		if n == 0 { // the reader stands in the first segment: remove it
			for i := range 500 {
				wr.put(value, fmt.Sprint("more", i))
			}
			if err := f.Sync(wr.index); err != nil {
				t.Fatal(err)
			}
			if first, _ := f.Bounds(); first <= wire.MakeRevision(60, 0) {
				t.Fatalf("the segment is still there: the feed begins at %d", first)
			}
		}
		n++
		return true
	})
	if !errors.Is(err, ErrCompacted) || n < 30 || n > 60 {
		t.Fatalf("%d events, then %v", n, err)
	}
	files, err := os.ReadDir(f.o.Dir)
	if err != nil || len(files) > 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, s := range f.segments {
		if s.refs != 0 {
			t.Fatal("a reference is held")
		}
	}
}

// A byte that changes in a segment costs the watchers of what is before its end; nobody is given what is wrong.
func TestSegment_Damaged_EndsItsWatchersAndNoOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "f")
	f := openFeed(t, Options{Dir: dir, SegmentBytes: 64 << 10, RetainBytes: 64 << 20, RingBytes: 4 << 10})
	wr := writer{f: f}
	value := string(make([]byte, 1000))
	for i := range 300 {
		wr.put(value, fmt.Sprintf("%04d", i))
	}
	if err := f.Sync(wr.index); err != nil {
		t.Fatal(err)
	}
	bad := f.segments[1]
	b, err := os.ReadFile(bad.path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(bad.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	now := watch(t, f, prefixWatch("", 0, wire.WatchFromNow), nil)
	later := watch(t, f, prefixWatch("", f.segments[2].header.revision, 0), nil)
	old := watch(t, f, prefixWatch("", 0, 0), nil)
	n := 0
	for err == nil {
		_, err = old.Next(func(e *Event) bool {
			if string(e.Key) != fmt.Sprintf("%04d", n) {
				t.Fatalf("event %d is of %q", n, e.Key)
			}
			n++
			return true
		})
	}
	if whole := int(bad.header.index); !errors.Is(err, ErrCompacted) || n < whole || n >= whole+60 {
		t.Fatalf("%d events, then %v; the damaged segment begins with the entry behind %d", n, err, whole)
	}
	first, _ := f.Bounds()
	if first != f.segments[2].header.revision || f.Stats().Damaged != 1 {
		t.Fatalf("the feed begins at %d, %+v", first, f.Stats())
	}
	if _, err := f.Watch(prefixWatch("", 0, 0), func() {}); !errors.Is(err, ErrCompacted) {
		t.Fatal(err)
	}
	if keys, _ := drain(t, later); len(keys) != 300-int(f.segments[2].header.index) {
		t.Fatalf("%d events behind the damage", len(keys))
	}
	wr.put("v", "new")
	if keys, _ := drain(t, now); len(keys) != 1 {
		t.Fatalf("%q", keys)
	}
}

// What is damaged where the checkpoint relies on it is not taken for the feed.
func TestOpen_DamagedTail_BeginsAnewBehindTheCheckpoint(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"flipped": func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		},
		"cut":     func(path string) error { return os.Truncate(path, 300) },
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"missing": os.Remove,
	} {
		dir := filepath.Join(t.TempDir(), "f")
		o := Options{Dir: dir, Logger: quiet()}
		f, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		wr := writer{f: f}
		for i := range 20 {
			wr.put("v", fmt.Sprint(i))
		}
		path := f.segments[0].path
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		o.Index, o.TS, o.Revision = 20, 20, wire.MakeRevision(20, 0)
		f = openFeed(t, o)
		if first, last := f.Bounds(); first != o.Revision || last != o.Revision {
			t.Fatalf("%s: bounds %d to %d, want %d", name, first, last, o.Revision)
		}
		wr = writer{f: f, index: 20}
		w := watch(t, f, prefixWatch("", o.Revision, 0), nil)
		wr.put("v", "a")
		if keys, _ := drain(t, w); len(keys) != 1 {
			t.Fatalf("%s: %q", name, keys)
		}
	}
}

// A state with the same index and other contents has another feed.
func TestOpen_AnotherState_BeginsAnew(t *testing.T) {
	for name, at := range map[string]state{
		"revision":  {index: 20, ts: 20, revision: wire.MakeRevision(20, 5)},
		"timestamp": {index: 20, ts: 25, revision: wire.MakeRevision(25, 0)},
		"ahead":     {index: 21, ts: 21, revision: wire.MakeRevision(21, 0)},
	} {
		o := Options{Dir: filepath.Join(t.TempDir(), "f"), Logger: quiet()}
		f, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		wr := writer{f: f}
		for i := range 20 {
			wr.put("v", fmt.Sprint(i))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		o.Index, o.TS, o.Revision = at.index, at.ts, at.revision
		f = openFeed(t, o)
		if first, last := f.Bounds(); first != o.Revision || last != o.Revision {
			t.Fatalf("%s: bounds %d to %d, want %d", name, first, last, o.Revision)
		}
	}
}

// Many watchers read at their own pace while entries are appended, synced and removed: for the race detector, and for
// the hand-over between the queue and the stream, which happens all the time here.
func TestWatchers_BesideTheApplier_MissAndRepeatNothing(t *testing.T) {
	seed := testSeed(t)
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f"), SegmentBytes: 32 << 10, RetainBytes: 16 << 20, RingBytes: 16 << 10})
	const entries, readers = 3000, 12
	h := newHistory(rand.New(rand.NewPCG(seed, 0)))
	for range entries {
		h.grow(6, 200)
	}
	end := make(chan struct{}) // closed when everything is published
	var wg sync.WaitGroup
	for i := range readers {
		rng := rand.New(rand.NewPCG(seed, uint64(1+i)))
		mine := &history{rng: rng, entries: h.entries}
		want := mine.wish(0)
		ready := make(chan struct{}, 1)
		w := watch(t, f, want.o, func() {
			select {
			case ready <- struct{}{}:
			default:
			}
		})
		wg.Go(func() { // ends with its watch or the test's history
			defer w.Close()
			for over := false; ; {
				n, stopped := rng.IntN(400), false
				through, err := w.Next(func(e *Event) bool {
					if fault := differs(e, want.expect(mine, entries)); fault != "" {
						t.Errorf("%+v: got %s", want.o, fault)
					}
					want.after = e.Revision
					n--
					stopped = n < 0
					return !stopped
				})
				if err != nil {
					t.Error(err)
					return
				}
				if stopped {
					if rng.IntN(3) == 0 {
						runtime.Gosched()
					}
					continue
				}
				if due := want.expect(mine, entries); due != nil && due.Revision <= through {
					t.Errorf("through %d, but %d was not given", through, due.Revision)
					return
				}
				if over && through == h.entries[entries].rev {
					if due := want.expect(mine, entries); due != nil {
						t.Errorf("%+v was never given", *due)
					}
					return
				}
				select {
				case <-ready:
				case <-end:
					// Whoever waits for what there is has been called before.
					if due := want.expect(mine, entries); !over && due != nil && len(ready) == 0 {
						t.Errorf("%+v is there, and its watcher was not called", *due)
					}
					over = true
				}
			}
		})
	}
	stop := make(chan struct{})
	var index atomic.Uint64
	wg.Go(func() { // the checkpointer; ends with stop
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := f.Sync(index.Load()); err != nil {
				t.Error(err)
				return
			}
			f.Stats()
		}
	})
	for i := uint64(1); i <= entries; i++ {
		h.give(f, i)
		index.Store(i)
	}
	close(stop)
	close(end)
	wg.Wait()
}

func TestWatch_TooManyOrAhead_IsRefused(t *testing.T) {
	f := openFeed(t, Options{Dir: filepath.Join(t.TempDir(), "f"), WatchersMax: 1, Logger: slog.New(slog.DiscardHandler)})
	if _, err := f.Watch(keyWatch("a", 1, 0), func() {}); !errors.Is(err, ErrFuture) {
		t.Fatal(err)
	}
	w := watch(t, f, keyWatch("a", 0, 0), nil)
	if _, err := f.Watch(keyWatch("a", 0, 0), func() {}); !errors.Is(err, ErrTooMany) {
		t.Fatal(err)
	}
	w.Close()
	watch(t, f, keyWatch("a", 0, 0), nil)
}
