package clock

import (
	"testing"
	"time"
)

func TestRaw_ClockWithout_IsItsBootTime_SystemNeverGoesBack(t *testing.T) {
	m := NewManual(time.Unix(0, 0))
	m.Advance(5 * time.Second)
	if got := Raw(m); got != 5*time.Second {
		t.Errorf("a clock that knows nothing else shows %v", got)
	}
	last := Raw(System{})
	if last <= 0 {
		t.Fatalf("the machine's shows %v", last)
	}
	for range 1000 {
		now := Raw(System{})
		if now < last {
			t.Fatalf("it went back from %v to %v", last, now)
		}
		last = now
	}
}
