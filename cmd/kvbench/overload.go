package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

func (a *app) overloadCmd() *cobra.Command {
	var (
		o     bench.OverloadOptions
		cores float64
		check bool
	)
	c := &cobra.Command{
		Use: "overload", Short: "Ask for several times what the servers can do, and report what is still done", Args: noArgs,
		Long: `Find the most that the servers can do in a closed loop, then send the leader --factor times as much on a schedule,
whatever it answers. Report how much is still done, and what the refusal of the rest costs the servers' CPU.

--cores confines this process to a share of one core, in a control group of its own (needs root), so that the load
generator can't take from the servers what they need to refuse it.`,
		Example: `  kvbench overload --workload put --cores 0.5`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := o.Run.Validate(); err != nil {
				return usageError{err}
			}
			if cores != 0 {
				undo, err := bench.ConfineCPU(cores)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, undo()) }()
			}
			return a.withTarget(cmd.Context(), func(t target, s servers) error { return a.runOverload(cmd.Context(), t, s, o, check) })
		},
	}
	f := c.Flags()
	a.connectFlags(f)
	f.StringVar(&o.Run.Workload, "workload", "put", "what to do: put or get")
	f.IntVar(&o.Run.Keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(&o.Run.ValueBytes, "value-size", 128, "bytes of each value")
	f.IntVar(&o.Run.Concurrency, "concurrency", 256, "callers")
	f.IntVar(&o.Run.Pipeline, "pipeline", 8, "operations of each caller in flight, while the maximum is looked for")
	f.IntVar(&o.Conns, "flood-conns", 8, "connections that flood the leader")
	f.DurationVar(&o.Run.Duration, "duration", 0, "measured time of each part (default 10s)")
	f.Float64Var(&o.Factor, "factor", 3, "how many times the maximum is asked for")
	f.Float64Var(&cores, "cores", 0, "share of one core that this process may use; 0: no bound")
	f.BoolVar(&check, "check", false, "exit 1 when a target is missed")
	return c
}

func (a *app) runOverload(ctx context.Context, t target, s servers, o bench.OverloadOptions, check bool) error {
	a.remark(s.remark)
	o.Run.ServerPIDs, o.Run.Progress = s.pids, a.loadProgress()
	o.Leader = func(ctx context.Context) (string, error) {
		st, known, err := readStatus(ctx, t)
		if err != nil {
			return "", err
		}
		for _, n := range st.Nodes {
			if known && n.Role == "leader" && n.Address != "" {
				return n.Address, nil
			}
		}
		return "", errors.New("the cluster tells no address of its leader")
	}
	rep, err := bench.Overload(ctx, t, o)
	if err != nil {
		return err
	}
	a.describe(rep.Saturated, s)
	if err := a.show(rep); err != nil {
		return err
	}
	if check && !rep.Met() {
		return fmt.Errorf("%w: at least %.0f %% of the maximum is to be done, and a refusal may cost %.2f of an operation", errVerdict, 100*bench.OverloadTargets.Goodput, bench.OverloadTargets.Refusal)
	}
	return nil
}
