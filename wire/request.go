package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"
)

// Request is a decoded request. Slices are views over the frame.
type Request struct {
	Op    Opcode
	Flags Flags
	// Group is the Raft group; a 0 in the frame asks for GroupDefault and comes back as that.
	Group uint16
	ID    uint32
	// TimeoutMs is the relative deadline in milliseconds; 0 asks for the server's default.
	TimeoutMs uint32
	// Items counts what the request does: 1 for a put or delete, the operations of a batch or transaction,
	// the keys of a MULTIGET, and 0 for everything else. An entry holds at most EntryItemsMax.
	Items int
	// Body is Ext | Key | Payload: for a mutation it goes into the log as it is.
	Body    []byte
	Ext     []byte
	Key     []byte
	Payload []byte

	// Decoded from Ext.
	Namespace []byte
	// Stale: what the asked node has will do. AnyNode: the answer must be linearizable, and a node that does
	// not lead may give it. At most one of them is set.
	Stale   bool
	AnyNode bool
	// MaxAgeMs bounds the age of a stale answer in milliseconds; 0: it may have any age.
	MaxAgeMs    uint64
	Session     uint64 // 0: no session
	Seq         uint64
	Floor       uint64
	MinRevision Revision
	AtRevision  Revision
	History     []byte // empty, or 16 bytes
	NamespaceID uint32 // 0: whatever the name stands for
	// Idempotency is empty, or the value of ExtIdempotency: the write is done once, however often it is sent.
	Idempotency []byte

	// Set by the door; see Token.
	Cost  uint32
	Start int64
}

// GroupDefault is the Raft group that a request with group 0 means.
const GroupDefault = 1

// Timeout gives the request's deadline relative to its arrival: TimeoutDefault where it carries none, and
// never more than TimeoutMax.
func (r *Request) Timeout() time.Duration {
	if r.TimeoutMs == 0 {
		return TimeoutDefault
	}
	return min(time.Duration(r.TimeoutMs)*time.Millisecond, TimeoutMax)
}

// Token gives what identifies the request to whoever answers it.
func (r *Request) Token() Token {
	return Token{ID: r.ID, Op: r.Op, Flags: r.Flags, Cost: r.Cost, Start: r.Start}
}

// Refusal is a reason to refuse a request: surely not applied. Text is for people.
type Refusal struct {
	Status Status
	Text   string
	// Limit, when set, is told with the refusal: the bound that was exceeded.
	Limit uint64
	// RetryAfterMs, when set, is the pause after which a retry makes sense.
	RetryAfterMs uint32
	// Leader, when set, is the address of the leader's binary port, Term the term that it leads.
	Leader string
	Term   uint64
}

// Error gives the status and the text.
func (r *Refusal) Error() string { return r.Status.String() + ": " + r.Text }

func refuse(s Status, format string, a ...any) *Refusal {
	return &Refusal{Status: s, Text: fmt.Sprintf(format, a...)}
}

func refuseLimit(limit uint64, format string, a ...any) *Refusal {
	return &Refusal{Status: StatusTooLarge, Text: fmt.Sprintf(format, a...), Limit: limit}
}

