package peer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A frame opens each connection in either direction, and surrounds the request and the answer of a
// snapshot transfer. Integers are little endian.
//
//	0..4   magic "KVSP"
//	4      version, 1
//	5      kind
//	6..8   zero
//	8..12  length of the payload
//	12..16 CRC-32C of bytes 0..12 and the payload
//	16..   payload, JSON: unknown fields are ignored, absent ones are zero
const (
	frameMagic   = "KVSP"
	frameVersion = 1
	frameHeader  = 16

	// helloBytesMax bounds the payload of a hello and of its answer: a card of 4 KiB in base64, a
	// refusal's text, and names.
	helloBytesMax = 16 << 10
)

type frameKind byte

const (
	kindHello frameKind = iota + 1
	kindAnswer
	kindInstall
	kindInstalled
	kindPulse
	kindPulsed
	kindFetch
	kindOffer
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// errForeign is what bytes are that did not come from a peer.
	errForeign = errors.New("these bytes are not from a node of a KVStore cluster")
	// errVersion is a frame of another version.
	errVersion = errors.New("unknown version of the connection's first frame")
)

// appendFrame appends a frame that holds v.
func appendFrame(dst []byte, kind frameKind, v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a frame: %w", err)
	}
	start := len(dst)
	dst = append(dst, frameMagic...)
	dst = append(dst, frameVersion, byte(kind), 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	sum := crc32.Update(crc32.Checksum(dst[start:], castagnoli), castagnoli, payload)
	dst = binary.LittleEndian.AppendUint32(dst, sum)
	return append(dst, payload...), nil
}

// readFrame reads one frame of the kind, not a byte more, into v. Errors: those of r (io.EOF only if
// there was no byte at all), errForeign, errVersion, and damage.
func readFrame(r io.Reader, kind frameKind, payloadMax int, v any) error {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return err
	}
	if string(header[:4]) != frameMagic {
		return errForeign
	}
	if header[4] != frameVersion {
		return fmt.Errorf("%w: %d, this node knows %d", errVersion, header[4], frameVersion)
	}
	if got := frameKind(header[5]); got != kind {
		return fmt.Errorf("frame of kind %d instead of %d", got, kind)
	}
	size := binary.LittleEndian.Uint32(header[8:])
	if uint64(size) > uint64(payloadMax) {
		return fmt.Errorf("frame of %d bytes is larger than %d", size, payloadMax)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	sum := crc32.Update(crc32.Checksum(header[:12], castagnoli), castagnoli, payload)
	if want := binary.LittleEndian.Uint32(header[12:]); sum != want {
		return fmt.Errorf("frame's checksum is %08x, its bytes give %08x", want, sum)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("cannot decode a frame: %w", err)
	}
	return nil
}
