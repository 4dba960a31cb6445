package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// readyTimeout bounds how long a node may take until it serves, and exitTimeout how long it may take
	// to stop. Both are far above what a node needs on a slow day: they end a hang, they measure nothing.
	readyTimeout = 2 * time.Minute
	exitTimeout  = 2 * time.Minute
	// pollInterval is the pause between two looks at what can only be polled.
	pollInterval = 5 * time.Millisecond
)

// Options of a Node. The zero value is a node in a directory of its own with small files.
type Options struct {
	// DataDir is the data directory. Default: one of the test's, removed with it.
	DataDir string
	// Settings are flags of kvstore without their dashes. They override Small().
	Settings map[string]string
	// Binary is the program to run. Default: kvstore, built from this module.
	Binary string
	// Env is added to the environment.
	Env []string
	// Quiet keeps what the node wrote out of the log of a failed test.
	Quiet bool
	// Clocks lets the test set the node's clocks. Binary must be built for that, as ClockBinary is.
	Clocks bool

	space *space // where it runs; nil: where the test does
}

// Small returns settings with which a few megabytes of data exercise what takes gigabytes otherwise: log
// segments, memtable flushes, compactions of the log, checkpoints.
func Small() map[string]string {
	return map[string]string{
		"log-segment-size":    "1MiB",
		"snapshot-threshold":  "64",
		"snapshot-interval":   "200ms",
		"trailing-logs":       "16",
		"log-keep-size":       "1MiB",
		"memtable-size":       "4MiB",
		"checkpoint-interval": "50ms",
		"disk-ballast":        "4MiB",
		"cache-size":          "8MiB",
		"log-level":           "info",
	}
}

// Node is one node of KVStore, running or not. A test uses it from one goroutine; its addresses, Pid and
// Status may be used by any.
type Node struct {
	// Immutable after New.
	t        testing.TB
	path     string
	env      []string
	dataDir  string
	native   *Port
	http     *Port
	grpc     *Port
	metrics  *Port
	raft     *Port
	space    *space // nil: that of the test
	output   *tail
	client   *http.Client
	quietLog bool
	clocks   *Clocks // nil without Options.Clocks

	// Owned by the test's goroutine.
	proc     *process
	starts   int
	settings map[string]string // the flags of the next start
	extra    []string          // environment of the next start

	pid   atomic.Int64 // of the process last started; 0: none yet
	asked atomic.Bool  // the process last started was sent SIGKILL or SIGTERM by the test
}

// New prepares a node and starts nothing. It ends with the test; when the test fails, what the node
// wrote goes to the test's log.
func New(t testing.TB, o Options) *Node {
	t.Helper()
	n := &Node{t: t, path: o.Binary, dataDir: o.DataDir, env: o.Env, space: o.space, output: new(tail), quietLog: o.Quiet}
	if n.path == "" {
		n.path = Binary(t, "kvstore")
	}
	if n.dataDir == "" {
		n.dataDir = filepath.Join(t.TempDir(), "data")
	}
	if o.Clocks {
		n.clocks = NewClocks(t)
		n.env = append(slices.Clip(n.env), n.clocks.Env())
	}
	for i, p := range []**Port{&n.raft, &n.native, &n.http, &n.metrics, &n.grpc} {
		port, err := n.space.port(i)
		if err != nil {
			t.Fatal(err)
		}
		*p = port
		t.Cleanup(func() {
			if err := port.Release(); err != nil {
				t.Errorf("cannot release %s: %v", port.Addr(), err)
			}
		})
	}
	n.settings = Small()
	maps.Copy(n.settings, map[string]string{
		"data-dir": n.dataDir, "listen": n.native.Addr(), "http-listen": n.http.Addr(),
		"metrics-listen": n.metrics.Addr(), "raft-listen": n.raft.Addr(), "grpc-listen": n.grpc.Addr(),
	})
	if n.space != nil {
		n.settings["insecure"] = "true" // its addresses are beyond loopback
	}
	maps.Copy(n.settings, o.Settings)
	n.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	t.Cleanup(n.cleanup)
	return n
}

