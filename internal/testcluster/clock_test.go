package testcluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// probe is a running clockprobe.
type probe struct {
	t      *testing.T
	clocks *Clocks
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
}

// startProbe runs clockprobe with clocks of its own.
func startProbe(t *testing.T) *probe {
	t.Helper()
	dir := t.TempDir()
	o, err := ClockOverlay(filepath.Join(dir, "overlay"))
	if errors.Is(err, errClocksHere) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	args, err := o.Args()
	if err != nil {
		t.Fatal(err)
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "clockprobe")
	args = append(append([]string{"build", "-buildvcs=false", "-o", path}, args...), "./internal/testcluster/testdata/clockprobe")
	if Race {
		args = append([]string{"build", "-race"}, args[1:]...)
	}
	build := exec.Command("go", args...)
	build.Dir = root
	began := time.Now()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the probe: %v\n%s", err, out)
	}
	t.Logf("the probe was built in %v", time.Since(began).Round(time.Millisecond))
	p := &probe{t: t, clocks: NewClocks(t), cmd: exec.Command(path)}
	p.cmd.Env = append(os.Environ(), p.clocks.Env())
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.in.Close(), p.cmd.Wait()); err != nil {
			t.Errorf("the probe: %v", err)
		}
	})
	return p
}

// ask gives the answer to one line.
func (p *probe) ask(line string) string {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.t.Fatal(err)
	}
	if !p.out.Scan() {
		p.t.Fatalf("the probe does not answer %q: %v", line, p.out.Err())
	}
	return p.out.Text()
}

// now reads all clocks, between two readings of the kernel's.
func (p *probe) now() (shown [clocksCount]int64, before, after time.Time) {
	p.t.Helper()
	before = time.Now()
	text := p.ask("now")
	after = time.Now()
	for id, s := range strings.Fields(text) {
		if _, err := fmt.Sscan(s, &shown[id]); err != nil {
			p.t.Fatal(err)
		}
	}
	return shown, before, after
}

func (p *probe) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

