package feed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"kvstore/wire"
)

// A segment is a sequence of records (package record). The payload of each begins alike, integers little-endian:
//
//	0 u8 format | 1 u8 kind | 2 u8 flags | 3 0 | 4 u32 count | 8 u64 index | 16 u64 ts | 24 i64 time | 32 u64 revision
//
// index, ts, time and revision are those of the state: behind the entry of kindEntry; up to which the feed is complete
// of kindMark, which says no more; before the first entry of the segment of kindHeader, which goes on with
//
//	40 u64 offset of the segment in the stream | 48 u64 base: ts - index of the entries that follow
//
// and kindEntry with count events:
//
//	0 u8 kind | 1 u8 flags | 2 u16 ext | 4 u16 key | 6 u16 0 | 8 u32 value | 12 u32 namespace | 16 u64 revision
//	of a put 40 bytes Meta | key | ext | value
const (
	recordFormat    = 1
	recordHeadBytes = 40
	headerBytes     = recordHeadBytes + 16
	eventHeadBytes  = 24

	kindHeader = 1
	kindEntry  = 2
	kindMark   = 3

	// flagMore: the entry goes on in the next record.
	flagMore = 1

	eventLast        = 1
	eventHadPrevious = 2
	eventFlags       = eventLast | eventHadPrevious

	// recordBytesTarget is the size at which the record of a large entry ends and another begins: who reads one holds
	// it in memory. A record has at least one event, so it may be as long as a value.
	recordBytesTarget = 1 << 20
	// recordBytesMax bounds a payload: the target, and one event of any size on top.
	recordBytesMax = recordBytesTarget + recordHeadBytes + eventHeadBytes + wire.MetaBytes + 2*math.MaxUint16 + wire.ValueBytesMax
)

// errMalformed says that a record is whole and its contents contradict each other.
var errMalformed = errors.New("feed: malformed record")

// state is where the log and the state stand.
type state struct {
	index, ts uint64
	time      int64
	revision  wire.Revision
}

func (s state) base() uint64 { return s.ts - s.index }

// head is what every payload begins with.
type head struct {
	kind  uint8
	more  bool
	count uint32
	state
}

func appendHead(dst []byte, h *head) []byte {
	flags := byte(0)
	if h.more {
		flags = flagMore
	}
	dst = append(dst, recordFormat, h.kind, flags, 0)
	dst = binary.LittleEndian.AppendUint32(dst, h.count)
	dst = binary.LittleEndian.AppendUint64(dst, h.index)
	dst = binary.LittleEndian.AppendUint64(dst, h.ts)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.time))
	return binary.LittleEndian.AppendUint64(dst, h.revision)
}

// decodeHead reads what appendHead wrote and returns what follows.
func decodeHead(b []byte, h *head) (rest []byte, err error) {
	if len(b) < recordHeadBytes {
		return nil, fmt.Errorf("%w: %d bytes", errMalformed, len(b))
	}
	if b[0] != recordFormat || b[1] < kindHeader || b[1] > kindMark || b[2]&^flagMore != 0 || b[3] != 0 {
		return nil, fmt.Errorf("%w: it begins with % x", errMalformed, b[:4])
	}
	*h = head{kind: b[1], more: b[2] != 0, count: binary.LittleEndian.Uint32(b[4:]), state: state{
		index: binary.LittleEndian.Uint64(b[8:]), ts: binary.LittleEndian.Uint64(b[16:]),
		time: int64(binary.LittleEndian.Uint64(b[24:])), revision: binary.LittleEndian.Uint64(b[32:]),
	}}
	rest = b[recordHeadBytes:]
	switch {
	case h.ts < h.index, h.kind != kindEntry && (h.more || h.count != 0), h.kind == kindEntry && h.count == 0,
		h.kind == kindMark && len(rest) != 0, h.kind == kindHeader && len(rest) != headerBytes-recordHeadBytes,
		uint64(h.count)*eventHeadBytes > uint64(len(rest)):
		return nil, fmt.Errorf("%w: kind %d with %d events in %d bytes, index %d, ts %d", errMalformed, h.kind, h.count, len(rest), h.index, h.ts)
	}
	return rest, nil
}

// segmentHeader is the first record of a segment.
type segmentHeader struct {
	// state is that before the first entry of the segment.
	state
	offset int64
	// follows is ts - index of the segment's entries.
	follows uint64
}

