package pace

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPace_AnyUse_NeverMoreThanTheBoundAndOneBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const burst = 100 * time.Millisecond
		p := New(1000, burst)
		start := time.Now()
		for range 20 {
			time.Sleep(p.Due(100))
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("2000 bytes at 1000 a second took %v", took)
		}
		time.Sleep(time.Hour)
		if wait := p.Due(1000); wait != time.Second-burst {
			t.Errorf("after a pause 1000 bytes are due in %v", wait)
		}
		if wait := New(-1, burst).Due(1 << 60); wait != 0 {
			t.Errorf("without a bound: %v", wait)
		}
	})
}
