package gateway

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadline_EndsAtItsTimeWithItsParentAndWhenReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeadline(t.Context(), time.Second)
		if at, ok := d.Deadline(); !ok || time.Until(at) != time.Second || d.Err() != nil {
			t.Errorf("%v, %v, %v", at, ok, d.Err())
		}
		<-d.Done()
		if !errors.Is(d.Err(), context.DeadlineExceeded) {
			t.Errorf("after its time: %v", d.Err())
		}
		d.release()

		parent, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		d = newDeadline(parent, time.Second)
		if at, _ := d.Deadline(); time.Until(at) != time.Millisecond {
			t.Errorf("the parent ends first, and the deadline is in %v", time.Until(at))
		}
		child, stop := context.WithCancel(d) // somebody who waits without knowing what for
		defer stop()
		<-child.Done()
		if start := time.Now(); !errors.Is(d.Err(), context.DeadlineExceeded) || time.Since(start) != 0 {
			t.Errorf("after its parent's time: %v", d.Err())
		}
		d.release()

		d = newDeadline(t.Context(), time.Hour)
		waits := d.Done()
		d.release()
		<-waits
		if !errors.Is(d.Err(), context.Canceled) {
			t.Errorf("released: %v", d.Err())
		}

		// Nobody waited: whoever does now does not wait an hour.
		d = newDeadline(t.Context(), time.Hour)
		d.release()
		<-d.Done()
		if !errors.Is(d.Err(), context.Canceled) {
			t.Errorf("released before anybody waited: %v", d.Err())
		}
	})
}
