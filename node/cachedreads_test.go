package node

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"kvstore/wire"
)

// answers collects the answers to a bunch by request id.
type answers struct {
	wg sync.WaitGroup

	mu  sync.Mutex
	got map[uint32]wire.Response // guarded by mu
	bad []string                 // guarded by mu
}

func (a *answers) Complete(t wire.Token, r *wire.Response) {
	defer a.wg.Done()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, twice := a.got[t.ID]; twice {
		a.bad = append(a.bad, fmt.Sprintf("request %d was answered twice", t.ID))
	}
	a.got[t.ID] = wire.Response{Status: r.Status, Ext: bytes.Clone(r.Ext), Payload: bytes.Clone(r.Payload)}
}

// A bunch of reads that are answered from memory, of others that are not, and of writes among them: each gets its own answer,
// and once.
func TestServe_BunchOfReads_EachGetsItsOwnAnswer(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	const keys = 40
	for i := range keys {
		if r := put(t, n, fmt.Sprint("k", i), fmt.Sprint("value ", i)); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	big := make([]byte, 40_000) // not for the event loop
	if r := put(t, n, "big", string(big)); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	atLeast := wire.AppendExtU64(nil, wire.ExtMinRevision, 1)
	inDefault := wire.AppendExtString(nil, wire.ExtNamespace, "default")
	nowhere := wire.AppendExtString(nil, wire.ExtNamespace, "nowhere")

	var reqs []wire.Request
	type expected struct {
		status  wire.Status
		payload string
		aged    bool
	}
	want := make(map[uint32]expected)
	add := func(op wire.Opcode, ext []byte, key string, payload []byte, e expected) {
		r := *request(t, op, ext, key, payload)
		r.ID = uint32(len(reqs) + 1)
		want[r.ID] = e
		reqs = append(reqs, r)
	}
	for i := range keys {
		key, value := fmt.Sprint("k", i), fmt.Sprint("value ", i)
		add(wire.OpGet, nil, key, nil, expected{payload: value})
		switch i % 8 {
		case 0:
			add(wire.OpGet, stale, key, nil, expected{payload: value, aged: true})
		case 1:
			add(wire.OpGet, nil, "absent", nil, expected{status: wire.StatusNotFound})
		case 2:
			add(wire.OpGet, stale, "absent", nil, expected{status: wire.StatusNotFound, aged: true})
		case 3:
			add(wire.OpExists, nil, key, nil, expected{})
		case 4:
			add(wire.OpGet, nil, "big", nil, expected{payload: string(big)})
		case 5:
			add(wire.OpGet, atLeast, key, nil, expected{payload: value})
		case 6:
			add(wire.OpGet, inDefault, key, nil, expected{payload: value})
			add(wire.OpGet, nowhere, key, nil, expected{status: wire.StatusNoNamespace})
		case 7:
			add(wire.OpPut, nil, fmt.Sprint("new", i), []byte("v"), expected{payload: "?"})
		}
	}
	for range 3 { // with what the pool has kept
		a := &answers{got: make(map[uint32]wire.Response)}
		a.wg.Add(len(reqs))
		n.service.Serve(a, anonymous, reqs)
		a.wg.Wait()
		for _, bad := range a.bad {
			t.Error(bad)
		}
		for id, w := range want {
			r, ok := a.got[id]
			aged := false
			for ext := r.Ext; len(ext) > 0; {
				typ, _, rest, err := wire.NextExt(ext)
				if err != nil {
					t.Fatal(err)
				}
				aged, ext = aged || typ == wire.ExtAge, rest
			}
			if !ok || r.Status != w.status || aged != w.aged || w.payload != "?" && w.status == wire.StatusOK && string(r.Payload) != w.payload {
				t.Errorf("request %d (%s %q): %v with %.20q, aged %v; want %v", id, reqs[id-1].Op, reqs[id-1].Key, r.Status, r.Payload, aged, w.status)
			}
		}
	}
}
