package node

import (
	"container/heap"
	"sync"
	"time"

	"kvstore/wire"
)

// sender holds what one goroutine reuses from turn to turn.
type sender struct {
	s     *Service
	ext   []byte
	frame []byte // what is sent
	raw   []byte // events as the feed gives them
	past  []byte // what was there before

	// seen tells where in raw the newest event of each key of an entry stands; earlier, which events of these keys
	// the entry holds before raw. See watch.previous.
	seen    map[string]int
	earlier map[string][]byte
}

// trim lets go of what a large value has left.
func (w *sender) trim() {
	for _, b := range []*[]byte{&w.ext, &w.frame, &w.raw, &w.past} {
		if cap(*b) > readBufferBytesKeep {
			*b = nil
		}
	}
	clear(w.earlier) // a turn fills it anew, with up to earlierBytesMax
}

// send gives turns until the queue is closed.
func (t *streams) send() {
	w := &sender{s: t.s, seen: make(map[string]int), earlier: make(map[string][]byte)}
	for {
		st, ok := t.queue.pop()
		if !ok {
			return
		}
		w.turn(st)
		w.trim()
	}
}

// turn runs a stream that was taken from the queue.
func (w *sender) turn(st *stream) {
	st.state.Store(streamRunning)
	if why := st.ending.Load(); why != nil {
		st.finish(refusal(why))
		return
	}
	if !w.s.shard.serves() { // it did when the stream was opened: the state is in quarantine
		st.finish(refusal(w.s.shard.notServing()))
		return
	}
	next, final := st.source.turn(w)
	switch {
	case final != nil:
		st.finish(final)
	case next == turnAgain || !st.state.CompareAndSwap(streamRunning, streamResting):
		st.state.Store(streamQueued)
		w.s.streams.queue.push(st)
	}
}

// refusal is a final answer that refuses.
func refusal(ref *wire.Refusal) *wire.Response {
	r := wire.ErrorResponse(ref, nil)
	return &r
}

// streamQueue is the streams that wait for a turn, first come, first served. Each stands in it once at most.
type streamQueue struct {
	mu   sync.Mutex
	some sync.Cond

	// Guarded by mu.
	ring        []*stream
	first, size int
	closed      bool
}

func (q *streamQueue) init() { q.some.L = &q.mu }

// push never blocks.
func (q *streamQueue) push(st *stream) {
	q.mu.Lock()
	if q.size == len(q.ring) {
		grown := make([]*stream, max(64, 2*len(q.ring)))
		n := copy(grown, q.ring[q.first:])
		copy(grown[n:], q.ring[:q.first])
		q.ring, q.first = grown, 0
	}
	q.ring[(q.first+q.size)%len(q.ring)] = st
	q.size++
	q.mu.Unlock()
	q.some.Signal()
}

// pop waits for a stream; false: the queue is closed.
func (q *streamQueue) pop() (*stream, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.size == 0 {
		if q.closed {
			return nil, false
		}
		q.some.Wait()
	}
	st := q.ring[q.first]
	q.ring[q.first] = nil
	q.first = (q.first + 1) % len(q.ring)
	q.size--
	return st, true
}

func (q *streamQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.some.Broadcast()
}

// streamTimers strikes each stream that is armed once it has sent nothing for its interval, and again after each
// further interval: one goroutine and one timer for all.
type streamTimers struct {
	t    *streams
	wake chan struct{} // a token: the first one to be due has changed
	end  chan struct{}

	mu   sync.Mutex
	heap timerHeap // guarded by mu
}

func (m *streamTimers) init(t *streams) {
	m.t, m.wake, m.end = t, make(chan struct{}, 1), make(chan struct{})
}

// arm has st struck at the latest at the time at, on Shard.now, whenever it has sent.
func (m *streamTimers) arm(st *stream, at int64) {
	m.mu.Lock()
	switch {
	case st.place == 0:
		st.dueAt = at
		heap.Push(&m.heap, st)
	case at < st.dueAt:
		st.dueAt = at
		heap.Fix(&m.heap, st.place-1)
	}
	first := m.heap[0] == st
	m.mu.Unlock()
	if first {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

func (m *streamTimers) disarm(st *stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if st.place != 0 {
		heap.Remove(&m.heap, st.place-1)
	}
}

// strike schedules what is due and gives the time until the next is.
func (m *streamTimers) strike(now int64, due []*stream) (_ []*stream, wait time.Duration) {
	m.mu.Lock()
	for len(m.heap) > 0 && m.heap[0].dueAt <= now {
		st := m.heap[0]
		// One that has sent meanwhile is let be until it has been silent for its interval.
		if next := st.sentAt.Load() + st.interval; next > now && !st.awaiting.Load() {
			st.dueAt = next
		} else {
			due = append(due, st)
			st.dueAt = now + st.interval
		}
		heap.Fix(&m.heap, 0)
	}
	wait = time.Hour
	if len(m.heap) > 0 {
		wait = time.Duration(m.heap[0].dueAt - now)
	}
	m.mu.Unlock()
	for _, st := range due {
		st.ticked.Store(true)
		st.schedule()
	}
	return due, wait
}

// run strikes until stop.
func (m *streamTimers) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due []*stream
	for {
		var wait time.Duration
		due, wait = m.strike(m.t.s.shard.now(), due[:0])
		clear(due)
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-m.wake:
		case <-m.end:
			return
		}
	}
}

func (m *streamTimers) stop() { close(m.end) }

// timerHeap orders streams by when they are due.
type timerHeap []*stream

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].dueAt < h[j].dueAt }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}

// Push is for package heap.
func (h *timerHeap) Push(x any) {
	st := x.(*stream)
	*h = append(*h, st)
	st.place = len(*h)
}

// Pop is for package heap.
func (h *timerHeap) Pop() any {
	old := *h
	st := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	st.place = 0
	return st
}
