package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
)

// Meta is what the store keeps about a record besides its bytes. Times are Unix microseconds of log
// time; ExpiresAt is 0 for a record that never expires.
type Meta struct {
	Version   Revision
	CreatedAt int64
	UpdatedAt int64
	ExpiresAt int64
	// Checksum is the xxhash64 of the value.
	Checksum uint64
}

// MetaBytes is the length of an encoded Meta.
const MetaBytes = 40

// AppendMeta appends the five fields in order of declaration, 8 bytes each.
func AppendMeta(dst []byte, m *Meta) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, m.Version)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.CreatedAt))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.UpdatedAt))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.ExpiresAt))
	return binary.LittleEndian.AppendUint64(dst, m.Checksum)
}

// AppendExtMeta appends Meta as an element of an extension block.
func AppendExtMeta(dst []byte, m *Meta) []byte {
	return AppendMeta(append(dst, byte(ExtMeta), MetaBytes), m)
}

// DecodeMeta reads what AppendMeta wrote.
func DecodeMeta(b []byte, m *Meta) error {
	if len(b) != MetaBytes {
		return fmt.Errorf("%w: meta of %d bytes", ErrCorrupt, len(b))
	}
	m.Version = binary.LittleEndian.Uint64(b[0:])
	m.CreatedAt = int64(binary.LittleEndian.Uint64(b[8:]))
	m.UpdatedAt = int64(binary.LittleEndian.Uint64(b[16:]))
	m.ExpiresAt = int64(binary.LittleEndian.Uint64(b[24:]))
	m.Checksum = binary.LittleEndian.Uint64(b[32:])
	return nil
}

// Record is a stored record as a read returns it. Ext holds the elements kept with the value: ExtTag,
// ExtContentType and ExtEncoding, as the writer sent them. Slices are views; see who returned them.
type Record struct {
	Meta  Meta
	Ext   []byte
	Value []byte
}

// Checksum is the checksum of values that Meta and ExtChecksum carry: xxhash64 with seed 0.
func Checksum(value []byte) uint64 { return xxhash.Sum64(value) }

// ValidKey reports whether key is valid UTF-8 of 1 to KeyBytesMax bytes.
func ValidKey(key []byte) bool {
	return len(key) >= 1 && len(key) <= KeyBytesMax && utf8.Valid(key)
}
