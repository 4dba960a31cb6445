package wire

import (
	"encoding/binary"
	"fmt"
)

// ExtType names one element of an extension block. Odd types are critical: a receiver that does not know
// one refuses the request with StatusUnsupported. Even types may be ignored.
//
// An element is {u8 type, u8 length, value}; a length byte of 255 is followed by a u32 with the length.
// All elements but ExtCondition, ExtTag and ExtMember stand at most once in a block.
type ExtType uint8

// Elements of requests and of stored records.
const (
	ExtNamespace   ExtType = 1  // name, UTF-8 of 1 to NamespaceBytesMax bytes
	ExtConsistency ExtType = 3  // u8: 0 linearizable, 1 stale, 2 linearizable, and a follower may answer
	ExtSession     ExtType = 5  // u64 session | u64 sequence | u64 floor
	ExtTTL         ExtType = 7  // u64 milliseconds, 1 to TTLMsMax
	ExtCondition   ExtType = 9  // u8 kind | operand; may repeat
	ExtTag         ExtType = 11 // u8 name length | name | value (UTF-8); may repeat, in ascending order of names
	ExtContentType ExtType = 13 // printable ASCII
	ExtEncoding    ExtType = 15 // printable ASCII
	ExtChecksum    ExtType = 17 // u64 xxhash64 of the value
	ExtMinRevision ExtType = 19 // u64: the answer must reflect at least this revision
	ExtAtRevision  ExtType = 21 // u64: read the past at this revision
	ExtMaxAge      ExtType = 23 // u64 milliseconds: a stale answer may be no older than this
	ExtCompress    ExtType = 25 // u8 Codec (s2, zstd or lz4; 0 never): how the store is to compress the value, if that pays
	ExtHistory     ExtType = 29 // 16 bytes: the history that the revision of a watch belongs to; in answers of a watch the store's
	ExtNamespaceID ExtType = 31 // u32: the number of the namespace that a watch has been of; in answers of a watch the number that it is of
	ExtIdempotency ExtType = 33 // 24 bytes, see Idempotency: what names a write that is done once
)

// Values of ExtConsistency.
const (
	ConsistencyLinearizable = 0
	ConsistencyStale        = 1
	ConsistencyAnyNode      = 2
)

// AgeUnknown is the value of ExtAge in an answer of whose age nothing is known.
const AgeUnknown = 1<<64 - 1

// Elements of answers.
const (
	ExtMeta       ExtType = 2  // Meta, see AppendMeta
	ExtRetryAfter ExtType = 4  // u32 milliseconds
	ExtLeader     ExtType = 6  // address of the leader's binary port
	ExtTerm       ExtType = 8  // u64
	ExtLimit      ExtType = 10 // u64: the limit that was exceeded
	ExtRevision   ExtType = 12 // u64: revision that the answer reflects
	ExtAge        ExtType = 14 // u64 microseconds: a stale answer holds what was acknowledged that long before the request, or AgeUnknown
)

// Elements of HELLO and its answer.
const (
	ExtFeatures    ExtType = 20 // u64, see Features
	ExtCodecs      ExtType = 22 // bytes: codecs offered in order of preference; in the answer the one chosen
	ExtMaxFrame    ExtType = 24 // u32: largest frame body the sender accepts
	ExtClientName  ExtType = 26 // text, for operators
	ExtClusterID   ExtType = 27 // 16 bytes; critical: a server of another cluster refuses
	ExtCredits     ExtType = 28 // u32 requests | u32 bytes
	ExtNodeID      ExtType = 30 // text
	ExtMember      ExtType = 32 // u8 role (bit 0 voter, bit 1 leader) | u8 length of id | id | address; may repeat
	ExtVersion     ExtType = 34 // text: build version
	ExtSessionTTL  ExtType = 36 // u64 milliseconds
	ExtAuth        ExtType = 39 // reserved for credentials; critical
	ExtClusterInfo ExtType = 38 // 16 bytes: the server's cluster id, in the answer
)

// extSet is a set of element types below 64, which all known ones are. A shift by more gives the empty
// set, so that unknown types are in none.
type extSet uint64

const (
	// extsSteering are elements that steer a request as a whole; they have no place in an item of a group.
	extsSteering extSet = 1<<ExtNamespace | 1<<ExtConsistency | 1<<ExtSession | 1<<ExtMinRevision | 1<<ExtAtRevision | 1<<ExtMaxAge | 1<<ExtHistory | 1<<ExtNamespaceID | 1<<ExtIdempotency
	// extsWrite are those of them that belong to every write of keys.
	extsWrite extSet = 1<<ExtNamespace | 1<<ExtSession | 1<<ExtIdempotency
	// extsPut belong to a put, extsMutation also to deletes and other operations under a condition.
	extsPut      extSet = 1<<ExtTTL | 1<<ExtTag | 1<<ExtContentType | 1<<ExtEncoding | 1<<ExtChecksum | 1<<ExtCompress
	extsMutation extSet = extsPut | 1<<ExtCondition
	extsRepeat   extSet = 1<<ExtCondition | 1<<ExtTag
	// extsHello are the elements that stand at most once in HELLO and its answer. Ignorable elements that
	// this version does not know may well repeat.
	extsHello extSet = 1<<ExtFeatures | 1<<ExtCodecs | 1<<ExtMaxFrame | 1<<ExtClientName | 1<<ExtClusterID | 1<<ExtCredits |
		1<<ExtNodeID | 1<<ExtVersion | 1<<ExtSessionTTL | 1<<ExtClusterInfo | 1<<ExtTerm
)

