package test

import (
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
	"kvstore/wire"
)

// The listings: callers rewrite whole groups of keys at once, all with the same number of a generation, or let keys
// move from one prefix to another. Whoever lists a group page by page, forward or in reverse, at the leader, at a
// follower or a stale one, while leaders change and nodes start anew, sees the keys of one generation, each key once
// and none missing; all pages show one revision; and what is linearizable shows at least what was acknowledged before.

func init() { workloads["listing"] = func() workload { return new(listingLoad) } }

const (
	listingGroups = 3
	listingKeys   = 40 // of each group
	listingMoving = "listing/moving/"
	listingLeast  = 30
)

// listedKey is one record of a listing.
type listedKey struct {
	key, value string
	version    uint64
}

// listing is what a caller saw.
type listing struct {
	keys      []listedKey
	revisions []uint64 // one for each page
	reverse   bool
}

// listingLoad is the workload.
type listingLoad struct {
	r *faultRun // set by drive

	generation          atomic.Int64 // the last that was begun
	done, failed, wrote atomic.Int64
	pages               atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	newest uint64            // revision that anybody was told
	born   map[string]uint64 // revision in which a group was there for the first time
}

func (*listingLoad) name() string { return "listing" }

func listingGroup(g int) string { return fmt.Sprintf("listing/%d/", g) }

func (l *listingLoad) drive(r *faultRun) {
	l.r, l.born = r, make(map[string]uint64)
	writers := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("listing writer"))
	hasty := openAt(r.t, r.c.Addrs(), client.WithTimeout(hastyTimeout), client.WithoutSession(), client.WithName("listing hasty"))
	for g := range listingGroups {
		v, err := l.rewrite(writers, g, true)
		if err != nil {
			r.t.Fatalf("cannot write the first generation: %v", err)
		}
		l.born[listingGroup(g)] = uint64(v)
	}
	res, err := writers.BatchPut(context.Background(), movingBegin(), true)
	if err != nil {
		r.t.Fatalf("cannot write what moves: %v", err)
	}
	l.born[listingMoving] = uint64(res.Revision)
	for i, c := range []*client.Client{writers, writers, hasty} {
		r.callAs(fmt.Sprintf("listing writer %d", i), 60*time.Millisecond, 150*time.Millisecond, func(rng *rand.Rand) bool {
			_, err := l.rewrite(c, rng.IntN(listingGroups), rng.IntN(2) == 0)
			return l.written("a generation", err, false)
		})
		r.callAs(fmt.Sprintf("listing mover %d", i), 15*time.Millisecond, 50*time.Millisecond, func(rng *rand.Rand) bool {
			return l.move(c, rng)
		})
	}
	readers := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("listing reader"))
	ways := map[string]listWay{
		"leader":         {list: listWith(readers)},
		"any node":       {list: listWith(readers, client.AnyNode())},
		"stale":          {list: listWith(readers, client.Stale()), stale: true},
		"page by page":   {list: l.listPages(readers)},
		"page by page 2": {list: l.listPages(readers)},
	}
	f := openForwarder(r.t, "listing reader")
	for i, n := range r.c.Nodes() {
		ways[r.c.ID(i)+" alone"] = listWay{list: l.listNode(f, n, wire.ConsistencyAnyNode)}
		ways[r.c.ID(i)+" alone, stale"] = listWay{list: l.listNode(f, n, wire.ConsistencyStale), stale: true}
	}
	for name, way := range ways {
		var last uint64 // revision that this caller was told
		r.callAs("listing by "+name, 30*time.Millisecond, 120*time.Millisecond, func(rng *rand.Rand) bool {
			return l.read(name, way, rng, &last)
		})
	}
}

// movingBegin is where the keys are that move.
func movingBegin() (items []client.KV) {
	for i := range listingKeys {
		items = append(items, client.KV{Key: movingKey(i%2 == 0, i), Value: fmt.Append(nil, i)})
	}
	return items
}

