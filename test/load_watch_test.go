package test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// The watches: callers put, delete, let expire and write in transactions; watchers of overlapping ranges follow, from
// now or from the past, some of them leaving and coming back behind the last event that they saw, wherever they are
// connected. In the end each watcher has been told of exactly the committed writes of its range, each once, in the order
// of their revisions, whatever became of leaders, nodes and connections: what was acknowledged is there with its
// version, what was surely not applied is not, and what is unknown all of them have been told of, or none.

func init() { workloads["watch"] = func() workload { return &watchLoad{callers: 10, watchers: 20} } }

const (
	watchGroups = 10
	watchKeys   = 40 // of each group
	watchLeast  = 200
	// watchEnd is the key whose event ends the watchers. It sorts behind all groups.
	watchEnd = "watch/~end"
)

// watchWrite is one change of one key that was asked for, and what was told of it.
type watchWrite struct {
	key, value string // value "" for a deletion
	ttl        bool
	outcome    outcome
	version    client.Version // of an acknowledged one; 0 where a deletion found nothing, or the answer was lost
}

// seen is one event as a watcher was told of it.
type seen struct {
	rev        client.Version
	kind       client.EventKind
	key, value string
	last       bool
	previous   string // value before, if asked for and kept; "?" where it is lost
}

// watchCaller makes one write after the other. Owned by it until the load has ended.
type watchCaller struct {
	number, next int
	writes       []watchWrite
}

// watcher follows one range. Owned by its goroutine until the load has ended.
type watcher struct {
	name   string
	o      client.WatchOptions
	leaves bool // it closes its watch now and then and begins anew behind what it has seen
	begun  client.Version
	events []seen
	now    atomic.Pointer[client.Watch] // for await
	// holes are revisions that it was told it can't be told of: from, to.
	holes [][2]client.Version
	end   client.Version // it has been told of everything up to this
}

// covers tells whether the watcher's range holds key.
func (w *watcher) covers(key string) bool {
	if w.o.Key != "" {
		return key == w.o.Key
	}
	return strings.HasPrefix(key, w.o.Prefix) && key >= w.o.Start && (w.o.End == "" || key < w.o.End)
}

// asked tells whether the watcher is to be told of an event.
func (w *watcher) asked(e *seen) bool {
	if !w.covers(e.key) || e.rev <= w.begun || e.rev > w.end {
		return false
	}
	for _, h := range w.holes {
		if e.rev > h[0] && e.rev <= h[1] {
			return false
		}
	}
	return !(w.o.NoPut && e.kind == client.EventPut || w.o.NoDelete && e.kind == client.EventDelete || w.o.NoExpire && e.kind == client.EventExpire)
}

// watchLoad is the workload.
type watchLoad struct {
	callers, watchers int
	hurry             bool // callers make no pauses

	r        *faultRun // set by drive
	writers  []*watchCaller
	follow   []*watcher
	stop     context.CancelFunc // of the watchers
	stopped  context.Context
	watching sync.WaitGroup

	done, unknown, told atomic.Int64
	compacted           atomic.Int64
}

func (*watchLoad) name() string { return "watch" }

func watchKey(g, i int) string { return fmt.Sprintf("watch/%d/%02d", g, i) }

// watchOptions draws the range of watcher i: each group is watched by as many as any other, in different ways.
func watchOptions(rng *rand.Rand, i int) client.WatchOptions {
	g := i % watchGroups
	group := fmt.Sprintf("watch/%d/", g)
	next := fmt.Sprintf("watch/%d/", g+1)
	switch (i / watchGroups) % 6 {
	case 0:
		return client.WatchOptions{Prefix: group}
	case 1:
		return client.WatchOptions{Start: group, End: next, Previous: true}
	case 2:
		return client.WatchOptions{Start: watchKey(g, watchKeys/2), End: watchKey(g+1, watchKeys/2), Credit: 1 + rng.IntN(4096)}
	case 3:
		return client.WatchOptions{Prefix: group, NoPut: true}
	case 4:
		return client.WatchOptions{Prefix: group, KeysOnly: true}
	default:
		return client.WatchOptions{Prefix: group, NoDelete: true, NoExpire: true}
	}
}

