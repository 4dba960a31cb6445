package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// memoryNet is a network without sockets: nothing in it waits for anything but channels and timers, so that
// it runs on the false time of testing/synctest.
type memoryNet struct {
	mu sync.Mutex
	// Guarded by mu.
	listeners map[string]*memoryListener
}

// listen opens an address.
func (n *memoryNet) listen(address string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &memoryListener{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
	if n.listeners == nil {
		n.listeners = map[string]*memoryListener{}
	}
	n.listeners[address] = l
	return l
}

// dial is for Options.Dial.
func (n *memoryNet) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody listens at %s", address)
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, errors.Join(fmt.Errorf("nobody listens at %s any more", address), ours.Close(), theirs.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), ours.Close(), theirs.Close())
	}
}

type memoryListener struct {
	address string
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return advertised(l.address) }

// inMemory puts a node's options on n, in place of the socket that they hold.
func (n *memoryNet) inMemory(t *testing.T, o *Options) {
	t.Helper()
	if err := o.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	o.Address = raft.ServerAddress(o.NodeID + ":1")
	o.Listener, o.Dial = n.listen(string(o.Address)), n.dial
}

// Goal: a vote, an append and a heartbeat between two transports need neither a socket nor real time.
func TestMemory_VoteAppendHeartbeat_OnFalseTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var network memoryNet
		acks := make(chan Ack, 2)
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		network.inMemory(t, &oa)
		network.inMemory(t, &ob)
		oa.OnAck = func(a Ack) { acks <- a }
		ob.HoldVotes = time.Hour
		a, b := open(t, oa), open(t, ob)
		b.Bind(newFakeNode(3))
		serve(t, b, agree)

		vote := func() bool {
			var r raft.RequestVoteResponse
			if err := a.RequestVote("node-2", b.LocalAddr(), &raft.RequestVoteRequest{RPCHeader: a.header(), Term: 4}, &r); err != nil {
				t.Fatal(err)
			}
			return r.Granted
		}
		if vote() {
			t.Error("a vote was granted within the time for which votes are held back")
		}
		time.Sleep(time.Hour)
		if !vote() {
			t.Error("no vote was granted after the time for which votes are held back")
		}
		req := &raft.AppendEntriesRequest{RPCHeader: a.header(), Term: 4, Entries: []*raft.Log{{Index: 1, Term: 4, Data: make([]byte, 1<<20)}}}
		var resp raft.AppendEntriesResponse
		if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil || !resp.Success {
			t.Fatalf("append: %+v, %v", resp, err)
		}
		if err := beat(a, b, 4); err != nil {
			t.Fatal(err)
		}
		if first, second := <-acks, <-acks; first.Match != 1 || second.Match != 0 || second.Term != 4 {
			t.Errorf("acks %+v, %+v", first, second)
		}
		if took := time.Since(began); took < time.Hour || took > time.Hour+time.Second {
			t.Errorf("it took %v of the false time", took)
		}
	})
}

// Goal: a call to a node that says nothing ends when it should, on false time, and a restarted node's dead
// connections are left behind.
func TestMemory_SilentAndRestartedPeer_CallsEndAndComeThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memoryNet
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		network.inMemory(t, &oa)
		network.inMemory(t, &ob)
		a, b := open(t, oa), open(t, ob)
		b.Bind(newFakeNode(3))
		began := time.Now()
		if err := beat(a, b, 4); err == nil { // nobody reads b.Consumer
			t.Fatal("a node without raft answered")
		}
		if took := time.Since(began); took < a.o.Timeout || took > a.o.Timeout+time.Second {
			t.Errorf("the call ended after %v, the bound is %v", took, a.o.Timeout)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		ob.Listener = network.listen(string(ob.Address))
		b = open(t, ob)
		b.Bind(newFakeNode(3))
		serve(t, b, agree)
		if err := beat(a, b, 4); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	})
}

// Goal: three real rafts found a group, elect, replicate and outlive their leader in a bubble.
func TestMemory_ThreeRafts_ElectReplicateAndSurviveOneLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memoryNet
		members := cluster(t, 3, func(_ int, o *Options) { network.inMemory(t, o) })
		write(t, members, "a")
		agreeOn(t, members, "a")
		leaderOf(t, members).stop()
		write(t, members, "b")
		agreeOn(t, members, "b")
	})
}

// advertised is an address as a net.Addr.
type advertised raft.ServerAddress

// Network implements net.Addr.
func (a advertised) Network() string { return "tcp" }

// String implements net.Addr.
func (a advertised) String() string { return string(a) }
