package consensus

import (
	"errors"
	"testing"
	"time"
)

func TestWatchdog_ProcessStoodStill_DoesNotCount(t *testing.T) {
	w := newWatchdogFor(time.Hour, nil, func(time.Duration, time.Duration) error { return errors.New("stalled") })
	w.start()
	defer w.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	slice := w.limit / watchdogLooks
	now := w.began.Add(slice)
	if w.look(now) {
		t.Fatal("stalled after one look")
	}
	now = now.Add(10 * w.limit) // stopped for that long
	if w.look(now) {
		t.Fatal("the time in which the process was stopped counts")
	}
	// One look, and the late one as two: five more are left.
	for i := range 5 {
		now = now.Add(slice)
		if stalled := w.look(now); stalled != (i == 4) {
			t.Fatalf("look %d: stalled is %v", i, stalled)
		}
	}
}