func (l *watchLoad) drive(r *faultRun) {
	l.r = r
	rng := r.stream("watchers")
	l.stopped, l.stop = context.WithCancel(context.Background())
	r.t.Cleanup(func() {
		l.stop()
		l.watching.Wait()
	})
	clients := make([]*client.Client, 4)
	for i := range clients {
		clients[i] = openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("watcher"))
	}
	for i := range l.watchers {
		w := &watcher{name: fmt.Sprintf("watcher %d", i), o: watchOptions(rng, i), leaves: i%4 == 3}
		l.follow = append(l.follow, w)
	}
	l.follow = append(l.follow, &watcher{name: "watcher of all", o: client.WatchOptions{Prefix: "watch/", Previous: true}})
	for i, w := range l.follow {
		w.o.Progress = 500 * time.Millisecond
		first, err := clients[i%len(clients)].Watch(l.stopped, w.o)
		if err != nil {
			r.t.Fatalf("%s: cannot begin: %v", w.name, err)
		}
		w.begun = first.Revision()
		own := r.stream(w.name)
		l.watching.Go(func() { w.run(l, clients[i%len(clients)], first, own) }) // ends with l.stopped, or behind watchEnd
	}
	for i := range l.callers {
		c := clients[i%len(clients)]
		if i%5 == 4 {
			c = openAt(r.t, r.c.Addrs(), client.WithTimeout(hastyTimeout), client.WithoutSession(), client.WithName("watch hasty"))
		}
		caller := &watchCaller{number: i}
		l.writers = append(l.writers, caller)
		least, most := 5*time.Millisecond, 40*time.Millisecond
		if l.hurry {
			least, most = 0, 0
		}
		r.callAs(fmt.Sprintf("watch caller %d", i), least, most, func(rng *rand.Rand) bool { return l.write(c, caller, rng) })
	}
}

// write makes one write of one key, or of several at once. Each key of a group belongs to one caller alone, so that
// what becomes of an unknown write of it can be told from its own order.
func (l *watchLoad) write(c *client.Client, caller *watchCaller, rng *rand.Rand) bool {
	ctx := context.Background()
	draw := func() string {
		i := rng.IntN(watchKeys / l.step())
		return watchKey(rng.IntN(watchGroups), (i*l.step()+caller.number)%watchKeys)
	}
	value := func() string {
		caller.next++
		return fmt.Sprintf("%d-%d", caller.number, caller.next)
	}
	from := len(caller.writes)
	var results []client.ItemResult
	var err error
	switch rng.IntN(10) {
	case 0, 1:
		key := draw()
		caller.writes = append(caller.writes, watchWrite{key: key})
		var v client.Version
		_, v, err = c.Delete(ctx, key)
		results = []client.ItemResult{{Version: v}}
	case 2, 3:
		tx := c.Txn()
		used := map[string]bool{}
		for range 2 + rng.IntN(4) {
			w := watchWrite{key: draw()}
			if used[w.key] {
				continue
			}
			used[w.key] = true
			if rng.IntN(4) == 0 {
				tx.Delete(w.key)
			} else {
				w.value = value()
				tx.Put(w.key, []byte(w.value))
			}
			caller.writes = append(caller.writes, w)
		}
		var res client.TxnResult
		res, err = tx.Commit(ctx)
		results = res.Results
	case 4:
		w := watchWrite{key: draw(), value: value(), ttl: true}
		caller.writes = append(caller.writes, w)
		var v client.Version
		v, err = c.Put(ctx, w.key, []byte(w.value), client.WithTTL(between(rng, 50*time.Millisecond, 2*time.Second)))
		results = []client.ItemResult{{Version: v}}
	default:
		w := watchWrite{key: draw(), value: value()}
		caller.writes = append(caller.writes, w)
		var v client.Version
		v, err = c.Put(ctx, w.key, []byte(w.value))
		results = []client.ItemResult{{Version: v}}
	}
	o, failed := l.r.wrote("watch", err)
	if failed {
		l.r.anomaly("a write without conditions failed on one: %v", err)
	}
	for i := range caller.writes[from:] {
		w := &caller.writes[from+i]
		if w.outcome = o; o == acked && i < len(results) {
			w.version = results[i].Version
		}
	}
	n := int64(len(caller.writes) - from)
	if o == unknown {
		l.unknown.Add(n)
	} else {
		l.done.Add(n)
	}
	return o == acked
}

