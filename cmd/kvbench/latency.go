package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// Lines between which --into puts the table.
const (
	latencyBegin = "<!-- made by make bench-latency: begin -->"
	latencyEnd   = "<!-- made by make bench-latency: end -->"
)

func (a *app) latencyCmd() *cobra.Command {
	var (
		o            bench.LatencyOptions
		into, commit string
	)
	c := &cobra.Command{
		Use: "latency", Short: "Tell whether latencies hold their targets at half of the highest rate", Args: noArgs,
		Long: `Tell whether the latencies of puts, gets, batches of ten and transactions of five hold their targets at half of the
highest rate. For each a closed loop finds that rate; then calls fall due at half of it, whatever the servers do, and latency
counts from the due time. Anything that was not sent or failed makes an operation miss its targets.`,
		Example: `  kvbench latency --endpoints 127.0.0.1:7001 --duration 30s`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Warmup == 0 { // which would be the default
				o.Warmup = -1
			}
			return a.withTarget(cmd.Context(), func(t target, s servers) error {
				o.Target = t
				return a.runLatency(cmd.Context(), o, s, into, commit)
			})
		},
	}
	f := c.Flags()
	a.clusterFlags(f)
	f.IntVar(&o.Keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(&o.ValueBytes, "value-size", 128, "bytes of each value")
	f.IntVar(&o.Workers, "workers", 512, "calls that can be under way at once while latencies are measured")
	f.DurationVar(&o.Closed, "closed", 3*time.Second, "measured time of each closed loop, which finds the highest rate")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "measured time at half of it")
	f.DurationVar(&o.Warmup, "warmup", time.Second, "time before each of both that is not measured")
	f.StringVar(&o.KeyPrefix, "key-prefix", "kvbench/", "prefix of all keys that are written")
	f.StringVar(&into, "into", "", "a page whose part between the markers is replaced by the table, too")
	f.StringVar(&commit, "commit", "", "the commit that is measured, for the report")
	return c
}

func (a *app) runLatency(ctx context.Context, o bench.LatencyOptions, s servers, into, commit string) error {
	o.Progress = func(text string) { fmt.Fprintln(a.err, text) }
	rep, err := bench.MeasureLatency(ctx, o)
	if err != nil {
		return err
	}
	rep.Machine, rep.Commit, rep.Nodes = bench.ReadMachine(s.dataDir), commit, s.nodes
	if err := intoPage(into, latencyBegin, latencyEnd, rep); err != nil {
		return err
	}
	return a.show(rep)
}
