package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kvstore/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "etcdbench:", err)
		os.Exit(1)
	}
}

// run takes the flags of `kvbench run` that matter here, and writes one line of JSON as it does.
func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("etcdbench", flag.ContinueOnError)
	var o bench.Options
	endpoints := f.String("endpoints", "127.0.0.1:2379", "client URLs without http://, HOST:PORT,…")
	clients := f.Int("clients", 1, "etcd clients, each with its own connections, used in turn")
	timeout := f.Duration("timeout", 10*time.Second, "how long one operation may take")
	pids := f.String("server-pid", "", "the servers' processes, PID,…")
	wait := f.Duration("wait", 30*time.Second, "how long to wait for a leader")
	f.StringVar(&o.Workload, "workload", "mixed", strings.Join(bench.Workloads(), ", "))
	f.Float64Var(&o.Reads, "reads", 0.95, "share of reads in mixed")
	f.IntVar(&o.Keys, "keys", 100_000, "keys to load and to draw from")
	f.IntVar(&o.ValueBytes, "value-size", 0, "bytes of each value")
	f.IntVar(&o.Concurrency, "concurrency", 16, "callers")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "measured time")
	f.BoolVar(&o.SkipLoad, "skip-load", false, "an earlier run has loaded the keys")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.ReadsSet = true
	if *pids != "" {
		for text := range strings.SplitSeq(*pids, ",") {
			pid, err := strconv.Atoi(text)
			if err != nil {
				return fmt.Errorf("-server-pid: %w", err)
			}
			if _, err := bench.ProcessCPU(pid); err != nil {
				return fmt.Errorf("-server-pid: %w", err)
			}
			o.ServerPIDs = append(o.ServerPIDs, pid)
		}
	}
	if err := o.Validate(); err != nil {
		return err
	}
	if *clients < 1 || *clients > 64 {
		return fmt.Errorf("-clients is %d: 1 to 64", *clients)
	}
	t, at, err := connect(ctx, strings.Split(*endpoints, ","), *clients, *timeout, *wait)
	if err != nil {
		return err
	}
	rep, err := bench.Run(ctx, t, o)
	if rep != nil {
		rep.System, rep.Nodes, rep.Target, rep.Connections = "etcd "+at.version, at.members, at.leader, *clients
	}
	return errors.Join(err, write(rep), t.close())
}

// cluster is what the driver learns of a cluster before it measures.
type cluster struct {
	leader  string // endpoint
	version string
	members int
}

// connect waits for a leader and opens clients to it alone. That is etcd's best: a follower has to ask the
// leader before every linearizable read, and to pass on every write.
func connect(ctx context.Context, endpoints []string, n int, timeout, wait time.Duration) (*target, cluster, error) {
	probe, err := open(endpoints, 1, timeout)
	if err != nil {
		return nil, cluster{}, err
	}
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		var at cluster
		if at, err = probe.find(wctx, endpoints); err == nil {
			t, err := open([]string{at.leader}, n, timeout)
			return t, at, errors.Join(err, probe.close())
		}
		select {
		case <-wctx.Done():
			return nil, cluster{}, errors.Join(fmt.Errorf("cannot find the leader of %s: %w", strings.Join(endpoints, ","), err), probe.close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// find asks every endpoint whether it leads.
func (t *target) find(ctx context.Context, endpoints []string) (cluster, error) {
	c := t.clients[0]
	for _, e := range endpoints {
		s, err := c.Status(ctx, e)
		if err != nil || s.Leader == 0 || s.Leader != s.Header.MemberId {
			continue
		}
		m, err := c.MemberList(ctx)
		if err != nil {
			return cluster{}, err
		}
		return cluster{e, s.Version, len(m.Members)}, nil
	}
	return cluster{}, errors.New("none of the endpoints leads")
}

func write(rep *bench.Report) error {
	if rep == nil {
		return nil
	}
	return rep.WriteJSON(os.Stdout)
}
