package engine

import (
	"encoding/binary"
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
// What a place tells was written before the place was stored, atomically, in the index; and but for the index nothing
// changes once it is written. So a reader sees everything up to the ts that was published before it came, and may see more,
// which it passes over.
//
// Memory that isn't in the processor's cache is what a look-up costs: a slot of the index, and the version that it tells, in one
// piece with its key. (In three lists, of keys, versions and bytes, a look-up of 100,000 keys took twice as long.)
type layer struct {
	mu sync.Mutex // held by the applier while it adds an entry, and to seal
	// Guarded by mu.
	sealed  bool
	last    uint64 // ts of the newest version; 0: it is empty
	filling uint32 // the block that is being filled, 0: none
	filled  int    // bytes of it

	index    atomic.Pointer[layerIndex]
	keys     slab[layerPlace] // the first version of each key
	versions atomic.Uint64
	blocks   slab[[]byte]
	bytes    atomic.Int64  // what all takes, about
	touched  atomic.Uint32 // keeps the compiler from leaving out what warmed reads

	ordering sync.Mutex
	// Guarded by ordering.
	runs   [][]layerPlace
	sorted uint32 // so many of keys are in runs, each in one; a run is in order and never changes
}

// layerPlace is where a version stands: its block, and its offset there by eight. 0: nowhere.
type layerPlace uint64

// layerVersion is one version of a key. In its block, little endian, at a multiple of eight:
//
//	0 u64 ts | 8 u64 older | 16 u64 hash | 24 u32 length of key | 28 u32 length of value | key | value
type layerVersion struct {
	ts    uint64
	older layerPlace // 0: there is none
	hash  uint64
	key   []byte // it stays, as value does
	value []byte // nil: the key was deleted; stored values are never empty
}

// layerIndex finds the newest version of a key by its hash: open addressing, at most half full. A slot has the upper 24
// bits of the hash and the place; 0: it is free. A full one is replaced by one of twice the size; who still looks in the old one
// misses only versions that came later.
type layerIndex struct{ slots []atomic.Uint64 }

const (
	// layerBlockBytes is the size of a block; what is longer than a quarter has one of its own.
	layerBlockBytes = 256 << 10
	layerBlockShift = 15 // of a block's number in a place: 256 KiB by eight

	layerHeaderBytes = 32
	layerPlaceBits   = 40
	layerPlaceMask   = 1<<layerPlaceBits - 1

	// layerKeyBytes is what a key costs beside its versions: its places in keys, runs and index.
	layerKeyBytes = 40

	layerSlotsMin = 1 << 8
)

func newLayer() *layer { return newLayerOf(layerSlotsMin) }

// newLayerOf makes a layer whose index has so many slots, a power of two, at first.
func newLayerOf(slots int) *layer {
	l := new(layer)
	l.index.Store(&layerIndex{make([]atomic.Uint64, slots)})
	return l
}

// next makes the layer that follows a full one. Its index begins at half the size, since most often as many keys come again: it
// grows once then, not ten times.
func (l *layer) next() *layer { return newLayerOf(max(layerSlotsMin, len(l.index.Load().slots)/2)) }

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
		x := l.index.Load()
		slot, older := l.slot(x, w.hash, w.key)
		place, size := l.write(&layerVersion{ts: ts, older: older, hash: w.hash, key: w.key, value: w.value})
		n += int64(size)
		if older == 0 {
			n += layerKeyBytes
			if keys := l.keys.add(place); int(keys)*2 > len(x.slots) {
				x = l.grow(x)
				slot, _ = l.slot(x, w.hash, w.key)
			}
		}
		x.slots[slot].Store(w.hash>>layerPlaceBits<<layerPlaceBits | uint64(place))
	}
	l.versions.Add(uint64(len(writes)))
	l.last = ts
	return l.bytes.Add(n), true
}

// grow gives readers an index of twice the size. REQUIRES: mu held.
func (l *layer) grow(old *layerIndex) *layerIndex {
	x := &layerIndex{make([]atomic.Uint64, 2*len(old.slots))}
	mask := uint64(len(x.slots) - 1)
	for i := range old.slots {
		slot := old.slots[i].Load()
		if slot == 0 {
			continue
		}
		at := l.at(layerPlace(slot&layerPlaceMask)).hash & mask
		for x.slots[at].Load() != 0 {
			at = (at + 1) & mask
		}
		x.slots[at].Store(slot)
	}
	l.index.Store(x)
	return x
}

// write puts a version into a block, and gives its place and what it takes. REQUIRES: mu held.
func (l *layer) write(v *layerVersion) (layerPlace, int) {
	size := (layerHeaderBytes + len(v.key) + len(v.value) + 7) &^ 7
	var block uint32
	var b []byte
	offset := 0
	if size > layerBlockBytes/4 {
		b = make([]byte, size)
		block = l.blocks.add(b)
	} else {
		if l.filling == 0 || l.filled+size > layerBlockBytes {
			l.filling, l.filled = l.blocks.add(make([]byte, layerBlockBytes)), 0
		}
		block, offset = l.filling, l.filled
		b = (*l.blocks.at(block))[offset : offset+size]
		l.filled += size
	}
	binary.LittleEndian.PutUint64(b, v.ts)
	binary.LittleEndian.PutUint64(b[8:], uint64(v.older))
	binary.LittleEndian.PutUint64(b[16:], v.hash)
	binary.LittleEndian.PutUint32(b[24:], uint32(len(v.key)))
	binary.LittleEndian.PutUint32(b[28:], uint32(len(v.value)))
	copy(b[layerHeaderBytes:], v.key)
	copy(b[layerHeaderBytes+len(v.key):], v.value)
	return layerPlace(block)<<layerBlockShift | layerPlace(offset/8), size
}

