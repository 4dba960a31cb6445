package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/bench"
)

var update = flag.Bool("update", false, "write golden files anew")

func number(f float64) *float64 { return &f }

// sample has a row that meets its target, one that misses it, one that failed, and one that was not measured.
func sample() *results {
	c := &comparison{
		Date: "2026-01-02", Commit: "0123456789abcdef", Machine: bench.Machine{CPU: "Example CPU", Cores: 2, Memory: 24 << 30, Kernel: "Linux 6.1", FileSystem: "ext4", Go: "go1.26"},
		Fdatasync: 128, Replicated: 251, Seconds: 2, IdleAllocs: 12_000, Left: []string{"redis-benchmark: not installed"},
		Rows: []result{
			{Row: rowPut, Peer: "etcd 3.7.3", Unit: unitRate, Pairs: []pair{
				{Own: turn{Figure: 120_000, CPU: 9, ClientAllocs: number(1), ServerAllocs: number(20)}, Other: turn{Figure: 10_000, CPU: 100}},
				{Own: turn{Figure: 130_000, CPU: 8, ClientAllocs: number(3), ServerAllocs: number(22)}, Other: turn{Figure: 10_000, CPU: 100}},
				{Own: turn{Figure: 60_000, CPU: 20, ClientAllocs: number(2), ServerAllocs: number(21)}, Other: turn{Figure: 10_000, CPU: 100}},
			}},
			{Row: rowGet, Peer: "redis 7.0.15", Unit: unitRate, Pairs: []pair{{Own: turn{Figure: 400_000, CPU: 1, ClientAllocs: number(0.002), ServerAllocs: number(0.035)}, Other: turn{Figure: 200_000, CPU: 2}}}},
			{Row: "lone GET, p50", Peer: "redis 7.0.15", Unit: unitP50, Pairs: []pair{{Own: turn{Figure: 40, failed: 1, why: "get found no record"}, Other: turn{Figure: 50}}}},
			{Row: "lone PUT, three nodes, p50", Peer: "floor of three processes", Unit: unitP50, Pairs: []pair{{Own: turn{Figure: 1300, CPU: 900}, Other: turn{Figure: 1000}}}},
		},
	}
	for i := range c.Rows {
		c.Rows[i].sum()
	}
	return &results{comparison: c, growth: &bench.GrowthReport{
		Keys: growthKeys, SmallKeys: 100_000, ValueBytes: 128, RSSAnonBytes: []int64{650_000_000}, Settled: true,
		Growth: []bench.GrowthPart{{Workload: "get", Distribution: "hot", Ratio: 0.95, RatioMin: 0.9, RatioMax: 1}, {Workload: "put", Distribution: "uniform", Ratio: 0.3}},
	}}
}