// movingKey is the key i on one side or the other.
func movingKey(left bool, i int) string {
	if left {
		return fmt.Sprintf("%sa/%02d", listingMoving, i)
	}
	return fmt.Sprintf("%sb/%02d", listingMoving, i)
}

// rewrite gives all keys of a group the number of a new generation.
func (l *listingLoad) rewrite(c *client.Client, g int, batch bool) (client.Version, error) {
	value := fmt.Append(nil, l.generation.Add(1))
	var items []client.KV
	t := c.Txn()
	for i := range listingKeys {
		items = append(items, client.KV{Key: fmt.Sprintf("%s%02d", listingGroup(g), i), Value: value})
		t.Put(items[i].Key, value)
	}
	var v client.Version
	var err error
	if batch {
		var res client.BatchResult
		res, err = c.BatchPut(context.Background(), items, true)
		v = res.Revision
	} else {
		var res client.TxnResult
		res, err = t.Commit(context.Background())
		v = res.Revision
	}
	if err == nil {
		l.told(uint64(v))
	}
	return v, err
}

// move takes keys from the side where they may be to the other one, all or none.
func (l *listingLoad) move(c *client.Client, rng *rand.Rand) bool {
	left := rng.IntN(2) == 0
	t := c.Txn()
	for _, i := range rng.Perm(listingKeys)[:1+rng.IntN(2)] {
		t.Delete(movingKey(left, i), client.IfExists()).Put(movingKey(!left, i), fmt.Append(nil, i), client.IfAbsent())
	}
	res, err := t.Commit(context.Background())
	if err == nil {
		l.told(uint64(res.Revision))
	}
	return l.written("a move", err, true)
}

// written counts a write. False: nobody was there to answer.
func (l *listingLoad) written(what string, err error, conditions bool) bool {
	o, failed := l.r.wrote(what, err)
	if failed && !conditions {
		l.r.anomaly("%s without a condition fails by one: %v", what, err)
	}
	if o == acked {
		l.wrote.Add(1)
	}
	return o != refused || failed
}

// told enters a revision that somebody was told.
func (l *listingLoad) told(revision uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest = max(l.newest, revision)
}

// listWay is one way to list the keys with a prefix.
type listWay struct {
	list  func(rng *rand.Rand, prefix string) (listing, error)
	stale bool // it may show less than others were told
}

// pageSize draws small pages: 40 keys are on 3 to 20 of them.
func pageSize(rng *rand.Rand) int { return 2 + rng.IntN(14) }

// listWith goes through a listing of the client, which asks one node for all pages.
func listWith(c *client.Client, read ...client.GetOption) func(*rand.Rand, string) (listing, error) {
	return func(rng *rand.Rand, prefix string) (listing, error) {
		l := listing{reverse: rng.IntN(2) == 0}
		for e, err := range c.List(context.Background(), client.ListOptions{Prefix: prefix, PageSize: pageSize(rng), Reverse: l.reverse, Read: read}) {
			if err != nil {
				return l, err
			}
			l.keys = append(l.keys, listedKey{e.Key, string(e.Data), uint64(e.Version)})
		}
		return l, nil
	}
}

// pagePause lets faults happen between two pages: now and then it is long.
func (l *listingLoad) pagePause(rng *rand.Rand) func() {
	most := 5 * time.Millisecond
	if rng.IntN(4) == 0 {
		most = 250 * time.Millisecond
	}
	return func() { l.r.sleepRun(between(rng, 0, most)) }
}

// listPages asks for each page anew, of whoever leads by then: a cursor is good at each node.
func (l *listingLoad) listPages(c *client.Client) func(*rand.Rand, string) (listing, error) {
	return func(rng *rand.Rand, prefix string) (listing, error) {
		out := listing{reverse: rng.IntN(2) == 0}
		o := client.ListOptions{Prefix: prefix, PageSize: pageSize(rng), Reverse: out.reverse}
		pause := l.pagePause(rng)
		for cursor := []byte(nil); ; pause() {
			p, err := c.ListPage(context.Background(), o, cursor)
			if err != nil {
				return out, err
			}
			for _, e := range p.Entries {
				out.keys = append(out.keys, listedKey{e.Key, string(e.Data), uint64(e.Version)})
			}
			out.revisions = append(out.revisions, uint64(p.Revision))
			if cursor = p.Cursor; len(cursor) == 0 {
				return out, nil
			}
		}
	}
}

