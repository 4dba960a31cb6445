package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
)

func TestCommit_EntryBeyondOneTransaction_IsSplitAndSeenAsOne(t *testing.T) {
	for name, entry := range map[string]func(s *store) []mutation{
		"by bytes": func(s *store) (entry []mutation) {
			for i := range 60 {
				entry = append(entry, mutation{fmt.Appendf(nil, "D%04d", i), bytes.Repeat([]byte{byte(i)}, 10<<10)})
			}
			return entry
		},
		"by count": func(s *store) (entry []mutation) {
			for i := range 3 * s.txnCountMax {
				entry = append(entry, mutation{fmt.Appendf(nil, "D%06d", i), []byte("v")})
			}
			return entry
		},
		"largest values": func(s *store) (entry []mutation) {
			for i := range 5 {
				entry = append(entry, mutation{fmt.Appendf(nil, "D%04d", i), bytes.Repeat([]byte{byte(i)}, s.valueBytesMax())})
			}
			return entry
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpenStore(t, storeOptions(t, dir))
			mustApply(t, s, 1, 1, 10)
			before, _, err := contents(s, 0)
			if err != nil {
				t.Fatal(err)
			}
			p := testPoint(11)
			w := s.begin(p.ts)
			after := maps.Clone(before)
			after.apply(entry(s))
			for _, m := range entry(s) {
				w.set(m.key, m.value)
			}
			w.del([]byte("D0250"))
			delete(after, "D0250")
			if err := w.commit(storeTestMarker(p)); err != nil {
				t.Fatal(err)
			}
			got, _, err := contents(s, 0)
			if err != nil {
				t.Fatal(err)
			}
			if d := difference(got, before); d != "" {
				t.Fatalf("before publish: %s", d)
			}
			s.publish(p, storeTestMarker(p))
			for range 2 {
				if got, _, err = contents(s, 0); err != nil {
					t.Fatal(err)
				}
				if d := difference(got, after); d != "" {
					t.Fatalf("after publish: %s", d)
				}
				if err := s.checkpointNow(context.Background()); err != nil {
					t.Fatal(err)
				}
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
				s = mustOpenStore(t, storeOptions(t, dir))
			}
		})
	}
}

// Our limits are below Badger's with the memtable sizes at both ends and in between: a transaction filled
// to our limit in either dimension commits.
func TestTxnLimits_AnyMemtable_StayBelowBadgers(t *testing.T) {
	for _, memtable := range []int64{memtableBytesMin, 5 << 20, memtableBytesDefault, memtableBytesMax} {
		// Badger's own estimate of n entries: key, value and 2 of meta (structs.go), and 10 for the version.
		n := int64(txnCountMax(memtable))
		if limit := badgerBatchBytes(memtable); n+2 >= limit/badgerNodeBytes || txnBytesMax(memtable) >= limit {
			t.Errorf("memtable %d: %d entries, %d bytes against Badger's %d, %d", memtable, n, txnBytesMax(memtable), limit/badgerNodeBytes, limit)
		}
	}
}

// A drain that was interrupted between its batches leaves a part of an entry above the checkpoint.
// Replaying the entry must end in the same state as an uninterrupted one.
func TestCommit_PartOfAnEntryLeftByACrash_ReplayOverwritesIt(t *testing.T) {
	const seed = 3
	dir := t.TempDir()
	s := mustOpenStore(t, storeOptions(t, dir))
	mustApply(t, s, seed, 1, 20)
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Entry 21 in part: some of its keys, no marker, never published; then nothing.
	entry := testEntry(seed, 21)
	d := drainer{db: s.db, bytesMax: s.txnBytesMax, countMax: s.txnCountMax}
	if err := errors.Join(d.put(entry[0].key, []byte("half an entry"), testPoint(21).ts), d.flush()); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpenStore(t, storeOptions(t, dir))
	if cp, _ := s.recovered(); cp.Index != 20 {
		t.Fatalf("recovered %d, want 20", cp.Index)
	}
	for last := uint64(20); last <= 30; last++ {
		got, _, err := contents(s, 0)
		if err != nil {
			t.Fatal(err)
		}
		if d := difference(got, modelAt(seed, last)); d != "" {
			t.Fatalf("at %d: %s", last, d)
		}
		mustApply(t, s, seed, last+1, last+1)
	}
}

func TestGetAt_ApplierReadsThePreviousState_NotItsOwnEntry(t *testing.T) {
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	key := []byte("Dk")
	for i := uint64(1); i <= 3; i++ {
		if err := applyEntry(s, i, []mutation{{key, fmt.Appendf(nil, "v%d", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint64(1); i <= 3; i++ {
		var got string
		found, err := s.getAt(testPoint(i).ts, key, func(v []byte) error { got = string(v); return nil })
		if err != nil || !found || got != fmt.Sprintf("v%d", i) {
			t.Fatalf("at %d: %q, %v, %v", i, got, found, err)
		}
	}
	if found, err := s.getAt(testPoint(1).ts-1, key, nil); found || err != nil {
		t.Fatalf("below the first: %v, %v", found, err)
	}
}
