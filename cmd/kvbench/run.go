package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kvstore/bench"
)

// clusterFlags are those of every command that talks to a cluster.
func (a *app) clusterFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&a.endpoints, "endpoints", nil, "nodes to talk to, HOST:PORT,… (default KVCTL_ENDPOINTS, else the usual port on 127.0.0.1)")
	f.IntVar(&a.conns, "conns", 1, "connections per node, shared by all callers")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long one operation may take")
	f.BoolVar(&a.noSession, "no-session", false, "send writes without a session: no exactly-once retries")
}

// connectFlags are those of the commands that measure load.
func (a *app) connectFlags(f *pflag.FlagSet) {
	a.clusterFlags(f)
	f.IntSliceVar(&a.serverPIDs, "server-pid", nil, "the servers' processes, PID,…, for their CPU time together (default: as the nodes say, when all of them run here)")
}

func (a *app) runCmd() *cobra.Command {
	var (
		o       bench.Options
		asserts []string
		warmup  time.Duration
	)
	c := &cobra.Command{
		Use: "run", Short: "Run a workload and report", Args: noArgs,
		Long: `Run a workload and report operations per second, latencies and CPU time per operation.

Without --rate the loop is closed: --concurrency callers with --pipeline operations each in flight. With --rate it is
open: operations fall due on a schedule whatever the server does, latency counts from the due time (corrected for
coordinated omission), and the report says when the rate was not reached.

Workloads: ` + strings.Join(bench.Workloads(), ", ") + `.
YCSB A to F are the core workloads of Cooper et al., SoCC 2010, with records of one value of 1000 bytes.
Assertions: p50 p95 p99 p99.9 max mean of an operation against a duration, or ops, ops/s, errors, unknown, misses against
a number; exit code 1 when one does not hold.`,
		Example: `  kvbench run --workload put --concurrency 256 --duration 30s
  kvbench run --workload ycsb-b --keys 1000000 -o json
  kvbench run --workload mixed --reads 0.8 --rate 20000 --assert 'p99(put)<5ms' --assert errors==0`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"keys", "value-size", "concurrency", "pipeline", "duration", "batch", "backlog"} {
				// Options takes zero for its default; who writes a zero means something else.
				if f := cmd.Flags().Lookup(name); f.Changed && (f.Value.String() == "0" || f.Value.String() == "0s") {
					return usageError{fmt.Errorf("--%s is 0: it must be above 0", name)}
				}
			}
			o.ReadsSet = true
			if o.Warmup = warmup; warmup == 0 {
				o.Warmup = -1
			}
			as := make([]bench.Assertion, 0, len(asserts))
			for _, text := range asserts {
				x, err := bench.ParseAssertion(text)
				if err != nil {
					return usageError{err}
				}
				as = append(as, x)
			}
			if err := errors.Join(o.Validate(), o.Supports(a.protocol)); err != nil {
				return usageError{err}
			}
			if conns := cmd.Flags().Lookup("conns"); a.protocol == bench.ProtocolREST {
				if conns.Changed {
					return usageError{errors.New("--conns does not count for protocol rest, which takes a connection for each caller: see --concurrency")}
				}
				a.conns = o.Concurrency
			}
			return a.withTarget(cmd.Context(), func(t target, s servers) error { return a.runWorkload(cmd.Context(), t, s, o, as) })
		},
	}
	f := c.Flags()
	a.connectFlags(f)
	f.StringVar(&a.protocol, "protocol", bench.ProtocolNative, "door to use, whose ports --endpoints then names: "+strings.Join(bench.Protocols(), ", ")+"; all but native do single gets and puts alone")
	f.StringVar(&o.Workload, "workload", "mixed", "what to do: "+strings.Join(bench.Workloads(), ", "))
	f.Float64Var(&o.Reads, "reads", 0.95, "share of reads in mixed, 0 to 1")
	f.IntVar(&o.Keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(&o.ValueBytes, "value-size", 0, "bytes of each value (default 128, for YCSB 1000)")
	f.IntVar(&o.Concurrency, "concurrency", 16, "callers, each with one operation in flight")
	f.IntVar(&o.Pipeline, "pipeline", 1, "asynchronous operations in flight of each caller")
	f.Float64Var(&o.Rate, "rate", 0, "operations per second that fall due (open loop); 0 means closed loop")
	f.IntVar(&o.Backlog, "backlog", 0, "bound of due operations that are not yet sent (open loop; default ten seconds' worth)")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "measured time")
	f.DurationVar(&warmup, "warmup", time.Second, "time before it that is not measured")
	f.Uint64Var(&o.Seed, "seed", 1, "makes keys, values and operations repeatable")
	f.StringVar(&o.Distribution, "distribution", "uniform", "how all workloads but YCSB's draw keys: "+strings.Join(bench.Distributions(), ", "))
	f.IntVar(&o.Batch, "batch", 0, "items of a batch (default 10), operations of a txn (default 5)")
	f.StringVar(&o.KeyPrefix, "key-prefix", "kvbench/", "prefix of all keys that are written")
	f.StringSliceVar(&o.ServerMetrics, "metrics", nil, "metrics ports of all nodes, HOST:PORT,…, to count what they allocate (default: not counted)")
	f.BoolVar(&o.SkipLoad, "skip-load", false, "do not load: an earlier run with the same flags has")
	f.StringArrayVar(&asserts, "assert", nil, "demand such as 'p99(put)<5ms'; may be repeated")
	return c
}

