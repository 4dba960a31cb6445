package engine

import (
	"fmt"
	"time"
)

// Limits of one Badger transaction, from its own arithmetic (checkAndSetOptions, Txn.checkSize): the
// estimated bytes must stay below 15 % of the memtable, the count below that / 96. We stop at three
// quarters of both: the estimate is Badger's and may change by some bytes per entry, and a transaction
// that turns out too big is an entry that cannot be applied.
const (
	badgerBatchPercent  = 15
	badgerNodeBytes     = 96
	txnMarginNumerator  = 3
	txnMarginDenominate = 4

	// entryOverheadBytes bounds what Badger's estimate adds to key and value: 2 of meta, 12 of value
	// pointer, 10 of version; rounded up.
	entryOverheadBytes = 32
)

func badgerBatchBytes(memtableBytes int64) int64 { return badgerBatchPercent * memtableBytes / 100 }

// txnBytesMax is the most that one transaction of ours holds, by our own estimate.
func txnBytesMax(memtableBytes int64) int64 {
	return badgerBatchBytes(memtableBytes) * txnMarginNumerator / txnMarginDenominate
}

// txnCountMax is the most entries that one transaction of ours holds.
func txnCountMax(memtableBytes int64) int {
	return int(badgerBatchBytes(memtableBytes) / badgerNodeBytes * txnMarginNumerator / txnMarginDenominate)
}

// storedKeptMax bounds the memory that write keeps from entry to entry, at 56 bytes each: 900 KB.
const storedKeptMax = 1 << 14

// stored is one key and what an entry has stored under it; no value: the key was deleted.
type stored struct {
	hash       uint64 // hashKey of key
	key, value []byte
}

// write gathers the writes of one entry. There is one per store, reused, and owned by the applier.
type write struct {
	s  *store
	ts uint64

	all   []stored
	bytes int64
}

// begin starts the writes of one entry at ts = base + index. It panics when ts isn't above the ts of the
// last commit or the write before was not committed: entries are applied once and in order.
//
// REQUIRES: caller is the applier.
func (s *store) begin(ts uint64) *write {
	w := &s.write
	if ts <= s.committedTS {
		panic(fmt.Sprintf("BUG: entry at ts %d begun after the commit of ts %d", ts, s.committedTS))
	}
	w.ts, w.all, w.bytes = ts, w.all[:0], 0
	return w
}

// set stores key. It keeps both slices until the commit returns. A key may be set or deleted at most once per entry.
// The value must be non-empty, so that an empty value read back is always damage, and at most
// valueBytesMax() long: anything else panics.
func (w *write) set(key, value []byte) { w.setHashed(hashKey(key), key, value) }

// setHashed is set for a key whose hash is known.
func (w *write) setHashed(hash uint64, key, value []byte) {
	if len(value) == 0 || len(value) > w.s.valueBytesMax() {
		panic(fmt.Sprintf("BUG: stored value of %d bytes, must be 1 to %d", len(value), w.s.valueBytesMax()))
	}
	w.all = append(w.all, stored{hash, key, value})
	w.bytes += int64(len(key) + len(value))
}

// del deletes key, under the rules of set.
func (w *write) del(key []byte) {
	w.all = append(w.all, stored{hashKey(key), key, nil})
	w.bytes += int64(len(key))
}

// commit stores what was gathered and the marker in the tail, from which a checkpoint brings it to Badger. Readers see nothing
// of it before publish. Errors are those of hold: the caller must stop for good.
//
// It keeps nothing of the slices once it has returned.
func (w *write) commit(marker []byte) error {
	s := w.s
	if err := s.failure(); err != nil {
		return err
	}
	start := time.Now()
	w.set(markerKey, marker)
	if err := s.hold(w.ts, w.all); err != nil {
		return fmt.Errorf("cannot store entry at ts %d: %w", w.ts, err)
	}
	// The slices belong to the caller again: hold none of them until the next entry.
	clear(w.all)
	if cap(w.all) > storedKeptMax {
		w.all = nil
	}
	s.committedTS = w.ts
	s.bytesWritten.Add(w.bytes)
	s.metrics.commit.Observe(time.Since(start))
	return nil
}
