package consensus

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// logQueueBytes bounds the entries that raft counts as stored and that are not on this disk yet. raft's main
// goroutine waits beyond it, as it did for each fsync before. One write takes all there is; 8 MiB are more than a disk
// of 500 MB/s takes in 15 ms.
const logQueueBytes = 8 << 20

// logQueue holds the entries that a leader has handed to raft's replicators while its own disk still writes them.
// DESIGN.md, "The leader's own write", has what makes that safe. raft's main goroutine alone appends; one goroutine
// writes; any goroutine reads and waits.
type logQueue struct {
	// Immutable.
	bytesMax int64
	closing  <-chan struct{} // of failStop: who waits goes on, with an error
	wake     chan struct{}   // a token when there may be something to write
	stop     chan struct{}   // closed by finish
	done     chan struct{}   // closed when the writer has ended

	// first is the index of the oldest entry here; 0: there is none. Written under mu.
	first atomic.Uint64

	mu sync.Mutex
	// Guarded by mu. The entries follow each other; an entry leaves when it is on disk.
	entries  []*raft.Log
	bytes    int64
	waiters  []logWaiter
	finished bool
}

// logWaiter waits until all entries up to index are on disk.
type logWaiter struct {
	index uint64
	there chan struct{}
}

func newLogQueue(bytesMax int64, closing <-chan struct{}) *logQueue {
	return &logQueue{
		bytesMax: bytesMax, closing: closing,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
}

// synced tells whether the entry at index, which the caller knows to be in the log, is on this disk.
func (q *logQueue) synced(index uint64) bool {
	first := q.first.Load()
	return first == 0 || index < first
}

// push adds entries. It waits while there are too many bytes. REQUIRES: called by raft's main goroutine.
func (q *logQueue) push(logs []*raft.Log) error {
	var n int64
	for _, l := range logs {
		n += entryBytes(l)
	}
	for {
		q.mu.Lock()
		if q.bytes == 0 || q.bytes+n <= q.bytesMax {
			break
		}
		oldest := q.entries[0].Index
		q.mu.Unlock()
		if err := q.await(oldest); err != nil {
			return err
		}
	}
	if len(q.entries) == 0 {
		q.first.Store(logs[0].Index)
	}
	q.entries = append(q.entries, logs...)
	q.bytes += n
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return nil
}

// get reads an entry that is here.
func (q *logQueue) get(index uint64, out *raft.Log) bool {
	if q.synced(index) {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 || index < q.entries[0].Index || index-q.entries[0].Index >= uint64(len(q.entries)) {
		return false
	}
	*out = *q.entries[index-q.entries[0].Index]
	return true
}

// await waits until no entry up to index is here: those that the log has are on disk then. It fails only once the
// group is closing; while a failure holds the group it waits.
func (q *logQueue) await(index uint64) error {
	if q.synced(index) {
		return nil
	}
	q.mu.Lock()
	if len(q.entries) == 0 || index < q.entries[0].Index {
		q.mu.Unlock()
		return nil
	}
	w := logWaiter{index, make(chan struct{})}
	q.waiters = append(q.waiters, w)
	q.mu.Unlock()
	select {
	case <-w.there:
		return nil
	case <-q.closing:
		return errStoreClosed
	}
}

// drain waits until everything that is here now is on disk.
func (q *logQueue) drain() error {
	q.mu.Lock()
	n := len(q.entries)
	if n == 0 {
		q.mu.Unlock()
		return nil
	}
	last := q.entries[n-1].Index
	q.mu.Unlock()
	return q.await(last)
}

// run writes what comes, all that is there at once, until finish is called and nothing is left, or write fails.
func (q *logQueue) run(write func([]*raft.Log) error) {
	defer close(q.done)
	for {
		q.mu.Lock()
		// The writer's own view: push may append behind it meanwhile, and nobody else changes what is here.
		batch := q.entries[:len(q.entries):len(q.entries)]
		q.mu.Unlock()
		if len(batch) == 0 {
			select {
			case <-q.wake:
				continue
			case <-q.stop:
				return
			}
		}
		if write(batch) != nil {
			return // the group is closing; write has reported it
		}
		q.written(len(batch))
	}
}

// written takes the first n entries out: they are on disk.
func (q *logQueue) written(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range q.entries[:n] {
		q.bytes -= entryBytes(l)
	}
	clear(q.entries[:n])
	if q.entries = q.entries[n:]; len(q.entries) == 0 {
		q.entries = nil
		q.first.Store(0)
	} else {
		q.first.Store(q.entries[0].Index)
	}
	waiting := q.waiters[:0]
	for _, w := range q.waiters {
		if q.synced(w.index) {
			close(w.there)
		} else {
			waiting = append(waiting, w)
		}
	}
	clear(q.waiters[len(waiting):])
	q.waiters = waiting
}

// finish ends the writer once it has written what is there, and waits for that: for as long as a write takes.
// REQUIRES: nobody calls push any more.
func (q *logQueue) finish() {
	q.mu.Lock()
	finished := q.finished
	q.finished = true
	q.mu.Unlock()
	if !finished {
		close(q.stop)
	}
	<-q.done
}
