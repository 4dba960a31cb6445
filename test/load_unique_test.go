package test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/wire"
)

// The unique writes: many callers write keys that nobody else ever writes, one key at a time, by atomic batches and by
// transactions, with sessions and without, as many at once as a busy client has. In the end each acknowledged write is
// there with the versions that were told, what was surely not applied is not, of the unknown ones each is there wholly
// or not at all, and nothing is there that nobody wrote.
//
// The ledger keeps more of each key (values of any size, changes, expiry) and reads each one back alone; here there are
// ten times as many keys a second, all of one kind, so that one listing of each node reads them back.

func init() { workloads["unique"] = func() workload { return new(uniqueLoad) } }

const (
	// uniqueKeysMax bounds the keys of one run, so that they are soon read back.
	uniqueKeysMax = 40_000
	// uniqueTime is how long they would last at the rate of the begin, 3,000 a second; longer runs write as many.
	uniqueTime  = 13 * time.Second
	uniqueStep  = 250 * time.Millisecond
	uniqueItems = 8 // keys of one write at the most
	uniqueLeast = 300
)

// uniqueWrite is one write and what was told of it.
type uniqueWrite struct {
	keys     int
	outcome  outcome
	versions []client.Version // of its keys, if they were told
}

// uniqueCaller makes one write after the other. Its keys tell where in writes they belong.
type uniqueCaller struct {
	number int
	writes []uniqueWrite // owned by the caller until the load has ended
}

// uniqueLoad is the workload.
type uniqueLoad struct {
	r       *faultRun // set by drive
	callers []*uniqueCaller

	acked, refused, unknown atomic.Int64 // keys
	found                   int64        // keys that were acknowledged and read back everywhere

	mu sync.Mutex
	// Guarded by mu.
	left  int // keys that may still be written
	quota int // of these, keys that may be written before next
	next  time.Time
}

func (*uniqueLoad) name() string { return "unique" }

func uniqueKey(caller, write, item int) string {
	return fmt.Sprintf("unique/%02d/%06d/%d", caller, write, item)
}

func uniqueValue(key string) string { return "what is written to " + key }

func (u *uniqueLoad) drive(r *faultRun) {
	u.r, u.left = r, uniqueKeysMax
	for _, k := range []struct {
		callers int
		opts    []client.Option
	}{
		{20, []client.Option{client.WithTimeout(loadTimeout)}},
		{8, []client.Option{client.WithTimeout(loadTimeout), client.WithoutSession()}},
		{4, []client.Option{client.WithTimeout(hastyTimeout)}},
		{4, []client.Option{client.WithTimeout(hastyTimeout), client.WithoutSession()}},
	} {
		c := openAt(r.t, r.c.Addrs(), append(k.opts, client.WithName("unique"))...)
		for range k.callers {
			caller := &uniqueCaller{number: len(u.callers)}
			u.callers = append(u.callers, caller)
			rng := r.stream(fmt.Sprintf("unique %d", caller.number))
			r.work.Go(func() { u.call(c, caller, rng) }) // ends with r.ctx
		}
	}
}

// call writes until the loads end.
func (u *uniqueLoad) call(c *client.Client, caller *uniqueCaller, rng *rand.Rand) {
	for u.r.ctx.Err() == nil {
		n := 1
		if rng.IntN(2) == 0 {
			n = 2 + rng.IntN(uniqueItems-1)
		}
		if !u.take(n) {
			u.r.sleepRun(between(rng, 10*time.Millisecond, 60*time.Millisecond))
			continue
		}
		w := u.write(c, caller, rng, n)
		caller.writes = append(caller.writes, w)
		switch w.outcome {
		case acked:
			u.acked.Add(int64(n))
		case unknown:
			u.unknown.Add(int64(n))
		default:
			u.refused.Add(int64(n))
			u.r.sleepRun(between(rng, 20*time.Millisecond, 80*time.Millisecond)) // nobody is there to answer
		}
	}
}

