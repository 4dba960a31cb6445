package batcher

import (
	"math"

	"kvstore/wire"
)

// waiter is one operation's caller.
type waiter struct {
	to       wire.Completer
	token    wire.Token
	deadline int64  // on Options.Now's clock
	end      int    // offset behind the operation in its entry
	ns       uint32 // of the operation
	slot     uint16 // of its sender in shares
}

// entry is an entry under construction or in flight.
type entry struct {
	buf     []byte
	waiters []waiter
	// deadlineMin is the earliest deadline of its operations.
	deadlineMin int64
	// taken is how many of its operations stand in other entries already.
	taken      int
	openedAt   int64 // when its first operation came
	proposedAt int64
}

func newEntry(capacity int) *entry {
	return &entry{buf: wire.AppendEntryHeader(make([]byte, 0, capacity)), deadlineMin: math.MaxInt64}
}

// add appends one operation.
func (e *entry) add(op *wire.Op, body []byte, extLen, keyLen int, w waiter) {
	e.buf = wire.AppendOp(e.buf, op, body, extLen, keyLen)
	w.end = len(e.buf)
	e.waiters = append(e.waiters, w)
	e.deadlineMin = min(e.deadlineMin, w.deadline)
}

// begin is the offset of the first operation that was not taken.
func (e *entry) begin() int {
	if e.taken == 0 {
		return wire.EntryHeaderBytes
	}
	return e.waiters[e.taken-1].end
}

// append copies the next n operations of from, and takes them there.
func (e *entry) append(from *entry, n int) {
	begin := from.begin()
	shift := len(e.buf) - begin
	ws := from.waiters[from.taken : from.taken+n]
	e.buf = append(e.buf, from.buf[begin:ws[n-1].end]...)
	for i := range ws {
		w := ws[i]
		w.end += shift
		e.waiters = append(e.waiters, w)
	}
	from.taken += n
	// That of operations that were taken before may be earlier, which costs dropLate a look.
	e.deadlineMin = min(e.deadlineMin, from.deadlineMin)
	e.openedAt = min(e.openedAt, from.openedAt)
}

// compact forgets the operations that were taken.
func (e *entry) compact() {
	if e.taken == 0 {
		return
	}
	begin := e.begin()
	shift := begin - wire.EntryHeaderBytes
	e.buf = e.buf[:wire.EntryHeaderBytes+copy(e.buf[wire.EntryHeaderBytes:], e.buf[begin:])]
	kept := e.waiters[:copy(e.waiters, e.waiters[e.taken:])]
	clear(e.waiters[len(kept):]) // hold no connection that is done with
	for i := range kept {
		kept[i].end -= shift
	}
	e.waiters, e.taken = kept, 0
}

// dropLate takes out the operations whose deadline has passed and returns their waiters, to be told that
// nothing happened. It copies only when there are some, which is rare.
func (e *entry) dropLate(now int64) []waiter {
	if e.deadlineMin > now {
		return nil
	}
	var late []waiter
	kept := e.waiters[:0]
	begin, out := wire.EntryHeaderBytes, wire.EntryHeaderBytes
	e.deadlineMin = math.MaxInt64
	for _, w := range e.waiters {
		op := e.buf[begin:w.end]
		begin = w.end
		if w.deadline <= now {
			late = append(late, w)
			continue
		}
		out += copy(e.buf[out:], op)
		w.end = out
		e.deadlineMin = min(e.deadlineMin, w.deadline)
		kept = append(kept, w)
	}
	clear(e.waiters[len(kept):]) // hold no connection that is done with
	e.buf, e.waiters = e.buf[:out], kept
	return late
}
