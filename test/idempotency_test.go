package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// onceCaller sends increments by REST, each with a key of its own, to any node, until each has an answer.
type onceCaller struct {
	http  *http.Client
	nodes []*testcluster.Node
	pick  func(n int) int
	// What came of single attempts: no answer at all, 504, and what was surely not done.
	lost, unknown, refused atomic.Int64
}

// increment adds 1 to the counter once, and gives the value that came back.
func (c *onceCaller) increment(ctx context.Context, key string) (value string, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("increment %s has no known outcome: %w", key, err)
		}
		value, status, err := c.attempt(ctx, c.nodes[c.pick(len(c.nodes))], key)
		switch {
		case err != nil:
			c.lost.Add(1)
		case status == http.StatusGatewayTimeout:
			c.unknown.Add(1)
		case status == http.StatusServiceUnavailable:
			c.refused.Add(1)
		case status != http.StatusOK:
			return "", fmt.Errorf("increment %s: %d %s", key, status, value)
		default:
			return value, nil
		}
		time.Sleep(time.Duration(1+c.pick(20)) * time.Millisecond) // a pause between attempts: nothing is waited for
	}
}

// attempt sends one request. err: there was no answer that could be read.
func (c *onceCaller) attempt(ctx context.Context, n *testcluster.Node, key string) (value string, status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.HTTPAddr()+"/api/v1/increment/counter", nil)
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := c.http.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return string(b), resp.StatusCode, err
	}
	var doc struct{ Value string }
	err = json.Unmarshal(b, &doc)
	return doc.Value, resp.StatusCode, err
}

// TestIdempotency_IncrementsByRESTThroughBrokenConnectionsAndLeaderKills_AreDoneExactlyOnce: callers without sessions repeat
// each increment blindly, with its key, at any node, until an answer arrives; some they repeat once more after that. The
// counter ends where the increments are counted, and each has one answer.
func TestIdempotency_IncrementsByRESTThroughBrokenConnectionsAndLeaderKills_AreDoneExactlyOnce(t *testing.T) {
	increments, kills := count(t, "KVSTORE_TEST_KEYED_INCREMENTS", 10_000, 2_000), count(t, "KVSTORE_TEST_KEYED_KILLS", 5, 3)
	const callers = 24
	rng := random(seed(t), 0)
	var mu sync.Mutex // guards rng
	pick := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	var broken, dialed atomic.Int64
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	tr := &http.Transport{MaxIdleConnsPerHost: callers, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		dialed.Add(1)
		c := &brittleConn{Conn: nc, broken: &broken}
		c.left.Store(int64(500 + pick(30_000)))
		return c, nil
	}}
	t.Cleanup(tr.CloseIdleConnections)
	// Less than an election takes: some attempts are given up and repeated while the first is still under way.
	c := &onceCaller{http: &http.Client{Transport: tr, Timeout: time.Second}, nodes: cl.Nodes(), pick: pick}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()

	var left, done, again atomic.Int64
	left.Store(int64(increments))
	var told sync.Map // value -> key
	var work sync.WaitGroup
	for range callers {
		work.Go(func() { // ends when nothing is left
			for {
				n := left.Add(-1)
				if n < 0 {
					return
				}
				key := fmt.Sprintf("increment %d", n)
				value, err := c.increment(ctx, key)
				if err != nil {
					t.Error(err)
					return
				}
				if other, twice := told.LoadOrStore(value, key); twice {
					t.Errorf("%s and %s were told %s", key, other, value)
				}
				if n%8 == 0 {
					second, err := c.increment(ctx, key)
					if err != nil || second != value {
						t.Errorf("%s was told %s, then %s, %v", key, value, second, err)
					}
					again.Add(1)
				}
				done.Add(1)
			}
		})
	}
	killed := 0
	for ; killed < kills; killed++ {
		want := int64(increments) * int64(killed+1) / int64(kills+1)
		for done.Load() < want && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		leader, err := cl.Leader(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cl.Kill(leader)
		cl.Node(leader).Start()
	}
	work.Wait()
	if t.Failed() {
		return
	}
	v, err := openAt(t, cl.Addrs()).Get(ctx, "counter")
	if err != nil || string(v.Data) != strconv.Itoa(increments) {
		t.Errorf("the counter is %q, %v after %d increments", v.Data, err, increments)
	}
	// The answers outlive all processes, too.
	cl.KillAll()
	cl.Launch()
	cl.MustBeReady()
	for n := range min(20, increments) {
		key := fmt.Sprintf("increment %d", n)
		value, err := c.increment(ctx, key)
		if owner, ok := told.Load(value); err != nil || !ok || owner != key {
			t.Errorf("%s is told %s, %v after the restart; that was %v's", key, value, err, owner)
		}
	}
	cl.MustConverge()
	t.Logf("%d increments, %d repeated after their answer, %d leaders killed, %d of %d connections broken; attempts: %d without an answer, %d unknown, %d refused",
		increments, again.Load(), killed, broken.Load(), dialed.Load(), c.lost.Load(), c.unknown.Load(), c.refused.Load())
	if broken.Load() == 0 || c.lost.Load() == 0 {
		t.Error("no answer was lost: this proves nothing")
	}
}
