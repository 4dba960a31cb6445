package consensus

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// clone starts a second process of n with a copy of its directory, which is reached directly and not through
// the test's network: that can then keep n itself away from the others.
func (n *testNode) clone(id, dir string, starts uint64) *testNode {
	n.c.tb.Helper()
	direct := make(map[string]string) // by the address in the configuration
	n.c.network.mu.Lock()
	for _, o := range n.c.nodes {
		direct[o.address] = n.c.network.targets[o.id]
	}
	n.c.network.mu.Unlock()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.c.tb.Fatal(err)
	}
	twin := &testNode{c: n.c, id: id, dir: dir, address: l.Addr().String(), incarnation: n.incarnation, founders: n.founders, crash: func(string) {}}
	twin.change = func(o *Options) {
		o.NodeID, o.Starts = n.id, starts
		o.dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", direct[address])
		}
	}
	if twin.m, err = loadMachine(dir); err == nil {
		twin.g, err = Open(testContext(n.c.tb), twin.options(n.c.tb, l), twin.m)
	}
	if err != nil {
		n.c.tb.Fatal(err)
	}
	n.c.tb.Cleanup(twin.kill)
	return twin
}

// Goal: of a node that is cut off and a clone of it, a clone that lacks acknowledged entries never takes part
// and says why; one that lacks nothing takes its place, and the node itself says that it is out, although it
// has followed a leader.
func TestRefused_CopiesOfOneDirectory_OneTakesPartAndNothingIsLost(t *testing.T) {
	starts := map[string]*atomic.Uint64{}
	c := newTestCluster(t, 3, func(o *Options) {
		if n := starts[o.NodeID]; n != nil { // a clone says itself what it counts
			o.Starts = n.Add(1)
		}
	})
	for id := range maps.Keys(c.nodes) {
		starts[id] = new(atomic.Uint64)
	}
	c.start()
	c.write("a")
	c.converge()
	leader := c.leader()
	victim := c.others(leader)[0]
	copied := func() string {
		t.Helper()
		victim.kill()
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(victim.dir)); err != nil {
			t.Fatal(err)
		}
		victim.start()
		return dir
	}
	older := copied()
	c.write("b")
	c.converge("b")
	newer := copied()
	eventually(t, "the node follows, without a further entry", func() bool {
		id, _, _ := victim.g.Leader()
		return id != "" && len(victim.m.commands()) == len(leader.m.commands())
	})

	c.network.cut(victim.id, true)
	stale := victim.clone("older", older, 90)
	eventually(t, "the stale clone is refused", func() bool { return stale.g.Refused() != nil })
	if err := stale.g.Refused(); !isRefused(err) || !errors.Is(err, ErrCopied) || strings.Count(err.Error(), "held committed entries up to") != 2 {
		t.Errorf("the stale clone: %v", err)
	}
	if got := len(stale.m.commands()); got >= len(leader.m.commands()) {
		t.Errorf("the stale clone was given entries: it has %d", got)
	}
	stale.kill()
	c.write("c")

	whole := victim.clone("newer", newer, 91)
	eventually(t, "the clone that lacks nothing is let in", func() bool {
		to := whole.g.transport.connections()
		for _, o := range c.others(victim) {
			if !to[o.id].connected {
				return false
			}
		}
		return true
	})
	if err := victim.g.Refused(); err != nil {
		t.Errorf("nobody has talked to the node: %v", err)
	}
	c.network.point(victim.id, whole.g.o.Listener.Addr().String()) // as a supervisor moves an address
	c.network.cut(victim.id, false)
	eventually(t, "the node is told that it is out", func() bool { return victim.g.Refused() != nil })
	if err := victim.g.Refused(); !isRefused(err) || !errors.Is(err, ErrCopied) || strings.Count(err.Error(), "older copy") != 2 {
		t.Errorf("the node: %v", err)
	}
	before := len(victim.m.commands())
	c.write("d")
	all := leader.m.commands()
	eventually(t, "the clone has everything", func() bool { return len(whole.m.commands()) >= len(all) })
	if got := len(victim.m.commands()); got != before {
		t.Errorf("the node was given %d more entries", got-before)
	}
	if err := whole.g.Refused(); err != nil {
		t.Errorf("the clone: %v", err)
	}
}