// The tables, through the file of results that they are made from, into a page.
func TestTable_FromResultsIntoAPage_Golden(t *testing.T) {
	dir := t.TempDir()
	file, page := filepath.Join(dir, "results.jsonl"), filepath.Join(dir, "page.md")
	var lines []byte
	for _, v := range []any{sample().growth, sample().comparison} {
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(append(lines, line...), '\n')
	}
	for name, text := range map[string]string{file: string(lines), page: "before\n" + markerBegin + "\nold\n" + markerEnd + "\nafter\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // again, the page stays as it is
		if err := tableCommand([]string{"-into", page, file}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "page.md")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(got) != string(want) {
		t.Errorf("%s differs (-update writes it anew), %v:\n%s", golden, err, got)
	}
	if err := os.WriteFile(page, []byte("no markers"), 0o600); err != nil {
		t.Fatal(err)
	}
	if tableCommand([]string{"-into", page, file}) == nil || tableCommand([]string{page}) == nil || tableCommand(nil) == nil {
		t.Error("a page without markers, results that are none, or no file: no error")
	}
}

// Each turn's share belongs to that turn's allocations; too few samples, a turn without any, and results of older versions are not
// judged.
func TestTable_PutAllocations_TextAndVerdict(t *testing.T) {
	type own struct{ allocs, share, samples float64 } // samples 0: the share is not known
	for name, c := range map[string]struct {
		turns        []own
		idle         float64
		text, judged string
	}{
		"met": {
			// Beyond Badger's: 1.4, 1.6 and 1.5. The median of all and the share of all together would make 0.57.
			[]own{{1.4, 0, 40}, {40, 0.96, 200}, {6, 0.75, 160}}, 0,
			"client 0.001, servers 6.000, of which Badger 4.50 (75 % by 400 samples), beyond it 1.50 (1.40 to 1.60)", met,
		},
		"missed, with idle servers": {
			[]own{{12.1, 0.5, 50}, {8.1, 0.7, 50}, {10.1, 0.7, 50}}, 10_000,
			"client 0.001, servers 10.100, of which idle servers make 0.100, Badger 7.00 (70 % by 150 samples), beyond it 3.00 (2.40 to 6.00)", missed,
		},
		"exactly at the target": {
			[]own{{8, 0.75, 100}}, 0, "client 0.001, servers 8.000, of which Badger 6.00 (75 % by 100 samples), beyond it 2.00 (2.00 to 2.00)", met,
		},
		"nothing of Badger": {
			[]own{{1.5, 0, 120}}, 0, "client 0.001, servers 1.500, of which Badger 0.00 (0 % by 120 samples), beyond it 1.50 (1.50 to 1.50)", met,
		},
		"nothing but idle": {
			[]own{{0.1, 0.2, 120}}, 20_000, "client 0.001, servers 0.100, of which idle servers make 0.200, Badger 0.00 (0 % by 120 samples), beyond it 0.00 (0.00 to 0.00)", met,
		},
		"too few samples": {
			[]own{{7, 0.8, 49.6}, {7, 0.8, 49.6}}, 0, "client 0.001, servers 7.000", "not measured: 99 samples tell too little of Badger's share",
		},
		"few samples, but few allocations too": {[]own{{1.9, 0.8, 20}}, 0, "client 0.001, servers 1.900", met},
		"a turn without samples": {
			[]own{{7, 0.8, 200}, {7, 0, 0}}, 0, "client 0.001, servers 7.000", "not measured: Badger's share is not known",
		},
		"older results": {[]own{{7, 0, 0}}, 0, "client 0.001, servers 7.000", "not measured: Badger's share is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			r := result{Row: rowPut, Peer: "etcd 3.7.3", Unit: unitRate}
			for _, o := range c.turns {
				p := pair{Own: turn{Figure: 100_000, ClientAllocs: number(0.001), ServerAllocs: number(o.allocs)}, Other: turn{Figure: 10_000}}
				if o.samples > 0 {
					p.Own.BadgerShare, p.Own.AllocSamples = number(o.share), o.samples
				}
				r.Pairs = append(r.Pairs, p)
			}
			r.sum()
			line, err := json.Marshal(&comparison{IdleAllocs: c.idle, Rows: []result{r}})
			if err != nil {
				t.Fatal(err)
			}
			if older := !strings.Contains(string(line), "badger") && !strings.Contains(string(line), "samples"); older != (name == "older results") {
				t.Errorf("fields that older results have not: %s", line)
			}
			var all results
			var b strings.Builder
			if err := errors.Join(all.read(strings.NewReader(string(line)+"\n")), all.write(&b)); err != nil {
				t.Fatal(err)
			}
			want := "| allocations per PUT, 256 callers, three nodes, Badger's own included | " + c.text + " | ≤ 2 beyond Badger's own | " + c.judged + " |\n"
			if !strings.Contains(b.String(), want) {
				t.Errorf("no line\n%sin\n%s", want, b.String())
			}
		})
	}
}

// puts is a target whose every put allocates.
type puts struct {
	bench.Target
	all atomic.Int64
}

func (p *puts) Put(context.Context, string, []byte) error {
	p.all.Add(1)
	garbage.Store(new([1024]byte))
	return nil
}

var garbage atomic.Pointer[[1024]byte]

