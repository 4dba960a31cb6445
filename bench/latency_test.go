package bench

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What the specification promises stands in Targets as well.
func TestLatencyTargets_BesideTheSpecification_DifferWhereItIsSilent(t *testing.T) {
	if len(latencyTargets) != len(Targets) {
		t.Fatalf("%d operations, want %d", len(latencyTargets), len(Targets))
	}
	for _, l := range latencyTargets {
		i := slices.IndexFunc(Targets, func(s LatencyTarget) bool { return s.Workload == l.workload && s.Op == l.op })
		if i < 0 {
			t.Errorf("the specification has no %s", l.operation)
			continue
		}
		own := l.targets.all()
		for q, promised := range [4]float64{Targets[i].P50, Targets[i].P95, Targets[i].P99, Targets[i].P999} {
			if own[q] <= 0 || promised != 0 && own[q] != promised {
				t.Errorf("%s has %v, want %+v", l.operation, own, Targets[i])
			}
		}
	}
}

// latencyRow is one that meets its targets, the first of them exactly.
func latencyRow() Latencies {
	return Latencies{
		Operation: "PUT", Callers: 256, Highest: 64_000, Rate: 32_000, Ops: 320_000, LatenessP99: 61,
		Latency: Percentiles{500, 1234, 3210, 9990}, Targets: Percentiles{500, 2000, 5000, 10_000},
	}
}

func TestLatencies_Verdict_MetOnlyWhereAllWasAnsweredInTime(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Latencies)
		missed [4]bool
		want   string
	}{
		{"all in time", func(*Latencies) {}, [4]bool{}, "met"},
		{"P95 late", func(l *Latencies) { l.Latency.P95 = 2000.1 }, [4]bool{1: true}, "**missed**"},
		{"P99 and P99.9 late", func(l *Latencies) { l.Latency.P99, l.Latency.P999 = 2e4, 3e4 }, [4]bool{2: true, 3: true}, "**missed**"},
		{"failures", func(l *Latencies) { l.Failed = 3 }, [4]bool{}, "**missed**, 3 failed"},
		{"not sent", func(l *Latencies) { l.NotSent = 7 }, [4]bool{}, "**missed**, 7 not sent"},
		{"both", func(l *Latencies) { l.NotSent, l.Failed = 7, 3 }, [4]bool{}, "**missed**, 7 not sent, 3 failed"},
		{"nothing measured", func(l *Latencies) { *l = Latencies{} }, [4]bool{}, "**missed**, none answered"},
	} {
		l := latencyRow()
		c.change(&l)
		if got := l.verdict(); got != c.want || l.Met() != (c.want == "met") || l.Missed() != c.missed {
			t.Errorf("%s: %q, met %v, missed %v", c.name, got, l.Met(), l.Missed())
		}
	}
}

func TestLatencies_Count_FailuresApartFromWhatWasNotSent(t *testing.T) {
	var l Latencies
	l.count(&Report{Operations: map[string]*OpReport{"get": {Ops: 5}}})
	open := &Report{Operations: map[string]*OpReport{"get": {Ops: 5, Misses: 2}}}
	open.addErrors(KindNotSent, 10, "the generator's backlog was full")
	l.count(open)
	if l.NotSent != 10 || l.Failed != 2 || l.FailedSample != "a read found no record" {
		t.Errorf("%+v", l)
	}
	failed := &Report{}
	failed.addErrors(KindBusy, 4, "busy")
	l.count(failed)
	if l.NotSent != 10 || l.Failed != 6 || l.FailedSample != "busy" {
		t.Errorf("%+v", l)
	}
}

