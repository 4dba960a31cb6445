package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Results are the reports of one session on one machine.
type Results struct {
	Floors    []*FloorReport
	Runs      []*Report
	Failovers []*FailoverReport
	Costs     []*CostReport
	Reads     []*ReadsReport
	Growths   []*GrowthReport
	Stages    []*StagesReport
	Latencies []*LatencyReport
}

// ClusterTargets are what three nodes are built for, on a machine of two cores that also carries the load
// generator.
var ClusterTargets = struct {
	// Puts and Gets are operations per second of ClusterCallers callers; PutsTimesEtcd and GetsTimesEtcd are
	// what counts instead where the machine is too slow or too busy for them and etcd ran beside.
	Puts, Gets, PutsTimesEtcd, GetsTimesEtcd float64
	// LonePutFloor is the P50 of a lone put over that of FloorReplicatedSequential.
	LonePutFloor float64
	// FailoverP50 and FailoverP99 are microseconds from a kill to the next acknowledged write.
	FailoverP50, FailoverP99 float64
}{30_000, 150_000, 5, 12, 2, 1.5e6, 3e6}

// ClusterCallers is the concurrency at which the targets of throughput count.
const ClusterCallers = 256

// clusterNodes is the size of cluster that the targets speak of.
const clusterNodes = 3

// Judgement is what a target asks for and what was measured.
type Judgement struct {
	Target string
	// Measured: there was something to compare; else Figure says what is missing.
	Measured bool
	Met      bool
	Figure   string
}

// String is the line of the summary.
func (j Judgement) String() string {
	word := "NOT MEASURED"
	switch {
	case j.Measured && j.Met:
		word = "met"
	case j.Measured:
		word = "MISSED"
	}
	return fmt.Sprintf("%-12s  %s: %s", word, j.Target, j.Figure)
}

// group is the runs of one system through one door with one number of nodes. The binary door has no name here.
type group struct {
	system   string
	protocol string
	nodes    int
	runs     []*Report
}

func (g group) title() string {
	s := g.system
	if s == "" {
		s = "kvstore"
	}
	if g.protocol != "" {
		s += " through " + g.protocol
	}
	switch g.nodes {
	case 0:
		return s
	case 1:
		return s + ", one node"
	}
	return fmt.Sprintf("%s, %d nodes", s, g.nodes)
}

// groups keeps the order in which systems and sizes first appear.
func (r *Results) groups() []group {
	var gs []group
	for _, run := range r.Runs {
		i := slices.IndexFunc(gs, func(g group) bool {
			return g.system == run.System && g.protocol == run.Protocol && g.nodes == run.Nodes
		})
		if i < 0 {
			i = len(gs)
			gs = append(gs, group{system: run.System, protocol: run.Protocol, nodes: run.Nodes})
		}
		gs[i].runs = append(gs[i].runs, run)
	}
	return gs
}

// find gives the last run of a workload with that many callers, one operation of each in flight, and keys drawn uniformly, nil when there is none.
func (g group) find(workload string, callers int) *Report {
	for _, run := range slices.Backward(g.runs) {
		if run.Workload == workload && run.Concurrency == callers && run.Pipeline <= 1 && run.Distribution == "" {
			return run
		}
	}
	return nil
}

// own and peer give the group of kvstore's binary door and the first of another system with that many nodes.
func (r *Results) own(nodes int) group {
	for _, g := range r.groups() {
		if g.system == "" && g.protocol == "" && g.nodes == nodes {
			return g
		}
	}
	return group{nodes: nodes}
}

func (r *Results) peer(nodes int) group {
	for _, g := range r.groups() {
		if g.system != "" && g.nodes == nodes {
			return g
		}
	}
	return group{nodes: nodes}
}

// floorTest gives the newest floor's figure, nil when it was not measured.
func (r *Results) floorTest(name string) *FloorTest {
	for _, f := range slices.Backward(r.Floors) {
		if t := f.Test(name); t != nil {
			return t
		}
	}
	return nil
}

// Judge compares the results with ClusterTargets. What was not measured is not met.
func (r *Results) Judge() []Judgement {
	t := &ClusterTargets
	js := []Judgement{
		r.judgeRate("put", OpPut, t.Puts, t.PutsTimesEtcd),
		r.judgeRate("get", OpGet, t.Gets, t.GetsTimesEtcd),
		r.judgeLonePut(),
	}
	for _, c := range []struct {
		name   string
		bound  float64
		figure func(*FailoverReport) float64
	}{
		{"p50", t.FailoverP50, func(f *FailoverReport) float64 { return f.P50 }},
		{"p99", t.FailoverP99, func(f *FailoverReport) float64 { return f.P99 }},
	} {
		j := Judgement{Target: fmt.Sprintf("kill -9 of the leader to next acknowledged write, %s ≤ %s", c.name, latencyText(c.bound)), Figure: "no fail-over was measured"}
		if n := len(r.Failovers); n > 0 {
			f := r.Failovers[n-1]
			v := c.figure(f)
			j.Measured, j.Met = true, v <= c.bound
			j.Figure = fmt.Sprintf("%s (%d kills)", latencyText(v), len(f.Kills))
		}
		js = append(js, j)
	}
	j := Judgement{Target: "no acknowledged write lost, and no write failed, over all kills", Figure: "no fail-over was measured"}
	if n := len(r.Failovers); n > 0 {
		f := r.Failovers[n-1]
		j.Measured, j.Met = f.Writes > 0, f.Lost == 0 && f.Errors == 0 && f.NotSent == 0
		j.Figure = fmt.Sprintf("%d lost, %d failed (%d unknown), %d not sent of %d", f.Lost, f.Errors, f.Unknown, f.NotSent, f.Writes+f.Errors+f.NotSent)
	}
	return append(js, j)
}

