package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"kvstore/bench"
)

// run takes the flags of `kvbench run` that matter here, and writes one line of JSON as it does.
func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("peers run", flag.ContinueOnError)
	var o bench.Options
	system := f.String("system", "etcd", "what to measure: etcd or redis")
	endpoints := f.String("endpoints", "127.0.0.1:2379", "its addresses, HOST:PORT,…")
	timeout := f.Duration("timeout", 10*time.Second, "how long one operation may take")
	pids := f.String("server-pid", "", "the servers' processes, PID,…")
	wait := f.Duration("wait", 30*time.Second, "how long to wait for a server that leads")
	f.StringVar(&o.Workload, "workload", "mixed", strings.Join(bench.Workloads(), ", "))
	f.Float64Var(&o.Reads, "reads", 0.95, "share of reads in mixed")
	f.IntVar(&o.Keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(&o.ValueBytes, "value-size", 0, "bytes of each value")
	f.StringVar(&o.Distribution, "distribution", "uniform", strings.Join(bench.Distributions(), ", "))
	f.IntVar(&o.Concurrency, "concurrency", 16, "callers")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "measured time")
	f.BoolVar(&o.SkipLoad, "skip-load", false, "an earlier run has loaded the keys")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.ReadsSet = true
	if o.ServerPIDs, err = processes(*pids); err != nil {
		return fmt.Errorf("-server-pid: %w", err)
	}
	if err := o.Validate(); err != nil {
		return err
	}
	p, err := connectPeer(ctx, *system, list(*endpoints), *timeout, *wait)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.target.Close()) }()
	rep, err := bench.Run(ctx, p.target, o)
	if rep != nil {
		rep.System, rep.Nodes, rep.Target, rep.Connections = p.version, p.nodes, p.address, p.connections
		err = errors.Join(err, rep.WriteJSON(os.Stdout))
	}
	return err
}

// peer is another store, connected.
type peer struct {
	target interface {
		bench.Target
		Close() error
	}
	// version names system and version.
	version     string
	address     string
	nodes       int
	connections int
}

// connectPeer waits at most wait until a server of the system can be used.
func connectPeer(ctx context.Context, system string, endpoints []string, timeout, wait time.Duration) (peer, error) {
	switch system {
	case "etcd":
		t, at, err := connectEtcd(ctx, endpoints, timeout, wait)
		if err != nil {
			return peer{}, err
		}
		return peer{target: t, version: "etcd " + at.version, address: at.leader, nodes: at.members, connections: 1}, nil
	case "redis":
		return connectRedis(ctx, endpoints, timeout, wait)
	}
	return peer{}, fmt.Errorf("unknown system %q: etcd or redis", system)
}
