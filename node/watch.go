package node

import (
	"errors"
	"fmt"
	"time"

	"kvstore/feed"
	"kvstore/internal/failpoint"
	"kvstore/wire"
)

const (
	// watchFutureWait bounds how long a watch waits for the revision that it is to begin behind.
	watchFutureWait = 5 * time.Second
	// watchFutureTick is how often it looks once this node has applied it: the feed shows an entry right after
	// the engine.
	watchFutureTick = 2 * time.Millisecond
)

// watch is a stream of events. Everything but q, history and was is owned by its turns.
type watch struct {
	st *stream
	// Immutable after startWatch.
	q       wire.WatchRequest
	history []byte // that q.After belongs to; empty: not said
	was     uint32 // the namespace that has been watched; 0: not said

	begun   bool
	greeted bool
	ns      uint32
	// after is the revision up to which everything was sent. watcher, if there is one, has given that and, outside of a
	// turn, nothing more: where a turn can't send what it took, it drops it with the watcher and another begins
	// behind after. So a stream that waits costs no memory for events.
	after   wire.Revision
	watcher *feed.Watcher

	// While the revision to begin behind is waited for: until when, on Shard.now, and what takes the wait back.
	until  int64
	cancel func()
}

// turn implements streamSource.
func (x *watch) turn(w *sender) (verdict, *wire.Response) {
	st := x.st
	start := st.start.Load()
	switch {
	case start == nil:
		return turnRest, nil
	case start.final != nil:
		return turnRest, start.final
	case !x.begun:
		if ref := x.begin(start); ref != nil {
			return turnRest, refusal(ref)
		}
	}
	if x.watcher == nil {
		if ref := x.open(); ref != nil {
			return turnRest, refusal(ref)
		}
		if x.watcher == nil {
			return turnRest, nil
		}
	}
	grants, ok := st.room()
	if !ok {
		return turnRest, nil
	}
	if !x.greeted {
		_, history, _ := w.s.shard.engine.Identity()
		w.ext = wire.AppendExtU32(wire.AppendExt(w.ext[:0], wire.ExtHistory, history[:]), wire.ExtNamespaceID, x.ns)
		w.frame = wire.AppendEventBatchHeader(w.frame[:0], x.after, 0)
		if ok, final := st.push(&wire.Response{Ext: w.ext, Payload: w.frame}, grants); !ok {
			return turnRest, final
		}
		x.greeted = true
		st.all.timers.arm(st, st.sentAt.Load()+st.interval)
	}
	credit := st.credit.Load()
	if credit <= 0 {
		return turnRest, nil
	}
	g, err := x.gather(w, int(min(credit, wire.EventBytesMax)))
	if err != nil && len(w.raw) == 0 {
		return turnRest, refusal(x.ended(err))
	}
	next, final := x.deliver(w, &g, grants)
	if err != nil && final == nil && x.watcher != nil {
		final = refusal(x.ended(err)) // what came before it is sent
	}
	return next, final
}

// begin takes what the start has found out.
func (x *watch) begin(start *streamStart) (ref *wire.Refusal) {
	if start.ns == wire.NamespaceNone {
		return &wire.Refusal{Status: wire.StatusNoNamespace}
	}
	if x.was != 0 && x.was != start.ns {
		if start.ns < x.was {
			return lagging // numbers grow: here the name still stands for one before
		}
		return &wire.Refusal{Status: wire.StatusNoNamespace, Text: "the namespace that was watched has been dropped; another one has its name: begin anew"}
	}
	if x.st.release, ref = x.st.all.s.limits.openWatch(start.ns); ref != nil {
		return ref
	}
	x.begun, x.ns, x.after = true, start.ns, x.q.After
	if x.q.Flags&wire.WatchFromNow != 0 {
		x.after = start.revision
	}
	return nil
}

