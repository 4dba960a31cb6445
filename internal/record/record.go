package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Layout of a record, integers little-endian:
//
//	 0        4        8        12                        24
//	+--------+--------+--------+-------------------------+-----------------+
//	| length | crc    | key id | nonce (12 bytes)        | payload         |
//	+--------+--------+--------+-------------------------+-----------------+
//	  u32      u32      u32      zero when key id is 0     length bytes
//
// crc is CRC32C (Castagnoli) of the header with the crc field left out, then the payload: bytes [0,4),
// [8,24), [24,24+length). It covers the length, so a changed length cannot make two records look like
// one, and it is never 0 for an all-zero header, so preallocated space does not decode as empty records.
//
// Invariant: one payload has exactly one encoding (Append of a decoded payload gives the same bytes).
const (
	// HeaderSize is the number of bytes that a record adds to its payload.
	HeaderSize = 24

	// PayloadMax is the largest payload in bytes that Append takes and Decode accepts. 64 MiB holds the
	// largest value (16 MiB) four times over, and is what a length that lies can cost in memory.
	PayloadMax = 64 << 20

	crcOffset   = 4
	keyIDOffset = 8
	nonceOffset = 12

	// keyIDClear marks a payload that is not encrypted.
	keyIDClear = 0
)

var (
	// ErrTorn says that the bytes end before the record does: a write that a crash cut short, or a
	// damaged length.
	ErrTorn = errors.New("record is cut short")

	// ErrCorrupt says that the bytes of a whole record are not what was written.
	ErrCorrupt = errors.New("record is corrupt")

	// ErrTooLarge says that the length exceeds the cap: a damaged length, or a file that is not ours.
	ErrTooLarge = errors.New("record is larger than its limit")

	// ErrKey says that the record is intact but sealed with a key that this process does not hold.
	ErrKey = errors.New("record is sealed with an unknown key")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends payload as one record to dst and returns the extended slice. It allocates only when dst
// must grow. A payload above PayloadMax is a broken promise of the caller and panics.
func Append(dst, payload []byte) []byte {
	if len(payload) > PayloadMax {
		panic(fmt.Sprintf("BUG: record payload of %d bytes exceeds %d", len(payload), PayloadMax))
	}
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, make([]byte, HeaderSize-crcOffset)...) // crc, key id 0, nonce 0
	dst = append(dst, payload...)
	b := dst[start:]
	binary.LittleEndian.PutUint32(b[crcOffset:], checksum(b))
	return dst
}

// Decode returns the payload of the first record in src and what follows it. Both are views of src.
// Errors: ErrTorn, ErrTooLarge (above PayloadMax), ErrCorrupt, ErrKey; then payload and rest are nil.
func Decode(src []byte) (payload, rest []byte, err error) {
	return decode(src, PayloadMax)
}

// decode is Decode with the cap payloadMax.
func decode(src []byte, payloadMax uint64) (payload, rest []byte, err error) {
	if len(src) < HeaderSize {
		return nil, nil, fmt.Errorf("cannot decode record: header has %d of %d bytes: %w", len(src), HeaderSize, ErrTorn)
	}
	n := uint64(binary.LittleEndian.Uint32(src))
	if n > payloadMax {
		return nil, nil, fmt.Errorf("cannot decode record: length %d exceeds %d: %w", n, payloadMax, ErrTooLarge)
	}
	if have := uint64(len(src) - HeaderSize); have < n {
		return nil, nil, fmt.Errorf("cannot decode record: payload has %d of %d bytes: %w", have, n, ErrTorn)
	}
	b := src[:HeaderSize+int(n)]
	if got, want := checksum(b), binary.LittleEndian.Uint32(b[crcOffset:]); got != want {
		return nil, nil, fmt.Errorf("cannot decode record of %d bytes: CRC is %08x, header says %08x: %w", n, got, want, ErrCorrupt)
	}
	// Only behind the CRC: a damaged key id must read as damage, not as a missing key.
	if id := binary.LittleEndian.Uint32(b[keyIDOffset:]); id != keyIDClear {
		return nil, nil, fmt.Errorf("cannot decode record: key id %d: %w", id, ErrKey)
	}
	if [HeaderSize - nonceOffset]byte(b[nonceOffset:HeaderSize]) != [HeaderSize - nonceOffset]byte{} {
		return nil, nil, fmt.Errorf("cannot decode record: nonce in a clear record: %w", ErrCorrupt)
	}
	return b[HeaderSize:len(b):len(b)], src[len(b):], nil
}

// checksum returns the CRC32C of the record b without its crc field. REQUIRES: len(b) >= HeaderSize.
func checksum(b []byte) uint32 {
	crc := crc32.Update(0, castagnoli, b[:crcOffset])
	return crc32.Update(crc, castagnoli, b[keyIDOffset:])
}