// step is the distance between the keys of one caller.
func (l *watchLoad) step() int { return min(l.callers, watchKeys) }

// run follows until the end is seen.
func (w *watcher) run(l *watchLoad, c *client.Client, first *client.Watch, rng *rand.Rand) {
	r, ctx := l.r, l.stopped
	at := w.begun
	watch := first
	w.now.Store(first)
	leave := 200 + rng.IntN(200)
	for ctx.Err() == nil {
		if watch == nil {
			o := w.o
			if o.After = at; at == 0 {
				o.FromStart = true
			}
			next, err := c.Watch(ctx, o)
			if errors.Is(err, client.ErrCompacted) {
				if watch = w.missed(l, c, at); watch != nil {
					at = watch.Revision()
				}
				continue
			}
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, client.ErrTimeout) && !errors.Is(err, client.ErrBusy) {
					r.anomaly("%s: cannot begin anew behind %d: %v", w.name, at, err)
					return
				}
				continue
			}
			watch = next
		}
		w.now.Store(watch)
		e, err := watch.Next(ctx)
		if err != nil {
			at = max(at, watch.Revision())
			watch.Close()
			watch = nil
			if errors.Is(err, client.ErrCompacted) {
				watch = w.missed(l, c, at)
				if watch != nil {
					at = watch.Revision()
				}
			} else if ctx.Err() == nil {
				r.anomaly("%s: a watch ended behind %d: %v", w.name, at, err)
				return
			}
			continue
		}
		at = e.Revision
		s := seen{rev: e.Revision, kind: e.Kind, key: e.Key, value: string(e.Value.Data), last: e.Last}
		if w.o.KeysOnly {
			s.value = ""
		}
		if w.o.Previous {
			switch {
			case e.PreviousLost:
				s.previous = "?"
			case e.Previous != nil:
				s.previous = string(e.Previous.Data)
			}
		}
		w.events = append(w.events, s)
		l.told.Add(1)
		if w.leaves {
			if leave--; leave <= 0 {
				leave = 200 + rng.IntN(200)
				watch.Close()
				watch = nil
			}
		}
	}
	if watch != nil {
		w.end = max(at, watch.Revision())
		watch.Close()
	} else {
		w.end = at
	}
}

