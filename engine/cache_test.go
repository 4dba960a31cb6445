package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"kvstore/wire"
)

func cachedRecordOf(key []byte, value []byte, version wire.Revision) []byte {
	r := storedRecord{valueLen: uint32(len(value))}
	r.Meta.Version, r.Value = version, value
	return appendRecord(nil, key, &r)
}

// TestCache_RandomUse_NeverAnswersWrong drives one cache as Apply and readers do, in one goroutine, beside a
// map of every version.
func TestCache_RandomUse_NeverAnswersWrong(t *testing.T) {
	for _, size := range []int64{stripeBytesMin, 4 * stripeBytesMin, 1 << 20} {
		rng := rand.New(rand.NewPCG(testSeed(t), uint64(size)))
		c := newCache(size)
		const keys = 400
		type version struct {
			ts     uint64
			stored []byte // nil: absent
		}
		history := make([][]version, keys)
		key := func(i int) []byte { return appendRecordKey(nil, 1, fmt.Appendf(nil, "key/%d", i)) }
		at := func(i int, ts uint64) (stored []byte) {
			for _, v := range history[i] {
				if v.ts <= ts {
					stored = v.stored
				}
			}
			return stored
		}
		hits, absences := 0, 0
		ts := uint64(1)
		for range 60_000 {
			i := rng.IntN(keys)
			if rng.IntN(3) > 0 {
				i = rng.IntN(20) // hot
			}
			k := key(i)
			h := hashKey(k)
			switch rng.IntN(4) {
			case 0: // Apply: update, then publish
				ts++
				var stored []byte
				if rng.IntN(5) > 0 {
					n := rng.IntN(300)
					if rng.IntN(50) == 0 {
						n = rng.IntN(cachedBytesMax + 1000)
					}
					stored = cachedRecordOf(k, bytes.Repeat([]byte{byte(ts)}, n), ts)
				}
				if rng.IntN(30) == 0 {
					c.drop(h, k, ts)
				} else {
					c.update(h, k, ts, stored)
				}
				history[i] = append(history[i], version{ts, stored})
			case 1: // a reader fills what it read a while ago
				old := ts - min(uint64(rng.IntN(3)), ts-1)
				c.fill(h, k, old, at(i, old))
			default: // a reader, perhaps one that took its point a moment ago
				a := ts - min(uint64(rng.IntN(2)), ts-1)
				b, answer := c.appendTo([]byte("pre"), h, k, a)
				want := at(i, a)
				switch answer {
				case cacheHit:
					hits++
					if !bytes.Equal(b[3:], want) {
						t.Fatalf("key %d at %d: a hit with another record", i, a)
					}
				case cacheAbsent:
					absences++
					if want != nil {
						t.Fatalf("key %d at %d: absent, but there is one", i, a)
					}
				}
			}
		}
		st := c.stats()
		if hits < 1000 || absences < 100 || size <= 1<<18 && st.evicted == 0 || st.bytes > size {
			t.Fatalf("%d hits, %d absences, %+v: the test shows little", hits, absences, st)
		}
	}
}

func TestCache_HotEntries_OutliveAFlood(t *testing.T) {
	c := newCache(stripeBytesMin)
	hot := appendRecordKey(nil, 1, []byte("hot"))
	c.update(hashKey(hot), hot, 1, cachedRecordOf(hot, make([]byte, 100), 1))
	for i := range 5000 {
		if _, answer := c.appendTo(nil, hashKey(hot), hot, 10); answer != cacheHit {
			t.Fatalf("the hot entry was evicted by the %d. cold one", i)
		}
		cold := appendRecordKey(nil, 1, fmt.Appendf(nil, "cold/%d", i))
		c.fill(hashKey(cold), cold, 5, cachedRecordOf(cold, make([]byte, 300), 5))
	}
	if st := c.stats(); st.evicted == 0 {
		t.Fatalf("%+v", st)
	}
}

func TestCache_KeysOfOneHash_AreNeverMixedUp(t *testing.T) {
	c := newCache(stripeBytesMin)
	a, b := []byte("D0001a"), []byte("D0001b")
	c.update(7, a, 1, cachedRecordOf(a, []byte("a"), 1))
	if _, answer := c.appendTo(nil, 7, b, 9); answer != cacheMiss {
		t.Fatal("a's record under b")
	}
	c.update(7, b, 2, nil)
	if _, answer := c.appendTo(nil, 7, a, 9); answer != cacheMiss {
		t.Fatal("b's absence under a")
	}
	if _, answer := c.appendTo(nil, 7, b, 9); answer != cacheAbsent {
		t.Fatal("b is not known")
	}
}

func TestCache_None_KnowsNothing(t *testing.T) {
	c := newCache(stripeBytesMin - 1)
	if c != nil {
		t.Fatal("a cache smaller than a stripe")
	}
	c.update(1, nil, 1, nil)
	c.fill(1, nil, 1, nil)
	c.drop(1, nil, 1)
	if _, answer := c.appendTo(nil, 1, nil, 1); answer != cacheMiss {
		t.Fatal("a hit")
	}
	if st := c.stats(); st != (cacheStats{}) {
		t.Fatalf("%+v", st)
	}
}
