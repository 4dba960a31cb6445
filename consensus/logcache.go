package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// logCache holds the newest entries of the log in memory, where the replicators and, on a follower, the
// application of entries look for them. It is bounded in bytes (raft's own counts entries, and 128 of
// them may be 2 GiB). Its entries share their data with whoever stored them; nobody changes it.
type logCache struct {
	// Immutable.
	bytesMax int64

	mu sync.RWMutex
	// Guarded by mu. off: nobody would look here; nothing is kept. The entries are first..first+len-1 without a gap, entry i at place i & mask.
	off   bool
	ring  []raft.Log // its length is a power of two, or 0
	first uint64
	count uint64
	bytes int64
}

// add appends entries that follow each other. Where they do not follow what is cached, that is dropped.
func (c *logCache) add(logs []*raft.Log) {
	if c.bytesMax <= 0 || len(logs) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		return
	}
	for _, l := range logs {
		if c.count > 0 && l.Index != c.first+c.count {
			c.clearLocked()
		}
		if c.count == 0 {
			c.first = l.Index
		}
		if c.count == uint64(len(c.ring)) {
			c.growLocked()
		}
		*c.at(l.Index) = *l
		c.count++
		c.bytes += entryBytes(l)
	}
	for c.bytes > c.bytesMax {
		c.dropFirstLocked()
	}
}

// enable turns the cache on or off. A lone node has no use for it: raft hands it the entries that it commits.
func (c *logCache) enable(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off = !on; c.off {
		c.clearLocked()
		c.ring = nil
	}
}

// get reads an entry.
func (c *logCache) get(index uint64, out *raft.Log) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if index < c.first || index >= c.first+c.count {
		return false
	}
	*out = *c.at(index)
	return true
}

// drop forgets the entries from low to high, and with entries in the middle all before them.
func (c *logCache) drop(low, high uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == 0 || high < c.first || low >= c.first+c.count {
		return
	}
	if high >= c.first+c.count-1 {
		for c.count > 0 && c.first+c.count-1 >= low {
			last := c.at(c.first + c.count - 1)
			c.bytes -= entryBytes(last)
			*last = raft.Log{}
			c.count--
		}
		return
	}
	for c.count > 0 && c.first <= high {
		c.dropFirstLocked()
	}
}

func (c *logCache) at(index uint64) *raft.Log { return &c.ring[index&uint64(len(c.ring)-1)] }

func (c *logCache) dropFirstLocked() {
	l := c.at(c.first)
	c.bytes -= entryBytes(l)
	*l = raft.Log{}
	c.first++
	c.count--
}

func (c *logCache) clearLocked() {
	clear(c.ring)
	c.count, c.bytes = 0, 0
}

// growLocked doubles the ring.
func (c *logCache) growLocked() {
	old := c.ring
	c.ring = make([]raft.Log, max(64, 2*len(old)))
	for i := range c.count {
		index := c.first + i
		*c.at(index) = old[index&uint64(len(old)-1)]
	}
}
