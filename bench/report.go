package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Report is the result of one run. Its JSON form is stable: fields are added, never changed. All
// latencies and CPU times are microseconds.
type Report struct {
	Workload string  `json:"workload"`
	Machine  Machine `json:"machine"`
	Target   string  `json:"target,omitempty"`
	// System names what was driven where it is not a KVStore, with its version.
	System string `json:"system,omitempty"`
	// Protocol is the door that was used where it is not the binary one.
	Protocol string `json:"protocol,omitempty"`
	// Nodes is how many nodes the cluster has, 0 where that is not known.
	Nodes int `json:"nodes,omitempty"`
	Keys  int `json:"keys"`
	// Distribution is how keys were drawn, where not uniformly or as YCSB says.
	Distribution string `json:"distribution,omitempty"`
	ValueBytes   int    `json:"value_bytes"`
	Connections  int    `json:"connections,omitempty"`
	Concurrency  int    `json:"concurrency"`
	Pipeline     int    `json:"pipeline"`
	Seed         uint64 `json:"seed"`
	// Loop is closed, or open: then latencies count from the instant when an operation was due.
	Loop          string  `json:"loop"`
	WarmupSeconds float64 `json:"warmup_seconds"`

	// Ops counts operations that succeeded; Seconds runs to the last answer that counts.
	Ops          uint64  `json:"ops"`
	Seconds      float64 `json:"seconds"`
	OpsPerSecond float64 `json:"ops_per_second"`
	// Errors counts all failures, Unknown the writes among them that may or may not be applied.
	Errors       uint64            `json:"errors"`
	Unknown      uint64            `json:"unknown"`
	ErrorsByKind map[string]uint64 `json:"errors_by_kind,omitempty"`
	// ErrorSamples holds the text of one error of each kind.
	ErrorSamples map[string]string `json:"error_samples,omitempty"`

	Operations map[string]*OpReport `json:"operations"`

	// Schedule is there for an open loop.
	Schedule *Schedule `json:"schedule,omitempty"`

	ClientCPUMicrosPerOp float64 `json:"client_cpu_us_per_op,omitempty"`
	// ServerCPUMicrosPerOp is that of all nodes together; 0 when a server's process is not known or not on
	// this machine.
	ServerCPUMicrosPerOp float64 `json:"server_cpu_us_per_op,omitempty"`

	// ClientAllocsPerOp is what the load generator's process allocates on the heap for one operation, itself included;
	// ServerAllocsPerOp is that of all nodes together, what they do besides included. Absent where not measured.
	ClientAllocsPerOp *float64 `json:"client_allocs_per_op,omitempty"`
	ServerAllocsPerOp *float64 `json:"server_allocs_per_op,omitempty"`
	// ServerRSSAnonBytes is the anonymous memory (RssAnon) of each server process after the run.
	ServerRSSAnonBytes []int64 `json:"server_rss_anon_bytes,omitempty"`

	Assertions []Verdict `json:"assertions,omitempty"`
}

// OpReport is the part of one kind of operation.
type OpReport struct {
	Ops          uint64  `json:"ops"`
	OpsPerSecond float64 `json:"ops_per_second"`
	Mean         float64 `json:"mean"`
	P50          float64 `json:"p50"`
	P95          float64 `json:"p95"`
	P99          float64 `json:"p99"`
	P999         float64 `json:"p999"`
	Max          float64 `json:"max"`
	Errors       uint64  `json:"errors"`
	Unknown      uint64  `json:"unknown"`
	// Misses are reads that found no key; they count as successes.
	Misses uint64 `json:"misses"`
}

// Schedule says how well an open loop kept its rate.
type Schedule struct {
	Rate float64 `json:"rate"`
	// Reached: at least 99 % of the rate was answered and nothing was dropped.
	Reached bool `json:"reached"`
	// Dropped operations were due and never sent, since the backlog was full.
	Dropped uint64 `json:"dropped"`
	// LatenessP99 is how late the generator itself released operations; it is part of every latency.
	LatenessP99 float64 `json:"lateness_p99"`
}

// micros converts to microseconds with one decimal.
func micros(d time.Duration) float64 { return math.Round(float64(d)/100) / 10 }

