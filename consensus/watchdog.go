package consensus

import (
	"fmt"
	"sync"
	"time"
)

// watchdog reports an operation that takes longer than its limit. start and stop are called by one
// goroutine at a time, or overlap only for operations that exclude each other inside; the count keeps
// the watch on until the last has ended.
type watchdog struct {
	// Immutable.
	describe func(took, limit time.Duration) error // what a stall means
	fault    *failStop

	mu sync.Mutex
	// Guarded by mu.
	limit   time.Duration
	running int
	began   time.Time
	timer   *time.Timer
}

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
		w.timer.Reset(w.limit)
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
	w.mu.Lock()
	took := time.Since(w.began)
	limit := w.limit
	stalled := w.running > 0 && took >= limit
	w.mu.Unlock()
	if stalled && !w.fault.isClosing() {
		w.fault.report(w.describe(took.Round(time.Millisecond), limit))
	}
}
