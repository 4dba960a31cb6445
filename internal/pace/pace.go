package pace

import (
	"sync"
	"time"
)

// Pace hands out bytes.
type Pace struct {
	// Immutable.
	perSecond int64
	burst     time.Duration

	mu sync.Mutex
	// Guarded by mu.
	paid time.Time // when all that was handed out so far has been paid for
}

// New makes a pace of that many bytes per second, 0 or less for no bound. What was not used can be caught up on for
// as much as burst brings, and from now on.
func New(perSecond int64, burst time.Duration) *Pace {
	return &Pace{perSecond: perSecond, burst: burst, paid: time.Now()}
}

// Due hands out n bytes and tells how long to wait before they may be used; 0 or less: not at all.
func (p *Pace) Due(n int64) time.Duration {
	if p.perSecond <= 0 || n <= 0 {
		return 0
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if earliest := now.Add(-p.burst); p.paid.Before(earliest) {
		p.paid = earliest
	}
	p.paid = p.paid.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
	return p.paid.Sub(now)
}
