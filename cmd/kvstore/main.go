package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"kvstore/internal/config"
	"kvstore/node"
)

// version and commit are set by the build.
var version, commit = "dev", "unknown"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}

func run(args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	var c settings
	set := c.declare()
	if len(args) > 0 && args[0] == "server" {
		args = args[1:] // first: options follow a command
	}
	rest, err := set.Load(args, env, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return exitOK
	case err == nil && len(rest) == 1 && rest[0] == "server":
	case err == nil && len(rest) > 0:
		err = fmt.Errorf("unknown command %q: the only one is server, which may be left out", rest[0])
	}
	if c.version {
		fmt.Fprintf(stdout, "kvstore %s (commit %s, %s, %s/%s)\n", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return exitOK
	}
	if err == nil {
		err = c.check()
	}
	if c.checkConfig {
		if err != nil {
			fmt.Fprintf(stderr, "kvstore: the configuration has faults:\n%v\n", err)
			return exitFailed
		}
		fmt.Fprintln(stdout, "the configuration is good")
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvstore: %v\n", err)
		return exitUsage
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		fmt.Fprintf(stderr, "kvstore: option log-level: %v\n", err)
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	slog.SetDefault(log)

	for _, name := range c.ignored {
		log.Warn("the option is ignored: the data directory has a cluster already", "option", name, "data_dir", c.dataDir)
	}

	// Signals first: one that arrives while the node starts must stop it too.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	began := time.Now()
	o := c.options()
	o.Logger, o.Version, o.Commit = log, version, commit
	o.Fatal = func(err error) {
		fmt.Fprintf(stderr, "kvstore: stopping, the node may not go on: %v\n", err)
		os.Exit(exitFailed)
	}
	if len(o.InitialCluster) > 1 || len(o.Join) != 0 {
		// These wait for others: whoever started them wants to see for whom.
		o.Progress = func(text string) { fmt.Fprintf(stdout, "node %s: %s\n", c.nodeID, text) }
	}
	started := make(chan error, 1)
	var n *node.Node
	go func() { // ends when Open returns
		var err error
		n, err = node.Open(ctx, o)
		started <- err
	}()
	select {
	case err = <-started:
	case sig := <-signals:
		fmt.Fprintf(stderr, "kvstore: %s while starting: stopping\n", sig)
		cancel()
		go stopAtOnce(signals, stderr) // ends with the process
		if err = <-started; errors.Is(err, context.Canceled) {
			return exitOK
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvstore: %v\n", err)
		return exitFailed
	}
	if ctx.Err() == nil { // no signal came while starting
		sig := serve(n, &c, signals, stdout, began)
		fmt.Fprintf(stderr, "kvstore: %s: draining (a second signal stops at once)\n", sig)
		go stopAtOnce(signals, stderr) // ends with the process
	}
	drain, cancelDrain := context.WithTimeout(context.Background(), o.DrainTimeout)
	defer cancelDrain()
	if err := n.Close(drain); err != nil {
		fmt.Fprintf(stderr, "kvstore: stopped, not cleanly: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// serve prints the banner as soon as the node serves and waits for a signal.
func serve(n *node.Node, c *settings, signals <-chan os.Signal, stdout io.Writer, began time.Time) os.Signal {
	select {
	case <-n.Ready():
		banner(stdout, n.Addresses(), n.Members(), n.Leader(), c, time.Since(began))
		return <-signals
	case sig := <-signals:
		return sig
	}
}

// stopAtOnce ends the process at the next signal. Nothing that was acknowledged is lost by that.
func stopAtOnce(signals <-chan os.Signal, stderr io.Writer) {
	<-signals
	fmt.Fprintln(stderr, "kvstore: second signal: stopping at once")
	os.Exit(exitFailed)
}