// listNode asks one node alone, before and after it was frozen or started anew.
func (l *listingLoad) listNode(f *client.Forwarder, n *testcluster.Node, consistency uint8) func(*rand.Rand, string) (listing, error) {
	return func(rng *rand.Rand, prefix string) (listing, error) {
		q := wire.ScanRequest{Prefix: []byte(prefix), Limit: uint32(pageSize(rng))}
		if rng.IntN(2) == 0 {
			q.Flags = wire.ScanReverse
		}
		return nodeListing(f, n, consistency, q, loadTimeout, l.pagePause(rng))
	}
}

// openForwarder makes what asks one node and no other; it is closed with the test.
func openForwarder(t *testing.T, name string) *client.Forwarder {
	t.Helper()
	f := client.NewForwarder(client.ForwarderOptions{Name: name})
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("%s: cannot close the forwarder: %v", name, err)
		}
	})
	return f
}

// errListed: an answer that no listing may get.
var errListed = errors.New("a listing may not be answered so")

// nodeListing lists at one node and at no other; pause, if it is not nil, comes between the pages.
func nodeListing(f *client.Forwarder, n *testcluster.Node, consistency uint8, q wire.ScanRequest, timeout time.Duration, pause func()) (listing, error) {
	out := listing{reverse: q.Flags&wire.ScanReverse != 0}
	for {
		a := f.Do(context.Background(), n.Addr(), &wire.Request{
			Op: wire.OpScan, Ext: wire.AppendExtU8(nil, wire.ExtConsistency, consistency), TimeoutMs: uint32(timeout.Milliseconds()),
			Payload: wire.AppendScanRequest(nil, &q),
		})
		switch {
		case consistency == wire.ConsistencyStale && len(q.Cursor) > 0 && a.Status == wire.StatusFutureRevision,
			// A node that was started anew does not yet have again what it showed before.
			a.Status == wire.StatusCompacted, a.Status == wire.StatusTimeout, a.Status == wire.StatusTooLate, a.Status.Class() == wire.ClassRetry:
			return out, fmt.Errorf("%s: %s", a.Status, a.Payload)
		case a.Status != wire.StatusOK:
			return out, fmt.Errorf("%w: %s: %s", errListed, a.Status, a.Payload)
		}
		var page wire.ScanPage
		if err := wire.DecodeScanPage(a.Payload, &page); err != nil {
			return out, fmt.Errorf("%w: %w", errListed, err)
		}
		out.revisions = append(out.revisions, page.Revision)
		var it wire.Item
		for items := page.Items; len(items) > 0; {
			var err error
			if items, err = wire.NextItem(items, &it); err != nil {
				return out, fmt.Errorf("%w: %w", errListed, err)
			}
			v, err := versionOf(it.Ext)
			if err != nil {
				return out, fmt.Errorf("%w: %w", errListed, err)
			}
			out.keys = append(out.keys, listedKey{string(it.Key), string(it.Value), v})
		}
		if len(page.Cursor) == 0 {
			return out, nil
		}
		q.Cursor = slices.Clone(page.Cursor)
		if pause != nil {
			pause()
		}
	}
}

// read lists one group and judges what is shown. last is the revision that this caller was told.
func (l *listingLoad) read(name string, way listWay, rng *rand.Rand, last *uint64) bool {
	prefix := listingMoving
	if g := rng.IntN(listingGroups + 1); g < listingGroups {
		prefix = listingGroup(g)
	}
	l.mu.Lock()
	least, born := max(*last, l.newest), l.born[prefix]
	l.mu.Unlock()
	if way.stale {
		least = 0
	}
	got, err := way.list(rng, prefix)
	l.pages.Add(int64(len(got.revisions)))
	if err != nil {
		l.failed.Add(1)
		if errors.Is(err, errListed) {
			l.r.anomaly("%s by %s: %v", prefix, name, err)
		}
		l.r.readError(prefix+" by "+name, err)
		return false
	}
	l.done.Add(1)
	if err := checkListing(prefix, got, least, born, l.generation.Load()); err != nil {
		l.r.anomaly("%s by %s: %v", prefix, name, err)
	}
	if !way.stale && len(got.revisions) > 0 {
		*last = max(*last, got.revisions[0])
		l.told(got.revisions[0])
	}
	return true
}

