package consensus

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// testNetwork stands between the nodes of a test: each node's public address is one of its proxies. It
// can hold back what flows from one node to another without closing a connection, as a network does that
// loses every packet, and deliver it later.
type testNetwork struct {
	tb testing.TB

	mu sync.Mutex
	// Guarded by mu.
	changed *sync.Cond
	held    map[[2]string]bool // source, target of bytes
	targets map[string]string  // node to the address of its listener
	conns   map[net.Conn]struct{}
	closed  bool
}

func newTestNetwork(tb testing.TB) *testNetwork {
	n := &testNetwork{tb: tb, held: map[[2]string]bool{}, targets: map[string]string{}, conns: map[net.Conn]struct{}{}}
	n.changed = sync.NewCond(&n.mu)
	return n
}

// add opens the public address of a node.
func (n *testNetwork) add(id string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // owned by the test; ends when its cleanup closes l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { n.serve(c, id) })
		}
	})
	n.tb.Cleanup(func() {
		_ = l.Close()
		n.close()
		wg.Wait()
	})
	return l.Addr().String()
}

// point says where a node listens now.
func (n *testNetwork) point(id, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.targets[id] = address
}

// hold holds back what flows from one node to another, or lets it flow again.
func (n *testNetwork) hold(source, target string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[[2]string{source, target}] = on
	n.changed.Broadcast()
}

// cut holds back everything from and to a node, or lets it flow again.
func (n *testNetwork) cut(id string, on bool) {
	n.mu.Lock()
	var others []string
	for other := range n.targets {
		if other != id {
			others = append(others, other)
		}
	}
	n.mu.Unlock()
	for _, other := range others {
		n.hold(id, other, on)
		n.hold(other, id, on)
	}
}

func (n *testNetwork) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for c := range n.conns {
		_ = c.Close()
	}
	n.changed.Broadcast()
}

// keep registers a connection so that close ends it.
func (n *testNetwork) keep(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		_ = c.Close()
		return false
	}
	n.conns[c] = struct{}{}
	return true
}

func (n *testNetwork) drop(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
	_ = c.Close()
}

// serve forwards one connection to a node. Who calls stands in the first frame.
func (n *testNetwork) serve(in net.Conn, target string) {
	if !n.keep(in) {
		return
	}
	defer n.drop(in)
	first := make([]byte, 16<<10)
	k, err := in.Read(first)
	if err != nil {
		return
	}
	first = first[:k]
	source := ""
	n.mu.Lock()
	for id := range n.targets {
		if bytes.Contains(first, []byte(`"source":"`+id+`"`)) {
			source = id
		}
	}
	address := n.targets[target]
	n.mu.Unlock()
	if source == "" {
		n.tb.Errorf("a connection to %s begins with %.300q: from whom?", target, first)
		return
	}
	if !n.pass(source, target) {
		return
	}
	out, err := net.Dial("tcp", address)
	if err != nil || !n.keep(out) {
		return
	}
	defer n.drop(out)
	if _, err := out.Write(first); err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.pump(out, in, source, target) })
	n.pump(in, out, target, source)
	wg.Wait()
}

// pass waits until bytes may flow; false when the test is over.
func (n *testNetwork) pass(source, target string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.held[[2]string{source, target}] && !n.closed {
		n.changed.Wait()
	}
	return !n.closed
}

// pump copies until one side closes, and then closes the other.
func (n *testNetwork) pump(to, from net.Conn, source, target string) {
	defer func() {
		if c, ok := to.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		k, err := from.Read(buf)
		if k > 0 {
			if !n.pass(source, target) {
				return
			}
			if _, err := to.Write(buf[:k]); err != nil {
				_, _ = io.Copy(io.Discard, from)
				return
			}
		}
		if err != nil {
			return
		}
	}
}
