package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// followerCommand is the name of the hidden command that `kvbench floor` runs two of.
const followerCommand = "floor-follower"

func (a *app) floorCmd() *cobra.Command {
	var o bench.FloorOptions
	c := &cobra.Command{
		Use: "floor", Short: "Measure what this machine can do at all", Args: noArgs,
		Long: `Measure disk flushes in --dir, round trips over loopback, memory copies, and the smallest replicated write: three
processes that append 4 KiB to a preallocated file each, until it is durable on the leader and one follower. No server on
this machine is faster. Needs no server. The disk tests write up to 256 MiB and remove it.`,
		Example: `  kvbench floor --dir /var/lib/kvstore`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Duration < time.Millisecond || o.Duration > time.Minute {
				return usageError{fmt.Errorf("--duration is %v: it must be between 1ms and 1m", o.Duration)}
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("cannot find this program, to start followers: %w", err)
			}
			o.Follower = []string{self, followerCommand}
			fmt.Fprintf(a.err, "measuring for about %v…\n", time.Duration(bench.FloorTests())*o.Duration)
			rep, err := bench.Floor(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.show(rep)
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", ".", "where to measure the disk")
	c.Flags().DurationVar(&o.Duration, "duration", time.Second, "time of each test")
	return c
}

// followerCmd is a follower's process of the floor; nobody else has the connection that it needs.
func (a *app) followerCmd() *cobra.Command {
	return &cobra.Command{
		Use: followerCommand, Hidden: true, Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return bench.FloorFollower() },
	}
}
