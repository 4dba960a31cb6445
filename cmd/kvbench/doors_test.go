package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"kvstore/bench"
	"kvstore/internal/testcluster"
	"kvstore/node"
)

// Single gets and puts run through each door of a real node, and the report says which.
func TestRun_EachProtocol_RealNode(t *testing.T) {
	n := openDoors(t)
	for protocol, endpoint := range map[string]string{bench.ProtocolGRPC: n.GRPC, bench.ProtocolREST: n.HTTP} {
		for _, w := range []string{"get", "put", "mixed", "ycsb-f"} {
			code, out, errs := cli(t, "run", "--protocol", protocol, "--endpoints", endpoint, "--workload", w, "--keys", "200", "--value-size", "64", "--concurrency", "4",
				"--duration", "500ms", "--warmup", "20ms", "-o", "json", "--assert", "errors==0", "--assert", "misses==0", "--assert", "ops>0")
			var rep bench.Report
			if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
				t.Fatalf("%s, %s: exit %d, %v in %q (%s)", protocol, w, code, err, out, errs)
			}
			if rep.Protocol != protocol || rep.Nodes != 1 || rep.Connections != map[string]int{bench.ProtocolGRPC: 1, bench.ProtocolREST: 4}[protocol] {
				t.Errorf("%s, %s: %s", protocol, w, out)
			}
		}
		// What went in through one door comes out of another.
		if code, out, errs := cli(t, "run", "--endpoints", n.Native, "--workload", "get", "--keys", "200", "--skip-load", "--concurrency", "2", "--duration", "50ms", "--warmup", "0s", "--assert", "misses==0"); code != 0 {
			t.Errorf("exit %d\n%s\n%s", code, out, errs)
		}
	}
}

func TestRun_ProtocolNothingListens_ExitsThreeAndHelps(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{bench.ProtocolGRPC, bench.ProtocolREST} {
		code, _, errs := cli(t, "run", "--protocol", protocol, "--endpoints", l.Addr().String())
		if code != exitConnect || !strings.Contains(errs, "connection refused") || !strings.Contains(errs, "--endpoints") {
			t.Errorf("%s: exit %d, %q", protocol, code, errs)
		}
	}
}

// Costs of a real node beside echoes in processes of their own, as JSON and again as a table.
func TestCost_RealNode_EachDoorAndOperation(t *testing.T) {
	n := openDoors(t)
	pid := strconv.Itoa(os.Getpid())
	code, out, errs := cli(t, "cost", "--endpoints", n.Native, "--grpc", "grpc://"+n.GRPC, "--rest", "http://"+n.HTTP, "--server-pid", pid,
		"--rounds", "1", "--duration", "700ms", "--keys", "200", "--concurrency", "4", "-o", "json")
	var rep bench.CostReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
		t.Fatalf("exit %d, %v in %q (%s)", code, err, out, errs)
	}
	var rows []string
	for _, c := range rep.Costs {
		rows = append(rows, c.Operation+" "+c.Protocol)
		if c.Failed != 0 || c.Echo <= 0 || c.Native <= 0 || c.Own <= 0 || c.Ratio <= 0 {
			t.Errorf("%+v", c)
		}
	}
	if got := strings.Join(rows, ", "); got != "get grpc, get rest, put grpc, put rest" || rep.Nodes != 1 || rep.Callers != 4 {
		t.Errorf("%s in %s", got, out)
	}
	name := t.TempDir() + "/cost.jsonl"
	if err := os.WriteFile(name, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, table, errs := cli(t, "report", name); code != 0 || !strings.Contains(table, "one node, 4 callers") {
		t.Errorf("exit %d\n%s\n%s", code, table, errs)
	}
}

// Reads of a real cluster, each client at its own node, beside a lone node.
func TestReads_RealClusterAndNode_EachWayAnswers(t *testing.T) {
	var founders []node.Founder
	for i := range 3 {
		p, err := testcluster.ReservePort()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Release(); err != nil {
				t.Error(err)
			}
		})
		founders = append(founders, node.Founder{ID: fmt.Sprintf("node-%d", i+1), Address: p.Addr()})
	}
	var endpoints []string
	for _, n := range openCluster(t, founders) {
		endpoints = append(endpoints, n.Native)
	}
	pid := strconv.Itoa(os.Getpid())
	args := []string{"reads", "--server-pid", pid, "--lone", openNode(t), "--lone-pid", pid, "--rounds", "1", "--duration", "500ms", "--keys", "200", "--concurrency", "2"}
	code, out, errs := cli(t, append(args, "--endpoints", strings.Join(endpoints, ","), "-o", "json")...)
	var rep bench.ReadsReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
		t.Fatalf("exit %d, %v in %q (%s)", code, err, out, errs)
	}
	if rep.Clients != 3 || rep.Callers != 2 || len(rep.Reads) != 3 || rep.Reads[0].Ratio != 1 {
		t.Errorf("%s", out)
	}
	for _, r := range rep.Reads {
		if r.CPU <= 0 || r.OpsPerSecond <= 0 || r.Ratio <= 0 || r.Failed != 0 {
			t.Errorf("%+v", r)
		}
	}
	// Two nodes of three are not the cluster.
	if code, _, errs := cli(t, append(args, "--endpoints", strings.Join(endpoints[:2], ","))...); code != exitUsage || !strings.Contains(errs, "cluster of 3 nodes, and 2 were named") {
		t.Errorf("two of three: exit %d, %s", code, errs)
	}
}

// Growth of two real nodes, as JSON and again as a table.
func TestGrowth_RealNodes_BothWorkloads(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	code, out, errs := cli(t, "growth", "--endpoints", openNode(t), "--server-pid", pid, "--small", openNode(t), "--small-pid", pid, "--rounds", "1",
		"--duration", "300ms", "--keys", "3000", "--small-keys", "300", "--concurrency", "4", "--settle", "10ms", "-o", "json")
	var rep bench.GrowthReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
		t.Fatalf("exit %d, %v in %q (%s)", code, err, out, errs)
	}
	if len(rep.Growth) != 2 || rep.Failed() != 0 || rep.Keys != 3000 || rep.SmallKeys != 300 || len(rep.RSSAnonBytes) != 1 || rep.Growth[0].Ratio <= 0 || rep.Growth[1].CPU <= 0 {
		t.Errorf("%s", out)
	}
	file := t.TempDir() + "/growth.jsonl"
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := cli(t, "report", file); code != 0 || !strings.Contains(out, "hot get") || !strings.Contains(out, "uniform put") {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
}
