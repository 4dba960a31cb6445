package test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

const (
	// rewriteBlock is how many keys are rewritten at once.
	rewriteBlock = 1000
	// listHeapMax bounds what the client's heap grows by while it goes through a listing of any length: a few pages, and
	// what the garbage collector lets stand.
	listHeapMax = 128 << 20
	// listAnonMax bounds what the memory of a node grows by meanwhile.
	listAnonMax = 512 << 20
)

// TestList_ManyKeysWhileTheyAreRewritten_ShowsOneRevision: the keys are rewritten block by block, one generation after
// the other, each block at once. So at any one revision there is a place in the order of keys before which all have
// generation g, and behind which all have g-1; in a listing of two revisions there would not be.
func TestList_ManyKeysWhileTheyAreRewritten_ShowsOneRevision(t *testing.T) {
	keys := count(t, "KVSTORE_TEST_KEYS", 1_000_000, 20_000) / rewriteBlock * rewriteBlock
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: map[string]string{"memtable-size": "16MiB", "cache-size": "32MiB"}})
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	writer := openAt(t, cl.Addrs(), client.WithTimeout(patience))
	rewrite := func(block, generation int) error {
		items := make([]client.KV, rewriteBlock)
		for i := range items {
			key := fmt.Sprintf("many/%08d", block*rewriteBlock+i)
			items[i] = client.KV{Key: key, Value: fmt.Appendf(nil, "%s/%06d/%0100d", key, generation, 0)}
		}
		_, err := writer.BatchPut(ctx, items, true)
		return err
	}
	began := time.Now()
	for b := range keys / rewriteBlock {
		if err := rewrite(b, 1); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d keys written in %v", keys, time.Since(began).Round(time.Millisecond))

	stop, stopped := context.WithCancel(ctx)
	defer stopped()
	var rewritten atomic.Int64
	var work sync.WaitGroup
	work.Go(func() { // ends with stop
		for generation := 2; ; generation++ {
			for b := range keys / rewriteBlock {
				if stop.Err() != nil {
					return
				}
				if err := rewrite(b, generation); err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("cannot rewrite: %v", err)
					return
				}
				rewritten.Add(rewriteBlock)
			}
		}
	})
	reader := openAt(t, cl.Addrs(), client.WithTimeout(patience))
	for _, way := range []struct {
		name string
		list func(each func(client.Entry) error) error
	}{
		{"stream", func(each func(client.Entry) error) error {
			for e, err := range reader.List(ctx, client.ListOptions{Prefix: "many/"}) {
				if err == nil {
					err = each(e)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"pages", func(each func(client.Entry) error) error {
			var cursor []byte
			var rev client.Version
			for {
				p, err := reader.ListPage(ctx, client.ListOptions{Prefix: "many/", PageSize: 1000}, cursor)
				if err != nil {
					return err
				}
				if rev != 0 && p.Revision != rev {
					return fmt.Errorf("a page shows revision %d, the one before showed %d", p.Revision, rev)
				}
				rev = p.Revision
				for _, e := range p.Entries {
					if e.Version > rev {
						return fmt.Errorf("%s has version %d in a listing of revision %d", e.Key, e.Version, rev)
					}
					if err := each(e); err != nil {
						return err
					}
				}
				if cursor = p.Cursor; len(cursor) == 0 {
					return nil
				}
			}
		}},
	} {
		before, anon := rewritten.Load(), anonymous(t, cl)
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap, most := m.HeapAlloc, uint64(0)
		began := time.Now()
		seen, first, turns, last := 0, "", 0, ""
		err := way.list(func(e client.Entry) error {
			if want := fmt.Sprintf("many/%08d", seen); e.Key != want {
				return fmt.Errorf("%s is listed in the place of %s", e.Key, want)
			}
			generation := string(e.Data[len(e.Key)+1 : len(e.Key)+7])
			switch {
			case seen == 0:
				first = generation
			case generation > last:
				return fmt.Errorf("%s is of generation %s, the key before of %s", e.Key, generation, last)
			case generation < last:
				if turns++; seen%rewriteBlock != 0 || turns > 1 {
					return fmt.Errorf("%s is of generation %s, the key before of %s: two revisions", e.Key, generation, last)
				}
			}
			last = generation
			if seen++; seen%100_000 == 0 {
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
			return nil
		})
		took := time.Since(began)
		if err != nil || seen != keys {
			t.Fatalf("%s: %d of %d keys were listed: %v", way.name, seen, keys, err)
		}
		if most > heap+listHeapMax {
			t.Errorf("%s: the client's heap has grown from %d to %d bytes", way.name, heap, most)
		}
		for i, now := range anonymous(t, cl) {
			if now > anon[i]+listAnonMax {
				t.Errorf("%s: the memory of %s has grown from %d to %d bytes", way.name, cl.ID(i), anon[i], now)
			}
		}
		t.Logf("%s: %d keys in %v (%.0f/s), generation %s to %s, %d keys rewritten meanwhile", way.name, seen, took.Round(time.Millisecond), float64(seen)/took.Seconds(), first, last, rewritten.Load()-before)
	}
	stopped()
	work.Wait()
	n, _, err := reader.Count(ctx, client.ListOptions{Prefix: "many/"})
	if err != nil || n != int64(keys) {
		t.Errorf("%d keys are counted, %v; there are %d", n, err, keys)
	}
}
