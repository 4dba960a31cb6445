package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/y"
)

// Tables are checked by reading their files, not through Badger's mapping: a sector that can't be read is then
// an error, where touching its page would kill the process, and damage can be told apart by block.
//
// A table, numbers big endian:
//
//	blocks | index | u32 index length | checksum of the index | u32 its length
//	a block: entries | u32 offsets | u32 count | checksum of all before | u32 its length
//
// A checksum is a protocol buffer {1: algorithm, 2: sum}; the algorithm is CRC32C, 0.

// errTableDamaged says that a part of a table isn't what Badger wrote.
var errTableDamaged = errors.New("checksum doesn't match")

// DamagedRange is a part of the stored state that can't be read: a block of a table, or all of one.
type DamagedRange struct {
	// File is the table's path.
	File string
	// Whole: the table's index is damaged, or the file is missing; nothing in it can be found.
	Whole bool
	// From and To are the stored keys that bound it, From ≤ key < To, as people read them; empty when they
	// are not known, or for the end of the table.
	From, To string
	// Cause says what is wrong.
	Cause string

	from, to []byte // nil: unknown
}

// String tells it in one line.
func (d DamagedRange) String() string {
	switch {
	case d.Whole:
		return fmt.Sprintf("all of %s: %s", filepath.Base(d.File), d.Cause)
	case d.To == "":
		return fmt.Sprintf("from %s to the end of %s: %s", d.From, filepath.Base(d.File), d.Cause)
	}
	return fmt.Sprintf("from %s up to %s in %s: %s", d.From, d.To, filepath.Base(d.File), d.Cause)
}

