package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

func (a *app) growthCmd() *cobra.Command {
	var (
		o         bench.GrowthOptions
		small     []string
		smallPIDs []int
	)
	c := &cobra.Command{
		Use: "growth", Short: "Compare a store of many records with one of few", Args: noArgs,
		Long: `Load --keys records into one store and --small-keys into another, both new and of the same size, wait until their
servers are idle, and report the anonymous memory of each. Then gets of hot keys and puts drawn uniformly from all keys
are measured on both, in turn.`,
		Example: `  kvbench growth --endpoints 127.0.0.1:7001 --small 127.0.0.1:8001 --keys 10000000`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkEndpoints(small); err != nil {
				return err
			}
			if len(small) == 0 {
				return usageError{errors.New("--endpoints names the store of many records, --small that of few")}
			}
			return a.runGrowth(cmd.Context(), o, small, smallPIDs)
		},
	}
	f := c.Flags()
	a.connectFlags(f)
	f.StringSliceVar(&small, "small", nil, "the store of few records, HOST:PORT,…")
	f.IntSliceVar(&smallPIDs, "small-pid", nil, "its processes, for their CPU time and memory (default: as it says)")
	compareFlags(f, compared{&o.Keys, &o.ValueBytes, &o.Rounds, &o.Duration, &o.KeyPrefix})
	keys := f.Lookup("keys")
	keys.Usage, keys.DefValue, o.Keys = "records of the large store", "10000000", 10_000_000
	f.IntVar(&o.SmallKeys, "small-keys", 100_000, "records of the small store")
	f.IntVar(&o.Callers, "concurrency", 256, "callers, each with one operation in flight")
	f.DurationVar(&o.SettleTimeout, "settle", 5*time.Minute, "how long to wait at most until the loaded servers are idle")
	f.BoolVar(&o.SkipLoad, "skip-load", false, "do not load: an earlier call with the same flags has")
	return c
}

func (a *app) runGrowth(ctx context.Context, o bench.GrowthOptions, small []string, smallPIDs []int) (err error) {
	o.Progress = func(text string) { fmt.Fprintln(a.err, text) }
	o.Loaded = a.loadProgress()
	dataDir, err := a.findSides(ctx, side{small, smallPIDs, 0, &o.SmallPIDs}, side{a.endpoints, a.serverPIDs, 0, &o.LargePIDs})
	if err != nil {
		return err
	}
	for _, to := range []struct {
		target    *bench.Target
		endpoints []string
	}{{&o.Small, small}, {&o.Large, a.endpoints}} {
		t, oerr := a.open(ctx, bench.ClientOptions{Endpoints: to.endpoints, Conns: a.conns, Timeout: a.timeout, WithoutSession: a.noSession})
		if oerr != nil {
			return oerr
		}
		defer func() { err = errors.Join(err, t.Close()) }()
		*to.target = t
	}
	rep, err := bench.Growth(ctx, o)
	if err != nil {
		return err
	}
	rep.Machine, rep.Nodes = bench.ReadMachine(dataDir), len(o.LargePIDs)
	if err := a.show(rep); err != nil {
		return err
	}
	if n := rep.Failed(); n > 0 {
		return fmt.Errorf("%w: %d operations failed", errVerdict, n)
	}
	return nil
}
