package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"kvstore/internal/record"
	"kvstore/wire"
)

// Whatever the small files of a group hold, each is refused as damage, or is what would be written.
func FuzzStoredFiles(f *testing.F) {
	cp := appendCheckpoint(nil, &goldenCheckpoint)
	f.Add(cp, true)
	f.Add(record.Append(nil, cp), false)
	f.Add(binary.LittleEndian.AppendUint64(nil, 3), true)
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63), true)
	f.Add([]byte("goroutine 1 [running]:\ngithub.com/dgraph-io/badger/v4.x"), false)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		payload := b
		if seal {
			b = record.Append(nil, b)
		}
		dir := t.TempDir()
		write := func(name string) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		write(checkpointFile)
		cp, found, err := readCheckpoint(dir)
		switch {
		case err == nil && (!found || seal && !bytes.Equal(appendCheckpoint(nil, &cp), payload)):
			t.Fatalf("%x is %+v, found %v", payload, cp, found)
		case err != nil && (found || !errors.Is(err, ErrDamaged) && !errors.Is(err, errCheckpointFormat) && !errors.Is(err, record.ErrKey)):
			t.Fatalf("found %v beside %v", found, err)
		}
		n, err := readOpening(write(openingFile))
		if n < 0 || n > openFailuresMax || err == nil && seal && len(payload) != 8 || err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d failed openings, %v", n, err)
		}
		if text, err := readTrace(write(deathFile)); err != nil || text != string(b[:min(len(b), deathTraceBytesMax)]) {
			t.Fatalf("a trace of %d bytes, %v", len(text), err)
		}
	})
}

// Whatever bytes stand as a key, they are taken apart into what makes the same key, or not at all; and can be shown.
func FuzzStoredKeys(f *testing.F) {
	recordKey := appendRecordKey(nil, 7, []byte("key"))
	f.Add(recordKey)
	f.Add(appendChunkKey(nil, recordKey, 3))
	f.Add(appendExpiryKey(nil, testEpoch, recordKey))
	f.Add(appendSessionKey(nil, 9))
	f.Add(appendJournalKey(nil, journalPlace{9, 2}))
	f.Add(appendOnceKey(nil, oncePlace{9, 2}))
	f.Add([]byte{familyChunk, 0, 0, 0, 1, 0xff, 0xff, 'k'})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, key []byte) {
		if deadline, tail, ok := splitExpiryKey(key); ok {
			if again := appendExpiryKey(nil, deadline, append([]byte{familyRecord}, tail...)); !bytes.Equal(again, key) {
				t.Fatalf("%x comes back as %x", key, again)
			}
		}
		if id, ok := splitSessionKey(key); ok && !bytes.Equal(appendSessionKey(nil, id), key) {
			t.Fatalf("%x is not session %d", key, id)
		}
		if p, ok := splitJournalKey(key); ok && !bytes.Equal(appendJournalKey(nil, p), key) {
			t.Fatalf("%x is not place %v", key, p)
		}
		if p, ok := splitOnceKey(key); ok && !bytes.Equal(appendOnceKey(nil, p), key) {
			t.Fatalf("%x is not place %v of an idempotency key", key, p)
		}
		k := describeKey(key)
		if k.Kind == "" || storedKeyForPeople(key) == "" || len(key) > 0 && k.String() == "" {
			t.Fatalf("%x cannot be shown", key)
		}
		if k.Kind == kindRecord && !bytes.Equal(appendRecordKey(nil, k.Namespace, k.Key), key) {
			t.Fatalf("%x is shown as %+v", key, k)
		}
		keyForPeople(key)
	})
}

// Whatever became of a table's file, reading it ends with all of it checked, and no part that was changed passes.
func FuzzCheckTable(f *testing.F) {
	o := engineOptions(f, f.TempDir())
	d := newDriver(f, o)
	for i := range 60 {
		d.put(fmt.Sprintf("key/%02d", i), fmt.Sprint(wire.Checksum([]byte{byte(i)})))
	}
	if err := d.e.CheckpointNow(f.Context()); err != nil {
		f.Fatal(err)
	}
	meta, stream := snapshotOf(f, d.e)
	received, err := d.e.ReceiveSnapshot(f.Context(), meta, bytes.NewReader(stream)) // its store is written as tables
	if err != nil {
		f.Fatal(err)
	}
	tables, err := listedTables(received.in.store.genDir)
	if err != nil || len(tables) == 0 {
		f.Fatalf("%d tables, %v", len(tables), err)
	}
	whole, err := os.ReadFile(tables[0])
	if err != nil {
		f.Fatal(err)
	}
	received.Discard()
	for _, at := range []int{0, 10, len(whole) / 2, len(whole) - 1, len(whole) - 6, len(whole) - 20, len(whole) - 200} {
		f.Add(uint16(at), byte(1), uint16(0), byte(0), uint16(0))
	}
	f.Add(uint16(0), byte(0), uint16(0), byte(0), uint16(1))
	f.Add(uint16(0), byte(0), uint16(0), byte(0), uint16(0))
	f.Fuzz(func(t *testing.T, at uint16, flip byte, and uint16, flipToo byte, cut uint16) {
		b := bytes.Clone(whole)
		b[int(at)%len(b)] ^= flip
		b[int(and)%len(b)] ^= flipToo
		b = b[:len(b)-int(cut)%(len(b)+1)]
		path := filepath.Join(t.TempDir(), "000001.sst")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		spent, found := 0, []DamagedRange(nil)
		if err := checkTable(path, func(n int) error { spent += n; return nil }, func(d DamagedRange) { found = append(found, d) }); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b, whole) != (len(found) == 0) {
			t.Fatalf("changed %v, found %v", !bytes.Equal(b, whole), found)
		}
		if spent > 2*len(b)+1<<12 {
			t.Fatalf("%d bytes were read of %d", spent, len(b))
		}
		for _, d := range found {
			if d.Cause == "" || d.String() == "" {
				t.Fatalf("%+v", d)
			}
		}
	})
}
