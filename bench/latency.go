package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// LatencyOptions describes a measurement of latencies at half of the highest rate.
type LatencyOptions struct {
	// Target is a cluster that nobody else uses.
	Target Target
	// Keys is how many keys are loaded and drawn from. Default 100,000.
	Keys int
	// ValueBytes is the length of each value. Default 128.
	ValueBytes int
	// Workers of the open loop: operations that can be under way at once, so that a slow one doesn't hold up the schedule.
	// Default 512.
	Workers int
	// Closed is the measured time of the closed loop that finds the highest rate. Default 3s.
	Closed time.Duration
	// Duration is the measured time of the open loop at half of it. Default 10s.
	Duration time.Duration
	// Warmup is the time before each of them that is not measured. Default 1s; negative means none.
	Warmup time.Duration
	// KeyPrefix keeps the keys apart from others'. Default "kvbench/".
	KeyPrefix string
	// Progress, when set, hears what is about to be done.
	Progress func(text string)
}

// LatencyReport is the result of MeasureLatency.
type LatencyReport struct {
	// Date is that of the report, YYYY-MM-DD.
	Date       string  `json:"date"`
	Machine    Machine `json:"machine"`
	Commit     string  `json:"commit,omitempty"`
	Nodes      int     `json:"nodes,omitempty"`
	Keys       int     `json:"keys"`
	ValueBytes int     `json:"value_bytes"`
	// Workers are those of the open loop, ClosedSeconds and Seconds the measured times of the two loops.
	Workers       int         `json:"workers"`
	ClosedSeconds float64     `json:"closed_seconds"`
	Seconds       float64     `json:"seconds"`
	Latencies     []Latencies `json:"latencies"`
}

// Latencies is what one operation took. Rates are of calls, whatever number of records is in one.
type Latencies struct {
	Operation string `json:"operation"`
	Workload  string `json:"workload"`
	// Callers are those of the closed loop, which reached Highest.
	Callers int     `json:"callers"`
	Highest float64 `json:"highest_per_second"`
	// Rate is what fell due in each second of the open loop, Ops how many of them were answered well.
	Rate float64 `json:"rate"`
	Ops  uint64  `json:"ops"`
	// Latency counts from the due time; LatenessP99 is how late the generator itself was, which is part of it.
	Latency     Percentiles `json:"latency_us"`
	Targets     Percentiles `json:"targets_us"`
	LatenessP99 float64     `json:"lateness_p99_us"`
	// NotSent were due and dropped by the generator; Failed are errors of both loops, and reads that found nothing.
	NotSent      uint64 `json:"not_sent"`
	Failed       uint64 `json:"failed"`
	FailedSample string `json:"failed_sample,omitempty"`
}

// Percentiles are latencies in microseconds.
type Percentiles struct {
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

func (p Percentiles) all() [4]float64 { return [4]float64{p.P50, p.P95, p.P99, p.P999} }

// latencyTargets are the operations and what each may take at half of its highest rate. The specification promises these
// figures (Targets), but for the P95 of a batch put and the P50 of a transaction, which it leaves open: those are ours. Reads
// come first: writes leave work behind, a checkpoint above all.
var latencyTargets = []struct {
	operation, workload string
	op                  Op
	callers             int
	targets             Percentiles
}{
	{"GET", "get", OpGet, ClusterCallers, Percentiles{300, 1000, 3000, 8000}},
	{"batch GET of 10", "batch-get", OpBatchGet, 64, Percentiles{1000, 4000, 10_000, 20_000}},
	{"PUT", "put", OpPut, ClusterCallers, Percentiles{500, 2000, 5000, 10_000}},
	{"batch PUT of 10", "batch-put", OpBatchPut, 64, Percentiles{2000, 7000, 15_000, 30_000}},
	{"transaction of 5", "txn", OpTxn, 64, Percentiles{4000, 12_000, 25_000, 50_000}},
}

func (o LatencyOptions) withDefaults() (LatencyOptions, error) {
	setDefault(&o.Keys, compareKeys)
	setDefault(&o.ValueBytes, compareValueBytes)
	setDefault(&o.Workers, 512)
	setDefault(&o.Closed, 3*time.Second)
	setDefault(&o.Duration, 10*time.Second)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Target == nil {
		return o, errors.New("a target is required")
	}
	return o, errors.Join(o.run("put", ClusterCallers, o.Closed).Validate(), o.run("put", o.Workers, o.Duration).Validate())
}

func (o *LatencyOptions) run(workload string, callers int, d time.Duration) Options {
	return Options{
		Workload: workload, Keys: o.Keys, ValueBytes: o.ValueBytes, Concurrency: callers, Duration: d, Warmup: o.Warmup,
		KeyPrefix: o.KeyPrefix, SkipLoad: true,
	}
}

// MeasureLatency loads the cluster and measures each operation twice: a closed loop finds the highest rate, an open loop at half
// of it the latencies, which targets are set for.
func MeasureLatency(ctx context.Context, o LatencyOptions) (*LatencyReport, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cannot measure latencies: %w", err)
	}
	o.Progress(fmt.Sprintf("loading %d keys", o.Keys))
	if err := loadAll(ctx, o.Target, o.run("put", ClusterCallers, o.Closed)); err != nil {
		return nil, err
	}
	rep := &LatencyReport{
		Date: time.Now().UTC().Format(time.DateOnly), Machine: ReadMachine(""), Keys: o.Keys, ValueBytes: o.ValueBytes,
		Workers: o.Workers, ClosedSeconds: o.Closed.Seconds(), Seconds: o.Duration.Seconds(),
	}
	for _, t := range latencyTargets {
		l := Latencies{Operation: t.operation, Workload: t.workload, Callers: t.callers, Targets: t.targets}
		o.Progress(fmt.Sprintf("%s: the highest rate of %d callers", t.operation, t.callers))
		closed, err := Run(ctx, o.Target, o.run(t.workload, t.callers, o.Closed))
		if err != nil {
			return nil, err
		}
		l.count(closed)
		// A rate of 0 would close the loop.
		if l.Highest, l.Rate = closed.OpsPerSecond, closed.OpsPerSecond/2; l.Rate <= 0 {
			return nil, fmt.Errorf("cannot measure the latency of a %s: none succeeded, %d failed, such as: %s", t.operation, l.Failed, l.FailedSample)
		}
		o.Progress(fmt.Sprintf("%s: latencies at %s/s", t.operation, rateText(l.Rate)))
		half := o.run(t.workload, o.Workers, o.Duration)
		half.Rate = l.Rate
		open, err := Run(ctx, o.Target, half)
		if err != nil {
			return nil, err
		}
		l.count(open)
		l.LatenessP99 = open.Schedule.LatenessP99
		if op := open.Operations[t.op.String()]; op != nil {
			l.Ops, l.Latency = op.Ops, Percentiles{op.P50, op.P95, op.P99, op.P999}
		}
		rep.Latencies = append(rep.Latencies, l)
	}
	return rep, nil
}

