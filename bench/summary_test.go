package bench

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// sampleRun is a run of one operation.
func sampleRun(system string, nodes int, workload string, callers int, rate, p50 float64) *Report {
	return &Report{
		Workload: workload, System: system, Nodes: nodes, Concurrency: callers, Pipeline: 1, Ops: uint64(rate * 5), Seconds: 5, OpsPerSecond: rate,
		Operations:           map[string]*OpReport{workload: {Ops: uint64(rate * 5), OpsPerSecond: rate, P50: p50, P95: 2 * p50, P99: 3 * p50, P999: 4 * p50, Max: 5 * p50}},
		ClientCPUMicrosPerOp: 2, ServerCPUMicrosPerOp: 1e6 / rate,
	}
}

// sampleResults meets every target but the lone PUT's: 33,000 PUT/s; 120,000 GET/s, which is 15 × etcd's;
// a lone PUT of 2.5 × its floor; fail-over in 1.2 s and 2.9 s.
func sampleResults() *Results {
	m := sampleReport().Machine
	return &Results{
		Floors: []*FloorReport{{Machine: m, Dir: "data", Tests: []FloorTest{
			{Name: FloorFsync, Ops: 100, OpsPerSecond: 4000, P50: 250, P99: 400, Max: 500},
			{Name: FloorLoopback, Ops: 100, OpsPerSecond: 60_000, P50: 16, P99: 25, Max: 50},
			{Name: FloorReplicatedSequential, Ops: 100, OpsPerSecond: 2000, P50: 400, P99: 900, Max: 1000},
			{Name: FloorReplicatedOverlapped, Ops: 100, OpsPerSecond: 3000, P50: 300, P99: 800, Max: 900},
		}}},
		Runs: []*Report{
			sampleRun("", 1, "put", 1, 2000, 500), sampleRun("", 1, "get", 1, 15_000, 64),
			sampleRun("", 3, "put", 1, 900, 1000), sampleRun("", 3, "put", 256, 33_000, 7000), sampleRun("", 3, "get", 256, 120_000, 2000),
			sampleRun("etcd 3.7.3", 3, "put", 256, 5500, 40_000), sampleRun("etcd 3.7.3", 3, "get", 256, 8000, 30_000),
		},
		Failovers: []*FailoverReport{{
			Machine: m, Nodes: 3, Interval: 5000, P50: 1.2e6, P99: 2.9e6, Max: 2.9e6, Writes: 1600,
			Kills: []KillReport{{"node-1", 2, 1.2e6, 1.3e6}, {"node-2", 3, 2.9e6, 2.95e6}},
		}},
	}
}

func TestResults_Table_Golden(t *testing.T) {
	var b strings.Builder
	if err := sampleResults().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "summary.txt", b.String())
}

// A miss is a miss, and what was not measured is never met.
func TestJudge_EachTarget_MetMissedNotMeasured(t *testing.T) {
	words := func(r *Results) string {
		var w []string
		for _, j := range r.Judge() {
			w = append(w, strings.Fields(j.String())[0])
		}
		return strings.Join(w, " ")
	}
	for name, c := range map[string]struct {
		change func(*Results)
		want   string
	}{
		"sample":                  {func(*Results) {}, "met met MISSED met met met"},
		"etcd did not run":        {func(r *Results) { r.Runs = r.Runs[:5] }, "met MISSED MISSED met met met"},
		"etcd faster":             {func(r *Results) { r.Runs[6].OpsPerSecond = 20_000 }, "met MISSED MISSED met met met"},
		"too slow, 6 × etcd":      {func(r *Results) { r.Runs[3].Operations["put"].OpsPerSecond = 29_000; r.Runs[5].OpsPerSecond = 4800 }, "met met MISSED met met met"},
		"too slow, 4 × etcd":      {func(r *Results) { r.Runs[3].Operations["put"].OpsPerSecond = 29_000; r.Runs[5].OpsPerSecond = 7200 }, "MISSED met MISSED met met met"},
		"fast with errors":        {func(r *Results) { r.Runs[3].Errors = 1 }, "MISSED met MISSED met met met"},
		"lone put at the bound":   {func(r *Results) { r.Runs[2].Operations["put"].P50 = 800 }, "met met met met met met"},
		"no floor":                {func(r *Results) { r.Floors = nil }, "met met NOT met met met"},
		"slow fail-over":          {func(r *Results) { r.Failovers[0].P50, r.Failovers[0].P99 = 1.6e6, 3.1e6 }, "met met MISSED MISSED MISSED met"},
		"a write lost":            {func(r *Results) { r.Failovers[0].Lost = 1 }, "met met MISSED met met MISSED"},
		"a write failed":          {func(r *Results) { r.Failovers[0].Errors = 1 }, "met met MISSED met met MISSED"},
		"one node alone":          {func(r *Results) { r.Runs, r.Failovers = r.Runs[:2], nil }, "NOT NOT NOT NOT NOT NOT"},
		"nothing succeeded":       {func(r *Results) { r.Runs[3].Operations = nil }, "NOT met MISSED met met met"},
		"five nodes are no three": {func(r *Results) { r.Runs[4].Nodes = 5 }, "met NOT MISSED met met met"},
	} {
		r := sampleResults()
		c.change(r)
		if got := words(r); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// One node alone has no targets of three nodes to miss.
func TestResults_OneNode_NoTargets(t *testing.T) {
	r := sampleResults()
	r.Runs, r.Failovers = r.Runs[:2], nil
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "targets") || !strings.Contains(b.String(), "kvstore, one node") {
		t.Error(b.String())
	}
}

// The servers' CPU time is that of all processes, or unknown.
func TestReadCPU_SeveralProcesses_SumOrUnknown(t *testing.T) {
	burn := exec.CommandContext(t.Context(), "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo; read x")
	stdin, err := burn.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := burn.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := burn.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	other, err := ProcessCPU(burn.Process.Pid)
	if err != nil || other <= 0 {
		t.Fatalf("%v, %v", other, err)
	}
	own, err := ProcessCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if c := readCPU([]int{burn.Process.Pid, os.Getpid()}); !c.serverKnown || c.server < own+other {
		t.Errorf("%+v; want at least %v", c, own+other)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	_ = burn.Wait() // read finds no line: exit 1
	if c := readCPU([]int{os.Getpid(), burn.Process.Pid}); c.serverKnown || c.server != 0 || c.client <= 0 {
		t.Errorf("with a process that has ended: %+v", c)
	}
	if c := readCPU(nil); c.serverKnown {
		t.Errorf("without a process: %+v", c)
	}
}

// A load phase outlasts a fail-over: batches that fail for seconds are put all the same.
func TestLoad_TargetAwayForSeconds_Loads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(int) time.Duration { return time.Millisecond }
		start := time.Now()
		target.fail = func(int) error {
			if time.Since(start) < 5*time.Second {
				return errFakeBusy
			}
			return nil
		}
		o := quickOptions("get")
		rep, err := Run(t.Context(), target, o)
		if err != nil || rep.Operations["get"].Misses > 0 || len(target.data) != o.Keys {
			t.Errorf("%v; %d of %d keys", err, len(target.data), o.Keys)
		}
	})
}
