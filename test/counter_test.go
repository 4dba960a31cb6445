package test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// brittleConn is a connection that breaks after some bytes, in either direction, at whatever point of a frame that is.
type brittleConn struct {
	net.Conn
	left   atomic.Int64
	broken *atomic.Int64
}

func (c *brittleConn) spend(n int) error {
	if c.left.Add(-int64(n)) > 0 {
		return nil
	}
	if c.Close() == nil {
		c.broken.Add(1)
	}
	return errors.New("broken by the test")
}

func (c *brittleConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if broken := c.spend(n); broken != nil {
		return 0, broken // what came is lost
	}
	return n, err
}

func (c *brittleConn) Write(b []byte) (int, error) {
	if left := c.left.Load(); int64(len(b)) >= left {
		n, _ := c.Conn.Write(b[:max(0, left-1)]) // the beginning goes through
		return n, c.spend(len(b))
	}
	n, err := c.Conn.Write(b)
	if broken := c.spend(n); broken != nil {
		return n, broken
	}
	return n, err
}

// TestCounter_IncrementsThroughBrokenConnectionsAndLeaderKills_AreDoneExactlyOnce: whatever breaks, each increment is
// repeated blindly in its session until its outcome is known, and the counter ends where the increments are counted.
func TestCounter_IncrementsThroughBrokenConnectionsAndLeaderKills_AreDoneExactlyOnce(t *testing.T) {
	increments, kills := count(t, "KVSTORE_TEST_INCREMENTS", 100_000, 4_000), count(t, "KVSTORE_TEST_KILLS", 10, 2)
	const callers = 64
	rng := random(seed(t), 0)
	var mu sync.Mutex // guards rng
	var broken, dialed atomic.Int64
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		dialed.Add(1)
		c := &brittleConn{Conn: nc, broken: &broken}
		mu.Lock()
		defer mu.Unlock()
		c.left.Store(1_000 + rng.Int64N(100_000))
		return c, nil
	}
	c := openAt(t, cl.Addrs(), client.WithTimeout(patience), client.WithDialer(dial), client.WithRetryBudget(1<<20))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()

	var left, done atomic.Int64
	left.Store(int64(increments))
	var told sync.Map // each value is told once
	var work sync.WaitGroup
	for range callers {
		work.Go(func() { // ends when nothing is left
			for left.Add(-1) >= 0 {
				n, _, err := c.Increment(ctx, "counter", 1)
				if err != nil {
					t.Errorf("an increment with a session has no known outcome: %v", err)
					return
				}
				if _, twice := told.LoadOrStore(n, true); twice {
					t.Errorf("two increments were told %d", n)
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
	cl.MustConverge()
	t.Logf("%d increments, %d leaders killed, %d of %d connections broken", increments, killed, broken.Load(), dialed.Load())
	if broken.Load() == 0 {
		t.Error("no connection was broken: this proves nothing")
	}
}
