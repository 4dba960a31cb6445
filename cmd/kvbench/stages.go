package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// Lines between which --into puts the tables.
const (
	stagesBegin = "<!-- made by make bench-stages: begin -->"
	stagesEnd   = "<!-- made by make bench-stages: end -->"
)

func (a *app) stagesCmd() *cobra.Command {
	var (
		o            bench.StagesOptions
		into, commit string
	)
	c := &cobra.Command{
		Use: "stages", Short: "Split one put and one get by stage: latency and CPU time", Args: noArgs,
		Long: `Tell where the time of a put and of a get goes. The latency is that of a lone caller, split by what the nodes'
histograms tell of their stages; the CPU time is that of all nodes with many callers, split by CPU profiles of the nodes.
Both add up to the whole. The metrics ports of all nodes are asked, for /metrics and /debug/pprof.`,
		Example: `  kvbench stages --endpoints 127.0.0.1:7001 --metrics 127.0.0.1:2112`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.Metrics) == 0 {
				return usageError{errors.New("--metrics names the metrics ports of all nodes")}
			}
			return a.withTarget(cmd.Context(), func(t target, s servers) error {
				o.Target = t
				return a.runStages(cmd.Context(), o, s, into, commit)
			})
		},
	}
	f := c.Flags()
	a.connectFlags(f)
	f.StringSliceVar(&o.Metrics, "metrics", nil, "metrics ports of all nodes, HOST:PORT,…")
	f.IntVar(&o.Keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(&o.ValueBytes, "value-size", 128, "bytes of each value")
	f.IntVar(&o.Callers, "concurrency", 256, "callers of the runs whose CPU time is split, each with one operation in flight")
	f.DurationVar(&o.Duration, "duration", 5*time.Second, "measured time of each run, 1s to 1m")
	f.StringVar(&o.KeyPrefix, "key-prefix", "kvbench/", "prefix of all keys that are written")
	f.StringVar(&into, "into", "", "a page whose part between the markers is replaced by the tables, too")
	f.StringVar(&commit, "commit", "", "the commit that is measured, for the report")
	return c
}

func (a *app) runStages(ctx context.Context, o bench.StagesOptions, s servers, into, commit string) error {
	o.Progress = func(text string) { fmt.Fprintln(a.err, text) }
	rep, err := bench.MeasureStages(ctx, o)
	if err != nil {
		return err
	}
	rep.Machine, rep.Commit = bench.ReadMachine(s.dataDir), commit
	if err := intoPage(into, stagesBegin, stagesEnd, rep); err != nil {
		return err
	}
	return a.show(rep)
}
