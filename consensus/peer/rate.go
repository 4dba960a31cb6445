package peer

import (
	"context"
	"time"

	"kvstore/internal/pace"
)

const (
	// pieceTime is how long a piece of a snapshot may take at the bound: what waits for a place behind others'
	// pieces moves often enough not to look stalled.
	pieceTime = 250 * time.Millisecond
	// burstTime is how much of what was not used can be caught up on.
	burstTime = 50 * time.Millisecond
)

// rate bounds the bytes of snapshots that go one way.
type rate struct {
	perSecond int64 // 0 or less: no bound. Immutable.
	pace      *pace.Pace
}

func newRate(perSecond int64) rate { return rate{perSecond, pace.New(perSecond, burstTime)} }

// piece is how many bytes to ask for at a time.
func (r *rate) piece() int {
	if r.perSecond <= 0 {
		return connChunk
	}
	return int(min(connChunk, max(r.perSecond*int64(pieceTime)/int64(time.Second), 1)))
}

// take waits until n more bytes may go. It returns ctx's error if that ends first.
func (r *rate) take(ctx context.Context, n int) error {
	wait := r.pace.Due(int64(n))
	if wait > 0 && !pause(ctx, wait) {
		return ctx.Err()
	}
	return nil
}