// ParseRequest decodes and validates a request: its lengths, its extension block, its key, and the
// shape of its payload, so that nothing malformed passes the door. body is the decompressed body. It
// does not allocate unless it refuses. The refusal tells the client what is wrong; the connection lives on.
// Whether the store has the group and the namespace is for others to say. r's header fields are set even
// when it refuses, so that Token identifies whom to answer.
func ParseRequest(h *Header, body []byte, r *Request) *Refusal {
	body = body[:len(body):len(body)]
	*r = Request{Op: h.Op, Flags: h.Flags, Group: h.StatusOrGroup, ID: h.ID, TimeoutMs: h.TimeOrTimeout, Body: body}
	if r.Group == 0 {
		r.Group = GroupDefault
	}
	if h.Flags&flagsMustUnderstand != 0 {
		return refuse(StatusUnsupported, "flags %#x are not known to this version", uint8(h.Flags&flagsMustUnderstand))
	}
	// Before all else: of an operation that it does not know this version cannot say what would be wrong.
	if !r.Op.requestable() {
		return refuse(StatusUnknownOp, "operation %#x is not known to this version", uint8(r.Op))
	}
	if h.Flags&(FlagResponse|FlagMore|FlagReplayed) != 0 {
		return refuse(StatusBadRequest, "flags %#x belong to answers", uint8(h.Flags))
	}
	if h.Flags&FlagQuiet != 0 && r.Op != OpPut && r.Op != OpDelete {
		return refuse(StatusBadRequest, "only put and delete may be quiet, not %s", r.Op)
	}
	if h.ID == 0 && r.Op != OpPing && r.Op != OpCancel && r.Op != OpCredit {
		return refuse(StatusBadRequest, "request id 0 stands for the connection; %s needs another", r.Op)
	}
	var err error
	if r.Ext, r.Key, r.Payload, err = SplitBody(h, body); err != nil {
		return refuse(StatusBadRequest, "lengths lie: extension %d + key %d bytes in a body of %d", h.ExtLen, h.KeyLen, len(body))
	}
	if ref := r.parseExt(); ref != nil {
		return ref
	}
	switch r.Op {
	case OpGet, OpExists, OpDelete, OpPut, OpTouch, OpIncrement:
		if ref := checkKey(r.Key); ref != nil {
			return ref
		}
	default:
		if len(r.Key) != 0 {
			return refuse(StatusBadRequest, "%s takes no key in its header", r.Op)
		}
	}
	switch r.Op {
	case OpStatus:
		if len(r.Payload) > 1 || len(r.Payload) == 1 && r.Payload[0] != StatusLocal {
			return refuse(StatusBadRequest, "status takes no payload, or the byte %d for the asked node alone", StatusLocal)
		}
	case OpAdmin:
		if len(r.Payload) == 0 {
			return refuse(StatusBadRequest, "admin takes a JSON document")
		}
		if len(r.Payload) > AdminBytesMax {
			return refuseLimit(AdminBytesMax, "admin request of %d bytes; at most %d", len(r.Payload), AdminBytesMax)
		}
	case OpGet, OpExists, OpReadIndex, OpSessionOpen:
		if len(r.Payload) != 0 {
			return refuse(StatusBadRequest, "%s takes no payload", r.Op)
		}
	case OpPut, OpDelete, OpTouch, OpIncrement:
		r.Items = 1
		return CheckMutation(r.Op, r.Ext, r.Payload)
	case OpBatch, OpTxn:
		var ref *Refusal
		r.Items, ref = checkGroup(r.Op, r.Payload)
		return ref
	case OpMultiGet:
		var ref *Refusal
		r.Items, ref = checkMultiGet(r.Payload)
		return ref
	case OpScan:
		var s ScanRequest
		return DecodeScanRequest(r.Payload, &s)
	case OpPing:
		if len(r.Payload) > PingBytesMax {
			return refuseLimit(PingBytesMax, "ping of %d bytes", len(r.Payload))
		}
	case OpCancel:
		if len(r.Payload) != 4 {
			return refuse(StatusBadRequest, "cancel names one request id (4 bytes), not %d bytes", len(r.Payload))
		}
	case OpCredit:
		if _, _, ok := DecodeCredit(r.Payload); !ok {
			return refuse(StatusBadRequest, "credit names one request id and its bytes (8 bytes), not %d bytes", len(r.Payload))
		}
	case OpWatch:
		var w WatchRequest
		return DecodeWatchRequest(r.Payload, &w)
	case OpSessionClose:
		if r.Session == 0 {
			return refuse(StatusBadRequest, "session_close names its session in the session element")
		}
		if len(r.Payload) != 0 {
			return refuse(StatusBadRequest, "session_close takes no payload")
		}
	}
	return nil
}

func checkKey(key []byte) *Refusal {
	if len(key) > KeyBytesMax {
		return &Refusal{Status: StatusBadKey, Text: fmt.Sprintf("key of %d bytes; at most %d", len(key), KeyBytesMax), Limit: KeyBytesMax}
	}
	if !ValidKey(key) {
		if len(key) == 0 {
			return refuse(StatusBadKey, "empty key; a key has 1 to %d bytes", KeyBytesMax)
		}
		return refuse(StatusBadKey, "key is not valid UTF-8; encode it, for example as base64 or hex")
	}
	return nil
}

