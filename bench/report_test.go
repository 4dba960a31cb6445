package bench

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

// Percentiles of a known distribution: 1 to 10,000 µs once each.
func TestRecorder_KnownLatencies_PercentilesExact(t *testing.T) {
	r := &run{opts: Options{Workload: "put", Duration: time.Second}, rec: newRecorder(8, time.Second, 2*time.Second)}
	for i := 1; i <= 10_000; i++ {
		due := time.Second + time.Duration(i)
		r.rec.add(i%8, due, due+time.Duration(i)*time.Microsecond, outcome{op: OpPut})
	}
	r.rec.add(0, time.Second-1, 3*time.Second, outcome{op: OpPut}) // before the window
	r.rec.add(0, 2*time.Second, 9*time.Second, outcome{op: OpPut}) // after it
	put := r.report().Operations["put"]
	if put.Ops != 10_000 {
		t.Fatalf("%d operations, want those of the window alone: 10000", put.Ops)
	}
	for _, c := range []struct {
		name      string
		got, want float64
	}{{"p50", put.P50, 5000}, {"p95", put.P95, 9500}, {"p99", put.P99, 9900}, {"p999", put.P999, 9990}, {"max", put.Max, 10_000}, {"mean", put.Mean, 5000.5}} {
		if math.Abs(c.got-c.want)/c.want > 0.002 {
			t.Errorf("%s is %.1f, want %.1f", c.name, c.got, c.want)
		}
	}
}

func sampleReport() *Report {
	return &Report{
		Workload: "mixed", Machine: Machine{CPU: "Example CPU", Cores: 2, Memory: 24 << 30, Kernel: "Linux 6.1", FileSystem: "ext4", Go: "go1.26"},
		Target: "127.0.0.1:7001", Keys: 1000, ValueBytes: 128, Connections: 1, Concurrency: 16, Pipeline: 4, Seed: 1, Loop: "open", WarmupSeconds: 1,
		Ops: 50_000, Seconds: 5, OpsPerSecond: 10_000, Errors: 3, Unknown: 2,
		ErrorsByKind: map[string]uint64{"unknown": 2, "not_sent": 1},
		ErrorSamples: map[string]string{"unknown": "connection lost", "not_sent": "the generator's backlog was full"},
		Operations: map[string]*OpReport{
			"get": {Ops: 47_500, OpsPerSecond: 9500, Mean: 110.2, P50: 95.1, P95: 201.5, P99: 402, P999: 1203.2, Max: 5120.4, Misses: 7},
			"put": {Ops: 2500, OpsPerSecond: 500, Mean: 900, P50: 850.5, P95: 1500, P99: 2203, P999: 9004, Max: 1_200_000, Errors: 2, Unknown: 2},
		},
		Schedule:             &Schedule{Rate: 10_100, Dropped: 1, LatenessP99: 62.1},
		ClientCPUMicrosPerOp: 4.25, ServerCPUMicrosPerOp: 9.5,
		Assertions: []Verdict{{Text: "p99(put)<5ms", Value: 2203, Pass: true, latency: true}},
	}
}

func TestReport_JSON_Golden(t *testing.T) {
	var b strings.Builder
	if err := sampleReport().WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b.String())
}

func TestReport_Table_Golden(t *testing.T) {
	var b strings.Builder
	if err := sampleReport().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", b.String())
}

func TestQuickReport_Table_Golden(t *testing.T) {
	rep := sampleReport()
	rep.Workload, rep.Schedule, rep.Operations = "get", nil, map[string]*OpReport{"get": {Ops: 100, P50: 400, P95: 500, P99: 900, P999: 2000, Max: 2500}}
	q := &QuickReport{Machine: rep.Machine, Runs: []*Report{rep}}
	q.judge()
	if q.Pass {
		t.Error("a P50 of 400µs, errors and 10,000 ops/s passed")
	}
	var b strings.Builder
	if err := q.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "quick.txt", b.String())
}