func quantile(h *hdr.Histogram, q float64) float64 {
	return micros(time.Duration(h.ValueAtPercentile(q)))
}

func (r *run) report() *Report {
	o := r.opts
	rep := &Report{
		Workload: o.Workload, Machine: ReadMachine(""), Keys: o.Keys, ValueBytes: o.ValueBytes, Concurrency: o.Concurrency,
		Pipeline: o.Pipeline, Seed: o.Seed, Loop: "closed", WarmupSeconds: o.Warmup.Seconds(), Operations: map[string]*OpReport{},
	}
	if r.plan != nil && o.Distribution != "uniform" && r.plan.load.keys == byOption {
		rep.Distribution = o.Distribution
	}
	ops, last := r.rec.totals()
	rep.Seconds = max(last, r.rec.from+time.Nanosecond).Seconds() - o.Warmup.Seconds()
	if last == 0 {
		rep.Seconds = o.Duration.Seconds()
	}
	for op := range ops {
		rep.addOp(Op(op), &ops[op])
	}
	rep.OpsPerSecond = math.Round(float64(rep.Ops)/rep.Seconds*10) / 10
	if p := r.pacer; p != nil {
		rep.Loop = "open"
		rep.addErrors(KindNotSent, p.dropped, "the generator's backlog was full")
		rep.Schedule = &Schedule{
			Rate: o.Rate, Dropped: p.dropped, LatenessP99: quantile(p.lateness, 99),
			Reached: p.dropped == 0 && rep.OpsPerSecond >= 0.99*o.Rate,
		}
	}
	return rep
}

func (rep *Report) addOp(op Op, st *opStats) {
	out := &OpReport{Misses: st.misses, Unknown: st.errors[KindUnknown]}
	for k, n := range st.errors {
		out.Errors += n
		rep.addErrors(Kind(k), n, st.sample[k])
	}
	if h := st.latency; h != nil {
		out.Ops = uint64(h.TotalCount())
		out.OpsPerSecond = math.Round(float64(out.Ops)/rep.Seconds*10) / 10
		out.Mean = micros(time.Duration(h.Mean()))
		out.P50, out.P95, out.P99, out.P999 = quantile(h, 50), quantile(h, 95), quantile(h, 99), quantile(h, 99.9)
		out.Max = micros(time.Duration(h.Max()))
	}
	if out.Ops+out.Errors > 0 {
		rep.Operations[op.String()] = out
		rep.Ops += out.Ops
	}
}

func (rep *Report) addErrors(k Kind, n uint64, sample string) {
	if n == 0 {
		return
	}
	if rep.ErrorsByKind == nil {
		rep.ErrorsByKind, rep.ErrorSamples = map[string]uint64{}, map[string]string{}
	}
	rep.Errors += n
	rep.ErrorsByKind[k.String()] += n
	if rep.ErrorSamples[k.String()] == "" {
		rep.ErrorSamples[k.String()] = sample
	}
	if k == KindUnknown {
		rep.Unknown += n
	}
}

// setCPU spreads the CPU time of the window over its operations, failed ones included.
func (rep *Report) setCPU(before, after cpuTimes) {
	n := float64(rep.Ops + rep.Errors)
	if n == 0 {
		return
	}
	perOp := func(d time.Duration) float64 { return math.Round(float64(d)/n/10) / 100 }
	rep.ClientCPUMicrosPerOp = perOp(after.client - before.client)
	if before.serverKnown && after.serverKnown {
		rep.ServerCPUMicrosPerOp = perOp(after.server - before.server)
	}
}

// WriteJSON writes the report as one line of JSON.
func (rep *Report) WriteJSON(w io.Writer) error {
	return writeJSON(w, rep)
}

// writeJSON writes v as one line; assertions hold < and >, which need no escape outside of HTML.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}

