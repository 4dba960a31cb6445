package testcluster

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clockEnv names the file through which the clocks of a process are set.
const clockEnv = "KVSTORE_TEST_CLOCK"

// ClockID names one of the clocks of a process.
type ClockID int

// The clocks: the one behind Go's durations, timers and deadlines (CLOCK_MONOTONIC), the one that goes on while the
// machine is suspended (CLOCK_BOOTTIME), the oscillator below both (CLOCK_MONOTONIC_RAW), and the time of day.
const (
	ClockMonotonic ClockID = iota
	ClockBoot
	ClockRaw
	ClockWall
	clocksCount
)

// kernelClocks are the kernel's, by ClockID.
var kernelClocks = [clocksCount]int32{unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_MONOTONIC_RAW, unix.CLOCK_REALTIME}

// clockPage is what the file holds, the same as virtualPage in overlay/.
type clockPage struct {
	seq   uint64
	clock [clocksCount]struct {
		rate, truth, shown int64 // rate in thousandths
		reads              uint64
	}
}

const (
	clockPageSize = 4096
	// clockRateMin and clockRateMax bound rates. Above the product of a rate in thousandths and the nanoseconds since
	// the last change would not fit into 64 bits within weeks.
	clockRateMin, clockRateMax = 0.01, 16
)

// Clocks are those of one machine, which a process reads instead of the kernel's. They begin as the kernel's are and
// belong to the machine: a process that is started anew meets them as they are then. They may be set at any time, also
// while the process is frozen or does not run, and by any goroutine.
//
// What follows them: whatever a program learns from Go's time and runtime packages and from internal/clock; sleeps,
// timers and deadlines, waits in the kernel that have begun 20 ms after a change at the latest. What does not: the
// timers of the kernel itself (keep-alive and retransmission of TCP), times of files, the pauses of at most 10 ms of
// the runtime's own watch (sysmon), and system calls that a program makes by itself.
type Clocks struct {
	// Immutable.
	path string

	mu sync.Mutex
	// Guarded by mu.
	page *clockPage // nil: the test has ended
	mem  []byte
}

// NewClocks makes the clocks of one machine, which end with the test.
func NewClocks(t testing.TB) *Clocks {
	t.Helper()
	c, err := newClocks(t.TempDir() + "/clocks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newClocks(path string) (*Clocks, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make clocks: %w", err)
	}
	var mem []byte
	if err = f.Truncate(clockPageSize); err == nil {
		mem, err = syscall.Mmap(int(f.Fd()), 0, clockPageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("cannot make clocks: %w", err)
	}
	c := &Clocks{path: path, mem: mem, page: (*clockPage)(unsafe.Pointer(&mem[0]))}
	for id := range clocksCount {
		now, err := kernelTime(id)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		at := &c.page.clock[id]
		at.rate, at.truth, at.shown = 1000, now, now
	}
	return c, nil
}

func (c *Clocks) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.page = nil
	if err := syscall.Munmap(c.mem); err != nil {
		return fmt.Errorf("cannot unmap clocks: %w", err)
	}
	return nil
}

// Env is what the process must find in its environment.
func (c *Clocks) Env() string { return clockEnv + "=" + c.path }

// kernelTime reads one of the kernel's clocks.
func kernelTime(id ClockID) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(kernelClocks[id], &ts); err != nil {
		return 0, fmt.Errorf("cannot read the kernel's clock %d: %w", id, err)
	}
	return ts.Nano(), nil
}

// errClocksEnded: the test that they belong to has ended.
var errClocksEnded = errors.New("cannot set clocks: their test has ended")

// set changes the page. While it does, with seq odd, whoever reads a clock waits.
func (c *Clocks) set(change func(p *clockPage)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.page
	if p == nil {
		return errClocksEnded
	}
	atomic.AddUint64(&p.seq, 1)
	defer atomic.AddUint64(&p.seq, 1)
	var truth [clocksCount]int64
	for id := range clocksCount {
		now, err := kernelTime(id)
		if err != nil {
			return err
		}
		truth[id] = now
	}
	for id := range clocksCount {
		at := &p.clock[id]
		at.shown += (truth[id] - at.truth) * at.rate / 1000
		at.truth = truth[id]
	}
	change(p)
	return nil
}

// SetRate lets clocks, all of them if none is named, run at rate times the kernel's from now on, from what they show
// now.
func (c *Clocks) SetRate(rate float64, of ...ClockID) error {
	if !(rate >= clockRateMin && rate <= clockRateMax) {
		return fmt.Errorf("cannot set clocks: rate %v is outside %v to %v", rate, clockRateMin, clockRateMax)
	}
	if len(of) == 0 {
		of = []ClockID{ClockMonotonic, ClockBoot, ClockRaw, ClockWall}
	}
	return c.set(func(p *clockPage) {
		for _, id := range of {
			atomic.StoreInt64(&p.clock[id].rate, int64(math.Round(rate*1000)))
		}
	})
}

// Jump lets clocks, all of them if none is named, jump forward by d.
func (c *Clocks) Jump(d time.Duration, of ...ClockID) error {
	if d < 0 {
		return fmt.Errorf("cannot set clocks: they never go back, as by %v", d)
	}
	if len(of) == 0 {
		of = []ClockID{ClockMonotonic, ClockBoot, ClockRaw, ClockWall}
	}
	return c.set(func(p *clockPage) {
		for _, id := range of {
			p.clock[id].shown += int64(d)
		}
	})
}

// Suspended has the clocks that stand still while the machine is suspended miss the last d. The process must have been
// frozen for all of d: it never sees a clock go back.
func (c *Clocks) Suspended(d time.Duration) error {
	return c.set(func(p *clockPage) {
		for _, id := range []ClockID{ClockMonotonic, ClockRaw} {
			at := &p.clock[id]
			at.shown -= int64(d) * at.rate / 1000
		}
	})
}

// StepWall moves the time of day alone, forward or back.
func (c *Clocks) StepWall(d time.Duration) error {
	return c.set(func(p *clockPage) { p.clock[ClockWall].shown += int64(d) })
}

// Rate is how fast a clock runs.
func (c *Clocks) Rate(id ClockID) (float64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.page == nil {
		return 0, errClocksEnded
	}
	return float64(c.page.clock[id].rate) / 1000, nil
}

// Ahead tells by how much one of the clocks is ahead of the kernel's.
func (c *Clocks) Ahead(id ClockID) (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.page == nil {
		return 0, errClocksEnded
	}
	now, err := kernelTime(id)
	if err != nil {
		return 0, err
	}
	at := &c.page.clock[id]
	return time.Duration(at.shown + (now-at.truth)*at.rate/1000 - now), nil
}

// Reads tells how often the process has read one of its clocks so far.
func (c *Clocks) Reads(id ClockID) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.page == nil {
		return 0, errClocksEnded
	}
	return atomic.LoadUint64(&c.page.clock[id].reads), nil
}
