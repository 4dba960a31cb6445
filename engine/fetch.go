package engine

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

const (
	// fetchLeast is how many records the entry before must have read from Badger for the entry at hand to fetch. So where memory
	// has nearly all, nobody looks twice for what is there.
	fetchLeast = 8
	// fetchEach is how many records a worker takes at once; below two such pieces there is nothing to share.
	fetchEach = 8
	// fetchWorkersMax bounds the goroutines of one entry, the applier among them.
	fetchWorkersMax = 8
	// fetchBytesMax is how much of an entry a worker keeps before it stops; what is beyond is read when it is wanted.
	fetchBytesMax = 1 << 20
	// fetchKeptMax bounds the places that are kept from entry to entry: to empty a map costs what it once grew to.
	fetchKeptMax = 4096
)

// fetcher reads the records that an entry replaces from Badger, on several processors at once, before the entry is evaluated: one
// by one they were half of what a put among ten million keys cost, all of it on the applier's goroutine, which each
// entry of a group waits for.
//
// What it reads is the state before the entry, as the applier would: the tail was loaded before, Badger is read at its flushed, and
// neither the published state nor what the fence may pass moves while the applier waits here. What cannot be read is left to the
// applier, which tells damage from absence.
//
// Owned by the applier; between start and the end of run its workers share it, each with places of its own.
type fetcher struct {
	missed int // records that the entry at hand has read from Badger, fetched ones among them

	byHash map[uint64]int32 // → place in all
	all    []fetched
	bufs   [fetchWorkersMax][]byte

	// Of run.
	db      *badger.DB
	ts      uint64
	next    atomic.Int64
	workers sync.WaitGroup
}

// fetched is one record that was read, or was to be.
type fetched struct {
	key    []byte // a view into applier.ahead
	known  bool
	found  bool
	stored []byte // a view into a worker's buffer
}

// fetch reads ahead, from Badger, what memory doesn't have of the keys that readAhead has gathered.
func (a *applier) fetch(t *tail) {
	f := &a.fetcher
	missed := f.missed
	f.reset()
	if missed < fetchLeast || a.ahead.Len() < fetchLeast {
		return
	}
	ts := a.last.ts
	for i := range a.ahead.gets {
		it := &a.ahead.gets[i]
		key := a.ahead.keys[it.key:it.end]
		if _, known := t.get(it.hash, key, ts); known || a.in.cache.holds(it.hash, key, ts) {
			continue
		}
		f.add(it.hash, key)
	}
	f.run(a.in.store.db, min(ts, t.flushed))
}

// add adds a key, unless there is one of the same hash.
func (f *fetcher) add(hash uint64, key []byte) {
	if f.byHash == nil {
		f.byHash = make(map[uint64]int32)
	}
	if _, ok := f.byHash[hash]; !ok {
		f.byHash[hash] = int32(len(f.all))
		f.all = append(f.all, fetched{key: key})
	}
}

// run reads all that was added, at ts of Badger.
func (f *fetcher) run(db *badger.DB, ts uint64) {
	n := min(runtime.GOMAXPROCS(0), fetchWorkersMax, len(f.all)/fetchEach)
	if n < 2 {
		return
	}
	f.db, f.ts = db, ts
	f.next.Store(0)
	f.workers.Add(n - 1)
	for i := 1; i < n; i++ {
		// Owned by run, which waits for it.
		go func() {
			defer f.workers.Done()
			f.work(i)
		}()
	}
	f.work(0)
	f.workers.Wait()
	f.db = nil
}

// work reads one piece after the other, until there are no more or its buffer is full.
func (f *fetcher) work(worker int) {
	var err error
	defer caught(&err) // Badger panics on some damage: the applier will meet it
	txn := f.db.NewTransactionAt(f.ts, false)
	defer txn.Discard()
	buf := f.bufs[worker][:0]
	defer func() { f.bufs[worker] = buf }()
	for {
		to := int(f.next.Add(fetchEach))
		for i := to - fetchEach; i < min(to, len(f.all)); i++ {
			if len(buf) >= fetchBytesMax {
				return
			}
			it := &f.all[i]
			found, err := getIn(txn, it.key, func(value []byte) error {
				at := len(buf)
				buf = append(buf, value...)
				it.stored = buf[at:len(buf):len(buf)]
				return nil
			})
			it.known, it.found = err == nil, found
		}
		if to >= len(f.all) {
			return
		}
	}
}

// get gives what was read for a key; known is false if it was not.
func (f *fetcher) get(hash uint64, key []byte) (stored []byte, found, known bool) {
	if len(f.all) == 0 {
		return nil, false, false
	}
	i, ok := f.byHash[hash]
	if !ok || string(f.all[i].key) != string(key) {
		return nil, false, false
	}
	return f.all[i].stored, f.all[i].found, f.all[i].known
}

// reset lets go of what was read.
func (f *fetcher) reset() {
	f.missed = 0
	if len(f.all) == 0 {
		return
	}
	if len(f.all) > fetchKeptMax {
		f.byHash, f.all = nil, nil
	}
	clear(f.byHash)
	clear(f.all)
	f.all = f.all[:0]
	for i := range f.bufs {
		if cap(f.bufs[i]) > fetchBytesMax {
			f.bufs[i] = nil
		}
	}
}
