package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/s2"
)

// ErrSnapshotDamaged says that a snapshot's stream is not what a sender wrote, or that the state in it
// contradicts itself or what was asked for. Nothing has been installed.
var ErrSnapshotDamaged = errors.New("snapshot is damaged")

// The stream of a snapshot: a header frame, item frames, an end frame. It delimits itself. The items are all
// keys of the store that are visible at the checkpoint's ts, as they are stored, in key order, each once.
//
// A frame, integers little endian:
//
//	0 u8 format | 1 u8 kind | 2 u8 codec | 3 u8 0 | 4 u32 raw length | 8 u32 length
//	12 u32 crc32c over the 12 bytes before and the payload | 16 payload
//
// Frames have no numbers: a frame that is missing, doubled or in the wrong place breaks the order of the keys
// or the counts at the end.
const (
	frameFormat      = 1
	frameHeaderBytes = 16

	frameStart = 1
	frameItems = 2
	frameEnd   = 3

	codecNone = 0
	codecS2   = 1 // one block of s2

	// frameItemsBytesMax is where a frame of items ends, unless it holds a single longer one: long enough that
	// finding the place in the store anew for each frame costs nothing that can be measured beside reading it.
	frameItemsBytesMax = 1 << 20
	// itemOverheadBytesMax bounds what an item adds to its key and value: two lengths and an age.
	itemOverheadBytesMax = 2*binary.MaxVarintLen32 + binary.MaxVarintLen64
	// itemBytesMax bounds one item: its value lies below Badger's threshold.
	itemBytesMax = itemOverheadBytesMax + keyOverheadBytesMax + valueThresholdMax
	// framePayloadBytesMax bounds what a reader takes into memory for a frame. The header's configuration and
	// marker are far smaller.
	framePayloadBytesMax = max(frameItemsBytesMax, itemBytesMax)

	// frameSavingMin is what compression must save, as a fraction of the raw length, to be worth undoing.
	frameSavingMin = 16
)

// beginFrame makes room for a frame's header in front of its payload.
func beginFrame(dst []byte) []byte { return append(dst[:0], make([]byte, frameHeaderBytes)...) }

// sealFrame finishes the frame whose raw payload stands in frame behind the room for the header. The frame
// that it returns is frame itself or stands in scratch; both are good until their next use.
func sealFrame(kind byte, frame, scratch []byte) (sealed, newScratch []byte) {
	raw := frame[frameHeaderBytes:]
	codec := byte(codecNone)
	rawLen := len(raw)
	if kind == frameItems {
		need := frameHeaderBytes + s2.MaxEncodedLen(rawLen)
		scratch = slices.Grow(scratch[:0], need)[:need]
		packed := s2.Encode(scratch[frameHeaderBytes:], raw)
		if len(packed) < rawLen-rawLen/frameSavingMin {
			codec, frame = codecS2, scratch[:frameHeaderBytes+len(packed)]
		}
	}
	frame[0], frame[1], frame[2], frame[3] = frameFormat, kind, codec, 0
	binary.LittleEndian.PutUint32(frame[4:], uint32(rawLen))
	binary.LittleEndian.PutUint32(frame[8:], uint32(len(frame)-frameHeaderBytes))
	binary.LittleEndian.PutUint32(frame[12:], frameChecksum(frame[:12], frame[frameHeaderBytes:]))
	return frame, scratch
}

func frameChecksum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, header), castagnoli, payload)
}

// appendItem appends one stored key to the payload of a frame of items:
//
//	uvarint key length | uvarint value length | uvarint snapshot ts - version | key | value
func appendItem(dst, key, value []byte, age uint64) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	dst = binary.AppendUvarint(dst, age)
	return append(append(dst, key...), value...)
}

// snapshotHeader is the payload of the first frame: what a receiver has to know of the checkpoint, and whose
// state it is.
type snapshotHeader struct {
	group              uint32
	level              uint16
	index, term, ts    uint64
	time               int64
	configurationIndex uint64
	clusterID          [16]byte
	historyID          [16]byte
	configuration      []byte
	marker             []byte
}

// base is what the state adds to an index to get a ts.
func (h *snapshotHeader) base() uint64 { return h.ts - h.index }