func (r *Results) judgeRate(workload string, op Op, rate, times float64) Judgement {
	j := Judgement{
		Target: fmt.Sprintf("%s/s, %d nodes, %d callers ≥ %s, or ≥ %g × etcd", strings.ToUpper(workload), clusterNodes, ClusterCallers, rateText(rate), times),
		Figure: "no such run",
	}
	rep := r.own(clusterNodes).find(workload, ClusterCallers)
	if rep == nil || rep.Operations[op.String()] == nil {
		return j
	}
	v := rep.Operations[op.String()].OpsPerSecond
	j.Measured, j.Met, j.Figure = true, v >= rate, rateText(v)+"/s"
	if p := r.peer(clusterNodes).find(workload, ClusterCallers); p != nil && strings.HasPrefix(p.System, "etcd") && p.OpsPerSecond > 0 {
		ratio := v / p.OpsPerSecond
		j.Met = j.Met || ratio >= times
		j.Figure += fmt.Sprintf(", %.1f × %s", ratio, p.System)
	} else {
		j.Figure += " (etcd did not run beside)"
	}
	if rep.Errors > 0 {
		j.Met = false
		j.Figure += fmt.Sprintf(", %d errors", rep.Errors)
	}
	return j
}

func (r *Results) judgeLonePut() Judgement {
	j := Judgement{Target: fmt.Sprintf("lone PUT, %d nodes, p50 ≤ %g × the floor of three processes that flush one after the other", clusterNodes, ClusterTargets.LonePutFloor)}
	put, floor := r.own(clusterNodes).find("put", 1), r.floorTest(FloorReplicatedSequential)
	switch {
	case put == nil || put.Operations[OpPut.String()] == nil:
		j.Figure = "no such run"
	case floor == nil || floor.P50 <= 0:
		j.Figure = "the floor of three processes was not measured"
	default:
		p50 := put.Operations[OpPut.String()].P50
		j.Measured, j.Met = true, p50 <= ClusterTargets.LonePutFloor*floor.P50
		j.Figure = fmt.Sprintf("%.2f × (%s over %s)", p50/floor.P50, latencyText(p50), latencyText(floor.P50))
	}
	return j
}

// WriteTable writes everything for people: floors, runs by system, door and size, fail-overs, ratios, what the doors,
// shared reads and many records cost, and what became of the targets where a cluster was measured.
func (r *Results) WriteTable(w io.Writer) error {
	var b strings.Builder
	for _, f := range r.Floors {
		if err := f.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	for _, g := range r.groups() {
		fmt.Fprintln(&b, g.title())
		if err := WriteSummary(&b, g.runs); err != nil {
			return err
		}
		for _, run := range g.runs {
			for k := range kindCount {
				if n := run.ErrorsByKind[k.String()]; n > 0 {
					fmt.Fprintf(&b, "%s, %d callers, errors: %d %s, such as: %s\n", run.Workload, run.Concurrency, n, k, run.ErrorSamples[k.String()])
				}
			}
		}
		fmt.Fprintln(&b)
	}
	for _, f := range r.Failovers {
		if err := f.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	if err := r.writeRatios(&b); err != nil {
		return err
	}
	for _, c := range r.Costs {
		if err := c.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	for _, c := range r.Reads {
		if err := c.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	for _, g := range r.Growths {
		if err := g.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	for _, s := range r.Stages {
		if err := s.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	for _, l := range r.Latencies {
		if err := l.WriteTable(&b); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	if len(r.own(clusterNodes).runs)+len(r.Failovers) > 0 {
		fmt.Fprintf(&b, "targets of %d nodes\n", clusterNodes)
		for _, j := range r.Judge() {
			fmt.Fprintln(&b, j)
		}
	}
	return writeText(w, b.String())
}

// writeRatios compares lone callers with the floor, and kvstore with the others of the same size.
func (r *Results) writeRatios(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	lines := 0
	line := func(title, what, figure string) {
		if lines++; lines == 1 {
			fmt.Fprintln(tw, "RATIO\tOF\tIS")
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", title, what, figure)
	}
	for _, g := range r.groups() {
		for _, c := range []struct {
			workload string
			op       Op
			floors   []string
		}{
			{"put", OpPut, []string{FloorFsync, FloorReplicatedSequential, FloorReplicatedOverlapped}},
			{"get", OpGet, []string{FloorLoopback}},
		} {
			run := g.find(c.workload, 1)
			if run == nil || run.Operations[c.op.String()] == nil {
				continue
			}
			for _, name := range c.floors {
				replicated := name == FloorReplicatedSequential || name == FloorReplicatedOverlapped
				if t := r.floorTest(name); t != nil && t.P50 > 0 && (g.nodes > 1 || !replicated) {
					p50 := run.Operations[c.op.String()].P50
					line(g.title(), "lone "+strings.ToUpper(c.workload)+" p50 over: "+name, fmt.Sprintf("%.2f ×", p50/t.P50))
				}
			}
		}
		if g.system == "" {
			continue
		}
		for _, other := range g.runs {
			own := r.own(g.nodes).find(other.Workload, other.Concurrency)
			if own == nil || other.OpsPerSecond <= 0 {
				continue
			}
			figure := fmt.Sprintf("%.1f ×", own.OpsPerSecond/other.OpsPerSecond)
			if own.ServerCPUMicrosPerOp > 0 && other.ServerCPUMicrosPerOp > 0 {
				figure += fmt.Sprintf(", server CPU per operation %.2f ×", own.ServerCPUMicrosPerOp/other.ServerCPUMicrosPerOp)
			}
			line("kvstore over "+g.title(), fmt.Sprintf("%s, %d callers, throughput", other.Workload, other.Concurrency), figure)
		}
	}
	if lines > 0 {
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}
