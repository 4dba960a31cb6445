package engine

import "encoding/binary"

// The key layout. One byte names the family; numbers are big endian, so that the order of keys is the
// order of what they mean; a user's key always stands last or behind its length.
//
//	D | ns u32 | key                       a record, or the manifest of a chunked one   (record.go)
//	C | ns u32 | len u16 | key | n u32     piece n of a chunked value                   (record.go)
//	X | deadline u64 | ns u32 | key        expiry index: one for each record that has a deadline
//	S | session u64                        a session                                    (session.go)
//	J | ts u64 | part u32                  the kept answers of one entry                (session.go)
//	I | ts u64 | operation u32             the answer to one write with an idempotency key (idempotency.go)
//	U | ns u32                             what a namespace holds, if it holds anything (usage.go)
//	M                                      what the newest entry left behind            (marker.go)
//
// Invariant: X holds precisely the pairs (deadline, record) of the records in D that have a deadline.
const (
	familyRecord  = 'D'
	familyChunk   = 'C'
	familyExpiry  = 'X'
	familySession = 'S'
	familyJournal = 'J'
	familyMarker  = 'M'
	familyUsage   = 'U'
	familyOnce    = 'I'
)

// recordKeyPrefixBytes is what stands before a user's key in a record key.
const recordKeyPrefixBytes = 1 + 4

// markerKey is the key of the marker. It is written at the ts of every entry.
var markerKey = []byte{familyMarker}

// appendRecordKey appends the key of a record. It is also the identity of the record within the engine:
// in the overlay, in the cache, and in the digest.
func appendRecordKey(dst []byte, ns uint32, key []byte) []byte {
	dst = append(dst, familyRecord)
	dst = binary.BigEndian.AppendUint32(dst, ns)
	return append(dst, key...)
}

// userKey is the part of a record key that the user knows.
func userKey(recordKey []byte) []byte { return recordKey[recordKeyPrefixBytes:] }

// namespaceOf is the namespace of a record key.
func namespaceOf(recordKey []byte) uint32 { return binary.BigEndian.Uint32(recordKey[1:]) }

// appendChunkKey appends the key of piece n of a record's value. The length before the user's key keeps
// the pieces of one key apart from those of a longer key that begins alike.
func appendChunkKey(dst, recordKey []byte, n uint32) []byte {
	key := userKey(recordKey)
	dst = append(dst, familyChunk)
	dst = append(dst, recordKey[1:recordKeyPrefixBytes]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(key)))
	dst = append(dst, key...)
	return binary.BigEndian.AppendUint32(dst, n)
}

// expiryKeyPrefixBytes is what stands before ns and key in a key of the expiry index.
const expiryKeyPrefixBytes = 1 + 8

// appendExpiryKey appends the expiry index's key for a record. REQUIRES: deadline > 0.
func appendExpiryKey(dst []byte, deadline int64, recordKey []byte) []byte {
	dst = append(dst, familyExpiry)
	dst = binary.BigEndian.AppendUint64(dst, uint64(deadline))
	return append(dst, recordKey[1:]...)
}

// splitExpiryKey reads a key of the expiry index: the deadline, and the record key without its family.
func splitExpiryKey(k []byte) (deadline int64, tail []byte, ok bool) {
	if len(k) <= expiryKeyPrefixBytes+recordKeyPrefixBytes-1 || k[0] != familyExpiry {
		return 0, nil, false
	}
	return int64(binary.BigEndian.Uint64(k[1:])), k[expiryKeyPrefixBytes:], true
}

const (
	sessionKeyBytes = 1 + 8
	journalKeyBytes = 1 + 8 + 4
)

// appendSessionKey appends the key of a session.
func appendSessionKey(dst []byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, familySession), id)
}

// splitSessionKey reads the key of a session.
func splitSessionKey(k []byte) (id uint64, ok bool) {
	if len(k) != sessionKeyBytes || k[0] != familySession {
		return 0, false
	}
	return binary.BigEndian.Uint64(k[1:]), true
}

// appendJournalKey appends the key of a journal record.
func appendJournalKey(dst []byte, p journalPlace) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, familyJournal), p.ts)
	return binary.BigEndian.AppendUint32(dst, p.part)
}

// splitJournalKey reads the key of a journal record.
func splitJournalKey(k []byte) (p journalPlace, ok bool) {
	if len(k) != journalKeyBytes || k[0] != familyJournal {
		return journalPlace{}, false
	}
	return journalPlace{binary.BigEndian.Uint64(k[1:]), binary.BigEndian.Uint32(k[9:])}, true
}

const onceKeyBytes = 1 + 8 + 4

// appendOnceKey appends the key of the answer to a write with an idempotency key.
func appendOnceKey(dst []byte, p oncePlace) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, familyOnce), p.ts)
	return binary.BigEndian.AppendUint32(dst, p.operation)
}

// splitOnceKey reads the key of such an answer.
func splitOnceKey(k []byte) (p oncePlace, ok bool) {
	if len(k) != onceKeyBytes || k[0] != familyOnce {
		return oncePlace{}, false
	}
	return oncePlace{binary.BigEndian.Uint64(k[1:]), binary.BigEndian.Uint32(k[9:])}, true
}

// appendUsageKey appends the key of the usage of a namespace.
func appendUsageKey(dst []byte, ns uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, familyUsage), ns)
}

// splitUsageKey reads the key of the usage of a namespace.
func splitUsageKey(k []byte) (ns uint32, ok bool) {
	if len(k) != usageKeyBytes || k[0] != familyUsage {
		return 0, false
	}
	return binary.BigEndian.Uint32(k[1:]), true
}

// familyRange gives the bounds [lower, upper) of all keys of a family.
func familyRange(family byte) (lower, upper []byte) {
	return []byte{family}, []byte{family + 1}
}
