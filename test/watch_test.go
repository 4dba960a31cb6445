package test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// anonymous gives the anonymous memory of each node's process, in bytes.
func anonymous(t *testing.T, cl *testcluster.Cluster) (all []int64) {
	t.Helper()
	for _, n := range cl.Nodes() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		var kib int64
		for line := range strings.Lines(string(b)) {
			if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); err == nil {
				break
			}
		}
		all = append(all, kib<<10)
	}
	return all
}

// watchScene is a run of the workload "watch" alone.
func watchScene(t *testing.T, s scene, length time.Duration, callers, watchers int) *watchLoad {
	s.loads = []string{"watch"}
	r := newFaultRun(t, &s)
	l := r.loads[0].(*watchLoad)
	l.callers, l.watchers, l.hurry = callers, watchers, true
	r.length = length
	began := time.Now()
	var load time.Duration
	context.AfterFunc(r.ctx, func() { load = time.Since(began) })
	r.execute()
	t.Logf("%d writes (%.0f/s while the load went on, faults included), %d events told", l.done.Load(), float64(l.done.Load())/load.Seconds(), l.told.Load())
	return l
}

// TestWatch_FiftyUnderLoadThroughLeaderKills: fifty watchers of ten ranges, five of them told of each write, while
// leaders are killed.
func TestWatch_FiftyUnderLoadThroughLeaderKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	rarely := nemeses["kill-leader"]
	rarely.strike = func(r *faultRun, rng *rand.Rand) (*fault, error) {
		r.sleepRun(5 * time.Second) // under the whole load
		return nemeses["kill-leader"].strike(r, rng)
	}
	l := watchScene(t, scene{name: "WatchKills", nodes: []int{3}, main: []nemesis{rarely}, settings: map[string]string{
		"heartbeat-timeout": "600ms", "election-timeout": "600ms", "read-mode": "lease", "batch-operations": "4096", "batch-inflight": "4",
		"batch-size": "256KiB", "memtable-size": "16MiB", "checkpoint-interval": "500ms",
	}}, 20*time.Second, 128, 50)
	if n := l.r.struck["kill-leader"]; n < 2 {
		t.Errorf("only %d leaders were killed", n)
	}
}

// TestWatch_ThroughPowerCuts: a feed that lost its end with the power is whole again when the node has replayed its log.
func TestWatch_ThroughPowerCuts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	if testcluster.Isolate(t) {
		return
	}
	watchScene(t, scene{name: "WatchPower", nodes: []int{3}, needs: needDisks, main: named("power-all", "power-any")}, 15*time.Second, 32, 30)
}

// TestWatch_OneThatNeverReads_CostsBoundedMemory_AndSlowsNobody: watchers that take nothing, by the protocol and as
// server-sent events, stand beside one that does.
func TestWatch_OneThatNeverReads_CostsBoundedMemory_AndSlowsNobody(t *testing.T) {
	const idle, valueBytes = 20, 64 << 10
	writes := count(t, "KVSTORE_TEST_WRITES", 3_000, 1_500)
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: map[string]string{
		"memtable-size": "4MiB", "cache-size": "0", "feed-memory-bytes": "4MiB", "feed-segment-bytes": "4MiB", "feed-retain-bytes": "64MiB",
	}})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c := openAt(t, cl.Addrs(), client.WithTimeout(patience))
	value := randomBytes(random(seed(t), 0), valueBytes)
	write := func() {
		result := make(chan error, 64)
		for range cap(result) {
			result <- nil
		}
		for i := range writes {
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			c.PutAsync(fmt.Sprint("k", i%500), value, func(_ client.Version, err error) { result <- err })
		}
		for range cap(result) {
			if err := <-result; err != nil {
				t.Fatal(err)
			}
		}
	}
	write() // what the store takes for such a load it takes without watchers too
	lazy := make([]*client.Watch, idle)
	for i := range lazy {
		w, err := c.Watch(ctx, client.WatchOptions{Credit: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		lazy[i] = w
	}
	for i := range cl.Size() {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+cl.Node(i).HTTPAddr()+"/api/v1/watch/", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := bufio.NewReaderSize(res.Body, 16).ReadByte(); err != nil {
			t.Fatal(err)
		}
	}
	keen, err := c.Watch(ctx, client.WatchOptions{KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer keen.Close()
	before := anonymous(t, cl)
	write()
	for range writes {
		if _, err := keen.Next(ctx); err != nil {
			t.Fatalf("the watcher that reads: %v", err)
		}
	}
	after := anonymous(t, cl)
	t.Logf("%d MB written; anonymous memory of the nodes %v before, %v after", writes*valueBytes>>20, before, after)
	for i := range after {
		// Queues, and what the store's compactions take at one moment and not at another: the latter alone differs by
		// some 300 MB from run to run. Queues without a bound would hold what was written once for each watcher, which
		// is gigabytes.
		if grown := after[i] - before[i]; grown > 512<<20 {
			t.Errorf("%s has grown by %d bytes", cl.ID(i), grown)
		}
	}
	// The lazy ones are told in the end what has become of them, once they take what was sent.
	for i, w := range lazy {
		n := 0
		for {
			if _, err = w.Next(ctx); err != nil {
				break
			}
			if n++; n == writes {
				break
			}
		}
		if err == nil {
			t.Errorf("watcher %d was told of %d writes, although only %d MB are kept", i, n, 64)
		} else if !errors.Is(err, client.ErrCompacted) {
			t.Errorf("watcher %d ended with %v after %d events", i, err, n)
		}
	}
}
