package engine

import "kvstore/wire"

// CachedGets are reads of single records that are answered together, from memory alone: from the newest part of the state and
// the hot-record cache. One may be used again and again, by one goroutine at a time; the zero value is ready.
//
// A look-up of a record that isn't in the processor's cache waits for memory three times, one after the other: for a slot of the
// index, for the version that it tells, and for the rest of its bytes. Many look-ups wait at the same time (see warm): out of
// 100,000 records of 128 bytes, one in a bunch of 16 or more takes two fifths of the time of one that is alone.
type CachedGets struct {
	gets []cachedGet
	keys []byte // their record keys, one behind the other
	rec  storedRecord

	// touched keeps the compiler from leaving out what warm reads.
	touched byte
}

// cachedGet is one read.
type cachedGet struct {
	hash     uint64
	key, end int // its record key in CachedGets.keys
	answer   cacheAnswer
}

// Add adds a read of a key of a namespace, which is copied. Reads are numbered from 0 in the order in which they were added.
func (g *CachedGets) Add(ns uint32, key []byte) {
	at := len(g.keys)
	g.keys = appendRecordKey(g.keys, ns, key)
	g.gets = append(g.gets, cachedGet{hash: hashKey(g.keys[at:]), key: at, end: len(g.keys)})
}

// Len is the number of reads.
func (g *CachedGets) Len() int { return len(g.gets) }

// Reset takes all reads out.
func (g *CachedGets) Reset() { g.gets, g.keys = g.gets[:0], g.keys[:0] }

// Result tells what became of read i: StatusOK or StatusNotFound, or hit is false when memory alone doesn't know.
// REQUIRES: GetCached was called since the last Add.
func (g *CachedGets) Result(i int) (st wire.Status, hit bool) {
	switch g.gets[i].answer {
	case cacheHit:
		return wire.StatusOK, true
	case cacheAbsent:
		return wire.StatusNotFound, true
	}
	return 0, false
}

// GetCached does all reads of g from memory alone, so it neither reads a disk nor touches a mapped table, and may be
// called by an event loop. All of them reflect one state, which was the newest at some moment during the call. fn is called
// for each that finds its record, with its number, the record and that state: rec's slices are views until fn returns; fn
// copies what it needs, calls nothing of the engine, and doesn't block. Result tells of each read.
//
// A record whose value is compressed is not known: to unpack it takes longer than an event loop has.
func (e *Engine) GetCached(g *CachedGets, fn func(i int, rec *wire.Record, at Point)) {
	in := e.live.Load()
	if in.cache == nil {
		for i := range g.gets {
			g.gets[i].answer = cacheMiss
		}
		return
	}
	p := in.store.current()
	t := in.store.tail.Load()
	if len(g.gets) > 1 {
		g.warm(t)
	}
	at := pointOf(p)
	var i int
	var answer cacheAnswer
	show := func(r *storedRecord) {
		switch {
		case r.expired(p.time):
			answer = cacheAbsent
		case !r.inline():
			answer = cacheMiss
		default:
			fn(i, &r.Record, at)
		}
	}
	tailHits := uint64(0)
	for i = range g.gets {
		it := &g.gets[i]
		answer = cacheHit
		found, inTail := in.hotIn(t, it.hash, g.keys[it.key:it.end], &p, &g.rec, show)
		if inTail {
			tailHits++
		}
		if found != cacheHit {
			answer = found
		}
		it.answer = answer
	}
	g.rec = storedRecord{} // keeps no layer alive
	in.tailHits.Add(tailHits)
}

// warm reads what the look-ups in the layers of t are about to read, and nothing that depends on it at once: so the processor
// waits for many of these places at the same time. It takes no lock, and changes nothing but what is in the processor's cache.
func (g *CachedGets) warm(t *tail) {
	layers, n := t.layers()
	for _, l := range layers[:n] {
		for from := 0; from < len(g.gets); from += warmPlaces {
			g.touched += l.warm(g.gets[from:min(from+warmPlaces, len(g.gets))])
		}
	}
}

// warm reads, for each of gets, its first slot of the index, and what warmAt reads of the version that it tells. What it returns says
// nothing. REQUIRES: at most warmPlaces of them.
func (l *layer) warm(gets []cachedGet) (touched byte) {
	var places [warmPlaces]layerPlace
	n := 0
	x := l.index.Load()
	mask := uint64(len(x.slots) - 1)
	for i := range gets {
		hash := gets[i].hash
		// Another key's version, or the wrong slot of the two that a collision takes, is not worth its reading.
		if slot := x.slots[hash&mask].Load(); slot != 0 && slot>>layerPlaceBits == hash>>layerPlaceBits {
			places[n] = layerPlace(slot & layerPlaceMask)
			n++
		}
	}
	return l.warmAt(places[:n])
}
