package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// RecoverTextBytesMax bounds Recover.Text.
const RecoverTextBytesMax = 4 << 10

// RecoverBaseRaise is the Recover.BaseRaise that a recovery uses: more entries than the members that were
// given up can have committed, or stored, beyond what the recovered one holds. At 100,000 entries a second
// it is half a day of them.
const RecoverBaseRaise = 1 << 32

// Recover is the body of OpRecover: a lone survivor was made the cluster, without the majority that would
// have proved that nothing is missing. What the others acknowledged since may be lost, so history begins anew.
type Recover struct {
	// HistoryID names the history that begins here: drawn anew for each recovery, never zero.
	HistoryID [16]byte
	// BaseRaise is by how many entries the base of revisions is raised, so that what is acknowledged
	// from now on has revisions above all that were acknowledged before, also by those who are lost.
	BaseRaise uint64
	// At is when the operator decided so, Unix µs, by the clock of the survivor.
	At int64
	// Text says what was done and what may be lost: a JSON document, valid UTF-8 of at most
	// RecoverTextBytesMax bytes.
	Text string
}

// recoverFormat is the first byte of the body of OpRecover.
const recoverFormat = 1

// recoverFixedBytes is the length of what stands before the text.
const recoverFixedBytes = 8 + 16 + 8 + 8

// AppendRecover appends the body of OpRecover; integers are little endian:
//
//	0 u8 format (1) | 1 7×0 | 8 16×u8 history id | 24 u64 base raise | 32 i64 at | 40 text
func AppendRecover(dst []byte, r *Recover) []byte {
	dst = append(dst, recoverFormat, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, r.HistoryID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, r.BaseRaise)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.At))
	return append(dst, r.Text...)
}

// DecodeRecover reads what AppendRecover wrote. It fails, with ErrCorrupt, also for a zero history id, a
// base that isn't raised, and a text that is too long or not UTF-8.
func DecodeRecover(b []byte, r *Recover) error {
	if len(b) < recoverFixedBytes || binary.LittleEndian.Uint64(b) != recoverFormat {
		return fmt.Errorf("%w: recovery of %d bytes", ErrCorrupt, len(b))
	}
	*r = Recover{
		BaseRaise: binary.LittleEndian.Uint64(b[24:]),
		At:        int64(binary.LittleEndian.Uint64(b[32:])),
		Text:      string(b[recoverFixedBytes:]),
	}
	copy(r.HistoryID[:], b[8:])
	if r.HistoryID == [16]byte{} || r.BaseRaise == 0 || len(r.Text) > RecoverTextBytesMax || !utf8.ValidString(r.Text) {
		return fmt.Errorf("%w: recovery with history %x, base raised by %d, a text of %d bytes", ErrCorrupt, r.HistoryID, r.BaseRaise, len(r.Text))
	}
	return nil
}
