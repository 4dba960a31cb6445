package testcluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// askTimeout bounds one question to one node: a frozen one never answers.
const askTimeout = 2 * time.Second

// askInterval is the pause between two looks at all nodes: each look asks every node for its view of all
// others.
const askInterval = 20 * time.Millisecond

// ClusterOptions of a Cluster. The zero value is three nodes with small files, each in a directory of its
// own, founded together.
type ClusterOptions struct {
	// Nodes is the number of nodes. Default: 3.
	Nodes int
	// DataDir gives the data directory of node i. Default: one of the test's, removed with it.
	DataDir func(i int) string
	// Settings are flags of kvstore without their dashes, for all nodes. They override Small().
	Settings map[string]string
	// Binary is the program to run. Default: kvstore, built from this module.
	Binary string
	// Env is added to the environment.
	Env []string
	// Quiet keeps what the nodes wrote out of the log of a failed test.
	Quiet bool
	// Clocks lets the test set the nodes' clocks, as Options.Clocks does.
	Clocks bool
	// Namespaces puts each node into a network namespace of its own, where that is possible: in the process that
	// IsolateNetwork makes. Where it is not, the log says so, and the network is one of proxies.
	Namespaces bool
}

// Cluster is a number of nodes that were founded together, node-1, node-2 and so on, with a Network in
// between. A test uses it from one goroutine; Leader, Statuses, the WaitConverged functions and the network
// may be used by any.
//
// Whatever a node says of its state is compared with what all nodes said before: two digests at one index
// end the test.
type Cluster struct {
	// Immutable after NewCluster.
	t   testing.TB
	o   ClusterOptions
	net *Network

	mu sync.Mutex
	// Guarded by mu.
	nodes   []*Node
	digests map[uint64]digestAt
}

// digestAt is what the first node that told an index said.
type digestAt struct {
	digest string
	node   string
}

// NewCluster prepares a cluster and starts nothing.
func NewCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	c := &Cluster{t: t, o: o, digests: make(map[uint64]digestAt)}
	var addrs, list []string
	if o.Namespaces {
		began := time.Now()
		var err error
		if c.net, addrs, err = newNamespaces(t, o.Nodes); err != nil {
			t.Logf("on loopback: %v", err)
		} else {
			t.Logf("%d network namespaces were made in %v", o.Nodes, time.Since(began).Round(time.Millisecond))
		}
	}
	if c.net == nil {
		c.net = NewNetwork(t)
		var err error
		if addrs, err = c.net.addAll(o.Nodes); err != nil {
			t.Fatal(err)
		}
	}
	for i, addr := range addrs {
		list = append(list, nodeID(i)+"="+addr)
	}
	for i := range o.Nodes {
		c.add(addrs[i], map[string]string{"initial-cluster": strings.Join(list, ",")})
	}
	return c
}

// StartCluster makes a cluster and returns when all its nodes serve.
func StartCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	c := NewCluster(t, o)
	c.Launch()
	c.MustBeReady()
	return c
}

func nodeID(i int) string { return "node-" + strconv.Itoa(i+1) }

// add makes the next node, which the network knows by addr.
func (c *Cluster) add(addr string, settings map[string]string) *Node {
	c.t.Helper()
	i := len(c.nodes)
	o := Options{Settings: maps.Clone(c.o.Settings), Binary: c.o.Binary, Env: c.o.Env, Quiet: c.o.Quiet, Clocks: c.o.Clocks, space: c.net.space(nodeID(i))}
	if c.o.DataDir != nil {
		o.DataDir = c.o.DataDir(i)
	}
	if o.Settings == nil {
		o.Settings = make(map[string]string)
	}
	maps.Copy(o.Settings, settings)
	o.Settings["node-id"], o.Settings["raft-advertise"] = nodeID(i), addr
	n := New(c.t, o)
	c.net.Connect(nodeID(i), n.RaftAddr(), n.Pid)
	c.mu.Lock()
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	return n
}

// AddJoining prepares one more node, that joins by the nodes that run now when it is started.
func (c *Cluster) AddJoining() *Node {
	c.t.Helper()
	addr, err := c.net.Add(nodeID(len(c.nodes)))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.add(addr, map[string]string{"join": c.JoinAddrs(nil)})
}

// JoinAddrs lists the REST addresses of the nodes that run, without except, as --join takes them.
func (c *Cluster) JoinAddrs(except *Node) string {
	var addrs []string
	for _, n := range c.Nodes() {
		if n != except && n.Running() {
			addrs = append(addrs, n.HTTPAddr())
		}
	}
	return strings.Join(addrs, ",")
}

// Size is the number of nodes.
func (c *Cluster) Size() int { return len(c.Nodes()) }

// Node is the i-th node, from 0.
func (c *Cluster) Node(i int) *Node { return c.Nodes()[i] }

// Nodes are all nodes, running or not.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[:len(c.nodes):len(c.nodes)]
}

// ID is the id of node i.
func (c *Cluster) ID(i int) string { return nodeID(i) }

// Index is the number of the node with this id, -1 if there is none.
func (c *Cluster) Index(id string) int {
	for i := range c.Nodes() {
		if nodeID(i) == id {
			return i
		}
	}
	return -1
}

// Net is the network between the nodes.
func (c *Cluster) Net() *Network { return c.net }

// Addrs are the addresses of the binary protocol of all nodes.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, n := range c.Nodes() {
		addrs = append(addrs, n.Addr())
	}
	return addrs
}

