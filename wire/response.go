package wire

import (
	"encoding/binary"
	"unicode/utf8"
)

// Token identifies one request to whoever answers it, and carries what the door wants back with the
// answer. It is a value: handing it on allocates nothing.
type Token struct {
	ID    uint32
	Op    Opcode
	Flags Flags
	// Cost is the request's bytes counted against the connection's credit.
	Cost uint32
	// Start is when the request arrived, in nanoseconds of the door's monotonic clock.
	Start int64
}

// Response is the answer to a request. Slices are views that live until Complete returns.
type Response struct {
	Status Status
	// Replayed: see Result.Replayed.
	Replayed bool
	// More: other frames of this answer follow; see FlagMore. Set by Pusher.Push alone.
	More bool
	Ext  []byte
	// Payload depends on operation and status: for ClassResult what the operation defines, otherwise a
	// text for people (empty: the text of the status table).
	Payload []byte
}

// Completer takes the answers of one connection or caller. It is implemented by the doors.
type Completer interface {
	// Complete gives the final answer to t. It is called exactly once for each request that a door handed
	// on, from any goroutine; it copies what it keeps and never blocks.
	Complete(t Token, r *Response)
}

// Pusher is a Completer that takes answers of several frames. A door that serves streams implements it.
type Pusher interface {
	Completer
	// Push queues a frame of the answer to t that is not its last: r.More is taken as set. It reports PushOK; or
	// PushFull when so much waits to be written that nothing was queued, whereupon Handler.Writable will be called
	// once there is room again; or PushGone when nobody takes answers any more, which is told only if t's connection
	// has ended: t still wants its Complete. Any goroutine may call it, one at a time for a token; it copies what
	// it keeps and never blocks.
	Push(t Token, r *Response) PushResult
}

// PushResult is what became of a frame given to Pusher.Push.
type PushResult uint8

// The results of Push.
const (
	PushOK PushResult = iota
	PushFull
	PushGone
)

// ErrorResponse builds the answer for a refusal. ext is scratch space for its extension block.
func ErrorResponse(ref *Refusal, ext []byte) Response {
	if ref.Limit != 0 {
		ext = AppendExtU64(ext, ExtLimit, ref.Limit)
	}
	if ref.RetryAfterMs != 0 {
		ext = AppendExtU32(ext, ExtRetryAfter, ref.RetryAfterMs)
	}
	if ref.Leader != "" {
		ext = AppendExtString(ext, ExtLeader, ref.Leader)
		ext = AppendExtU64(ext, ExtTerm, ref.Term)
	}
	return Response{Status: ref.Status, Ext: ext, Payload: []byte(clipText(ref.Text))}
}

// clipText cuts a text to MessageBytesMax without cutting a character.
func clipText(s string) string {
	if len(s) <= MessageBytesMax {
		return s
	}
	n := MessageBytesMax
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// AppendGoAway appends the frame by which a server announces the end of a connection: an answer with
// request id 0, a status that says why and a text for people. With StatusDraining the connection stays
// for the answers still to come, and requests that arrive are answered StatusDraining; with any other
// status the server has closed it, and what is unanswered has an unknown outcome.
func AppendGoAway(dst []byte, s Status, text string, crc bool) []byte {
	h := Header{Op: OpGoAway, Flags: FlagResponse, StatusOrGroup: uint16(s)}
	if crc {
		h.Flags |= FlagCRC
	}
	dst, off := BeginFrame(dst)
	return FinishFrame(append(dst, clipText(text)...), off, h)
}

// VersionBytes is the length of the payload of an answer to PUT and DELETE with StatusOK or
// StatusNotFound: the revision of the mutation, 0 if nothing was changed.
const VersionBytes = 8

// DecodeVersion reads what AppendVersion wrote; ok is false for a wrong length.
func DecodeVersion(b []byte) (rev Revision, ok bool) {
	if len(b) != VersionBytes {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}

// AppendVersion appends the payload of an answer to PUT and DELETE; see VersionBytes.
func AppendVersion(dst []byte, rev Revision) []byte {
	return binary.LittleEndian.AppendUint64(dst, rev)
}

// SessionGrant is the payload of an answer to OpSessionOpen: {u64 session, u64 time to live in ms}.
type SessionGrant struct {
	Session uint64
	TTLMs   uint64
}

// SessionGrantBytes is the length of an encoded SessionGrant.
const SessionGrantBytes = 16

// AppendSessionGrant appends the payload of an answer to OpSessionOpen.
func AppendSessionGrant(dst []byte, g SessionGrant) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(dst, g.Session), g.TTLMs)
}

// DecodeSessionGrant reads what AppendSessionGrant wrote; ok is false for a wrong length.
func DecodeSessionGrant(b []byte) (g SessionGrant, ok bool) {
	if len(b) != SessionGrantBytes {
		return g, false
	}
	return SessionGrant{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}, true
}

// AppendResponse appends r as a frame that answers t. FlagQuiet is not looked at: the door drops what need
// not be sent. crc asks for a checksum; serverUs is the time the
// server took, in microseconds.
func AppendResponse(dst []byte, t Token, r *Response, crc bool, serverUs uint32) []byte {
	f := FlagResponse
	if crc {
		f |= FlagCRC
	}
	if r.Replayed {
		f |= FlagReplayed
	}
	if r.More {
		f |= FlagMore
	}
	return AppendFrame(dst, Header{Op: t.Op, Flags: f, StatusOrGroup: uint16(r.Status), ID: t.ID, TimeOrTimeout: serverUs}, r.Ext, nil, r.Payload)
}
