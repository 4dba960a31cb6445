package feed

import (
	"sort"

	"kvstore/internal/record"
	"kvstore/wire"
)

// blockBytes is the size of the pieces in which the ring grows and shrinks; a small ring has smaller ones. A record lies
// in one block; one that is larger gets a block of its own.
const blockBytes = 256 << 10

// block is a piece of the stream in memory. What was published of data never changes: who has taken it under Feed.mu may
// read it without, and keeps it alive.
type block struct {
	start int64 // offset of data[0] in the stream
	// first: a watch that begins behind it, or behind a later revision, misses nothing by beginning at start.
	first wire.Revision
	data  []byte
}

func (b *block) end() int64 { return b.start + int64(len(b.data)) }

// ring is the newest part of the stream. Guarded by Feed.mu.
type ring struct {
	blocks     []*block
	bytes      int64 // capacity of all blocks
	bytesMax   int64
	blockBytes int
}

func newRing(bytesMax int64) ring {
	return ring{bytesMax: bytesMax, blockBytes: int(min(blockBytes, bytesMax/4))}
}

// append frames payload and appends it at offset end of the stream. first is that of a block which begins here.
func (r *ring) append(end int64, first wire.Revision, payload []byte) (next int64) {
	n := record.HeaderSize + len(payload)
	var b *block
	if len(r.blocks) > 0 {
		b = r.blocks[len(r.blocks)-1]
	}
	if b == nil || cap(b.data)-len(b.data) < n {
		b = &block{start: end, first: first, data: make([]byte, 0, max(n, r.blockBytes))}
		r.blocks = append(r.blocks, b)
		r.bytes += int64(cap(b.data))
	}
	b.data = record.Append(b.data, payload)
	return end + int64(n)
}

// start is the offset of the first byte that the ring has; end is the end of the stream.
func (r *ring) start(end int64) int64 {
	if len(r.blocks) == 0 {
		return end
	}
	return r.blocks[0].start
}

// find gives the block that has the byte at offset. REQUIRES: the ring has it.
func (r *ring) find(offset int64) *block {
	if last := r.blocks[len(r.blocks)-1]; offset >= last.start {
		return last
	}
	return r.blocks[sort.Search(len(r.blocks), func(i int) bool { return r.blocks[i].end() > offset })]
}

// evict drops the oldest blocks while the ring is too large, none that reaches beyond limit.
func (r *ring) evict(limit int64) {
	for len(r.blocks) > 1 && r.bytes > r.bytesMax && r.blocks[0].end() <= limit {
		r.bytes -= int64(cap(r.blocks[0].data))
		r.blocks[0] = nil
		r.blocks = r.blocks[1:]
	}
}
