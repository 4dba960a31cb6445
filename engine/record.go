package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"kvstore/wire"
)

// ErrRecordDamaged says that stored bytes fail their check. The store below reads damage as absence or as
// an empty value, so every stored value carries a checksum that also covers its key: what fails it is
// reported as damage, never as "not found".
var ErrRecordDamaged = errors.New("stored bytes are damaged")

// ErrDigestMismatch says that the state differs from what its log makes of it.
var ErrDigestMismatch = errors.New("state digest doesn't match")

// recordFormat is the version of the stored record and of the chunk, packedFormat that of a record whose value is
// compressed.
const (
	recordFormat = 1
	packedFormat = 2
)

// recordHeaderBytes is the length of a stored record's header; numbers are little endian:
//
//	 0 u8  format      recordFormat
//	 1 u8  0
//	 2 u16 ext_len
//	 4 u32 value_len   as its writer sent it
//	 8 u32 chunks      0: the value follows; else it stands in that many chunk keys
//	12 u32 crc32c      over the record key, then all bytes of the record but these four
//	16 40  wire.Meta
//	56     kept elements | value
//
// With packedFormat the value is compressed, as a whole before it is cut into chunks, and the header is longer:
//
//	 1 u8  codec       wire.Codec, not none
//	56 u32 packed_len  of the compressed value; less than value_len
//	60     kept elements | compressed value
const (
	recordHeaderBytes = 16 + wire.MetaBytes
	packedHeaderBytes = recordHeaderBytes + 4
)

// chunkHeaderBytes is the length of a chunk's header:
//
//	 0 u8  format      recordFormat
//	 1 3×0
//	 4 u32 crc32c      over the chunk key, then all bytes of the chunk but these four
//	 8 u64 version     of the record: a piece of another version is damage
//	16     data
const chunkHeaderBytes = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// storedRecord is a decoded record. Slices are views over what it was decoded from.
type storedRecord struct {
	wire.Record
	valueLen uint32
	chunks   uint32 // 0: Value or packed holds the value

	// Of a compressed value, which Value doesn't hold then. In a record that is staged, codec is how Value is to be
	// compressed when it is stored, if that pays.
	codec     wire.Codec
	packedLen uint32
	packed    []byte
}

// inline reports whether Value holds the value of a decoded record: appendValue gives that of any.
func (r *storedRecord) inline() bool { return r.chunks == 0 && r.codec == wire.CodecNone }

// body is what is stored of the value, and bodyLen its length.
func (r *storedRecord) body() []byte {
	if r.codec != wire.CodecNone {
		return r.packed
	}
	return r.Value
}

func (r *storedRecord) bodyLen() uint32 {
	if r.codec != wire.CodecNone {
		return r.packedLen
	}
	return r.valueLen
}

// expired reports whether the record counts as absent at log time t.
func (r *storedRecord) expired(t int64) bool { return r.Meta.ExpiresAt != 0 && r.Meta.ExpiresAt <= t }

// liveBytes is what a record counts for in the statistics: what its writer sent.
func liveBytes(recordKey []byte, r *storedRecord) uint64 {
	return uint64(len(recordKey)-recordKeyPrefixBytes) + uint64(len(r.Ext)) + uint64(r.valueLen)
}

// storedBytes is the length of r when it is encoded, or a little more.
func (r *storedRecord) storedBytes() int { return packedHeaderBytes + len(r.Ext) + len(r.body()) }

// appendRecord appends the stored form of r under recordKey. REQUIRES: r.chunks > 0 and r.body() empty, or
// r.chunks 0 and r.bodyLen() = len(r.body()).
func appendRecord(dst, recordKey []byte, r *storedRecord) []byte {
	at := len(dst)
	format := byte(recordFormat)
	if r.codec != wire.CodecNone {
		format = packedFormat
	}
	dst = append(dst, format, byte(r.codec))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Ext)))
	dst = binary.LittleEndian.AppendUint32(dst, r.valueLen)
	dst = binary.LittleEndian.AppendUint32(dst, r.chunks)
	dst = append(dst, 0, 0, 0, 0)
	dst = wire.AppendMeta(dst, &r.Meta)
	if format == packedFormat {
		dst = binary.LittleEndian.AppendUint32(dst, r.packedLen)
	}
	dst = append(dst, r.Ext...)
	dst = append(dst, r.body()...)
	b := dst[at:]
	binary.LittleEndian.PutUint32(b[12:], checksumAround(recordKey, b, 12))
	return dst
}

