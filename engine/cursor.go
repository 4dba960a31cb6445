package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"kvstore/wire"
)

var errCursorMalformed = errors.New("cursor is not one of ours, or was changed")

// cursor is where a listing stands. It holds all that another node needs to go on at the same revision.
type cursor struct {
	history [16]byte      // history id: a cursor doesn't outlive the history that its revision belongs to
	rev     wire.Revision // of the state that the listing shows
	time    int64         // log time of that state: with rev it tells whether a node means the same state
	listing uint64        // listingHash of the request
	rolled  bool          // last is a common prefix that was listed, with all its keys
	last    []byte        // last key that was listed or passed over
}

const (
	cursorFormat      = 1
	cursorRolled      = 1 << 8 // in the first eight bytes
	cursorHeaderBytes = 8 + 16 + 8 + 8 + 8
	cursorSumBytes    = 8
)

// The longest cursor fits its bound.
const _ = uint(wire.CursorBytesMax - cursorHeaderBytes - cursorSumBytes - wire.KeyBytesMax)

// appendCursor appends the opaque form:
//
//	0 u8 format | 1 u8 rolled | 2 6×0 | 8 16×history | 24 u64 revision | 32 i64 time | 40 u64 listing | 48 last key
//	then u64 xxhash64 of all before
func appendCursor(dst []byte, c *cursor) []byte {
	at := len(dst)
	head := uint64(cursorFormat)
	if c.rolled {
		head |= cursorRolled
	}
	dst = binary.LittleEndian.AppendUint64(dst, head)
	dst = append(dst, c.history[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, c.rev)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(c.time))
	dst = binary.LittleEndian.AppendUint64(dst, c.listing)
	dst = append(dst, c.last...)
	return binary.LittleEndian.AppendUint64(dst, xxhash.Sum64(dst[at:]))
}

// decodeCursor reads what appendCursor wrote; last is a view. The sum guards against accidents; a cursor
// made up by a client can only show what a listing of the same bounds would.
func decodeCursor(b []byte, c *cursor) error {
	n := len(b) - cursorSumBytes
	if n <= cursorHeaderBytes || n > cursorHeaderBytes+wire.KeyBytesMax || binary.LittleEndian.Uint64(b)&^cursorRolled != cursorFormat {
		return fmt.Errorf("%w: %d bytes", errCursorMalformed, len(b))
	}
	if binary.LittleEndian.Uint64(b[n:]) != xxhash.Sum64(b[:n]) {
		return fmt.Errorf("%w: checksum", errCursorMalformed)
	}
	c.rolled = binary.LittleEndian.Uint64(b)&cursorRolled != 0
	copy(c.history[:], b[8:])
	c.rev = binary.LittleEndian.Uint64(b[24:])
	c.time = int64(binary.LittleEndian.Uint64(b[32:]))
	c.listing = binary.LittleEndian.Uint64(b[40:])
	c.last = b[cursorHeaderBytes:n]
	return nil
}

// listingHash identifies what a listing asked for: its bounds, flags and delimiter, not the size of its pages, nor
// whether they come one by one or as a stream.
func listingHash(ns uint32, req *wire.ScanRequest) uint64 {
	var h xxhash.Digest
	h.Reset()
	var b [8]byte
	write := func(n uint32, text []byte) {
		binary.LittleEndian.PutUint32(b[:], n)
		binary.LittleEndian.PutUint32(b[4:], uint32(len(text)))
		// Write of a hash never fails; see hash.Hash.
		_, _ = h.Write(b[:])
		_, _ = h.Write(text)
	}
	write(ns, req.Prefix)
	write(uint32(req.Flags&^wire.ScanStream), req.Start)
	write(0, req.End)
	if len(req.Delimiter) > 0 { // without one it stays what it was before there were any
		write(1, req.Delimiter)
	}
	return h.Sum64()
}
