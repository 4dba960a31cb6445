package wire

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// parse frames a request and parses it, as a door does.
func parse(h Header, ext, key, payload []byte) (Request, *Refusal) {
	frame := AppendFrame(nil, h, ext, key, payload)
	if err := DecodeHeader(frame, &h); err != nil {
		panic(err)
	}
	var r Request
	ref := ParseRequest(&h, frame[HeaderBytes:], &r)
	return r, ref
}

func statusOf(ref *Refusal) Status {
	if ref == nil {
		return StatusOK
	}
	return ref.Status
}

func ext(build ...func([]byte) []byte) (b []byte) {
	for _, f := range build {
		b = f(b)
	}
	return b
}

func raw(t ExtType, v ...byte) func([]byte) []byte {
	return func(b []byte) []byte { return AppendExt(b, t, v) }
}

func u64(t ExtType, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { return AppendExtU64(b, t, v) }
}

func session(id, seq, floor uint64) func([]byte) []byte {
	return func(b []byte) []byte { return AppendExtSession(b, id, seq, floor) }
}

func tag(name, value string) func([]byte) []byte {
	return func(b []byte) []byte { return AppendExtTag(b, name, value) }
}

func text(t ExtType, s string) func([]byte) []byte {
	return func(b []byte) []byte { return AppendExtString(b, t, s) }
}

func times(n int, f func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for range n {
			b = f(b)
		}
		return b
	}
}

func manyTags(n int) func([]byte) []byte {
	return func(b []byte) []byte {
		for i := range n {
			b = AppendExtTag(b, string([]byte{'a' + byte(i/26), 'a' + byte(i%26)}), strings.Repeat("v", TagValueBytesMax))
		}
		return b
	}
}

