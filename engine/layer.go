package engine

import (
	"bytes"
	"slices"
	"sort"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// layer holds versions of keys in memory: what entries have stored since the store began it. The applier alone adds to
// it, in order of ts; anyone reads it meanwhile. A sealed one never changes again.
//
// It is made for writes. A version is appended and found by the hash of its key; order among keys is made by the first
// walk that wants it, for the keys that came since the last one, and by drain. (An insertion into Badger's skip list costs
// 3 to 5 µs, most of it cache misses on the way down; here one costs a tenth of that.) Nothing in it holds a pointer but the
// blocks, so the garbage collector passes it over.
type layer struct {
	mu sync.RWMutex
	// Guarded by mu.
	sealed   bool
	last     uint64            // ts of the newest version; 0: it is empty
	index    map[uint64]uint32 // hash of a key → the newest key with that hash
	keys     slab[layerKey]
	versions slab[layerVersion]
	blocks   [][]byte // of keys and values; what is written never changes
	filling  int      // the block that is being filled, or -1
	filled   int      // bytes of it
	bytes    int64    // what all takes, about
	runs     [][]uint32
	sorted   uint32 // keys up to this place are in runs, each in one; a run is in order and never changes

	ordering sync.Mutex // held by the one who puts keys in order; before mu
}

// layerKey is one key.
type layerKey struct {
	bytes  layerBytes
	clash  uint32 // the key before it with the same hash
	newest uint32 // its newest version
}

// layerVersion is one version of a key.
type layerVersion struct {
	ts    uint64
	value layerBytes // none: the key was deleted
	older uint32
}

// layerBytes is a place in the blocks. Stored keys and values are never empty, so length 0 is none.
type layerBytes struct{ block, offset, length uint32 }

const (
	// layerBlockBytes is the size of a block; what is longer than a quarter has one of its own.
	layerBlockBytes = 256 << 10

	// layerKeyBytes and layerVersionBytes are what key and version cost beside their bytes: their places in the slabs, and
	// the key's in index and runs.
	layerKeyBytes     = 48
	layerVersionBytes = 24
)

func newLayer() *layer { return &layer{index: make(map[uint64]uint32), filling: -1} }

// add adds what an entry has stored at ts, and gives what the layer takes now. ok is false if it is sealed: then nothing was added.
// REQUIRES: caller is the applier; ts is above that of what was added before.
func (l *layer) add(ts uint64, writes []stored) (bytes int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sealed {
		return 0, false
	}
	for i := range writes {
		w := &writes[i]
		hash := xxhash.Sum64(w.key)
		place := l.find(hash, w.key)
		if place == 0 {
			k := layerKey{bytes: l.copy(w.key), clash: l.index[hash]}
			place = l.keys.add(k)
			l.index[hash] = place
			l.bytes += int64(len(w.key)) + layerKeyBytes
		}
		k := l.keys.at(place)
		k.newest = l.versions.add(layerVersion{ts: ts, value: l.copy(w.value), older: k.newest})
		l.bytes += int64(len(w.value)) + layerVersionBytes
	}
	l.last = ts
	return l.bytes, true
}

// copy keeps b. REQUIRES: mu held.
func (l *layer) copy(b []byte) layerBytes {
	switch {
	case len(b) == 0:
		return layerBytes{}
	case len(b) > layerBlockBytes/4:
		l.blocks = append(l.blocks, slices.Clone(b))
		return layerBytes{uint32(len(l.blocks) - 1), 0, uint32(len(b))}
	case l.filling < 0 || l.filled+len(b) > layerBlockBytes:
		l.blocks = append(l.blocks, make([]byte, layerBlockBytes))
		l.filling, l.filled = len(l.blocks)-1, 0
	}
	at := l.filled
	l.filled += copy(l.blocks[l.filling][at:], b)
	return layerBytes{uint32(l.filling), uint32(at), uint32(len(b))}
}

// view gives the bytes at a place; they stay. REQUIRES: mu held.
func (l *layer) view(b layerBytes) []byte { return viewOf(l.blocks, b) }

func viewOf(blocks [][]byte, b layerBytes) []byte {
	return blocks[b.block][b.offset : b.offset+b.length : b.offset+b.length]
}

// find gives the place of a key; 0: it isn't there. REQUIRES: mu held.
func (l *layer) find(hash uint64, key []byte) uint32 {
	place := l.index[hash]
	for place != 0 {
		k := l.keys.at(place)
		if string(l.view(k.bytes)) == string(key) {
			return place
		}
		place = k.clash
	}
	return 0
}

// get looks for the newest version of key at or below ts. known is false if there is none here; a nil value says that
// the key was deleted. The value is a view that stays.
func (l *layer) get(key []byte, ts uint64) (value []byte, known bool) {
	hash := xxhash.Sum64(key)
	l.mu.RLock()
	defer l.mu.RUnlock()
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

// version gives the newest version of a key at or below ts; nil: there is none. REQUIRES: mu held.
func (l *layer) version(place uint32, ts uint64) *layerVersion {
	for at := l.keys.at(place).newest; at != 0; {
		v := l.versions.at(at)
		if v.ts <= ts {
			return v
		}
		at = v.older
	}
	return nil
}

// valueOf gives the value of a version, nil for a deletion. REQUIRES: mu held.
func (l *layer) valueOf(v *layerVersion) []byte {
	if v.value.length == 0 {
		return nil
	}
	return l.view(v.value)
}

// orderedKeys are the keys that a layer had at one moment, in runs, each in order. They can be read without a lock.
type orderedKeys struct {
	runs   [][]uint32
	keys   []*[slabBlock]layerKey // of which all but newest never changes
	blocks [][]byte
}

// order puts the keys that came since the last time in order and gives all. Runs are merged while one isn't twice as long
// as what came after it, so there are few, and a key is merged some times only. The applier doesn't wait for it.
func (l *layer) order() orderedKeys {
	l.ordering.Lock()
	defer l.ordering.Unlock()
	l.mu.RLock()
	o := orderedKeys{runs: l.runs, keys: l.keys.blocks, blocks: l.blocks}
	from, to := l.sorted, l.keys.n
	l.mu.RUnlock()
	if from == to {
		return o
	}
	run := make([]uint32, 0, to-from)
	for place := from + 1; place <= to; place++ {
		run = append(run, place)
	}
	slices.SortFunc(run, func(a, b uint32) int { return bytes.Compare(o.key(a), o.key(b)) })
	runs := slices.Clone(o.runs)
	for len(runs) > 0 && len(runs[len(runs)-1]) < 2*len(run) {
		run = o.merge(runs[len(runs)-1], run)
		runs = runs[:len(runs)-1]
	}
	o.runs = append(runs, run)
	l.mu.Lock()
	l.runs, l.sorted = o.runs, to
	l.mu.Unlock()
	return o
}

// key gives the bytes of a key.
func (o *orderedKeys) key(place uint32) []byte {
	return viewOf(o.blocks, o.keys[(place-1)/slabBlock][(place-1)%slabBlock].bytes)
}

func (o *orderedKeys) merge(a, b []uint32) []uint32 {
	all := make([]uint32, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if string(o.key(a[0])) < string(o.key(b[0])) {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// one merges all runs into one.
func (o *orderedKeys) one() (all []uint32) {
	for i := len(o.runs) - 1; i >= 0; i-- {
		all = o.merge(o.runs[i], all)
	}
	return all
}

// size gives what the layer takes.
func (l *layer) size() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.bytes
}

// layerCursor goes through the keys of a layer that have a version at or below ts, in order or in reverse. Deleted keys
// are among them.
type layerCursor struct {
	l       *layer
	ts      uint64
	reverse bool
	keys    orderedKeys
	next    []int // in each run, where it stands; outside: it is through

	// Where the cursor stands. key is nil at the end; value is nil for a deletion. Both stay.
	run   int
	key   []byte
	value []byte
}

// cursor gives a cursor that stands nowhere: seek. Keys that come to the layer later have versions above ts only, so it
// needs to know none of them. REQUIRES: all that is stored at ts was added.
func (l *layer) cursor(ts uint64, reverse bool) *layerCursor {
	keys := l.order()
	return &layerCursor{l: l, ts: ts, reverse: reverse, keys: keys, next: make([]int, len(keys.runs))}
}

// seek goes to the first key at or above bound, in reverse to the first below it; an empty bound is none.
func (c *layerCursor) seek(bound []byte) {
	for i, run := range c.keys.runs {
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
	return sort.Search(len(run), func(i int) bool { return string(c.keys.key(run[i])) >= string(bound) })
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
		for i, run := range c.keys.runs {
			if at := c.next[i]; at >= 0 && at < len(run) {
				key := c.keys.key(run[at])
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
	c.l.mu.RLock()
	defer c.l.mu.RUnlock()
	v := c.l.version(place, c.ts)
	if v != nil {
		c.value = c.l.valueOf(v)
	}
	return v != nil
}

// slabBlock is how many elements a block of a slab has.
const slabBlock = 1 << 12

// slab is a list that grows without moving what it holds. A place is a u32 above 0, so that 0 is none.
type slab[T any] struct {
	blocks []*[slabBlock]T
	n      uint32
}

// add appends x and gives its place.
func (s *slab[T]) add(x T) uint32 {
	if s.n%slabBlock == 0 {
		s.blocks = append(s.blocks, new([slabBlock]T))
	}
	s.n++
	*s.at(s.n) = x
	return s.n
}

// at gives the element at a place.
func (s *slab[T]) at(place uint32) *T { return &s.blocks[(place-1)/slabBlock][(place-1)%slabBlock] }
