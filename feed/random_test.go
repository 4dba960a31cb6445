package feed

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"kvstore/wire"
)

// The promise of the package is tested against a history in plain memory: whatever happens, in whatever order (appends,
// syncs, crashes that lose what was not synced, checkpoints, resets, retention), each watcher is given precisely the
// events of its range behind where it began, in order, or is told ErrCompacted once the feed begins behind it.
func TestFeed_RandomLives_EachWatcherSeesItsHistoryOrIsTold(t *testing.T) {
	seed := testSeed(t)
	for life := range 30 {
		rng := rand.New(rand.NewPCG(seed, uint64(life)))
		// A third of them in pieces that are large enough to be written past the page cache.
		t.Run(fmt.Sprint(life), func(t *testing.T) { newLife(t, rng, life%3 == 2).live(250) })
	}
}

type life struct {
	t   *testing.T
	rng *rand.Rand
	h   *history
	o   Options
	f   *Feed

	index     uint64 // newest published
	wide      bool
	bulks     int              // files that were written past the page cache
	synced    []uint64         // points that a checkpoint may name: the last one that was durable, and the synced ones behind it
	sizes     map[string]int64 // of files, as of the last sync
	watchers  map[*Watcher]*wish
	compacted int
	given     int
	resumed   int
}

func newLife(t *testing.T, rng *rand.Rand, wide bool) *life {
	l := &life{t: t, rng: rng, h: newHistory(rng), wide: wide, synced: []uint64{0}}
	times := int64(1)
	if wide {
		times = 16
	}
	l.o = Options{
		Dir: filepath.Join(t.TempDir(), "feed"), Logger: quiet(),
		SegmentBytes: times * (4<<10 + rng.Int64N(16<<10)), RingBytes: times * (4<<10 + rng.Int64N(16<<10)), WatchersMax: 50,
	}
	l.o.RetainBytes = l.o.SegmentBytes * (1 + rng.Int64N(20))
	l.open()
	return l
}

func (l *life) fatal(format string, args ...any) {
	l.t.Helper()
	l.t.Fatalf("at entry %d: %s", l.index, fmt.Sprintf(format, args...))
}

func (l *life) open() {
	f, err := Open(l.o)
	if err != nil {
		l.fatal("open: %v", err)
	}
	if l.wide {
		f.bulk.least = 0
	}
	f.recordBytes, f.scanBytes = 1+l.rng.IntN(2000), 1+l.rng.Int64N(20<<10)
	l.f, l.watchers = f, make(map[*Watcher]*wish)
	l.noteSizes()
}

func (l *life) live(steps int) {
	for range steps {
		switch n := l.rng.IntN(100); {
		case n < 55:
			for range 1 + l.rng.IntN(10) {
				l.advance()
			}
		case n < 65:
			l.sync()
		case n < 75:
			l.watch()
		case n < 93:
			l.next()
		case n < 95:
			for w := range l.watchers {
				w.Close()
				delete(l.watchers, w)
				break
			}
		case n < 98:
			l.crash()
		case n < 99:
			l.stop()
		default:
			if l.rng.IntN(3) == 0 {
				l.reset()
			}
		}
	}
	for w := range l.watchers {
		l.read(w, 1<<30)
	}
	if l.wide && l.f.counters.appended > 1<<20 && l.bulks == 0 && !l.f.bulk.never {
		l.fatal("nothing was written past the page cache")
	}
	if err := l.f.Close(); err != nil {
		l.fatal("close: %v", err)
	}
	for w := range l.watchers {
		if _, err := w.Next(nil); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrCompacted) {
			l.fatal("behind the end: %v", err)
		}
	}
	l.t.Logf("%d entries, %d events given, %d watchers compacted, %d times resumed", l.index, l.given, l.compacted, l.resumed)
}

// advance applies the next entry, an old one if a crash has lost it.
func (l *life) advance() {
	if l.index == l.h.newest() {
		most := 300
		if l.wide {
			most = 8000
		}
		l.h.grow(8, most)
	}
	l.index++
	l.h.append(l.f, l.index)
	if l.rng.IntN(20) == 0 {
		if err := l.f.Sync(l.index); err != nil { // a checkpoint that is as fast
			l.fatal("sync: %v", err)
		}
		l.noteSizes()
		l.synced = append(l.synced, l.index)
	}
	l.f.Publish(l.index)
	if _, last := l.f.Bounds(); last != l.h.entries[l.index].rev {
		l.fatal("published revision %d, want %d", last, l.h.entries[l.index].rev)
	}
}

func (l *life) sync() {
	if err := l.f.Sync(l.index); err != nil {
		l.fatal("sync: %v", err)
	}
	l.f.io.Lock()
	if l.f.bulk.direct != nil {
		l.bulks++
	}
	l.f.io.Unlock()
	l.noteSizes()
	l.synced = append(l.synced, l.index)
	if l.rng.IntN(2) == 0 {
		l.synced = l.synced[len(l.synced)-1:] // CHECKPOINT was renamed
	}
	st := l.f.Stats()
	if limit := l.o.RetainBytes + l.o.SegmentBytes + 64<<10; st.Bytes > limit {
		l.fatal("%d bytes are kept, limit %d", st.Bytes, limit)
	}
}

func (l *life) noteSizes() {
	l.sizes = make(map[string]int64)
	files, err := os.ReadDir(l.o.Dir)
	if err != nil {
		l.fatal("%v", err)
	}
	for _, file := range files {
		st, err := file.Info()
		if err != nil {
			l.fatal("%v", err)
		}
		l.sizes[file.Name()] = st.Size()
	}
}

