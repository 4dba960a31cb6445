package node

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"kvstore/feed"
	"kvstore/wire"
)

// gate is a Pusher that has room or has none, as it is told.
type gate struct {
	mu     sync.Mutex
	shut   bool
	refuse int // frames that found no room
	frames int
	final  *wire.Status
	text   string
}

func (g *gate) Push(wire.Token, *wire.Response) wire.PushResult {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		g.refuse++
		return wire.PushFull
	}
	g.frames++
	return wire.PushOK
}

func (g *gate) Complete(_ wire.Token, r *wire.Response) {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := r.Status
	g.final, g.text = &st, string(r.Payload)
}

func (g *gate) is(ok func() bool) func() bool {
	return func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return ok()
	}
}

// Goal: a watch that had no room when its namespace was dropped, and so begins in the feed anew behind the drop, ends
// like the others.
func TestWatch_NamespaceDroppedWhileThereIsNoRoom_Ends(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	g := &gate{}
	n.service.Serve(g, anonymous, []wire.Request{*request(t, wire.OpWatch, in("app"), "", wire.AppendWatchRequest(nil, &wire.WatchRequest{Flags: wire.WatchFromNow}))})
	until(t, "the watch has begun", g.is(func() bool { return g.frames == 1 }))
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	if r := do(t, n, wire.OpPut, in("app"), "k", []byte("v")); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	until(t, "an event has found no room", g.is(func() bool { return g.refuse == 1 }))
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_drop","namespace":"app"}`)
	until(t, "it is purged", func() bool { _, ok := n.shard.engine.Purging(); return !ok })
	g.mu.Lock()
	g.shut = false
	g.mu.Unlock()
	n.service.Writable(g)
	until(t, "the watch has ended", g.is(func() bool { return g.final != nil }))
	if *g.final != wire.StatusNoNamespace {
		t.Errorf("it ended with %s %s", *g.final, g.text)
	}
	quietStreams(t, n)
}

// replacedFeed is a feed whose state is replaced by a newer one before a watch begins in it.
type replacedFeed struct {
	*feed.Feed
	once sync.Once
}

func (f *replacedFeed) Watch(o feed.WatchOptions, ready func()) (*feed.Watcher, error) {
	err := error(nil)
	f.once.Do(func() { err = feed.ErrCompacted })
	if err != nil {
		return nil, err
	}
	return f.Feed.Watch(o, ready)
}

// Goal: a watch from now is not told of a revision that it didn't name: where the state was replaced between the question
// where to begin and the beginning, it is to be tried again.
func TestWatch_FromNowWhileTheStateIsReplaced_IsToBeTriedAgain(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	n.service.streams.feed = &replacedFeed{Feed: n.shard.feed}
	g := &gate{}
	n.service.Serve(g, anonymous, []wire.Request{*request(t, wire.OpWatch, nil, "", wire.AppendWatchRequest(nil, &wire.WatchRequest{Flags: wire.WatchFromNow}))})
	until(t, "it is answered", g.is(func() bool { return g.final != nil || g.frames > 0 }))
	if g.final == nil || *g.final != wire.StatusRetryLater {
		t.Errorf("it was answered %v %s", g.final, g.text)
	}
}

// Goal: a node that has lost its leader, and so may lack a namespace that was created meanwhile, does not say that there
// is none: the watch that goes on there would end for good.
func TestWatch_NamespaceUnknownToANodeWithoutLeader_IsNotRefusedForGood(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	last := others[0]
	recorded(t, last)
	for _, id := range c.ids {
		if n := c.node(id); n == leader || n == others[1] {
			c.stop(id)
		}
	}
	until(t, "it has no leader", func() bool {
		_, _, known := last.shard.leaderElsewhere()
		return !known && last.shard.howToRead() == readElsewhere
	})
	p := dialStreams(t, last, 0)
	p.send(wire.OpWatch, 1, in("app"), "", wire.AppendWatchRequest(nil, &wire.WatchRequest{After: last.shard.engine.Applied().Revision}))
	f := p.read()
	if f.more() || f.Status().Class() != wire.ClassRetry {
		t.Errorf("%s %s", f.Status(), strings.TrimSpace(string(f.payload)))
	}
}

