package wire

import "encoding/binary"

// IncrementBytes is the length of the payload of OpIncrement: the delta, i64.
const IncrementBytes = 8

// AppendIncrement appends the payload of OpIncrement. The record that it names becomes its old value and delta, as
// decimal digits with a sign only where it is negative; an absent one counts as 0 and gets the time to live of the
// request. A record that is there keeps its elements, and its deadline unless the request has a time to live.
// StatusNotANumber: the old value is no such number, or the sum takes more than 64 bits; nothing was changed.
func AppendIncrement(dst []byte, delta int64) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(delta))
}

// DecodeIncrement reads what AppendIncrement wrote; ok is false for a wrong length.
func DecodeIncrement(b []byte) (delta int64, ok bool) {
	if len(b) != IncrementBytes {
		return 0, false
	}
	return int64(binary.LittleEndian.Uint64(b)), true
}

// CounterBytes is the length of the payload of an answer to OpIncrement with StatusOK, and of the value of such an
// item in a result: {u64 version, i64 value}.
const CounterBytes = VersionBytes + 8

// AppendCounter appends the payload of an answer to OpIncrement.
func AppendCounter(dst []byte, rev Revision, value int64) []byte {
	return binary.LittleEndian.AppendUint64(AppendVersion(dst, rev), uint64(value))
}

// DecodeCounter reads what AppendCounter wrote; ok is false for a wrong length.
func DecodeCounter(b []byte) (rev Revision, value int64, ok bool) {
	if len(b) != CounterBytes {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[VersionBytes:])), true
}
