package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// defaultEndpoint is where `make run` listens.
const defaultEndpoint = "127.0.0.1:7001"

// app is one invocation: its streams, its seams and its global flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	outTTY   bool
	errTTY   bool
	getenv   func(string) string
	now      func() time.Time
	open     func(context.Context, openOptions) (store, error)
	// headStart is the time that status gives an endpoint before it asks the next one too; 0: the default.
	headStart time.Duration

	// Global flags.
	endpoints []string
	output    string
	timeout   time.Duration
	namespace string

	// session is set by verbs that write much.
	session bool
}

type openOptions struct {
	Endpoints []string
	Timeout   time.Duration
	Namespace string
	// Session asks for exactly-once retries.
	Session bool
}

// newApp is the app of a real process.
func newApp() *app {
	return &app{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		outTTY: term.IsTerminal(int(os.Stdout.Fd())), errTTY: term.IsTerminal(int(os.Stderr.Fd())),
		getenv: os.Getenv, now: time.Now, open: openClient,
	}
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // not nil: cobra would take os.Args
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	started := false
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		started = true
		return a.prepare(cmd)
	}
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code, text := explain(err)
	if !started { // cobra itself refused the command line
		code = exitUsage
	}
	if ctx.Err() != nil {
		code = exitInterrupted
	}
	if text != "" {
		if code != exitNotFound {
			text = "kvctl: " + text
		}
		fmt.Fprintln(a.err, text)
	}
	if code == exitUsage {
		fmt.Fprintln(a.err, "see `kvctl --help`")
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kvctl",
		Short: "Read and write a KVStore cluster",
		Example: `  kvctl put hello world
  kvctl get hello
  kvctl list user: --limit 10
  kvctl watch user:
  kvctl export app: > app.jsonl
  kvctl import app.jsonl --endpoints 10.0.1.10:7001,10.0.1.11:7001
  kvctl status --endpoints 10.0.1.10:7001,10.0.1.11:7001,10.0.1.12:7001
  kvctl member list`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionLine(),
	}
	root.SetVersionTemplate("{{.Version}}\n")
	f := root.PersistentFlags()
	f.StringSliceVar(&a.endpoints, "endpoints", nil, "nodes to talk to, HOST:PORT,…; one that answers is enough (default KVCTL_ENDPOINTS, else "+defaultEndpoint+")")
	f.StringVarP(&a.output, "output", "o", "table", "form of the output: table, json, jsonl or raw")
	f.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long one operation may take")
	f.StringVar(&a.namespace, "namespace", "", "namespace of the keys (default \"default\")")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "keys", Title: "Keys and values:"}, &cobra.Group{ID: "bulk", Title: "In bulk:"}, &cobra.Group{ID: "cluster", Title: "Cluster:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("keys", a.putCmd(), a.getCmd(), a.deleteCmd(), a.listCmd(), a.txnCmd(), a.touchCmd(), a.incrCmd(), a.watchCmd())
	add("bulk", a.importCmd(), a.exportCmd(), a.backupCmd())
	add("cluster", a.statusCmd(), a.namespaceCmd(), a.memberCmd(), a.moveLeaderCmd(), a.debugCmd())
	root.AddCommand(a.versionCmd(), newExitCodesCmd())
	return root
}

// prepare checks the global flags.
func (a *app) prepare(*cobra.Command) error {
	if !slices.Contains([]string{"table", "json", "jsonl", "raw"}, a.output) {
		return usagef("unknown output %q: use table, json, jsonl or raw", a.output)
	}
	if a.timeout <= 0 {
		return usagef("--timeout is %v: it must be above 0", a.timeout)
	}
	if len(a.endpoints) == 0 {
		for e := range strings.SplitSeq(a.getenv("KVCTL_ENDPOINTS"), ",") {
			if e = strings.TrimSpace(e); e != "" {
				a.endpoints = append(a.endpoints, e)
			}
		}
	}
	if len(a.endpoints) == 0 {
		a.endpoints = []string{defaultEndpoint}
	}
	for i, e := range a.endpoints {
		e = strings.TrimPrefix(e, "kv://") // as the server's banner prints it
		if !strings.Contains(e, ":") {
			return usagef("endpoint %q has no port: write it as HOST:PORT, such as %s", e, defaultEndpoint)
		}
		a.endpoints[i] = e
	}
	return nil
}

// with opens a store, hands it to f and closes it.
func (a *app) with(ctx context.Context, f func(store) error) error {
	octx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	s, err := a.open(octx, openOptions{Endpoints: a.endpoints, Timeout: a.timeout, Namespace: a.namespace, Session: a.session})
	if err != nil {
		return err
	}
	err = f(s)
	// A failure to say good-bye changes nothing about what was answered; alone it is worth a word.
	if cerr := s.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("cannot close the connection: %w", cerr)
	}
	return err
}

// op is with for a single operation: ctx carries the deadline, and f learns when it began.
func (a *app) op(ctx context.Context, f func(ctx context.Context, s store, since func() string) error) error {
	return a.with(ctx, func(s store) error {
		ctx, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		start := a.now()
		since := func() string { return elapsedText(a.now().Sub(start)) }
		return f(ctx, s, since)
	})
}

// elapsedText prints a short duration: 0.4ms, 12ms, 3.2s.
func elapsedText(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

// exactArgs is cobra.ExactArgs with a message that names what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(names) == 0 && len(args) != 0 {
			return usagef("%s takes no argument, got %q", cmd.Name(), args[0])
		}
		if len(args) != len(names) {
			return usageError{fmt.Errorf("%s takes %s, got %d arguments", cmd.Name(), strings.Join(names, " and "), len(args))}
		}
		return nil
	}
}

// checkKey refuses what the server would refuse, before anything is sent.
func checkKey(key string) error {
	if err := validKey(key); err != nil {
		return usageError{err}
	}
	return nil
}

// printf writes data to stdout.
func (a *app) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.out, format, args...); err != nil {
		return fmt.Errorf("cannot write to stdout: %w", err)
	}
	return nil
}

// talk writes a remark to stderr; if that fails there is nobody left to tell.
func (a *app) talk(format string, args ...any) { fmt.Fprintf(a.err, format, args...) }
