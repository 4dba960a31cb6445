package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const (
	installCrashDirEnv    = "KVSTORE_TEST_INSTALL_CRASH_DIR"
	installCrashStreamEnv = "KVSTORE_TEST_INSTALL_CRASH_STREAM"
	installCrashStepEnv   = "KVSTORE_TEST_INSTALL_CRASH_STEP"
	installCrashIndexEnv  = "KVSTORE_TEST_INSTALL_CRASH_INDEX"
)

// stepMidway is a step of the test's own: half of the stream has been read.
const stepMidway = "midway"

// TestInstallCrashChild is the process that kills itself; by itself it does nothing. It opens its directory,
// receives the stream and installs it.
func TestInstallCrashChild(t *testing.T) {
	dir, at := os.Getenv(installCrashDirEnv), os.Getenv(installCrashStepEnv)
	if dir == "" {
		t.Skip("only as a child of TestInstall_KilledAtAnyStep_OldOrNewStateIsWhole")
	}
	die := func(step string) {
		if step == at {
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				panic(err)
			}
			select {} // it takes a moment
		}
	}
	index, err := strconv.ParseUint(os.Getenv(installCrashIndexEnv), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := os.ReadFile(os.Getenv(installCrashStreamEnv))
	if err != nil {
		t.Fatal(err)
	}
	o := engineCrashOptions(t, dir)
	o.hooks.atStep = die
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	r := readHook{bytes.NewReader(stream), len(stream) / 2, func() { die(stepMidway) }}
	received, err := e.ReceiveSnapshot(t.Context(), SnapshotMeta{Index: index, Term: 1}, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := received.Install(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil { // it waits for stepRemoved
		t.Fatal(err)
	}
	fmt.Println("ended")
}

func TestInstall_KilledAtAnyStep_OldOrNewStateIsWhole(t *testing.T) {
	w := newWorkload(testSeed(t))
	ahead := mustOpen(t, engineCrashOptions(t, t.TempDir()))
	behindDir := t.TempDir()
	behind := mustOpen(t, engineCrashOptions(t, behindDir))
	var log [][]byte
	const had, sent, all = 80, 200, 230
	for range all {
		index, entry := w.next()
		log = append(log, entry)
		w.learn(ahead.Apply(index, 1, entry))
		if index <= had {
			behind.Apply(index, 1, entry)
		}
		if index == sent {
			if err := ahead.CheckpointNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			snapshot, err := ahead.OpenSnapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if snapshot.Meta().Index != sent {
				t.Fatalf("the snapshot is of index %d", snapshot.Meta().Index)
			}
			f, err := os.Create(behindDir + ".stream")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(f, snapshot); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Close(), snapshot.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := behind.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		step      string
		installed bool
		ends      bool
	}{
		{step: stepCreated}, {step: stepMidway}, {step: stepWritten}, {step: stepSynced}, {step: stepVerified}, {step: stepInstall},
		{step: stepSwitched, installed: true}, {step: stepInstalled, installed: true}, {step: stepRemoved, installed: true},
		{step: "none", installed: true, ends: true},
	} {
		dir := t.TempDir()
		copyTree(t, behindDir, dir)
		runInstallCrash(t, dir, behindDir+".stream", c.step, sent, c.ends)

		e := mustOpen(t, engineCrashOptions(t, dir))
		cp, ok := e.Recovered()
		want, generation := uint64(had), uint64(1)
		if c.installed {
			want, generation = sent, 2
		}
		if !ok || cp.Index != want || cp.Installed != c.installed || e.Applied().Index != want {
			t.Fatalf("killed at %q: opened from %+v, %v; want index %d", c.step, cp, ok, want)
		}
		wantGenerations(t, e, generation)
		if err := e.VerifyDigest(t.Context()); err != nil {
			t.Fatalf("killed at %q: %v", c.step, err)
		}
		for index := want + 1; index <= all; index++ {
			e.Apply(index, 1, log[index-1])
		}
		wantEqualEngines(t, ahead, e)
		wantEqualTables(t, ahead, e)
		if err := e.VerifyDigest(t.Context()); err != nil {
			t.Fatalf("killed at %q, replayed: %v", c.step, err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// runInstallCrash runs the child until it kills itself at the step, or ends.
func runInstallCrash(t *testing.T, dir, stream, step string, index uint64, ends bool) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestInstallCrashChild$")
	cmd.Env = append(os.Environ(), installCrashDirEnv+"="+dir, installCrashStreamEnv+"="+stream,
		installCrashStepEnv+"="+step, installCrashIndexEnv+"="+strconv.FormatUint(index, 10))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if ends != strings.Contains(string(out), "ended") || killed == ends {
		t.Fatalf("the child that was to end at %q: %v\n%s", step, err, out)
	}
}