// parseExt reads the elements that steer a request and refuses those that do not belong to it or stand
// twice; the values of a mutation's elements are checked by CheckMutation. A known element where it has no
// meaning is refused, never passed over: a write that says "stale", or an item that names a namespace, asks
// for something that it would not get.
func (r *Request) parseExt() *Refusal {
	allowed, seen := extsOf(r.Op), extSet(0)
	for ext := r.Ext; len(ext) > 0; {
		t, v, rest, err := NextExt(ext)
		if err != nil {
			return refuse(StatusBadRequest, "extension block is malformed")
		}
		ext = rest
		bit := extSet(1) << t
		if bit&(extsSteering|extsMutation)&^allowed != 0 {
			return refuse(StatusBadRequest, "element %d does not belong to %s", t, r.Op)
		}
		if bit&seen&^extsRepeat != 0 {
			return refuse(StatusBadRequest, "element %d stands twice", t)
		}
		seen |= bit & allowed
		switch t {
		case ExtNamespace:
			if len(v) == 0 || len(v) > NamespaceBytesMax || !utf8.Valid(v) {
				return refuse(StatusBadRequest, "a namespace's name is valid UTF-8 of 1 to %d bytes", NamespaceBytesMax)
			}
			r.Namespace = v
		case ExtConsistency:
			if len(v) != 1 || v[0] > ConsistencyAnyNode {
				return refuse(StatusBadRequest, "consistency is one byte, 0 (linearizable), 1 (stale) or 2 (linearizable, from any node)")
			}
			r.Stale, r.AnyNode = v[0] == ConsistencyStale, v[0] == ConsistencyAnyNode
		case ExtMaxAge:
			if len(v) != 8 {
				return refuse(StatusBadRequest, "max age of %d bytes, not 8", len(v))
			}
			if r.MaxAgeMs = binary.LittleEndian.Uint64(v); r.MaxAgeMs == 0 {
				return refuse(StatusBadRequest, "max age of 0 ms: ask for a linearizable read instead")
			}
		case ExtSession:
			if len(v) != 24 {
				return refuse(StatusBadRequest, "session element of %d bytes, not 24", len(v))
			}
			r.Session = binary.LittleEndian.Uint64(v)
			r.Seq = binary.LittleEndian.Uint64(v[8:])
			r.Floor = binary.LittleEndian.Uint64(v[16:])
			if r.Session == 0 || (r.Seq <= r.Floor && r.Op != OpSessionClose) {
				return refuse(StatusBadRequest, "session %d with sequence %d and floor %d: none is 0 but the floor, and the sequence is above the floor", r.Session, r.Seq, r.Floor)
			}
		case ExtHistory:
			if len(v) != 16 {
				return refuse(StatusBadRequest, "history of %d bytes, not 16", len(v))
			}
			r.History = v
		case ExtIdempotency:
			if len(v) != IdempotencyBytes {
				return refuse(StatusBadRequest, "idempotency element of %d bytes, not %d", len(v), IdempotencyBytes)
			}
			r.Idempotency = v
		case ExtNamespaceID:
			if len(v) != 4 || binary.LittleEndian.Uint32(v) == 0 {
				return refuse(StatusBadRequest, "the number of a namespace has 4 bytes and is not 0")
			}
			r.NamespaceID = binary.LittleEndian.Uint32(v)
		case ExtMinRevision, ExtAtRevision:
			if len(v) != 8 {
				return refuse(StatusBadRequest, "revision of %d bytes, not 8", len(v))
			}
			if t == ExtMinRevision {
				r.MinRevision = binary.LittleEndian.Uint64(v)
			} else {
				r.AtRevision = binary.LittleEndian.Uint64(v)
			}
		default:
			if t.Critical() && bit&extsMutation == 0 {
				return refuse(StatusUnsupported, "critical extension %d is not known to this version", t)
			}
		}
	}
	if r.Session != 0 && len(r.Idempotency) != 0 {
		return refuse(StatusBadRequest, "a write has a session or an idempotency key, not both: either makes its repetitions safe")
	}
	if r.MaxAgeMs != 0 && !r.Stale {
		return refuse(StatusBadRequest, "a max age bounds stale reads; this one is linearizable")
	}
	return nil
}

