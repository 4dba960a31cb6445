package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tmaxmax/go-sse"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// behindName is a name behind which one node of the cluster stands at a time, as behind a load balancer. What is asked
// of it is noted.
type behindName struct {
	addr atomic.Pointer[string]

	mu sync.Mutex
	// Guarded by mu.
	from []string // Last-Event-ID of each request, "" without one
}

// client gives an HTTP client for which every name is this one.
func (b *behindName) client() (c *http.Client, closeIdle func()) {
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, *b.addr.Load())
	}}
	return &http.Client{Transport: noted{b, tr}}, tr.CloseIdleConnections
}

type noted struct {
	b  *behindName
	tr *http.Transport
}

func (n noted) RoundTrip(r *http.Request) (*http.Response, error) {
	n.b.mu.Lock()
	n.b.from = append(n.b.from, r.Header.Get("Last-Event-ID"))
	n.b.mu.Unlock()
	return n.tr.RoundTrip(r)
}

// shownEvent is an event as a client of server-sent events shows it.
type shownEvent struct {
	kind, id string
	key      string
	last     bool
}

// TestSSE_ReconnectingClient_MissesAndRepeatsNothing lets a client of another's making, which keeps to the HTML standard,
// follow a prefix at one name. Behind the name the nodes change: the one that it watches is killed, or stopped in
// order, and another one stands there. Each time the client comes back with the id that it saw last. Transactions, which
// may break off between two of their events, deletions and expiries are among what it must be shown: all of it, once, in
// the order of the Go client's watch.
func TestSSE_ReconnectingClient_MissesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	rng := random(seed, 0)
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	c := openCluster(t, cl, client.WithTimeout(patience))
	ctx, cancel := context.WithCancel(t.Context())
	start, err := c.Put(ctx, "sse/begin", nil)
	if err != nil {
		t.Fatal(err)
	}
	// What happened, as the Go client tells it. It starts first, so that it is behind none.
	w, err := c.Watch(ctx, client.WatchOptions{Prefix: "sse/", After: start})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)

	var name behindName
	behind := func(i int) {
		addr := cl.Node(i).HTTPAddr()
		name.addr.Store(&addr)
	}
	at := cl.MustLead()
	behind(at)
	httpClient, closeIdle := name.client()
	t.Cleanup(closeIdle)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://kvstore.test/api/v1/watch/sse/?from_revision=%d&progress_ms=100", start), nil)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var shown []shownEvent // guarded by mu
	var ends []string      // events "error", guarded by mu
	seen := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(shown)
	}
	es := &sse.Client{HTTPClient: httpClient, Backoff: sse.Backoff{InitialInterval: 20 * time.Millisecond, Multiplier: 1, MaxInterval: 20 * time.Millisecond}}
	conn := es.NewConnection(req)
	conn.SubscribeToAll(func(e sse.Event) {
		var data struct {
			Key  string `json:"key"`
			Last bool   `json:"last"`
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case e.Data == "":
			return // a block without data fires nothing in a browser; this client tells it, and keeps its id, as browsers do
		case e.Type == "error":
			ends = append(ends, e.Data)
			return
		}
		if err := json.Unmarshal([]byte(e.Data), &data); err != nil {
			t.Errorf("%q is no document: %v", e.Data, err)
		}
		shown = append(shown, shownEvent{e.Type, e.LastEventID, data.Key, data.Last})
	})
	var work sync.WaitGroup
	work.Go(func() { // ends with ctx
		if err := conn.Connect(); ctx.Err() == nil {
			t.Errorf("the client has given up: %v", err)
		}
	})
	t.Cleanup(work.Wait)
	t.Cleanup(cancel)

	var want []shownEvent
	// follow takes what the Go client tells up to rev.
	follow := func(rev client.Version) {
		t.Helper()
		limit, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		for len(want) == 0 || want[len(want)-1].id != rev.String() {
			e, err := w.Next(limit)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, shownEvent{fmt.Sprint(e.Kind), e.Revision.String(), e.Key, e.Last})
		}
	}
	// change writes what has n events or more, and returns when the last write is done.
	change := func(round, n int) {
		t.Helper()
		for i := range n {
			key := fmt.Sprintf("sse/%d/%03d", round, i)
			var err error
			switch rng.IntN(4) {
			case 0:
				tx := c.Txn().Put(key+"/a", []byte("1")).Put(key+"/b", []byte("2")).Put("elsewhere/"+key, nil).Delete(key+"/a").Put(key+"/c", []byte("3"))
				_, err = tx.Commit(ctx)
			case 1:
				_, err = c.Put(ctx, key, []byte("soon gone"), client.WithTTL(time.Duration(1+rng.IntN(50))*time.Millisecond))
			default:
				_, err = c.Put(ctx, key, []byte(strings.Repeat("line\n", rng.IntN(100))))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		// A write of its own at the end: expiries may come behind the last one of the loop.
		rev, err := c.Put(ctx, fmt.Sprintf("sse/%d/end", round), nil)
		if err != nil {
			t.Fatal(err)
		}
		follow(rev)
	}
	faults := []struct {
		name           string
		strike, undone func(i int)
	}{
		{"kill -9", func(i int) { cl.Kill(i) }, func(int) { cl.Launch() }},
		{"SIGTERM", func(i int) {
			if code := cl.Node(i).Terminate(); code != 0 {
				t.Errorf("after SIGTERM the node ends with %d, while a client watches", code)
			}
		}, func(int) { cl.Launch() }},
	}
	if !testing.Short() {
		faults = append(faults, faults...)
	}
	for round, f := range faults {
		change(2*round, 30)
		eventually(t, "the client has been shown a part", func() (bool, error) { return seen() > len(want)-rng.IntN(30), nil })
		from := at
		at = (at + 1) % 3
		behind(at)
		f.strike(from)
		change(2*round+1, 30)
		eventually(t, "the client has been shown all", func() (bool, error) { return seen() >= len(want), nil })
		f.undone(from)
		cl.MustBeReady()
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range want { // shown has as many
		if shown[i] != want[i] {
			t.Fatalf("event %d is shown as %v, want %v; before that %v", i, shown[i], want[i], shown[max(0, i-3):i])
		}
	}
	for _, e := range shown[len(want):] { // what expired behind the last write
		if e.kind != "expire" {
			t.Errorf("behind the last event there is %v", e)
		}
	}
	name.mu.Lock()
	defer name.mu.Unlock()
	t.Logf("%d events in %d streams; %d streams ended with a word: %q", len(shown), len(name.from), len(ends), ends)
	for i, id := range name.from[1:] {
		if _, err := strconv.ParseUint(id, 10, 64); err != nil {
			t.Errorf("stream %d was asked for behind %q", i+1, id)
		}
	}
	if len(name.from) <= len(faults) {
		t.Errorf("%d streams under %d faults: the test has not hit the client", len(name.from), len(faults))
	}
}