var _ changeFeed = (*replacedFeed)(nil)

// Goal: a watch that goes on within a large entry is told what was there before in that entry, however much of the entry
// lies before.
func TestWatch_PreviousWithinALargeEntry_IsThatOfTheEntry(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	put(t, n, "k", "old")
	var its []wire.Item
	for i := range 10 {
		its = append(its, wire.Item{Op: wire.OpPut, Key: []byte{'f', 'a' + byte(i)}, Value: make([]byte, 1<<20)})
	}
	its = append(its, wire.Item{Op: wire.OpPut, Key: []byte("k"), Value: []byte("first")}, wire.Item{Op: wire.OpPut, Key: []byte("k"), Value: []byte("second")})
	r := do(t, n, wire.OpBatch, nil, "", group(wire.OpBatch, wire.GroupAtomic, its...))
	rev, _, _, err := wire.DecodeResult(r.Payload)
	if r.Status != wire.StatusOK || err != nil {
		t.Fatalf("%s %v", r.Status, err)
	}
	p := dialStreams(t, n, 0)
	p.watch(1, &wire.WatchRequest{Flags: wire.WatchKey | wire.WatchPrevious, Start: []byte("k"), After: rev + 10})
	x := &watchReader{t: t}
	for len(x.events) == 0 {
		x.take(p.read())
	}
	if !strings.HasPrefix(x.events[0], "put k=second@") || !strings.HasSuffix(x.events[0], " was first") {
		t.Errorf("it was told %s", x.events[0])
	}
}

// Goal: an expiry tells what has expired, also when other writes bring log time beyond the deadline before the expiry is in
// the log.
func TestWatch_PreviousOfAnExpiry_IsToldWhileOthersWrite(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	p := dialStreams(t, n, 0)
	p.watch(1, &wire.WatchRequest{Flags: wire.WatchFromNow | wire.WatchPrevious | wire.WatchNoPut, Prefix: []byte("t")})
	x := &watchReader{t: t}
	x.take(p.read())
	const keys = 200
	for i := range keys {
		ttl := wire.AppendExtU64(nil, wire.ExtTTL, uint64(1+i%20))
		if r := do(t, n, wire.OpPut, ttl, fmt.Sprintf("t%d", i), []byte("v")); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
		put(t, n, "other", "x")
	}
	for len(x.events) < keys {
		x.take(p.read())
	}
	for _, e := range x.events {
		if !strings.HasPrefix(e, "expire t") || !strings.HasSuffix(e, " was v") {
			t.Fatalf("it was told %s", e)
		}
	}
}

// Goal: a watch that goes on by the name of a namespace that was dropped and created anew meanwhile is told so, and does
// not follow the new one as if nothing had happened.
func TestWatch_NamespaceMadeAnewWhileTheClientWasAway_IsNotTakenForTheOldOne(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	old, _ := n.shard.engine.Namespace([]byte("app"))
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_drop","namespace":"app"}`)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	now, ok := n.shard.engine.Namespace([]byte("app"))
	if !ok || now <= old {
		t.Fatalf("the namespace has the number %d after %d", now, old)
	}
	after := n.shard.engine.Applied().Revision
	for id, want := range map[uint32]wire.Status{old: wire.StatusNoNamespace, now: wire.StatusOK, now + 1: wire.StatusRetryLater} {
		for _, q := range []wire.WatchRequest{{Flags: wire.WatchFromNow}, {After: after}} {
			g := &gate{}
			ext := wire.AppendExtU32(in("app"), wire.ExtNamespaceID, id)
			n.service.Serve(g, anonymous, []wire.Request{*request(t, wire.OpWatch, ext, "", wire.AppendWatchRequest(nil, &q))})
			until(t, "the watch has begun or ended", g.is(func() bool { return g.frames == 1 || g.final != nil }))
			switch {
			case want == wire.StatusOK && g.final != nil, want != wire.StatusOK && g.final == nil:
				t.Errorf("number %d, names %d: final %v", id, now, g.final)
			case want != wire.StatusOK && *g.final != want:
				t.Errorf("number %d, names %d: %s %s", id, now, *g.final, g.text)
			}
			n.service.Gone(g)
		}
	}
	quietStreams(t, n)
}