// missed notes that the watcher can't be told of what followed at, and begins anew from now. Where no node got
// its state from another one this must not happen: nobody is slow, and a node that comes back has kept its feed.
func (w *watcher) missed(l *watchLoad, c *client.Client, at client.Version) *client.Watch {
	l.compacted.Add(1)
	if !l.r.mayCompact() {
		l.r.anomaly("%s: what followed %d is not kept any more", w.name, at)
	}
	for l.stopped.Err() == nil {
		next, err := c.Watch(l.stopped, w.o)
		if err == nil {
			w.holes = append(w.holes, [2]client.Version{at, next.Revision()})
			return next
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// mayCompact tells whether a node has got its state from another one, as those do that were away for longer than the log
// is kept: its feed begins there.
func (r *faultRun) mayCompact() bool {
	return slices.ContainsFunc(r.c.Nodes(), func(n *testcluster.Node) bool { return strings.Contains(n.Output(), "a snapshot is installed") })
}

func (l *watchLoad) verify(r *faultRun) {
	// The last event is one that everyone of the writers' order lies behind; progress tells the others.
	c := openAt(r.t, r.c.Addrs(), client.WithTimeout(patience), client.WithName("watch end"))
	end, err := c.Put(context.Background(), watchEnd, nil)
	if err != nil {
		r.t.Errorf("cannot write what ends the watches: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, w := range l.follow {
		for w.now.Load().Revision() < end {
			if !sleepFor(ctx, 5*time.Millisecond) {
				r.anomaly("%s was not told within %v of what was written before %d: it has come to %d", w.name, patience, end, w.now.Load().Revision())
				break
			}
		}
	}
	l.stop()
	l.watching.Wait()
	for i, err := range l.judge() {
		if i == 5 {
			break
		}
		r.anomaly("%v", err)
	}
	r.note("watch: %d writes, %d unknown; %d events told to %d watchers, %d times compacted", l.done.Load(), l.unknown.Load(), l.told.Load(), len(l.follow), l.compacted.Load())
}

// sleepFor waits for d, or the end of ctx: false.
func sleepFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// judge compares what the watchers were told with each other and with what the callers were told.
func (l *watchLoad) judge() (wrong []error) {
	var writes []watchWrite
	for _, c := range l.writers {
		writes = append(writes, c.writes...)
	}
	return checkWatch(writes, l.follow)
}

func (l *watchLoad) figures() figures {
	return figures{done: l.done.Load(), unknown: l.unknown.Load(), checked: 0, least: watchLeast}
}

// checkWatch judges the watchers of a load. It takes what any of them was told of for what has happened, and asks
// whether each was told of all of it that it must be; and whether what has happened is what the writes were said to do.
func checkWatch(writes []watchWrite, watchers []*watcher) (wrong []error) {
	bad := func(format string, a ...any) {
		if len(wrong) < 20 {
			wrong = append(wrong, fmt.Errorf(format, a...))
		}
	}
	happened := make(map[client.Version]*seen)
	for _, w := range watchers {
		before := w.begun
		for i := range w.events {
			e := &w.events[i]
			if e.rev <= before {
				bad("%s was told of revision %d behind %d", w.name, e.rev, before)
			}
			before = e.rev
			if !w.asked(e) {
				bad("%s was told of %v %s at %d, which it did not ask for", w.name, e.kind, e.key, e.rev)
			}
			other := happened[e.rev]
			switch {
			case other == nil:
				if w.o.KeysOnly {
					continue // another one knows the value
				}
				happened[e.rev] = e
			case other.kind != e.kind || other.key != e.key || other.last != e.last || other.value != e.value && !w.o.KeysOnly:
				bad("%s was told of %+v, another one of %+v", w.name, *e, *other)
			}
		}
	}
	order := make([]*seen, 0, len(happened))
	for _, e := range happened {
		order = append(order, e)
	}
	slices.SortFunc(order, func(a, b *seen) int { return cmp.Compare(a.rev, b.rev) })
	for _, w := range watchers {
		at := 0
		for _, e := range order {
			if !w.asked(e) {
				continue
			}
			for at < len(w.events) && w.events[at].rev < e.rev {
				bad("%s alone was told of %+v", w.name, w.events[at])
				at++
			}
			if at == len(w.events) || w.events[at].rev != e.rev {
				bad("%s was never told of %v %s at %d, others were", w.name, e.kind, e.key, e.rev)
				break
			}
			at++
		}
	}
	return append(wrong, checkWatchWrites(writes, order, watchers)...)
}

// checkWatchWrites compares what has happened with what the callers were told, and with itself: each event's previous
// value is what the one before has left.
func checkWatchWrites(writes []watchWrite, order []*seen, watchers []*watcher) (wrong []error) {
	bad := func(format string, a ...any) {
		if len(wrong) < 20 {
			wrong = append(wrong, fmt.Errorf(format, a...))
		}
	}
	whole := true // somebody has been told of everything
	for _, w := range watchers {
		whole = whole && len(w.holes) == 0
	}
	byValue := make(map[string]*watchWrite)
	mayDelete := make(map[string]int)
	byRev := make(map[client.Version]*seen, len(order))
	for _, e := range order {
		byRev[e.rev] = e
	}
	for i := range writes {
		w := &writes[i]
		if w.value != "" {
			byValue[w.key+"="+w.value] = w
		} else if w.outcome != refused {
			mayDelete[w.key]++
		}
		if w.outcome != acked || w.version == 0 || !whole {
			continue
		}
		e := byRev[w.version]
		switch {
		case e == nil:
			bad("nobody was told of the acknowledged write of %q to %s at %d", w.value, w.key, w.version)
		case e.key != w.key || e.value != w.value:
			bad("watchers were told of %+v, acknowledged was %q to %s", *e, w.value, w.key)
		}
	}
	type record struct {
		value string
		ttl   bool
	}
	state := make(map[string]record)
	expects := make(map[client.Version]string)
	for i, e := range order {
		if e.key == watchEnd {
			continue
		}
		if !e.last && (i+1 == len(order) || order[i+1].rev>>20 != e.rev>>20) && whole {
			bad("%+v is not the last of its transaction, and nothing follows", *e)
		}
		old, there := state[e.key]
		expects[e.rev] = old.value
		switch e.kind {
		case client.EventPut:
			w := byValue[e.key+"="+e.value]
			switch {
			case w == nil:
				bad("watchers were told of %+v, which nobody wrote, or which was told before", *e)
				continue
			case w.outcome == refused:
				bad("watchers were told of %+v, which was surely not applied", *e)
			case w.outcome == acked && w.version != 0 && w.version != e.rev:
				bad("watchers were told of %+v, acknowledged at %d", *e, w.version)
			}
			delete(byValue, e.key+"="+e.value)
			state[e.key] = record{e.value, w.ttl}
		case client.EventDelete:
			if mayDelete[e.key]--; mayDelete[e.key] < 0 {
				bad("watchers were told of %+v, which nobody asked for", *e)
			}
			if !there && whole {
				bad("watchers were told of %+v, and there was nothing", *e)
			}
			delete(state, e.key)
		case client.EventExpire:
			if whole && (!there || !old.ttl) {
				bad("watchers were told of %+v of a record without a time to live", *e)
			}
			delete(state, e.key)
		}
	}
	if !whole {
		return wrong
	}
	for _, w := range watchers {
		if !w.o.Previous {
			continue
		}
		for _, e := range w.events {
			if want := expects[e.rev]; e.previous != "?" && e.previous != want && e.key != watchEnd {
				bad("%s was told that %q was there before %+v, it was %q", w.name, e.previous, e, want)
			}
		}
	}
	return wrong
}

// watchExample makes the writes of a load, and watchers of a store that did as it told.
func watchExample(rng *rand.Rand) (writes []watchWrite, watchers []*watcher) {
	for g := range 2 {
		watchers = append(watchers,
			&watcher{name: fmt.Sprintf("prefix %d", g), o: client.WatchOptions{Prefix: fmt.Sprintf("watch/%d/", g)}},
			&watcher{name: fmt.Sprintf("keys %d", g), o: client.WatchOptions{Prefix: fmt.Sprintf("watch/%d/", g), KeysOnly: true}})
	}
	watchers = append(watchers, &watcher{name: "all", o: client.WatchOptions{Prefix: "watch/", Previous: true}})
	index, state := uint64(100), map[string]string{}
	happen := func(kind client.EventKind, rev uint64, key, value string, last bool) {
		e := seen{rev: client.Version(rev), kind: kind, key: key, value: value, last: last}
		for _, w := range watchers {
			w.begun, w.end = 1, 1<<62
			if !w.covers(key) {
				continue
			}
			own := e
			if w.o.KeysOnly {
				own.value = ""
			}
			if w.o.Previous {
				own.previous = state[key]
			}
			w.events = append(w.events, own)
		}
		if state[key] = value; kind != client.EventPut {
			delete(state, key)
		}
	}
	for n := range 300 {
		index++
		rev := index << 20
		w := watchWrite{key: watchKey(rng.IntN(2), rng.IntN(4)), value: fmt.Sprintf("1-%d", n), ttl: n%5 == 0}
		happens := true
		switch rng.IntN(10) {
		case 0:
			w.outcome, happens = refused, false
		case 1:
			w.outcome, happens = unknown, rng.IntN(2) == 0
		case 2, 3:
			w.value = ""
			if _, there := state[w.key]; !there {
				happens = false
			}
		}
		if happens {
			kind := client.EventPut
			if w.value == "" {
				kind = client.EventDelete
			}
			last := n%7 != 0 || w.value == ""
			happen(kind, rev, w.key, w.value, last)
			if w.outcome == acked {
				w.version = client.Version(rev)
			}
			if !last { // a transaction: one more key
				second := watchWrite{key: watchKey(rng.IntN(2), 5), value: w.value + "b", outcome: w.outcome}
				if happen(client.EventPut, rev+1, second.key, second.value, true); w.outcome == acked {
					second.version = client.Version(rev + 1)
				}
				writes = append(writes, second)
			}
		}
		writes = append(writes, w)
		if happens && w.ttl && w.value != "" && rng.IntN(2) == 0 && n%7 != 0 {
			index++
			happen(client.EventExpire, index<<20, w.key, "", true)
		}
	}
	return writes, watchers
}

// TestWatchChecker_HarmedFeeds_AreFoundOut is the control of the workload "watch": what is as it should be passes, and
// each harm is found.
func TestWatchChecker_HarmedFeeds_AreFoundOut(t *testing.T) {
	s := seed(t)
	for name, harm := range map[string]func(rng *rand.Rand, writes []watchWrite, ws []*watcher) bool{
		"": nil,
		"one watcher misses an event": func(rng *rand.Rand, _ []watchWrite, ws []*watcher) bool {
			w := ws[rng.IntN(len(ws))]
			i := rng.IntN(len(w.events))
			w.events = slices.Delete(w.events, i, i+1)
			return true
		},
		"all miss an acknowledged write": func(rng *rand.Rand, writes []watchWrite, ws []*watcher) bool {
			lost := writes[rng.IntN(len(writes))].version
			for _, w := range ws {
				w.events = slices.DeleteFunc(w.events, func(e seen) bool { return e.rev == lost })
			}
			return lost != 0
		},
		"an event comes twice": func(rng *rand.Rand, _ []watchWrite, ws []*watcher) bool {
			w := ws[rng.IntN(len(ws))]
			i := rng.IntN(len(w.events))
			w.events = slices.Insert(w.events, i, w.events[i])
			return true
		},
		"two events change places": func(rng *rand.Rand, _ []watchWrite, ws []*watcher) bool {
			w := ws[rng.IntN(len(ws))]
			i := rng.IntN(len(w.events) - 1)
			w.events[i], w.events[i+1] = w.events[i+1], w.events[i]
			return true
		},
		"one is told another value": func(rng *rand.Rand, _ []watchWrite, ws []*watcher) bool {
			e := &ws[0].events[rng.IntN(len(ws[0].events))]
			e.value += "x"
			return e.kind == client.EventPut
		},
		"an event of another range": func(rng *rand.Rand, _ []watchWrite, ws []*watcher) bool {
			e := ws[2].events[rng.IntN(len(ws[2].events))]
			i, _ := slices.BinarySearchFunc(ws[0].events, e.rev, func(x seen, rev client.Version) int { return cmp.Compare(x.rev, rev) })
			ws[0].events = slices.Insert(ws[0].events, i, e)
			return true
		},
		"a write that was surely not applied": func(rng *rand.Rand, writes []watchWrite, _ []*watcher) bool {
			w := &writes[rng.IntN(len(writes))]
			was := *w
			w.outcome, w.version = refused, 0
			return was.version != 0 && was.value != "" // any of several deletions may be what an event tells of
		},
		"acknowledged with another version": func(rng *rand.Rand, writes []watchWrite, _ []*watcher) bool {
			w := &writes[rng.IntN(len(writes))]
			w.version += 1 << 18
			return w.version > 1<<20
		},
		"another value was there before": func(rng *rand.Rand, _ []watchWrite, ws []*watcher) bool {
			all := ws[len(ws)-1]
			all.events[rng.IntN(len(all.events))].previous += "x"
			return true
		},
		"half a transaction": func(rng *rand.Rand, writes []watchWrite, ws []*watcher) bool {
			all := ws[len(ws)-1]
			i := rng.IntN(len(all.events) - 1)
			if all.events[i].last {
				return false
			}
			gone := all.events[i+1].rev
			for _, w := range ws {
				w.events = slices.DeleteFunc(w.events, func(e seen) bool { return e.rev == gone })
			}
			for i := range writes {
				if writes[i].version == gone {
					writes[i].outcome, writes[i].version = unknown, 0
				}
			}
			return true
		},
	} {
		for round := range 20 {
			rng := random(s, round)
			writes, watchers := watchExample(rng)
			for harm != nil && !harm(rng, writes, watchers) {
				writes, watchers = watchExample(rng)
			}
			wrong := checkWatch(writes, watchers)
			if harm == nil && len(wrong) > 0 {
				t.Fatalf("round %d: what is as it should be is refused: %v", round, wrong)
			}
			if harm != nil && len(wrong) == 0 {
				t.Errorf("round %d: not found: %s", round, name)
			}
		}
	}
}