// The limits and rules of extension blocks, each at its last allowed value and one beyond.
func TestParseRequest_ExtensionBlock(t *testing.T) {
	cond := func(kind ConditionKind, operand ...byte) func([]byte) []byte {
		return raw(ExtCondition, append([]byte{byte(kind)}, operand...)...)
	}
	big := func(n int) func([]byte) []byte { return cond(ConditionValue, make([]byte, n)...) }
	for _, c := range []struct {
		name string
		op   Opcode
		ext  []byte
		want Status
	}{
		{"no element", OpPut, nil, StatusOK},
		{"ends within an element", OpPut, []byte{2}, StatusBadRequest},
		{"ends within a length", OpPut, []byte{2, 255, 1, 0, 0}, StatusBadRequest},
		{"element longer than the block", OpPut, []byte{2, 3, 1, 2}, StatusBadRequest},
		{"length near 2^32", OpPut, []byte{2, 255, 0xff, 0xff, 0xff, 0xff, 1}, StatusBadRequest},
		{"long form of a short length", OpPut, []byte{7, 255, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, StatusOK},
		{"ignorable element", OpPut, ext(raw(200, 1, 2), raw(200)), StatusOK},
		{"ignorable element on a read", OpGet, ext(raw(0), raw(200, 1)), StatusOK},
		{"element of an answer", OpGet, ext(u64(ExtRevision, 1)), StatusOK},
		{"critical element", OpPut, ext(raw(201)), StatusUnsupported},
		{"critical element on a read", OpGet, ext(raw(99)), StatusUnsupported},
		{"critical element of HELLO", OpPut, ext(raw(ExtClusterID, make([]byte, 16)...)), StatusUnsupported},
		{"reserved credentials", OpGet, ext(raw(ExtAuth)), StatusUnsupported},

		{"namespace", OpGet, ext(text(ExtNamespace, strings.Repeat("n", NamespaceBytesMax))), StatusOK},
		{"namespace of 129 bytes", OpGet, ext(text(ExtNamespace, strings.Repeat("n", NamespaceBytesMax+1))), StatusBadRequest},
		{"empty namespace", OpGet, ext(text(ExtNamespace, "")), StatusBadRequest},
		{"namespace not UTF-8", OpGet, ext(text(ExtNamespace, "\xff")), StatusBadRequest},
		{"namespace twice", OpGet, ext(text(ExtNamespace, "a"), text(ExtNamespace, "b")), StatusBadRequest},
		{"namespace of a ping", OpPing, ext(text(ExtNamespace, "a")), StatusBadRequest},

		{"linearizable", OpGet, ext(raw(ExtConsistency, 0)), StatusOK},
		{"stale", OpScan, ext(raw(ExtConsistency, 1)), StatusOK},
		{"linearizable from any node", OpMultiGet, ext(raw(ExtConsistency, 2)), StatusOK},
		{"unknown consistency", OpGet, ext(raw(ExtConsistency, 3)), StatusBadRequest},
		{"consistency of no bytes", OpGet, ext(raw(ExtConsistency)), StatusBadRequest},
		{"consistency of two bytes", OpGet, ext(raw(ExtConsistency, 0, 0)), StatusBadRequest},
		{"consistency twice", OpGet, ext(raw(ExtConsistency, 0), raw(ExtConsistency, 1)), StatusBadRequest},
		{"stale write", OpPut, ext(raw(ExtConsistency, 1)), StatusBadRequest},
		{"write from any node", OpPut, ext(raw(ExtConsistency, 2)), StatusBadRequest},

		{"max age", OpGet, ext(raw(ExtConsistency, 1), u64(ExtMaxAge, 1)), StatusOK},
		{"max age before the consistency", OpScan, ext(u64(ExtMaxAge, 1<<64-1), raw(ExtConsistency, 1)), StatusOK},
		{"max age of 0", OpGet, ext(raw(ExtConsistency, 1), u64(ExtMaxAge, 0)), StatusBadRequest},
		{"max age of 4 bytes", OpGet, ext(raw(ExtConsistency, 1), raw(ExtMaxAge, 1, 0, 0, 0)), StatusBadRequest},
		{"max age twice", OpGet, ext(raw(ExtConsistency, 1), u64(ExtMaxAge, 1), u64(ExtMaxAge, 1)), StatusBadRequest},
		{"max age of a linearizable read", OpGet, ext(u64(ExtMaxAge, 1)), StatusBadRequest},
		{"max age of one from any node", OpGet, ext(raw(ExtConsistency, 2), u64(ExtMaxAge, 1)), StatusBadRequest},
		{"max age of a write", OpPut, ext(u64(ExtMaxAge, 1)), StatusBadRequest},
		{"READ_INDEX", OpReadIndex, nil, StatusOK},
		{"READ_INDEX with an element", OpReadIndex, ext(raw(ExtConsistency, 1)), StatusBadRequest},

		{"minimum revision", OpScan, ext(u64(ExtMinRevision, 1)), StatusOK},
		{"minimum revision of a write", OpDelete, ext(u64(ExtMinRevision, 1)), StatusBadRequest},
		{"past revision", OpExists, ext(u64(ExtAtRevision, 1)), StatusOK},
		{"past revision of a listing", OpScan, ext(u64(ExtAtRevision, 1)), StatusOK},
		{"past revision of a MULTIGET", OpMultiGet, ext(u64(ExtAtRevision, 1)), StatusOK},
		{"revision of 7 bytes", OpGet, ext(raw(ExtAtRevision, 1, 2, 3, 4, 5, 6, 7)), StatusBadRequest},

		{"session", OpPut, ext(session(1, 1, 0)), StatusOK},
		{"session on a batch", OpBatch, ext(session(1, 1<<64-1, 1<<64-2)), StatusOK},
		{"session 0", OpPut, ext(session(0, 1, 0)), StatusBadRequest},
		{"sequence 0", OpPut, ext(session(1, 0, 0)), StatusBadRequest},
		{"sequence at its floor", OpPut, ext(session(1, 5, 5)), StatusBadRequest},
		{"session of 23 bytes", OpPut, ext(raw(ExtSession, make([]byte, 23)...)), StatusBadRequest},
		{"session twice", OpPut, ext(session(1, 1, 0), session(1, 2, 0)), StatusBadRequest},
		{"session on a read", OpGet, ext(session(1, 1, 0)), StatusBadRequest},
		{"session on SESSION_OPEN", OpSessionOpen, ext(session(1, 1, 0)), StatusBadRequest},
		{"SESSION_CLOSE", OpSessionClose, ext(session(1, 0, 0)), StatusOK},
		{"SESSION_CLOSE of none", OpSessionClose, nil, StatusBadRequest},
		{"SESSION_CLOSE of session 0", OpSessionClose, ext(session(0, 0, 0)), StatusBadRequest},

		{"time to live of 1 ms", OpPut, ext(u64(ExtTTL, 1)), StatusOK},
		{"longest time to live", OpPut, ext(u64(ExtTTL, TTLMsMax)), StatusOK},
		{"longer time to live", OpPut, ext(u64(ExtTTL, TTLMsMax+1)), StatusBadRequest},
		{"endless time to live", OpPut, ext(u64(ExtTTL, 1<<64-1)), StatusBadRequest},
		{"time to live of 0", OpPut, ext(u64(ExtTTL, 0)), StatusBadRequest},
		{"time to live of 4 bytes", OpPut, ext(raw(ExtTTL, 1, 0, 0, 0)), StatusBadRequest},
		{"time to live twice", OpPut, ext(u64(ExtTTL, 1), u64(ExtTTL, 1)), StatusBadRequest},
		{"time to live of a delete", OpDelete, ext(u64(ExtTTL, 1)), StatusBadRequest},
		{"time to live of a read", OpGet, ext(u64(ExtTTL, 1)), StatusBadRequest},
		{"time to live of a whole batch", OpBatch, ext(u64(ExtTTL, 1)), StatusBadRequest},

		{"64 conditions", OpPut, ext(times(ConditionsMax, cond(ConditionExists))), StatusOK},
		{"65 conditions", OpPut, ext(times(ConditionsMax+1, cond(ConditionExists))), StatusTooLarge},
		{"condition of a delete", OpDelete, ext(cond(ConditionVersion, make([]byte, 16)...)), StatusOK},
		{"condition of a read", OpGet, ext(cond(ConditionExists)), StatusBadRequest},
		{"empty condition", OpPut, ext(raw(ExtCondition)), StatusBadRequest},
		{"unknown condition", OpPut, ext(cond(5)), StatusBadRequest},
		{"version of 7 bytes", OpPut, ext(cond(ConditionVersion, make([]byte, 7)...)), StatusBadRequest},
		{"no version", OpPut, ext(cond(ConditionVersion)), StatusBadRequest},
		{"operand of exists", OpPut, ext(cond(ConditionExists, 1)), StatusBadRequest},
		{"operand of absent", OpPut, ext(cond(ConditionAbsent, 1)), StatusBadRequest},
		{"empty value to compare", OpPut, ext(cond(ConditionValue)), StatusOK},
		{"value of 32 KiB to compare", OpPut, ext(big(ConditionValueBytesMax)), StatusOK},
		{"value of 32 KiB and 1 to compare", OpPut, ext(big(ConditionValueBytesMax + 1)), StatusTooLarge},

		{"64 tags", OpPut, ext(manyTags(TagsMax)), StatusOK},
		{"65 tags", OpPut, ext(manyTags(TagsMax + 1)), StatusTooLarge},
		{"name of 64 bytes", OpPut, ext(tag(strings.Repeat("a", TagNameBytesMax), "")), StatusOK},
		{"name of 65 bytes", OpPut, ext(tag(strings.Repeat("a", TagNameBytesMax+1), "")), StatusBadRequest},
		{"empty name", OpPut, ext(tag("", "v")), StatusBadRequest},
		{"name with a capital", OpPut, ext(tag("Owner", "v")), StatusBadRequest},
		{"name longer than its element", OpPut, ext(raw(ExtTag, 3, 'a')), StatusBadRequest},
		{"tag of no bytes", OpPut, ext(raw(ExtTag)), StatusBadRequest},
		{"tag value of 513 bytes", OpPut, ext(tag("a", strings.Repeat("v", TagValueBytesMax+1))), StatusTooLarge},
		{"tag value not UTF-8", OpPut, ext(tag("a", "\xff")), StatusBadRequest},
		{"the same tag twice", OpPut, ext(tag("a", "1"), tag("a", "2")), StatusBadRequest},
		{"tags out of order", OpPut, ext(tag("b", ""), tag("a", "")), StatusBadRequest},
		{"tags with others between", OpPut, ext(tag("a", ""), u64(ExtTTL, 5), tag("b", "")), StatusOK},
		{"tag of a delete", OpDelete, ext(tag("a", "")), StatusBadRequest},

		{"longest content type", OpPut, ext(text(ExtContentType, strings.Repeat("x", ContentTypeBytesMax))), StatusOK},
		{"longer content type", OpPut, ext(text(ExtContentType, strings.Repeat("x", ContentTypeBytesMax+1))), StatusTooLarge},
		{"empty content type", OpPut, ext(text(ExtContentType, "")), StatusBadRequest},
		{"content type that breaks a header", OpPut, ext(text(ExtContentType, "a\r\nb: c")), StatusBadRequest},
		{"content type twice", OpPut, ext(text(ExtContentType, "a"), text(ExtContentType, "b")), StatusBadRequest},
		{"longest encoding", OpPut, ext(text(ExtEncoding, strings.Repeat("x", EncodingBytesMax))), StatusOK},
		{"longer encoding", OpPut, ext(text(ExtEncoding, strings.Repeat("x", EncodingBytesMax+1))), StatusTooLarge},
		{"encoding not ASCII", OpPut, ext(text(ExtEncoding, "é")), StatusBadRequest},

		{"checksum", OpPut, ext(u64(ExtChecksum, Checksum([]byte("value")))), StatusOK},
		{"checksum of another value", OpPut, ext(u64(ExtChecksum, 1)), StatusChecksum},
		{"checksum of 4 bytes", OpPut, ext(raw(ExtChecksum, 1, 2, 3, 4)), StatusBadRequest},
		{"checksum twice", OpPut, ext(u64(ExtChecksum, Checksum([]byte("value"))), u64(ExtChecksum, 1)), StatusBadRequest},
		{"checksum of a delete", OpDelete, ext(u64(ExtChecksum, Checksum(nil))), StatusBadRequest},

		{"compress", OpPut, ext(raw(ExtCompress, byte(CodecLZ4))), StatusOK},
		{"compress never", OpPut, ext(raw(ExtCompress, 0)), StatusOK},
		{"compress by an unknown codec", OpPut, ext(raw(ExtCompress, 4)), StatusBadRequest},
		{"compress of two bytes", OpPut, ext(raw(ExtCompress, 1, 1)), StatusBadRequest},
		{"compress twice", OpPut, ext(raw(ExtCompress, 1), raw(ExtCompress, 1)), StatusBadRequest},
		{"compress a delete", OpDelete, ext(raw(ExtCompress, 1)), StatusBadRequest},
		{"time to live of a touch", OpTouch, ext(u64(ExtTTL, 1)), StatusOK},
		{"touch without one", OpTouch, nil, StatusOK},
		{"tag of a touch", OpTouch, AppendExtTag(nil, "a", "b"), StatusBadRequest},
		{"time to live of an increment", OpIncrement, ext(u64(ExtTTL, 1)), StatusOK},
		{"checksum of an increment", OpIncrement, ext(u64(ExtChecksum, 1)), StatusBadRequest},
		{"condition of an increment", OpIncrement, AppendExtCondition(nil, ConditionExists, nil), StatusOK},
		{"condition on a tag", OpPut, AppendExtTagCondition(nil, "team", "math"), StatusOK},
		{"condition on a tag with a bad name", OpPut, AppendExtTagCondition(nil, "Team", "math"), StatusBadRequest},
		{"condition on a tag without a name", OpPut, AppendExtCondition(nil, ConditionTag, nil), StatusBadRequest},
		{"condition on a tag with a long value", OpPut, AppendExtTagCondition(nil, "a", strings.Repeat("v", TagValueBytesMax+1)), StatusBadRequest},
		{"condition on a tag that is there", OpPut, AppendExtCondition(nil, ConditionTagPresent, []byte("team")), StatusOK},
		{"condition on a tag that is absent", OpDelete, AppendExtCondition(nil, ConditionTagAbsent, []byte("team")), StatusOK},
		{"condition on an absent tag without a name", OpDelete, AppendExtCondition(nil, ConditionTagAbsent, nil), StatusBadRequest},
		{"unknown condition", OpPut, AppendExtCondition(nil, 8, nil), StatusBadRequest},
		{"history of a watch", OpWatch, ext(raw(ExtHistory, make([]byte, 16)...)), StatusOK},
		{"history of 4 bytes", OpWatch, ext(raw(ExtHistory, 1, 2, 3, 4)), StatusBadRequest},
		{"number of a namespace", OpWatch, AppendExtU32(nil, ExtNamespaceID, 2), StatusOK},
		{"number of the system's namespace", OpWatch, AppendExtU32(nil, ExtNamespaceID, 0), StatusBadRequest},
		{"number of a namespace of 8 bytes", OpWatch, ext(u64(ExtNamespaceID, 2)), StatusBadRequest},
		{"number of a namespace of a put", OpPut, AppendExtU32(nil, ExtNamespaceID, 2), StatusBadRequest},
		{"idempotency key", OpPut, AppendExtIdempotency(nil, Idempotency{}), StatusOK},
		{"idempotency key of an increment", OpIncrement, AppendExtIdempotency(nil, Idempotency{}), StatusOK},
		{"idempotency key of a batch", OpBatch, AppendExtIdempotency(nil, Idempotency{}), StatusOK},
		{"idempotency key of 23 bytes", OpPut, ext(raw(ExtIdempotency, make([]byte, 23)...)), StatusBadRequest},
		{"idempotency key twice", OpPut, AppendExtIdempotency(AppendExtIdempotency(nil, Idempotency{}), Idempotency{}), StatusBadRequest},
		{"idempotency key beside a session", OpPut, AppendExtSession(AppendExtIdempotency(nil, Idempotency{}), 1, 2, 1), StatusBadRequest},
		{"idempotency key of a get", OpGet, AppendExtIdempotency(nil, Idempotency{}), StatusBadRequest},
		{"history of a get", OpGet, ext(raw(ExtHistory, make([]byte, 16)...)), StatusBadRequest},
		{"session of a watch", OpWatch, AppendExtSession(nil, 1, 2, 1), StatusBadRequest},
	} {
		key, payload := []byte(nil), []byte(nil)
		switch c.op {
		case OpPut:
			key, payload = []byte("k"), []byte("value")
		case OpGet, OpExists, OpDelete, OpTouch:
			key = []byte("k")
		case OpIncrement:
			key, payload = []byte("k"), AppendIncrement(nil, 1)
		case OpWatch:
			payload = AppendWatchRequest(nil, &WatchRequest{})
		case OpBatch:
			payload = goldenBatch(0)
		case OpMultiGet:
			payload = AppendItem(AppendGroupHeader(nil, 0, 1), &Item{Op: OpGet, Key: []byte("k")})
		case OpScan:
			payload = AppendScanRequest(nil, &ScanRequest{})
		}
		if _, ref := parse(Header{Op: c.op, ID: 1}, c.ext, key, payload); statusOf(ref) != c.want {
			t.Errorf("%s: %v, want %s", c.name, ref, c.want)
		}
	}
}

func TestParseRequest_Keys(t *testing.T) {
	for _, c := range []struct {
		name string
		key  string
		want Status
	}{
		{"0 bytes", "", StatusBadKey},
		{"1 byte", "a", StatusOK},
		{"the byte 0", "\x00", StatusOK},
		{"1024 bytes", strings.Repeat("a", 1024), StatusOK},
		{"1024 bytes of three-byte characters", strings.Repeat("€", 341) + "x", StatusOK},
		{"1025 bytes", strings.Repeat("a", 1025), StatusBadKey},
		{"65535 bytes", strings.Repeat("a", 65535), StatusBadKey},
		{"invalid UTF-8", "a\xffb", StatusBadKey},
		{"half a character", "\xe2\x82", StatusBadKey},
		{"a surrogate", "\xed\xa0\x80", StatusBadKey},
		{"slashes and dots", "a//../b/", StatusOK},
	} {
		for _, op := range []Opcode{OpGet, OpExists, OpPut, OpDelete} {
			if _, ref := parse(Header{Op: op, ID: 1}, nil, []byte(c.key), nil); statusOf(ref) != c.want {
				t.Errorf("%s with a key of %s: %v, want %s", op, c.name, ref, c.want)
			}
		}
		for _, op := range []Opcode{OpBatch, OpTxn} {
			payload := AppendItem(AppendGroupHeader(nil, 0, 1), &Item{Op: OpPut, Key: []byte(c.key)})
			if _, ref := parse(Header{Op: op, ID: 1}, nil, nil, payload); statusOf(ref) != c.want {
				t.Errorf("%s with a key of %s: %v, want %s", op, c.name, ref, c.want)
			}
		}
		payload := AppendItem(AppendGroupHeader(nil, 0, 1), &Item{Op: OpGet, Key: []byte(c.key)})
		if _, ref := parse(Header{Op: OpMultiGet, ID: 1}, nil, nil, payload); statusOf(ref) != c.want {
			t.Errorf("multiget with a key of %s: %v, want %s", c.name, ref, c.want)
		}
	}
}

func TestParseRequest_ValueOf16MiB_PassesAndOneByteMoreIsTooLarge(t *testing.T) {
	value := make([]byte, ValueBytesMax+1)
	for _, c := range []struct {
		n    int
		want Status
	}{{0, StatusOK}, {ValueBytesMax, StatusOK}, {ValueBytesMax + 1, StatusTooLarge}} {
		_, ref := parse(Header{Op: OpPut, ID: 1}, goldenKept(), []byte(strings.Repeat("k", KeyBytesMax)), value[:c.n])
		if statusOf(ref) != c.want {
			t.Errorf("value of %d bytes: %v", c.n, ref)
		}
		if ref != nil && ref.Limit != ValueBytesMax {
			t.Errorf("limit %d", ref.Limit)
		}
		payload := AppendItem(AppendGroupHeader(nil, 0, 1), &Item{Op: OpPut, Key: []byte("k"), Value: value[:c.n]})
		if _, ref := parse(Header{Op: OpBatch, ID: 1}, nil, nil, payload); statusOf(ref) != c.want {
			t.Errorf("item with a value of %d bytes: %v", c.n, ref)
		}
	}
}

// The largest request fits FrameBodyBytesMax, so that the limit on frames never refuses what the limits on
// keys, values and elements allow.
func TestLimits_LargestPutFitsAFrameAndAnEntry(t *testing.T) {
	body := ExtBytesMax + KeyBytesMax + ValueBytesMax
	if body > FrameBodyBytesMax {
		t.Errorf("%d bytes in a frame of %d", body, FrameBodyBytesMax)
	}
	if EntryHeaderBytes+OpHeaderBytes+FrameBodyBytesMax > EntryBytesMax {
		t.Error("a largest frame does not fit an entry")
	}
	// The largest ext that the rules allow to be kept, with meta, goes back in one extension block.
	kept := ext(manyTags(0))
	for i := range TagsMax {
		kept = AppendExtTag(kept, strings.Repeat("a", TagNameBytesMax-2)+string([]byte{'a' + byte(i/26), 'a' + byte(i%26)}), strings.Repeat("v", TagValueBytesMax))
	}
	kept = AppendExtString(kept, ExtContentType, strings.Repeat("x", ContentTypeBytesMax))
	kept = AppendExtString(kept, ExtEncoding, strings.Repeat("x", EncodingBytesMax))
	var m Mutation
	if ref := DecodeMutation(OpPut, kept, &m); ref != nil {
		t.Fatal(ref)
	}
	if m.Kept != len(kept) || m.Kept > keptBytesMax {
		t.Errorf("kept %d of %d bytes, at most %d", m.Kept, len(kept), keptBytesMax)
	}
	AppendFrame(nil, Header{}, append(AppendExtMeta(nil, &Meta{}), kept...), nil, nil) // panics if too long
}

func TestParseRequest_Header(t *testing.T) {
	k := []byte("k")
	for _, c := range []struct {
		name    string
		h       Header
		key     []byte
		payload []byte
		want    Status
	}{
		{"unknown operation", Header{Op: 0x7f, ID: 1}, nil, nil, StatusUnknownOp},
		{"unknown operation with a key", Header{Op: 0x7f, ID: 1}, k, nil, StatusUnknownOp},
		{"unknown operation without an id", Header{Op: 0x7f}, nil, nil, StatusUnknownOp},
		{"operation of the log", Header{Op: OpExpire, ID: 1}, nil, []byte{1, 0, 0, 0}, StatusUnknownOp},
		{"second HELLO", Header{Op: OpHello, ID: 1}, nil, nil, StatusUnknownOp},
		{"check alone", Header{Op: OpCheck, ID: 1}, k, nil, StatusUnknownOp},
		{"event", Header{Op: 0x41, ID: 1}, nil, nil, StatusUnknownOp},
		{"watch", Header{Op: OpWatch, ID: 1}, nil, AppendWatchRequest(nil, &WatchRequest{}), StatusOK},
		{"watch of nothing", Header{Op: OpWatch, ID: 1}, nil, nil, StatusBadRequest},
		{"watch with a key", Header{Op: OpWatch, ID: 1}, k, AppendWatchRequest(nil, &WatchRequest{}), StatusBadRequest},
		{"credit", Header{Op: OpCredit}, nil, AppendCredit(nil, 1, 2), StatusOK},
		{"credit of four bytes", Header{Op: OpCredit}, nil, k, StatusBadRequest},
		{"touch", Header{Op: OpTouch, ID: 1}, k, nil, StatusOK},
		{"touch without a key", Header{Op: OpTouch, ID: 1}, nil, nil, StatusBadKey},
		{"touch with a value", Header{Op: OpTouch, ID: 1}, k, k, StatusBadRequest},
		{"quiet touch", Header{Op: OpTouch, ID: 1, Flags: FlagQuiet}, k, nil, StatusBadRequest},
		{"increment", Header{Op: OpIncrement, ID: 1}, k, AppendIncrement(nil, -1), StatusOK},
		{"increment by nothing", Header{Op: OpIncrement, ID: 1}, k, nil, StatusBadRequest},
		{"increment by nine bytes", Header{Op: OpIncrement, ID: 1}, k, make([]byte, 9), StatusBadRequest},
		{"level", Header{Op: OpLevel, ID: 1}, nil, nil, StatusUnknownOp},
		{"namespace", Header{Op: OpNamespace, ID: 1}, nil, nil, StatusUnknownOp},
		{"flag 6", Header{Op: OpGet, ID: 1, Flags: FlagMustUnderstand1}, k, nil, StatusUnsupported},
		{"flag 7", Header{Op: OpGet, ID: 1, Flags: FlagMustUnderstand2}, k, nil, StatusUnsupported},
		{"an answer", Header{Op: OpGet, ID: 1, Flags: FlagResponse}, k, nil, StatusBadRequest},
		{"more", Header{Op: OpGet, ID: 1, Flags: FlagMore}, k, nil, StatusBadRequest},
		{"replayed", Header{Op: OpPut, ID: 1, Flags: FlagReplayed}, k, nil, StatusBadRequest},
		{"quiet put", Header{Op: OpPut, ID: 1, Flags: FlagQuiet}, k, nil, StatusOK},
		{"quiet delete", Header{Op: OpDelete, ID: 1, Flags: FlagQuiet}, k, nil, StatusOK},
		{"quiet get", Header{Op: OpGet, ID: 1, Flags: FlagQuiet}, k, nil, StatusBadRequest},
		{"quiet batch", Header{Op: OpBatch, ID: 1, Flags: FlagQuiet}, nil, goldenBatch(0), StatusBadRequest},
		{"id 0", Header{Op: OpGet}, k, nil, StatusBadRequest},
		{"ping with id 0", Header{Op: OpPing}, nil, nil, StatusOK},
		{"largest ping", Header{Op: OpPing, ID: 1}, nil, make([]byte, PingBytesMax), StatusOK},
		{"larger ping", Header{Op: OpPing, ID: 1}, nil, make([]byte, PingBytesMax+1), StatusTooLarge},
		{"ping with a key", Header{Op: OpPing, ID: 1}, k, nil, StatusBadRequest},
		{"cancel", Header{Op: OpCancel}, nil, make([]byte, 4), StatusOK},
		{"cancel of 3 bytes", Header{Op: OpCancel}, nil, make([]byte, 3), StatusBadRequest},
		{"get with a payload", Header{Op: OpGet, ID: 1}, k, k, StatusBadRequest},
		{"exists with a payload", Header{Op: OpExists, ID: 1}, k, k, StatusBadRequest},
		{"delete with a value", Header{Op: OpDelete, ID: 1}, k, k, StatusBadRequest},
		{"status with a payload", Header{Op: OpStatus, ID: 1}, nil, k, StatusBadRequest},
		{"status of the node alone", Header{Op: OpStatus, ID: 1}, nil, []byte{StatusLocal}, StatusOK},
		{"status with another byte", Header{Op: OpStatus, ID: 1}, nil, []byte{2}, StatusBadRequest},
		{"read index", Header{Op: OpReadIndex, ID: 1}, nil, nil, StatusOK},
		{"read index of a key", Header{Op: OpReadIndex, ID: 1}, k, nil, StatusBadRequest},
		{"read index with a payload", Header{Op: OpReadIndex, ID: 1}, nil, k, StatusBadRequest},
		{"admin", Header{Op: OpAdmin, ID: 1}, nil, []byte("{}"), StatusOK},
		{"admin without a document", Header{Op: OpAdmin, ID: 1}, nil, nil, StatusBadRequest},
		{"admin with a key", Header{Op: OpAdmin, ID: 1}, k, []byte("{}"), StatusBadRequest},
		{"largest admin", Header{Op: OpAdmin, ID: 1}, nil, make([]byte, AdminBytesMax), StatusOK},
		{"larger admin", Header{Op: OpAdmin, ID: 1}, nil, make([]byte, AdminBytesMax+1), StatusTooLarge},
		{"member", Header{Op: OpMember, ID: 1}, nil, nil, StatusUnknownOp},
		{"session_open with a payload", Header{Op: OpSessionOpen, ID: 1}, nil, k, StatusBadRequest},
		{"batch with a key", Header{Op: OpBatch, ID: 1}, k, goldenBatch(0), StatusBadRequest},
		{"scan with a key", Header{Op: OpScan, ID: 1}, k, AppendScanRequest(nil, &ScanRequest{}), StatusBadRequest},
	} {
		r, ref := parse(c.h, nil, c.key, c.payload)
		if statusOf(ref) != c.want {
			t.Errorf("%s: %v, want %s", c.name, ref, c.want)
		}
		if r.Token() != (Token{ID: c.h.ID, Op: c.h.Op, Flags: c.h.Flags}) {
			t.Errorf("%s: token %+v", c.name, r.Token())
		}
	}
	h := Header{Op: OpGet, ID: 1, ExtLen: 3, KeyLen: 3}
	if ref := ParseRequest(&h, []byte("abc"), &Request{}); statusOf(ref) != StatusBadRequest {
		t.Errorf("lengths that lie: %v", ref)
	}
}

func TestParseRequest_GivesWhatTheFrameSays(t *testing.T) {
	e := ext(session(3, 9, 4), text(ExtNamespace, "app"), u64(ExtTTL, 5))
	r, ref := parse(Header{Op: OpPut, ID: 77, StatusOrGroup: 2, TimeOrTimeout: 1500}, e, goldenKey, goldenValue)
	if ref != nil {
		t.Fatal(ref)
	}
	if r.Op != OpPut || r.ID != 77 || r.Group != 2 || r.Session != 3 || r.Seq != 9 || r.Floor != 4 || r.Items != 1 ||
		string(r.Namespace) != "app" || r.Timeout() != 1500*time.Millisecond ||
		!bytes.Equal(r.Ext, e) || !bytes.Equal(r.Key, goldenKey) || !bytes.Equal(r.Payload, goldenValue) ||
		!bytes.Equal(r.Body, append(append(bytes.Clone(e), goldenKey...), goldenValue...)) {
		t.Errorf("put: %+v", r)
	}
	r, ref = parse(Header{Op: OpGet, ID: 1}, ext(raw(ExtConsistency, 1), u64(ExtMinRevision, 8), u64(ExtAtRevision, 9)), goldenKey, nil)
	if ref != nil || !r.Stale || r.MinRevision != 8 || r.AtRevision != 9 || r.Group != GroupDefault || r.Timeout() != TimeoutDefault {
		t.Errorf("get: %+v, %v", r, ref)
	}
	if r.AnyNode || r.MaxAgeMs != 0 {
		t.Errorf("get: %+v", r)
	}
	if r, ref := parse(Header{Op: OpGet, ID: 1}, ext(u64(ExtMaxAge, 7), raw(ExtConsistency, 1)), goldenKey, nil); ref != nil || !r.Stale || r.AnyNode || r.MaxAgeMs != 7 {
		t.Errorf("bounded get: %+v, %v", r, ref)
	}
	if r, ref := parse(Header{Op: OpGet, ID: 1}, ext(raw(ExtConsistency, 2)), goldenKey, nil); ref != nil || r.Stale || !r.AnyNode {
		t.Errorf("get from any node: %+v, %v", r, ref)
	}
	r.TimeoutMs = 1<<32 - 1
	if r.Timeout() != TimeoutMax {
		t.Errorf("longest deadline %v", r.Timeout())
	}
}

// What an item asks for and would not get is refused: a namespace of its own, a session, staleness.
func TestParseRequest_ItemThatSteers_IsRefused(t *testing.T) {
	for _, e := range [][]byte{
		ext(text(ExtNamespace, "other")), ext(raw(ExtConsistency, 1)), ext(session(1, 1, 0)), ext(u64(ExtMinRevision, 1)), ext(u64(ExtAtRevision, 1)), ext(u64(ExtMaxAge, 1)),
	} {
		for _, op := range []Opcode{OpBatch, OpTxn} {
			payload := AppendItem(AppendGroupHeader(nil, 0, 1), &Item{Op: OpPut, Ext: e, Key: []byte("k")})
			if _, ref := parse(Header{Op: op, ID: 1}, nil, nil, payload); statusOf(ref) != StatusBadRequest {
				t.Errorf("%s with element %d in an item: %v", op, e[0], ref)
			}
		}
	}
	// In a request of one operation the same elements have been acted on: the state machine passes them over.
	var m Mutation
	if ref := DecodeMutation(OpPut, ext(session(1, 1, 0), text(ExtNamespace, "n"), u64(ExtTTL, 9)), &m); ref != nil || m.TTLMs != 9 {
		t.Errorf("%+v, %v", m, ref)
	}
}

func TestNextCondition_GivesAllInOrder(t *testing.T) {
	e := ext(tag("a", "b"), func(b []byte) []byte { return AppendExtVersions(b, 5, 6) }, u64(ExtTTL, 1),
		func(b []byte) []byte { return AppendExtCondition(b, ConditionValue, bytes.Repeat([]byte("v"), 300)) })
	var m Mutation
	if ref := DecodeMutation(OpPut, e, &m); ref != nil || m.Conditions != 2 {
		t.Fatalf("%+v, %v", m, ref)
	}
	c, rest, ok := NextCondition(e)
	if !ok || c.Kind != ConditionVersion || !c.HasVersion(5) || !c.HasVersion(6) || c.HasVersion(7) {
		t.Fatalf("first: %+v", c)
	}
	c, rest, ok = NextCondition(rest)
	if !ok || c.Kind != ConditionValue || len(c.Operand) != 300 {
		t.Fatalf("second: %+v", c)
	}
	if _, _, ok = NextCondition(rest); ok {
		t.Fatal("a third condition")
	}
	mustPanic(t, "unchecked block", func() { NextCondition([]byte{9, 1, 77}) })
	mustPanic(t, "cut block", func() { NextCondition([]byte{9}) })
	mustPanic(t, "kept elements of a cut block", func() { AppendKept(nil, []byte{9}) })
	if got, want := AppendKept(nil, e), ext(tag("a", "b")); !bytes.Equal(got, want) || m.Kept != len(want) {
		t.Errorf("kept % x, want % x", got, want)
	}
}

func TestErrorResponse_TellsWhatTheRefusalSays(t *testing.T) {
	r := ErrorResponse(&Refusal{Status: StatusBadRequest, Text: "x" + strings.Repeat("€", MessageBytesMax)}, nil)
	if n := len(r.Payload); n > MessageBytesMax || n < MessageBytesMax-2 || !bytes.HasSuffix(r.Payload, []byte("€")) {
		t.Errorf("text of %d bytes", n)
	}
	r = ErrorResponse(&Refusal{Status: StatusNotLeader, RetryAfterMs: 7, Leader: "a:1", Term: 9}, nil)
	if want := ext(func(b []byte) []byte { return AppendExtU32(b, ExtRetryAfter, 7) }, text(ExtLeader, "a:1"), u64(ExtTerm, 9)); !bytes.Equal(r.Ext, want) || len(r.Payload) != 0 {
		t.Errorf("%+v", r)
	}
	r = ErrorResponse(refuseLimit(5, "too long"), nil)
	if !bytes.Equal(r.Ext, AppendExtU64(nil, ExtLimit, 5)) || string(r.Payload) != "too long" || r.Status != StatusTooLarge {
		t.Errorf("%+v", r)
	}
}

func TestOpcodes_ReadsAndWritesAreRequestable(t *testing.T) {
	names := map[string]Opcode{}
	for i := range 256 {
		o := Opcode(i)
		if o.IsRead() && o.IsWrite() || (o.IsRead() || o.IsWrite()) && !o.requestable() {
			t.Errorf("%s: read %v write %v requestable %v", o, o.IsRead(), o.IsWrite(), o.requestable())
		}
		if other, ok := names[o.String()]; ok {
			t.Errorf("%#x and %#x are both %s", uint8(other), i, o)
		}
		names[o.String()] = o
	}
}
