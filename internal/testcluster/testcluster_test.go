package testcluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tools that all black-box tests rely on are tested here by themselves, without a server: a port
// that is not held, a process that outlives its test or a power cut that loses nothing would make those
// tests prove less than they say.

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestPort_WhileNobodyListens_IsGivenToNobody(t *testing.T) {
	p, err := ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Release(); err != nil {
			t.Error(err)
		}
	}()
	for round := range 3 {
		l, err := net.Listen("tcp", p.Addr())
		if err != nil {
			t.Fatalf("round %d: a server cannot listen on the reserved port: %v", round, err)
		}
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Close(), c.Close()); err != nil {
			t.Fatal(err)
		}
		// A port of the ephemeral range that is not held is hit within its 28,000 numbers: the dialler is
		// then connected to itself.
		for range 35_000 {
			c, err := net.Dial("tcp", p.Addr())
			if err == nil {
				t.Fatalf("round %d: connected to %s from %s although nobody listens", round, c.RemoteAddr(), c.LocalAddr())
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatal(err)
			}
			if testing.Short() || round > 0 {
				break
			}
		}
	}
	var held []net.Listener
	for range 2000 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
		if l.Addr().String() == p.Addr() {
			t.Fatalf("the kernel gave the reserved port %s away", p.Addr())
		}
	}
	for _, l := range held {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

const helperEnv = "KVSTORE_TESTCLUSTER_HELPER"

// TestProcess_TestKilled_ProcessDies starts this test binary again as a test that starts a process, and
// kills it.
func TestProcess_TestKilled_ProcessDies(t *testing.T) {
	if os.Getenv(helperEnv) != "" {
		p, err := startProcess("/bin/sleep", []string{"600"}, nil, new(tail))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pid=%d\n", p.pid())
		<-p.done
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(stdout); pid == 0 && lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "pid="); ok {
			if pid, err = strconv.Atoi(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || pid == 0 {
		t.Fatalf("the helper was not killed (%v) or started nothing (process %d)", err, pid)
	}
	comm := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return ""
		}
		return string(b)
	}
	// A zombie that init has not collected yet is dead too.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(pollInterval) {
		if s := comm(); s == "" || !strings.Contains(s, "(sleep)") || strings.Contains(s, "(sleep) Z") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives on after the test that started it was killed: %s", pid, comm())
		}
	}
}

// TestDisk_PowerCut_LosesWhatWasNotSyncedAndNothingElse is the control of every power-cut test: the cut
// does lose data, in the three ways in which a store can be careless, and keeps what was synced.
func TestDisk_PowerCut_LosesWhatWasNotSyncedAndNothingElse(t *testing.T) {
	if Isolate(t) {
		return
	}
	d := NewDisk(t, 64<<20)
	path := func(name string) string { return filepath.Join(d.Dir(), name) }
	content := bytes.Repeat([]byte("acknowledged "), 1000)
	write := func(name string, sync bool) {
		f, err := os.OpenFile(path(name), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		if sync {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	syncDir := func() {
		f, err := os.Open(d.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write("kept", true)
	write("appended", true)
	write("mapped", true)
	syncDir()

	f, err := os.OpenFile(path("appended"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("careless")); err != nil {
		t.Fatal(err)
	}
	m, err := os.OpenFile(path("mapped"), os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(m.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	copy(mem, "careless")
	write("new", false)

	if err := d.CutPower(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path("kept")); err == nil {
		// Cached pages may still be read; what counts is that nothing more gets to the disk.
		if _, err := f.Write([]byte("x")); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a write after the power cut gives %v, want EIO", err)
		}
	}
	if err := errors.Join(unix.Munmap(mem), m.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := d.PowerOn(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kept", "appended", "mapped"} {
		if got, err := os.ReadFile(path(name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes (%v) differ from the %d that were synced", name, len(got), err, len(content))
		}
	}
	if got, err := os.ReadFile(path("new")); err == nil && bytes.Equal(got, content) {
		t.Error("a file that was never synced survived the power cut: the cut proves nothing")
	}
	write("after", true)
}

// TestDisk_Hangs_WritesWaitUntilItThaws is the control of tests with a disk that hangs.
func TestDisk_Hangs_WritesWaitUntilItThaws(t *testing.T) {
	if Isolate(t) {
		return
	}
	d := NewDisk(t, 64<<20)
	f, err := os.Create(filepath.Join(d.Dir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Hang(); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { // ends with the thaw
		_, err := f.Write([]byte("late"))
		written <- errors.Join(err, f.Sync())
	}()
	select {
	case err := <-written:
		t.Errorf("a write to a disk that hangs returned %v", err)
	case <-time.After(300 * time.Millisecond): // longer than any write that does not wait; a slow day can't fail this
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-written, f.Close()); err != nil {
		t.Error(err)
	}
}

// TestDisk_FillAndEmpty_OutliveACutOfThePower: a disk that was emptied stays so, or a node on it would be full for ever.
func TestDisk_FillAndEmpty_OutliveACutOfThePower(t *testing.T) {
	if Isolate(t) {
		return
	}
	d := NewDisk(t, 64<<20)
	for _, step := range []struct {
		do    func() error
		there bool
	}{{func() error { return d.Fill(8 << 20) }, true}, {d.Empty, false}} {
		if err := errors.Join(step.do(), d.CutPower(), d.PowerOn()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(d.fill()); (err == nil) != step.there {
			t.Errorf("after the cut the file that fills the disk is there: %v, want %v", err == nil, step.there)
		}
	}
}
