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

	"github.com/KimMachineGun/automemlimit/memlimit"

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
	if len(args) > 0 && args[0] == "recover" {
		return runRecover(args[1:], env, stdout, stderr)
	}
	var c settings
	set := c.declare(head)
	if len(args) > 0 && args[0] == "server" {
		args = args[1:] // first: options follow a command
	}
	rest, err := set.Load(args, env, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return exitOK
	case err == nil && len(rest) == 1 && rest[0] == "server":
	case err == nil && len(rest) > 0:
		err = fmt.Errorf("unknown command %q: there are server, which may be left out, and recover, which stands first", rest[0])
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

	m, err := memorySettings(c.memoryLimit, env, memlimit.FromCgroup)
	if err != nil {
		log.Warn("the garbage collector knows no limit", "error", err)
	}
	if c.checkpointBytes == 0 {
		c.checkpointBytes = m.checkpointSize(memlimit.FromSystem)
	}
	m.apply(log, c.memoryWant())

	// Signals first: one that arrives while the node starts must stop it too.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go newGiver(givenBackLeast, quietBytes, quietTime).run(ctx) // owned by run; ends with ctx
	began := time.Now()
	o := c.options()
	o.Logger, o.Version, o.Commit = log, version, commit
	restart := make(chan error, 1)
	o.Fatal = func(err error) {
		if errors.Is(err, node.ErrRestart) {
			select {
			case restart <- err:
			default: // it is on its way already
			}
			return
		}
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
	case err := <-restart:
		cancel()
		select {
		case <-started:
		case <-time.After(restartGrace):
		}
		return again(err, signals, stderr)
	case sig := <-signals:
		fmt.Fprintf(stderr, "kvstore: %s while starting: stopping\n", sig)
		cancel()
		go stopAtOnce(signals, stderr) // ends with the process
		if err = <-started; errors.Is(err, context.Canceled) {
			return exitOK
		}
	}
	if errors.Is(err, node.ErrRestart) {
		return again(err, signals, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvstore: %v\n", err)
		return exitFailed
	}
	if ctx.Err() == nil { // no signal came while starting
		sig, err := serve(n, &c, signals, restart, stdout, began)
		if err != nil {
			fmt.Fprintf(stderr, "kvstore: stopping to start again: %v\n", err)
			drain, cancelDrain := context.WithTimeout(context.Background(), min(o.DrainTimeout, restartGrace))
			defer cancelDrain()
			if err := n.Close(drain); err != nil {
				fmt.Fprintf(stderr, "kvstore: stopped, not cleanly: %v\n", err) // the new process finds what is there, as after a crash
			}
			return again(err, signals, stderr)
		}
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

// serve prints the banner as soon as the node serves and waits for a signal, or for the wish of a restart.
func serve(n *node.Node, c *settings, signals <-chan os.Signal, restart <-chan error, stdout io.Writer, began time.Time) (os.Signal, error) {
	ready := n.Ready()
	for {
		select {
		case <-ready:
			banner(stdout, n.Addresses(), n.Members(), n.Leader(), c, time.Since(began))
			ready = nil
		case sig := <-signals:
			return sig, nil
		case err := <-restart:
			return nil, err
		}
	}
}

// restartGrace bounds how long a node that starts again is given to stop in order: it hands its leadership over and
// answers what is under way. Where its store is damaged, more can't be had by waiting.
const restartGrace = 5 * time.Second

// again replaces this process by a new one of the same program, with the same arguments and environment: whatever the
// old one still held open or running ends with it. Only a signal, or a failure to do so, makes it return.
func again(cause error, signals <-chan os.Signal, stderr io.Writer) int {
	select {
	case sig := <-signals:
		fmt.Fprintf(stderr, "kvstore: %s: not starting again\n", sig)
		return exitOK
	default:
	}
	fmt.Fprintf(stderr, "kvstore: starting again: %v\n", cause)
	err := syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	fmt.Fprintf(stderr, "kvstore: cannot start again: %v\n", err)
	return exitFailed
}

// stopAtOnce ends the process at the next signal. Nothing that was acknowledged is lost by that.
func stopAtOnce(signals <-chan os.Signal, stderr io.Writer) {
	<-signals
	fmt.Fprintln(stderr, "kvstore: second signal: stopping at once")
	os.Exit(exitFailed)
}