// bytesAt gives what begins at a place.
func (l *layer) bytesAt(place layerPlace) []byte {
	return (*l.blocks.at(uint32(place >> layerBlockShift)))[place%(1<<layerBlockShift)*8:]
}

// at gives the version at a place.
func (l *layer) at(place layerPlace) layerVersion {
	b := l.bytesAt(place)
	head := b[:layerHeaderBytes]
	v := layerVersion{
		ts: binary.LittleEndian.Uint64(head), older: layerPlace(binary.LittleEndian.Uint64(head[8:])), hash: binary.LittleEndian.Uint64(head[16:]),
	}
	key := layerHeaderBytes + int(binary.LittleEndian.Uint32(head[24:]))
	v.key = b[layerHeaderBytes:key:key]
	if n := int(binary.LittleEndian.Uint32(head[28:])); n > 0 {
		v.value = b[key : key+n : key+n]
	}
	return v
}

// key gives the key of the version at a place.
func (l *layer) key(place layerPlace) []byte {
	b := l.bytesAt(place)
	end := layerHeaderBytes + int(binary.LittleEndian.Uint32(b[24:]))
	return b[layerHeaderBytes:end:end]
}

// slot gives where the index x has a key, and the place of its newest version; 0 and the free slot where it belongs if it isn't there.
func (l *layer) slot(x *layerIndex, hash uint64, key []byte) (uint64, layerPlace) {
	mask := uint64(len(x.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		slot := x.slots[i].Load()
		if slot == 0 {
			return i, 0
		}
		if place := layerPlace(slot & layerPlaceMask); slot>>layerPlaceBits == hash>>layerPlaceBits && string(l.key(place)) == string(key) {
			return i, place
		}
	}
}

// newest gives the place of the newest version of a key; 0: it isn't there.
func (l *layer) newest(hash uint64, key []byte) layerPlace {
	_, place := l.slot(l.index.Load(), hash, key)
	return place
}

// get looks for the newest version of key at or below ts. known is false if there is none here; a nil value says that
// the key was deleted. The value is a view that stays.
func (l *layer) get(hash uint64, key []byte, ts uint64) (value []byte, known bool) {
	v, known := l.version(l.newest(hash, key), ts)
	return v.value, known
}

// version gives the newest version at or below ts of the key whose newest one stands at place.
func (l *layer) version(place layerPlace, ts uint64) (v layerVersion, ok bool) {
	for ; place != 0; place = v.older {
		if v = l.at(place); v.ts <= ts {
			return v, true
		}
	}
	return layerVersion{}, false
}

// order puts the keys that came since the last time in order and gives all, in runs, each of which is. Runs are merged
// while one isn't twice as long as what came after it, so there are few, and a key is merged some times only. The applier
// doesn't wait for it.
func (l *layer) order() [][]layerPlace {
	l.ordering.Lock()
	defer l.ordering.Unlock()
	from, to := l.sorted, l.keys.n.Load()
	if from == to {
		return l.runs
	}
	fresh := make([]sortedKey, 0, to-from)
	for i := from + 1; i <= to; i++ {
		fresh = append(fresh, sortedKey{place: *l.keys.at(i)})
	}
	sortKeys(fresh, l.key)
	run := make([]layerPlace, len(fresh))
	for i := range fresh {
		run[i] = fresh[i].place
	}
	runs := slices.Clone(l.runs)
	for len(runs) > 0 && len(runs[len(runs)-1]) < 2*len(run) {
		run = l.merge(runs[len(runs)-1], run)
		runs = runs[:len(runs)-1]
	}
	l.runs, l.sorted = append(runs, run), to
	return l.runs
}

func (l *layer) merge(a, b []layerPlace) []layerPlace {
	all := make([]layerPlace, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if string(l.key(a[0])) < string(l.key(b[0])) {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// ordered gives the newest version of each key, in the order of the keys. REQUIRES: the layer is sealed.
func (l *layer) ordered() []sortedKey {
	x := l.index.Load()
	all := make([]sortedKey, 0, l.keys.n.Load())
	for i := range x.slots {
		if slot := x.slots[i].Load(); slot != 0 {
			all = append(all, sortedKey{place: layerPlace(slot & layerPlaceMask)})
		}
	}
	sortKeys(all, l.key)
	return all
}

// layerCursor goes through the keys of a layer that have a version at or below ts, in order or in reverse. Deleted keys
// are among them.
type layerCursor struct {
	l       *layer
	ts      uint64
	reverse bool
	runs    [][]layerPlace
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
func (c *layerCursor) search(run []layerPlace, bound []byte) int {
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
		var place layerPlace
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

// visible reads the version to be seen of the key that has one at place, if there is one.
func (c *layerCursor) visible(place layerPlace) (ok bool) {
	v := c.l.at(place)
	v, ok = c.l.version(c.l.newest(v.hash, v.key), c.ts)
	c.value = v.value
	return ok
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