// appendSnapshotHeader appends, integers little endian:
//
//	0 u32 group | 4 u16 level | 6 u16 0 | 8 u64 index | 16 u64 term | 24 u64 ts | 32 i64 time
//	40 u64 base | 48 u64 configuration index | 56 16×cluster | 72 16×history
//	88 u32+bytes configuration | u32+bytes marker
func appendSnapshotHeader(dst []byte, h *snapshotHeader) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, h.group)
	dst = binary.LittleEndian.AppendUint16(dst, h.level)
	dst = append(dst, 0, 0)
	for _, v := range [...]uint64{h.index, h.term, h.ts, uint64(h.time), h.base(), h.configurationIndex} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = append(append(dst, h.clusterID[:]...), h.historyID[:]...)
	for _, b := range [...][]byte{h.configuration, h.marker} {
		dst = append(binary.LittleEndian.AppendUint32(dst, uint32(len(b))), b...)
	}
	return dst
}

const snapshotHeaderFixedBytes = 88

// decodeSnapshotHeader reads what appendSnapshotHeader wrote; the slices are copies. It fails with
// ErrSnapshotDamaged only.
func decodeSnapshotHeader(b []byte) (h snapshotHeader, err error) {
	if len(b) < snapshotHeaderFixedBytes || b[6]|b[7] != 0 {
		return snapshotHeader{}, fmt.Errorf("%w: header of %d bytes", ErrSnapshotDamaged, len(b))
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	h = snapshotHeader{
		group: binary.LittleEndian.Uint32(b), level: binary.LittleEndian.Uint16(b[4:]),
		index: u64(8), term: u64(16), ts: u64(24), time: int64(u64(32)), configurationIndex: u64(48),
	}
	copy(h.clusterID[:], b[56:])
	copy(h.historyID[:], b[72:])
	rest := b[snapshotHeaderFixedBytes:]
	for _, field := range [...]*[]byte{&h.configuration, &h.marker} {
		if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.LittleEndian.Uint32(rest)) {
			return snapshotHeader{}, fmt.Errorf("%w: header ends early", ErrSnapshotDamaged)
		}
		n := 4 + int(binary.LittleEndian.Uint32(rest))
		*field, rest = bytes.Clone(rest[4:n]), rest[n:]
	}
	if len(rest) > 0 || h.index == 0 || h.ts < h.index || h.base() != u64(40) || h.configurationIndex > h.index || len(h.marker) == 0 {
		return snapshotHeader{}, fmt.Errorf("%w: the numbers of its header contradict each other", ErrSnapshotDamaged)
	}
	return h, nil
}

// snapshotEnd is the payload of the last frame: u64 items, u64 bytes of their keys and values.
type snapshotEnd struct{ items, bytes uint64 }

const snapshotEndBytes = 16

func appendSnapshotEnd(dst []byte, e snapshotEnd) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(dst, e.items), e.bytes)
}

// snapshotReader reads a stream, not one byte beyond its end, and checks what can be checked without a
// store: the frames, the order and the lengths of the items, and the counts.
type snapshotReader struct {
	r  io.Reader
	at uint64 // bytes read

	header [frameHeaderBytes]byte
	packed []byte
	raw    []byte

	ts      uint64
	lastKey []byte
	count   snapshotEnd
	records uint64 // among the items
}

// frame reads one frame. The payload is good until the next call. Errors: those of the reader, and
// ErrSnapshotDamaged.
func (s *snapshotReader) frame() (kind byte, payload []byte, err error) {
	if err := s.full(s.header[:]); err != nil {
		return 0, nil, err
	}
	h := &s.header
	rawLen, length := binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint32(h[8:])
	kind, codec := h[1], h[2]
	// Checked before the checksum can be: they say how much to read.
	switch {
	case h[0] != frameFormat:
		return 0, nil, s.damaged("a frame of format %d; this build reads %d", h[0], frameFormat)
	case kind < frameStart || kind > frameEnd || codec > codecS2 || h[3] != 0:
		return 0, nil, s.damaged("a frame of kind %d, codec %d", kind, codec)
	case rawLen > framePayloadBytesMax || codec == codecNone && length != rawLen || codec == codecS2 && length >= rawLen:
		return 0, nil, s.damaged("a frame of %d bytes, raw %d", length, rawLen)
	}
	s.packed = slices.Grow(s.packed[:0], int(length))[:length]
	if err := s.full(s.packed); err != nil {
		return 0, nil, err
	}
	if got, want := binary.LittleEndian.Uint32(h[12:]), frameChecksum(h[:12], s.packed); got != want {
		return 0, nil, s.damaged("a frame with checksum %#x, computed %#x", got, want)
	}
	if codec == codecNone {
		return kind, s.packed, nil
	}
	if n, err := s2.DecodedLen(s.packed); err != nil || n != int(rawLen) {
		return 0, nil, s.damaged("a compressed frame of %d bytes, not %d", n, rawLen)
	}
	s.raw = slices.Grow(s.raw[:0], int(rawLen))[:rawLen]
	if s.raw, err = s2.Decode(s.raw, s.packed); err != nil {
		return 0, nil, s.damaged("a frame that can't be decompressed: %v", err)
	}
	return kind, s.raw, nil
}

