package backup

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"kvstore/internal/record"
	"kvstore/wire"
)

// The layout of a backup, integers little endian; docs/backup.md is the same for others:
//
//	8 bytes magic | u16 format | 6 × 0
//	one record of internal/record for each frame: one header, blocks in order, one trailer
//
// A frame is the payload of such a record:
//
//	0 u8 kind | 1 u8 codec | 2 u16 0 | 4 u32 sequence, from 0 | 8 u32 length of the body when unpacked | 12 body
const (
	magic     = "KVBACKUP"
	format    = 1
	headBytes = 16

	frameHeaderBytes = 12

	frameHeader  = 1
	frameBlock   = 2
	frameTrailer = 3

	codecNone = 0
	codecZstd = 2 // as wire.CodecZstd
)

const (
	// blockBytes is the size, before it is compressed, at which a block is closed.
	blockBytes = 1 << 20
	// blockBytesMax is the most that a block may hold: what is below blockBytes, and one largest record more.
	blockBytesMax = blockBytes + recordHeaderBytes + wire.KeyBytesMax + wire.ExtBytesMax + wire.ValueBytesMax

	// headerBytesMax bounds the body of the header's frame: that of a store with as many namespaces as there may be.
	headerBytesMax = headerFixedBytes + wire.NamespacesMax*(namespaceFixedBytes+wire.NamespaceBytesMax)
	// trailerBytesMax bounds the body of the trailer's.
	trailerBytesMax = trailerFixedBytes + wire.NamespacesMax*trailerNamespaceBytes

	headerFixedBytes      = 16 + 8 + 8 + 4
	namespaceFixedBytes   = 1 + 1 + 4 + 8 + 4*8
	blockFixedBytes       = 8
	recordHeaderBytes     = 2 + 2 + 4 + wire.MetaBytes
	trailerFixedBytes     = 8 + 8 + 8 + 4
	trailerNamespaceBytes = 8 + 8
)

// Relations between the bounds: a negative difference does not compile.
const (
	_ = uint(record.PayloadMax - frameHeaderBytes - blockFixedBytes - blockBytesMax)
	_ = uint(blockBytesMax - headerBytesMax)
	_ = uint(blockBytesMax - trailerBytesMax)
	_ = uint(math.MaxUint16 - wire.KeyBytesMax)
	_ = uint(math.MaxUint16 - wire.ExtBytesMax)
)

// Header is what a backup tells about itself before its records.
type Header struct {
	// ClusterID is the cluster that was copied.
	ClusterID [16]byte
	// Revision is that of the state which the copy holds.
	Revision wire.Revision
	// CreatedAt is when the copy was begun, by the clock of who made it.
	CreatedAt time.Time
	// Namespaces are those that the copy holds, in order of their names.
	Namespaces []Namespace
}

// Namespace is a namespace as it was when the copy was begun.
type Namespace struct {
	Name string
	// ID is its number in the store that it was copied from.
	ID uint32
	// CreatedAt is when it was created, in microseconds of Unix time.
	CreatedAt int64
	Settings  wire.NamespaceSettings
}

// Record is one record. Its slices are views that live until the next one is read.
type Record struct {
	Key []byte
	// Meta holds the version and the times in the store that was copied, and the value's checksum.
	Meta wire.Meta
	// Ext holds the elements kept with the value: tags, content type and encoding.
	Ext   []byte
	Value []byte
}

// bytes is what a record counts: its key, what is kept with its value, and its value.
func (r *Record) bytes() uint64 { return uint64(len(r.Key) + len(r.Ext) + len(r.Value)) }

// Count is how much there is of something: Bytes are those of keys, tags, hints and values.
type Count struct {
	Records uint64
	Bytes   uint64
}

func (c *Count) add(r *Record) {
	c.Records++
	c.Bytes += r.bytes()
}

// appendHead appends what a backup begins with.
func appendHead(dst []byte) []byte {
	dst = append(dst, magic...)
	dst = binary.LittleEndian.AppendUint16(dst, format)
	return append(dst, make([]byte, headBytes-len(magic)-2)...)
}

// appendHeader appends the body of the header's frame:
//
//	16 × cluster id | u64 revision | i64 created, Unix µs | u32 namespaces, then of each
//	u8 length of its name | u8 compress | u32 id | i64 created, Unix µs | u64 bytes max | u64 keys max | u64 operations per second | u64 watches max | name
func appendHeader(dst []byte, h *Header) []byte {
	dst = append(dst, h.ClusterID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, h.Revision)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.CreatedAt.UnixMicro()))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(h.Namespaces)))
	for i := range h.Namespaces {
		n := &h.Namespaces[i]
		dst = append(dst, byte(len(n.Name)), byte(n.Settings.Compress))
		dst = binary.LittleEndian.AppendUint32(dst, n.ID)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(n.CreatedAt))
		for _, v := range [...]uint64{n.Settings.BytesMax, n.Settings.KeysMax, n.Settings.OpsPerSecond, n.Settings.WatchesMax} {
			dst = binary.LittleEndian.AppendUint64(dst, v)
		}
		dst = append(dst, n.Name...)
	}
	return dst
}

