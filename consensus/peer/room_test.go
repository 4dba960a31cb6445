package peer

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

// countedConn counts what is written to it.
type countedConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// Goal: a node without room refuses commands, and nothing else; whoever sends them asks before it sends them
// again, and goes on by itself.
func TestStoring_NoRoom_CommandsWaitAndEverythingElsePasses(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	var full atomic.Bool
	var mu sync.Mutex
	var asked []int64
	ob.Storing = func(size int64) error {
		mu.Lock()
		asked = append(asked, size)
		mu.Unlock()
		if full.Load() {
			return errors.New("the disk is full")
		}
		return nil
	}
	var sent atomic.Int64
	oa.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		return &countedConn{Conn: c, sent: &sent}, err
	}
	a, b := open(t, oa), open(t, ob)
	b.Bind(newFakeNode(1))
	var stored atomic.Int64
	serve(t, b, func(rpc raft.RPC) {
		if req, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
			if req.Term == 0 {
				t.Error("raft saw the question")
			}
			stored.Add(int64(len(req.Entries)))
		}
		agree(rpc)
	})
	const size = 1 << 20
	send := func(kind raft.LogType) error {
		req := heartbeat(a, 1)
		req.Entries = []*raft.Log{{Index: 1, Term: 1, Type: kind, Data: make([]byte, size)}}
		var resp raft.AppendEntriesResponse
		err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp)
		if err == nil && !resp.Success {
			t.Error("an append was answered with neither success nor an error")
		}
		return err
	}
	if err := send(raft.LogCommand); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	if err := send(raft.LogCommand); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Fatalf("error = %v", err)
	}
	before := sent.Load()
	for range 20 {
		if err := send(raft.LogCommand); err == nil || !strings.Contains(err.Error(), "the disk is full") {
			t.Fatalf("error = %v", err)
		}
	}
	if cost := sent.Load() - before; cost > 20*1000 {
		t.Errorf("20 attempts for a megabyte each cost %d bytes", cost)
	}
	if err := beat(a, b, 1); err != nil {
		t.Errorf("a heartbeat: %v", err)
	}
	for _, kind := range []raft.LogType{raft.LogNoop, raft.LogBarrier, raft.LogConfiguration} {
		if err := send(kind); err != nil {
			t.Errorf("%v: %v", kind, err)
		}
	}
	if got := stored.Load(); got != 4 {
		t.Errorf("%d entries came through, want one command and three others", got)
	}
	full.Store(false)
	if err := send(raft.LogCommand); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if got := stored.Load(); got != 5 {
		t.Errorf("%d entries came through", got)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, s := range asked {
		if s != size {
			t.Errorf("asked about %d bytes, sent %d", s, size)
		}
	}
}

// Goal: a message of an older term is raft's to answer, room or not: its sender must learn that it is deposed.
func TestStoring_NoRoom_OlderTermIsStillAnswered(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	ob.Storing = func(int64) error { return errors.New("the disk is full") }
	a, b := open(t, oa), open(t, ob)
	b.Bind(newFakeNode(9))
	serve(t, b, func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Term: 9}, nil) })
	req := heartbeat(a, 3)
	req.Entries = []*raft.Log{{Index: 1, Term: 3, Data: []byte("x")}}
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil || resp.Term != 9 {
		t.Errorf("%+v, %v", resp, err)
	}
}

// Goal: the question is told from whatever else a node may send.
func TestAsksForRoom_OnlyTheQuestion(t *testing.T) {
	for addr, want := range map[string]int64{
		"h:1|room?0": 0, "h:1|room?1048576": 1 << 20, "h:1": -1, "": -1, "h:1|room?": -1, "h:1|room?x": -1, "h:1|7": -1, "h:1|room": -1,
	} {
		req := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte(addr)}}
		size, ok := asksForRoom(&req)
		if ok != (want >= 0) || ok && size != want {
			t.Errorf("%q: %d, %v", addr, size, ok)
		}
		for _, change := range []func(*raft.AppendEntriesRequest){
			func(r *raft.AppendEntriesRequest) { r.Term = 1 },
			func(r *raft.AppendEntriesRequest) { r.Entries = []*raft.Log{{}} },
		} {
			other := req
			change(&other)
			if _, ok := asksForRoom(&other); ok {
				t.Errorf("%q: an append is taken for the question", addr)
			}
		}
	}
}
