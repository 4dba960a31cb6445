package feed

// queueMax bounds the records that a watcher is told of and has not read. One that has more to read reads the stream by
// itself. 256 are 2 KiB for a watcher that never reads.
const queueMax = 256

// queue holds offsets in order. It grows as far as it is used.
type queue struct {
	offsets []int64
	read    int // of them, those that were popped
}

func (q *queue) empty() bool  { return q.read == len(q.offsets) }
func (q *queue) full() bool   { return len(q.offsets)-q.read == queueMax }
func (q *queue) first() int64 { return q.offsets[q.read] }

func (q *queue) endsWith(offset int64) bool {
	return !q.empty() && q.offsets[len(q.offsets)-1] == offset
}

func (q *queue) pop() {
	if q.read++; q.empty() {
		q.offsets, q.read = q.offsets[:0], 0
	}
}

// push appends an offset. REQUIRES: the queue is not full.
func (q *queue) push(offset int64) {
	if len(q.offsets) == cap(q.offsets) && q.read > 0 {
		q.offsets = q.offsets[:copy(q.offsets, q.offsets[q.read:])]
		q.read = 0
	}
	q.offsets = append(q.offsets, offset)
}