// Launch starts all nodes that do not run and returns at once.
func (c *Cluster) Launch() {
	c.t.Helper()
	for _, n := range c.Nodes() {
		if !n.Running() {
			n.Launch()
		}
	}
}

// WaitReady returns when all nodes serve, or when one has ended.
func (c *Cluster) WaitReady() error {
	for i, n := range c.Nodes() {
		if err := n.WaitReady(); err != nil {
			return fmt.Errorf("%s: %w", nodeID(i), err)
		}
	}
	return nil
}

// MustBeReady is WaitReady that ends the test on an error.
func (c *Cluster) MustBeReady() {
	c.t.Helper()
	if err := c.WaitReady(); err != nil {
		c.t.Fatal(err)
	}
}

// Kill ends node i by SIGKILL.
func (c *Cluster) Kill(i int) {
	c.t.Helper()
	c.Node(i).Kill()
}

// KillAll ends all nodes by SIGKILL, all at the same moment.
func (c *Cluster) KillAll() {
	c.t.Helper()
	var wg sync.WaitGroup
	for _, n := range c.Nodes() {
		wg.Go(n.Kill)
	}
	wg.Wait()
}

// FreezeAll stops all processes at the same moment and returns when none can run any code of its own.
func (c *Cluster) FreezeAll() error {
	nodes := c.Nodes()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.Freeze() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Ended tells which node has ended although nobody stopped it; nil: none. REQUIRES: all nodes were launched.
func (c *Cluster) Ended() error {
	for i, n := range c.Nodes() {
		if !n.Running() {
			return fmt.Errorf("%s has ended by itself:\n%s", nodeID(i), n.LastOutput())
		}
	}
	return nil
}

// Statuses asks all nodes at once. A node that does not answer has an empty NodeID; its error stands in
// errs at its place.
func (c *Cluster) Statuses(ctx context.Context) (all []Status, errs []error) {
	return c.statuses(ctx, -1)
}

// errNotAsked stands in the place of a node that was left out.
var errNotAsked = errors.New("not asked")

// statuses asks all nodes but one.
func (c *Cluster) statuses(ctx context.Context, except int) (all []Status, errs []error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	nodes := c.Nodes()
	all, errs = make([]Status, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		if i == except {
			errs[i] = errNotAsked
			continue
		}
		wg.Go(func() {
			if all[i], errs[i] = n.StatusContext(ctx); errs[i] == nil {
				c.observe(&all[i])
			}
		})
	}
	wg.Wait()
	return all, errs
}

// observe compares the state of a node with what was said before.
func (c *Cluster) observe(s *Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.digests[s.AppliedIndex]
	if !known {
		c.digests[s.AppliedIndex] = digestAt{s.StateDigest, s.NodeID}
		return
	}
	if before.digest != s.StateDigest {
		c.t.Errorf("the nodes have diverged: at index %d %s said %s and %s says %s", s.AppliedIndex, before.node, before.digest, s.NodeID, s.StateDigest)
	}
}

// Leader waits until one node leads and gives its number. Of several that think so, the one of the highest
// term counts.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	return c.leader(ctx, -1)
}

// LeaderOtherThan waits until a node other than the i-th leads, which is not asked: it may be frozen.
func (c *Cluster) LeaderOtherThan(ctx context.Context, i int) (int, error) {
	return c.leader(ctx, i)
}

func (c *Cluster) leader(ctx context.Context, except int) (int, error) {
	for {
		all, errs := c.statuses(ctx, except)
		leader, term := -1, uint64(0)
		for i := range all {
			if all[i].IsLeader && all[i].Term > term {
				leader, term = i, all[i].Term
			}
		}
		if leader >= 0 {
			return leader, nil
		}
		if !sleep(ctx, askInterval) {
			return -1, fmt.Errorf("no node leads: %w", errors.Join(errs...))
		}
	}
}

// MustLead is Leader that ends the test when there is none for a long time.
func (c *Cluster) MustLead() int {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	i, err := c.Leader(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return i
}

// WaitConverged waits until all the nodes that run have applied the same index, and gives it with the digest
// of the state, the same everywhere. REQUIRES: nothing writes any more.
func (c *Cluster) WaitConverged(ctx context.Context) (index uint64, digest string, err error) {
	for {
		all, errs := c.Statuses(ctx)
		same, first := true, (*Status)(nil)
		for i, n := range c.Nodes() {
			if !n.Running() {
				continue
			}
			if errs[i] != nil {
				same = false
				break
			}
			if first == nil {
				first = &all[i]
			}
			same = same && all[i].AppliedIndex == first.AppliedIndex
		}
		if same && first != nil && first.AppliedIndex > 0 {
			for i, n := range c.Nodes() {
				if n.Running() && all[i].StateDigest != first.StateDigest {
					return 0, "", fmt.Errorf("at index %d %s has digest %s and %s has %s", first.AppliedIndex, first.NodeID, first.StateDigest, all[i].NodeID, all[i].StateDigest)
				}
			}
			return first.AppliedIndex, first.StateDigest, nil
		}
		if !sleep(ctx, askInterval) {
			var at []string
			for i := range all {
				at = append(at, fmt.Sprintf("%s at %d (%v)", nodeID(i), all[i].AppliedIndex, errs[i]))
			}
			return 0, "", fmt.Errorf("the nodes have not converged: %s", strings.Join(at, ", "))
		}
	}
}

// MustConverge is WaitConverged that ends the test when the nodes do not converge for a long time.
func (c *Cluster) MustConverge() (index uint64, digest string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	index, digest, err := c.WaitConverged(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return index, digest
}
