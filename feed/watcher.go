package feed

import (
	"encoding/binary"
	"os"

	"kvstore/internal/record"
	"kvstore/wire"
)

// WatchOptions says what to watch.
type WatchOptions struct {
	// Namespace is the one whose events are given.
	Namespace uint32
	// Request's slices are copied; its credit and progress are not looked at. REQUIRES: wire.DecodeWatchRequest would
	// take it.
	Request wire.WatchRequest
}

// Watcher is a cursor on the feed with a filter. Its events are those of its range and kinds, in order, each once, from
// where it began to where it ends. Next belongs to one goroutine at a time.
type Watcher struct {
	// Immutable.
	feed      *Feed
	namespace uint32
	kinds     [wire.EventExpire + 1]bool
	single    bool   // low is the one key
	low, high string // [low, high)
	endless   bool   // there is no high
	ready     func()

	// Owned by whoever calls Next. No event at or below after is given; nothing up to through is left to give.
	after, through wire.Revision

	// Guarded by Feed.mu.
	err error // why it has ended; nil: it has not
	// position: everything before it in the stream is done with.
	position int64
	// synced: queue has the offsets of all records at or behind position, up to what is published, that have events of
	// this watcher. Otherwise it has to look at all records there.
	synced bool
	queue  queue
	// waits: the last Next found nothing; ready is to be called when there is something.
	waits bool
	// unlisted: it is in ranges.sorted and doesn't count there.
	unlisted bool
}

