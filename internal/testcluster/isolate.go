package testcluster

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// isolatedEnv marks the process that runs one test inside its own mount namespace.
const isolatedEnv = "KVSTORE_TEST_ISOLATED"

// Isolate runs the calling test a second time, alone, in a process with a mount namespace of its own,
// and reports whether the caller is the first one, which has nothing more to do. What is mounted inside
// is seen by nobody outside and goes away with the last process inside, even when that is killed: with
// loop devices in "autoclear" mode nothing stays behind. Without the right to make such a namespace the
// test is skipped, with the reason.
//
//	if testcluster.Isolate(t) {
//		return
//	}
func Isolate(t *testing.T) (outer bool) {
	t.Helper()
	if os.Getenv(isolatedEnv) != "" {
		return false
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: mounting a disk needs root; run the suite as root to test faults of the disk")
	}
	reason, started := isolate(t, "mount namespace", syscall.CLONE_NEWNS)
	if !started {
		t.Skipf("SKIPPED, NOT TESTED: %v; faults of the disk need it", reason)
	}
	return true
}

// ownNetworkEnv marks the process that has a network namespace of its own as well.
const ownNetworkEnv = "KVSTORE_TEST_ISOLATED_NETWORK"

// noNamespaces tells why this process has no network namespace of its own. Set by IsolateNetwork.
var noNamespaces atomic.Pointer[string]

// IsolateNetwork is Isolate with a network namespace, too: its inner process may make clusters with
// ClusterOptions.Namespaces. All that they make of bridges, links, rules and namespaces is seen by nobody outside and
// goes away with the process. Where no such process can be made, the caller goes on, and its clusters run on loopback.
func IsolateNetwork(t *testing.T) (outer bool) {
	t.Helper()
	reason := "a network namespace needs root"
	switch {
	case os.Getenv(ownNetworkEnv) != "":
		if err := up("lo", nil); err != nil {
			t.Fatal(err)
		}
		return false
	case os.Getenv(isolatedEnv) != "":
		reason = "this process has a mount namespace of its own only"
	case os.Geteuid() == 0:
		err := tryNamespaces()
		if err != nil {
			reason = err.Error()
			break
		}
		// A build may have to download, which the inner process can't.
		Binary(t, "kvstore")
		err, started := isolate(t, "network namespace", syscall.CLONE_NEWNS|syscall.CLONE_NEWNET, ownNetworkEnv+"=1")
		if started {
			return true
		}
		reason = err.Error()
	}
	noNamespaces.Store(&reason)
	return false
}

// isolate runs the test in a process with namespaces of its own and judges what came of it. Not started: the reason.
func isolate(t *testing.T, what string, flags uintptr, env ...string) (reason error, started bool) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.v", "-test.count=1"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	if deadline, ok := t.Deadline(); ok {
		// So that the inner process tells what hangs before the outer one is ended.
		args = append(args, "-test.timeout="+(time.Until(deadline)*9/10).String())
	}
	out := new(tail)
	cmd := exec.Command(exe, args...)
	build, err := buildDir()
	if err != nil {
		t.Fatal(err)
	}
	// Its files lie below a directory of this test, so that they go even if it is killed.
	cmd.Env = append(os.Environ(), isolatedEnv+"=1", "TMPDIR="+t.TempDir(), buildDirEnv+"="+build)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags, Pdeathsig: syscall.SIGKILL}
	p, err := startCommand(nil, cmd, out)
	if err != nil {
		return fmt.Errorf("cannot make a %s: %w", what, err), false
	}
	<-p.done
	text := out.String()
	switch {
	case p.state == nil || !p.state.Success():
		t.Errorf("in its own %s (%s):\n%s", what, p.describe(), text)
	case strings.Contains(text, "--- SKIP: "+t.Name()):
		t.Skip(text)
	case !strings.Contains(text, "--- PASS: "+t.Name()):
		t.Errorf("the test did not run in its own %s:\n%s", what, text)
	default:
		t.Log(text)
	}
	return nil, true
}
