package peer

import (
	"context"
	"sync"
	"time"
)

const (
	// pieceTime is how long a piece of a snapshot may take at the bound: what waits for a place behind others'
	// pieces moves often enough not to look stalled.
	pieceTime = 250 * time.Millisecond
	// burstTime is how much of what was not used can be caught up on.
	burstTime = 50 * time.Millisecond
)

// rate hands out bytes at no more than a pace, to any number of callers, in the order in which they ask: a
// bucket of tokens that holds what burstTime brings.
type rate struct {
	perSecond int64 // 0 or less: no bound. Immutable.

	mu sync.Mutex
	// Guarded by mu.
	paid time.Time // when all that was handed out so far has been paid for
}

// piece is how many bytes to ask for at a time.
func (r *rate) piece() int {
	if r.perSecond <= 0 {
		return connChunk
	}
	return int(min(connChunk, max(r.perSecond*int64(pieceTime)/int64(time.Second), 1)))
}

// take waits until n more bytes may go. It returns ctx's error if that ends first.
func (r *rate) take(ctx context.Context, n int) error {
	if r.perSecond <= 0 || n <= 0 {
		return nil
	}
	now := time.Now()
	r.mu.Lock()
	if earliest := now.Add(-burstTime); r.paid.Before(earliest) {
		r.paid = earliest
	}
	r.paid = r.paid.Add(time.Duration(float64(n) / float64(r.perSecond) * float64(time.Second)))
	wait := r.paid.Sub(now)
	r.mu.Unlock()
	if wait > 0 && !pause(ctx, wait) {
		return ctx.Err()
	}
	return nil
}
