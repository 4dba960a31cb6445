package feed

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"kvstore/wire"
)

var (
	// ErrCompacted says that events behind the revision asked for, or behind the last one given, are not kept any more
	// or never were on this node.
	ErrCompacted = errors.New("feed: the revision is compacted")
	// ErrFuture says that the revision asked for is above what was published here.
	ErrFuture = errors.New("feed: the revision is not reached yet")
	// ErrTooMany says that there are Options.WatchersMax watchers.
	ErrTooMany = errors.New("feed: too many watchers")
	// ErrNoNamespace says that the watch's namespace was dropped.
	ErrNoNamespace = errors.New("feed: the namespace is gone")
	// ErrClosed says that the feed, or the watcher, was closed, or that the feed has failed.
	ErrClosed = errors.New("feed: closed")
)

// flushBytes is how much waits in the ring to be written to its segment before Append writes it itself, instead of
// leaving it to the next Sync.
const flushBytes = 1 << 20

// Feed is the stream of changes of one group. Append, Publish and Reset belong to one goroutine, the applier; the other
// methods may be called from any.
//
// Locks are taken in the order syncing, io, mu.
type Feed struct {
	// Immutable after Open.
	o          Options
	log        *slog.Logger
	flushBytes int64
	// recordBytes and scanBytes are recordBytesTarget and scanMax, but in tests.
	recordBytes int
	scanBytes   int64

	// Owned by the applier.
	scratch []byte
	matched []*Watcher
	ready   []func()

	// syncing is held by Sync, Reset and Close: by whoever syncs and removes segments.
	syncing sync.Mutex
	// io is held by whoever writes to segments.
	io sync.Mutex
	// Guarded by io. created: a segment was created since the directory was synced.
	created bool
	bulk    bulk

	failed atomic.Pointer[error] // the first failure; never reset

	mu sync.Mutex
	// Guarded by mu. Offsets are those of the stream: flushed <= end, published <= end.
	at, shown state // of the newest entry that was appended, and published
	base      uint64
	// recorded is the index that the newest record names.
	recorded  uint64
	end       int64 // of what was appended
	published int64 // of what watchers may see
	flushed   int64 // of what is in segments
	fresh     int64 // where the newest entry begins; end if it has no events
	freshEnd  int64
	ring      ring
	segments  []*segment // never empty
	// first is where the feed begins: at its oldest segment, or behind what is damaged.
	first    mark
	watchers watchers
	closed   bool
	counters counters
}

// counters count from Open. Guarded by Feed.mu.
type counters struct {
	events, entries             uint64
	overflows, compacted        uint64
	damaged, segments, appended uint64
}

// Append takes the events of the entry at index, whose timestamp is ts, log time is time, and whose state has the
// revision rev; they are in order of revision. It copies them. Nobody sees them before Publish. It has to be called for
// entries without events too: Sync promises up to them.
//
// It holds the lock that watchers take for moments. It does not wait for a watcher, nor for the disk, unless half of the
// ring waits for that.
func (f *Feed) Append(index, ts uint64, time int64, rev wire.Revision, events []Event) {
	f.mu.Lock()
	if index <= f.at.index || rev < f.at.revision || ts < index {
		f.mu.Unlock()
		panic(fmt.Sprintf("BUG: entry %d with ts %d and revision %d behind entry %d with revision %d", index, ts, rev, f.at.index, f.at.revision))
	}
	if f.closed {
		f.mu.Unlock()
		return
	}
	next := state{index, ts, time, rev}
	if next.base() != f.base {
		f.roll(next.base())
	}
	f.fresh, f.freshEnd = f.end, f.end
	if len(events) > 0 {
		f.appendEvents(&next, events)
	}
	f.at = next
	f.counters.entries++
	end, waiting := f.end, f.end-f.flushed
	f.mu.Unlock()
	if waiting >= f.flushBytes {
		f.flushSome(end, waiting)
	}
}

// appendEvents writes the records of an entry. REQUIRES: mu held.
func (f *Feed) appendEvents(next *state, events []Event) {
	size := 0
	for i := range events {
		size += eventBytes(&events[i])
	}
	newest := f.segments[len(f.segments)-1]
	if used := f.end - newest.start; used > segmentHeaderBytes && used+int64(size) > f.o.SegmentBytes {
		f.roll(f.base)
		newest = f.segments[len(f.segments)-1]
	}
	newest.note(f.at.revision, f.end)
	f.fresh = f.end
	first := f.at.revision
	for len(events) > 0 {
		n, size := 0, 0
		for n < len(events) && (n == 0 || size+eventBytes(&events[n]) <= f.recordBytes) {
			size += eventBytes(&events[n])
			n++
		}
		h := head{kind: kindEntry, more: n < len(events), count: uint32(n), state: *next}
		f.scratch = appendHead(f.scratch[:0], &h)
		for i := range events[:n] {
			f.scratch = appendEvent(f.scratch, &events[i])
		}
		f.put(first, f.scratch)
		first, events = next.revision, events[n:]
		f.counters.events += uint64(n)
	}
	f.freshEnd = f.end
	f.recorded = next.index
	if cap(f.scratch) > 2*recordBytesTarget {
		f.scratch = nil
	}
}