// open begins the watch in the feed behind after. Where that is not reached yet, there is no watcher and the stream
// will be scheduled.
func (x *watch) open() *wire.Refusal {
	st, t := x.st, x.st.all
	sh := t.s.shard
	_, history, ok := sh.engine.Identity()
	switch {
	case !ok:
		return sh.notServing()
	case len(x.history) != 0 && string(x.history) != string(history[:]):
		return &wire.Refusal{Status: wire.StatusCompacted, Text: fmt.Sprintf("revision %d belongs to another history than this node's, %x: read the present and begin anew", x.q.After, history)}
	}
	o := feed.WatchOptions{Namespace: x.ns, Request: x.q}
	o.Request.After = x.after
	o.Request.Flags &^= wire.WatchFromNow
	if x.tellsPrevious() {
		// An event that is left out may be what was there before one that is not.
		o.Request.Flags &^= wire.WatchNoPut | wire.WatchNoDelete | wire.WatchNoExpire
	}
	watcher, err := t.feed.Watch(o, st.schedule)
	if err == nil {
		x.watcher = watcher
		x.endWait()
		// A watch that begins in the feed behind the drop of its namespace would hear of no end. Looked at once the feed
		// knows it: a drop from now on ends it there.
		if n, ok := sh.engine.NamespaceByID(x.ns); !ok || n.Dropping {
			return x.ended(feed.ErrNoNamespace)
		}
		return nil
	}
	if errors.Is(err, feed.ErrCompacted) && !x.greeted && x.q.Flags&wire.WatchFromNow != 0 {
		return lagging // the state was replaced meanwhile, and the client named no revision and must hear of none
	}
	if !errors.Is(err, feed.ErrFuture) {
		return x.ended(err)
	}
	now := sh.now()
	applied := sh.engine.Applied().Revision
	if x.until == 0 {
		x.until = now + int64(watchFutureWait)
		st.awaiting.Store(true)
		if x.after > applied {
			// At once, if it is applied by now.
			cancel, ok := sh.engine.WaitApplied(sh.indexOf(x.after), st.schedule)
			if !ok {
				return busy
			}
			x.cancel = cancel
		}
	}
	if now >= x.until {
		return &wire.Refusal{Status: wire.StatusFutureRevision, Text: fmt.Sprintf("this node has applied revision %d and not reached %d in time: ask another node, or later", applied, x.after)}
	}
	at := x.until
	if x.after <= applied {
		at = min(at, now+int64(watchFutureTick))
	}
	t.timers.arm(st, at)
	return nil
}

// endWait forgets the wait for a revision.
func (x *watch) endWait() {
	if x.cancel != nil {
		x.cancel()
		x.cancel = nil
	}
	x.until = 0
	x.st.awaiting.Store(false)
}

// reopen drops the watcher with what it has given and was not sent.
func (x *watch) reopen() {
	x.watcher.Close()
	x.watcher = nil
}

// close implements streamSource.
func (x *watch) close() {
	x.endWait()
	if x.watcher != nil {
		x.reopen()
	}
}

// ended tells why the feed ended the watch or would not begin it.
func (x *watch) ended(err error) *wire.Refusal {
	switch {
	case errors.Is(err, feed.ErrCompacted):
		first, last := x.st.all.feed.Bounds()
		return &wire.Refusal{Status: wire.StatusCompacted, Text: fmt.Sprintf("what followed revision %d is not kept on this node: a watch may begin behind revisions from %d to %d", x.after, first, last)}
	case errors.Is(err, feed.ErrNoNamespace):
		return &wire.Refusal{Status: wire.StatusNoNamespace, Text: "the namespace was dropped"}
	case errors.Is(err, feed.ErrTooMany):
		return &wire.Refusal{Status: wire.StatusTooMany, Text: "this node has as many watches open as it may"}
	case errors.Is(err, feed.ErrClosed):
		return &wire.Refusal{Status: wire.StatusDraining}
	}
	x.st.all.s.shard.log.Error("a watch can't go on: its feed can't be read", "error", err)
	return &wire.Refusal{Status: wire.StatusRetryLater, Text: "this node can't read its feed of changes: ask another node"}
}

func (x *watch) tellsPrevious() bool { return x.q.Flags&wire.WatchPrevious != 0 }
func (x *watch) keysOnly() bool      { return x.q.Flags&wire.WatchKeysOnly != 0 }

// hides reports whether the watch leaves out events of a kind.
func (x *watch) hides(k wire.EventKind) bool {
	switch k {
	case wire.EventPut:
		return x.q.Flags&wire.WatchNoPut != 0
	case wire.EventDelete:
		return x.q.Flags&wire.WatchNoDelete != 0
	}
	return x.q.Flags&wire.WatchNoExpire != 0
}

// gathered is what a turn took from the feed, beside the events in sender.raw.
type gathered struct {
	// from is watch.after when it began.
	from wire.Revision
	// through is the newest revision that is covered: that of the last event, if stopped, or the feed's newest.
	through wire.Revision
	stopped bool // there may be more
}