// extsOf gives the elements that a request with this opcode may carry.
func extsOf(op Opcode) extSet {
	switch op {
	case OpGet, OpExists, OpMultiGet, OpScan: // the later pages of a listing take their revision from the cursor
		return 1<<ExtNamespace | 1<<ExtConsistency | 1<<ExtMinRevision | 1<<ExtAtRevision | 1<<ExtMaxAge
	case OpPut:
		return extsWrite | extsMutation
	case OpDelete:
		return extsWrite | 1<<ExtCondition
	case OpTouch, OpIncrement:
		return extsWrite | 1<<ExtCondition | 1<<ExtTTL
	case OpWatch:
		return 1<<ExtNamespace | 1<<ExtConsistency | 1<<ExtHistory | 1<<ExtNamespaceID
	case OpBatch, OpTxn:
		return extsWrite
	case OpSessionClose:
		return 1 << ExtSession
	}
	return 0
}

// AppendExt appends one element.
func AppendExt(dst []byte, t ExtType, value []byte) []byte {
	return append(appendExtHead(dst, t, len(value)), value...)
}

// appendExtHead appends the type and the length of an element whose value of n bytes follows.
func appendExtHead(dst []byte, t ExtType, n int) []byte {
	if n < 255 {
		return append(dst, byte(t), byte(n))
	}
	return binary.LittleEndian.AppendUint32(append(dst, byte(t), 255), uint32(n))
}

// AppendExtString is AppendExt for text.
func AppendExtString(dst []byte, t ExtType, value string) []byte {
	return append(appendExtHead(dst, t, len(value)), value...)
}

// AppendExtU8 appends an element of one byte.
func AppendExtU8(dst []byte, t ExtType, v uint8) []byte { return append(dst, byte(t), 1, v) }

// AppendExtU32 appends an element of four bytes.
func AppendExtU32(dst []byte, t ExtType, v uint32) []byte {
	return binary.LittleEndian.AppendUint32(append(dst, byte(t), 4), v)
}

// AppendExtU64 appends an element of eight bytes.
func AppendExtU64(dst []byte, t ExtType, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(dst, byte(t), 8), v)
}

// AppendExtSession appends the session element of a write.
func AppendExtSession(dst []byte, session, seq, floor uint64) []byte {
	dst = append(dst, byte(ExtSession), 24)
	dst = binary.LittleEndian.AppendUint64(dst, session)
	dst = binary.LittleEndian.AppendUint64(dst, seq)
	return binary.LittleEndian.AppendUint64(dst, floor)
}

// AppendExtTag appends one tag. The caller appends the tags of a record in ascending order of their names
// (compared as bytes), each name once; other orders are refused, so that a record has one encoding and
// duplicates are found without a search.
// REQUIRES: len(name) ≤ TagNameBytesMax and len(value) ≤ TagValueBytesMax; it panics for a name whose
// length byte would not hold it.
func AppendExtTag(dst []byte, name, value string) []byte {
	if len(name) > 255 {
		lengthBug("tag name", len(name))
	}
	dst = appendExtHead(dst, ExtTag, 1+len(name)+len(value))
	dst = append(dst, byte(len(name)))
	dst = append(dst, name...)
	return append(dst, value...)
}

// SplitTag cuts the value of an ExtTag element.
func SplitTag(v []byte) (name, value []byte, err error) {
	if len(v) < 1 || 1+int(v[0]) > len(v) {
		return nil, nil, fmt.Errorf("%w: tag of %d bytes", ErrCorrupt, len(v))
	}
	n := 1 + int(v[0])
	return v[1:n:n], v[n:], nil
}

// NextExt cuts the first element off ext. REQUIRES: len(ext) > 0.
func NextExt(ext []byte) (t ExtType, value, rest []byte, err error) {
	if len(ext) < 2 {
		return 0, nil, nil, fmt.Errorf("%w: extension block ends within an element", ErrCorrupt)
	}
	t = ExtType(ext[0])
	n, at := uint64(ext[1]), 2
	if n == 255 {
		if len(ext) < 6 {
			return 0, nil, nil, fmt.Errorf("%w: extension block ends within a length", ErrCorrupt)
		}
		n, at = uint64(binary.LittleEndian.Uint32(ext[2:])), 6
	}
	if n > uint64(len(ext)-at) {
		return 0, nil, nil, fmt.Errorf("%w: extension %d of %d bytes in %d", ErrCorrupt, t, n, len(ext)-at)
	}
	end := at + int(n)
	return t, ext[at:end:end], ext[end:], nil
}

// Critical reports whether a receiver that does not know t must refuse.
func (t ExtType) Critical() bool { return t&1 == 1 }
