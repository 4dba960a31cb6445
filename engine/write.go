package engine

import (
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"kvstore/internal/failpoint"
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

// entriesKeptMax bounds the memory that write keeps from entry to entry, at 80 bytes each: 1.3 MB.
const entriesKeptMax = 1 << 14

// write gathers the writes of one entry. There is one per store, reused, and owned by the applier.
type write struct {
	s  *store
	ts uint64

	entries []badger.Entry
	deletes []bool
	bytes   int64
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
	w.ts = ts
	w.entries = w.entries[:0]
	w.deletes = w.deletes[:0]
	w.bytes = 0
	return w
}

// set stores key. It takes ownership of both slices until the commit returns. A key may be set or
// deleted at most once per entry (two writes of one key and ts would have no order across a split). The
// value must be non-empty, so that an empty value read back is always damage, and at most
// valueBytesMax() long: anything else panics.
func (w *write) set(key, value []byte) {
	if len(value) == 0 || len(value) > w.s.valueBytesMax() {
		panic(fmt.Sprintf("BUG: stored value of %d bytes, must be 1 to %d", len(value), w.s.valueBytesMax()))
	}
	w.entries = append(w.entries, badger.Entry{Key: key, Value: value})
	w.deletes = append(w.deletes, false)
	w.bytes += int64(len(key) + len(value))
}

// del deletes key, under the rules of set.
func (w *write) del(key []byte) {
	w.entries = append(w.entries, badger.Entry{Key: key})
	w.deletes = append(w.deletes, true)
	w.bytes += int64(len(key))
}

// commit stores what was gathered and the marker, in one Badger transaction or, when that is too large,
// in several at the same ts with the marker in the last. Readers see nothing of it before publish; a
// crash in between leaves a part that the replay of the same entry overwrites. After an error the store
// holds an unknown part of the entry: the caller must stop for good.
//
// It keeps nothing of the slices once it has returned.
func (w *write) commit(marker []byte) error {
	s := w.s
	if err := s.failure(); err != nil {
		return err
	}
	if err := failpoint.Err(failpoint.CommitBefore); err != nil {
		return err
	}
	start := time.Now()
	w.set(markerKey, marker)
	for from := 0; from < len(w.entries); {
		to, err := w.commitSome(from)
		if err != nil {
			return fmt.Errorf("cannot commit entry at ts %d: %w", w.ts, err)
		}
		s.metrics.txns.Add(1)
		from = to
	}
	if err := failpoint.Err(failpoint.CommitAfter); err != nil {
		return err
	}
	// The entries' slices belong to the caller again: hold none of them until the next entry.
	clear(w.entries)
	if cap(w.entries) > entriesKeptMax {
		w.entries, w.deletes = nil, nil
	}
	s.committedTS = w.ts
	s.addBytesWritten(w.bytes)
	s.metrics.commit.Observe(time.Since(start))
	return nil
}

// commitSome commits the longest run of entries from index from that fits one transaction and returns
// the index behind it.
func (w *write) commitSome(from int) (to int, err error) {
	s := w.s
	txn := s.db.NewTransactionAt(w.ts, true)
	// Discard after a commit does nothing.
	defer txn.Discard()
	var bytes int64
	for to = from; to < len(w.entries); to++ {
		e := &w.entries[to]
		bytes += int64(len(e.Key)+len(e.Value)) + entryOverheadBytes
		if to > from && (bytes > s.txnBytesMax || to-from >= s.txnCountMax) {
			break
		}
		if w.deletes[to] {
			err = txn.Delete(e.Key)
		} else {
			err = txn.SetEntry(e)
		}
		if err != nil {
			return 0, err
		}
	}
	return to, txn.CommitAt(w.ts, nil)
}