func appendHeader(dst []byte, s *segmentHeader) []byte {
	dst = appendHead(dst, &head{kind: kindHeader, state: s.state})
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.offset))
	return binary.LittleEndian.AppendUint64(dst, s.follows)
}

func decodeHeader(payload []byte) (s segmentHeader, err error) {
	var h head
	rest, err := decodeHead(payload, &h)
	if err != nil {
		return s, err
	}
	if h.kind != kindHeader {
		return s, fmt.Errorf("%w: kind %d where a segment begins", errMalformed, h.kind)
	}
	s = segmentHeader{state: h.state, offset: int64(binary.LittleEndian.Uint64(rest)), follows: binary.LittleEndian.Uint64(rest[8:])}
	if s.offset < 0 || s.follows < s.base() {
		return s, fmt.Errorf("%w: a segment at %d whose base falls from %d to %d", errMalformed, s.offset, s.base(), s.follows)
	}
	return s, nil
}

func eventBytes(e *Event) int {
	n := eventHeadBytes + len(e.Key)
	if e.Kind == wire.EventPut {
		n += wire.MetaBytes + len(e.Record.Ext) + len(e.Record.Value)
	}
	return n
}

// appendEvent appends e. A part that doesn't fit its length is a broken promise of the caller and panics.
func appendEvent(dst []byte, e *Event) []byte {
	flags := byte(0)
	if e.Last {
		flags |= eventLast
	}
	if e.HadPrevious {
		flags |= eventHadPrevious
	}
	var r wire.Record
	if e.Kind == wire.EventPut {
		r = e.Record
	}
	if len(e.Key) > math.MaxUint16 || len(r.Ext) > math.MaxUint16 || len(r.Value) > wire.ValueBytesMax {
		panic(fmt.Sprintf("BUG: event with a key of %d bytes, elements of %d and a value of %d", len(e.Key), len(r.Ext), len(r.Value)))
	}
	dst = append(dst, byte(e.Kind), flags)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Ext)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(e.Key)))
	dst = append(dst, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(r.Value)))
	dst = binary.LittleEndian.AppendUint32(dst, e.Namespace)
	dst = binary.LittleEndian.AppendUint64(dst, e.Revision)
	if e.Kind == wire.EventPut {
		dst = wire.AppendMeta(dst, &r.Meta)
	}
	dst = append(dst, e.Key...)
	dst = append(dst, r.Ext...)
	return append(dst, r.Value...)
}

// nextEvent cuts the first event off b.
func nextEvent(b []byte, e *Event) (rest []byte, err error) {
	if len(b) < eventHeadBytes {
		return nil, fmt.Errorf("%w: %d bytes where an event begins", errMalformed, len(b))
	}
	*e = Event{
		Kind: wire.EventKind(b[0]), Last: b[1]&eventLast != 0, HadPrevious: b[1]&eventHadPrevious != 0,
		Namespace: binary.LittleEndian.Uint32(b[12:]), Revision: binary.LittleEndian.Uint64(b[16:]),
	}
	ext, key, value := int(binary.LittleEndian.Uint16(b[2:])), int(binary.LittleEndian.Uint16(b[4:])), uint64(binary.LittleEndian.Uint32(b[8:]))
	put := e.Kind == wire.EventPut
	if e.Kind < wire.EventPut || e.Kind > wire.EventExpire || b[1]&^eventFlags != 0 || b[6]|b[7] != 0 || !put && (ext != 0 || value != 0) {
		return nil, fmt.Errorf("%w: an event begins with % x", errMalformed, b[:eventHeadBytes])
	}
	rest = b[eventHeadBytes:]
	meta := 0
	if put {
		meta = wire.MetaBytes
	}
	if uint64(meta+key+ext)+value > uint64(len(rest)) {
		return nil, fmt.Errorf("%w: an event of %d + %d + %d bytes in %d", errMalformed, key, ext, value, len(rest))
	}
	if put {
		if err := wire.DecodeMeta(rest[:meta], &e.Record.Meta); err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
	}
	rest = rest[meta:]
	e.Key, rest = rest[:key:key], rest[key:]
	if put {
		e.Record.Ext, rest = rest[:ext:ext], rest[ext:]
		e.Record.Value, rest = rest[:value:value], rest[value:]
	}
	return rest, nil
}
