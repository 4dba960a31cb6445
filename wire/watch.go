package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Flags of a watch.
const (
	// WatchKey: Start is the one key that is watched; Prefix and End are empty.
	WatchKey = 1 << 0
	// WatchKeysOnly leaves the values out, and the elements but Meta.
	WatchKeysOnly = 1 << 1
	// WatchPrevious asks for what was there before each change, as far as that is kept.
	WatchPrevious = 1 << 2
	// WatchFromNow begins at the state of the moment: After is 0 and not looked at. Without it, the watch begins behind
	// After, and After 0 is the beginning of history.
	WatchFromNow = 1 << 3
	// WatchNoPut, WatchNoDelete and WatchNoExpire leave events of that kind out; not all of them.
	WatchNoPut    = 1 << 4
	WatchNoDelete = 1 << 5
	WatchNoExpire = 1 << 6

	watchFlags = WatchKey | WatchKeysOnly | WatchPrevious | WatchFromNow | watchKinds
	watchKinds = WatchNoPut | WatchNoDelete | WatchNoExpire
)

// WatchRequest asks for the changes of the keys that begin with Prefix and are ≥ Start and < End; what is empty does
// not bound. The answer is a stream of frames with FlagMore, each with an EventBatch as its payload; the first one
// comes at once, has the elements ExtHistory and ExtNamespaceID and perhaps no events, and its revision is the one that the watch begins
// behind. A frame without FlagMore ends it: its status says why.
//
// The server sends while the watch has credit: each frame takes the length of its payload, and the last one may take
// more than there is. OpCredit gives credit back.
//
//	0 u8 flags | 1 3 × 0 | 4 u32 credit | 8 u32 progress_ms | 12 u16 prefix | 14 u16 start | 16 u16 end | 18 u16 0
//	20 u64 after | then prefix, start and end
type WatchRequest struct {
	Flags uint8
	// Credit is in bytes; 0: StreamCreditDefault.
	Credit uint32
	// ProgressMs is how often, in milliseconds, a frame without events tells how far the watch has come while nothing
	// happens; 0: ProgressMsDefault.
	ProgressMs uint32
	// After: events have revisions above it.
	After  Revision
	Prefix []byte
	Start  []byte
	End    []byte
}

const watchHeaderBytes = 28

// AppendWatchRequest appends the payload of OpWatch. REQUIRES: each text fits its u16; it panics otherwise.
func AppendWatchRequest(dst []byte, w *WatchRequest) []byte {
	dst = append(dst, w.Flags, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, w.Credit)
	dst = binary.LittleEndian.AppendUint32(dst, w.ProgressMs)
	for _, b := range [...][]byte{w.Prefix, w.Start, w.End, nil} {
		dst = binary.LittleEndian.AppendUint16(dst, u16(len(b), "text of a watch"))
	}
	dst = binary.LittleEndian.AppendUint64(dst, w.After)
	for _, b := range [...][]byte{w.Prefix, w.Start, w.End} {
		dst = append(dst, b...)
	}
	return dst
}

