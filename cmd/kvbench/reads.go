package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

func (a *app) readsCmd() *cobra.Command {
	var (
		o        bench.ReadsOptions
		lonePIDs []int
	)
	c := &cobra.Command{
		Use: "reads", Short: "Compare reads that all nodes share with those of one node", Args: noArgs,
		Long: `Measure throughput and CPU time of linearizable gets: of a lone node, of a cluster whose leader answers all, and of a
cluster in which each client asks a node of its own, which asks the leader how far it must have applied. There are as many
clients as the cluster has nodes; the CPU time is that of all servers together. The three are measured in turn.`,
		Example: `  kvbench reads --endpoints 127.0.0.1:7001,127.0.0.1:7011,127.0.0.1:7021 --lone 127.0.0.1:8001`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkEndpoints(o.Lone); err != nil {
				return err
			}
			if len(a.endpoints) < 2 || len(o.Lone) == 0 {
				return usageError{errors.New("--endpoints names all nodes of a cluster, --lone the node to compare with")}
			}
			return a.runReads(cmd.Context(), o, lonePIDs)
		},
	}
	f := c.Flags()
	a.connectFlags(f)
	f.StringSliceVar(&o.Lone, "lone", nil, "the node to compare with, HOST:PORT: a cluster of its own")
	f.IntSliceVar(&lonePIDs, "lone-pid", nil, "its process, for its CPU time (default: as it says)")
	compareFlags(f, compared{&o.Keys, &o.ValueBytes, &o.Rounds, &o.Duration, &o.KeyPrefix})
	f.IntVar(&o.Callers, "concurrency", 64, "callers of each client, each with one operation in flight")
	return c
}

func (a *app) runReads(ctx context.Context, o bench.ReadsOptions, lonePIDs []int) error {
	o.Cluster, o.Conns, o.Timeout = a.endpoints, a.conns, a.timeout
	o.Progress = func(text string) { fmt.Fprintln(a.err, text) }
	dataDir, err := a.findSides(ctx, side{o.Cluster, a.serverPIDs, len(o.Cluster), &o.ClusterPIDs}, side{o.Lone, lonePIDs, 1, &o.LonePIDs})
	if err != nil {
		return err
	}
	rep, err := bench.Reads(ctx, o)
	if err != nil {
		return err
	}
	rep.Machine = bench.ReadMachine(dataDir)
	if err := a.show(rep); err != nil {
		return err
	}
	if n := rep.Failed(); n > 0 {
		return fmt.Errorf("%w: %d reads failed", errVerdict, n)
	}
	return nil
}

// side is one of several clusters that are compared.
type side struct {
	endpoints []string
	// named are its processes as the user says, maybe none.
	named []int
	// nodes is how many it must have; 0: any number.
	nodes int
	// pids is where its processes go.
	pids *[]int
}

// findSides finds the processes of all sides, and the data directory of the last.
func (a *app) findSides(ctx context.Context, sides ...side) (dataDir string, err error) {
	for _, of := range sides {
		one := *a
		one.endpoints, one.serverPIDs = of.endpoints, of.named
		err := one.withTarget(ctx, func(_ target, s servers) error {
			a.remark(s.remark)
			if s.nodes != of.nodes && s.nodes != 0 && of.nodes != 0 {
				return usageError{fmt.Errorf("%v is a cluster of %d nodes, and %d were named", of.endpoints, s.nodes, of.nodes)}
			}
			*of.pids, dataDir = s.pids, s.dataDir
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return dataDir, nil
}
