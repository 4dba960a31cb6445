package engine

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// cache holds the stored form of small hot records (never of chunked ones), and the absence of keys, in front of Badger, whose reads
// cost 2 to 11 µs. It is a pure acceleration: with or without it every answer is the same.
//
// It stands behind the tail: who looks for a record at ts a looks there first, and comes here only if the tail has no version
// of it at or below a. What the cache promises him: a hit is what the store holds at a. Three rules make it so.
//
//  1. While a layer goes to Badger, update is called for each of its keys (which replaces the entry
//     and raises the stripe's ts), and only then the layer leaves the tail. Until then whoever may see such a version finds it,
//     or a newer one, in the tail.
//  2. A hit counts only if the entry's ts is ≤ a. An entry always holds the newest version that Badger has, or a newer one that
//     is on its way there or that a reader found in the tail; what is newer still stands in the tail. So one that isn't
//     younger than a is right at a.
//  3. A reader that read the store at a may fill the cache only while the stripe's ts is ≤ a: otherwise
//     the record may have changed between its read and its fill.
//
// So a is the newest published ts, or the applier's ts before the entry: never a past one.
//
// Memory is one byte ring per stripe without pointers in it, so the garbage collector passes it over. The
// oldest entry makes room, unless it was hit since it was written: then it moves to the young end once
// more (the clock algorithm).
type cache struct {
	// Immutable after newCache.
	shift   uint
	stripes []stripe

	fills   atomic.Uint64
	evicted atomic.Uint64
}

const (
	// cachedBytesMax is the longest stored record that is cached: what copies in about a microsecond.
	cachedBytesMax = 16<<10 + recordHeaderBytes

	// stripesMax spreads the locks: at 256, eight cores that hit at random wait for each other in 3 % of the
	// reads.
	stripesMax = 256

	// stripeBytesMin keeps a ring large enough for a few of the largest entries.
	stripeBytesMin = 64 << 10

	// secondChancesMax bounds what one insertion may move: it bounds the time that a stripe is locked.
	secondChancesMax = 8
)

// stripe is one part of the cache, chosen by the hash of the key.
type stripe struct {
	mu sync.Mutex

	// Guarded by mu.
	ts    uint64            // newest ts of a key of this stripe that has left the tail
	index map[uint64]uint32 // hash of the record key → place of its entry in ring
	ring  []byte            // made at the first insertion
	head  int               // where the next entry goes
	tail  int               // the oldest entry
	used  int               // bytes from tail to head
	rec   storedRecord      // scratch of view: what fn gets would escape to the heap otherwise

	hits   uint64
	misses uint64

	bytes int // size of ring; immutable
	_     [40]byte
}

// An entry in the ring, numbers little endian, its size a multiple of 8:
//
//	0 u32 size | 4 u16 key_len | 6 u8 kind | 7 u8 hit since written | 8 u64 hash | 16 u64 ts
//	24 u32 record_len | 28 u32 0 | record key | stored record
const (
	cachedHeaderBytes = 32

	cachedPad    = 0 // fills the end of the ring
	cachedRecord = 1
	cachedAbsent = 2
)

// newCache makes a cache of at most bytes of entries; none (nil) when bytes is less than one stripe. The
// index takes about 20 bytes per entry more. All methods work on a nil cache.
func newCache(bytes int64) *cache {
	n := int(min(bytes/stripeBytesMin, stripesMax))
	if n < 1 {
		return nil
	}
	n = 1 << (bits.Len(uint(n)) - 1)
	c := &cache{shift: uint(64 - bits.Len(uint(n-1))), stripes: make([]stripe, n)}
	// A place is a u32.
	size := int(min(bytes/int64(n), 1<<31)) &^ 7
	for i := range c.stripes {
		c.stripes[i].bytes = size
	}
	return c
}

// hashKey is the hash by which cache and overlay know a record.
func hashKey(recordKey []byte) uint64 { return xxhash.Sum64(recordKey) }

func (c *cache) stripe(hash uint64) *stripe { return &c.stripes[hash>>c.shift] }

// cacheAnswer is what the cache knows of a key.
type cacheAnswer uint8

const (
	cacheMiss cacheAnswer = iota
	cacheHit
	cacheAbsent
)

