package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"kvstore/wire"
)

// OverloadOptions describes a measurement of what becomes of work when more is asked for than can be done.
type OverloadOptions struct {
	// Run is the workload, put or get; Rate must be 0, Duration is that of each of the two parts.
	Run Options
	// Factor is how many times the measured maximum is asked for. Default 3.
	Factor float64
	// Leader finds the address that the second part floods.
	Leader func(context.Context) (string, error)
	// Conns is over how many connections it does. Default 8.
	Conns int
}

// OverloadReport is the result of Overload.
type OverloadReport struct {
	// Saturated is the closed loop that finds the maximum, Flooded what came on a schedule beyond it.
	Saturated *Report      `json:"saturated"`
	Flooded   *FloodReport `json:"flooded"`
	// Factor is how many times the maximum was really sent.
	Factor float64 `json:"factor"`
	// Goodput is the share of the maximum that was still done.
	Goodput float64 `json:"goodput"`
	// ServeCPU and RefuseCPU are microseconds of the servers' CPU for one operation that is done (of the first
	// part) and for one that is refused: what the second part took beyond its successes at ServeCPU. Both are 0
	// when the servers' CPU time is not known.
	ServeCPU  float64 `json:"serve_cpu_us"`
	RefuseCPU float64 `json:"refuse_cpu_us"`
}

// OverloadTargets are the least Goodput and the largest RefuseCPU / ServeCPU that are aimed at.
var OverloadTargets = struct{ Goodput, Refusal float64 }{0.8, 0.2}

// Overload finds the most that t can do, in a closed loop, and then asks for Factor times as much on a schedule,
// each request once.
func Overload(ctx context.Context, t Target, o OverloadOptions) (*OverloadReport, error) {
	setDefault(&o.Factor, 3)
	setDefault(&o.Conns, 8)
	run, err := o.Run.withDefaults()
	op := map[string]wire.Opcode{"put": wire.OpPut, "get": wire.OpGet}[run.Workload]
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot overload: %w", err)
	case op == 0 || run.Rate != 0:
		return nil, fmt.Errorf("cannot overload with workload %s at rate %v: put or get, without a rate", run.Workload, run.Rate)
	case o.Factor <= 1 || o.Factor > 100 || o.Conns < 1 || o.Conns > 1024:
		return nil, fmt.Errorf("cannot overload: factor %v must be above 1 and at most 100, connections %d from 1 to 1024", o.Factor, o.Conns)
	}
	rep := &OverloadReport{}
	if rep.Saturated, err = Run(ctx, t, run); err != nil {
		return nil, err
	}
	if rep.Saturated.Ops == 0 {
		return nil, errors.New("cannot overload: no operation succeeded in the first part")
	}
	leader, err := o.Leader(ctx)
	if err != nil {
		return nil, err
	}
	rep.Flooded, err = flood(ctx, floodOptions{
		address: leader, op: op, conns: o.Conns, run: run, rate: rep.Saturated.OpsPerSecond * o.Factor,
		keys: newKeySpace(run.KeyPrefix, run.Keys),
	})
	if err != nil {
		return nil, err
	}
	rep.judge()
	return rep, nil
}

// judge works out the figures of the two parts.
func (rep *OverloadReport) judge() {
	s, f := rep.Saturated, rep.Flooded
	rep.Factor = float64(f.Sent) / f.Seconds / s.OpsPerSecond
	rep.Goodput = float64(f.Done) / f.Seconds / s.OpsPerSecond
	if s.ServerCPUMicrosPerOp > 0 && f.ServerCPU > 0 {
		rep.ServeCPU = s.ServerCPUMicrosPerOp
		if f.Refused > 0 {
			rep.RefuseCPU = max(0, (f.ServerCPU-rep.ServeCPU*float64(f.Done))/float64(f.Refused))
		}
	}
}

// Met tells whether the targets are; what was not measured is not met.
func (rep *OverloadReport) Met() bool {
	return rep.Goodput >= OverloadTargets.Goodput && rep.ServeCPU > 0 && rep.RefuseCPU <= OverloadTargets.Refusal*rep.ServeCPU
}

// WriteJSON writes the report as one line of JSON.
func (rep *OverloadReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report for people.
func (rep *OverloadReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	s, f := rep.Saturated, rep.Flooded
	fmt.Fprintf(&b, "%s\n%s: at most %.0f/s with %d callers; then %.0f/s sent, %.1f times as much, each once\n",
		s.Machine, s.Workload, s.OpsPerSecond, s.Concurrency*max(1, s.Pipeline), float64(f.Sent)/f.Seconds, rep.Factor)
	fmt.Fprintf(&b, "done: %.0f/s, %.0f %% of the maximum, within p50 %s and p99 %s\n", float64(f.Done)/f.Seconds, 100*rep.Goodput, latencyText(f.P50), latencyText(f.P99))
	for _, st := range slices.Sorted(maps.Keys(f.RefusedBy)) {
		fmt.Fprintf(&b, "refused: %.0f/s %s\n", float64(f.RefusedBy[st])/f.Seconds, st)
	}
	for _, st := range slices.Sorted(maps.Keys(f.Other)) {
		fmt.Fprintf(&b, "failed: %d %s\n", f.Other[st], st)
	}
	if f.Skipped > 0 {
		fmt.Fprintf(&b, "not sent: %d: the load generator, or the network, was too slow\n", f.Skipped)
	}
	switch {
	case rep.ServeCPU == 0:
		fmt.Fprintln(&b, "servers' CPU: not measured")
	case f.Refused == 0:
		fmt.Fprintf(&b, "servers' CPU: %.1f µs for an operation that is done\n", rep.ServeCPU)
	default:
		fmt.Fprintf(&b, "servers' CPU: %.1f µs for an operation that is done, %.1f µs for one that is refused: %.2f of it\n", rep.ServeCPU, rep.RefuseCPU, rep.RefuseCPU/rep.ServeCPU)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}

// ConfineCPU moves this process into a control group of its own that may use share of one core (0.5: half of it),
// and returns what undoes it. It needs the rights of root and cgroup version 1 or 2. Measurements confine their
// load generator with it, so that it can't take from the servers what they need to refuse it.
func ConfineCPU(share float64) (undo func() error, err error) {
	if share <= 0 || share > 64 {
		return nil, fmt.Errorf("cannot confine the CPU to %v cores: between 0 and 64", share)
	}
	const period = 100 * time.Millisecond
	quota := time.Duration(share * float64(period))
	g, err := newCgroup(quota, period)
	if err != nil {
		return nil, fmt.Errorf("cannot confine the CPU: %w", err)
	}
	return g.leave, nil
}