// Start makes a node and returns when it serves.
func Start(t testing.TB, o Options) *Node {
	t.Helper()
	n := New(t, o)
	n.Start()
	return n
}

// cleanup ends the process and tells what it said if the test failed.
func (n *Node) cleanup() {
	if n.proc != nil && !n.proc.ended() {
		n.Kill()
	}
	out := n.output.String()
	if strings.Contains(out, "WARNING: DATA RACE") {
		n.t.Errorf("the race detector spoke in the server:\n%s", out)
	} else if n.t.Failed() && !n.quietLog {
		n.t.Logf("output of the node (%d starts, data in %s):\n%s", n.starts, n.dataDir, out)
	}
}

// Start runs the node's command and returns when the node serves; it ends the test if that fails.
func (n *Node) Start() {
	n.t.Helper()
	n.Launch()
	if err := n.WaitReady(); err != nil {
		n.t.Fatal(err)
	}
}

// Set gives the node a flag (without its dashes) from its next start on; Unset takes one away.
func (n *Node) Set(name, value string) { n.settings[name] = value }

// SetEnv adds variables, NAME=VALUE, to the environment of the process from its next start on, in the place of
// those that an earlier call added.
func (n *Node) SetEnv(vars ...string) { n.extra = vars }

// Unset takes a flag away from the next start on.
func (n *Node) Unset(name string) { delete(n.settings, name) }

// args is the command line of the next start.
func (n *Node) args() []string {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(n.settings)) {
		args = append(args, "--"+name+"="+n.settings[name])
	}
	return args
}

// Launch runs the node's command, the same one unless Set or Unset changed it, and returns at once.
func (n *Node) Launch() {
	n.t.Helper()
	if n.proc != nil && !n.proc.ended() {
		n.t.Fatal("BUG: the node is started while it runs")
	}
	n.starts++
	args := n.args()
	fmt.Fprintf(n.output, "--- start %d: kvstore %s\n", n.starts, strings.Join(args, " "))
	p, err := startProcessIn(n.space, n.path, args, slices.Concat(n.env, n.extra), n.output)
	if err != nil {
		n.t.Fatal(err)
	}
	n.proc = p
	n.asked.Store(false)
	n.pid.Store(int64(p.pid()))
}

// WaitReady returns when /readyz says so. It fails when the process ends before.
func (n *Node) WaitReady() error {
	deadline := time.Now().Add(readyTimeout)
	for {
		ok, err := n.ready()
		if ok {
			return nil
		}
		if n.proc.ended() {
			return fmt.Errorf("the node ended before it was ready: %s\n%s", n.proc.describe(), n.LastOutput())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the node is not ready after %v: %w", readyTimeout, err)
		}
		select {
		case <-n.proc.done:
		case <-time.After(pollInterval):
		}
	}
}

// ready asks once.
func (n *Node) ready() (bool, error) {
	resp, err := n.client.Get("http://" + n.MetricsAddr() + "/readyz?verbose")
	if err != nil {
		return false, err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("readyz: %s: %s", resp.Status, body)
	}
	return true, nil
}

// Kill ends the process by SIGKILL and returns when it is gone. A node that does not run stays as it is.
func (n *Node) Kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	n.wait()
}

// Terminate asks the process to stop (SIGTERM) and returns its exit code once it is gone.
func (n *Node) Terminate() (code int) {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	return n.WaitExit()
}

// Signal sends a signal to the running process.
func (n *Node) Signal(sig syscall.Signal) {
	n.t.Helper()
	n.signal(sig)
}

// Thaw lets a frozen process go on.
func (n *Node) Thaw() {
	n.t.Helper()
	n.signal(syscall.SIGCONT)
}

