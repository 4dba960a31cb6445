package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"kvstore/wire"
)

// The store compresses values when records are written and unpacks them when they are read. That is layout, like
// chunks: digest, Meta and checksum speak of the value as its writer sent it, so that replicas may differ in what
// they store. A value is compressed as a whole; what is still too large for one piece is cut afterwards.

const (
	// compressThresholdBytesDefault: below it, the call costs more than it saves, as with frames.
	compressThresholdBytesDefault = wire.CompressBytesMin

	// compressPaysPart: less than this part of a value saved isn't worth unpacking it at each read.
	compressPaysPart = 8

	// zstdWindowBytes bounds the memory of the encoder, and how far apart it finds what is alike.
	zstdWindowBytes = 1 << 20

	// packedKeptMax bounds the buffers that are kept for compressed values.
	packedKeptMax = 1 << 20
)

// packer compresses values. Its coders are made at their first use: s2 needs none.
//
// Owned by the applier.
type packer struct {
	level int // zstd's
	zstd  *zstd.Encoder
	lz4   *lz4.Compressor
	buf   []byte
}

// pack gives value in its compressed form, which is good until the next call; ok is false where that doesn't pay.
func (p *packer) pack(codec wire.Codec, value []byte) (packed []byte, ok bool) {
	most := len(value) - len(value)/compressPaysPart
	switch codec {
	case wire.CodecS2:
		p.room(s2.MaxEncodedLen(len(value)))
		packed = s2.Encode(p.buf[:cap(p.buf)], value)
	case wire.CodecZstd:
		if p.zstd == nil {
			p.zstd = newZstdEncoder(p.level)
		}
		p.room(most)
		packed = p.zstd.EncodeAll(value, p.buf[:0])
	case wire.CodecLZ4:
		if p.lz4 == nil {
			p.lz4 = new(lz4.Compressor)
		}
		p.room(most)
		// An error says that the target is too small: it doesn't pay.
		n, err := p.lz4.CompressBlock(value, p.buf[:most])
		if err != nil || n == 0 {
			return nil, false
		}
		packed = p.buf[:n]
	default:
		return nil, false
	}
	return packed, len(packed) > 0 && len(packed) <= most
}

// room makes buf hold n bytes, and lets go of one that was only needed for a large value.
func (p *packer) room(n int) {
	if cap(p.buf) < n || cap(p.buf) > packedKeptMax && n <= packedKeptMax {
		p.buf = make([]byte, 0, n)
	}
}

// newZstdEncoder makes an encoder for values. It leaves out the checksum: records have their own.
func newZstdEncoder(level int) *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevel(level)), zstd.WithWindowSize(zstdWindowBytes),
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		panic("BUG: zstd encoder options: " + err.Error())
	}
	return e
}

// zstdUnpacker is shared: DecodeAll may be called concurrently, as many at once as there are processors. It writes
// into the room that it is given and no further.
var zstdUnpacker = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(wire.ValueBytesMax), zstd.WithDecoderMaxWindow(wire.ValueBytesMax))
	if err != nil {
		panic("BUG: zstd decoder options: " + err.Error())
	}
	return d
})

var errUnpackedLength = errors.New("another length")

// unpack appends the value of n bytes that packed holds. It takes no more memory than those, whatever packed
// pretends to hold, and fails, with ErrRecordDamaged, unless it is precisely as many. packed may stand in dst's
// memory, before what is appended. REQUIRES: n ≤ wire.ValueBytesMax.
func unpack(dst []byte, codec wire.Codec, packed []byte, n int) ([]byte, error) {
	at := len(dst)
	dst = slices.Grow(dst, n)
	room := dst[at : at : at+n]
	var out []byte
	var err error
	switch codec {
	case wire.CodecS2:
		var size int
		if size, err = s2.DecodedLen(packed); err == nil && size != n {
			err = errUnpackedLength
		}
		if err == nil {
			out, err = s2.Decode(room[:n], packed)
		}
	case wire.CodecZstd:
		out, err = zstdUnpacker().DecodeAll(packed, room)
	case wire.CodecLZ4:
		var size int
		size, err = lz4.UncompressBlock(packed, room[:n])
		out = room[:max(size, 0)]
	default:
		err = errors.New("no such codec")
	}
	if err == nil && len(out) != n {
		err = errUnpackedLength
	}
	if err != nil {
		return dst[:at], fmt.Errorf("%w: %d bytes of %s that should hold %d: %w", ErrRecordDamaged, len(packed), codec, n, err)
	}
	if n > 0 && &out[0] != &room[:1][0] {
		panic("BUG: " + codec.String() + " has taken memory of its own")
	}
	return dst[:at+n], nil
}

// codecOf gives how the value of a put is to be compressed: as it says, else as its namespace does.
func (a *applier) codecOf(ch *change) wire.Codec {
	if ch.m.HasCompress {
		return ch.m.Compress
	}
	return a.namespaceCodec(namespaceOf(ch.key))
}

// pack gives r the form in which it is stored: compressed if its codec says so and that pays. The form is good
// until the next call. REQUIRES: r.Value is whole.
func (a *applier) pack(r *storedRecord) {
	codec, threshold := r.codec, a.in.store.o.CompressThresholdBytes
	r.codec, r.packed, r.packedLen = wire.CodecNone, nil, 0
	if codec == wire.CodecNone || threshold < 0 || len(r.Value) < max(threshold, 1) {
		return
	}
	m := &a.in.store.metrics.compress
	packed, ok := a.packer.pack(codec, r.Value)
	if !ok {
		m.plain.Add(1)
		return
	}
	m.values[codec].Add(1)
	m.raw[codec].Add(uint64(len(r.Value)))
	m.stored[codec].Add(uint64(len(packed)))
	r.codec, r.packed, r.packedLen, r.Value = codec, packed, uint32(len(packed)), nil
}

// codecs is how many there are, CodecNone included.
const codecs = wire.CodecLZ4 + 1

// compressMetrics counts what was compressed when it was written; by codec.
type compressMetrics struct {
	values, raw, stored [codecs]atomic.Uint64
	plain               atomic.Uint64
}

// CompressStats counts values that were compressed with one codec when they were written, rewritten ones again.
type CompressStats struct {
	Codec wire.Codec
	// Values is their number, RawBytes and StoredBytes their length before and after.
	Values, RawBytes, StoredBytes uint64
}

func (m *compressMetrics) stats() (all []CompressStats) {
	for c := wire.CodecNone + 1; c < codecs; c++ {
		all = append(all, CompressStats{Codec: c, Values: m.values[c].Load(), RawBytes: m.raw[c].Load(), StoredBytes: m.stored[c].Load()})
	}
	return all
}
