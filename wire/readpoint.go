package wire

import "encoding/binary"

// ReadPoint is the payload of an answer to OpReadIndex: {u64 index, u64 term, u64 revision} of the state that
// the leader had applied when a majority had confirmed it. Whoever has applied Index holds everything that was
// acknowledged before the leader was asked.
type ReadPoint struct {
	Index uint64
	// Term is the term of the entry at Index. Revision is the revision of the leader's state.
	Term     uint64
	Revision Revision
}

// ReadPointBytes is the length of an encoded ReadPoint.
const ReadPointBytes = 24

// AppendReadPoint appends the payload of an answer to OpReadIndex.
func AppendReadPoint(dst []byte, p ReadPoint) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, p.Index)
	dst = binary.LittleEndian.AppendUint64(dst, p.Term)
	return binary.LittleEndian.AppendUint64(dst, p.Revision)
}

// DecodeReadPoint reads what AppendReadPoint wrote; ok is false for a wrong length.
func DecodeReadPoint(b []byte) (p ReadPoint, ok bool) {
	if len(b) != ReadPointBytes {
		return p, false
	}
	return ReadPoint{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}, true
}
