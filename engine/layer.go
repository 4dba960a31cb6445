package engine

import (
	"bytes"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// layer holds versions of keys in memory: what entries have stored since the store began it. The applier alone adds to
// it, in order of ts; anyone reads it meanwhile, without a lock. A sealed one never changes again.
//
// It is made for writes. A version is appended and found by the hash of its key; order among keys is made by the first
// walk that wants it, for the keys that came since the last one, and by drain. (An insertion into Badger's skip list costs
// 3 to 5 µs, most of it cache misses on the way down; here one costs a tenth of that.)
//
// What is told by a place (of a key in the index, of a version in its key) was written before that was stored, atomically; and
// but for those places nothing changes once it is written. So a reader sees everything up to the ts that was published before it
// came, and may see more, which it passes over.
type layer struct {
	mu sync.Mutex // held by the applier while it adds an entry, and to seal
	// Guarded by mu.
	sealed  bool
	last    uint64 // ts of the newest version; 0: it is empty
	filling uint32 // the block that is being filled, 0: none
	filled  int    // bytes of it

	index    atomic.Pointer[layerIndex]
	keys     slab[layerKey]
	versions slab[layerVersion]
	blocks   slab[[]byte]
	bytes    atomic.Int64 // what all takes, about

	ordering sync.Mutex
	// Guarded by ordering.
	runs   [][]uint32
	sorted uint32 // keys up to this place are in runs, each in one; a run is in order and never changes
}

// layerKey is one key.
type layerKey struct {
	hash   uint64
	bytes  layerBytes
	newest uint32 // its newest version; atomic
}

// layerVersion is one version of a key.
type layerVersion struct {
	ts    uint64
	value layerBytes // none: the key was deleted
	older uint32
}

// layerBytes is a place in the blocks. Stored keys and values are never empty, so length 0 is none.
type layerBytes struct{ block, offset, length uint32 }

// layerIndex finds keys by their hash: open addressing, at most half full. A slot has the upper half of the hash and the
// key's place; 0: it is free. A full one is replaced by one of twice the size; who still looks in the old one misses only keys
// that came later.
type layerIndex struct{ slots []atomic.Uint64 }

const (
	// layerBlockBytes is the size of a block; what is longer than a quarter has one of its own.
	layerBlockBytes = 256 << 10

	// layerKeyBytes and layerVersionBytes are what key and version cost beside their bytes: their places in the slabs, and
	// the key's in index and runs.
	layerKeyBytes     = 56
	layerVersionBytes = 24

	layerSlotsMin = 1 << 8
)

func newLayer() *layer {
	l := new(layer)
	l.index.Store(&layerIndex{make([]atomic.Uint64, layerSlotsMin)})
	return l
}

// add adds what an entry has stored at ts, and gives what the layer takes now. ok is false if it is sealed: then nothing was added.
// REQUIRES: caller is the applier; ts is above that of what was added before.
func (l *layer) add(ts uint64, writes []stored) (bytes int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sealed {
		return 0, false
	}
	n := int64(0)
	for i := range writes {
		w := &writes[i]
		place := l.find(w.hash, w.key)
		if place == 0 {
			place = l.keys.add(layerKey{hash: w.hash, bytes: l.copy(w.key)})
			l.enter(w.hash, place)
			n += int64(len(w.key)) + layerKeyBytes
		}
		newest := &l.keys.at(place).newest
		atomic.StoreUint32(newest, l.versions.add(layerVersion{ts: ts, value: l.copy(w.value), older: *newest}))
		n += int64(len(w.value)) + layerVersionBytes
	}
	l.last = ts
	return l.bytes.Add(n), true
}

// enter shows a new key to readers. REQUIRES: mu held.
func (l *layer) enter(hash uint64, place uint32) {
	x := l.index.Load()
	if int(place)*2 > len(x.slots) {
		x = &layerIndex{make([]atomic.Uint64, 2*len(x.slots))}
		for p := uint32(1); p < place; p++ {
			x.enter(l.keys.at(p).hash, p)
		}
		x.enter(hash, place)
		l.index.Store(x)
		return
	}
	x.enter(hash, place)
}

func (x *layerIndex) enter(hash uint64, place uint32) {
	mask := uint64(len(x.slots) - 1)
	i := hash & mask
	for x.slots[i].Load() != 0 {
		i = (i + 1) & mask
	}
	x.slots[i].Store(hash>>32<<32 | uint64(place))
}

// copy keeps b. REQUIRES: mu held.
func (l *layer) copy(b []byte) layerBytes {
	switch {
	case len(b) == 0:
		return layerBytes{}
	case len(b) > layerBlockBytes/4:
		return layerBytes{l.blocks.add(slices.Clone(b)), 0, uint32(len(b))}
	case l.filling == 0 || l.filled+len(b) > layerBlockBytes:
		l.filling, l.filled = l.blocks.add(make([]byte, layerBlockBytes)), 0
	}
	at := l.filled
	l.filled += copy((*l.blocks.at(l.filling))[at:], b)
	return layerBytes{l.filling, uint32(at), uint32(len(b))}
}

// view gives the bytes at a place; they stay.
func (l *layer) view(b layerBytes) []byte {
	return (*l.blocks.at(b.block))[b.offset : b.offset+b.length : b.offset+b.length]
}

// key gives the bytes of a key; they stay.
func (l *layer) key(place uint32) []byte { return l.view(l.keys.at(place).bytes) }

// find gives the place of a key; 0: it isn't there.
func (l *layer) find(hash uint64, key []byte) uint32 {
	x := l.index.Load()
	mask := uint64(len(x.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		slot := x.slots[i].Load()
		switch {
		case slot == 0:
			return 0
		case slot>>32 == hash>>32 && string(l.key(uint32(slot))) == string(key):
			return uint32(slot)
		}
	}
}

// get looks for the newest version of key at or below ts. known is false if there is none here; a nil value says that
// the key was deleted. The value is a view that stays.
func (l *layer) get(hash uint64, key []byte, ts uint64) (value []byte, known bool) {
	place := l.find(hash, key)
	if place == 0 {
		return nil, false
	}
	v := l.version(place, ts)
	if v == nil {
		return nil, false
	}
	return l.valueOf(v), true
}

// version gives the newest version of a key at or below ts; nil: there is none.
func (l *layer) version(place uint32, ts uint64) *layerVersion {
	for at := atomic.LoadUint32(&l.keys.at(place).newest); at != 0; {
		v := l.versions.at(at)
		if v.ts <= ts {
			return v
		}
		at = v.older
	}
	return nil
}

// valueOf gives the value of a version, nil for a deletion.
func (l *layer) valueOf(v *layerVersion) []byte {
	if v.value.length == 0 {
		return nil
	}
	return l.view(v.value)
}

// order puts the keys that came since the last time in order and gives all, in runs, each of which is. Runs are merged
// while one isn't twice as long as what came after it, so there are few, and a key is merged some times only. The applier
// doesn't wait for it.
func (l *layer) order() [][]uint32 {
	l.ordering.Lock()
	defer l.ordering.Unlock()
	from, to := l.sorted, l.keys.n.Load()
	if from == to {
		return l.runs
	}
	run := make([]uint32, 0, to-from)
	for place := from + 1; place <= to; place++ {
		run = append(run, place)
	}
	slices.SortFunc(run, func(a, b uint32) int { return bytes.Compare(l.key(a), l.key(b)) })
	runs := slices.Clone(l.runs)
	for len(runs) > 0 && len(runs[len(runs)-1]) < 2*len(run) {
		run = l.merge(runs[len(runs)-1], run)
		runs = runs[:len(runs)-1]
	}
	l.runs, l.sorted = append(runs, run), to
	return l.runs
}

func (l *layer) merge(a, b []uint32) []uint32 {
	all := make([]uint32, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if string(l.key(a[0])) < string(l.key(b[0])) {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// ordered gives all keys in order.
func (l *layer) ordered() (all []uint32) {
	runs := l.order()
	for i := len(runs) - 1; i >= 0; i-- {
		all = l.merge(runs[i], all)
	}
	return all
}

// layerCursor goes through the keys of a layer that have a version at or below ts, in order or in reverse. Deleted keys
// are among them.
type layerCursor struct {
	l       *layer
	ts      uint64
	reverse bool
	runs    [][]uint32
	next    []int // in each run, where it stands; outside: it is through

	// Where the cursor stands. key is nil at the end; value is nil for a deletion. Both stay.
	run   int
	key   []byte
	value []byte
}

// cursor gives a cursor that stands nowhere: seek. Keys that come to the layer later have versions above ts only, so it
// needs to know none of them. REQUIRES: all that is stored at ts was added.
func (l *layer) cursor(ts uint64, reverse bool) *layerCursor {
	runs := l.order()
	return &layerCursor{l: l, ts: ts, reverse: reverse, runs: runs, next: make([]int, len(runs))}
}

// seek goes to the first key at or above bound, in reverse to the first below it; an empty bound is none.
func (c *layerCursor) seek(bound []byte) {
	for i, run := range c.runs {
		switch {
		case !c.reverse:
			c.next[i] = c.search(run, bound)
		case len(bound) == 0:
			c.next[i] = len(run) - 1
		default:
			c.next[i] = c.search(run, bound) - 1
		}
	}
	c.settle()
}

// search gives the place in run of the first key at or above bound.
func (c *layerCursor) search(run []uint32, bound []byte) int {
	return sort.Search(len(run), func(i int) bool { return string(c.l.key(run[i])) >= string(bound) })
}

// advance goes on to the next key. REQUIRES: not at the end.
func (c *layerCursor) advance() {
	c.step()
	c.settle()
}

func (c *layerCursor) step() {
	if c.reverse {
		c.next[c.run]--
	} else {
		c.next[c.run]++
	}
}

// settle finds the key that is next among all runs.
func (c *layerCursor) settle() {
	for {
		c.run, c.key, c.value = -1, nil, nil
		var place uint32
		for i, run := range c.runs {
			if at := c.next[i]; at >= 0 && at < len(run) {
				key := c.l.key(run[at])
				if c.run < 0 || (string(key) < string(c.key)) != c.reverse {
					c.run, c.key, place = i, key, run[at]
				}
			}
		}
		if c.run < 0 || c.visible(place) {
			return
		}
		c.step()
	}
}

// visible reads the version of a key that is to be seen, if there is one.
func (c *layerCursor) visible(place uint32) bool {
	v := c.l.version(place, c.ts)
	if v != nil {
		c.value = c.l.valueOf(v)
	}
	return v != nil
}

// slabBlock is how many elements a block of a slab has.
const slabBlock = 1 << 12

// slab is a list that grows without moving what it holds: by one goroutine, beside any that read what they know the place of. A
// place is a u32 above 0, so that 0 is none.
type slab[T any] struct {
	blocks atomic.Pointer[[]*[slabBlock]T]
	n      atomic.Uint32
}

// add appends x and gives its place.
func (s *slab[T]) add(x T) uint32 {
	n := s.n.Load()
	if n%slabBlock == 0 {
		var blocks []*[slabBlock]T
		if old := s.blocks.Load(); old != nil {
			blocks = *old
		}
		blocks = append(slices.Clip(blocks), new([slabBlock]T)) // a copy: somebody may read the old one
		s.blocks.Store(&blocks)
	}
	*s.at(n + 1) = x
	s.n.Store(n + 1)
	return n + 1
}

// at gives the element at a place.
func (s *slab[T]) at(place uint32) *T {
	return &(*s.blocks.Load())[(place-1)/slabBlock][(place-1)%slabBlock]
}