// Watch begins a watch. ready is called once after each Next that found nothing, as soon as there may be something,
// which includes the end of the watch; it may be called once more while or after Close is, and from any goroutine. It
// must not block, nor call the feed. Errors: ErrCompacted, ErrFuture, ErrTooMany, ErrClosed.
func (f *Feed) Watch(o WatchOptions, ready func()) (*Watcher, error) {
	r := &o.Request
	w := &Watcher{feed: f, namespace: o.Namespace, ready: ready}
	w.kinds[wire.EventPut] = r.Flags&wire.WatchNoPut == 0
	w.kinds[wire.EventDelete] = r.Flags&wire.WatchNoDelete == 0
	w.kinds[wire.EventExpire] = r.Flags&wire.WatchNoExpire == 0
	if w.single = r.Flags&wire.WatchKey != 0; w.single {
		w.low = string(r.Start)
	} else {
		w.low, w.endless = max(string(r.Prefix), string(r.Start)), true
		if high, ok := prefixEnd(r.Prefix); ok {
			w.high, w.endless = high, false
		}
		if len(r.End) > 0 && (w.endless || string(r.End) < w.high) {
			w.high, w.endless = string(r.End), false
		}
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	after := r.After
	if r.Flags&wire.WatchFromNow != 0 {
		after = f.shown.revision
	}
	switch {
	case f.closed:
		return nil, ErrClosed
	case after > f.shown.revision:
		return nil, ErrFuture
	case after < f.first.revision:
		return nil, ErrCompacted
	case f.watchers.count >= f.o.WatchersMax:
		return nil, ErrTooMany
	}
	w.after, w.through = after, after
	if after == f.shown.revision {
		w.position, w.synced = f.published, true
	} else {
		s := f.seek(after)
		if s.gap(after) {
			return nil, ErrCompacted
		}
		w.position = max(s.seek(after), f.first.offset)
		f.watchers.behind++
	}
	f.watchers.add(w)
	return w, nil
}

// prefixEnd is the first key behind all that begin with prefix; ok is false if there is none.
func prefixEnd(prefix []byte) (end string, ok bool) {
	for n := len(prefix); n > 0; n-- {
		if b := prefix[n-1]; b < 0xff {
			return string(prefix[:n-1]) + string([]byte{b + 1}), true
		}
	}
	return "", false
}

// seek gives the last segment that begins at or before revision: the first event behind it is there or follows.
// REQUIRES: mu held, revision is not before the feed.
func (f *Feed) seek(revision wire.Revision) *segment {
	for i := len(f.segments) - 1; i > 0; i-- {
		if s := f.segments[i]; s.header.revision <= revision && s.start <= f.published {
			return s
		}
	}
	return f.segments[0]
}

// covers reports whether the watcher's range holds key.
func (w *Watcher) covers(key []byte) bool {
	if w.single {
		return string(key) == w.low
	}
	return string(key) >= w.low && (w.endless || string(key) < w.high)
}

// wants reports whether e is one of the watcher's events that it has not been given.
func (w *Watcher) wants(e *Event) bool {
	return e.Namespace == w.namespace && e.Revision > w.after && w.kinds[e.Kind] && w.covers(e.Key)
}

// Close ends the watcher; a Next under way gets ErrClosed.
func (w *Watcher) Close() {
	w.feed.mu.Lock()
	w.end(ErrClosed, nil)
	w.feed.mu.Unlock()
}

// end ends the watcher, unless it has ended, and appends who is to be called once mu is free. REQUIRES: mu held.
func (w *Watcher) end(err error, ready []func()) []func() {
	if w.err != nil {
		return ready
	}
	w.err, w.queue = err, queue{}
	w.feed.watchers.remove(w)
	if w.waits {
		w.waits = false
		return append(ready, w.ready)
	}
	return ready
}

// dispatch tells the watchers that keep up of the entry that was just published. REQUIRES: mu held, caller is the
// applier.
func (f *Feed) dispatch() {
	for at := f.fresh; at < f.freshEnd; {
		b := f.ring.find(at)
		// A record begins with the length of its payload; package record has checked nothing, these are our own bytes.
		raw := b.data[at-b.start:]
		n := record.HeaderSize + int(binary.LittleEndian.Uint32(raw))
		var h head
		events, err := decodeHead(raw[record.HeaderSize:n], &h)
		for range h.count {
			var e Event
			if events, err = nextEvent(events, &e); err != nil {
				break
			}
			if space := f.watchers.spaces[e.Namespace]; space != nil {
				f.matched = space.find(f.matched[:0], e.Key)
				for _, w := range f.matched {
					if w.synced && w.kinds[e.Kind] {
						f.tell(w, at)
					}
				}
			}
		}
		if err != nil {
			panic("BUG: a record that was just appended: " + err.Error())
		}
		at += int64(n)
	}
	clear(f.matched)
}

// tell puts a record into the queue of a watcher that keeps up. REQUIRES: mu held, caller is the applier.
func (f *Feed) tell(w *Watcher, at int64) {
	switch {
	case w.queue.endsWith(at):
		return
	case w.queue.full():
		w.fallBack()
		return
	}
	w.queue.push(at)
	if w.waits {
		w.waits = false
		f.ready = append(f.ready, w.ready)
	}
}

// fallBack has the watcher read the stream by itself, from the first record that it was told of and has not read.
// REQUIRES: mu held; w is synced and its queue is not empty.
func (w *Watcher) fallBack() {
	w.position, w.synced, w.queue = max(w.position, w.queue.first()), false, queue{}
	w.feed.watchers.behind++
	w.feed.counters.overflows++
}

// scanMax is how much of the stream a Next looks at before it returns, events or none: whoever calls it for many
// watchers gets round to the others. ready is called at once then.
const scanMax = 8 << 20

// Next gives events in order of revision until fn returns false (that event was taken) or there are none now. The event
// is a view that is valid during fn, which must not call the feed.
//
// through: all events of the watcher up to it have been given. When there are none left it is the newest published
// revision. A Next may return without an event before that, when it has looked at much that doesn't concern the
// watcher; ready is called then like after one that found nothing.
//
// Errors: ErrCompacted when events that were not given are not kept any more, ErrNoNamespace, ErrClosed; the watch has
// ended.
func (w *Watcher) Next(fn func(e *Event) (more bool)) (through wire.Revision, err error) {
	f := w.feed
	n := next{w: w, fn: fn}
	defer n.release()
	for {
		v, err := n.look()
		switch {
		case err != nil:
			return 0, err
		case v.nothing:
			return w.through, nil
		}
		stopped, damage := n.walk(&v)
		if damage != nil {
			n.damaged(&v, damage)
			continue
		}
		if stopped {
			n.leave()
			return w.through, nil
		}
		if n.scanned >= f.scanBytes {
			n.leave()
			// Owned by the watcher; ends at once, since ready does not block. Its caller may hold what ready takes, so
			// it can't be called here.
			go w.ready()
			return w.through, nil
		}
	}
}

// next is one call of Next.
type next struct {
	w       *Watcher
	fn      func(e *Event) bool
	done    int64 // everything before it in the stream was walked through
	scanned int64
	buffer  *readBuffer
}

// view is a part of the stream that is to be walked through: whole records.
type view struct {
	nothing bool
	at      int64 // offset of data[0]
	data    []byte
	single  bool // only the first record is to be looked at: it is known to have an event
	// Of a segment.
	segment *segment
	file    *os.File
	limit   int64
}

// look finds what is to be read next. Of a segment it holds a reference: see walk.
func (n *next) look() (v view, err error) {
	w := n.w
	f := w.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.err != nil {
		return v, w.err
	}
	w.position = max(w.position, n.done)
	start := f.ring.start(f.end)
	if w.synced {
		for !w.queue.empty() && w.queue.first() < w.position {
			w.queue.pop()
		}
		switch {
		case w.queue.empty():
		case w.queue.first() < start:
			w.fallBack() // the ring has gone on
		default:
			v.at, v.single = w.queue.first(), true
			b := f.ring.find(v.at)
			v.data = b.data[v.at-b.start:]
			return v, nil
		}
	}
	if !w.synced && w.position == f.published {
		w.synced = true
		f.watchers.behind--
	}
	if w.synced {
		w.waits, v.nothing = true, true
		w.through = max(w.through, f.shown.revision)
		return v, nil
	}
	if w.position < f.first.offset {
		f.counters.compacted++
		w.end(ErrCompacted, nil) // it does not wait
		return v, w.err
	}
	v.at = w.position
	if v.at >= start {
		b := f.ring.find(v.at)
		v.data = b.data[v.at-b.start : min(b.end(), f.published)-b.start]
		return v, nil
	}
	if f.failed.Load() != nil && v.at >= f.flushed {
		w.end(ErrClosed, nil)
		return v, w.err
	}
	i := len(f.segments) - 1
	for f.segments[i].start > v.at {
		i--
	}
	v.segment = f.segments[i]
	v.limit = min(v.segment.end, f.flushed, f.published)
	v.file = v.segment.file
	v.segment.refs++
	return v, nil
}

// walk gives the events of v. stopped: fn wants no more. damage: what stands behind n.done can't be read.
func (n *next) walk(v *view) (stopped bool, damage error) {
	if v.segment != nil {
		defer n.unref(v.segment)
		if damage = n.read(v); damage != nil {
			return false, damage
		}
	}
	n.done = v.at
	for len(v.data) > 0 {
		payload, rest, err := record.Decode(v.data)
		if err != nil {
			if v.segment != nil && n.done > v.at {
				return false, nil // the rest of it lies beyond what was read; if it is damaged the next round shows it
			}
			return false, err
		}
		if stopped, err = n.give(payload); stopped || err != nil {
			return stopped, err
		}
		length := int64(len(v.data) - len(rest))
		n.done += length
		n.scanned += length
		if v.single {
			return false, nil
		}
		v.data = rest
	}
	return false, nil
}

// give gives the events of a record.
func (n *next) give(payload []byte) (stopped bool, err error) {
	w := n.w
	var h head
	events, err := decodeHead(payload, &h)
	if err != nil {
		return false, err
	}
	for range h.count {
		var e Event
		if events, err = nextEvent(events, &e); err != nil {
			return false, err
		}
		if !w.wants(&e) {
			continue
		}
		w.after, w.through = e.Revision, e.Revision
		if !n.fn(&e) {
			return true, nil
		}
	}
	if !h.more {
		w.through = max(w.through, h.revision)
	}
	return false, nil
}

// leave notes how far the watcher has come.
func (n *next) leave() {
	f := n.w.feed
	f.mu.Lock()
	n.w.position = max(n.w.position, n.done)
	f.mu.Unlock()
}