// A turn of the row of puts: the share is that of its window. Without a node that tells it, the turn counts all the same.
func TestDriveSampled_Window_WithAndWithoutProfiles(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	s := httptest.NewServer(mux)
	defer s.Close()
	endpoint := strings.TrimPrefix(s.URL, "http://")
	r := row{name: rowPut, unit: unitRate, load: bench.Options{Workload: "put", Concurrency: 2}}
	p := &puts{}
	got, err := driveSampled(t.Context(), p, r, 200*time.Millisecond, []int{os.Getpid()}, []string{endpoint})
	if err != nil {
		t.Fatal(err)
	}
	// Nothing here is Badger's.
	if got.BadgerShare == nil || *got.BadgerShare != 0 || got.AllocSamples <= 0 || got.ServerAllocs == nil || got.CPU <= 0 {
		t.Errorf("%+v", got)
	}
	if counted := got.Figure * 0.2; float64(p.all.Load()) < counted*1.5 {
		t.Errorf("%d puts, warm-up included, of which %.0f were counted", p.all.Load(), counted)
	}
	got, err = driveSampled(t.Context(), p, r, 100*time.Millisecond, nil, []string{endpoint, freeAddress(t)})
	if err != nil || got.BadgerShare != nil || got.Figure <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRedisBenchmarkRate_ItsForms(t *testing.T) {
	head := `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"` + "\n"
	if rate, err := redisBenchmarkRate(head + `"GET key:__rand_int__","776924.12","1.0","0.1","1","1","1","2"` + "\n"); err != nil || rate != 776924.12 {
		t.Errorf("%v, %v", rate, err)
	}
	for _, text := range []string{"", head, head + `"x","0","1","1","1","1","1","1"` + "\n", "ERR\n"} {
		if rate, err := redisBenchmarkRate(text); err == nil {
			t.Errorf("%q told a rate of %v", text, rate)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Every operation that the rows need, against a real node of etcd.
func TestEtcd_RealNode_AllOperations(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address, ended := freeAddress(t), make(chan error, 1)
	go func() {
		ended <- etcdNode(ctx, []string{"-data-dir", t.TempDir(), "-listen", address, "-listen-peer", freeAddress(t)})
	}()
	operations(t, "etcd", address)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The same against a real Redis, where one is installed, and a turn of redis-benchmark.
func TestRedis_RealServer_AllOperations(t *testing.T) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("no redis-server is installed")
	}
	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Kill()
		server.Wait() // killed: its error says so
	}()
	operations(t, "redis", address)
	b := &redisBenchmark{program: "redis-benchmark", address: address, pids: []int{server.Process.Pid}, duration: 100 * time.Millisecond}
	if err := b.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := b.turn(t.Context(), row{load: bench.Options{Concurrency: 4, Pipeline: 16}})
	if err != nil || got.Figure <= 0 || got.CPU <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func operations(t *testing.T, system, address string) {
	t.Helper()
	p, err := connectPeer(t.Context(), system, []string{address}, 5*time.Second, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.target.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !strings.HasPrefix(p.version, system+" ") || p.nodes != 1 {
		t.Errorf("%+v", p)
	}
	if err := p.target.Put(t.Context(), "alone", []byte("value")); err != nil {
		t.Fatal(err)
	}
	if v, found, err := p.target.Get(t.Context(), "alone", nil); err != nil || !found || string(v) != "value" {
		t.Errorf("%q, %v, %v", v, found, err)
	}
	if _, found, err := p.target.Get(t.Context(), "nowhere", nil); err != nil || found {
		t.Errorf("a key that is not there: %v, %v", found, err)
	}
	for _, w := range []string{"mixed", "batch-get", "batch-put", "txn"} {
		rep, err := bench.Run(t.Context(), p.target, bench.Options{Workload: w, Keys: 200, Concurrency: 4, Warmup: -1, Duration: 200 * time.Millisecond, ServerPIDs: []int{os.Getpid()}})
		if err != nil || rep.Ops == 0 || rep.Errors > 0 {
			t.Fatalf("%s: %+v, %v", w, rep, err)
		}
		for name, op := range rep.Operations {
			if op.Misses > 0 {
				t.Errorf("%s: %d misses of %s", w, op.Misses, name)
			}
		}
	}
	if pids, err := processes(strconv.Itoa(os.Getpid())); err != nil || len(pids) != 1 {
		t.Error(pids, err)
	}
	if _, err := processes("1,x"); err == nil {
		t.Error("x is a process")
	}
}
