package bench

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// LatencyTarget is what the specification promises for one operation, in microseconds; 0 where it
// promises nothing.
type LatencyTarget struct {
	Name, Workload string
	Op             Op

	P50, P95, P99, P999 float64
}

// Targets are the latencies that the specification promises. It leaves the P95 of a batch put and the P50
// of a transaction open.
var Targets = []LatencyTarget{
	{"single PUT", "put", OpPut, 500, 2000, 5000, 10_000},
	{"single GET", "get", OpGet, 300, 1000, 3000, 8000},
	{"batch PUT (10)", "batch-put", OpBatchPut, 2000, 0, 15_000, 30_000},
	{"batch GET (10)", "batch-get", OpBatchGet, 1000, 4000, 10_000, 20_000},
	{"transaction (5)", "txn", OpTxn, 0, 12_000, 25_000, 50_000},
}

// ThroughputTarget is the rate that the specification promises of the whole, in operations per second.
const ThroughputTarget = 100_000

// quickParts divide ten seconds. Latency is measured with few callers; the last part asks how much the
// server carries when many callers pipeline.
var quickParts = []struct {
	workload    string
	concurrency int
	duration    time.Duration
}{
	{"put", 16, 2 * time.Second},
	{"get", 16, 1500 * time.Millisecond},
	{"mixed", 16, 1500 * time.Millisecond},
	{"batch-put", 4, time.Second},
	{"batch-get", 4, time.Second},
	{"txn", 4, time.Second},
	{"mixed", 512, 1500 * time.Millisecond},
}

// QuickReport is the result of Quick.
type QuickReport struct {
	Machine Machine   `json:"machine"`
	Runs    []*Report `json:"runs"`
	// Verdicts compare the runs with the specification's targets.
	Verdicts []Verdict `json:"verdicts"`
	// Pass: all verdicts do, and nothing failed.
	Pass bool `json:"pass"`
}

// Errors counts the operations that failed.
func (q *QuickReport) Errors() (n int64) {
	for _, r := range q.Runs {
		n += int64(r.Errors)
	}
	return n
}

// Quick measures for about ten seconds, and judges the result by the specification's targets. base gives
// seed, key prefix and server process; its workload, times and concurrency are ignored.
func Quick(ctx context.Context, t Target, base Options) (*QuickReport, error) {
	q := &QuickReport{Machine: ReadMachine("")}
	base.Keys, base.ValueBytes, base.Rate, base.Pipeline = 10_000, 128, 0, 1
	for i, part := range quickParts {
		o := base
		o.Workload, o.Concurrency, o.Duration = part.workload, part.concurrency, part.duration
		o.Warmup = 100 * time.Millisecond
		o.SkipLoad = i != 1 // the second part is the first that reads
		rep, err := Run(ctx, t, o)
		if err != nil {
			return nil, err
		}
		q.Runs = append(q.Runs, rep)
	}
	q.judge()
	return q, nil
}

func (q *QuickReport) judge() {
	q.Pass = true
	add := func(v Verdict) {
		q.Verdicts = append(q.Verdicts, v)
		q.Pass = q.Pass && v.Pass
	}
	for _, t := range Targets {
		i := slices.IndexFunc(q.Runs, func(r *Report) bool { return r.Workload == t.Workload })
		if i < 0 {
			continue
		}
		for _, c := range []struct {
			metric, name string
			value        float64
		}{{"p50", "P50", t.P50}, {"p95", "P95", t.P95}, {"p99", "P99", t.P99}, {"p999", "P99.9", t.P999}} {
			if c.value > 0 {
				add(q.Runs[i].verdict(Assertion{
					Metric: c.metric, Op: t.Op.String(), Compare: "<=", Value: c.value,
					Text: fmt.Sprintf("%s %s ≤ %s", t.Name, c.name, latencyText(c.value)),
				}))
			}
		}
	}
	if n := len(q.Runs); n > 0 {
		add(q.Runs[n-1].verdict(Assertion{
			Metric: "ops_per_second", Compare: ">", Value: ThroughputTarget,
			Text: fmt.Sprintf("%s at %d callers > %d ops/s", q.Runs[n-1].Workload, q.Runs[n-1].Concurrency, ThroughputTarget),
		}))
	}
	for _, r := range q.Runs {
		if r.Errors > 0 {
			add(Verdict{Text: r.Workload + " without errors", Value: float64(r.Errors)})
		}
	}
}

// WriteJSON writes the report as one line of JSON.
func (q *QuickReport) WriteJSON(w io.Writer) error { return writeJSON(w, q) }

// WriteTable writes runs and verdicts for people.
func (q *QuickReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintln(&b, q.Machine)
	if err := WriteSummary(&b, q.Runs); err != nil {
		return err
	}
	for _, r := range q.Runs {
		for k := range kindCount {
			if n := r.ErrorsByKind[k.String()]; n > 0 {
				fmt.Fprintf(&b, "%s errors: %d %s, such as: %s\n", r.Workload, n, k, r.ErrorSamples[k.String()])
			}
		}
	}
	for _, v := range q.Verdicts {
		fmt.Fprintln(&b, v)
	}
	met := 0
	for _, v := range q.Verdicts {
		if v.Pass {
			met++
		}
	}
	verdict := fmt.Sprintf("verdict: PASS, all %d targets are met here", met)
	if !q.Pass {
		verdict = fmt.Sprintf("verdict: %d of %d targets are met here; `kvbench floor` tells what this machine's disk can do at all", met, len(q.Verdicts))
	}
	fmt.Fprintln(&b, verdict)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}

// WriteSummary writes one table of several runs.
func WriteSummary(w io.Writer, runs []*Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORKLOAD\tCALLERS\tOP\tOPS\tOPS/S\tP50\tP95\tP99\tP99.9\tMAX\tERR\tCLIENT CPU/OP\tSERVER CPU/OP\tCLIENT ALLOCS/OP\tSERVER ALLOCS/OP")
	cpu := func(us float64) string {
		if us > 0 {
			return latencyText(us)
		}
		return "-"
	}
	allocs := func(n *float64) string {
		if n == nil {
			return "-"
		}
		return fmt.Sprintf("%.2f", *n)
	}
	for _, r := range runs {
		workload := r.Workload
		if r.Distribution != "" {
			workload += ", " + r.Distribution
		}
		callers := fmt.Sprint(r.Concurrency)
		if r.Pipeline > 1 {
			callers = fmt.Sprintf("%d×%d", r.Concurrency, r.Pipeline)
		}
		for op := range opCount {
			if o := r.Operations[op.String()]; o != nil {
				fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", workload, callers, op, o.Ops, rateText(o.OpsPerSecond),
					latencyText(o.P50), latencyText(o.P95), latencyText(o.P99), latencyText(o.P999), latencyText(o.Max), o.Errors,
					cpu(r.ClientCPUMicrosPerOp), cpu(r.ServerCPUMicrosPerOp), allocs(r.ClientAllocsPerOp), allocs(r.ServerAllocsPerOp))
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}