// DecodeWatchRequest reads and checks the payload of OpWatch; credit and progress come back within their bounds, with
// defaults filled in.
func DecodeWatchRequest(b []byte, w *WatchRequest) *Refusal {
	if len(b) < watchHeaderBytes {
		return refuse(StatusBadRequest, "watch of %d bytes", len(b))
	}
	*w = WatchRequest{
		Flags: b[0], Credit: binary.LittleEndian.Uint32(b[4:]), ProgressMs: binary.LittleEndian.Uint32(b[8:]),
		After: binary.LittleEndian.Uint64(b[20:]),
	}
	if b[0]&^watchFlags != 0 || b[1]|b[2]|b[3]|b[18]|b[19] != 0 {
		return refuse(StatusUnsupported, "flags % x of watch are not known to this version", b[:4])
	}
	rest := b[watchHeaderBytes:]
	for i, f := range [...]*[]byte{&w.Prefix, &w.Start, &w.End} {
		n := int(binary.LittleEndian.Uint16(b[12+2*i:]))
		if n > len(rest) {
			return refuse(StatusBadRequest, "lengths of watch lie")
		}
		*f, rest = rest[:n:n], rest[n:]
	}
	switch {
	case len(rest) != 0:
		return refuse(StatusBadRequest, "%d bytes after the watch", len(rest))
	case len(w.Prefix) > KeyBytesMax || len(w.Start) > KeyBytesMax || len(w.End) > KeyBytesMax:
		return refuseLimit(KeyBytesMax, "bounds of a watch have at most %d bytes", KeyBytesMax)
	case w.Flags&watchKinds == watchKinds:
		return refuse(StatusBadRequest, "a watch that leaves out puts, deletes and expiries shows nothing")
	case w.Flags&WatchFromNow != 0 && w.After != 0:
		return refuse(StatusBadRequest, "a watch begins now, or behind revision %d, not both", w.After)
	}
	if w.Flags&WatchKey != 0 {
		if len(w.Prefix)+len(w.End) != 0 {
			return refuse(StatusBadRequest, "a watch of one key has neither prefix nor end")
		}
		if ref := checkKey(w.Start); ref != nil {
			return ref
		}
	}
	if w.Credit == 0 {
		w.Credit = StreamCreditDefault
	}
	w.Credit = min(w.Credit, StreamCreditMax)
	if w.ProgressMs == 0 {
		w.ProgressMs = ProgressMsDefault
	}
	w.ProgressMs = min(max(w.ProgressMs, ProgressMsMin), ProgressMsMax)
	return nil
}

// Covers reports whether the watch's range holds key, whatever its flags say of kinds.
func (w *WatchRequest) Covers(key []byte) bool {
	if w.Flags&WatchKey != 0 {
		return string(key) == string(w.Start)
	}
	return len(key) >= len(w.Prefix) && string(key[:len(w.Prefix)]) == string(w.Prefix) &&
		string(key) >= string(w.Start) && (len(w.End) == 0 || string(key) < string(w.End))
}

// EventKind says what happened to a key.
type EventKind uint8

// The kinds of events.
const (
	EventPut    EventKind = 1
	EventDelete EventKind = 2
	EventExpire EventKind = 3 // its deadline passed
)

// String gives the name that people and server-sent events see.
func (k EventKind) String() string {
	switch k {
	case EventPut:
		return "put"
	case EventDelete:
		return "delete"
	case EventExpire:
		return "expire"
	}
	return "unknown"
}

// Flags of an event.
const (
	// EventLast: the last event of its operation or transaction, of all keys: what has been seen up to here is not half
	// of one. An event that the watch leaves out may have carried it: a batch's revision covers that.
	EventLast = 1 << 0
	// EventHadPrevious: there was a record before; PreviousExt begins with its Meta.
	EventHadPrevious = 1 << 1
	// EventPreviousLost: what was there before was asked for, and isn't kept any more or has no room beside the rest.
	EventPreviousLost = 1 << 2
)

// Event is one change of one key. Slices are views.
//
//	0 u8 kind | 1 u8 flags | 2 u16 ext | 4 u16 key | 6 u16 previous ext | 8 u32 value | 12 u32 previous value | 16 u64 revision
//	then ext | key | value | previous ext | previous value
type Event struct {
	Kind  EventKind
	Flags uint8
	// Revision is that of the change: the version of the record that a put made.
	Revision Revision
	// Ext is, of a put, the record's elements as in the answer to a GET: Meta first. Empty otherwise.
	Ext   []byte
	Key   []byte
	Value []byte
	// PreviousExt and Previous are the same of what was there before, where it was asked for.
	PreviousExt []byte
	Previous    []byte
}

// EventHeaderBytes is the length of what precedes the parts of an event.
const EventHeaderBytes = 24

// Bytes is the length of e when it is encoded.
func (e *Event) Bytes() int {
	return EventHeaderBytes + len(e.Ext) + len(e.Key) + len(e.Value) + len(e.PreviousExt) + len(e.Previous)
}

