package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strconv"
)

// HeaderBytes is the length of a frame header, in both directions.
//
//	 0  u32 body_len      bytes that follow the header, as sent
//	 4  u8  opcode        an answer echoes the request's
//	 5  u8  flags
//	 6  u16 status|group  answer: Status; request: Raft group id
//	 8  u32 req_id        chosen by the client, unique among its unanswered requests; 0 = the connection itself
//	12  u32 timeout_ms    request: relative deadline, 0 = server's default; answer: server time in µs, saturating
//	16  u32 crc32c        over header (with this field 0) and body as sent; 0 unless FlagCRC
//	20  u16 ext_len       length of the extension block at the start of the (decompressed) body
//	22  u16 key_len       length of the key that follows it
//	body = ext[ext_len] | key[key_len] | payload
const HeaderBytes = 24

// Flags of a frame.
type Flags uint8

// The flags. FlagMustUnderstand1 and 2 must be zero in this version: a receiver that sees one set
// answers StatusUnsupported.
const (
	FlagResponse   Flags = 1 << 0
	FlagMore       Flags = 1 << 1 // not the final frame of this answer
	FlagCRC        Flags = 1 << 2
	FlagCompressed Flags = 1 << 3 // body = u32 raw length | data, with the codec agreed in HELLO
	// FlagQuiet on a PUT or DELETE: no answer when the status is OK. Every other status is answered, so
	// silence says nothing until a later write of the same connection, sent without it, is answered.
	FlagQuiet Flags = 1 << 4
	// FlagReplayed on an answer: this is the kept result of an earlier attempt with the same session and
	// sequence number.
	FlagReplayed        Flags = 1 << 5
	FlagMustUnderstand1 Flags = 1 << 6
	FlagMustUnderstand2 Flags = 1 << 7

	flagsMustUnderstand = FlagMustUnderstand1 | FlagMustUnderstand2
)

// Header is a decoded frame header.
type Header struct {
	BodyLen uint32
	Op      Opcode
	Flags   Flags
	// StatusOrGroup is the status of an answer or the group of a request.
	StatusOrGroup uint16
	ID            uint32
	// TimeOrTimeout is in milliseconds in a request, in microseconds in an answer.
	TimeOrTimeout uint32
	CRC           uint32
	ExtLen        uint16
	KeyLen        uint16
}

// Status gives the status of an answer. Codes above 255 do not exist in this version and read as
// StatusInternal, whose outcome is unknown.
func (h *Header) Status() Status {
	if h.StatusOrGroup > 0xff {
		return StatusInternal
	}
	return Status(h.StatusOrGroup)
}