func TestLatencyReport_Table_MissedFiguresBold_IntoAPage(t *testing.T) {
	met, late, failed := latencyRow(), latencyRow(), latencyRow()
	late.Operation, late.Latency.P999 = "GET", 12_300
	failed.Operation, failed.Failed, failed.FailedSample = "transaction of 5", 2, "fake: busy"
	rep := &LatencyReport{
		Date: "2026-01-02", Commit: "0123456789abcdef", Nodes: 3, Keys: 1000, ValueBytes: 128, ClosedSeconds: 3, Seconds: 10,
		Machine:   Machine{CPU: "Example CPU", Cores: 2, Memory: 24 << 30, Kernel: "Linux 6.1", FileSystem: "ext4", Go: "go1.26"},
		Latencies: []Latencies{met, late, failed},
	}
	var b strings.Builder
	if err := rep.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "latency.txt", b.String())

	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("before\n<begin>\nold\n<end>\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again, to the same effect
		if err := ReplaceInPage(page, "<begin>", "<end>", b.String()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if want := "before\n<begin>\n" + b.String() + "<end>\nafter\n"; err != nil || string(got) != want {
		t.Errorf("%v, page is\n%s", err, got)
	}
	if err := ReplaceInPage(page, "<begin>", "<nowhere>", ""); err == nil {
		t.Error("a page without the marker was written")
	}
}

// A target that takes 2 ms meets some targets and misses others; each operation is driven at half of what the closed loop
// reached.
func TestMeasureLatency_SlowTarget_HalfOfTheHighestRate(t *testing.T) {
	target := newFakeTarget()
	o := LatencyOptions{Target: target, Keys: 200, ValueBytes: 32, Workers: 64, Closed: 100 * time.Millisecond, Duration: 200 * time.Millisecond, Warmup: -1}
	target.delay = func(int) time.Duration { return 2 * time.Millisecond }
	rep, err := MeasureLatency(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(target.data) != 200 || len(rep.Latencies) != len(latencyTargets) || rep.Seconds != 0.2 || rep.ClosedSeconds != 0.1 || rep.Workers != 64 {
		t.Errorf("%d keys, %+v", len(target.data), rep)
	}
	for _, l := range rep.Latencies {
		// At most callers / 2 ms, and a due operation takes as long at least.
		if l.Rate != l.Highest/2 || l.Highest <= 0 || l.Highest > float64(l.Callers)*500 || l.Ops == 0 || l.Failed != 0 || l.Latency.P50 < 1990 {
			t.Errorf("%+v", l)
		}
		if l.Workload == "get" && (l.Met() || !l.Missed()[0]) {
			t.Errorf("gets of 2 ms met a P50 of 0.3 ms: %+v", l)
		}
	}
}

// Failures are told of, and where nothing succeeds there is no rate to halve.
func TestMeasureLatency_FailingTarget_CountsOrGivesUp(t *testing.T) {
	target := newFakeTarget()
	target.delay = func(int) time.Duration { return time.Millisecond }
	target.fail = func(op int) error {
		if op >= 2 && op%10 == 0 { // after the batches of the load phase
			return errFakeBusy
		}
		return nil
	}
	o := LatencyOptions{Target: target, Keys: 200, ValueBytes: 32, Closed: 50 * time.Millisecond, Duration: 50 * time.Millisecond, Warmup: -1}
	rep, err := MeasureLatency(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range rep.Latencies {
		if l.Failed == 0 || l.FailedSample != errFakeBusy.Error() || l.Met() {
			t.Errorf("%+v", l)
		}
	}
	target.ops, target.fail = 0, func(op int) error {
		if op >= 2 {
			return errFakeBusy
		}
		return nil
	}
	if _, err := MeasureLatency(t.Context(), o); err == nil || !strings.Contains(err.Error(), "none succeeded") {
		t.Errorf("nothing succeeded: %v", err)
	}
	o.Workers = -1
	if _, err := MeasureLatency(t.Context(), o); err == nil {
		t.Error("less than no workers, and no error")
	}
	o.Target = nil
	if _, err := MeasureLatency(t.Context(), o); err == nil {
		t.Error("no target, and no error")
	}
}
