package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/bench"
	"kvstore/node"
)

// openNode starts a real node on free loopback ports and gives its binary port.
func openNode(t *testing.T) (endpoint string) { return openDoors(t).Native }

// openDoors starts a real node on free loopback ports.
func openDoors(t *testing.T) node.Addresses {
	t.Helper()
	return openCluster(t, []node.Founder{{Address: "127.0.0.1:0"}})[0]
}

// openCluster starts the real nodes of a cluster, or one alone.
func openCluster(t *testing.T, founders []node.Founder) []node.Addresses {
	t.Helper()
	nodes, errs := make([]*node.Node, len(founders)), make([]error, len(founders))
	var wg sync.WaitGroup
	for i, f := range founders {
		o := node.Options{
			NodeID: f.ID, DataDir: t.TempDir(), RaftListen: f.Address,
			Listen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0",
			Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { panic(err) }, StartTimeout: 30 * time.Second,
		}
		if len(founders) > 1 {
			o.InitialCluster = founders
		}
		o.Engine.MemtableBytes = 4 << 20
		o.Consensus.SegmentBytes = 4 << 20
		o.Disk.BallastBytes = -1
		o.Disk.FloorBytes = 1 << 20
		// Each waits for the others.
		wg.Go(func() { nodes[i], errs[i] = node.Open(t.Context(), o) })
	}
	wg.Wait()
	var all []node.Addresses
	for i, n := range nodes {
		if errs[i] != nil {
			t.Error(errs[i])
			continue
		}
		t.Cleanup(func() {
			if err := n.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		all = append(all, n.Addresses())
	}
	if len(all) < len(founders) {
		t.FailNow()
	}
	return all
}

// The floor and the comparison of costs start this program, which is the test binary here, as followers and echoes.
func TestMain(m *testing.M) {
	if len(os.Args) >= 2 && (os.Args[1] == followerCommand || os.Args[1] == echoCommand) {
		main()
	}
	os.Exit(m.Run())
}

func cli(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := newApp()
	a.out, a.err, a.getenv = &out, &errs, func(string) string { return "" }
	code = a.run(t.Context(), args)
	return code, out.String(), errs.String()
}

// Every workload runs against a real node, and its JSON has what outside tools read.
func TestRun_EveryWorkload_RealNode_JSON(t *testing.T) {
	endpoint := openNode(t)
	for _, w := range bench.Workloads() {
		code, out, errs := cli(t, "run", "--endpoints", endpoint, "--workload", w, "--keys", "500", "--value-size", "64", "--concurrency", "4",
			"--duration", "150ms", "--warmup", "20ms", "--server-pid", "1,"+strconv.Itoa(os.Getpid()), "-o", "json", "--assert", "errors==0", "--assert", "misses==0")
		var rep struct {
			Workload     string
			Ops          uint64
			Seconds      float64
			OpsPerSecond float64 `json:"ops_per_second"`
			Errors       *uint64
			Nodes        int
			ServerCPU    float64 `json:"server_cpu_us_per_op"`
			Operations   map[string]map[string]float64
		}
		if err := json.Unmarshal([]byte(out), &rep); err != nil {
			t.Fatalf("%s: %v in %q (%s)", w, err, out, errs)
		}
		if code != 0 || rep.Workload != w || rep.Ops == 0 || rep.Seconds <= 0 || rep.OpsPerSecond <= 0 || rep.Errors == nil || len(rep.Operations) == 0 || rep.Nodes != 1 || rep.ServerCPU <= 0 {
			t.Errorf("%s: exit %d, %s\n%s", w, code, out, errs)
		}
		for name, op := range rep.Operations {
			for _, field := range []string{"ops", "p50", "p95", "p99", "p999", "max"} {
				if op[field] <= 0 {
					t.Errorf("%s: %s of %s is %v", w, field, name, op[field])
				}
			}
		}
	}
}

// The open loop and the pipelined form through the client's asynchronous calls.
func TestRun_OpenLoopPipelined_RealNode(t *testing.T) {
	code, out, errs := cli(t, "run", "--endpoints", openNode(t), "--workload", "ycsb-f", "--keys", "300", "--value-size", "64", "--concurrency", "2", "--pipeline", "32",
		"--rate", "2000", "--duration", "300ms", "--warmup", "0s", "--assert", "errors==0", "--assert", "ops==600")
	if code != 0 || !strings.Contains(out, "open loop at 2000/s") || !strings.Contains(out, "rmw") || !strings.Contains(out, "PASS ops==600") {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
}

func TestRun_AssertionFails_ExitsOneWithTheReport(t *testing.T) {
	code, out, errs := cli(t, "run", "--endpoints", openNode(t), "--workload", "put", "--keys", "10", "--concurrency", "1", "--duration", "30ms", "--warmup", "0s", "--assert", "p50(put)<1ns")
	if code != exitFailed || !strings.Contains(out, "FAIL p50(put)<1ns") || !strings.Contains(errs, "verdict: FAIL") {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
}

func TestUsage_WrongCommandLines_ExitTwo(t *testing.T) {
	for _, args := range [][]string{
		{"fly"}, {"run", "extra"}, {"run", "--nope"}, {"run", "-o", "xml"}, {"run", "--workload", "nonsense"}, {"run", "--assert", "p99(put)"}, {"run", "--reads", "2"},
		{"run", "--workload", "ycsb-e", "--pipeline", "2"}, {"run", "--conns", "0"}, {"run", "--duration", "0"}, {"floor", "--duration", "0s"}, {"report"}, {"report", "x", "-o", "json"},
		{"run", "--endpoints", "127.0.0.1"}, {"run", "--endpoints", "127.0.0.1:1,,127.0.0.1:2"}, {"run", "--server-pid", "x"}, {"failover"}, {"failover", "--kill", "true", "--kills", "0"},
		{"failover", "--kill", "true", "--settle", "2m"}, {"failover", "--kill", "true", "--server-pid", "1"}, {followerCommand, "extra"},
		{"run", "--protocol", "smoke"}, {"run", "--protocol", "grpc", "--workload", "txn"}, {"run", "--protocol", "rest", "--pipeline", "2"}, {"run", "--protocol", "rest", "--conns", "2"},
		{"cost"}, {"growth"}, {"stages"}, {"latency", "extra"}, {"latency", "--conns", "0"}, {"growth", "--small", "nowhere"}, {"cost", "--grpc", "nowhere"}, {"cost", "--grpc", "127.0.0.1:1", "--conns", "0"}, {"reads"}, {"reads", "--lone", "127.0.0.1:1"}, {"reads", "--endpoints", "127.0.0.1:1,127.0.0.1:2"},
		{"reads", "--lone", "127.0.0.1", "--endpoints", "127.0.0.1:1,127.0.0.1:2"}, {"echo", "--protocol", "native"}, {"echo", "extra"},
	} {
		code, out, errs := cli(t, args...)
		if code != exitUsage || out != "" || !strings.Contains(errs, "see `kvbench --help`") {
			t.Errorf("%q: exit %d, %q, %q", args, code, out, errs)
		}
	}
}

func TestRun_NothingListens_ExitsThreeAndHelps(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	code, _, errs := cli(t, "run", "--endpoints", l.Addr().String())
	if code != exitConnect || !strings.Contains(errs, "nothing answers on "+l.Addr().String()+" (connection refused)") || !strings.Contains(errs, "make run") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// Floor and runs written as JSON lines come back as tables.
func TestReport_LinesOfFloorAndRun_Tables(t *testing.T) {
	dir := t.TempDir()
	code, floor, errs := cli(t, "floor", "--dir", dir, "--duration", "10ms", "-o", "json")
	if code != 0 {
		t.Fatalf("floor: exit %d, %s", code, errs)
	}
	var run strings.Builder
	rep := bench.Report{Workload: "put", Concurrency: 16, Operations: map[string]*bench.OpReport{"put": {Ops: 7, P50: 100, Max: 200}}}
	if err := rep.WriteJSON(&run); err != nil {
		t.Fatal(err)
	}
	fail := bench.FailoverReport{Nodes: 3, Kills: []bench.KillReport{{Leader: "node-2", Gap: 9e5}}, P50: 9e5, P99: 9e5}
	if err := fail.WriteJSON(&run); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "out.jsonl")
	if err := os.WriteFile(name, []byte(floor+run.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := cli(t, "report", name)
	if code != 0 || !strings.Contains(out, bench.FloorReplicatedSequential) || !strings.Contains(out, "put       16       put  7") ||
		!strings.Contains(out, "1     node-2") || !strings.Contains(out, "p50 ≤ 1.50s: 900.00ms (1 kills)") {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
	if err := os.WriteFile(name, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, errs = cli(t, "report", name); code != exitFailed || !strings.Contains(errs, "line 1") {
		t.Errorf("a line that is no report: exit %d, %s", code, errs)
	}
}

func TestHistory_OfAReport_OneLine(t *testing.T) {
	file := t.TempDir() + "/runs.jsonl"
	if err := os.WriteFile(file, []byte(`{"workload":"put","concurrency":1,"pipeline":1,"ops_per_second":5,"operations":{"put":{"p50":1,"p99":2,"p999":3}}}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := cli(t, "history", "--commit", "abc", "--change", "x", file)
	var h bench.HistoryLine
	if err := json.Unmarshal([]byte(out), &h); err != nil || code != 0 || h.Commit != "abc" || h.Change != "x" || len(h.Runs) != 1 || h.Runs[0].Pipeline != 0 {
		t.Errorf("exit %d, %v in %q, %s", code, err, out, errs)
	}
	if code, _, _ := cli(t, "history", file+"x"); code != exitFailed {
		t.Errorf("a file that is not there: exit %d", code)
	}
}
