package peer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fakeNode is a Node that does as it is told.
type fakeNode struct {
	term, applied, commit atomic.Uint64
	stands                atomic.Bool

	mu      sync.Mutex
	entries map[uint64]uint64
}

func newFakeNode(term uint64) *fakeNode {
	n := &fakeNode{entries: map[uint64]uint64{}}
	n.term.Store(term)
	return n
}

func (n *fakeNode) CurrentTerm() uint64 { return n.term.Load() }
func (n *fakeNode) Follows() bool       { return !n.stands.Load() }
func (n *fakeNode) Applied() uint64     { return n.applied.Load() }
func (n *fakeNode) CommitIndex() uint64 { return n.commit.Load() }
func (n *fakeNode) EntryTerm(i uint64) (uint64, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	term, ok := n.entries[i]
	return term, ok
}

func (n *fakeNode) put(index, term uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries[index] = term
}

func incarnation(b byte) (out [16]byte) {
	for i := range out {
		out[i] = b
	}
	return out
}

func listenLocal() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

func newListener(t *testing.T) net.Listener {
	t.Helper()
	l, err := listenLocal()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// relisten opens the address again, as a restarted process does.
func relisten(t *testing.T, address raft.ServerAddress) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", string(address))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// testOptions are those of node-<n>, whose data directory is named by n, in cluster 0xcc.
func testOptions(t *testing.T, n byte) Options {
	t.Helper()
	l := newListener(t)
	return Options{
		Listener: l, Address: raft.ServerAddress(l.Addr().String()),
		NodeID: fmt.Sprintf("node-%d", n), Incarnation: incarnation(n),
		Dir:     t.TempDir(),
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		Cluster: func() (cluster, history [16]byte, ok bool) { return incarnation(0xcc), incarnation(0xdd), true },
	}
}

func open(t *testing.T, o Options) *Transport {
	t.Helper()
	tr, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return tr
}

// serve answers raft's messages until the test ends.
func serve(t *testing.T, tr *Transport, handle func(raft.RPC)) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // owned by the test; ends with it
		defer close(stopped)
		for {
			select {
			case rpc := <-tr.Consumer():
				handle(rpc)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
}

// agree answers every message with success in its own term.
func agree(rpc raft.RPC) {
	switch req := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		rpc.Respond(&raft.AppendEntriesResponse{Term: req.Term, Success: true}, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{Term: req.Term, Granted: true}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{Term: req.Term, Granted: true}, nil)
	case *raft.TimeoutNowRequest:
		rpc.Respond(&raft.TimeoutNowResponse{}, nil)
	case *raft.InstallSnapshotRequest:
		rpc.Respond(&raft.InstallSnapshotResponse{Term: req.Term, Success: true}, nil)
	}
}

func heartbeat(from *Transport, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{RPCHeader: from.header(), Term: term}
}

// beat sends a heartbeat.
func beat(from, to *Transport, term uint64) error {
	var resp raft.AppendEntriesResponse
	return from.AppendEntries(raft.ServerID(to.o.NodeID), to.LocalAddr(), heartbeat(from, term), &resp)
}

func statusOf(t *testing.T, tr *Transport, id string) Status {
	t.Helper()
	for _, s := range tr.Peers() {
		if s.ID == id {
			return s
		}
	}
	t.Fatalf("%s does not know %s: %+v", tr.o.NodeID, id, tr.Peers())
	return Status{}
}

// eventually waits for a condition that nobody announces.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func shortContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