// What WriteJSON wrote is read back: nothing that the table shows is lost.
func TestReport_JSON_ReadBack_SameTable(t *testing.T) {
	var line, direct, readBack strings.Builder
	if err := sampleReport().WriteJSON(&line); err != nil {
		t.Fatal(err)
	}
	var rep Report
	if err := json.Unmarshal([]byte(line.String()), &rep); err != nil {
		t.Fatal(err)
	}
	if err := WriteSummary(&direct, []*Report{sampleReport()}); err != nil {
		t.Fatal(err)
	}
	if err := WriteSummary(&readBack, []*Report{&rep}); err != nil {
		t.Fatal(err)
	}
	if direct.String() != readBack.String() || strings.Count(direct.String(), "\n") != 3 {
		t.Errorf("direct:\n%s\nread back:\n%s", direct.String(), readBack.String())
	}
}

func TestParseAssertion_Forms(t *testing.T) {
	for text, want := range map[string]Assertion{
		"p99(put)<5ms":                {Metric: "p99", Op: "put", Compare: "<", Value: 5000},
		" P99.9( get ) <= 1.5s ":      {Metric: "p999", Op: "get", Compare: "<=", Value: 1.5e6},
		"max(rmw)≤250µs":              {Metric: "max", Op: "rmw", Compare: "<=", Value: 250},
		"errors==0":                   {Metric: "errors", Compare: "==", Value: 0},
		"unknown(put)!=1":             {Metric: "unknown", Op: "put", Compare: "!=", Value: 1},
		"ops_per_second(get)>100_000": {Metric: "ops_per_second", Op: "get", Compare: ">", Value: 100_000},
		"ops/s>1e5":                   {Metric: "ops_per_second", Compare: ">", Value: 100_000},
		"p99<5ms":                     {},
		"p98(put)<5ms":                {},
		"p99(fly)<5ms":                {},
		"p99(put)<5":                  {},
		"p99(put)":                    {},
		"errors==many":                {},
		"":                            {},
	} {
		got, err := ParseAssertion(text)
		if want.Metric == "" {
			if err == nil {
				t.Errorf("%q was accepted as %+v", text, got)
			} else if !strings.Contains(err.Error(), "p99(put)<5ms") {
				t.Errorf("%q: no example in: %v", text, err)
			}
			continue
		}
		want.Text = strings.TrimSpace(text)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestCheck_EachComparison(t *testing.T) {
	for text, want := range map[string]bool{
		"p99(put)<5ms": true, "p99(put)<2ms": false, "p99(put)>=2203us": true, "errors==0": false, "errors==3": true,
		"ops_per_second(get)>9000": true, "ops_per_second>10000": false, "misses!=0": true, "unknown<=2": true,
		"p50(scan)<1h": false, "ops(scan)==0": true,
	} {
		a, err := ParseAssertion(text)
		if err != nil {
			t.Fatal(err)
		}
		rep := sampleReport()
		if got := rep.Check([]Assertion{a}); got != want {
			t.Errorf("%s: %v, want %v (%s)", text, got, want, rep.Assertions[len(rep.Assertions)-1])
		}
	}
}

func TestProcessCPU_OwnProcess_GrowsWithWork(t *testing.T) {
	before, err := ProcessCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for i := range 20_000_000 {
		sum += i & sum
	}
	after, err := ProcessCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after <= before {
		t.Errorf("CPU time %v, then %v after work (%d)", before, after, sum)
	}
	if _, err := ProcessCPU(0); err == nil {
		t.Error("process 0 has a CPU clock")
	}
	if IsServerProcess(os.Getpid()) {
		t.Error("the test takes itself for a server")
	}
}

func TestFloor_RealDiskAndLoopback_EveryTestMeasures(t *testing.T) {
	rep, err := Floor(t.Context(), FloorOptions{Dir: t.TempDir(), Duration: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Tests) != 6 {
		t.Errorf("%d tests, want 6", len(rep.Tests))
	}
	for _, f := range rep.Tests {
		if f.Ops == 0 || f.P50 <= 0 || f.P99 < f.P50 || f.Max < f.P99 {
			t.Errorf("implausible: %+v", f)
		}
	}
	files, err := os.ReadDir(rep.Dir)
	if err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}