// AppendEvent appends e. REQUIRES: its parts fit their length fields; it panics otherwise.
func AppendEvent(dst []byte, e *Event) []byte {
	if uint64(len(e.Value)) > math.MaxUint32 || uint64(len(e.Previous)) > math.MaxUint32 {
		lengthBug("value of an event", max(len(e.Value), len(e.Previous)))
	}
	dst = append(dst, byte(e.Kind), e.Flags)
	dst = binary.LittleEndian.AppendUint16(dst, u16(len(e.Ext), "extension block"))
	dst = binary.LittleEndian.AppendUint16(dst, u16(len(e.Key), "key"))
	dst = binary.LittleEndian.AppendUint16(dst, u16(len(e.PreviousExt), "extension block"))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(e.Value)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(e.Previous)))
	dst = binary.LittleEndian.AppendUint64(dst, e.Revision)
	for _, b := range [...][]byte{e.Ext, e.Key, e.Value, e.PreviousExt, e.Previous} {
		dst = append(dst, b...)
	}
	return dst
}

// NextEvent cuts the first event off b.
func NextEvent(b []byte, e *Event) (rest []byte, err error) {
	if len(b) < EventHeaderBytes {
		return nil, fmt.Errorf("%w: %d bytes where an event begins", ErrCorrupt, len(b))
	}
	*e = Event{Kind: EventKind(b[0]), Flags: b[1], Revision: binary.LittleEndian.Uint64(b[16:])}
	if e.Kind < EventPut || e.Kind > EventExpire {
		return nil, fmt.Errorf("%w: event of kind %d", ErrCorrupt, e.Kind)
	}
	lengths := [...]uint64{
		uint64(binary.LittleEndian.Uint16(b[2:])), uint64(binary.LittleEndian.Uint16(b[4:])), uint64(binary.LittleEndian.Uint32(b[8:])),
		uint64(binary.LittleEndian.Uint16(b[6:])), uint64(binary.LittleEndian.Uint32(b[12:])),
	}
	rest = b[EventHeaderBytes:len(b):len(b)]
	for i, f := range [...]*[]byte{&e.Ext, &e.Key, &e.Value, &e.PreviousExt, &e.Previous} {
		n := lengths[i]
		if n > uint64(len(rest)) {
			return nil, fmt.Errorf("%w: event of %v bytes in %d", ErrCorrupt, lengths, len(b))
		}
		*f, rest = rest[:n:n], rest[n:]
	}
	return rest, nil
}

// EventBatchHeaderBytes is the length of what precedes the events of a batch: {u64 revision, u32 count, u32 0}.
const EventBatchHeaderBytes = 16

// EventBatch is the payload of a frame of a watch. Events stay encoded, Count of them.
type EventBatch struct {
	// Revision: all events of the watch's range up to it have been sent, with this batch. A watch that is asked for
	// after it misses nothing and repeats nothing.
	Revision Revision
	Count    int
	Events   []byte
}

// AppendEventBatchHeader begins the payload of a frame of a watch.
func AppendEventBatchHeader(dst []byte, rev Revision, count int) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, rev)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(count))
	return append(dst, 0, 0, 0, 0)
}

// PutEventBatchHeader writes over a header that AppendEventBatchHeader has written at the start of b.
func PutEventBatchHeader(b []byte, rev Revision, count int) {
	binary.LittleEndian.PutUint64(b, rev)
	binary.LittleEndian.PutUint32(b[8:], uint32(count))
}

// DecodeEventBatch reads the header of a batch. The events are not looked at.
func DecodeEventBatch(b []byte, eb *EventBatch) error {
	if len(b) < EventBatchHeaderBytes || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return fmt.Errorf("%w: events of %d bytes", ErrCorrupt, len(b))
	}
	n := binary.LittleEndian.Uint32(b[8:])
	events := b[EventBatchHeaderBytes:len(b):len(b)]
	if uint64(n)*EventHeaderBytes > uint64(len(events)) {
		return fmt.Errorf("%w: %d events in %d bytes", ErrCorrupt, n, len(events))
	}
	*eb = EventBatch{Revision: binary.LittleEndian.Uint64(b), Count: int(n), Events: events}
	return nil
}

// CreditBytes is the length of the payload of OpCredit.
const CreditBytes = 8

// AppendCredit appends the payload of OpCredit: u32 id of the stream's request | u32 bytes.
func AppendCredit(dst []byte, id, bytes uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(dst, id), bytes)
}

// DecodeCredit reads what AppendCredit wrote; ok is false for a wrong length.
func DecodeCredit(b []byte) (id, bytes uint32, ok bool) {
	if len(b) != CreditBytes {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), true
}
