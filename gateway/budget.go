package gateway

import "golang.org/x/sync/semaphore"

// budget bounds bytes that are held at once.
type budget struct{ left *semaphore.Weighted }

func newBudget(bytes int64) budget { return budget{semaphore.NewWeighted(bytes)} }

// take takes n bytes, or reports that there is no room.
func (b budget) take(n int64) bool { return n == 0 || b.left.TryAcquire(n) }

// release gives back what take took.
func (b budget) release(n int64) {
	if n != 0 {
		b.left.Release(n)
	}
}