// gather fills w.raw with encoded events, about most bytes, without what was there before.
func (x *watch) gather(w *sender, most int) (g gathered, err error) {
	w.raw = w.raw[:0]
	g.from = x.after
	g.through, err = x.watcher.Next(func(e *feed.Event) bool {
		w.raw, w.ext = x.appendEvent(w.raw, w.ext, e)
		g.stopped = len(w.raw) >= most
		return !g.stopped
	})
	if err != nil {
		g.stopped = true // through says nothing
	}
	return g, err
}

// appendEvent encodes an event of the feed as the watch wants it. ext is scratch.
func (x *watch) appendEvent(dst, ext []byte, e *feed.Event) (_, _ []byte) {
	out := wire.Event{Kind: e.Kind, Revision: e.Revision, Key: e.Key}
	if e.Last {
		out.Flags |= wire.EventLast
	}
	if e.HadPrevious {
		out.Flags |= wire.EventHadPrevious
	}
	if e.Kind == wire.EventPut {
		ext = wire.AppendExtMeta(ext[:0], &e.Record.Meta)
		if !x.keysOnly() {
			ext = append(ext, e.Record.Ext...)
			out.Value = e.Record.Value
		}
		out.Ext = ext
	}
	return wire.AppendEvent(dst, &out), ext
}

// deliver sends what gather has taken, in frames of at most wire.EventBytesMax or one event. What it can't send it
// drops; see watch.after.
func (x *watch) deliver(w *sender, g *gathered, grants uint64) (verdict, *wire.Response) {
	st := x.st
	most := min(wire.EventBytesMax, st.frameMax)
	past := pastEvents{x: x, w: w, from: g.from}
	w.frame = wire.AppendEventBatchHeader(w.frame[:0], 0, 0)
	count, covered := 0, x.after
	// flush sends the frame; ok is false when the turn is over.
	flush := func(through wire.Revision) (ok bool, final *wire.Response) {
		wire.PutEventBatchHeader(w.frame, through, count)
		failpoint.Hit(failpoint.WatchSendBefore)
		if ok, final = st.push(&wire.Response{Payload: w.frame}, grants); !ok {
			x.reopen()
			return false, final
		}
		failpoint.Hit(failpoint.WatchSendAfter)
		st.ticked.Store(false)
		st.all.counts.events.Add(uint64(count))
		st.all.counts.eventBytes.Add(uint64(len(w.frame)))
		x.after, count, w.frame = through, 0, w.frame[:wire.EventBatchHeaderBytes]
		return true, nil
	}
	for at := 0; at < len(w.raw); {
		var e wire.Event
		left, err := wire.NextEvent(w.raw[at:], &e)
		if err != nil {
			panic("BUG: an event that was just encoded does not decode: " + err.Error())
		}
		here := at
		at = len(w.raw) - len(left)
		if x.tellsPrevious() {
			past.note(&e, here)
		}
		if x.hides(e.Kind) {
			covered = e.Revision
			continue
		}
		if x.tellsPrevious() && e.Flags&wire.EventHadPrevious != 0 {
			past.fill(&e, st.frameMax-wire.EventBatchHeaderBytes)
		}
		size := e.Bytes()
		if full := count > 0 && len(w.frame)+size > most; full {
			if ok, final := flush(covered); !ok {
				return turnRest, final
			}
			if st.credit.Load() <= 0 {
				x.reopen()
				return turnRest, nil
			}
		}
		if wire.EventBatchHeaderBytes+size > st.frameMax {
			return turnRest, refusal(tooLong(fmt.Sprintf("the event of revision %d, with %d bytes,", e.Revision, size), st.frameMax))
		}
		w.frame = wire.AppendEvent(w.frame, &e)
		covered = e.Revision
		count++
	}
	if !g.stopped {
		covered = max(covered, g.through)
	}
	switch {
	case count > 0:
		if ok, final := flush(covered); !ok {
			return turnRest, final
		}
	case !g.stopped && st.ticked.Swap(false) && st.sentAt.Load()+st.interval <= w.s.shard.now():
		wire.PutEventBatchHeader(w.frame, covered, 0)
		ok, final := st.push(&wire.Response{Payload: w.frame}, grants)
		if !ok {
			return turnRest, final // the watcher has given nothing that was not sent
		}
		st.all.counts.progress.Add(1)
		x.after = covered
	default:
		x.after = covered
	}
	if g.stopped {
		return turnAgain, nil
	}
	return turnRest, nil // the feed calls when there is more
}