var (
	// ErrShort: the buffer ends before the frame does; read more.
	ErrShort = errors.New("wire: frame is incomplete")
	// ErrCorrupt: bytes that no peer of this protocol sends; the stream has lost its place and must be
	// closed.
	ErrCorrupt = errors.New("wire: corrupt frame")
	// ErrFrameTooLarge: a length beyond the limit.
	ErrFrameTooLarge = errors.New("wire: frame too large")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeroCRC stands for an entry's checksum field while the checksum over it is computed. A local array would escape
// to the heap at each call: hash/crc32 calls its assembly through a function variable.
var zeroCRC [4]byte

// CRC32C is the Castagnoli checksum that frames and log entries use.
func CRC32C(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// DecodeHeader reads the header at the start of b. It checks nothing but the length of b: whoever reads
// frames compares BodyLen to its limit before buffering, and calls Verify once the body is there.
func DecodeHeader(b []byte, h *Header) error {
	if len(b) < HeaderBytes {
		return ErrShort
	}
	b = b[:HeaderBytes]
	h.BodyLen = binary.LittleEndian.Uint32(b[0:])
	h.Op = Opcode(b[4])
	h.Flags = Flags(b[5])
	h.StatusOrGroup = binary.LittleEndian.Uint16(b[6:])
	h.ID = binary.LittleEndian.Uint32(b[8:])
	h.TimeOrTimeout = binary.LittleEndian.Uint32(b[12:])
	h.CRC = binary.LittleEndian.Uint32(b[16:])
	h.ExtLen = binary.LittleEndian.Uint16(b[20:])
	h.KeyLen = binary.LittleEndian.Uint16(b[22:])
	return nil
}

// crcFieldTerms[i][v] is what byte i of the checksum field of a header, being v, adds (by exclusive or) to
// the checksum of the header. The checksum is affine in its input, so it can be taken over the header as it
// is and the field's own part be taken out again: one call in place of three. Verifying a frame of 45 bytes
// takes 22 ns so, and took 30.
var crcFieldTerms = func() (terms [4][256]uint32) {
	var header [HeaderBytes]byte
	zero := CRC32C(header[:])
	for i := range terms {
		for v := range terms[i] {
			header[16+i] = byte(v)
			terms[i][v] = CRC32C(header[:]) ^ zero
		}
		header[16+i] = 0
	}
	return terms
}()

// frameCRC computes the checksum over the header with its checksum field read as zero, then the body.
func frameCRC(header, body []byte) uint32 {
	header = header[:HeaderBytes]
	c := crc32.Update(0, castagnoli, header)
	c ^= crcFieldTerms[0][header[16]] ^ crcFieldTerms[1][header[17]] ^ crcFieldTerms[2][header[18]] ^ crcFieldTerms[3][header[19]]
	if len(body) == 0 {
		return c
	}
	return crc32.Update(c, castagnoli, body)
}

// VerifyFrame checks the checksum of a whole frame (header and body as sent) when it carries one.
// An error means that the stream must be closed. A flipped FlagCRC is found too, since the field is 0 in
// a frame without it; that each frame carries a checksum where HELLO agreed so is checked by whoever
// knows the agreement.
func VerifyFrame(frame []byte) error {
	if len(frame) < HeaderBytes {
		return ErrShort
	}
	return VerifyParts(frame[:HeaderBytes], frame[HeaderBytes:])
}

// VerifyParts is VerifyFrame for a header and a body that do not lie side by side.
// REQUIRES: len(header) ≥ HeaderBytes.
func VerifyParts(header, body []byte) error {
	header = header[:HeaderBytes]
	got := binary.LittleEndian.Uint32(header[16:])
	if Flags(header[5])&FlagCRC == 0 {
		if got != 0 {
			return fmt.Errorf("%w: checksum %#x without its flag", ErrCorrupt, got)
		}
		return nil
	}
	if want := frameCRC(header, body); got != want {
		return fmt.Errorf("%w: checksum %#x, computed %#x over %d bytes", ErrCorrupt, got, want, HeaderBytes+len(body))
	}
	return nil
}

// BeginFrame reserves room for a header at the end of dst and returns the extended dst and the
// frame's offset, to be handed to FinishFrame once the body is appended.
func BeginFrame(dst []byte) ([]byte, int) {
	off := len(dst)
	return append(dst, make([]byte, HeaderBytes)...), off
}

// FinishFrame writes the header of the frame that begins at off and ends at the end of dst. It sets
// BodyLen from the bytes appended and the checksum if h.Flags asks for it. ExtLen and KeyLen are those of
// the body before compression.
func FinishFrame(dst []byte, off int, h Header) []byte {
	b := dst[off : off+HeaderBytes]
	body := dst[off+HeaderBytes:]
	if uint64(len(body)) > math.MaxUint32 {
		lengthBug("frame body", len(body))
	}
	binary.LittleEndian.PutUint32(b[0:], uint32(len(body)))
	b[4] = byte(h.Op)
	b[5] = byte(h.Flags)
	binary.LittleEndian.PutUint16(b[6:], h.StatusOrGroup)
	binary.LittleEndian.PutUint32(b[8:], h.ID)
	binary.LittleEndian.PutUint32(b[12:], h.TimeOrTimeout)
	binary.LittleEndian.PutUint32(b[16:], 0)
	binary.LittleEndian.PutUint16(b[20:], h.ExtLen)
	binary.LittleEndian.PutUint16(b[22:], h.KeyLen)
	if h.Flags&FlagCRC != 0 {
		// The field is 0 just now and header and body lie side by side: one pass.
		binary.LittleEndian.PutUint32(b[16:], CRC32C(dst[off:]))
	}
	return dst
}

// AppendFrame appends one whole frame. ExtLen, KeyLen and BodyLen of h are set from the arguments.
// REQUIRES: len(ext) ≤ ExtBytesMax and len(key) ≤ 65535; it panics otherwise, since a length cut to 16
// bits would make another, valid request of it.
func AppendFrame(dst []byte, h Header, ext, key, payload []byte) []byte {
	h.ExtLen, h.KeyLen = u16(len(ext), "extension block"), u16(len(key), "key")
	dst, off := BeginFrame(dst)
	dst = append(dst, ext...)
	dst = append(dst, key...)
	dst = append(dst, payload...)
	return FinishFrame(dst, off, h)
}

// SplitBody cuts a decompressed body by the header's lengths. A header whose lengths lie gives
// ErrCorrupt.
func SplitBody(h *Header, body []byte) (ext, key, payload []byte, err error) {
	e, k := int(h.ExtLen), int(h.KeyLen)
	if e+k > len(body) {
		return nil, nil, nil, fmt.Errorf("%w: extension %d + key %d bytes in a body of %d", ErrCorrupt, e, k, len(body))
	}
	return body[:e:e], body[e : e+k : e+k], body[e+k : len(body) : len(body)], nil
}

// u16 narrows a length that the caller promised to fit its field.
func u16(n int, what string) uint16 {
	if n > math.MaxUint16 {
		lengthBug(what, n)
	}
	return uint16(n)
}

//go:noinline
func lengthBug(what string, n int) {
	panic("BUG: " + what + " of " + strconv.Itoa(n) + " bytes is longer than its length field can say")
}