func (a *app) runWorkload(ctx context.Context, t target, s servers, o bench.Options, as []bench.Assertion) error {
	a.remark(s.remark)
	o.ServerPIDs = s.pids
	o.Progress = a.loadProgress()
	rep, err := bench.Run(ctx, t, o)
	if rep == nil {
		return err
	}
	a.describe(rep, s)
	pass := rep.Check(as)
	if serr := a.show(rep); serr != nil || err != nil {
		return errors.Join(err, serr)
	}
	if !pass {
		return errVerdict
	}
	if rep.Ops == 0 {
		return fmt.Errorf("no operation succeeded, %d failed", rep.Errors)
	}
	return nil
}

// remark tells something on stderr, if there is something to tell.
func (a *app) remark(text string) {
	if text != "" {
		fmt.Fprintln(a.err, text)
	}
}

// describe adds what only the caller of bench knows.
func (a *app) describe(rep *bench.Report, s servers) {
	rep.Target = strings.Join(a.endpoints, ",")
	rep.Connections = a.conns
	if a.protocol != bench.ProtocolNative {
		rep.Protocol = a.protocol
	}
	rep.Nodes = s.nodes
	rep.Machine = bench.ReadMachine(s.dataDir)
}

// withTarget opens a cluster, hands it to f and closes it.
func (a *app) withTarget(ctx context.Context, f func(target, servers) error) error {
	if (a.conns < 1 || a.conns > 64) && a.protocol != bench.ProtocolREST || a.timeout <= 0 {
		return usageError{fmt.Errorf("--conns is %d and --timeout is %v: 1 to 64 connections, and a time above 0", a.conns, a.timeout)}
	}
	octx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	t, err := a.open(octx, bench.ClientOptions{
		Protocol: a.protocol, Endpoints: a.endpoints, Conns: a.conns, Callers: a.conns, Timeout: a.timeout, WithoutSession: a.noSession,
	})
	if err != nil {
		return err
	}
	s, err := a.findServers(octx, t)
	if err == nil {
		err = f(t, s)
	}
	if cerr := t.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("cannot close the connections: %w", cerr)
	}
	return err
}

// loadProgress tells on stderr how far the load phase is: at most one line a second, and the last.
func (a *app) loadProgress() func(done, total int) {
	start := time.Now()
	last := start
	return func(done, total int) {
		now := time.Now()
		if done < total && now.Sub(last) < time.Second {
			return
		}
		last = now
		fmt.Fprintf(a.err, "load: %d of %d keys (%d %%), %.0f keys/s\n", done, total, done*100/total, float64(done)/max(now.Sub(start).Seconds(), 1e-3))
	}
}

func (a *app) quickCmd() *cobra.Command {
	var o bench.Options
	var strict bool
	c := &cobra.Command{
		Use: "quick", Short: "Ten seconds: put, get, mixed, batches, and a verdict", Args: noArgs,
		Long: `Measure for about ten seconds and compare with the latencies and the throughput that the specification promises.
Exit code 1 when an operation failed, and with --strict when a target is missed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTarget(cmd.Context(), func(t target, s servers) error {
				a.remark(s.remark)
				o.ServerPIDs = s.pids
				fmt.Fprintln(a.err, "measuring for about 10 seconds…")
				q, err := bench.Quick(cmd.Context(), t, o)
				if err != nil {
					return err
				}
				q.Machine = bench.ReadMachine(s.dataDir)
				for _, rep := range q.Runs {
					a.describe(rep, s)
				}
				if err := a.show(q); err != nil {
					return err
				}
				if q.Errors() > 0 || strict && !q.Pass {
					return errVerdict
				}
				return nil
			})
		},
	}
	a.connectFlags(c.Flags())
	c.Flags().BoolVar(&strict, "strict", false, "exit 1 when a target is missed")
	c.Flags().Uint64Var(&o.Seed, "seed", 1, "makes keys, values and operations repeatable")
	c.Flags().StringVar(&o.KeyPrefix, "key-prefix", "kvbench/", "prefix of all keys that are written")
	return c
}
