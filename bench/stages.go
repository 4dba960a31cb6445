package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// StagesOptions describes a measurement of where the time of an operation goes.
type StagesOptions struct {
	// Target is a cluster that nobody else uses.
	Target Target
	// Metrics are the metrics ports of all its nodes, HOST:PORT. Required.
	Metrics []string
	// Keys is how many keys are loaded and drawn from. Default 100,000.
	Keys int
	// ValueBytes is the length of each value. Default 128.
	ValueBytes int
	// Callers of the runs whose CPU time is split. Default 256.
	Callers int
	// Duration is the measured time of each run: at least a second, as the servers' profiles want it. Default 5s.
	Duration time.Duration
	// KeyPrefix keeps the keys apart from others'. Default "kvbench/".
	KeyPrefix string
	// Progress, when set, hears what is about to be done.
	Progress func(text string)
}

// StagesReport is the result of Stages.
type StagesReport struct {
	Machine Machine  `json:"machine"`
	Commit  string   `json:"commit,omitempty"`
	Nodes   int      `json:"nodes"`
	Keys    int      `json:"keys"`
	Callers int      `json:"callers"`
	Seconds float64  `json:"seconds"`
	Stages  []Stages `json:"stages"`
}

// Stages splits one operation. All times are means, in microseconds for one operation: medians of parts don't add up.
type Stages struct {
	Workload string `json:"workload"`
	// Latency is that of a lone caller: the parts add up to LatencyWhole, what the caller saw.
	Latency      []StageLatency `json:"latency"`
	LatencyWhole float64        `json:"latency_us"`
	// Beside are times that pass while others do, and are no part of the sum.
	Beside []StageLatency `json:"beside,omitempty"`
	// CPU is user and system time of the servers with many callers: the parts add up to CPUWhole.
	CPU      []StageCPU `json:"cpu"`
	CPUWhole StageCPU   `json:"cpu_us"`
	// Rate is the throughput while the CPU was profiled.
	Rate float64 `json:"ops_per_second"`
}

// StageLatency is one part of a latency.
type StageLatency struct {
	Stage string  `json:"stage"`
	Us    float64 `json:"us"`
}

// StageCPU is one part of the CPU time: of the leader, of all others together, and of all.
type StageCPU struct {
	Stage     string  `json:"stage,omitempty"`
	Leader    float64 `json:"leader_us"`
	Followers float64 `json:"followers_us"`
	All       float64 `json:"all_us"`
}

// stageWorkloads are what is split. Gets come first: puts leave work behind, a checkpoint above all.
var stageWorkloads = []string{"get", "put"}

// stageOrder is the order of rows: that of the way of an operation, then what stands beside it.
var stageOrder = []string{"network", "parse", "look-up", "batch", "log", "replicate", "apply", "change feed", "reply", "checkpoint", "scheduling", "collecting garbage", stageOther}

func (o StagesOptions) withDefaults() (StagesOptions, error) {
	setDefault(&o.Keys, 100_000)
	setDefault(&o.ValueBytes, compareValueBytes)
	setDefault(&o.Callers, ClusterCallers)
	setDefault(&o.Duration, 5*time.Second)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if len(o.Metrics) == 0 || o.Target == nil {
		return o, errors.New("a target and the metrics ports of all nodes are required")
	}
	if o.Duration < time.Second || o.Duration > time.Minute {
		return o, fmt.Errorf("a duration of %v is outside 1s to 1m", o.Duration)
	}
	return o, nil
}

func (o *StagesOptions) run(workload string, callers int, d time.Duration) Options {
	return Options{Workload: workload, Keys: o.Keys, ValueBytes: o.ValueBytes, Concurrency: callers, Duration: d, KeyPrefix: o.KeyPrefix, SkipLoad: true}
}

