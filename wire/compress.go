package wire

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Codec names a compression of frames, agreed in HELLO. A compressed body is {u32 raw length, data}.
type Codec uint8

// The codecs.
const (
	CodecNone Codec = 0
	CodecS2   Codec = 1
	CodecZstd Codec = 2
	// CodecLZ4 compresses values in the store (ExtCompress); frames never.
	CodecLZ4 Codec = 3
)

// String gives the codec's name.
func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecS2:
		return "s2"
	case CodecLZ4:
		return "lz4"
	case CodecZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec_%d", uint8(c))
}

// CompressBytesMin is the smallest body worth compressing: below it the header and the call cost more
// than they save (s2 needs about 2 µs for 1 KiB, zstd 10 µs).
const CompressBytesMin = 1 << 10

// ChooseCodec picks the first codec of the client's list that this build speaks, CodecNone among them.
func ChooseCodec(offered []Codec) Codec {
	for _, c := range offered {
		if c <= CodecZstd {
			return c
		}
	}
	return CodecNone
}

// The zstd coders are shared: EncodeAll and DecodeAll may be called concurrently, as many at once as there
// are processors. Both are built on first use, since a process that never meets zstd should not pay for
// their tables.
var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic("BUG: zstd encoder options: " + err.Error())
		}
		return e
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		// The output of a frame that declares its size is bounded by that; this bounds windows.
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(FrameBodyBytesMax))
		if err != nil {
			panic("BUG: zstd decoder options: " + err.Error())
		}
		return d
	})
)

// AppendCompressed appends {u32 raw length, data} for body and reports true, or returns dst unchanged
// and false where compression would save less than a tenth.
func AppendCompressed(dst []byte, c Codec, body []byte) ([]byte, bool) {
	if len(body) < CompressBytesMin || c == CodecNone {
		return dst, false
	}
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	at := len(dst)
	switch c {
	case CodecS2:
		n := s2.MaxEncodedLen(len(body))
		dst = slices.Grow(dst, n)
		dst = dst[:at+len(s2.Encode(dst[at:at+n], body))]
	case CodecZstd:
		dst = zstdEncoder().EncodeAll(body, dst)
	default:
		return dst[:start], false
	}
	if len(dst)-start > len(body)/10*9 {
		return dst[:start], false
	}
	return dst, true
}

// RawLen reads the length that a compressed body claims to have when unpacked and checks it against
// max, so that nothing is allocated for a lie larger than that. Forty bytes may honestly claim 16 MiB:
// whoever bounds the memory of a connection counts this length, before it unpacks.
func RawLen(body []byte, max int) (int, error) {
	if len(body) < 4 {
		return 0, fmt.Errorf("%w: compressed body of %d bytes", ErrCorrupt, len(body))
	}
	n := binary.LittleEndian.Uint32(body)
	if uint64(n) > uint64(max) {
		return 0, fmt.Errorf("%w: body would unpack to %d bytes, at most %d", ErrFrameTooLarge, n, max)
	}
	return int(n), nil
}

// Decompress appends the unpacked body to dst. The result has exactly the claimed length, or an error
// is returned; memory stays within the claimed length (and the codec's fixed tables), which is checked
// against max first. A zstd body is one frame that declares its content size, nothing before or behind it.
func Decompress(dst []byte, c Codec, body []byte, max int) ([]byte, error) {
	n, err := RawLen(body, max)
	if err != nil {
		return dst, err
	}
	data := body[4:]
	at := len(dst)
	switch c {
	case CodecS2:
		if m, err := s2.DecodedLen(data); err != nil || m != n {
			return dst, fmt.Errorf("%w: s2 block of %d bytes, claimed %d", ErrCorrupt, m, n)
		}
		dst = slices.Grow(dst, n)
		if _, err := s2.Decode(dst[at:at+n:at+n], data); err != nil {
			return dst[:at], fmt.Errorf("%w: cannot unpack s2: %v", ErrCorrupt, err)
		}
		return dst[:at+n], nil
	case CodecZstd:
		// The decoder allocates by the size that the frame's own header declares; read it first.
		var h zstd.Header
		if err := h.Decode(data); err != nil || h.Skippable || !h.HasFCS || h.FrameContentSize != uint64(n) {
			return dst, fmt.Errorf("%w: zstd frame declares %d bytes, claimed %d", ErrCorrupt, h.FrameContentSize, n)
		}
		if !zstdSingleFrame(&h, data) {
			return dst, fmt.Errorf("%w: zstd data of %d bytes is not one whole frame", ErrCorrupt, len(data))
		}
		dst = slices.Grow(dst, n)
		// The decoder counts what the target holds already against its limits: give it an empty one.
		out, err := zstdDecoder().DecodeAll(data, dst[at:at:at+n])
		if err != nil {
			return dst[:at], fmt.Errorf("%w: cannot unpack zstd: %v", ErrCorrupt, err)
		}
		if len(out) != n {
			return dst[:at], fmt.Errorf("%w: zstd frame unpacks to %d bytes, claimed %d", ErrCorrupt, len(out), n)
		}
		dst = dst[:at+n]
		if n > 0 && &out[0] != &dst[at] { // the decoder took memory of its own
			copy(dst[at:], out)
		}
		return dst, nil
	}
	return dst, fmt.Errorf("%w: compressed frame without an agreed codec (%s)", ErrCorrupt, c)
}

// zstdSingleFrame reports whether data is precisely the frame that h heads. It walks the blocks: the
// decoder itself would go on with whatever frames follow, skippable ones included.
func zstdSingleFrame(h *zstd.Header, data []byte) bool {
	const rle, reserved = 1, 3
	at := h.HeaderSize
	for last := false; !last; {
		if len(data)-at < 3 {
			return false
		}
		head := uint32(data[at]) | uint32(data[at+1])<<8 | uint32(data[at+2])<<16
		last = head&1 != 0
		size := int(head >> 3)
		switch head >> 1 & 3 {
		case rle:
			size = 1
		case reserved:
			return false
		}
		if at += 3; len(data)-at < size {
			return false
		}
		at += size
	}
	if h.HasCheckSum {
		at += 4
	}
	return at == len(data)
}