// WriteTable writes the report for people.
func (rep *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintln(&b, rep.Machine)
	fmt.Fprintln(&b, rep.header())
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "OP\tOPS\tOPS/S\tP50\tP95\tP99\tP99.9\tMAX\tERR")
	for op := range opCount {
		if o := rep.Operations[op.String()]; o != nil {
			fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", op, o.Ops, rateText(o.OpsPerSecond),
				latencyText(o.P50), latencyText(o.P95), latencyText(o.P99), latencyText(o.P999), latencyText(o.Max), o.Errors)
		}
	}
	if len(rep.Operations) > 1 {
		fmt.Fprintf(tw, "all\t%d\t%s\t\t\t\t\t\t%d\n", rep.Ops, rateText(rep.OpsPerSecond), rep.Errors)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	rep.writeNotes(&b)
	for _, v := range rep.Assertions {
		fmt.Fprintln(&b, v)
	}
	// tabwriter pads the last column of rows with empty cells.
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	if _, err := io.WriteString(w, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}

func (rep *Report) header() string {
	s := rep.Workload
	if rep.Distribution != "" {
		s += " of " + rep.Distribution + " keys"
	}
	if rep.Target != "" {
		s += " on " + rep.Target
	}
	if rep.Protocol != "" {
		s += " through " + rep.Protocol
	}
	s += fmt.Sprintf(" · %s loop", rep.Loop)
	if rep.Schedule != nil {
		s += fmt.Sprintf(" at %s/s, latency from the due time", rateText(rep.Schedule.Rate))
	}
	s += fmt.Sprintf(", %d × %d in flight", rep.Concurrency, rep.Pipeline)
	if rep.Connections > 0 {
		s += fmt.Sprintf(", connections: %d", rep.Connections)
	}
	return s + fmt.Sprintf(" · %d keys, values of %d B, seed %d · %.1fs after %gs warm-up", rep.Keys, rep.ValueBytes, rep.Seed, rep.Seconds, rep.WarmupSeconds)
}

func (rep *Report) writeNotes(w io.Writer) {
	cpu := fmt.Sprintf("cpu per op: client %.2fµs", rep.ClientCPUMicrosPerOp)
	if rep.ServerCPUMicrosPerOp > 0 {
		cpu += fmt.Sprintf(", server %.2fµs", rep.ServerCPUMicrosPerOp)
	}
	fmt.Fprintln(w, cpu)
	if rep.ClientAllocsPerOp != nil {
		allocs := fmt.Sprintf("allocations per op: client %.2f", *rep.ClientAllocsPerOp)
		if rep.ServerAllocsPerOp != nil {
			allocs += fmt.Sprintf(", servers %.2f", *rep.ServerAllocsPerOp)
		}
		fmt.Fprintln(w, allocs)
	}
	if n := len(rep.ServerRSSAnonBytes); n > 0 {
		texts := make([]string, n)
		for i, b := range rep.ServerRSSAnonBytes {
			texts[i] = bytesText(b)
		}
		fmt.Fprintf(w, "anonymous memory of the servers: %s\n", strings.Join(texts, ", "))
	}
	if s := rep.Schedule; s != nil {
		if !s.Reached {
			fmt.Fprintf(w, "target rate NOT reached: %s of %s/s answered, %d dropped unsent\n", rateText(rep.OpsPerSecond), rateText(s.Rate), s.Dropped)
		}
		fmt.Fprintf(w, "the generator released operations at most %s late (P99)\n", latencyText(s.LatenessP99))
	}
	for k := range kindCount {
		if n := rep.ErrorsByKind[k.String()]; n > 0 {
			what := k.String()
			if k == KindUnknown {
				what = "unknown (may or may not be applied)"
			}
			fmt.Fprintf(w, "errors: %d %s, such as: %s\n", n, what, rep.ErrorSamples[k.String()])
		}
	}
	for op := range opCount {
		if o := rep.Operations[op.String()]; o != nil && o.Misses > 0 {
			fmt.Fprintf(w, "%s: %d of %d found no key or not all\n", op, o.Misses, o.Ops)
		}
	}
}

// rateText prints a rate with thin digits: whole numbers from 100 on.
func rateText(f float64) string {
	if f >= 100 {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.1f", f)
}

// latencyText prints microseconds for people.
func latencyText(us float64) string {
	switch {
	case us < 1:
		return fmt.Sprintf("%.0fns", us*1000)
	case us < 100:
		return fmt.Sprintf("%.1fµs", us)
	case us < 1000:
		return fmt.Sprintf("%.0fµs", us)
	case us < 1e6:
		return fmt.Sprintf("%.2fms", us/1000)
	}
	return fmt.Sprintf("%.2fs", us/1e6)
}