func (l *listingLoad) verify(r *faultRun) {
	f := openForwarder(r.t, "listing in the end")
	for _, prefix := range append([]string{listingMoving}, listingGroup(0), listingGroup(1), listingGroup(2)) {
		var first string
		for i, n := range r.c.Nodes() {
			if !n.Running() {
				continue
			}
			got, err := nodeListing(f, n, wire.ConsistencyStale, wire.ScanRequest{Prefix: []byte(prefix), Limit: 7}, patience, nil)
			if err != nil {
				r.t.Errorf("cannot list what %s itself has of %s: %v", r.c.ID(i), prefix, err)
				continue
			}
			if err := checkListing(prefix, got, 0, 1, l.generation.Load()); err != nil {
				r.anomaly("in the end: %s itself: %v", r.c.ID(i), err)
			}
			if text := fmt.Sprint(got.keys); first == "" {
				first = text
			} else if first != text {
				r.anomaly("in the end %s shows another %s than the nodes before it: %s, %s", r.c.ID(i), prefix, text, first)
			}
		}
	}
	r.note("listing: %d listings completed on more than %d pages, %d failed; %d writes acknowledged, the last generation is %d", l.done.Load(), l.pages.Load(), l.failed.Load(), l.wrote.Load(), l.generation.Load())
}

func (l *listingLoad) figures() figures {
	return figures{done: l.done.Load() + l.wrote.Load(), least: listingLeast}
}

// checkListing tells what is wrong with a completed listing of a group: of a revision below least, or not the whole of
// one generation, from born on. No generation above the last one was ever begun.
func checkListing(prefix string, l listing, least, born uint64, generations int64) error {
	if i := slices.IndexFunc(l.revisions, func(v uint64) bool { return v != l.revisions[0] }); i >= 0 {
		return fmt.Errorf("page %d shows revision %d, the first one %d", i, l.revisions[i], l.revisions[0])
	}
	revision := uint64(0) // 0: not told
	if len(l.revisions) > 0 {
		revision = l.revisions[0]
		if revision < least {
			return fmt.Errorf("it shows revision %d, but %d was told to somebody before it was begun", revision, least)
		}
	}
	keys := slices.Clone(l.keys)
	if l.reverse {
		slices.Reverse(keys)
	}
	for i := range keys {
		k := &keys[i]
		switch {
		case !strings.HasPrefix(k.key, prefix):
			return fmt.Errorf("it shows %s", k.key)
		case i > 0 && k.key <= keys[i-1].key:
			return fmt.Errorf("%s and %s are not in order, or one of them twice", keys[i-1].key, k.key)
		case revision != 0 && k.version > revision:
			return fmt.Errorf("%s has version %d, which is beyond the revision %d", k.key, k.version, revision)
		}
	}
	if len(keys) == 0 && (least == 0 && (revision == 0 || revision < born)) {
		return nil // older than the group
	}
	if len(keys) != listingKeys {
		return fmt.Errorf("it shows %d keys of %d: %v", len(keys), listingKeys, keys)
	}
	if prefix == listingMoving {
		seen := make(map[string]string)
		for _, k := range keys {
			if other, ok := seen[k.value]; ok {
				return fmt.Errorf("%s is there twice, as %s and %s", k.value, other, k.key)
			}
			if seen[k.value] = k.key; !strings.HasSuffix(k.key, fmt.Sprintf("/%02s", k.value)) {
				return fmt.Errorf("%s holds %q", k.key, k.value)
			}
		}
		return nil
	}
	for i, k := range keys {
		var g int64
		switch _, err := fmt.Sscan(k.value, &g); {
		case k.value != keys[0].value:
			return fmt.Errorf("%s is of generation %s, %s is of %s", keys[0].key, keys[0].value, k.key, k.value)
		case k.key != fmt.Sprintf("%s%02d", prefix, i):
			return fmt.Errorf("%s stands where key %d must be", k.key, i)
		case err != nil || g < 1 || g > generations:
			return fmt.Errorf("%s holds %q, and %d generations were begun", k.key, k.value, generations)
		}
	}
	return nil
}

