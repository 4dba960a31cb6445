package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
)

// EntryHeaderBytes is the length of the header of a log entry:
//
//	 0 u8  format         EntryFormat
//	 1 u8  0
//	 2 u16 level          behaviour level that the proposer knows
//	 4 u32 group          Raft group
//	 8 u64 incarnation    of the proposing process
//	16 u64 proposal       number of the entry within that incarnation, from 1
//	24 i64 time           leader's clock, Unix µs; Apply uses max(this, time of the entry before)
//	32 u32 count          operations
//	36 u32 crc32c         over the whole entry with this field 0
//	40     operations
const EntryHeaderBytes = 40

// EntryFormat is the version of the entry and operation headers.
const EntryFormat = 1

// OpHeaderBytes is the length of the header of one operation in an entry:
//
//	 0 u8  opcode
//	 1 u8  flags          0
//	 2 u16 ext_len
//	 4 u16 key_len
//	 6 u16 0
//	 8 u32 body_len       ext | key | payload, as in the client's frame
//	12 u32 namespace      numeric id; 0 is the system keyspace, 1 the default namespace
//	16 u64 session        0: none
//	24 u64 seq
//	32 u64 floor          every sequence number ≤ floor has been acknowledged
//	40 u32 principal      numeric id; 0 until there are users
//	44 u32 0
//	48 u64 auth_revision  revision of the rules the door decided by; 0 until there are users
//	56     body
const OpHeaderBytes = 56

// Namespaces with fixed ids.
const (
	NamespaceSystem  = 0
	NamespaceDefault = 1
)

// EntryHeader is the decoded header of an entry.
type EntryHeader struct {
	Level       uint16
	Group       uint32
	Incarnation uint64
	Proposal    uint64
	Time        int64
	Count       uint32
}

// Op is one operation of an entry. Slices are views over the entry.
type Op struct {
	Op           Opcode
	Namespace    uint32
	Session      uint64
	Seq          uint64
	Floor        uint64
	Principal    uint32
	AuthRevision uint64
	Ext          []byte
	Key          []byte
	Payload      []byte
}

// AppendEntryHeader reserves the header of an entry at the end of dst, which must be empty: an entry
// begins its buffer.
func AppendEntryHeader(dst []byte) []byte {
	return append(dst, make([]byte, EntryHeaderBytes)...)
}

// AppendOp appends one operation: o's fixed fields, then body = ext | key | payload with the given
// lengths of ext and key. o's slices are not read.
// REQUIRES: extLen + keyLen ≤ len(body), both ≤ 65535, len(body) ≤ FrameBodyBytesMax; it panics otherwise.
func AppendOp(dst []byte, o *Op, body []byte, extLen, keyLen int) []byte {
	if extLen < 0 || keyLen < 0 || extLen+keyLen > len(body) || len(body) > FrameBodyBytesMax {
		panic("BUG: operation body of " + strconv.Itoa(len(body)) + " bytes with extension " + strconv.Itoa(extLen) + " and key " + strconv.Itoa(keyLen))
	}
	dst = append(dst, byte(o.Op), 0)
	dst = binary.LittleEndian.AppendUint16(dst, u16(extLen, "extension block"))
	dst = binary.LittleEndian.AppendUint16(dst, u16(keyLen, "key"))
	dst = append(dst, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.LittleEndian.AppendUint32(dst, o.Namespace)
	dst = binary.LittleEndian.AppendUint64(dst, o.Session)
	dst = binary.LittleEndian.AppendUint64(dst, o.Seq)
	dst = binary.LittleEndian.AppendUint64(dst, o.Floor)
	dst = binary.LittleEndian.AppendUint32(dst, o.Principal)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, o.AuthRevision)
	return append(dst, body...)
}

// SealEntry writes the header of the entry that fills b, with its checksum.
// REQUIRES: b began with AppendEntryHeader and holds h.Count operations.
func SealEntry(b []byte, h *EntryHeader) {
	b[0], b[1] = EntryFormat, 0
	binary.LittleEndian.PutUint16(b[2:], h.Level)
	binary.LittleEndian.PutUint32(b[4:], h.Group)
	binary.LittleEndian.PutUint64(b[8:], h.Incarnation)
	binary.LittleEndian.PutUint64(b[16:], h.Proposal)
	binary.LittleEndian.PutUint64(b[24:], uint64(h.Time))
	binary.LittleEndian.PutUint32(b[32:], h.Count)
	binary.LittleEndian.PutUint32(b[36:], entryCRC(b))
}

