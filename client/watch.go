package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// EventKind says what happened to a key.
type EventKind uint8

// The kinds of events.
const (
	EventPut    = EventKind(wire.EventPut)
	EventDelete = EventKind(wire.EventDelete)
	EventExpire = EventKind(wire.EventExpire)
)

// String gives put, delete or expire.
func (k EventKind) String() string { return wire.EventKind(k).String() }

// Event is one change of one key. Its slices belong to the caller, but events that came together share memory: keep a
// copy of what outlives them.
type Event struct {
	Kind EventKind
	Key  string
	// Revision is that of the change: above those of all events before it. A watch behind it goes on with the next.
	Revision Version
	// Value is the new record of a put; with KeysOnly its metadata alone. Empty otherwise.
	Value Value
	// Previous is what was there before, nil for nothing; only with WatchOptions.Previous. PreviousLost: there was
	// something, which is not kept any more.
	Previous     *Value
	PreviousLost bool
	// Last says that no other event of the same write or transaction follows. If what the watch leaves out was the last,
	// no event of it has it.
	Last bool
}

// WatchOptions choose what a watch tells: the changes of Key, or of the keys with Prefix that are ≥ Start and < End,
// where empty texts do not bound.
type WatchOptions struct {
	// Key is the one key to watch; the other three are empty then.
	Key string
	// Prefix bounds the keys to those that begin with it.
	Prefix string
	// Start is the first key that is watched.
	Start string
	// End is the first key beyond the watch.
	End string

	// After is the revision behind which the watch begins: that of a page, of a write, or of an event. 0 begins now:
	// behind everything that was acknowledged before Watch was called.
	After Version
	// FromStart begins at the beginning of history, which is seldom kept. After must be 0.
	FromStart bool

	// KeysOnly leaves values, tags and hints out.
	KeysOnly bool
	// Previous asks for what was there before each change.
	Previous bool
	// NoPut leaves out puts. Not all three kinds may be left out.
	NoPut bool
	// NoDelete leaves out deletions.
	NoDelete bool
	// NoExpire leaves out what ended by its deadline.
	NoExpire bool

	// Progress is how often Revision advances while nothing happens. Default 5 s; 100 ms to a minute.
	Progress time.Duration
	// Credit bounds the bytes of events that may wait here to be taken. Default 1 MiB, at most 64 MiB.
	Credit int
}

// request turns the options into a request.
func (o *WatchOptions) request() (wire.WatchRequest, *Error) {
	w := wire.WatchRequest{Prefix: []byte(o.Prefix), Start: []byte(o.Start), End: []byte(o.End), After: wire.Revision(o.After)}
	for _, s := range [...]string{o.Prefix, o.Start, o.End} {
		if len(s) > wire.KeyBytesMax {
			return w, local(wire.OpWatch, "", ErrTooLarge, wire.KeyBytesMax, "bound of a watch of %d bytes; at most %d", len(s), wire.KeyBytesMax)
		}
	}
	bad := func(format string, a ...any) (wire.WatchRequest, *Error) {
		return w, local(wire.OpWatch, o.Key, ErrBadRequest, 0, format, a...)
	}
	if o.Key != "" {
		if o.Prefix != "" || o.Start != "" || o.End != "" {
			return bad("a watch of one key has neither prefix nor range")
		}
		if e := checkKey(wire.OpWatch, o.Key); e != nil {
			return w, e
		}
		w.Flags, w.Start = wire.WatchKey, []byte(o.Key)
	}
	if o.FromStart && o.After != 0 {
		return bad("a watch begins at the start, or behind revision %d", o.After)
	}
	if o.NoPut && o.NoDelete && o.NoExpire {
		return bad("a watch that leaves out puts, deletes and expiries shows nothing")
	}
	if o.Credit < 0 || o.Credit > wire.StreamCreditMax {
		return bad("credit of %d bytes; at most %d", o.Credit, wire.StreamCreditMax)
	}
	if o.Progress != 0 && (o.Progress < wire.ProgressMsMin*time.Millisecond || o.Progress > wire.ProgressMsMax*time.Millisecond) {
		return bad("progress every %v; 100 ms to 1 min", o.Progress)
	}
	for _, f := range []struct {
		set  bool
		flag uint8
	}{
		{o.After == 0 && !o.FromStart, wire.WatchFromNow}, {o.KeysOnly, wire.WatchKeysOnly}, {o.Previous, wire.WatchPrevious},
		{o.NoPut, wire.WatchNoPut}, {o.NoDelete, wire.WatchNoDelete}, {o.NoExpire, wire.WatchNoExpire},
	} {
		if f.set {
			w.Flags |= f.flag
		}
	}
	w.ProgressMs = uint32(o.Progress / time.Millisecond)
	if w.Credit = uint32(o.Credit); w.Credit == 0 {
		w.Credit = wire.StreamCreditDefault
	}
	return w, nil
}