// view calls fn with the record if it is cached and may be shown at ts. The record's slices point into the
// cache, and its stripe is locked until fn returns: fn copies what it needs and calls nothing of the cache.
func (c *cache) view(hash uint64, recordKey []byte, ts uint64, fn func(r *storedRecord)) cacheAnswer {
	if c == nil {
		return cacheMiss
	}
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	b, answer := s.lookup(hash, recordKey, ts)
	if answer == cacheHit {
		s.decode(b)
		fn(&s.rec)
		s.rec = storedRecord{}
	}
	return answer
}

// holds reports whether view would know the key. It counts as no use.
func (c *cache) holds(hash uint64, recordKey []byte, ts uint64) bool {
	if c == nil {
		return false
	}
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(hash, recordKey)
	return e != nil && binary.LittleEndian.Uint64(e[16:]) <= ts
}

// appendTo appends the stored record to dst if it is cached and may be shown at ts.
func (c *cache) appendTo(dst []byte, hash uint64, recordKey []byte, ts uint64) ([]byte, cacheAnswer) {
	if c == nil {
		return dst, cacheMiss
	}
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	b, answer := s.lookup(hash, recordKey, ts)
	return append(dst, b...), answer
}

// update takes what Badger has got as the newest version of a key, of ts: the stored record, or nil for a deleted key. A
// record that is too long leaves the cache.
func (c *cache) update(hash uint64, recordKey []byte, ts uint64, stored []byte) {
	if c == nil {
		return
	}
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ts = max(s.ts, ts)
	c.evicted.Add(s.insert(hash, recordKey, ts, stored))
}

// drop forgets what has changed at ts to something that is not cached.
func (c *cache) drop(hash uint64, recordKey []byte, ts uint64) {
	if c == nil {
		return
	}
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ts = max(s.ts, ts)
	s.remove(hash, recordKey)
}

// fill takes what a reader found in the store at ts: the stored record, or nil for an absent key.
func (c *cache) fill(hash uint64, recordKey []byte, ts uint64, stored []byte) {
	if c == nil || len(stored) > cachedBytesMax {
		return
	}
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ts > ts {
		return
	}
	c.fills.Add(1)
	c.evicted.Add(s.insert(hash, recordKey, ts, stored))
}

// cacheStats are sums since the start, and what is held now.
type cacheStats struct {
	hits, misses, fills, evicted uint64
	entries                      int
	bytes                        int64
}

func (c *cache) stats() (t cacheStats) {
	if c == nil {
		return t
	}
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		t.hits += s.hits
		t.misses += s.misses
		t.entries += len(s.index)
		t.bytes += int64(s.used)
		s.mu.Unlock()
	}
	t.fills, t.evicted = c.fills.Load(), c.evicted.Load()
	return t
}

// lookup finds the stored record of a key. REQUIRES: mu held.
func (s *stripe) lookup(hash uint64, recordKey []byte, ts uint64) ([]byte, cacheAnswer) {
	e := s.entry(hash, recordKey)
	if e == nil || binary.LittleEndian.Uint64(e[16:]) > ts {
		s.misses++
		return nil, cacheMiss
	}
	s.hits++
	e[7] = 1
	if e[6] == cachedAbsent {
		return nil, cacheAbsent
	}
	at := cachedHeaderBytes + len(recordKey)
	return e[at : at+int(binary.LittleEndian.Uint32(e[24:]))], cacheHit
}

// decode reads a cached record into s.rec. REQUIRES: mu held.
func (s *stripe) decode(b []byte) {
	if err := decodeRecordHead(b, &s.rec); err != nil {
		panic("BUG: the cache holds what is no record: " + err.Error())
	}
}

// entry finds the entry of a key. REQUIRES: mu held.
func (s *stripe) entry(hash uint64, recordKey []byte) []byte {
	at, ok := s.index[hash]
	if !ok {
		return nil
	}
	e := s.at(int(at))
	n := int(binary.LittleEndian.Uint16(e[4:]))
	if string(e[cachedHeaderBytes:cachedHeaderBytes+n]) != string(recordKey) {
		return nil // another key with the same hash
	}
	return e
}

// at gives the entry at a place. REQUIRES: mu held.
func (s *stripe) at(place int) []byte {
	return s.ring[place : place+int(binary.LittleEndian.Uint32(s.ring[place:]))]
}

