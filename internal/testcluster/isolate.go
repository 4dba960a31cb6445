package testcluster

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
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
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	p, err := startCommand(cmd, out)
	if err != nil {
		t.Skipf("SKIPPED, NOT TESTED: cannot make a mount namespace: %v; faults of the disk need it", err)
	}
	<-p.done
	text := out.String()
	switch {
	case p.state == nil || !p.state.Success():
		t.Errorf("in its own mount namespace (%s):\n%s", p.describe(), text)
	case strings.Contains(text, "--- SKIP: "+t.Name()):
		t.Skip(text)
	case !strings.Contains(text, "--- PASS: "+t.Name()):
		t.Errorf("the test did not run in its own mount namespace:\n%s", text)
	default:
		t.Log(text)
	}
	return true
}