// Watch follows changes. It goes on over other connections and nodes as they come and go, without gap, repeat or
// reordering. Next is for one goroutine at a time; Revision and Close are for any.
type Watch struct {
	// Immutable after Client.Watch.
	c      *Client
	ctx    context.Context // ends with Close or the client
	cancel context.CancelFunc
	base   wire.WatchRequest

	rev atomic.Uint64 // everything up to it has been told

	// taking is held by Next and, at the end, by Close.
	taking sync.Mutex
	// Guarded by taking.
	feed    feed
	batch   wire.EventBatch // what is left of the frame at hand
	begun   bool            // the first frame of any attempt has come: base.After is where to go on
	history []byte
	ns      []byte        // number of the namespace, as the server encodes it; empty: not told yet
	err     error         // what ended the watch for good
	from    wire.Revision // base.After when the stream at hand began
	barren  int           // streams in a row that have ended without bringing anything
	rest    time.Duration // the pause that the last one of them asked for
}

// Watch begins a watch and returns when a server has said where it begins, so that what is written from then on will be
// told. ctx bounds that alone, and so does the client's timeout. A namespace that there is not is ErrNoNamespace; a
// revision that no node keeps any more, ErrCompacted.
func (c *Client) Watch(ctx context.Context, o WatchOptions) (*Watch, error) {
	req, e := o.request()
	if e != nil {
		return nil, e
	}
	w := &Watch{c: c, base: req}
	w.ctx, w.cancel = context.WithCancel(c.ctx)
	begin := ctx
	if t := c.o.timeout; t > 0 {
		var cancel context.CancelFunc
		begin, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	w.taking.Lock()
	defer w.taking.Unlock()
	if err := w.open(begin); err != nil {
		w.cancel()
		return nil, err
	}
	return w, nil
}

// Revision is the one up to which everything has been told by Next; while nothing happens it advances by itself. A watch
// behind it goes on where this one is.
func (w *Watch) Revision() Version { return Version(w.rev.Load()) }

// Close ends the watch. Next returns ErrClosed from then on. Closing twice does nothing.
func (w *Watch) Close() {
	w.cancel()
	w.taking.Lock()
	defer w.taking.Unlock()
	w.feed.end()
	if w.err == nil {
		w.err = &Error{Op: wire.OpWatch.String(), Message: "the watch is closed", kind: ErrClosed}
	}
}

// Next waits for the next event. When ctx ends the error matches its, and Next may be called again. Any other error ends
// the watch: ErrCompacted when what follows is not kept by any node any more, because the watch was too slow or away for
// too long; ErrNoNamespace when the namespace was dropped; ErrClosed.
func (w *Watch) Next(ctx context.Context) (Event, error) {
	w.taking.Lock()
	defer w.taking.Unlock()
	for w.err == nil {
		if w.batch.Count > 0 {
			e, err := w.event()
			if err == nil {
				return e, nil
			}
			w.broken(err)
			continue
		}
		w.progress(w.batch.Revision)
		if w.feed.cl == nil {
			if err := w.open(ctx); err != nil {
				return Event{}, err
			}
			continue
		}
		if err := w.take(ctx); err != nil {
			return Event{}, err
		}
	}
	return Event{}, w.err
}

// progress notes that everything up to rev has been told.
func (w *Watch) progress(rev wire.Revision) {
	if rev > w.base.After {
		w.base.After = rev
		w.rev.Store(rev)
	}
}

// take waits for a frame, or for the stream's end, which it judges.
func (w *Watch) take(ctx context.Context) error {
	f := &w.feed
	if fr, ok := f.next(); ok {
		if err := w.frame(fr); err != nil {
			w.broken(err)
		}
		return nil
	}
	if f.ended {
		w.ended(ctx)
		return nil
	}
	select {
	case <-f.st.ready:
	case <-f.cl.ch:
		f.ended = true
	case <-ctx.Done():
		return w.stopped(ctx.Err())
	case <-w.ctx.Done():
		w.fail(nil)
	}
	return nil
}

// stopped is the error of a Next or Watch whose context has ended; the watch itself goes on.
func (w *Watch) stopped(err error) error {
	e := &Error{Op: wire.OpWatch.String(), Message: "the time was up while nothing happened", cause: err}
	if errors.Is(err, context.DeadlineExceeded) {
		e.kind = ErrTimeout
	}
	return e
}

// fail ends the watch for good. What comes of its being closed is that it is closed.
func (w *Watch) fail(err error) {
	if w.ctx.Err() != nil {
		err = &Error{Op: wire.OpWatch.String(), Message: "the watch is closed", kind: ErrClosed}
	}
	w.feed.end()
	w.batch = wire.EventBatch{}
	w.err = err
	w.cancel()
}

// broken ends a connection whose peer does not keep to the protocol.
func (w *Watch) broken(err error) {
	if cl := w.feed.cl; cl != nil {
		cl.cn.kill(fmt.Errorf("%w: %w", ErrProtocol, err))
	}
	w.fail(&Error{Op: wire.OpWatch.String(), Message: err.Error(), kind: ErrProtocol})
}

// frame takes a frame.
func (w *Watch) frame(fr streamFrame) error {
	var b wire.EventBatch
	if err := wire.DecodeEventBatch(fr.payload, &b); err != nil {
		return err
	}
	if b.Count == 0 && len(b.Events) != 0 {
		return fmt.Errorf("%w: %d bytes behind a count of no events", ErrProtocol, len(b.Events))
	}
	if b.Revision < w.base.After && (w.begun || w.base.Flags&wire.WatchFromNow == 0) {
		return fmt.Errorf("%w: events up to revision %d follow those up to %d", ErrProtocol, b.Revision, w.base.After)
	}
	w.batch = b
	return nil
}

// event takes the next event of the batch at hand.
func (w *Watch) event() (Event, error) {
	var e wire.Event
	rest, err := wire.NextEvent(w.batch.Events, &e)
	if err != nil {
		return Event{}, err
	}
	if e.Revision <= w.base.After || e.Revision > w.batch.Revision || !w.base.Covers(e.Key) {
		return Event{}, fmt.Errorf("%w: an event of key %q at %d in a batch up to %d, behind %d", ErrProtocol, e.Key, e.Revision, w.batch.Revision, w.base.After)
	}
	out := Event{Kind: EventKind(e.Kind), Key: string(e.Key), Revision: Version(e.Revision), Last: e.Flags&wire.EventLast != 0, PreviousLost: e.Flags&wire.EventPreviousLost != 0}
	if e.Kind == wire.EventPut {
		var m wire.Meta
		kept, err := splitMeta(e.Ext, &m)
		if err != nil {
			return Event{}, err
		}
		out.Value = valueOf(&m, kept, e.Value)
	}
	if len(e.PreviousExt) > 0 {
		var m wire.Meta
		kept, err := splitMeta(e.PreviousExt, &m)
		if err != nil {
			return Event{}, err
		}
		v := valueOf(&m, kept, e.Previous)
		out.Previous = &v
	}
	w.batch.Events, w.batch.Count = rest, w.batch.Count-1
	if w.batch.Count == 0 && len(rest) != 0 {
		return Event{}, fmt.Errorf("%w: %d bytes behind the last event", ErrProtocol, len(rest))
	}
	w.progress(e.Revision)
	return out, nil
}

// ended judges how the stream ended; the next one begins where this has come to, unless it ended for good.
func (w *Watch) ended(ctx context.Context) {
	cl := w.feed.cl
	err := w.c.errorOf(cl)
	final := w.final(cl, err)
	node := cl.cn.link.node
	w.rest = 0
	if f := cl.res.fail; f != nil {
		w.rest = f.retryAfter
	}
	if w.barren++; w.base.After > w.from {
		w.barren = 0
	}
	w.feed.end()
	switch {
	case w.ctx.Err() != nil:
		w.fail(nil)
	case final:
		if err == nil { // a last frame with OK says nothing that this version knows
			err = &Error{Op: wire.OpWatch.String(), Message: "the server ended the watch without a reason", kind: ErrProtocol}
		}
		w.fail(err)
	case errors.Is(err, ErrCompacted):
		// Each node keeps a past of its own.
		if err := w.openElsewhere(ctx, node, err); err != nil && ctx.Err() == nil {
			w.fail(err)
		}
	}
}

// final reports whether an attempt's end is the watch's.
func (w *Watch) final(cl *call, err error) bool {
	r := &cl.res
	switch {
	case !r.answered:
		return false
	case r.status == wire.StatusOK:
		return true
	case r.status == wire.StatusCompacted, r.status == wire.StatusFutureRevision:
		return false
	case r.status == wire.StatusTooMany && w.begun:
		return false // limits are each node's own: a watch that has to move finds room at another, or in a while
	}
	return r.status.Class() == wire.ClassRefused || errors.Is(err, ErrProtocol)
}

// open makes attempts until a server has said where the watch begins or goes on, the time is up, or a server has
// refused for good. The error is Next's.
func (w *Watch) open(ctx context.Context) error {
	var err error // of the last attempt
	pause := w.rest
	for n := w.barren; ; n++ {
		if n > 0 {
			if n < w.c.route.count() {
				pause = 0 // it was meant for the node that was asked; there are others
			}
			if !w.sleep(ctx, max(pause, backoff(n-1, backoffMax))) {
				return w.outOfTime(ctx.Err(), err)
			}
		}
		var again bool
		again, pause, err = w.attempt(ctx, nil)
		if err != nil && w.ctx.Err() == nil && oneNodes(err) {
			again = again && !errors.Is(err, ErrCompacted)
			err = w.openElsewhere(ctx, nil, err)
		}
		switch {
		case err == nil:
			return nil
		case w.ctx.Err() == nil && ctx.Err() != nil:
			return w.outOfTime(ctx.Err(), err)
		case w.ctx.Err() != nil || !again:
			w.fail(err)
			return w.err
		}
	}
}

// oneNodes reports whether another node may say something else: each keeps a past of its own, counts its own watches, and
// has its own version while a cluster is being upgraded.
func oneNodes(err error) bool {
	return errors.Is(err, ErrCompacted) || errors.Is(err, ErrTooMany) || errors.Is(err, ErrUnsupported)
}

// sleep waits; false: ctx has ended. It ends early when the watch is closed.
func (w *Watch) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.ctx.Done():
	case <-ctx.Done():
		return false
	}
	return true
}

