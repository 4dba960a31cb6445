package netloop

import "sync/atomic"

// budget is a number of bytes that all connections share.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take reserves n bytes, or nothing and reports false.
func (b *budget) take(n int) bool {
	if b.used.Add(int64(n)) > b.limit {
		b.used.Add(-int64(n))
		return false
	}
	return true
}

func (b *budget) give(n int) {
	if b.used.Add(-int64(n)) < 0 {
		panic("BUG: more bytes given back than were taken")
	}
}

// force takes n bytes (or gives them, if negative) whether there is room or not.
func (b *budget) force(n int) { b.used.Add(int64(n)) }