// crash loses what was not synced, at random, and starts again at a checkpoint that was possible.
func (l *life) crash() {
	dir := filepath.Join(l.t.TempDir(), "feed")
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.fatal("%v", err)
	}
	files, err := os.ReadDir(l.o.Dir)
	if err != nil {
		l.fatal("%v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(l.o.Dir, file.Name()))
		if err != nil {
			l.fatal("%v", err)
		}
		safe, known := l.sizes[file.Name()]
		if !known && l.rng.IntN(4) == 0 {
			continue // its name was not synced
		}
		b = b[:safe+l.rng.Int64N(int64(len(b))-safe+1)]
		for i := safe; i < int64(len(b)); i++ {
			switch l.rng.IntN(2000) {
			case 0:
				b[i] ^= 1
			case 1:
				clear(b[i:]) // a hole: size without data
			}
		}
		if err := os.WriteFile(filepath.Join(dir, file.Name()), b, 0o600); err != nil {
			l.fatal("%v", err)
		}
	}
	first, _ := l.f.Bounds()
	if err := l.f.Close(); err != nil {
		l.fatal("close: %v", err)
	}
	l.o.Dir = dir
	l.reopen(l.synced[l.rng.IntN(len(l.synced))], first)
}

// stop ends in order and starts again at the newest entry.
func (l *life) stop() {
	first, _ := l.f.Bounds()
	if err := l.f.Close(); err != nil {
		l.fatal("close: %v", err)
	}
	l.reopen(l.index, first)
}

func (l *life) reopen(index uint64, first wire.Revision) {
	e := &l.h.entries[index]
	l.o.Index, l.o.TS, l.o.Revision = e.index, e.ts, e.rev
	l.index, l.synced = index, []uint64{index}
	l.open()
	got, last := l.f.Bounds()
	// Open and Close sync, and so remove what is too much.
	retained := l.f.Stats().Bytes > l.o.RetainBytes-l.o.SegmentBytes-16<<10
	if got > first && !retained || last != e.rev {
		l.fatal("opened at %d: bounds %d to %d, want %d to %d", index, got, last, first, e.rev)
	}
	l.resumed++
}

// reset jumps ahead, as a snapshot does.
func (l *life) reset() {
	for range 1 + l.rng.IntN(50) {
		most := 300
		if l.wide {
			most = 8000
		}
		l.h.grow(8, most)
	}
	l.index = l.h.newest()
	e := &l.h.entries[l.index]
	if err := l.f.Reset(e.index, e.ts, e.rev); err != nil {
		l.fatal("reset: %v", err)
	}
	for w := range l.watchers {
		if _, err := w.Next(nil); !errors.Is(err, ErrCompacted) {
			l.fatal("after a reset: %v", err)
		}
	}
	clear(l.watchers)
	l.synced = []uint64{l.index}
	l.noteSizes()
}

// watch begins one somewhere, also where it can't.
func (l *life) watch() {
	first, last := l.f.Bounds()
	var after wire.Revision
	switch l.rng.IntN(6) {
	case 0:
		after = last
	case 1:
		after = first
	case 2:
		after = last + 1
	case 3:
		e := &l.h.entries[l.rng.IntN(len(l.h.entries))]
		after = e.rev + l.rng.Uint64N(3)<<(wire.PositionBits-1)
	default:
		e := &l.h.entries[l.rng.IntN(len(l.h.entries))]
		if after = e.rev; len(e.events) > 0 {
			after = e.events[l.rng.IntN(len(e.events))].Revision
		}
	}
	want := l.h.wish(after)
	w, err := l.f.Watch(want.o, func() {})
	switch {
	case after > last:
		if !errors.Is(err, ErrFuture) {
			l.fatal("a watch behind %d: %v; last is %d", after, err, last)
		}
	case after < first, l.h.gapped(after) && after < last:
		if !errors.Is(err, ErrCompacted) {
			l.fatal("a watch behind %d: %v; first is %d", after, err, first)
		}
	case len(l.watchers) == l.o.WatchersMax:
		if !errors.Is(err, ErrTooMany) {
			l.fatal("one watch too many: %v", err)
		}
	case err != nil:
		l.fatal("a watch behind %d: %v; bounds %d to %d", after, err, first, last)
	default:
		l.watchers[w] = want
	}
}

func (l *life) next() {
	for w := range l.watchers {
		if l.rng.IntN(3) == 0 {
			l.read(w, l.rng.IntN(30))
		}
	}
}

// read takes up to n events.
func (l *life) read(w *Watcher, n int) {
	want := l.watchers[w]
	for {
		stopped := false
		last := wire.Revision(0)
		through, err := w.Next(func(e *Event) bool {
			due := want.expect(l.h, l.index)
			if fault := differs(e, due); fault != "" {
				l.fatal("a watch %+v: got %s", want.o, fault)
			}
			want.after, last = e.Revision, e.Revision
			l.given++
			n--
			stopped = n < 0
			return !stopped
		})
		switch {
		case errors.Is(err, ErrCompacted):
			first, _ := l.f.Bounds()
			if first <= want.after {
				l.fatal("a watch that has read up to %d is compacted, the feed begins at %d", want.after, first)
			}
			l.compacted++
			delete(l.watchers, w)
			return
		case err != nil:
			l.fatal("next: %v", err)
		case stopped:
			if through != last {
				l.fatal("stopped at %d, through is %d", last, through)
			}
			return
		}
		if due := want.expect(l.h, l.index); due != nil && due.Revision <= through {
			l.fatal("through %d, but the event at %d was not given to %+v", through, due.Revision, want.o)
		}
		if _, newest := l.f.Bounds(); through == newest {
			if due := want.expect(l.h, l.index); due != nil {
				l.fatal("nothing more, but %+v is due", due)
			}
			return
		}
	}
}
