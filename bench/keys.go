package bench

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
)

// keyTableMax is how many key names are built before the run, so that naming a key costs the client
// nothing while it measures: about 40 MB of names. Keys beyond it are named as they are drawn.
const keyTableMax = 1 << 20

// keySpace names the keys of a workload. Immutable after newKeySpace.
type keySpace struct {
	prefix string
	table  []string
}

func newKeySpace(prefix string, keys int) *keySpace {
	s := &keySpace{prefix: prefix, table: make([]string, min(keys, keyTableMax))}
	for i := range s.table {
		s.table[i] = s.build(int64(i))
	}
	return s
}

// name gives key number n: "user" and the scattered number, as YCSB names its records (hashed order).
func (s *keySpace) name(n int64) string {
	if n < int64(len(s.table)) {
		return s.table[n]
	}
	return s.build(n)
}

func (s *keySpace) build(n int64) string {
	b := make([]byte, 0, len(s.prefix)+24)
	b = append(append(b, s.prefix...), "user"...)
	return string(strconv.AppendUint(b, fnvHash64(uint64(n)), 10))
}

// insertSequence hands out the numbers of new keys, and knows up to which number every key is there: a
// reader must not draw a key whose insert is still under way (YCSB's AcknowledgedCounterGenerator).
type insertSequence struct {
	next atomic.Int64
	last atomic.Int64

	mu sync.Mutex
	// done holds finished inserts above last. Guarded by mu. Bounded by the operations in flight.
	done map[int64]struct{}
}

func newInsertSequence(keys int64) *insertSequence {
	s := &insertSequence{done: make(map[int64]struct{})}
	s.next.Store(keys)
	s.last.Store(keys - 1)
	return s
}

func (s *insertSequence) take() int64 { return s.next.Add(1) - 1 }

// finish marks the insert of n as over. A failed one counts too, or the sequence would stand still; a
// read of it is then reported as a miss.
func (s *insertSequence) finish(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[n] = struct{}{}
	last := s.last.Load()
	for {
		if _, ok := s.done[last+1]; !ok {
			break
		}
		last++
		delete(s.done, last)
	}
	s.last.Store(last)
}

// valueSpread is how many different offsets values are cut from: neighbouring values differ, and none
// compresses.
const valueSpread = 1 << 16

// filler is random bytes that values are cut from. Immutable, so that asynchronous writes may hold a cut.
type filler struct {
	bytes []byte
	size  int
}

func newFiller(seed uint64, size int) *filler {
	f := &filler{bytes: make([]byte, size+valueSpread), size: size}
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	if _, err := rand.NewChaCha8(key).Read(f.bytes); err != nil {
		panic("BUG: ChaCha8 never fails: " + err.Error())
	}
	return f
}

func (f *filler) value(rng *rand.Rand) []byte {
	off := rng.IntN(valueSpread)
	return f.bytes[off : off+f.size : off+f.size]
}
