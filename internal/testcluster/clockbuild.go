package testcluster

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// The clock of a process of Go can't be set from outside by what replaces functions of the C library: the runtime asks
// the kernel by itself. So the program is built with a few lines of the runtime replaced, see overlay/.

var (
	//go:embed overlay/runtime_clock.go.txt
	runtimeClock string
	//go:embed overlay/clock_virtual.go.txt
	clockVirtual string
)

// clockChange is one line of Go's runtime, or of this module, that the build sees otherwise.
type clockChange struct{ file, from, to string }

// runtimeChanges are those of the runtime; files are below its directory.
var runtimeChanges = []clockChange{
	{"time_nofake.go", "\treturn nanotime1()\n", "\treturn virtualNano()\n"},
	{"time_linux_amd64.s", "TEXT time·now<ABIInternal>(SB),NOSPLIT,$16-24", "TEXT runtime·trueNow<ABIInternal>(SB),NOSPLIT,$16-24"},
	{"timeasm.go", "func time_now() (sec int64, nsec int32, mono int64)\n", "func time_now() (sec int64, nsec int32, mono int64) { return virtualNow() }\n"},
	{"proc.go", "\tgoenvs()\n\tsecure()\n", "\tgoenvs()\n\tvirtualInit()\n\tsecure()\n"},
	{"os_linux.go", "\tts.setNsec(ns)\n\tfutex(", "\tts.setNsec(virtualWait(ns))\n\tfutex("},
	{"netpoll_epoll.go", "\tvar waitms int32\n\tif delay < 0 {\n", "\tvar waitms int32\n\tdelay = virtualWait(delay)\n\tif delay < 0 {\n"},
}

// moduleChanges are those of this module.
var moduleChanges = []clockChange{
	{"internal/clock/clock.go", "func (System) Boot() time.Duration {", "func (System) trueBoot() time.Duration {"},
	{"internal/clock/raw.go", "func (System) Raw() time.Duration {", "func (System) trueRaw() time.Duration {"},
}

// errClocksHere says why the build can't be had.
var errClocksHere = errors.New("SKIPPED, NOT TESTED: the clocks of a process can be set on linux/amd64 alone, which the replaced lines of Go's runtime are of")

// ClockOverlay gives what makes a build of this module whose clocks a test sets, in a directory of the caller's. It may
// be changed further.
func ClockOverlay(dir string) (*Overlay, error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, errClocksHere
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot find Go's sources: %w", err)
	}
	of := filepath.Join(strings.TrimSpace(string(out)), "src", "runtime")
	o, err := NewOverlay(dir)
	if err != nil {
		return nil, err
	}
	err = o.Add(filepath.Join(of, "zz_virtual_clock.go"), runtimeClock)
	for _, c := range runtimeChanges {
		err = errors.Join(err, o.Change(filepath.Join(of, c.file), c.from, c.to))
	}
	err = errors.Join(err, o.Add("internal/clock/zz_virtual.go", clockVirtual))
	for _, c := range moduleChanges {
		err = errors.Join(err, o.Change(c.file, c.from, c.to))
	}
	return o, err
}

// ClockBinary returns the path of kvstore built so that the test sets its clocks (Options.Clocks). Where that can't be
// had the test is skipped.
func ClockBinary(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip(errClocksHere)
	}
	return variant(t, "clocks", func() ([]string, error) {
		dir, err := os.MkdirTemp("", "kvstore-overlay-")
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		o, err := ClockOverlay(dir)
		if err != nil {
			return nil, err
		}
		return o.Args()
	})
}
