package engine

import (
	"encoding/binary"
	"fmt"

	"kvstore/wire"
)

// marker is what an entry leaves behind besides its records: where the log stands, and the sums that
// Apply carries along. It is written with each entry, at its ts, and once more in the checkpoint. It is a
// pure function of the log.
type marker struct {
	index, term uint64
	ts          uint64 // base + index
	time        int64  // log time T, Unix µs
	positions   uint32 // positions that the entry has given out; see wire.MakeRevision
	digest      digest
	records     uint64 // records in D
	bytes       uint64 // liveBytes of all of them
}

const (
	markerFormat    = 1
	markerBodyBytes = 8 + 8*8
)

// appendMarker appends the stored form:
//
//	0 u8 format | 1 3×0 | 4 u32 positions | 8 u64 index | 16 u64 term | 24 u64 ts | 32 i64 time
//	40 2×u64 digest | 56 u64 records | 64 u64 bytes | 72 u32 crc32c over key and bytes
func appendMarker(dst []byte, m *marker) []byte {
	at := len(dst)
	dst = append(dst, markerFormat, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, m.positions)
	for _, v := range [...]uint64{m.index, m.term, m.ts, uint64(m.time), m.digest[0], m.digest[1], m.records, m.bytes} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return appendSeal(dst, at, markerKey)
}

// decodeMarker reads what appendMarker wrote. It fails with ErrRecordDamaged only.
func decodeMarker(b []byte) (m marker, err error) {
	body, err := openSealed(markerKey, b)
	if err != nil {
		return marker{}, fmt.Errorf("marker: %w", err)
	}
	if len(body) != markerBodyBytes || body[0] != markerFormat || body[1]|body[2]|body[3] != 0 {
		return marker{}, fmt.Errorf("%w: marker of %d bytes; this build reads format %d", ErrRecordDamaged, len(b), markerFormat)
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(body[at:]) }
	m = marker{
		positions: binary.LittleEndian.Uint32(body[4:]),
		index:     u64(8),
		term:      u64(16),
		ts:        u64(24),
		time:      int64(u64(32)),
		digest:    digest{u64(40), u64(48)},
		records:   u64(56),
		bytes:     u64(64),
	}
	if m.ts == 0 || m.ts >= 1<<(64-wire.PositionBits) || m.positions > 1<<wire.PositionBits {
		return marker{}, fmt.Errorf("%w: marker with ts %d and %d positions", ErrRecordDamaged, m.ts, m.positions)
	}
	return m, nil
}

// revision is the revision of the state that the marker's entry made: that of its last mutation, or the
// entry's first when it made none. Reading at it gives precisely this state.
func (m *marker) revision() wire.Revision {
	return wire.MakeRevision(m.ts, int(max(m.positions, 1))-1)
}

func (m *marker) point() point {
	return point{index: m.index, term: m.term, ts: m.ts, time: m.time, revision: m.revision()}
}

// markerPoint gives the published state that a marker stands for.
func markerPoint(b []byte) (point, error) {
	m, err := decodeMarker(b)
	if err != nil {
		return point{}, err
	}
	return m.point(), nil
}

// readMarker reads the marker of the state that r reads.
func readMarker(r *reader, m *marker) error {
	found, err := r.get(markerKey, func(b []byte) (err error) {
		*m, err = decodeMarker(b)
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: the marker is missing", ErrRecordDamaged)
	}
	return err
}