// decodeHeader reads what appendHeader wrote.
func decodeHeader(b []byte, h *Header) error {
	if len(b) < headerFixedBytes {
		return broken("a header of %d bytes", len(b))
	}
	*h = Header{ClusterID: [16]byte(b), Revision: binary.LittleEndian.Uint64(b[16:]), CreatedAt: time.UnixMicro(int64(binary.LittleEndian.Uint64(b[24:]))).UTC()}
	count := binary.LittleEndian.Uint32(b[32:])
	b = b[headerFixedBytes:]
	if count > wire.NamespacesMax || uint64(count)*namespaceFixedBytes > uint64(len(b)) {
		return broken("a header with %d namespaces in %d bytes", count, len(b))
	}
	for i := range int(count) {
		if len(b) < namespaceFixedBytes || len(b)-namespaceFixedBytes < int(b[0]) {
			return broken("the header ends within namespace %d", i)
		}
		u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
		end := namespaceFixedBytes + int(b[0])
		n := Namespace{
			Name: string(b[namespaceFixedBytes:end]), ID: binary.LittleEndian.Uint32(b[2:]), CreatedAt: int64(u64(6)),
			Settings: wire.NamespaceSettings{BytesMax: u64(14), KeysMax: u64(22), OpsPerSecond: u64(30), WatchesMax: u64(38), Compress: wire.Codec(b[1])},
		}
		switch {
		case !wire.ValidNamespaceName(n.Name), n.Settings.Compress > wire.CodecLZ4:
			return broken("namespace %d, %.40q, is none that there can be", i, n.Name)
		case i > 0 && n.Name <= h.Namespaces[i-1].Name:
			return broken("namespace %q stands behind %q", n.Name, h.Namespaces[i-1].Name)
		}
		h.Namespaces = append(h.Namespaces, n)
		b = b[end:]
	}
	if len(b) != 0 {
		return broken("%d bytes behind the header", len(b))
	}
	return nil
}

// A block's body: u32 namespace, its place in the header | u32 records, then of each
//
//	u16 length of the key | u16 length of the elements | u32 length of the value | meta, see wire.AppendMeta | key | elements | value

// appendRecord appends a record of a block. REQUIRES: the lengths are within their bounds.
func appendRecord(dst []byte, r *Record) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Key)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Ext)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(r.Value)))
	dst = wire.AppendMeta(dst, &r.Meta)
	dst = append(dst, r.Key...)
	dst = append(dst, r.Ext...)
	return append(dst, r.Value...)
}

// nextRecord cuts the first record off b.
func nextRecord(b []byte, r *Record) (rest []byte, err error) {
	if len(b) < recordHeaderBytes {
		return nil, broken("%d bytes where a record begins", len(b))
	}
	k, e, v := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:])), uint64(binary.LittleEndian.Uint32(b[4:]))
	if err := wire.DecodeMeta(b[8:recordHeaderBytes], &r.Meta); err != nil {
		return nil, broken("%v", err)
	}
	b = b[recordHeaderBytes:]
	if uint64(k+e)+v > uint64(len(b)) {
		return nil, broken("a record of %d+%d+%d bytes in %d", k, e, v, len(b))
	}
	r.Key, r.Ext, r.Value = b[:k:k], b[k:k+e:k+e], b[k+e:k+e+int(v):k+e+int(v)]
	return b[k+e+int(v):], nil
}

// check refuses a record that no store can hold, or whose value is another one than was stored.
func (r *Record) check() error {
	if !wire.ValidKey(r.Key) {
		return fmt.Errorf("a key of %d bytes that is none: %.40q", len(r.Key), r.Key)
	}
	if ref := wire.CheckMutation(wire.OpPut, r.Ext, r.Value); ref != nil {
		return fmt.Errorf("key %.80q: %s", r.Key, ref.Text)
	}
	for ext := r.Ext; len(ext) > 0; {
		t, _, rest, err := wire.NextExt(ext)
		if err != nil {
			return fmt.Errorf("key %.80q: %w", r.Key, err)
		}
		if t != wire.ExtTag && t != wire.ExtContentType && t != wire.ExtEncoding {
			return fmt.Errorf("key %.80q: element %d is not kept with a value", r.Key, t)
		}
		ext = rest
	}
	if sum := wire.Checksum(r.Value); sum != r.Meta.Checksum {
		return fmt.Errorf("key %.80q: its value has xxh64 %016x, it was stored with %016x", r.Key, sum, r.Meta.Checksum)
	}
	if r.Meta.ExpiresAt < 0 {
		return fmt.Errorf("key %.80q: it expires before 1970", r.Key)
	}
	return nil
}

// A trailer's body: u64 records | u64 bytes, see Count | u64 xxhash64, with seed 0, of all that stands before the trailer's
// record | u32 namespaces, then of each, in the order of the header: u64 records | u64 bytes

// appendTrailer appends the body of the trailer's frame.
func appendTrailer(dst []byte, total Count, each []Count, sum uint64) []byte {
	for _, v := range [...]uint64{total.Records, total.Bytes, sum} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(each)))
	for _, c := range each {
		dst = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(dst, c.Records), c.Bytes)
	}
	return dst
}