// checkTable reads a table's file and checks all its checksums. It calls found for each damaged part, and
// spend with the length of each part before it is read; an error of spend ends it and is returned.
func checkTable(path string, spend func(n int) error, found func(DamagedRange)) error {
	whole := func(err error) error {
		found(DamagedRange{File: path, Whole: true, Cause: err.Error()})
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return whole(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	if err := spend(1 << 10); err != nil {
		return err
	}
	index, err := readTableIndex(f)
	if err != nil {
		return whole(fmt.Errorf("its index: %w", err))
	}
	if err := spend(len(index)); err != nil {
		return err
	}
	table := fb.GetRootAsTableIndex(index, 0)
	var buf []byte
	for i := range table.OffsetsLength() {
		var at, next fb.BlockOffset
		if !table.Offsets(&at, i) {
			return whole(fmt.Errorf("its index has no block %d", i))
		}
		if err := spend(int(at.Len())); err != nil {
			return err
		}
		if n := int(at.Len()); cap(buf) < n {
			buf = make([]byte, n)
		}
		block := buf[:at.Len()]
		_, err := f.ReadAt(block, int64(at.Offset()))
		if err == nil {
			err = checkTableBlock(block)
		}
		if err == nil {
			continue
		}
		d := DamagedRange{File: path, Cause: fmt.Sprintf("block %d: %v", i, err)}
		d.from = append(d.from, y.ParseKey(at.KeyBytes())...)
		d.From = storedKeyForPeople(d.from)
		if table.Offsets(&next, i+1) && i+1 < table.OffsetsLength() {
			// The next block may begin with an older version of the same key.
			d.to = append(append(d.to, y.ParseKey(next.KeyBytes())...), 0)
			d.To = storedKeyForPeople(d.to[:len(d.to)-1])
		}
		found(d)
	}
	return nil
}

// readTableIndex reads the index of a table, which its checksum proves.
func readTableIndex(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	end := info.Size()
	// take reads the n bytes before end.
	take := func(n uint32) ([]byte, error) {
		if int64(n) > end {
			return nil, fmt.Errorf("%w: %d bytes before place %d of the file", errTableDamaged, n, end)
		}
		end -= int64(n)
		b := make([]byte, n)
		_, err := f.ReadAt(b, end)
		return b, err
	}
	takeLength := func() (uint32, error) {
		b, err := take(4)
		if err != nil {
			return 0, err
		}
		return binary.BigEndian.Uint32(b), nil
	}
	n, err := takeLength()
	if err != nil {
		return nil, err
	}
	if n > tableChecksumBytesMax {
		return nil, fmt.Errorf("%w: a checksum of %d bytes", errTableDamaged, n)
	}
	sum, err := take(n)
	if err != nil {
		return nil, err
	}
	if n, err = takeLength(); err != nil {
		return nil, err
	}
	index, err := take(n)
	if err != nil {
		return nil, err
	}
	if err := checkTableSum(index, sum); err != nil {
		return nil, err
	}
	if len(index) < 4 { // zeros at the end of a table are a whole checksum of nothing
		return nil, fmt.Errorf("%w: an index of %d bytes", errTableDamaged, len(index))
	}
	return index, nil
}

// tableChecksumBytesMax bounds an encoded checksum: two tags, an enumeration, and a number.
const tableChecksumBytesMax = 2 + 2*binary.MaxVarintLen64

// checkTableBlock checks the checksum at the end of a block.
func checkTableBlock(b []byte) error {
	if len(b) < 4 {
		return fmt.Errorf("%w: a block of %d bytes", errTableDamaged, len(b))
	}
	n := binary.BigEndian.Uint32(b[len(b)-4:])
	b = b[:len(b)-4]
	if n > tableChecksumBytesMax || int(n) > len(b) {
		return fmt.Errorf("%w: a checksum of %d bytes", errTableDamaged, n)
	}
	return checkTableSum(b[:len(b)-int(n)], b[len(b)-int(n):])
}

// checkTableSum compares data with an encoded checksum.
func checkTableSum(data, encoded []byte) error {
	var fields [3]uint64
	for b := encoded; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 < 1 || tag>>3 > 2 || tag&7 != 0 {
			return fmt.Errorf("%w: checksum %x can't be decoded", errTableDamaged, encoded)
		}
		v, m := binary.Uvarint(b[n:])
		if m <= 0 {
			return fmt.Errorf("%w: checksum %x can't be decoded", errTableDamaged, encoded)
		}
		fields[tag>>3], b = v, b[n+m:]
	}
	if fields[1] != 0 {
		return fmt.Errorf("%w: checksum %x is of an unknown kind", errTableDamaged, encoded)
	}
	if got := uint64(crc32.Checksum(data, castagnoli)); got != fields[2] {
		return fmt.Errorf("%w: %#x, computed %#x over %d bytes", errTableDamaged, fields[2], got, len(data))
	}
	return nil
}

// storedKeyForPeople describes a key of the store.
func storedKeyForPeople(key []byte) string {
	k := describeKey(key)
	switch k.Kind {
	case kindRecord, kindPiece:
		return fmt.Sprintf("%s %q of namespace %d", k.Kind, k.Key, k.Namespace)
	}
	return fmt.Sprintf("%s %x", k.Kind, k.Key)
}

// What a key of the store holds.
const (
	kindRecord  = "record"
	kindPiece   = "piece of record"
	kindExpiry  = "expiry index"
	kindSession = "session"
	kindAnswers = "kept answers"
	kindMarker  = "marker"
	kindUsage   = "usage"
	kindUnknown = "unknown key"
)

// DamagedKey is one stored key whose value fails its checks.
type DamagedKey struct {
	// Kind says what the key holds: "record", "piece of record", "expiry index", "session", "kept answers",
	// "marker", "unknown key".
	Kind string
	// Namespace and Key are the user's for records and their pieces; for others Key is the stored key.
	Namespace uint32
	Key       []byte
	// Cause says what is wrong.
	Cause string
}

// String tells it in one line.
func (k DamagedKey) String() string {
	switch k.Kind {
	case kindRecord, kindPiece:
		return fmt.Sprintf("%s %q of namespace %d: %s", k.Kind, k.Key, k.Namespace, k.Cause)
	}
	return fmt.Sprintf("%s %x: %s", k.Kind, k.Key, k.Cause)
}

// describeKey takes a key of the store apart; the slice is a copy.
func describeKey(key []byte) DamagedKey {
	k := DamagedKey{Kind: kindUnknown, Key: append([]byte(nil), key...)}
	if len(key) == 0 {
		return k
	}
	switch key[0] {
	case familyRecord:
		if len(key) >= recordKeyPrefixBytes {
			k.Kind, k.Namespace, k.Key = kindRecord, namespaceOf(key), k.Key[recordKeyPrefixBytes:]
		}
	case familyChunk:
		const fixed = recordKeyPrefixBytes + 2
		if len(key) < fixed {
			break
		}
		if n := int(binary.BigEndian.Uint16(key[recordKeyPrefixBytes:])); len(key) >= fixed+n {
			k.Kind, k.Namespace, k.Key = kindPiece, namespaceOf(key), k.Key[fixed:fixed+n]
		}
	case familyExpiry:
		k.Kind = kindExpiry
	case familySession:
		k.Kind = kindSession
	case familyJournal, familyOnce:
		k.Kind = kindAnswers
	case familyMarker:
		k.Kind = kindMarker
	case familyUsage:
		k.Kind = kindUsage
	}
	return k
}