// take allows n more keys, or none. Each step of time allows the same part of what is left, so that the last fault of
// a run that takes long is met by writes too.
func (u *uniqueLoad) take(n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.After(u.next) {
		u.quota = int(int64(u.left) * int64(uniqueStep) / int64(max(uniqueTime, u.r.length)))
		u.quota = max(u.quota, uniqueItems)
		u.next = now.Add(uniqueStep)
	}
	if n > u.quota || n > u.left {
		return false
	}
	u.quota -= n
	u.left -= n
	return true
}

// write makes one write of n new keys.
func (u *uniqueLoad) write(c *client.Client, caller *uniqueCaller, rng *rand.Rand, n int) uniqueWrite {
	ctx := context.Background()
	items := make([]client.KV, n)
	for i := range items {
		key := uniqueKey(caller.number, len(caller.writes), i)
		items[i] = client.KV{Key: key, Value: []byte(uniqueValue(key))}
	}
	if rng.IntN(2) == 0 {
		// If it is done twice, the second time fails, and says so.
		items[0].Options = []client.PutOption{client.IfAbsent()}
	}
	w := uniqueWrite{keys: n}
	var results []client.ItemResult
	var err error
	switch {
	case n == 1:
		var v client.Version
		v, err = c.Put(ctx, items[0].Key, items[0].Value, items[0].Options...)
		results = []client.ItemResult{{Version: v}}
	case rng.IntN(2) == 0:
		var res client.BatchResult
		res, err = c.BatchPut(ctx, items, true)
		results = res.Items
	default:
		t := c.Txn()
		for _, it := range items {
			t.Put(it.Key, it.Value, it.Options...)
		}
		var res client.TxnResult
		res, err = t.Commit(ctx)
		results = res.Results
	}
	failed := false
	if w.outcome, failed = u.r.wrote(items[0].Key, err); failed {
		u.r.anomaly("nobody has ever written %s, but it is said to be there: %v", items[0].Key, err)
	}
	if w.outcome == acked {
		for _, it := range results {
			w.versions = append(w.versions, it.Version)
		}
	}
	return w
}

func (u *uniqueLoad) verify(r *faultRun) {
	c := openAt(r.t, r.c.Addrs(), client.WithTimeout(patience))
	var all []listedKey
	for e, err := range c.List(context.Background(), client.ListOptions{}) {
		if err != nil {
			r.t.Errorf("cannot list all keys in the end: %v", err)
			return
		}
		if owner, _, _ := strings.Cut(e.Key, "/"); owner != u.name() {
			if workloads[owner] == nil && owner != "lag" { // what fill writes
				r.anomaly("%q is there although nobody wrote it", e.Key)
			}
			continue
		}
		all = append(all, listedKey{e.Key, string(e.Data), uint64(e.Version)})
	}
	var wrong []error
	u.found, wrong = u.judge(all)
	u.tell("the leader", wrong)
	f := openForwarder(r.t, "unique")
	for i, n := range r.c.Nodes() {
		if !n.Running() {
			continue
		}
		l, err := nodeListing(f, n, wire.ConsistencyStale, wire.ScanRequest{Prefix: []byte("unique/"), Limit: 2000}, patience, nil)
		if err != nil {
			r.t.Errorf("cannot list what %s itself has of the unique writes: %v", r.c.ID(i), err)
			continue
		}
		found, wrong := u.judge(l.keys)
		u.found = min(u.found, found)
		u.tell(r.c.ID(i)+" itself", wrong)
	}
	r.note("unique: %d keys acknowledged, %d surely not applied, %d unknown; %d are there", u.acked.Load(), u.refused.Load(), u.unknown.Load(), len(all))
}

// tell enters what is wrong with one listing.
func (u *uniqueLoad) tell(where string, wrong []error) {
	for i, err := range wrong {
		if i == 3 {
			u.r.anomaly("by %s: %d more of the unique writes are wrong", where, len(wrong)-i)
			return
		}
		u.r.anomaly("by %s: %v", where, err)
	}
}