var clockNames = [clocksCount]string{"CLOCK_MONOTONIC", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW", "the time of day"}

// TestClocks_RateOfAProcess_AllClocksAndAllWaitsFollow holds each clock of a process, and how long its sleeps, timers
// and deadlines last, against the clock of the test. The bounds are what the two readings of the test's own clock leave
// open, so a slow day only widens them, and a tenth for the error of the rate itself.
func TestClocks_RateOfAProcess_AllClocksAndAllWaitsFollow(t *testing.T) {
	p := startProbe(t)
	for _, rate := range []float64{1, 0.5, 2, 0.25, 4, 1} {
		from, b0, _ := p.now()
		p.must(p.clocks.SetRate(rate))
		at, b1, a1 := p.now()
		for id := range clocksCount {
			if at[id] < from[id] {
				t.Errorf("%s went back by %d ns when the rate became %v", clockNames[id], from[id]-at[id], rate)
			}
			// The change falls between the two: it is seen at no rate above the faster of both.
			if most := int64(4 * a1.Sub(b0)); at[id]-from[id] > most {
				t.Errorf("%s went forward by %d ns within %v when the rate became %v", clockNames[id], at[id]-from[id], a1.Sub(b0), rate)
			}
		}
		const pause = 400 * time.Millisecond
		time.Sleep(pause)
		to, b2, a2 := p.now()
		for id := range clocksCount {
			low, high := float64(to[id]-at[id])/float64(a2.Sub(b1)), float64(to[id]-at[id])/float64(b2.Sub(a1))
			if low > rate*1.1 || high < rate*0.9 {
				t.Errorf("%s runs at a rate between %.3f and %.3f, want %v", clockNames[id], low, high, rate)
			}
			if high/low < 1.2 {
				t.Logf("%s: %.3f to %.3f for %v", clockNames[id], low, high, rate)
			}
		}
		for _, what := range []string{"sleep", "timer", "wait"} {
			d := time.Duration(float64(200*time.Millisecond) * max(rate, 1))
			best := time.Duration(1 << 62)
			least := time.Duration(float64(d) / rate)
			// A wait never ends early. That it ends late says something only if it always does.
			for range 20 {
				began := time.Now()
				p.ask(what + " " + d.String())
				took := time.Since(began)
				if took < least*9/10 {
					t.Errorf("at rate %v a %s of %v took %v", rate, what, d, took)
				}
				if best = min(best, took); best < least*3/2 {
					break
				}
			}
			if best > least*3/2 {
				t.Errorf("at rate %v a %s of %v took %v at least, want about %v", rate, what, d, best, least)
			}
			t.Logf("rate %v: a %s of %v took %v", rate, what, d, best.Round(time.Millisecond))
		}
	}
}

// TestClocks_JumpsAndSteps_ShownByTheProcess has single clocks of a process jump.
func TestClocks_JumpsAndSteps_ShownByTheProcess(t *testing.T) {
	p := startProbe(t)
	// moved tells by how much each clock moved over what has really passed, and fails the test unless that is want.
	moved := func(what string, change func() error, want [clocksCount]time.Duration) {
		t.Helper()
		from, before, _ := p.now()
		p.must(change())
		to, _, after := p.now()
		for id := range clocksCount {
			over := time.Duration(to[id] - from[id])
			if over < want[id] || over > want[id]+after.Sub(before) {
				t.Errorf("%s: %s moved by %v, want %v and at most %v more", what, clockNames[id], over, want[id], after.Sub(before))
			}
		}
	}
	const minute, hour = time.Minute, time.Hour
	moved("jump", func() error { return p.clocks.Jump(30 * time.Second) }, [...]time.Duration{30 * time.Second, 30 * time.Second, 30 * time.Second, 30 * time.Second})
	moved("suspension", func() error { return p.clocks.Jump(hour, ClockBoot, ClockWall) }, [...]time.Duration{0, hour, 0, hour})
	moved("step forward", func() error { return p.clocks.StepWall(10 * minute) }, [...]time.Duration{ClockWall: 10 * minute})
	moved("step back", func() error { return p.clocks.StepWall(-hour) }, [...]time.Duration{ClockWall: -hour})
	if ahead, err := p.clocks.Ahead(ClockWall); err != nil || ahead != 30*time.Second+10*minute {
		t.Errorf("the time of day is said to be %v ahead (%v)", ahead, err)
	}
	moved("step back to the true time", func() error { return p.clocks.StepWall(-30*time.Second - 10*minute) }, [...]time.Duration{ClockWall: -30*time.Second - 10*minute})
	if err := p.clocks.Jump(-1); err == nil {
		t.Error("the clocks may jump back")
	}
	if err := p.clocks.SetRate(0); err == nil {
		t.Error("the clocks may stand still")
	}

	// A sleep that is under way ends when the clock jumps over its end.
	began := time.Now()
	if _, err := fmt.Fprintln(p.in, "sleep 1h"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // it has most likely begun; if it has not it takes the second jump
	p.must(p.clocks.Jump(hour))
	slept := make(chan bool, 1)
	go func() { slept <- p.out.Scan() }() // ends with the answer
	select {
	case ok := <-slept:
		if !ok {
			t.Fatal("the probe ended")
		}
	case <-time.After(5 * time.Second):
		p.must(p.clocks.Jump(hour))
		if !<-slept {
			t.Fatal("the probe ended")
		}
	}
	t.Logf("a sleep of an hour ended after %v", time.Since(began).Round(time.Millisecond))
}

// TestClocks_SetWhileTheProcessIsFrozen_HoldWhenItGoesOn sets clocks that nobody reads at that moment.
func TestClocks_SetWhileTheProcessIsFrozen_HoldWhenItGoesOn(t *testing.T) {
	p := startProbe(t)
	from, before, _ := p.now()
	p.must(p.cmd.Process.Signal(syscall.SIGSTOP))
	reads, err := p.clocks.Reads(ClockBoot)
	p.must(err)
	p.must(p.clocks.StepWall(time.Hour))
	p.must(p.clocks.SetRate(2))
	const suspended = 50 * time.Millisecond
	time.Sleep(suspended)
	p.must(p.clocks.Suspended(suspended))
	p.must(p.cmd.Process.Signal(syscall.SIGCONT))
	to, _, after := p.now()
	if d := time.Duration(to[ClockWall] - from[ClockWall]); d < time.Hour || d > time.Hour+2*after.Sub(before) {
		t.Errorf("the time of day moved by %v", d)
	}
	apart := time.Duration(to[ClockBoot] - from[ClockBoot] - (to[ClockMonotonic] - from[ClockMonotonic]))
	if apart < 2*suspended-time.Millisecond*10 || apart > 2*suspended+2*after.Sub(before) {
		t.Errorf("CLOCK_BOOTTIME went on by %v more than CLOCK_MONOTONIC, want %v", apart, 2*suspended)
	}
	if n, err := p.clocks.Reads(ClockBoot); err != nil || n != reads+1 {
		t.Errorf("CLOCK_BOOTTIME was read once, counted %d (%v)", n-reads, err)
	}
}

// TestClocks_ChangedAllTheTime_NeverGoBack changes rates as fast as it can while the process reads its clocks.
func TestClocks_ChangedAllTheTime_NeverGoBack(t *testing.T) {
	p := startProbe(t)
	last, _, _ := p.now()
	for i := range 2000 {
		p.must(p.clocks.SetRate([]float64{4, 0.05, 1, 16, 0.25}[i%5]))
		if i%4 != 0 {
			continue
		}
		now, _, _ := p.now()
		for id := range clocksCount {
			if now[id] < last[id] {
				t.Fatalf("%s went back by %d ns at change %d", clockNames[id], last[id]-now[id], i)
			}
		}
		last = now
	}
}