// TestListingChecker_HarmedListings_AreFoundOut is the control of the workload "listing": what one moment shows passes,
// and each harm to it is found.
func TestListingChecker_HarmedListings_AreFoundOut(t *testing.T) {
	group := func() listing {
		l := listing{revisions: []uint64{500, 500, 500}}
		for i := range listingKeys {
			l.keys = append(l.keys, listedKey{fmt.Sprintf("%s%02d", listingGroup(1), i), "7", uint64(400 + i)})
		}
		return l
	}
	moving := func() listing {
		l := listing{revisions: []uint64{500, 500}}
		for _, left := range []bool{true, false} {
			for i := range listingKeys {
				if left == (i%3 == 0) {
					l.keys = append(l.keys, listedKey{movingKey(left, i), fmt.Sprint(i), uint64(400 + i)})
				}
			}
		}
		return l
	}
	reverse := group()
	slices.Reverse(reverse.keys)
	reverse.reverse = true
	for _, l := range []listing{group(), reverse, {revisions: []uint64{250}}} {
		least := uint64(450)
		if len(l.keys) == 0 {
			least = 0
		}
		if err := checkListing(listingGroup(1), l, least, 300, 9); err != nil {
			t.Errorf("what one moment shows: %v", err)
		}
	}
	if err := checkListing(listingMoving, moving(), 450, 300, 9); err != nil {
		t.Errorf("what one moment shows: %v", err)
	}
	for name, harm := range map[string]struct {
		group bool // else what moves
		do    func(l *listing)
		says  string
	}{
		"two generations": {true, func(l *listing) { l.keys[30].value = "8" }, "is of generation"},
		"generation of nobody": {true, func(l *listing) {
			for i := range l.keys {
				l.keys[i].value = "10"
			}
		}, "were begun"},
		"missing key":             {true, func(l *listing) { l.keys = slices.Delete(l.keys, 5, 6) }, "39 keys"},
		"key twice":               {true, func(l *listing) { l.keys[6] = l.keys[5] }, "not in order"},
		"key of another group":    {true, func(l *listing) { l.keys[39].key = "listing/2/00" }, "it shows listing/2/00"},
		"phantom in the place":    {true, func(l *listing) { l.keys[39].key = listingGroup(1) + "77" }, "stands where"},
		"order the wrong way":     {true, func(l *listing) { l.reverse = true }, "not in order"},
		"pages of two revisions":  {true, func(l *listing) { l.revisions[2] = 501 }, "page 2"},
		"revision that goes back": {true, func(l *listing) { l.revisions = []uint64{449} }, "shows revision 449"},
		"version of the future":   {true, func(l *listing) { l.keys[9].version = 501 }, "beyond the revision"},
		"nothing":                 {true, func(l *listing) { l.keys = nil }, "0 keys"},
		"key on both sides":       {false, func(l *listing) { l.keys = append(l.keys[:listingKeys-1], listedKey{movingKey(false, 99), "3", 1}) }, "there twice"},
		"key on neither side":     {false, func(l *listing) { l.keys = slices.Delete(l.keys, 20, 21) }, "39 keys"},
		"value of another key":    {false, func(l *listing) { l.keys[0].value = "38x" }, "holds"},
	} {
		l, prefix := moving(), listingMoving
		if harm.group {
			l, prefix = group(), listingGroup(1)
		}
		harm.do(&l)
		if err := checkListing(prefix, l, 450, 300, 9); err == nil || !strings.Contains(err.Error(), harm.says) {
			t.Errorf("%s is not found out, but %v", name, err)
		}
	}
}
