package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// killTimeout bounds the command that kills.
const killTimeout = 30 * time.Second

func (a *app) failoverCmd() *cobra.Command {
	var o bench.FailoverOptions
	var kill string
	c := &cobra.Command{
		Use: "failover", Short: "Kill the leader again and again, and report how long writes stood still", Args: noArgs,
		Long: `Write at a steady pace, and each time the cluster is whole, run --kill to end the leader. Report the time from the kill
to the next acknowledged write, the longest write across it, and what of the acknowledged writes can no longer be read.

--kill is run by sh with KVBENCH_LEADER_ID and KVBENCH_LEADER_PID in its environment. It must end that node at once,
return when the process is gone, and see to it that the node is started again, now or later. kvbench itself starts and
kills nothing. A command that hands the leadership over (kvctl move-leader) measures that instead, by the longest
write across it. Name all nodes with --endpoints: all must answer before the next kill.`,
		Example: `  kvbench failover --endpoints 127.0.0.1:7001,127.0.0.1:7011,127.0.0.1:7021 --kill 'kill -9 $KVBENCH_LEADER_PID'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kill == "" {
				return usageError{errors.New("--kill is missing: the command that ends the leader")}
			}
			for _, name := range []string{"kills", "interval", "value-size", "settle", "patience"} {
				if f := cmd.Flags().Lookup(name); f.Changed && (f.Value.String() == "0" || f.Value.String() == "0s") {
					return usageError{fmt.Errorf("--%s is 0: it must be above 0", name)}
				}
			}
			o.Leader = a.findLeader
			o.Kill = func(ctx context.Context, l bench.Leader) error { return a.runKill(ctx, kill, l) }
			o.Progress = func(n int, k bench.KillReport) {
				fmt.Fprintf(a.err, "kill %d: %s, next write after %.0f ms\n", n, k.Leader, k.Gap/1000)
			}
			if err := o.Validate(); err != nil {
				return usageError{err}
			}
			return a.withTarget(cmd.Context(), func(t target, s servers) error {
				rep, err := bench.Failover(cmd.Context(), t, o)
				if err != nil {
					return err
				}
				rep.Target = strings.Join(a.endpoints, ",")
				rep.Machine = bench.ReadMachine(s.dataDir)
				if err := a.show(rep); err != nil {
					return err
				}
				if rep.Lost > 0 {
					return fmt.Errorf("%w: %d acknowledged writes are lost", errVerdict, rep.Lost)
				}
				return nil
			})
		},
	}
	f := c.Flags()
	a.clusterFlags(f)
	f.StringVar(&kill, "kill", "", "command that ends the leader: see above")
	f.IntVar(&o.Kills, "kills", 10, "how many leaders to kill")
	f.DurationVar(&o.Interval, "interval", 5*time.Millisecond, "time between two writes")
	f.IntVar(&o.ValueBytes, "value-size", 128, "bytes of each value")
	f.DurationVar(&o.Settle, "settle", time.Second, "how long the cluster must be whole before the next kill")
	f.DurationVar(&o.Patience, "patience", time.Minute, "longest wait for a whole cluster, and for a write after a kill")
	f.StringVar(&o.KeyPrefix, "key-prefix", "kvbench/", "prefix of all keys that are written")
	return c
}

// runKill runs the command; what it prints goes to stderr.
func (a *app) runKill(ctx context.Context, command string, l bench.Leader) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "KVBENCH_LEADER_ID="+l.ID, fmt.Sprintf("KVBENCH_LEADER_PID=%d", l.PID))
	cmd.Stdout, cmd.Stderr = a.err, a.err
	cmd.WaitDelay = time.Second // a node that it started may hold on to the output
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("--kill failed: %w", err)
	}
	return nil
}