func (u *uniqueLoad) judge(all []listedKey) (found int64, wrong []error) {
	book := make([][]uniqueWrite, len(u.callers))
	for i, c := range u.callers {
		book[i] = c.writes
	}
	return checkUnique(book, all)
}

func (u *uniqueLoad) figures() figures {
	return figures{done: u.acked.Load() + u.refused.Load(), unknown: u.unknown.Load(), unique: u.found, least: uniqueLeast}
}

// checkUnique compares the writes of each caller with a listing of all keys. It counts the keys that were acknowledged
// and are there as they must be.
func checkUnique(book [][]uniqueWrite, all []listedKey) (found int64, wrong []error) {
	bad := func(format string, a ...any) { wrong = append(wrong, fmt.Errorf(format, a...)) }
	there := make(map[[2]int]int) // keys of each write
	last, versions := "", make(map[uint64]string, len(all))
	for _, k := range all {
		var caller, write, item int
		if _, err := fmt.Sscanf(k.key, "unique/%d/%d/%d", &caller, &write, &item); err != nil || k.key != uniqueKey(caller, write, item) ||
			caller >= len(book) || write >= len(book[caller]) || item >= book[caller][write].keys {
			bad("%s is there although nobody wrote it", k.key)
			continue
		}
		if k.key <= last {
			bad("%s is listed after %s", k.key, last)
			continue
		}
		last = k.key
		if other, ok := versions[k.version]; ok {
			bad("%s and %s have one version, %d", other, k.key, k.version)
		}
		versions[k.version] = k.key
		w := &book[caller][write]
		there[[2]int{caller, write}]++
		switch {
		case k.value != uniqueValue(k.key):
			bad("%s holds %q", k.key, k.value)
		case w.outcome == refused:
			bad("%s is there, with version %d, although it was said to be surely not applied", k.key, k.version)
		case w.outcome == acked && item < len(w.versions) && w.versions[item] != 0 && uint64(w.versions[item]) != k.version:
			bad("%s has version %d, acknowledged was %d", k.key, k.version, w.versions[item])
		case w.outcome == acked:
			found++
		}
	}
	for caller, writes := range book {
		before := client.Version(0)
		for i, w := range writes {
			n := there[[2]int{caller, i}]
			switch {
			case w.outcome == acked && n < w.keys:
				bad("%d of the %d keys %s… are lost: acknowledged with the versions %d", w.keys-n, w.keys, uniqueKey(caller, i, 0), w.versions)
			case n > 0 && n < w.keys:
				bad("only %d of the %d keys %s… are there, which are written together", n, w.keys, uniqueKey(caller, i, 0))
			}
			for _, v := range w.versions {
				if v != 0 && v <= before {
					bad("%s… has version %d, but version %d was acknowledged before it was begun", uniqueKey(caller, i, 0), v, before)
				}
				before = max(before, v)
			}
		}
	}
	return found, wrong
}

// uniqueExample makes a book and the listing of a store that did as it told.
func uniqueExample(rng *rand.Rand) (book [][]uniqueWrite, all []listedKey) {
	version := uint64(100)
	book = make([][]uniqueWrite, 4)
	for range 200 {
		caller := rng.IntN(len(book))
		w := uniqueWrite{keys: 1 + rng.IntN(uniqueItems)}
		happens := true
		switch rng.IntN(10) {
		case 0:
			w.outcome, happens = refused, false
		case 1, 2:
			w.outcome, happens = unknown, rng.IntN(2) == 0
		}
		for i := range w.keys {
			if !happens {
				break
			}
			version += 1 + rng.Uint64N(3)
			key := uniqueKey(caller, len(book[caller]), i)
			all = append(all, listedKey{key, uniqueValue(key), version})
			if w.outcome == acked {
				w.versions = append(w.versions, client.Version(version))
			}
		}
		book[caller] = append(book[caller], w)
	}
	slices.SortFunc(all, func(a, b listedKey) int { return cmp.Compare(a.key, b.key) })
	return book, all
}

