package main

import (
	"context"
	"encoding/json"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