// Freeze stops the process (SIGSTOP) and returns when no thread of it can run any code of its own: each
// is stopped, or inside a system call that it cannot leave without being stopped. What the kernel was asked
// to do goes on; what comes of it reaches nobody.
func (n *Node) Freeze() error {
	n.signal(syscall.SIGSTOP)
	dir := fmt.Sprintf("/proc/%d/task", n.Pid())
	for deadline := time.Now().Add(exitTimeout); ; time.Sleep(50 * time.Microsecond) {
		tasks, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("cannot freeze the node: %w", err)
		}
		frozen := len(tasks) > 0
		for _, task := range tasks {
			b, err := os.ReadFile(filepath.Join(dir, task.Name(), "stat"))
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // the thread has ended
			}
			if err != nil {
				return fmt.Errorf("cannot freeze the node: %w", err)
			}
			// "pid (name) state …"; the name may hold anything.
			at := bytes.LastIndexByte(b, ')')
			frozen = frozen && at >= 0 && at+2 < len(b) && strings.ContainsRune("TDZ", rune(b[at+2]))
		}
		if frozen {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the node is not frozen after %v", exitTimeout)
		}
	}
}

// WaitExit returns the exit code once the process has ended, -1 if a signal ended it.
func (n *Node) WaitExit() (code int) {
	n.t.Helper()
	n.wait()
	if n.proc.state == nil {
		n.t.Fatal("the process ended in an unknown way")
	}
	return n.proc.state.ExitCode()
}

func (n *Node) signal(sig syscall.Signal) {
	n.t.Helper()
	if n.proc == nil || n.proc.ended() {
		return
	}
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		n.asked.Store(true)
	}
	if err := n.proc.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Fatalf("cannot send %v to the node: %v", sig, err)
	}
}

func (n *Node) wait() {
	n.t.Helper()
	if n.proc == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), exitTimeout)
	defer cancel()
	select {
	case <-n.proc.done:
	case <-ctx.Done():
		n.t.Fatalf("the node has not ended after %v", exitTimeout)
	}
}

// Running reports whether the process runs.
func (n *Node) Running() bool { return n.proc != nil && !n.proc.ended() }

// ByItself reports that the process last started has ended, and not because the test asked it to. A kill by a failpoint
// is one of its own.
func (n *Node) ByItself() bool { return n.proc != nil && n.proc.ended() && !n.asked.Load() }

// Exited is closed when the running process has ended. REQUIRES: Launch was called.
func (n *Node) Exited() <-chan struct{} { return n.proc.done }

// Pid is the id of the process last started, 0 before the first start. Safe for any goroutine.
func (n *Node) Pid() int { return int(n.pid.Load()) }

// Addr is the address of the binary protocol, the same over all restarts.
func (n *Node) Addr() string { return n.native.Addr() }

// GRPCAddr is the address of the gRPC door.
func (n *Node) GRPCAddr() string { return n.grpc.Addr() }

// HTTPAddr is the address of the REST interface.
func (n *Node) HTTPAddr() string { return n.http.Addr() }

// RaftAddr is where the node listens for the other nodes.
func (n *Node) RaftAddr() string { return n.raft.Addr() }

// MetricsAddr is the operator's address.
func (n *Node) MetricsAddr() string { return n.metrics.Addr() }

// Clocks are the clocks of the node, nil unless its Options asked for them.
func (n *Node) Clocks() *Clocks { return n.clocks }

// DataDir is the data directory.
func (n *Node) DataDir() string { return n.dataDir }

// Output is what the node wrote so far, over all starts.
func (n *Node) Output() string { return n.output.String() }

// LastOutput is what the node wrote since it was last started.
func (n *Node) LastOutput() string {
	out := n.output.String()
	if i := strings.LastIndex(out, "--- start "); i >= 0 {
		return out[i:]
	}
	return out
}

// Flag gives the value of a flag (without its dashes) of the next start; empty if it is not set.
func (n *Node) Flag(name string) string { return n.settings[name] }
