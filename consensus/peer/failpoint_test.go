//go:build failpoints

package peer

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"kvstore/internal/failpoint"
)

// Goal: the place before an acknowledgement is behind raft's work and before the answer, and only on appends
// with entries that were stored.
func TestFailpoint_AckBefore_StoredAndNotAnswered(t *testing.T) {
	set := func(terms string) {
		t.Helper()
		if err := failpoint.Set(terms); err != nil {
			t.Fatal(err)
		}
	}
	a, b := open(t, testOptions(t, 1)), open(t, testOptions(t, 2))
	b.Bind(newFakeNode(1))
	var stored atomic.Int64
	serve(t, b, func(rpc raft.RPC) { stored.Add(1); agree(rpc) })
	req := heartbeat(a, 1)
	req.Entries = []*raft.Log{{Index: 1, Term: 1, Data: []byte("x")}}
	send := func() error {
		var resp raft.AppendEntriesResponse
		return a.AppendEntries("node-2", b.LocalAddr(), req, &resp)
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	set(failpoint.AckBefore + "=error(lost)")
	defer set(failpoint.AckBefore + "=off")
	if err := send(); err == nil || !strings.Contains(err.Error(), "lost") || stored.Load() != 2 {
		t.Errorf("%v; %d messages reached raft, want 2", err, stored.Load())
	}
	if err := beat(a, b, 1); err != nil {
		t.Errorf("a heartbeat: %v", err)
	}
}