// outOfTime is stopped for a watch that has found no server; last is what the last one said, or nil.
func (w *Watch) outOfTime(end, last error) error {
	var e *Error
	if !errors.As(last, &e) || oneNodes(last) { // not all nodes were asked
		return w.stopped(end)
	}
	out := *e
	out.cause = end
	return &out
}

// openElsewhere asks every node that is known, but for from, once; said is the error when none of them begins the watch.
func (w *Watch) openElsewhere(ctx context.Context, from *node, said error) error {
	w.c.route.mu.Lock()
	nodes := slices.Clone(w.c.route.nodes)
	w.c.route.mu.Unlock()
	for _, n := range nodes {
		if n == from || ctx.Err() != nil || w.ctx.Err() != nil {
			continue
		}
		if _, _, err := w.attempt(ctx, n); err == nil {
			return nil
		}
	}
	return said
}

// attemptTimeout bounds one attempt to begin, so that a server that says nothing is not waited for while others could
// be asked.
const attemptTimeout = 10 * time.Second

// attempt asks one node: at, or any. again: another attempt may succeed, after the pause at the earliest.
func (w *Watch) attempt(ctx context.Context, at *node) (again bool, pause time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	stop := context.AfterFunc(w.ctx, cancel)
	defer stop()
	c := w.c
	cl := newCall(wire.OpWatch, "", wantPayload)
	cl.anyNode, cl.spread = true, at == nil
	c.steer(cl)
	cl.deadline = forever // ctx bounds the attempt
	var cn *conn
	if at != nil {
		// Made here, so that a node that was not asked yet is waited for, and used, so that no other one is asked.
		if cn, err = at.pick().get(ctx, cl, forever); err != nil {
			cl.release()
			return true, 0, err
		}
	}
	req := w.base
	if w.begun || req.Flags&wire.WatchFromNow == 0 {
		req.Flags &^= wire.WatchFromNow
		if len(w.history) > 0 {
			cl.head = wire.AppendExt(cl.head, wire.ExtHistory, w.history)
		}
		if len(w.ns) > 0 {
			// Another namespace that has the name by now is not the one that was watched.
			cl.head = wire.AppendExt(cl.head, wire.ExtNamespaceID, w.ns)
		}
	} else {
		cl.head = wire.AppendExtU8(cl.head, wire.ExtConsistency, wire.ConsistencyAnyNode)
	}
	cl.value, cl.owned = wire.AppendWatchRequest(nil, &req), true
	cl.stream = newStream(int(req.Credit))
	w.feed = feed{cl: cl, st: cl.stream}
	sent := false
	if cn != nil {
		sent = c.send(ctx, cl, cn)
	} else {
		sent = c.submit(ctx, cl)
	}
	if !sent {
		err := c.errorOf(cl)
		// A watch that has to move waits for room.
		again := cl.res.stop == nil || errors.Is(cl.res.stop, context.DeadlineExceeded) || w.begun && errors.Is(err, ErrTooMany)
		cl.release()
		w.feed = feed{}
		return again, 0, err
	}
	if cl.cn.ack.Features&wire.FeatureWatch == 0 {
		w.feed.end()
		return false, 0, &Error{Op: wire.OpWatch.String(), Message: "the server has no watches", kind: ErrUnsupported}
	}
	select {
	case <-cl.stream.ready:
	case <-cl.ch:
		w.feed.ended = true
	case <-ctx.Done():
		w.feed.end()
		return true, 0, w.stopped(ctx.Err())
	}
	fr, ok := w.feed.next()
	if !ok {
		err := c.errorOf(cl)
		again := !w.final(cl, err)
		if err == nil {
			err = &Error{Op: wire.OpWatch.String(), Message: "the server ended the watch before it began", kind: ErrProtocol}
		}
		if f := cl.res.fail; f != nil {
			pause = f.retryAfter
		}
		w.feed.end()
		return again, pause, err
	}
	if err := w.first(fr); err != nil {
		if errors.Is(err, ErrCompacted) {
			w.feed.end()
			return false, 0, err
		}
		cl.cn.kill(fmt.Errorf("%w: %w", ErrProtocol, err))
		w.feed.end()
		return false, 0, &Error{Op: wire.OpWatch.String(), Message: err.Error(), kind: ErrProtocol}
	}
	return false, 0, nil
}