// MeasureStages loads the cluster and splits a put and a get: the latency of a lone caller by the histograms that the servers keep of
// their stages, the CPU time under many callers by CPU profiles of all nodes, scaled to the CPU time that the processes used
// meanwhile.
func MeasureStages(ctx context.Context, o StagesOptions) (*StagesReport, error) {
	o, err := o.withDefaults()
	if err == nil {
		err = o.run("put", o.Callers, o.Duration).Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot measure stages: %w", err)
	}
	o.Progress(fmt.Sprintf("loading %d keys", o.Keys))
	if err := loadAll(ctx, o.Target, o.run("put", o.Callers, o.Duration)); err != nil {
		return nil, err
	}
	rep := &StagesReport{Machine: ReadMachine(""), Nodes: len(o.Metrics), Keys: o.Keys, Callers: o.Callers, Seconds: o.Duration.Seconds()}
	for _, workload := range stageWorkloads {
		s := Stages{Workload: workload}
		o.Progress("a lone " + workload)
		if err := o.latency(ctx, &s); err != nil {
			return nil, err
		}
		o.Progress(fmt.Sprintf("CPU profiles of %d nodes under %d callers of %s", len(o.Metrics), o.Callers, workload))
		if err := o.cpu(ctx, &s); err != nil {
			return nil, err
		}
		rep.Stages = append(rep.Stages, s)
	}
	return rep, nil
}

