package client

import (
	"encoding/binary"
	"hash/crc32"

	"kvstore/wire"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// putHeader writes the header of a frame whose body is a|b, which need not lie side by side.
func putHeader(hdr *[wire.HeaderBytes]byte, h *wire.Header, a, b []byte) {
	crc := h.Flags&wire.FlagCRC != 0
	// FinishFrame would compute the checksum of an empty body: it is asked for the fields only.
	*hdr = [wire.HeaderBytes]byte{}
	wire.FinishFrame(hdr[:], 0, wire.Header{Op: h.Op, Flags: h.Flags &^ wire.FlagCRC, StatusOrGroup: h.StatusOrGroup, ID: h.ID,
		TimeOrTimeout: h.TimeOrTimeout, ExtLen: h.ExtLen, KeyLen: h.KeyLen})
	binary.LittleEndian.PutUint32(hdr[0:], uint32(len(a)+len(b)))
	if crc {
		hdr[5] |= byte(wire.FlagCRC)
		sum := crc32.Update(0, castagnoli, hdr[:])
		sum = crc32.Update(sum, castagnoli, a)
		sum = crc32.Update(sum, castagnoli, b)
		binary.LittleEndian.PutUint32(hdr[16:], sum)
	}
}
