package node

import (
	"context"
	"fmt"
	"testing"

	"kvstore/wire"
)

// sink is a Completer that only counts.
type sink struct{ ok, failed int }

func (s *sink) Complete(_ wire.Token, r *wire.Response) {
	if r.Status == wire.StatusOK {
		s.ok++
	} else {
		s.failed++
	}
}

// A GET that the cache answers allocates nothing between the door and its answer.
func TestServe_CachedGet_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	if r := put(t, n, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	reqs := []wire.Request{*request(t, wire.OpGet, nil, "k", nil)}
	var s sink
	if allocs := testing.AllocsPerRun(1000, func() { n.service.Serve(&s, anonymous, reqs) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if s.failed != 0 || s.ok == 0 {
		t.Errorf("%d answers, %d failures: the cache did not answer inline", s.ok, s.failed)
	}
}

func BenchmarkServe_CachedGet(b *testing.B) {
	n := benchNode(b)
	var s sink
	for _, bunch := range []int{1, 64} {
		b.Run(fmt.Sprintf("bunch=%d", bunch), func(b *testing.B) {
			var reqs []wire.Request
			for range bunch {
				h := wire.Header{Op: wire.OpGet, ID: 1, KeyLen: 1}
				var r wire.Request
				if ref := wire.ParseRequest(&h, []byte("k"), &r); ref != nil {
					b.Fatal(ref)
				}
				reqs = append(reqs, r)
			}
			b.ReportAllocs()
			for b.Loop() {
				n.service.Serve(&s, anonymous, reqs)
			}
		})
	}
}

func benchNode(b *testing.B) *Node {
	b.Helper()
	n, err := Open(b.Context(), Options{
		DataDir: b.TempDir(), Listen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", RaftListen: "127.0.0.1:0",
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	h := wire.Header{Op: wire.OpPut, ID: 1, KeyLen: 1}
	var r wire.Request
	if ref := wire.ParseRequest(&h, []byte("kv"), &r); ref != nil {
		b.Fatal(ref)
	}
	if resp := n.service.Do(b.Context(), anonymous, &r); resp.Status != wire.StatusOK {
		b.Fatal(resp.Status)
	}
	return n
}
