package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
	"kvstore/wire"
)

// Exit codes, as those of kvctl.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitConnect     = 3
	exitInterrupted = 130
)

// Set by the linker: -ldflags "-X main.version=… -X main.commit=…".
var (
	version = "dev"
	commit  = "unknown"
)

// errVerdict: the run is reported, and an assertion or target does not hold.
var errVerdict = errors.New("verdict: FAIL")

// usageError marks a wrong command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// target is a bench.Target of a real cluster.
type target = bench.Store

// app is one invocation: its streams, its seams and its global flags.
type app struct {
	out, err io.Writer
	getenv   func(string) string
	open     func(context.Context, bench.ClientOptions) (target, error)

	endpoints  []string
	protocol   string
	output     string
	conns      int
	timeout    time.Duration
	noSession  bool
	serverPIDs []int
}

func newApp() *app {
	return &app{out: os.Stdout, err: os.Stderr, getenv: os.Getenv, open: openTarget}
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // not nil: cobra would take os.Args
	root.SetOut(a.out)
	root.SetErr(a.err)
	started := false
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		started = true
		return a.prepare()
	}
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(a.err, "kvbench:", err)
	var usage usageError
	switch {
	case !started || errors.As(err, &usage):
		fmt.Fprintln(a.err, "see `kvbench --help`")
		return exitUsage
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.Is(err, errConnect):
		return exitConnect
	}
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "kvbench", Short: "Measure a KVStore cluster, and the machine beneath it",
		Example: `  kvbench quick
  kvbench run --workload put --concurrency 256
  kvbench run --workload ycsb-a --keys 1000000 --duration 60s
  kvbench run --workload mixed --rate 20000 --assert 'p99(put)<5ms'
  kvbench run --workload get --protocol grpc --concurrency 64
  kvbench floor --dir /var/lib/kvstore`,
		SilenceErrors: true, SilenceUsage: true,
		Version: fmt.Sprintf("kvbench %s (%s, %s/%s, commit %s)", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, commit),
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "form of the report: table or json")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(a.runCmd(), a.quickCmd(), a.floorCmd(), a.followerCmd(), a.failoverCmd(), a.overloadCmd(), a.costCmd(), a.readsCmd(), a.growthCmd(), a.stagesCmd(), a.latencyCmd(), a.echoCmd(), a.reportCmd(), a.historyCmd(), a.versionCmd())
	return root
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print version, commit and format numbers", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != "json" {
				_, err := fmt.Fprintln(a.out, cmd.Root().Version)
				return err
			}
			return json.NewEncoder(a.out).Encode(map[string]any{
				"version": version, "commit": commit, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				"protocol": wire.Version, "entry_format": wire.EntryFormat,
			})
		},
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", cmd.Name(), args)}
	}
	return nil
}

// prepare checks the global flags.
func (a *app) prepare() error {
	if !slices.Contains([]string{"table", "json"}, a.output) {
		return usageError{fmt.Errorf("unknown output %q: use table or json", a.output)}
	}
	if a.protocol == "" {
		a.protocol = bench.ProtocolNative
	}
	if defaultEndpoints[a.protocol] == "" {
		return usageError{fmt.Errorf("unknown protocol %q: %s", a.protocol, strings.Join(bench.Protocols(), ", "))}
	}
	if len(a.endpoints) == 0 && a.protocol == bench.ProtocolNative { // the variable names binary ports
		for e := range strings.SplitSeq(a.getenv("KVCTL_ENDPOINTS"), ",") {
			if e = strings.TrimSpace(e); e != "" {
				a.endpoints = append(a.endpoints, e)
			}
		}
	}
	if len(a.endpoints) == 0 {
		a.endpoints = []string{defaultEndpoints[a.protocol]}
	}
	return checkEndpoints(a.endpoints)
}

// defaultEndpoints are where a node listens that is told nothing else.
var defaultEndpoints = map[string]string{bench.ProtocolNative: "127.0.0.1:7001", bench.ProtocolGRPC: "127.0.0.1:7002", bench.ProtocolREST: "127.0.0.1:7003"}

// checkEndpoints makes HOST:PORT of what the server's banner prints.
func checkEndpoints(endpoints []string) error {
	for i, e := range endpoints {
		e = strings.TrimSpace(e)
		for _, scheme := range []string{"kv://", "grpc://", "http://"} {
			e = strings.TrimPrefix(e, scheme)
		}
		if host, port, err := net.SplitHostPort(e); err != nil || host == "" || port == "" {
			return usageError{fmt.Errorf("endpoint %q is not HOST:PORT", e)}
		}
		endpoints[i] = e
	}
	return nil
}

// report is what bench gives back.
type report interface {
	WriteJSON(io.Writer) error
	WriteTable(io.Writer) error
}

func (a *app) show(r report) error {
	if a.output == "json" {
		return r.WriteJSON(a.out)
	}
	return r.WriteTable(a.out)
}

// intoPage puts a report's table between two lines of a page; an empty name is no page.
func intoPage(page, begin, end string, r report) error {
	if page == "" {
		return nil
	}
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil {
		return err
	}
	return bench.ReplaceInPage(page, begin, end, b.String())
}
