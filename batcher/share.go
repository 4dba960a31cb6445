package batcher

import (
	"hash/maphash"

	"kvstore/wire"
)

// shareSlots is how many counters senders are spread over. Two senders that meet in one count as one: they are
// refused a little early, while there is more work than can be done. 1,024 counters are 4 KiB.
const shareSlots = 1024

// shares counts the queued operations of each sender, a connection, in one namespace, so that one that sends without
// pause can't push the others out of a full queue.
type shares struct {
	queued [shareSlots]uint32
	total  int // sum of queued
	used   int // counters above 0
}

// slot gives a sender's counter.
func (b *Batcher) slot(to wire.Completer) uint16 {
	return uint16(maphash.Comparable(b.seed, to) % shareSlots)
}

func (s *shares) add(slot uint16) {
	if s.queued[slot] == 0 {
		s.used++
	}
	s.queued[slot]++
	s.total++
}

// drop takes out operations that leave the queue.
func (s *shares) drop(ws []waiter) {
	for i := range ws {
		q := &s.queued[ws[i].slot]
		if *q--; *q == 0 {
			s.used--
		}
	}
	s.total -= len(ws)
}

// fair tells whether a sender may queue one more operation while room is short: it has no more waiting than
// those that have anything waiting on average.
func (s *shares) fair(slot uint16) bool {
	return int(s.queued[slot])*s.used <= s.total && s.queued[slot] < 1<<31
}

// pressure says how short room in the queue of a namespace is.
type pressure uint8

const (
	relaxed pressure = iota // whoever comes may queue
	tight                   // whoever has less than the average waiting
	full                    // nobody
)

// agedOpsMin is how many operations must wait, in more than one entry, for their age to count. When there are
// fewer, a slow disk or a few large values hold them up, and refusing some would make nothing faster.
const agedOpsMin = 64

// judge works the pressure in f out anew: at each entry that is opened or leaves its queue, which under load is every
// few milliseconds. REQUIRES: mu held.
func (b *Batcher) judge(f *flow, now int64) {
	old := int64(0)
	if len(f.queue) > 1 && f.shares.total >= agedOpsMin {
		old = now - f.queue[0].openedAt
	}
	switch limit := int64(b.o.QueueAgeMax); {
	case old > limit:
		f.pressure = full
	case old > limit/2:
		f.pressure = tight
	default:
		f.pressure = relaxed
	}
}

// admits tells whether an operation of size bytes may be queued in f. REQUIRES: mu held.
func (b *Batcher) admits(f *flow, slot uint16, size int) bool {
	free := b.o.QueueBytesMax - b.queuedBytes
	switch {
	case size > free || f.bytes+size > admitFactor*free || f.pressure == full:
		return false
	case f.pressure == tight || f.bytes+size > free:
		return f.shares.fair(slot)
	}
	return true
}