// first takes the first frame of a stream: it says which history the revisions are of, and where the watch begins.
func (w *Watch) first(fr streamFrame) error {
	var history, ns []byte
	for ext := fr.ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return err
		}
		ext = rest
		switch {
		case t == wire.ExtHistory && len(v) == 16:
			history = v
		case t == wire.ExtNamespaceID && len(v) == 4:
			ns = v
		}
	}
	switch {
	case len(history) == 0:
		return fmt.Errorf("%w: the first frame of a watch does not tell the history", ErrProtocol)
	case len(w.history) != 0 && !bytes.Equal(w.history, history):
		// It was named, and the server should have refused.
		return &Error{Op: wire.OpWatch.String(), Message: fmt.Sprintf("the server's history is now %x; that of revision %d is %x", history, w.base.After, w.history), kind: ErrCompacted}
	}
	if err := w.frame(fr); err != nil {
		return err
	}
	// Copies: the frame may be large.
	w.history = bytes.Clone(history)
	if ns != nil {
		w.ns = bytes.Clone(ns)
	}
	if !w.begun && w.base.Flags&wire.WatchFromNow != 0 {
		// It begins behind what the batch says, which has no events then.
		if w.batch.Count != 0 {
			return fmt.Errorf("%w: a watch from now begins with events", ErrProtocol)
		}
		w.base.After = w.batch.Revision
	}
	w.begun, w.from = true, w.base.After
	w.rev.Store(w.base.After)
	return nil
}
