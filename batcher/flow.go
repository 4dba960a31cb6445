package batcher

import "kvstore/wire"

// flow is the queue of one namespace: its operations keep their order, and those of different namespaces have none.
type flow struct {
	// Immutable.
	ns uint32

	// Guarded by Batcher.mu.
	queue    []*entry // oldest first; the last one is open for more
	bytes    int      // of the operations in queue
	shares   shares
	pressure pressure
	// deficit is how many bytes it may put into entries before others have their turn.
	deficit int
	active  bool // it is in Batcher.active: its queue is not empty
}

// flowsKept is how many namespaces without work keep their (small) books for the next time.
const flowsKept = 64

// quantumMin is the least that a namespace puts into an entry at its turn: with more than EntryBytesTarget/quantumMin
// namespaces at work they take several entries for one round, of 4 KiB each rather than of single operations.
const quantumMin = 4 << 10

// admitFactor bounds the queue of a namespace by so many times the room that is free: one alone can fill eight ninths
// of the queue, two at once eight seventeenths each, and whoever has little waiting finds room whatever others do.
const admitFactor = 8

// flowOf gives the queue of a namespace. REQUIRES: mu held.
func (b *Batcher) flowOf(ns uint32) *flow {
	if b.recent.ns == ns {
		return b.recent
	}
	f := b.flows[ns]
	if f == nil {
		if len(b.flows) >= flowsKept+len(b.active) {
			for id, idle := range b.flows {
				if !idle.active {
					delete(b.flows, id)
				}
			}
		}
		f = &flow{ns: ns}
		b.flows[ns] = f
	}
	b.recent = f
	return f
}

// activate puts f behind those that have work. REQUIRES: mu held.
func (b *Batcher) activate(f *flow) {
	if !f.active {
		f.active, f.deficit = true, 0
		b.active = append(b.active, f)
	}
}

// pass gives the turn to the next namespace. REQUIRES: mu held; there is one.
func (b *Batcher) pass() {
	b.turn, b.granted = (b.turn+1)%len(b.active), false
}

// retire takes the namespace whose turn it is out of those that have work: it has none. REQUIRES: mu held.
func (b *Batcher) retire() {
	f := b.active[b.turn]
	f.active, f.deficit = false, 0
	copy(b.active[b.turn:], b.active[b.turn+1:])
	b.active[len(b.active)-1] = nil
	b.active = b.active[:len(b.active)-1]
	if b.granted = false; b.turn == len(b.active) {
		b.turn = 0
	}
}

// blocked reports whether f has to wait until the large entry in flight has ended. REQUIRES: mu held; f has work.
func (b *Batcher) blocked(f *flow) bool { return b.largeFlying && b.isLarge(f.queue[0]) }

// mayPropose reports whether an entry may go. REQUIRES: mu held.
func (b *Batcher) mayPropose() bool {
	if b.inFlight >= b.o.InFlightMax {
		return false
	}
	for _, f := range b.active {
		if !b.blocked(f) {
			return true
		}
	}
	return false
}

// take makes the next entry of what waits, by deficit round robin: in each round every namespace may add a quantum of
// bytes, and what it can't use up, because its next operation is larger, it keeps for the next round. A namespace
// alone gives its entries as they are; else their parts are copied together. REQUIRES: mu held, mayPropose.
func (b *Batcher) take(now int64) *entry {
	if len(b.active) == 1 {
		f := b.active[0]
		b.turn, b.granted, f.deficit = 0, false, 0
		e := b.pop(f, now)
		if len(f.queue) == 0 {
			b.retire()
		}
		e.compact()
		return e
	}
	quantum := max(b.o.EntryBytesTarget/len(b.active), quantumMin)
	var out *entry
	for blocked := 0; blocked < len(b.active); {
		f := b.active[b.turn]
		if b.blocked(f) {
			blocked++
			b.pass()
			continue
		}
		blocked = 0
		if !b.granted {
			f.deficit += quantum
			b.granted = true
		}
		for len(f.queue) > 0 {
			e := f.queue[0]
			n, bytes, full := b.fitting(e, f.deficit, out)
			if n == len(e.waiters)-e.taken {
				f.deficit -= b.cost(n, bytes)
				if b.pop(f, now); out == nil {
					e.compact()
					out = e
				} else {
					out.append(e, n)
					b.recycle(e)
				}
				continue
			}
			if n > 0 {
				if out == nil {
					out = b.fresh(b.o.EntryBytesTarget)
					out.openedAt = e.openedAt
				}
				f.deficit -= b.cost(n, bytes)
				f.shares.drop(e.waiters[e.taken : e.taken+n])
				f.bytes -= bytes
				b.queuedBytes -= bytes
				out.append(e, n)
			}
			if full {
				return out // f goes on with the next entry
			}
			break // it has used up what it may in this round
		}
		if len(f.queue) == 0 {
			b.retire()
		} else {
			b.pass()
		}
	}
	return out
}

// fitting tells how many of the operations at the head of e, and how many bytes, may go into out with a deficit; full:
// the next one could go but for the room in out, which has something. REQUIRES: mu held.
func (b *Batcher) fitting(e *entry, deficit int, out *entry) (n, bytes int, full bool) {
	room, ops := wire.EntryBytesMax, b.o.EntryOpsMax
	if out != nil {
		room, ops = b.o.EntryBytesTarget-len(out.buf), ops-len(out.waiters)
	}
	begin := e.begin()
	for i := e.taken; i < len(e.waiters); i++ {
		size := e.waiters[i].end - begin - bytes
		switch {
		case b.cost(n+1, bytes+size) > deficit:
			return n, bytes, false
		case bytes+size > room || n == ops || out == nil && n > 0 && bytes+size > b.o.EntryBytesTarget-wire.EntryHeaderBytes:
			return n, bytes, true
		}
		n, bytes = n+1, bytes+size
	}
	return n, bytes, false
}

// cost is what n operations take of a deficit. Tiny ones count for what they take of EntryOpsMax.
func (b *Batcher) cost(n, bytes int) int {
	return max(bytes, n*(b.o.EntryBytesTarget/b.o.EntryOpsMax))
}

// pop takes the oldest entry off f's queue. REQUIRES: mu held; f has one.
func (b *Batcher) pop(f *flow, now int64) *entry {
	e := f.queue[0]
	copy(f.queue, f.queue[1:])
	f.queue[len(f.queue)-1] = nil
	f.queue = f.queue[:len(f.queue)-1]
	bytes := len(e.buf) - e.begin()
	f.bytes -= bytes
	b.queuedBytes -= bytes
	f.shares.drop(e.waiters[e.taken:])
	b.judge(f, now)
	return e
}
