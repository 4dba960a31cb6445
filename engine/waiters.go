package engine

import (
	"container/heap"
	"math"
	"sync"
	"sync/atomic"
)

// waitersMax bounds those who wait for entries to be applied: as many as one connection may have requests
// unanswered. Each is a hundred bytes.
const waitersMax = 16384

// waiters are those who wait for an entry to be applied, the lowest index first.
//
// Whoever registers writes next and then looks at what is applied; the applier publishes and then looks at
// next. So one of the two sees the other.
type waiters struct {
	// next is the lowest index that is waited for, math.MaxUint64 when there is none. Written under mu, read
	// by the applier once per entry.
	next atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	queue waiterQueue
}

// waiter waits for one index.
type waiter struct {
	index uint64
	fn    func()
	at    int // in the queue; -1 when it isn't there
}

func (w *waiters) init() { w.next.Store(math.MaxUint64) }

// add registers one; nil when there are too many.
func (w *waiters) add(index uint64, fn func()) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) >= waitersMax {
		return nil
	}
	x := &waiter{index: index, fn: fn}
	heap.Push(&w.queue, x)
	w.setNext()
	return x
}

// remove takes one out. false: it was taken out before, by whoever calls its function.
func (w *waiters) remove(x *waiter) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.at < 0 {
		return false
	}
	heap.Remove(&w.queue, x.at)
	w.setNext()
	return true
}

// wake calls those who wait for index or less. REQUIRES: index is published.
func (w *waiters) wake(index uint64) {
	if w.next.Load() > index {
		return
	}
	var due []*waiter
	w.mu.Lock()
	for len(w.queue) > 0 && w.queue[0].index <= index {
		x := w.queue[0]
		heap.Pop(&w.queue)
		due = append(due, x)
	}
	w.setNext()
	w.mu.Unlock()
	for _, x := range due {
		x.fn()
	}
}

// setNext brings next up to date. REQUIRES: mu held.
func (w *waiters) setNext() {
	next := uint64(math.MaxUint64)
	if len(w.queue) > 0 {
		next = w.queue[0].index
	}
	w.next.Store(next)
}

// WaitApplied has fn called once when the entry at index is applied and visible here: at once, by the caller,
// if it is already; else by the applier, which waits for it, so fn must not block and must call nothing that
// waits for entries. cancel takes it back, unless fn is being called. After Close it is never called. ok is
// false, and fn is not called, when waitersMax (16,384) wait already.
//
// While nobody waits for it, an entry costs the applier one atomic load.
func (e *Engine) WaitApplied(index uint64, fn func()) (cancel func(), ok bool) {
	if e.Applied().Index >= index {
		fn()
		return func() {}, true
	}
	if e.o.hooks.beforeWait != nil {
		e.o.hooks.beforeWait()
	}
	w := e.waiters.add(index, fn)
	if w == nil {
		return func() {}, false
	}
	cancel = func() { e.waiters.remove(w) }
	// It may have been applied before it was registered: whoever takes it out calls it.
	if e.Applied().Index >= index && e.waiters.remove(w) {
		fn()
	}
	return cancel, true
}

// waiterQueue implements heap.Interface.
type waiterQueue []*waiter

func (q waiterQueue) Len() int           { return len(q) }
func (q waiterQueue) Less(i, j int) bool { return q[i].index < q[j].index }
func (q waiterQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *waiterQueue) Push(x any) {
	w := x.(*waiter)
	w.at = len(*q)
	*q = append(*q, w)
}

// Pop implements heap.Interface.
func (q *waiterQueue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	w.at = -1
	return w
}