// full fills b. A stream that ends before its end frame is damaged.
func (s *snapshotReader) full(b []byte) error {
	n, err := io.ReadFull(s.r, b)
	s.at += uint64(n)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return s.damaged("it ends early")
	case err != nil:
		return fmt.Errorf("cannot read the snapshot after %d bytes: %w", s.at, err)
	}
	return nil
}

// damaged says what is wrong before the place that was reached.
func (s *snapshotReader) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: before byte %d: %s", ErrSnapshotDamaged, s.at, fmt.Sprintf(format, args...))
}

// start reads the first frame.
func (s *snapshotReader) start() (h snapshotHeader, err error) {
	kind, payload, err := s.frame()
	if err != nil {
		return snapshotHeader{}, err
	}
	if kind != frameStart {
		return snapshotHeader{}, s.damaged("it begins with a frame of kind %d", kind)
	}
	if h, err = decodeSnapshotHeader(payload); err != nil {
		return snapshotHeader{}, err
	}
	s.ts = h.ts
	return h, nil
}

// next reads one frame behind the first and calls fn for each item in it; more is false when it was the end
// frame. key and value are good until fn returns; fn's error is returned as it is.
func (s *snapshotReader) next(fn func(key, value []byte, version uint64) error) (more bool, err error) {
	kind, payload, err := s.frame()
	switch {
	case err != nil:
		return false, err
	case kind == frameItems:
		return true, s.items(payload, fn)
	case kind != frameEnd:
		return false, s.damaged("a second header")
	case len(payload) != snapshotEndBytes:
		return false, s.damaged("an end frame of %d bytes", len(payload))
	}
	end := snapshotEnd{binary.LittleEndian.Uint64(payload), binary.LittleEndian.Uint64(payload[8:])}
	if end != s.count {
		return false, s.damaged("it ends with %d items of %d bytes where %d of %d were read", end.items, end.bytes, s.count.items, s.count.bytes)
	}
	return false, nil
}

// items walks through the payload of a frame of items.
func (s *snapshotReader) items(b []byte, fn func(key, value []byte, version uint64) error) error {
	if len(b) == 0 {
		return s.damaged("a frame without items")
	}
	var number [3]uint64
	for len(b) > 0 {
		for i := range number {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return s.damaged("an item without its lengths")
			}
			number[i], b = v, b[n:]
		}
		keyLen, valueLen, age := number[0], number[1], number[2]
		// Each below its own bound first: their sum can't overflow then.
		if keyLen == 0 || keyLen > keyOverheadBytesMax || valueLen == 0 || valueLen >= valueThresholdMax || keyLen+valueLen > uint64(len(b)) || age >= s.ts {
			return s.damaged("an item with a key of %d and a value of %d bytes where %d are left, %d below ts %d", keyLen, valueLen, len(b), age, s.ts)
		}
		key, value := b[:keyLen], b[keyLen:keyLen+valueLen]
		b = b[keyLen+valueLen:]
		if bytes.Compare(key, s.lastKey) <= 0 {
			return s.damaged("key %x behind key %x", key, s.lastKey)
		}
		if !knownFamily(key[0]) {
			return s.damaged("key %x of a family that this build doesn't know", key)
		}
		s.lastKey = append(s.lastKey[:0], key...)
		s.count.items++
		s.count.bytes += keyLen + valueLen
		if key[0] == familyRecord {
			s.records++
		}
		if err := fn(key, value, s.ts-age); err != nil {
			return err
		}
	}
	return nil
}

// knownFamily reports whether keys may begin with family; see keys.go.
func knownFamily(family byte) bool {
	switch family {
	case familyRecord, familyChunk, familyExpiry, familySession, familyJournal, familyMarker, familyUsage, familyOnce:
		return true
	}
	return false
}
