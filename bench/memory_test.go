package bench

import (
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var allocationSink []*[64]byte

// What a process allocates is seen through its own /debug/pprof, and what the two sides of a run allocate is told
// for one operation each.
func TestRun_Allocations_ThoseOfTheWindow(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	s := httptest.NewServer(mux)
	defer s.Close()
	endpoint := strings.TrimPrefix(s.URL, "http://")
	before, err := ServerMallocs(t.Context(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	const n = 100_000
	for range n {
		allocationSink = append(allocationSink[:0], new([64]byte))
	}
	after, err := ServerMallocs(t.Context(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	// The answers themselves allocate, by far less.
	if d := after - before; d < n || d > 2*n {
		t.Errorf("%d allocations seen between two questions, of %d", d, n)
	}
	if _, err := ServerMallocs(t.Context(), endpoint+"/nowhere"); err == nil {
		t.Error("a page that is not there told allocations")
	}

	rep := &Report{Ops: 900, Errors: 100}
	rep.setAllocations(allocations{client: 5, server: 100, serverKnown: true}, allocations{client: 2005, server: 350, serverKnown: true})
	if *rep.ClientAllocsPerOp != 2 || *rep.ServerAllocsPerOp != 0.25 {
		t.Errorf("%v of the client, %v of the servers", *rep.ClientAllocsPerOp, *rep.ServerAllocsPerOp)
	}
	var b strings.Builder
	rep.writeNotes(&b)
	if !strings.Contains(b.String(), "allocations per op: client 2.00, servers 0.25\n") {
		t.Error(b.String())
	}

	real, err := Run(t.Context(), newFakeTarget(), Options{
		Workload: "get", Distribution: "hot", Keys: 2000, Concurrency: 2, Warmup: -1, Duration: 50 * time.Millisecond,
		ServerMetrics: []string{endpoint}, ServerPIDs: []int{os.Getpid()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if real.ClientAllocsPerOp == nil || real.ServerAllocsPerOp == nil || len(real.ServerRSSAnonBytes) != 1 {
		t.Errorf("not measured: %+v", real)
	}
	// Both sides are this process. An operation of the fake allocates less than once; asking allocates thousands.
	if *real.ClientAllocsPerOp > 1.5 || *real.ServerAllocsPerOp > 1.5 {
		t.Errorf("%v allocations of the client, %v of the server for one of %d operations", *real.ClientAllocsPerOp, *real.ServerAllocsPerOp, real.Ops)
	}
}

func TestRSSAnon_MemoryTouched_Grows(t *testing.T) {
	debug.FreeOSMemory() // or what other tests have left goes back to the system meanwhile
	before, err := RSSAnon(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	b := make([]byte, size)
	for i := 0; i < size; i += 1024 {
		b[i] = 1
	}
	after, err := RSSAnon(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after-before < size/2 {
		t.Errorf("%d bytes before %d were touched, %d after", before, len(b), after)
	}
	if n, err := RSSAnon(1 << 30); err == nil {
		t.Errorf("a process that is not there has %d bytes", n)
	}
}

func TestHotChooser_DrawsTheFirstKeys(t *testing.T) {
	for _, keys := range []int{10, 50_000} {
		o, err := Options{Workload: "get", Distribution: "hot", Keys: keys}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		p := newPlan(o)
		g := newGenerator(p, 0)
		hot := map[string]bool{}
		for i := range min(keys, HotKeys) {
			hot[p.keys.name(int64(i))] = true
		}
		var r request
		drawn := map[string]bool{}
		for range 20_000 {
			g.next(&r)
			if !hot[r.key] {
				t.Fatalf("%d keys: %s is not hot", keys, r.key)
			}
			drawn[r.key] = true
		}
		if len(drawn) < len(hot)*9/10 {
			t.Errorf("%d keys: %d of %d hot keys were drawn", keys, len(drawn), len(hot))
		}
	}
}