// Mutation is the decoded extension block of a put, a delete, or an item of a batch or transaction.
// Slices are views.
type Mutation struct {
	TTLMs       uint64 // 0: never expires
	Checksum    uint64
	HasChecksum bool
	Conditions  int // number of ExtCondition elements, read one by one with NextCondition
	// Kept counts the bytes of the elements that are stored with the value.
	Kept int
	// Compress is how the store is to compress the value; HasCompress: its namespace doesn't decide.
	Compress    Codec
	HasCompress bool
	// Level is the behaviour level that the mutation needs: at a lower one it is refused with StatusUnsupported.
	Level uint16
}

// DecodeMutation reads and checks the elements of a mutation. Elements that steer a request (session,
// namespace, …) are passed over: the door has acted on them. A refusal depends on the bytes alone, so it is
// the same on every replica that runs the same version; a version that accepts more elements or other
// values may do so only from a higher behaviour level on.
func DecodeMutation(op Opcode, ext []byte, m *Mutation) *Refusal {
	return decodeMutation(op, ext, m, extsSteering)
}

// decodeMutation is DecodeMutation with the elements that it passes over besides ignorable ones.
func decodeMutation(op Opcode, ext []byte, m *Mutation, passed extSet) *Refusal {
	*m = Mutation{Level: 1}
	if op == OpTouch || op == OpIncrement {
		m.Level = 2
	}
	tags, tagBefore, seen := 0, []byte(nil), extSet(0)
	for len(ext) > 0 {
		size := len(ext)
		t, v, rest, err := NextExt(ext)
		if err != nil {
			return refuse(StatusBadRequest, "extension block is malformed")
		}
		ext = rest
		size -= len(rest)
		bit := extSet(1) << t
		if bit&extsPut != 0 && op != OpPut && !(t == ExtTTL && (op == OpTouch || op == OpIncrement)) {
			return refuse(StatusBadRequest, "element %d belongs to a put, not to a %s", t, op)
		}
		if bit&seen&^extsRepeat != 0 {
			return refuse(StatusBadRequest, "element %d stands twice", t)
		}
		seen |= bit & extsMutation
		switch t {
		case ExtTTL:
			if len(v) != 8 {
				return refuse(StatusBadRequest, "time to live of %d bytes, not 8", len(v))
			}
			m.TTLMs = binary.LittleEndian.Uint64(v)
			if m.TTLMs == 0 || m.TTLMs > TTLMsMax {
				return refuse(StatusBadRequest, "time to live of %d ms; 1 to %d", m.TTLMs, uint64(TTLMsMax))
			}
		case ExtCondition:
			if len(v) > 1+ConditionValueBytesMax && ConditionKind(v[0]) == ConditionValue {
				return refuseLimit(ConditionValueBytesMax, "condition with a value of %d bytes; at most %d", len(v)-1, ConditionValueBytesMax)
			}
			c, err := DecodeCondition(v)
			if err != nil {
				return refuse(StatusBadRequest, "malformed condition")
			}
			if c.Kind > ConditionValue {
				m.Level = 2
			}
			if m.Conditions++; m.Conditions > ConditionsMax {
				return refuseLimit(ConditionsMax, "more than %d conditions on one operation", ConditionsMax)
			}
		case ExtTag:
			name, value, err := SplitTag(v)
			if err != nil || !validTagName(name) {
				return refuse(StatusBadRequest, "a tag's name has 1 to %d characters of a-z 0-9 . _ -", TagNameBytesMax)
			}
			if len(value) > TagValueBytesMax {
				return refuseLimit(TagValueBytesMax, "tag value of %d bytes; at most %d", len(value), TagValueBytesMax)
			}
			if !utf8.Valid(value) {
				return refuse(StatusBadRequest, "the value of tag %s is not valid UTF-8", name)
			}
			if tags++; tags > TagsMax {
				return refuseLimit(TagsMax, "more than %d tags", TagsMax)
			}
			if tags > 1 && bytes.Compare(tagBefore, name) >= 0 {
				return refuse(StatusBadRequest, "tag %s stands behind %s; tags stand in ascending order of their names, each once", name, tagBefore)
			}
			tagBefore = name
			m.Kept += size
		case ExtContentType:
			if len(v) > ContentTypeBytesMax {
				return refuseLimit(ContentTypeBytesMax, "content type of %d bytes; at most %d", len(v), ContentTypeBytesMax)
			}
			if len(v) == 0 || !printable(v) {
				return refuse(StatusBadRequest, "a content type is printable ASCII, 1 to %d bytes", ContentTypeBytesMax)
			}
			m.Kept += size
		case ExtEncoding:
			if len(v) > EncodingBytesMax {
				return refuseLimit(EncodingBytesMax, "encoding of %d bytes; at most %d", len(v), EncodingBytesMax)
			}
			if len(v) == 0 || !printable(v) {
				return refuse(StatusBadRequest, "an encoding is printable ASCII, 1 to %d bytes", EncodingBytesMax)
			}
			m.Kept += size
		case ExtChecksum:
			if len(v) != 8 {
				return refuse(StatusBadRequest, "checksum of %d bytes, not 8", len(v))
			}
			m.Checksum, m.HasChecksum = binary.LittleEndian.Uint64(v), true
		case ExtCompress:
			if len(v) != 1 || Codec(v[0]) > CodecLZ4 {
				return refuse(StatusBadRequest, "compress is one byte: 0 (never), 1 (s2), 2 (zstd) or 3 (lz4)")
			}
			m.Compress, m.HasCompress, m.Level = Codec(v[0]), true, 2
		default:
			switch {
			case bit&passed != 0:
			case bit&extsSteering != 0:
				return refuse(StatusBadRequest, "element %d steers a whole request and can't stand in a part of it", t)
			case t.Critical():
				return refuse(StatusUnsupported, "critical extension %d is not known to this version", t)
			}
		}
	}
	return nil
}