// count adds what was not sent or failed in one of the loops.
func (l *Latencies) count(rep *Report) {
	notSent := rep.ErrorsByKind[KindNotSent.String()]
	l.NotSent += notSent
	l.Failed += rep.Errors - notSent
	for kind, text := range rep.ErrorSamples {
		if kind != KindNotSent.String() {
			l.FailedSample = text
		}
	}
	for _, op := range rep.Operations {
		if l.Failed += op.Misses; op.Misses > 0 {
			l.FailedSample = "a read found no record"
		}
	}
}

// Missed tells which of P50, P95, P99 and P99.9 are above their targets; one exactly at its target meets it.
func (l *Latencies) Missed() (missed [4]bool) {
	figures, targets := l.Latency.all(), l.Targets.all()
	for i := range missed {
		missed[i] = figures[i] > targets[i]
	}
	return missed
}

// Met tells whether all targets are met. What was not measured meets none, nor does anything that was not sent or failed: its
// latency is in no percentile.
func (l *Latencies) Met() bool {
	return l.Ops > 0 && l.NotSent == 0 && l.Failed == 0 && l.Missed() == [4]bool{}
}

// verdict is the last cell of a row.
func (l *Latencies) verdict() string {
	if l.Met() {
		return "met"
	}
	v := "**missed**"
	if l.NotSent > 0 {
		v += fmt.Sprintf(", %d not sent", l.NotSent)
	}
	if l.Failed > 0 {
		v += fmt.Sprintf(", %d failed", l.Failed)
	}
	if l.Ops == 0 {
		v += ", none answered"
	}
	return v
}

// WriteJSON writes the report as one line of JSON.
func (rep *LatencyReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report as a table in Markdown, with what missed its target in bold.
func (rep *LatencyReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	if rep.Commit != "" {
		fmt.Fprintf(&b, "Commit %.10s, ", rep.Commit)
	}
	fmt.Fprintf(&b, "%s, %s; %d nodes, %d keys, values of %d B, %g s for each highest rate, %g s at half of it.\n\n",
		rep.Date, rep.Machine, rep.Nodes, rep.Keys, rep.ValueBytes, rep.ClosedSeconds, rep.Seconds)
	b.WriteString("| operation | highest rate | driven at | P50 | P95 | P99 | P99.9 | generator late, P99 | |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range rep.Latencies {
		fmt.Fprintf(&b, "| %s | %s/s, %d callers | %s/s ", l.Operation, rateText(l.Highest), l.Callers, rateText(l.Rate))
		figures, targets := l.Latency.all(), l.Targets.all()
		for i, missed := range l.Missed() {
			bold := ""
			if missed {
				bold = "**"
			}
			fmt.Fprintf(&b, "| %s%s%s (≤ %g ms) ", bold, latencyText(figures[i]), bold, targets[i]/1000)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", latencyText(l.LatenessP99), l.verdict())
	}
	sep := "\n"
	for _, l := range rep.Latencies {
		if l.FailedSample != "" {
			fmt.Fprintf(&b, "%s%s failed, such as: %s\n", sep, l.Operation, l.FailedSample)
			sep = ""
		}
	}
	return writeText(w, b.String())
}
