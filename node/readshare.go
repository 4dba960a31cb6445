package node

import "sync/atomic"

const (
	// readItemBytes is what a read counts in the queue beside its key: what it takes of memory, about, so that many
	// short ones are bounded too.
	readItemBytes = 64
	// readShareSlots is how many counters the namespaces are spread over. Two that meet in one count as one: they are
	// refused a little early, while there is more work than can be done.
	readShareSlots = 1024
	// readShareFactor bounds what a namespace has in the queue by so many times the room that is free: one alone can
	// fill eight ninths of it, and who has little there finds room whatever others do. The batcher does the same.
	readShareFactor = 8
)

// readShares counts what each namespace has of the queue of reads, so that one that reads without pause can't push the
// others out. Lock-free.
type readShares struct {
	bytes [readShareSlots]atomic.Int64
}

// readShare is what a job holds of one counter.
type readShare struct {
	slot  uint16
	bytes int64
}

// take counts a job in, until release, and reports whether each of its namespaces may have so much while room was free
// without it.
func (s *readShares) take(job *readJob, room int64) bool {
	own := int64(job.bytes) // what belongs to no single read counts for the first one's namespace
	for i := range job.items {
		own -= job.items[i].bytes()
	}
	for i := range job.items {
		it := &job.items[i]
		slot := uint16(it.ns % readShareSlots)
		if n := len(job.shares); n == 0 || job.shares[n-1].slot != slot {
			job.shares = append(job.shares, readShare{slot: slot, bytes: own})
			own = 0
		}
		job.shares[len(job.shares)-1].bytes += it.bytes()
	}
	fits := true
	for _, h := range job.shares {
		fits = s.bytes[h.slot].Add(h.bytes) <= readShareFactor*room && fits
	}
	return fits
}

// release counts a job out. It may have lost reads since.
func (s *readShares) release(job *readJob) {
	for _, h := range job.shares {
		s.bytes[h.slot].Add(-h.bytes)
	}
}

// bytes is what the read counts in the queue.
func (it *readItem) bytes() int64 { return int64(readItemBytes + len(it.key) + len(it.name)) }