// DecodeEntry checks the format, the checksum and the framing of an entry and returns its header and its
// operations, still encoded: exactly h.Count of them, so that NextOp cannot fail on what it returns. b is
// not changed. An error means that the entry was damaged or made by a build that this one does not
// understand; it must not be skipped.
func DecodeEntry(b []byte, h *EntryHeader) (ops []byte, err error) {
	if len(b) < EntryHeaderBytes {
		return nil, fmt.Errorf("%w: entry of %d bytes", ErrCorrupt, len(b))
	}
	if b[0] != EntryFormat || b[1] != 0 {
		return nil, fmt.Errorf("%w: entry format %d.%d; this build reads %d", ErrCorrupt, b[0], b[1], EntryFormat)
	}
	if got, want := binary.LittleEndian.Uint32(b[36:]), entryCRC(b); got != want {
		return nil, fmt.Errorf("%w: entry checksum %#x, computed %#x over %d bytes", ErrCorrupt, got, want, len(b))
	}
	*h = EntryHeader{
		Level:       binary.LittleEndian.Uint16(b[2:]),
		Group:       binary.LittleEndian.Uint32(b[4:]),
		Incarnation: binary.LittleEndian.Uint64(b[8:]),
		Proposal:    binary.LittleEndian.Uint64(b[16:]),
		Time:        int64(binary.LittleEndian.Uint64(b[24:])),
		Count:       binary.LittleEndian.Uint32(b[32:]),
	}
	ops = b[EntryHeaderBytes:len(b):len(b)]
	// A count that the bytes cannot hold is a lie: refuse it before anyone sizes a slice by it.
	if uint64(h.Count)*OpHeaderBytes > uint64(len(ops)) {
		return nil, fmt.Errorf("%w: %d operations in %d bytes", ErrCorrupt, h.Count, len(ops))
	}
	rest := ops
	for i := range h.Count {
		n, err := checkOp(rest)
		if err != nil {
			return nil, fmt.Errorf("operation %d of %d: %w", i, h.Count, err)
		}
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last operation of an entry", ErrCorrupt, len(rest))
	}
	return ops, nil
}

// entryCRC computes the checksum of an entry with its checksum field read as zero.
func entryCRC(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:36])
	c = crc32.Update(c, castagnoli, zeroCRC[:])
	return crc32.Update(c, castagnoli, b[EntryHeaderBytes:])
}

// checkOp checks the framing of the first operation in b and returns its length, header included.
// Reserved fields must be 0: whoever sets one means something that this build would get wrong.
func checkOp(b []byte) (int, error) {
	if len(b) < OpHeaderBytes {
		return 0, fmt.Errorf("%w: %d bytes where an operation begins", ErrCorrupt, len(b))
	}
	if b[1]|b[6]|b[7] != 0 || binary.LittleEndian.Uint32(b[44:]) != 0 {
		return 0, fmt.Errorf("%w: reserved fields of an operation are set: % x", ErrCorrupt, b[:OpHeaderBytes])
	}
	e, k := uint64(binary.LittleEndian.Uint16(b[2:])), uint64(binary.LittleEndian.Uint16(b[4:]))
	n := uint64(binary.LittleEndian.Uint32(b[8:]))
	if n > uint64(len(b)-OpHeaderBytes) || e+k > n {
		return 0, fmt.Errorf("%w: operation body of %d bytes (ext %d, key %d) in %d", ErrCorrupt, n, e, k, len(b)-OpHeaderBytes)
	}
	return OpHeaderBytes + int(n), nil
}

// NextOp cuts the first operation off b.
func NextOp(b []byte, o *Op) (rest []byte, err error) {
	end, err := checkOp(b)
	if err != nil {
		return nil, err
	}
	e, k := int(binary.LittleEndian.Uint16(b[2:])), int(binary.LittleEndian.Uint16(b[4:]))
	*o = Op{
		Op:           Opcode(b[0]),
		Namespace:    binary.LittleEndian.Uint32(b[12:]),
		Session:      binary.LittleEndian.Uint64(b[16:]),
		Seq:          binary.LittleEndian.Uint64(b[24:]),
		Floor:        binary.LittleEndian.Uint64(b[32:]),
		Principal:    binary.LittleEndian.Uint32(b[40:]),
		AuthRevision: binary.LittleEndian.Uint64(b[48:]),
	}
	body := b[OpHeaderBytes:end:end]
	o.Ext, o.Key, o.Payload = body[:e:e], body[e:e+k:e+k], body[e+k:]
	return b[end:], nil
}

// ExpirePayloadBytes is the length of the body of OpExpire: u32, the most records to remove.
const ExpirePayloadBytes = 4

// AppendExpire appends the body of OpExpire.
func AppendExpire(dst []byte, n uint32) []byte { return binary.LittleEndian.AppendUint32(dst, n) }

// DecodeExpire reads the body of OpExpire.
func DecodeExpire(b []byte) (uint32, error) {
	if len(b) != ExpirePayloadBytes {
		return 0, fmt.Errorf("%w: expire of %d bytes", ErrCorrupt, len(b))
	}
	return binary.LittleEndian.Uint32(b), nil
}

// Init is the body of OpInit, the first operation of a new cluster's log.
type Init struct {
	ClusterID [16]byte
	HistoryID [16]byte
	// Level is the behaviour level that the cluster starts with.
	Level uint16
}

// InitBytes is the length of an encoded Init.
const InitBytes = 34

// AppendInit appends the body of OpInit.
func AppendInit(dst []byte, in *Init) []byte {
	dst = append(dst, in.ClusterID[:]...)
	dst = append(dst, in.HistoryID[:]...)
	return binary.LittleEndian.AppendUint16(dst, in.Level)
}

// DecodeInit reads the body of OpInit.
func DecodeInit(b []byte, in *Init) error {
	if len(b) != InitBytes {
		return fmt.Errorf("%w: init of %d bytes", ErrCorrupt, len(b))
	}
	copy(in.ClusterID[:], b)
	copy(in.HistoryID[:], b[16:])
	in.Level = binary.LittleEndian.Uint16(b[32:])
	return nil
}

// Result is what the state machine answers to one operation of an entry.
type Result struct {
	Status Status
	// Replayed: the operation was applied by an earlier attempt; this is its kept result.
	Replayed bool
	// Rev is the revision of the operation's (first) mutation, 0 if it made none.
	Rev Revision
	// Payload is the answer's payload for batches and transactions, the failed conditions for
	// StatusConditionFailed, and nil for a put or delete, whose answer is Rev (see AppendVersion).
	Payload []byte
}
