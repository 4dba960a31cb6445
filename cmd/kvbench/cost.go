package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kvstore/bench"
)

func (a *app) costCmd() *cobra.Command {
	var (
		o     bench.CostOptions
		doors = map[string]*[]string{bench.ProtocolGRPC: {}, bench.ProtocolREST: {}}
		check bool
	)
	c := &cobra.Command{
		Use: "cost", Short: "Compare the CPU time of gRPC and REST with empty servers", Args: noArgs,
		Long: fmt.Sprintf(`Measure the servers' CPU time for a get and for a put through gRPC and REST, through the binary protocol, and of
an empty server of grpc-go and of net/http, started by this command: all in turn, several rounds, with the same load. A
get may take %g × the empty server's, a put %g × the empty server's and that of the same put through the binary protocol.

The puts of the binary protocol are sent without a session, since the other doors have none. In a cluster of several
nodes all doors are to be the leader's: what a follower passes on costs twice.`, bench.CostTargets.Get, bench.CostTargets.Put),
		Example: `  kvbench cost --endpoints 127.0.0.1:7001 --grpc 127.0.0.1:7002 --rest 127.0.0.1:7003`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.noSession = true
			for _, e := range doors {
				if err := checkEndpoints(*e); err != nil {
					return err
				}
			}
			if len(*doors[bench.ProtocolGRPC])+len(*doors[bench.ProtocolREST]) == 0 {
				return usageError{errors.New("there is nothing to compare: name a door with --grpc or --rest")}
			}
			return a.withTarget(cmd.Context(), func(t target, s servers) error {
				a.remark(s.remark)
				return a.runCost(cmd.Context(), t, s, o, doors, check)
			})
		},
	}
	f := c.Flags()
	a.connectFlags(f)
	f.StringSliceVar(doors[bench.ProtocolGRPC], "grpc", nil, "gRPC ports of the same servers, HOST:PORT,…")
	f.StringSliceVar(doors[bench.ProtocolREST], "rest", nil, "REST ports of the same servers, HOST:PORT,…")
	compareFlags(f, compared{&o.Keys, &o.ValueBytes, &o.Rounds, &o.Duration, &o.KeyPrefix})
	f.IntVar(&o.Callers, "concurrency", 64, "callers, each with one operation in flight")
	f.BoolVar(&check, "check", false, "exit 1 when a target is missed")
	return c
}

// compared are the options of measurements that alternate.
type compared struct {
	keys, valueBytes, rounds *int
	duration                 *time.Duration
	keyPrefix                *string
}

func compareFlags(f *pflag.FlagSet, c compared) {
	f.IntVar(c.keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(c.valueBytes, "value-size", 128, "bytes of each value")
	f.IntVar(c.rounds, "rounds", 5, "how often each part is measured")
	f.DurationVar(c.duration, "duration", 2*time.Second, "measured time of each part of a round")
	f.StringVar(c.keyPrefix, "key-prefix", "kvbench/", "prefix of all keys that are written")
}

func (a *app) runCost(ctx context.Context, t target, s servers, o bench.CostOptions, doors map[string]*[]string, check bool) (err error) {
	o.Native, o.ServerPIDs = t, s.pids
	o.Progress = func(text string) { fmt.Fprintln(a.err, text) }
	for _, protocol := range []string{bench.ProtocolGRPC, bench.ProtocolREST} {
		if len(*doors[protocol]) == 0 {
			continue
		}
		echo, eerr := startEcho(protocol, o.ValueBytes)
		if eerr != nil {
			return eerr
		}
		defer func() { err = errors.Join(err, echo.Stop()) }()
		door := bench.CostDoor{Protocol: protocol, EchoPID: echo.PID}
		for _, side := range []struct {
			to        *bench.Target
			endpoints []string
		}{{&door.Own, *doors[protocol]}, {&door.Echo, []string{echo.Address}}} {
			through, oerr := a.open(ctx, bench.ClientOptions{
				Protocol: protocol, Endpoints: side.endpoints, Conns: a.conns, Callers: o.Callers, Timeout: a.timeout,
			})
			if oerr != nil {
				return oerr
			}
			defer func() { err = errors.Join(err, through.Close()) }()
			*side.to = through
		}
		o.Doors = append(o.Doors, door)
	}
	rep, err := bench.Cost(ctx, o)
	if err != nil {
		return err
	}
	rep.Machine, rep.Nodes, rep.Connections = bench.ReadMachine(s.dataDir), s.nodes, a.conns
	if err := a.show(rep); err != nil {
		return err
	}
	if check && !rep.Met() {
		return errVerdict
	}
	return nil
}