// AppendKept appends the elements of a mutation's ext that are stored with the value.
// REQUIRES: ext passed DecodeMutation; it panics otherwise, since it would lose elements.
func AppendKept(dst, ext []byte) []byte {
	for len(ext) > 0 {
		t, _, rest, err := NextExt(ext)
		if err != nil {
			panic("BUG: elements are read before they were checked: " + err.Error())
		}
		switch t {
		case ExtTag, ExtContentType, ExtEncoding:
			dst = append(dst, ext[:len(ext)-len(rest)]...)
		}
		ext = rest
	}
	return dst
}

// NextCondition gives the first condition in ext and what follows it; ok is false when there is none.
// REQUIRES: ext passed DecodeMutation; it panics otherwise, since a condition passed over would let through
// what it should stop.
func NextCondition(ext []byte) (c Condition, rest []byte, ok bool) {
	for len(ext) > 0 {
		t, v, rest, err := NextExt(ext)
		if err == nil && t == ExtCondition {
			c, err = DecodeCondition(v)
		}
		if err != nil {
			panic("BUG: conditions are read before they were checked: " + err.Error())
		}
		if t == ExtCondition {
			return c, rest, true
		}
		ext = rest
	}
	return Condition{}, nil, false
}

// CheckMutation validates the extension block and the value of a put or delete.
func CheckMutation(op Opcode, ext, value []byte) *Refusal {
	var m Mutation
	if ref := DecodeMutation(op, ext, &m); ref != nil {
		return ref
	}
	return m.checkValue(op, value)
}

// checkValue validates the value that stands beside m in an operation.
func (m *Mutation) checkValue(op Opcode, value []byte) *Refusal {
	if op == OpIncrement {
		if _, ok := DecodeIncrement(value); !ok {
			return refuse(StatusBadRequest, "increment takes a delta of 8 bytes, not %d", len(value))
		}
		return nil
	}
	if op != OpPut && len(value) != 0 {
		return refuse(StatusBadRequest, "%s takes no value", op)
	}
	if len(value) > ValueBytesMax {
		return refuseLimit(ValueBytesMax, "value of %d bytes; at most %d", len(value), ValueBytesMax)
	}
	if m.HasChecksum {
		if sum := Checksum(value); sum != m.Checksum {
			return refuse(StatusChecksum, "value of %d bytes has xxh64 %016x, the request says %016x", len(value), sum, m.Checksum)
		}
	}
	return nil
}

// printable reports whether text is printable ASCII: what may stand in an HTTP header or a log line as it is.
func printable(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func validTagName(n []byte) bool {
	if len(n) == 0 || len(n) > TagNameBytesMax {
		return false
	}
	for _, c := range n {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}