// decodeRecord checks and reads a stored record. It fails with ErrRecordDamaged only.
func decodeRecord(recordKey, b []byte, r *storedRecord) error {
	if err := decodeRecordHead(b, r); err != nil {
		return fmt.Errorf("record of key %q: %w", keyForPeople(recordKey), err)
	}
	if got, want := binary.LittleEndian.Uint32(b[12:]), checksumAround(recordKey, b, 12); got != want {
		return fmt.Errorf("record of key %q: %w: checksum %#x, computed %#x over %d bytes", keyForPeople(recordKey), ErrRecordDamaged, got, want, len(b))
	}
	return nil
}

// decodeRecordHead reads a stored record whose checksum has been verified before, as the cache's have.
func decodeRecordHead(b []byte, r *storedRecord) error {
	if len(b) < recordHeaderBytes {
		return fmt.Errorf("%w: %d bytes", ErrRecordDamaged, len(b))
	}
	*r = storedRecord{
		valueLen: binary.LittleEndian.Uint32(b[4:]),
		chunks:   binary.LittleEndian.Uint32(b[8:]),
		codec:    wire.Codec(b[1]),
	}
	header := recordHeaderBytes
	switch {
	case b[0] == recordFormat && r.codec == wire.CodecNone:
	case b[0] == packedFormat && r.codec != wire.CodecNone && r.codec < codecs && len(b) >= packedHeaderBytes:
		header = packedHeaderBytes
		if r.packedLen = binary.LittleEndian.Uint32(b[recordHeaderBytes:]); r.packedLen == 0 || r.packedLen >= r.valueLen {
			return fmt.Errorf("%w: a value of %d bytes in %d of %s", ErrRecordDamaged, r.valueLen, r.packedLen, r.codec)
		}
	default:
		return fmt.Errorf("%w: format %d.%d in %d bytes; this build reads %d and %d", ErrRecordDamaged, b[0], b[1], len(b), recordFormat, packedFormat)
	}
	ext := int(binary.LittleEndian.Uint16(b[2:]))
	inline := uint64(r.bodyLen())
	if r.chunks > 0 {
		inline = 0
	}
	if r.valueLen > wire.ValueBytesMax || r.chunks > r.bodyLen() || uint64(len(b)) != uint64(header+ext)+inline {
		return fmt.Errorf("%w: %d bytes with %d of elements and a value of %d, stored in %d, in %d pieces", ErrRecordDamaged, len(b), ext, r.valueLen, r.bodyLen(), r.chunks)
	}
	if err := wire.DecodeMeta(b[16:recordHeaderBytes], &r.Meta); err != nil {
		return fmt.Errorf("%w: %w", ErrRecordDamaged, err)
	}
	body := b[header:]
	r.Ext, body = body[:ext:ext], body[ext:]
	if r.codec != wire.CodecNone {
		r.packed = body
	} else {
		r.Value = body
	}
	return nil
}

// appendChunk appends the stored form of one piece of a value.
func appendChunk(dst, chunkKey []byte, version wire.Revision, data []byte) []byte {
	at := len(dst)
	dst = append(dst, recordFormat, 0, 0, 0, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, version)
	dst = append(dst, data...)
	b := dst[at:]
	binary.LittleEndian.PutUint32(b[4:], checksumAround(chunkKey, b, 4))
	return dst
}

// decodeChunk checks a stored piece and returns its data.
func decodeChunk(chunkKey, b []byte, version wire.Revision) (data []byte, err error) {
	if len(b) <= chunkHeaderBytes || b[0] != recordFormat || b[1]|b[2]|b[3] != 0 {
		return nil, fmt.Errorf("%w: piece of %d bytes", ErrRecordDamaged, len(b))
	}
	if got, want := binary.LittleEndian.Uint32(b[4:]), checksumAround(chunkKey, b, 4); got != want {
		return nil, fmt.Errorf("%w: piece with checksum %#x, computed %#x over %d bytes", ErrRecordDamaged, got, want, len(b))
	}
	if v := binary.LittleEndian.Uint64(b[8:]); v != version {
		return nil, fmt.Errorf("%w: piece of version %d in a record of version %d", ErrRecordDamaged, v, version)
	}
	return b[chunkHeaderBytes:], nil
}