// put appends a record to the stream. first is for a block that begins with it; see block. REQUIRES: mu held.
func (f *Feed) put(first wire.Revision, payload []byte) {
	before := f.end
	f.end = f.ring.append(f.end, first, payload)
	f.segments[len(f.segments)-1].end = f.end
	f.counters.appended += uint64(f.end - before)
	f.evict()
}

// roll begins a segment, whose entries have the base given. Its file comes with its first bytes. REQUIRES: mu held.
func (f *Feed) roll(base uint64) {
	s := &segment{header: segmentHeader{state: f.at, offset: f.end, follows: base}, start: f.end}
	s.path = f.path(s.start)
	f.base = base
	f.segments = append(f.segments, s)
	f.recorded = f.at.index
	f.counters.segments++
	f.put(f.at.revision, appendHeader(nil, &s.header))
}

// evict bounds the ring. What was not written yet, or not published, stays in it. REQUIRES: mu held.
func (f *Feed) evict() {
	limit := min(f.flushed, f.fresh)
	if f.failed.Load() != nil {
		limit = f.fresh // nothing is written any more, and this process ends
	}
	f.ring.evict(limit)
}

// Publish shows what was appended with the entry at index, the newest one, and wakes its watchers.
func (f *Feed) Publish(index uint64) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	if index != f.at.index {
		f.mu.Unlock()
		panic(fmt.Sprintf("BUG: entry %d is published, entry %d was appended", index, f.at.index))
	}
	f.published, f.shown = f.end, f.at
	if f.watchers.count > 0 && f.fresh < f.freshEnd {
		f.dispatch()
	}
	f.fresh, f.freshEnd = f.end, f.end
	f.evict()
	f.mu.Unlock()
	f.callReady()
}

// callReady calls those who are to be woken. REQUIRES: caller is the applier; no lock is held, since they may take
// locks under which others call us.
func (f *Feed) callReady() {
	for i, ready := range f.ready {
		f.ready[i] = nil
		ready()
	}
	f.ready = f.ready[:0]
}

// Bounds tells where a watch may begin: behind any revision from first to last, which is the newest published one.
func (f *Feed) Bounds() (first, last wire.Revision) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first.revision, f.shown.revision
}

// EndNamespace ends the watchers of a namespace with ErrNoNamespace.
func (f *Feed) EndNamespace(ns uint32) {
	f.mu.Lock()
	var ready []func()
	if space := f.watchers.spaces[ns]; space != nil {
		for w := range space.all {
			ready = w.end(ErrNoNamespace, ready)
		}
	}
	f.mu.Unlock()
	callAll(ready)
}

// endAll ends every watcher and gives those who are to be called, once mu is free. REQUIRES: mu held.
func (f *Feed) endAll(err error) (ready []func()) {
	for _, space := range f.watchers.spaces {
		for w := range space.all {
			ready = w.end(err, ready)
		}
	}
	return ready
}

func callAll(ready []func()) {
	for _, r := range ready {
		r()
	}
}

// fail notes the first failure of a write. Nothing is written from then on.
func (f *Feed) fail(err error) error {
	if f.failed.CompareAndSwap(nil, &err) && f.o.Fatal != nil {
		f.o.Fatal(err)
	}
	return *f.failed.Load()
}

// Stats is a momentary view for metrics and status. Counters count from Open.
type Stats struct {
	// First and Last are those of Bounds.
	First, Last wire.Revision
	// Bytes are those of the segments and of what is on its way there; Segments is their number. RingBytes are those of
	// the ring.
	Bytes, RingBytes int64
	Segments         int
	// Watchers are those that are open, Behind those among them that read by themselves.
	Watchers, Behind int
	// Entries, Events and BytesAppended count what was appended; SegmentsBegun the segments.
	Entries, Events, BytesAppended, SegmentsBegun uint64
	// Overflows count how often a watcher that kept up has fallen behind, Compacted how many ended with ErrCompacted
	// when retention had passed them, Damaged the places in segments that could not be read.
	Overflows, Compacted, Damaged uint64
}

// Stats gathers Stats.
func (f *Feed) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.counters
	return Stats{
		First: f.first.revision, Last: f.shown.revision,
		Bytes: f.end - f.segments[0].start, RingBytes: f.ring.bytes, Segments: len(f.segments),
		Watchers: f.watchers.count, Behind: f.watchers.behind,
		Entries: c.entries, Events: c.events, BytesAppended: c.appended, SegmentsBegun: c.segments,
		Overflows: c.overflows, Compacted: c.compacted, Damaged: c.damaged,
	}
}
