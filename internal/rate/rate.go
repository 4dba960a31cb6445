package rate

import (
	"sync/atomic"
	"time"
)

// Burst is how much of its rate may be taken at once after a pause.
const Burst = time.Second

// Bucket is one rate. The zero value has none: it allows everything.
type Bucket struct {
	cost int64 // nanoseconds of the rate that one item takes; 0: there is no rate. Immutable after Set.

	// spent is until when, on the caller's clock, the rate is spent by what was allowed. It moves on by cost for each
	// item, and may be Burst ahead of now.
	spent atomic.Int64
}

// Set gives the bucket its rate, 0 for none. REQUIRES: nobody else uses it yet.
func (b *Bucket) Set(perSecond uint64) {
	b.cost = 0
	if perSecond != 0 {
		b.cost = int64((uint64(time.Second)-1)/perSecond + 1)
	}
}

// Limited reports whether there is a rate.
func (b *Bucket) Limited() bool { return b.cost != 0 }

// Inherit takes over what was spent of another rate, so that a change of rate is no pause.
func (b *Bucket) Inherit(old *Bucket) { b.spent.Store(old.spent.Load()) }

// Full reports that nothing is spent, so that a new bucket would allow as much.
func (b *Bucket) Full(now int64) bool { return b.spent.Load() <= now }

// Take spends items, fewer than 2^31, or gives the nanoseconds after which it would. What is more than Burst's worth
// is allowed once nothing is spent any more; what follows then waits until it is paid for.
func (b *Bucket) Take(items int, now int64) (wait int64) {
	if b.cost == 0 {
		return 0
	}
	cost := b.cost * int64(items)
	for {
		old := b.spent.Load()
		from := max(old, now)
		room := max(int64(Burst), cost)
		if over := from + cost - now - room; over > 0 {
			return over
		}
		if b.spent.CompareAndSwap(old, from+cost) {
			return 0
		}
	}
}