// TestUniqueChecker_HarmedListings_AreFoundOut is the control of the workload "unique": the listing of a store that did
// as it told passes, and each harm to it is found.
func TestUniqueChecker_HarmedListings_AreFoundOut(t *testing.T) {
	s := seed(t)
	rng := random(s, 0)
	// find gives the place of the first key of a write with this outcome, whose keys are more than one.
	find := func(book [][]uniqueWrite, all []listedKey, o outcome) int {
		return slices.IndexFunc(all, func(k listedKey) bool {
			var caller, write, item int
			if _, err := fmt.Sscanf(k.key, "unique/%d/%d/%d", &caller, &write, &item); err != nil {
				t.Fatal(err)
			}
			return item == 0 && book[caller][write].outcome == o && book[caller][write].keys > 1
		})
	}
	for range 20 {
		book, all := uniqueExample(rng)
		if _, wrong := checkUnique(book, all); len(wrong) > 0 {
			t.Fatalf("the listing of a store that did as it told: %v", wrong)
		}
		for name, harm := range map[string]struct {
			do   func(all []listedKey) []listedKey
			says string
		}{
			"lost write": {func(all []listedKey) []listedKey {
				i := find(book, all, acked)
				return slices.Delete(all, i, i+1)
			}, "lost"},
			"torn batch": {func(all []listedKey) []listedKey {
				i := find(book, all, unknown)
				return slices.Delete(all, i, i+1)
			}, "together"},
			"duplicate": {func(all []listedKey) []listedKey {
				return slices.Insert(all, 10, all[10])
			}, "listed after"},
			"done twice": {func(all []listedKey) []listedKey {
				all[find(book, all, acked)].version += 1_000_000
				return all
			}, "acknowledged was"},
			"two keys with one version": {func(all []listedKey) []listedKey {
				all[find(book, all, unknown)].version = all[find(book, all, acked)].version
				return all
			}, "one version"},
			"phantom": {func(all []listedKey) []listedKey {
				return append(all, listedKey{"unique/99/000000/0", "", 1})
			}, "nobody wrote"},
			"refused write": {func(all []listedKey) []listedKey {
				for caller, writes := range book {
					if i := slices.IndexFunc(writes, func(w uniqueWrite) bool { return w.outcome == refused }); i >= 0 {
						key := uniqueKey(caller, i, 0)
						at, _ := slices.BinarySearchFunc(all, key, func(k listedKey, key string) int { return cmp.Compare(k.key, key) })
						return slices.Insert(all, at, listedKey{key, uniqueValue(key), 1})
					}
				}
				t.Fatal("nothing was refused")
				return nil
			}, "surely not applied"},
			"other value": {func(all []listedKey) []listedKey {
				all[3].value += "?"
				return all
			}, "holds"},
		} {
			_, wrong := checkUnique(book, harm.do(slices.Clone(all)))
			if !slices.ContainsFunc(wrong, func(err error) bool { return strings.Contains(err.Error(), harm.says) }) {
				t.Fatalf("a %s is not found out, but %v", name, wrong)
			}
		}
		for _, writes := range book {
			if i := slices.IndexFunc(writes, func(w uniqueWrite) bool { return len(w.versions) > 0 }); i >= 0 {
				late := slices.Clone(writes)
				late = append(late, uniqueWrite{keys: 1, versions: writes[i].versions[:1]})
				if _, wrong := checkUnique([][]uniqueWrite{late}, nil); !slices.ContainsFunc(wrong, func(err error) bool { return strings.Contains(err.Error(), "before it was begun") }) {
					t.Fatal("a version that goes back is not found out")
				}
			}
		}
	}
}
