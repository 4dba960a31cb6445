package clock

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the two kinds of time that the project uses. Implementations are safe for concurrent use.
type Clock interface {
	// Now returns the wall time. It may step in either direction at any moment.
	Now() time.Time

	// Boot returns the time since this machine booted, suspension included (CLOCK_BOOTTIME). It never
	// goes back. Only differences on one machine within one boot mean anything.
	Boot() time.Duration
}

// System is the machine's clock.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now() }

// Boot implements Clock. It is a real system call (Go's runtime knows no vDSO path for this clock); take
// one reading per bunch of requests, not one per request. BenchmarkSystem tells its cost.
func (System) Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Linux has had this clock since 2.6.39. Without it no lease is safe, so no fallback is.
		panic(fmt.Sprintf("BUG: cannot read CLOCK_BOOTTIME: %v", err))
	}
	return time.Duration(ts.Nano())
}

// Manual is a clock for tests: it moves only when told to. The zero value stands at wall time zero and
// boot time zero.
type Manual struct {
	// Guarded by mu.
	mu   sync.Mutex
	wall time.Time
	boot time.Duration
}

// NewManual returns a Manual whose wall time is wall and whose boot time is zero.
func NewManual(wall time.Time) *Manual {
	return &Manual{wall: wall}
}

// Now implements Clock.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wall
}

// Boot implements Clock.
func (m *Manual) Boot() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boot
}

// Advance moves both times forward by d ≥ 0, as real time does. A negative d panics: boot time never
// goes back.
func (m *Manual) Advance(d time.Duration) {
	if d < 0 {
		panic(fmt.Sprintf("BUG: manual clock advanced by %v", d))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wall = m.wall.Add(d)
	m.boot += d
}

// SetNow steps the wall time alone, forward or back, as an operator or a time daemon does.
func (m *Manual) SetNow(wall time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wall = wall
}