// scrape reads the metrics of all nodes.
func (o *StagesOptions) scrape(ctx context.Context) ([]series, error) {
	all := make([]series, 0, len(o.Metrics))
	for _, endpoint := range o.Metrics {
		s, err := readSeries(ctx, endpoint)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// requestSeconds is the histogram of what a node took for a request, from its frame to its answer.
const requestSeconds = "kvstore_request_duration_seconds"

// leading gives the node that answered most of the operations, and how many all answered.
func leading(workload string, before, after []series) (leader int, ops float64) {
	most := -1.0
	for i := range after {
		n := after[i].sum(before[i], requestSeconds+"_count", `operation="`+workload+`"`)
		if ops += n; n > most {
			leader, most = i, n
		}
	}
	return leader, ops
}

// latency splits what a lone caller waits for.
func (o *StagesOptions) latency(ctx context.Context, s *Stages) error {
	before, err := o.scrape(ctx)
	if err != nil {
		return err
	}
	run, err := Run(ctx, o.Target, o.run(s.Workload, 1, o.Duration))
	if err != nil {
		return err
	}
	after, err := o.scrape(ctx)
	if err != nil {
		return err
	}
	op, there := run.Operations[s.Workload]
	if !there || run.Errors > 0 {
		return fmt.Errorf("cannot split a lone %s: %d of %d operations failed", s.Workload, run.Errors, run.Ops)
	}
	return s.splitLatency(op.Mean, before, after)
}

// splitLatency forms the parts from what the nodes' histograms have gained. Parts that no histogram tells are what is left
// between two that do.
func (s *Stages) splitLatency(whole float64, before, after []series) error {
	leader, _ := leading(s.Workload, before, after)
	of := func(name string, words ...string) float64 {
		us, _ := after[leader].mean(before[leader], name, words...)
		return us
	}
	server := of(requestSeconds, `operation="`+s.Workload+`"`)
	if server == 0 {
		return fmt.Errorf("no node tells how long a %s took: are these the metrics ports of this cluster?", s.Workload)
	}
	s.LatencyWhole = whole
	add := func(stage string, us float64) { s.Latency = append(s.Latency, StageLatency{stage, us}) }
	add("network, and the client", whole-server)
	wait, commit := of("kvstore_batch_wait_seconds"), of("kvstore_batch_commit_seconds")
	if commit == 0 { // a read
		add("parse, look-up, reply", server)
		return nil
	}
	logged, apply := of("kvstore_raft_commit_seconds"), of("kvstore_apply_seconds")
	var write, writes float64
	for i := range after {
		if i == leader {
			continue
		}
		us, n := after[i].mean(before[i], "kvstore_raft_append_seconds")
		write, writes = write+us*n, writes+n
	}
	own := of("kvstore_raft_append_seconds")
	add("parse", server-wait-commit)
	add("batch", wait)
	if writes > 0 {
		add("log: a follower's write", write/writes)
		add("replicate: messages and hand-offs", logged-apply-write/writes)
		s.Beside = append(s.Beside, StageLatency{"the leader's own write, at the same time", own})
	} else {
		add("log", own)
		add("commit: hand-offs", logged-apply-own)
	}
	add("apply", apply)
	add("reply", commit-logged)
	return nil
}

// cpu splits the servers' CPU time under many callers.
func (o *StagesOptions) cpu(ctx context.Context, s *Stages) error {
	const margin = 1500 * time.Millisecond // before the profiles, for the warm-up, and after them
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { // owned by this call; ends with the run, or with ctx
		run, err := Run(ctx, o.Target, o.run(s.Workload, o.Callers, o.Duration+2*margin))
		if err == nil && run.Errors > 0 {
			err = fmt.Errorf("%d of %d operations of %s failed", run.Errors, run.Ops, s.Workload)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return errors.Join(errors.New("the load ended before it was profiled"), err)
	case <-time.After(margin):
	}
	before, err := o.scrape(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	shares, err := o.profiles(ctx)
	if err != nil {
		return err
	}
	after, err := o.scrape(ctx)
	if err != nil {
		return err
	}
	took := time.Since(began)
	if err := <-done; err != nil {
		return err
	}
	_, ops := leading(s.Workload, before, after)
	s.Rate = ops / took.Seconds()
	return s.splitCPU(before, after, shares)
}

// profiles fetches a CPU profile of each node, all at the same time, and splits them.
func (o *StagesOptions) profiles(ctx context.Context) ([]map[string]float64, error) {
	type answer struct {
		node   int
		shares map[string]float64
		err    error
	}
	answers := make(chan answer, len(o.Metrics))
	for i, endpoint := range o.Metrics {
		go func() { // owned by this call, which waits for its answer
			seconds := int(o.Duration.Seconds())
			raw, err := fetch(ctx, endpoint, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds), o.Duration+10*time.Second)
			a := answer{node: i, err: err}
			if err == nil {
				a.shares, a.err = stageShares(raw)
			}
			answers <- a
		}()
	}
	all := make([]map[string]float64, len(o.Metrics))
	var errs []error
	for range o.Metrics {
		a := <-answers
		all[a.node] = a.shares
		errs = append(errs, a.err)
	}
	return all, errors.Join(errs...)
}

// splitCPU spreads the CPU time of each node over its stages.
func (s *Stages) splitCPU(before, after []series, shares []map[string]float64) error {
	leader, ops := leading(s.Workload, before, after)
	if ops == 0 {
		return fmt.Errorf("no node has answered a %s: are these the metrics ports of this cluster?", s.Workload)
	}
	for _, stage := range stageOrder {
		row := StageCPU{Stage: stage}
		for i := range after {
			us := after[i].sum(before[i], "process_cpu_seconds_total") / ops * 1e6 * shares[i][stage]
			if i == leader {
				row.Leader += us
			} else {
				row.Followers += us
			}
			row.All += us
		}
		s.CPUWhole.Leader += row.Leader
		s.CPUWhole.Followers += row.Followers
		s.CPUWhole.All += row.All
		if row.All > 0 {
			s.CPU = append(s.CPU, row)
		}
	}
	return nil
}

func percent(part, whole float64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * part / whole
}

// WriteJSON writes the report as one line of JSON.
func (rep *StagesReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report as two tables in Markdown for each workload.
func (rep *StagesReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	if rep.Commit != "" {
		fmt.Fprintf(&b, "Commit %.10s, ", rep.Commit)
	}
	fmt.Fprintf(&b, "%s; %d nodes, %d keys, %g s for each figure.\n", rep.Machine, rep.Nodes, rep.Keys, rep.Seconds)
	for _, s := range rep.Stages {
		name := strings.ToUpper(s.Workload)
		fmt.Fprintf(&b, "\n| a lone %s, latency | mean | share |\n|---|---|---|\n", name)
		for _, l := range s.Latency {
			fmt.Fprintf(&b, "| %s | %s | %.0f %% |\n", l.Stage, latencyText(l.Us), percent(l.Us, s.LatencyWhole))
		}
		fmt.Fprintf(&b, "| **whole** | **%s** | 100 %% |\n", latencyText(s.LatencyWhole))
		for _, l := range s.Beside {
			fmt.Fprintf(&b, "| (%s) | %s | |\n", l.Stage, latencyText(l.Us))
		}
		fmt.Fprintf(&b, "\n| a %s of %d callers, %s/s: CPU time | leader | followers | all | share |\n|---|---|---|---|---|\n", name, rep.Callers, rateText(s.Rate))
		for _, c := range s.CPU {
			fmt.Fprintf(&b, "| %s | %.2f µs | %.2f µs | %.2f µs | %.0f %% |\n", c.Stage, c.Leader, c.Followers, c.All, percent(c.All, s.CPUWhole.All))
		}
		fmt.Fprintf(&b, "| **whole** | **%.2f µs** | **%.2f µs** | **%.2f µs** | 100 %% |\n", s.CPUWhole.Leader, s.CPUWhole.Followers, s.CPUWhole.All)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