// insert makes stored the entry of a key, or drops the key's entry when stored is too long, and returns how
// many others were evicted. REQUIRES: mu held.
func (s *stripe) insert(hash uint64, recordKey []byte, ts uint64, stored []byte) (evicted uint64) {
	size := (cachedHeaderBytes + len(recordKey) + len(stored) + 7) &^ 7
	if len(stored) > cachedBytesMax || size > s.bytes/2 {
		s.remove(hash, recordKey)
		return 0
	}
	if e := s.entry(hash, recordKey); e != nil && size <= len(e) && size >= len(e)/2 {
		s.write(e, hash, recordKey, ts, stored)
		return 0
	}
	if s.ring == nil {
		s.ring = make([]byte, s.bytes)
		s.index = make(map[uint64]uint32)
	}
	delete(s.index, hash)
	place, evicted := s.room(size)
	e := s.ring[place : place+size]
	binary.LittleEndian.PutUint32(e, uint32(size))
	e[7] = 0
	s.write(e, hash, recordKey, ts, stored)
	s.index[hash] = uint32(place)
	return evicted
}

// remove forgets a key's entry; its bytes are free once the tail has passed them. REQUIRES: mu held.
func (s *stripe) remove(hash uint64, recordKey []byte) {
	if s.entry(hash, recordKey) != nil {
		delete(s.index, hash)
	}
}

// write fills an entry but for its size. REQUIRES: mu held.
func (s *stripe) write(e []byte, hash uint64, recordKey []byte, ts uint64, stored []byte) {
	binary.LittleEndian.PutUint16(e[4:], uint16(len(recordKey)))
	e[6] = cachedRecord
	if stored == nil {
		e[6] = cachedAbsent
	}
	binary.LittleEndian.PutUint64(e[8:], hash)
	binary.LittleEndian.PutUint64(e[16:], ts)
	binary.LittleEndian.PutUint32(e[24:], uint32(len(stored)))
	binary.LittleEndian.PutUint32(e[28:], 0)
	n := copy(e[cachedHeaderBytes:], recordKey)
	copy(e[cachedHeaderBytes+n:], stored)
}

// room takes size bytes in one piece at the head, evicting from the tail. REQUIRES: mu held; ring made;
// size at most half of it.
func (s *stripe) room(size int) (place int, evicted uint64) {
	for chances := secondChancesMax; ; {
		if end := len(s.ring) - s.head; end < size {
			// The rest of the ring is too short: a pad takes it.
			for len(s.ring)-s.used < end {
				evicted += s.evict()
			}
			if end > 0 {
				clear(s.ring[s.head : s.head+8])
				binary.LittleEndian.PutUint32(s.ring[s.head:], uint32(end))
				s.used += end
			}
			s.head = 0
			continue
		}
		if len(s.ring)-s.used >= size {
			place = s.head
			s.head += size
			s.used += size
			return place, evicted
		}
		if chances > 0 && s.rescue() {
			chances--
			continue
		}
		evicted += s.evict()
	}
}

// current reports whether the entry at the tail is the one that the index names. REQUIRES: mu held.
func (s *stripe) current(e []byte) bool {
	if e[6] == cachedPad {
		return false
	}
	at, ok := s.index[binary.LittleEndian.Uint64(e[8:])]
	return ok && int(at) == s.tail
}

// rescue moves the oldest entry to the young end if it was hit and is in the way of nothing.
// REQUIRES: mu held.
func (s *stripe) rescue() bool {
	e := s.at(s.tail)
	if s.head > s.tail || !s.current(e) || e[7] == 0 {
		return false
	}
	hash := binary.LittleEndian.Uint64(e[8:])
	e[7] = 0
	s.index[hash] = uint32(s.head)
	// The free bytes end at the tail: the move may overlap itself.
	n := copy(s.ring[s.head:], e)
	s.head += n
	s.advanceTail(n)
	return true
}

// evict frees the oldest entry. REQUIRES: mu held; used > 0.
func (s *stripe) evict() (evicted uint64) {
	e := s.at(s.tail)
	if s.current(e) {
		delete(s.index, binary.LittleEndian.Uint64(e[8:]))
		evicted = 1
	}
	s.used -= len(e)
	s.advanceTail(len(e))
	return evicted
}

// advanceTail steps over n bytes. REQUIRES: mu held.
func (s *stripe) advanceTail(n int) {
	if s.tail += n; s.tail == len(s.ring) {
		s.tail = 0
	}
}
