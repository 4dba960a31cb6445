package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// waitMax ends a wait that does not end by itself. It measures nothing.
const waitMax = time.Minute

// until waits for a condition that can only be polled.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitMax); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// cluster is a number of real nodes in this process, each on ports and in a directory of its own.
type cluster struct {
	t      *testing.T
	change func(*Options)
	ids    []string
	places map[string]*place

	mu    sync.Mutex
	nodes map[string]*Node // guarded by mu: the running ones

	// died takes what nodes say that may not go on. A test that expects none has none: it panics.
	died chan error
}

// place is what a node keeps over its restarts.
type place struct {
	dir                string
	raft, native, http string
}

// newCluster reserves everything for nodes node-1 to node-n and starts none.
func newCluster(t *testing.T, n int, change func(*Options)) *cluster {
	t.Helper()
	c := &cluster{t: t, change: change, places: map[string]*place{}, nodes: map[string]*Node{}}
	for i := range n {
		c.ids = append(c.ids, c.reserve(fmt.Sprintf("node-%d", i+1)))
	}
	t.Cleanup(func() {
		for id := range c.places {
			c.stop(id)
		}
	})
	return c
}

// reserve makes the place of one node.
func (c *cluster) reserve(id string) string {
	c.t.Helper()
	p := &place{dir: c.t.TempDir()}
	for _, to := range []*string{&p.raft, &p.native, &p.http} {
		port, err := testcluster.ReservePort()
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() {
			if err := port.Release(); err != nil {
				c.t.Error(err)
			}
		})
		*to = port.Addr()
	}
	c.places[id] = p
	return id
}

func (c *cluster) options(id string) Options {
	p := c.places[id]
	o := Options{
		NodeID: id, DataDir: p.dir, Listen: p.native, HTTPListen: p.http, RaftListen: p.raft, MetricsListen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(testWriter{c.t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", id),
		Fatal: func(err error) {
			if c.died == nil {
				panic(err)
			}
			c.died <- err
		},
	}
	for _, f := range c.ids {
		o.InitialCluster = append(o.InitialCluster, Founder{f, c.places[f].raft})
	}
	o.Engine.MemtableBytes = 4 << 20
	o.Consensus.SegmentBytes = 1 << 20
	o.Consensus.HeartbeatTimeout = 300 * time.Millisecond
	o.Disk.BallastBytes = -1
	o.Disk.FloorBytes = 1 << 20
	if c.change != nil {
		c.change(&o)
	}
	return o
}

// open starts a node and returns when its doors are open.
func (c *cluster) open(id string, change func(*Options)) (*Node, error) {
	o := c.options(id)
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), waitMax)
	defer cancel()
	n, err := Open(ctx, o)
	if err == nil {
		c.mu.Lock()
		c.nodes[id] = n
		c.mu.Unlock()
	}
	return n, err
}

// start starts nodes at the same time and returns when all of them are ready.
func (c *cluster) start(ids ...string) {
	c.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		wg.Go(func() { _, errs[i] = c.open(id, nil) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		c.t.Fatal(err)
	}
	for _, id := range ids {
		c.ready(id)
	}
}

func (c *cluster) ready(id string) {
	c.t.Helper()
	select {
	case <-c.node(id).Ready():
	case <-time.After(waitMax):
		c.t.Fatalf("%s does not become ready: %v", id, c.node(id).service.readiness())
	}
}

func (c *cluster) node(id string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// stop stops a node in order; one that does not run stays as it is.
func (c *cluster) stop(id string) {
	c.t.Helper()
	c.mu.Lock()
	n := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	if n != nil {
		ctx, cancel := context.WithTimeout(context.Background(), waitMax)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			c.t.Errorf("%s: %v", id, err)
		}
	}
}

// leader waits until the running nodes agree on a leader that serves, and gives it and the others.
func (c *cluster) leader() (leader *Node, others []*Node) {
	c.t.Helper()
	until(c.t, "all nodes know one leader", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		leader, others = nil, nil
		for _, n := range c.nodes {
			if n.shard.leading() {
				leader = n
			} else {
				others = append(others, n)
			}
		}
		return leader != nil && !slices.ContainsFunc(others, func(n *Node) bool { return n.Leader() != leader.info.NodeID })
	})
	slices.SortFunc(others, func(a, b *Node) int { return strings.Compare(a.info.NodeID, b.info.NodeID) })
	return leader, others
}

// recorded waits until a node has the record of every member of its configuration.
func recorded(t *testing.T, n *Node) {
	t.Helper()
	until(t, n.info.NodeID+" has all member records", func() bool {
		for _, m := range n.shard.group.Status().Configuration {
			if r, ok := n.shard.engine.Member(m.ID); !ok || r.Removed || r.Address == "" {
				return false
			}
		}
		return true
	})
}

// same waits until all running nodes have the digest of the leader at the leader's index.
func (c *cluster) same() {
	c.t.Helper()
	leader, others := c.leader()
	until(c.t, "all nodes have one digest", func() bool {
		index, digest := leader.shard.engine.Digest()
		for _, n := range others {
			if i, d := n.shard.engine.Digest(); i != index || d != digest {
				return false
			}
		}
		return true
	})
}

// administer executes one admin action by way of n.
// administer executes one action by way of n; the answer is the document that D describes.
func administer[D clusterDocument | namespacesDocument](t *testing.T, n *Node, document string) (d D, r wire.Response) {
	t.Helper()
	r = do(t, n, wire.OpAdmin, nil, "", []byte(document))
	if r.Status == wire.StatusOK {
		if err := json.Unmarshal(r.Payload, &d); err != nil {
			t.Fatal(err)
		}
	}
	return d, r
}

func mustAdminister[D clusterDocument | namespacesDocument](t *testing.T, n *Node, document string) D {
	t.Helper()
	d, r := administer[D](t, n, document)
	if r.Status != wire.StatusOK {
		t.Fatalf("%s: %s %s", document, r.Status, r.Payload)
	}
	return d
}

// asJSON gives a request of administration as its document.
func asJSON(t *testing.T, q adminRequest) string {
	t.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func roles(d clusterDocument) string {
	var out []string
	for _, m := range d.Members {
		out = append(out, m.ID+":"+m.Role)
	}
	return strings.Join(out, " ")
}

// once executes a request on one node as the binary protocol's door does: without passing it on.
func once(t *testing.T, n *Node, r *wire.Request) wire.Response {
	t.Helper()
	return n.service.attempt(t.Context(), n.service.Anonymous(), r)
}

func status(t *testing.T, n *Node) (d statusDocument) {
	t.Helper()
	r := do(t, n, wire.OpStatus, nil, "", nil)
	if err := json.Unmarshal(r.Payload, &d); err != nil {
		t.Fatalf("%s %s: %v", r.Status, r.Payload, err)
	}
	return d
}

// slow leaves a test that waits for seconds to the full suite.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it waits for seconds; the full suite runs it")
	}
}
