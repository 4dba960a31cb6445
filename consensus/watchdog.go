package consensus

import (
	"fmt"
	"sync"
	"time"
)

// watchdog reports an operation that takes longer than its limit. start and stop are called by one
// goroutine at a time, or overlap only for operations that exclude each other inside; the count keeps
// the watch on until the last has ended.
//
// It counts time in which it looks on. A process that is stopped, or gets no processor, can't see its disk answer
// either: a SIGSTOP longer than the limit would otherwise end every node that was about to write.
type watchdog struct {
	// Immutable.
	describe func(took, limit time.Duration) error // what a stall means
	fault    *failStop

	mu sync.Mutex
	// Guarded by mu.
	limit   time.Duration
	running int
	began   time.Time
	looked  time.Time     // when it last looked
	seen    time.Duration // how long it has looked on since began
	timer   *time.Timer
}

// watchdogLooks is how often a watchdog looks within its limit.
const watchdogLooks = 8

// newWatchdog watches the writing of what.
func newWatchdog(limit time.Duration, what string, fault *failStop) *watchdog {
	return newWatchdogFor(limit, fault, func(took, limit time.Duration) error {
		return fmt.Errorf("writing the %s has taken %v, more than %v: the disk hangs", what, took, limit)
	})
}

func newWatchdogFor(limit time.Duration, fault *failStop, describe func(took, limit time.Duration) error) *watchdog {
	w := &watchdog{limit: limit, describe: describe, fault: fault}
	w.timer = time.AfterFunc(limit, w.expired) // owned by the watchdog; idle between stop and start
	w.timer.Stop()
	return w
}

func (w *watchdog) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running == 0 {
		w.began = time.Now()
		w.looked, w.seen = w.began, 0
		w.timer.Reset(w.limit / watchdogLooks)
	}
	w.running++
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	if w.running == 0 {
		w.timer.Stop()
	}
}

// expired runs on the timer's goroutine. It checks again under the lock: Stop does not wait for it.
func (w *watchdog) expired() {
	now := time.Now()
	w.mu.Lock()
	stalled := w.look(now)
	if w.running > 0 && !stalled {
		w.timer.Reset(min(w.limit/watchdogLooks, w.limit-w.seen))
	}
	took, limit := now.Sub(w.began), w.limit
	w.mu.Unlock()
	if stalled && !w.fault.isClosing() {
		w.fault.report(w.describe(took.Round(time.Millisecond), limit))
	}
}

// look tells whether what runs has been seen to run for longer than the limit. A look that comes late counts as two
// at most. REQUIRES: mu held.
func (w *watchdog) look(now time.Time) (stalled bool) {
	if w.running == 0 {
		return false
	}
	w.seen += min(max(now.Sub(w.looked), 0), 2*w.limit/watchdogLooks)
	w.looked = now
	return w.seen >= w.limit
}