// getter reads one stored value; found is false for an absent key. fn may be given a view.
type getter interface {
	get(key []byte, fn func(value []byte) error) (found bool, err error)
}

// appendValue appends the value of a decoded record, wherever it stands and however it is compressed; pieces are read
// from g. What r has of it may stand in dst's memory, before what is appended.
func appendValue(dst []byte, g getter, recordKey []byte, r *storedRecord) ([]byte, error) {
	if r.inline() {
		return append(dst, r.Value...), nil
	}
	if r.codec == wire.CodecNone {
		return appendChunks(dst, g, recordKey, r)
	}
	packed := r.packed
	if r.chunks > 0 {
		buf := packedBufs.Get().(*[]byte)
		defer func() {
			if cap(*buf) <= packedKeptMax {
				packedBufs.Put(buf)
			}
		}()
		var err error
		if *buf, err = appendChunks((*buf)[:0], g, recordKey, r); err != nil {
			return dst, err
		}
		packed = *buf
	}
	out, err := unpack(dst, r.codec, packed, int(r.valueLen))
	if err != nil {
		return out, fmt.Errorf("value of key %q: %w", keyForPeople(recordKey), err)
	}
	return out, nil
}

// packedBufs hold compressed values that were cut, put together again; get and put are both in appendValue.
var packedBufs = sync.Pool{New: func() any { return new([]byte) }}

// appendChunks appends what is stored of the value of a chunked record, read piece by piece from g.
func appendChunks(dst []byte, g getter, recordKey []byte, r *storedRecord) ([]byte, error) {
	start, whole := len(dst), int(r.bodyLen())
	// The length was checked against its limit and by the record's checksum: it is safe to allocate.
	if room := cap(dst) - start; room < whole {
		dst = append(make([]byte, 0, start+whole), dst...)
	}
	var key []byte
	for n := range r.chunks {
		key = appendChunkKey(key[:0], recordKey, n)
		found, err := g.get(key, func(stored []byte) error {
			data, err := decodeChunk(key, stored, r.Meta.Version)
			if err != nil {
				return err
			}
			if len(data) > whole-(len(dst)-start) {
				return fmt.Errorf("%w: pieces exceed the value's %d bytes", ErrRecordDamaged, whole)
			}
			dst = append(dst, data...)
			return nil
		})
		if err == nil && !found {
			err = fmt.Errorf("%w: piece is missing", ErrRecordDamaged)
		}
		if err != nil {
			return dst[:start], fmt.Errorf("piece %d of %d of key %q: %w", n, r.chunks, keyForPeople(recordKey), err)
		}
	}
	if got := len(dst) - start; got != whole {
		return dst[:start], fmt.Errorf("value of key %q: %w: %d bytes of %d", keyForPeople(recordKey), ErrRecordDamaged, got, whole)
	}
	return dst, nil
}

// appendSeal ends a session, a journal record or a marker, which is dst[at:], with the checksum over its
// key and its bytes.
func appendSeal(dst []byte, at int, key []byte) []byte {
	c := crc32.Update(0, castagnoli, key)
	return binary.LittleEndian.AppendUint32(dst, crc32.Update(c, castagnoli, dst[at:]))
}

// openSealed checks what appendSeal wrote and returns the bytes before the checksum.
func openSealed(key, b []byte) (body []byte, err error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes under key %x", ErrRecordDamaged, len(b), key)
	}
	body = b[:len(b)-4]
	c := crc32.Update(0, castagnoli, key)
	c = crc32.Update(c, castagnoli, body)
	if got := binary.LittleEndian.Uint32(b[len(body):]); got != c {
		return nil, fmt.Errorf("%w: checksum %#x under key %x, computed %#x", ErrRecordDamaged, got, key, c)
	}
	return body, nil
}

// checksumAround computes the checksum over key and b but for the four bytes at at.
func checksumAround(key, b []byte, at int) uint32 {
	c := crc32.Update(0, castagnoli, key)
	c = crc32.Update(c, castagnoli, b[:at])
	return crc32.Update(c, castagnoli, b[at+4:])
}

func keyForPeople(recordKey []byte) []byte {
	if len(recordKey) <= recordKeyPrefixBytes {
		return recordKey
	}
	return userKey(recordKey)
}
