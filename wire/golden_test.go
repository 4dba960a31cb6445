package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/*.hex anew; review the difference: it is a change of the protocol")

// golden is one frame, preface or log entry whose bytes are frozen in testdata/NAME.hex.
type golden struct {
	name string
	what string
	make func() []byte
	// decodeOnly: the bytes depend on the version of a compressor, so only their meaning is compared.
	decodeOnly bool
}

// The values that the golden frames share.
const (
	goldenSession = 0x2a00000
	goldenTTLMs   = 3_600_000
)

var (
	goldenKey   = []byte("user:123")
	goldenValue = []byte(`{"name":"Ada"}`)
	goldenRev   = MakeRevision(57, 0)
	goldenMeta  = Meta{Version: goldenRev, CreatedAt: 1_700_000_000_000_000, UpdatedAt: 1_700_000_001_000_000, ExpiresAt: 1_700_003_601_000_000, Checksum: Checksum(goldenValue)}
	goldenText  = bytes.Repeat([]byte("all work and no play makes jack a dull boy. "), 40)
)

func goldenKept() []byte {
	ext := AppendExtTag(nil, "owner", "ada")
	ext = AppendExtTag(ext, "team", "math")
	return AppendExtString(ext, ExtContentType, "application/json")
}

func goldenPutExt() []byte {
	ext := AppendExtSession(nil, goldenSession, 7, 5)
	ext = AppendExtU64(ext, ExtTTL, goldenTTLMs)
	ext = AppendExtVersions(ext, MakeRevision(41, 3))
	ext = append(ext, goldenKept()...)
	return AppendExtU64(ext, ExtChecksum, Checksum(goldenValue))
}

func goldenBatch(flags uint8) []byte {
	p := AppendGroupHeader(nil, flags, 3)
	p = AppendItem(p, &Item{Op: OpPut, Ext: AppendExtU64(nil, ExtTTL, 60_000), Key: []byte("a"), Value: []byte("1")})
	p = AppendItem(p, &Item{Op: OpDelete, Key: []byte("b")})
	return AppendItem(p, &Item{Op: OpPut, Ext: AppendExtCondition(nil, ConditionAbsent, nil), Key: []byte("c"), Value: []byte("3")})
}

func goldenTxn() []byte {
	p := AppendGroupHeader(nil, 0, 4)
	p = AppendItem(p, &Item{Op: OpCheck, Ext: AppendExtCondition(nil, ConditionValue, []byte("open")), Key: []byte("door")})
	p = AppendItem(p, &Item{Op: OpPut, Ext: AppendExtVersions(nil, MakeRevision(41, 3), MakeRevision(42, 0)), Key: []byte("in"), Value: []byte("ada")})
	p = AppendItem(p, &Item{Op: OpDelete, Ext: AppendExtCondition(nil, ConditionExists, nil), Key: []byte("out")})
	return AppendItem(p, &Item{Op: OpGet, Key: []byte("in")})
}

func goldenTxnAnswer() []byte {
	p := AppendResultHeader(nil, goldenRev, 4)
	p = AppendItem(p, &Item{Op: OpCheck})
	p = AppendItem(p, &Item{Op: OpPut, Value: AppendVersion(nil, goldenRev)})
	p = AppendItem(p, &Item{Op: OpDelete, Value: AppendVersion(nil, goldenRev+1)})
	return AppendItem(p, &Item{Op: OpGet, Ext: AppendExtMeta(nil, &Meta{Version: goldenRev, CreatedAt: 1, UpdatedAt: 1, Checksum: Checksum([]byte("ada"))}), Value: []byte("ada")})
}

func goldenScanPage() []byte {
	p := make([]byte, ScanPageHeaderBytes)
	p = AppendItem(p, &Item{Op: OpGet, Ext: append(AppendExtMeta(nil, &goldenMeta), goldenKept()...), Key: goldenKey, Value: goldenValue})
	p = AppendItem(p, &Item{Op: OpGet, Ext: AppendExtMeta(nil, &Meta{Version: 1, CreatedAt: 2, UpdatedAt: 3, Checksum: Checksum(nil)}), Key: []byte("user:124")})
	p = append(p, "cursor"...)
	PutScanPageHeader(p, goldenRev, 2, len("cursor"))
	return p
}

func goldenRequest(op Opcode, id uint32, ext, key, payload []byte) func() []byte {
	return func() []byte {
		return AppendFrame(nil, Header{Op: op, Flags: FlagCRC, StatusOrGroup: GroupDefault, ID: id, TimeOrTimeout: 2000}, ext, key, payload)
	}
}

func goldenAnswer(op Opcode, id uint32, s Status, ext, payload []byte) func() []byte {
	return func() []byte {
		return AppendResponse(nil, Token{ID: id, Op: op}, &Response{Status: s, Ext: ext, Payload: payload}, true, 180)
	}
}

func goldenPrefixPage() []byte {
	p := AppendItem(make([]byte, ScanPageHeaderBytes), &Item{Op: OpScan, Key: []byte("dir/sub/")})
	PutScanPageHeader(p, goldenRev, 1, 0)
	return p
}

func goldenEvents() []byte {
	p := AppendEventBatchHeader(nil, goldenRev+2, 2)
	p = AppendEvent(p, &Event{
		Kind: EventPut, Flags: EventLast | EventHadPrevious, Revision: goldenRev, Key: goldenKey, Value: goldenValue,
		Ext:         append(AppendExtMeta(nil, &goldenMeta), goldenKept()...),
		PreviousExt: AppendExtMeta(nil, &Meta{Version: 1, CreatedAt: 2, UpdatedAt: 3, Checksum: Checksum([]byte("old"))}), Previous: []byte("old"),
	})
	return AppendEvent(p, &Event{Kind: EventExpire, Flags: EventLast | EventHadPrevious | EventPreviousLost, Revision: goldenRev + 1, Key: []byte("user:124")})
}

// goldenMore is a frame that others follow.
func goldenMore(op Opcode, id uint32, ext, payload []byte) func() []byte {
	return func() []byte {
		return AppendResponse(nil, Token{ID: id, Op: op}, &Response{More: true, Ext: ext, Payload: payload}, true, 180)
	}
}

func goldenEntryLevel2() []byte {
	b := AppendEntryHeader(nil)
	b = AppendOp(b, &Op{Op: OpLevel}, AppendLevel(nil, 2), 0, 0)
	b = AppendOp(b, &Op{Op: OpNamespace}, AppendNamespaceChange(nil, &NamespaceChange{Action: NamespaceCreate, Name: "app", Settings: NamespaceSettings{BytesMax: 1 << 30, KeysMax: 1_000_000, OpsPerSecond: 5000, WatchesMax: 100, Compress: CodecZstd}}), 0, 0)
	b = AppendOp(b, &Op{Op: OpNamespace}, AppendNamespaceChange(nil, &NamespaceChange{Action: NamespacePurge, ID: 7, Max: 1000}), 0, 0)
	ext := AppendExtU64(nil, ExtTTL, 60_000)
	b = AppendOp(b, &Op{Op: OpTouch, Namespace: 2}, append(bytes.Clone(ext), "k"...), len(ext), 1)
	b = AppendOp(b, &Op{Op: OpIncrement, Namespace: 2, Session: goldenSession, Seq: 8, Floor: 7}, AppendIncrement([]byte("n"), 1), 0, 1)
	SealEntry(b, &EntryHeader{Level: 2, Group: GroupDefault, Incarnation: 0x1122334455667788, Proposal: 13, Time: 1_700_000_000_000_000, Count: 5})
	return b
}

func goldenEntry() []byte {
	b := AppendEntryHeader(nil)
	ext := goldenPutExt()
	body := append(append(bytes.Clone(ext), goldenKey...), goldenValue...)
	b = AppendOp(b, &Op{Op: OpPut, Namespace: NamespaceDefault, Session: goldenSession, Seq: 7, Floor: 5}, body, len(ext), len(goldenKey))
	b = AppendOp(b, &Op{Op: OpDelete, Namespace: NamespaceDefault}, []byte("b"), 0, 1)
	b = AppendOp(b, &Op{Op: OpBatch, Namespace: NamespaceDefault, Principal: 3, AuthRevision: 9}, goldenBatch(GroupAtomic), 0, 0)
	b = AppendOp(b, &Op{Op: OpExpire}, AppendExpire(nil, 256), 0, 0)
	b = AppendOp(b, &Op{Op: OpInit}, AppendInit(nil, &Init{ClusterID: [16]byte{1, 2, 3}, HistoryID: [16]byte{4, 5, 6}, Level: 1}), 0, 0)
	SealEntry(b, &EntryHeader{Level: 1, Group: GroupDefault, Incarnation: 0x1122334455667788, Proposal: 12, Time: 1_700_000_000_000_000, Count: 5})
	return b
}

// goldenIdempotency names the key "order-17", as the gateway hashes it.
var goldenIdempotency = Idempotency{Key: IdempotencyKey("order-17"), Fingerprint: 0x8877665544332211}

func goldenEntryLevel3() []byte {
	b := AppendEntryHeader(nil)
	b = AppendOp(b, &Op{Op: OpLevel}, AppendLevel(nil, 3), 0, 0)
	ext := AppendExtIdempotency(nil, goldenIdempotency)
	b = AppendOp(b, &Op{Op: OpIncrement, Namespace: NamespaceDefault}, AppendIncrement(append(bytes.Clone(ext), "n"...), 1), len(ext), 1)
	SealEntry(b, &EntryHeader{Level: 3, Group: GroupDefault, Incarnation: 0x1122334455667788, Proposal: 14, Time: 1_700_000_000_000_000, Count: 2})
	return b
}

func goldenCompressed(c Codec) func() []byte {
	return func() []byte {
		dst, off := BeginFrame(nil)
		dst, ok := AppendCompressed(dst, c, append(bytes.Clone(goldenKey), goldenText...))
		if !ok {
			panic("BUG: the golden text does not compress")
		}
		return FinishFrame(dst, off, Header{Op: OpPut, Flags: FlagCRC | FlagCompressed, StatusOrGroup: GroupDefault, ID: 12, KeyLen: uint16(len(goldenKey))})
	}
}

func goldens() []golden {
	multiGet := AppendItem(AppendItem(AppendGroupHeader(nil, 0, 2), &Item{Op: OpGet, Key: goldenKey}), &Item{Op: OpGet, Key: []byte("none")})
	multiGetAnswer := AppendResultHeader(nil, goldenRev, 2)
	multiGetAnswer = AppendItem(multiGetAnswer, &Item{Op: OpGet, Ext: append(AppendExtMeta(nil, &goldenMeta), goldenKept()...), Value: goldenValue})
	multiGetAnswer = AppendItem(multiGetAnswer, &Item{Op: OpGet, Status: StatusNotFound})
	batchAnswer := AppendResultHeader(nil, goldenRev, 3)
	batchAnswer = AppendItem(batchAnswer, &Item{Op: OpPut, Value: AppendVersion(nil, goldenRev)})
	batchAnswer = AppendItem(batchAnswer, &Item{Op: OpDelete, Status: StatusNotFound, Value: AppendVersion(nil, 0)})
	batchAnswer = AppendItem(batchAnswer, &Item{Op: OpPut, Status: StatusConditionFailed, Value: AppendFailed(nil, []FailedCondition{{0, 0}})})
	getAnswerExt := append(AppendExtMeta(nil, &goldenMeta), goldenKept()...)

	return []golden{
		{name: "preface_client", what: "client's preface: versions 1 to 1", make: func() []byte { return AppendPreface(nil, 1, 1) }},
		{name: "preface_server", what: "server's preface: version 1", make: func() []byte { return AppendPreface(nil, 1, 0) }},
		{name: "hello", what: "HELLO: all features, codecs s2 and zstd, a name, a cluster id", make: func() []byte {
			return AppendHello(nil, &Hello{Features: FeatureCRC | FeatureCompression | FeatureSessions, Codecs: []Codec{CodecS2, CodecZstd}, MaxFrame: 1 << 20, ClientName: "example/1.0", ClusterID: bytes.Repeat([]byte{0xc1}, 16)})
		}},
		{name: "hello_ack", what: "HELLO's answer: two members, the first leads", make: func() []byte {
			return AppendHelloAck(nil, goldenHelloAck())
		}},
		{name: "hello_refused", what: "HELLO's answer: UNSUPPORTED", make: goldenAnswer(OpHello, 0, StatusUnsupported, nil, []byte("critical extension 99 of hello is not known to this version"))},
		{name: "goaway", what: "GOAWAY: the server is shutting down", make: func() []byte { return AppendGoAway(nil, StatusDraining, "the server is shutting down", true) }},
		{name: "ping_request", what: "PING with four bytes, request 1", make: goldenRequest(OpPing, 1, nil, nil, []byte("ping"))},
		{name: "ping_answer", what: "PING's answer", make: goldenAnswer(OpPing, 1, StatusOK, nil, []byte("ping"))},
		{name: "cancel", what: "CANCEL of request 9; it has no answer", make: goldenRequest(OpCancel, 0, nil, nil, []byte{9, 0, 0, 0})},
		{name: "status_request", what: "STATUS, request 2", make: goldenRequest(OpStatus, 2, nil, nil, nil)},
		{name: "status_answer", what: "STATUS's answer: a JSON document", make: goldenAnswer(OpStatus, 2, StatusOK, nil, []byte(`{"node_id":"node-1"}`))},

		{name: "status_local", what: "STATUS of the asked node alone, request 14", make: goldenRequest(OpStatus, 14, nil, nil, []byte{StatusLocal})},
		{name: "admin_request", what: "ADMIN: move leadership, request 15", make: goldenRequest(OpAdmin, 15, nil, nil, []byte(`{"action":"transfer","id":"node-2"}`))},
		{name: "admin_not_leader", what: "ADMIN's answer: another node leads", make: goldenAnswer(OpAdmin, 15, StatusNotLeader, AppendExtU64(AppendExtString(nil, ExtLeader, "127.0.0.1:7011"), ExtTerm, 7), nil)},

		{name: "read_index_request", what: "READ_INDEX, request 16", make: goldenRequest(OpReadIndex, 16, nil, nil, nil)},
		{name: "read_index_answer", what: "READ_INDEX's answer: index 57 of term 4, and the revision", make: goldenAnswer(OpReadIndex, 16, StatusOK, nil, AppendReadPoint(nil, ReadPoint{57, 4, goldenRev}))},

		{name: "put_request", what: "PUT user:123 with session, time to live, condition, tags, content type and checksum, request 3", make: goldenRequest(OpPut, 3, goldenPutExt(), goldenKey, goldenValue)},
		{name: "put_answer", what: "PUT's answer: the version", make: goldenAnswer(OpPut, 3, StatusOK, nil, AppendVersion(nil, goldenRev))},
		{name: "put_failed", what: "PUT's answer: condition 0 does not hold", make: goldenAnswer(OpPut, 3, StatusConditionFailed, nil, AppendFailed(nil, []FailedCondition{{0, 0}}))},
		{name: "put_replayed", what: "PUT's answer, kept from an earlier attempt", make: func() []byte {
			return AppendResponse(nil, Token{ID: 3, Op: OpPut}, &Response{Replayed: true, Payload: AppendVersion(nil, goldenRev)}, true, 180)
		}},
		{name: "put_plain", what: "PUT k = v without elements, checksum or deadline, request 4", make: func() []byte {
			return AppendFrame(nil, Header{Op: OpPut, ID: 4}, nil, []byte("k"), []byte("v"))
		}},
		{name: "get_request", what: "GET user:123, stale but not before a revision, request 5", make: goldenRequest(OpGet, 5, AppendExtU64(AppendExtU8(nil, ExtConsistency, 1), ExtMinRevision, goldenRev), goldenKey, nil)},
		{name: "get_answer", what: "GET's answer: meta, tags, content type, value", make: goldenAnswer(OpGet, 5, StatusOK, getAnswerExt, goldenValue)},
		{name: "get_any_node", what: "GET user:123 from any node, linearizable, request 17", make: goldenRequest(OpGet, 17, AppendExtU8(nil, ExtConsistency, ConsistencyAnyNode), goldenKey, nil)},
		{name: "get_bounded", what: "GET user:123, stale but no older than 500 ms, request 18", make: goldenRequest(OpGet, 18, AppendExtU64(AppendExtU8(nil, ExtConsistency, ConsistencyStale), ExtMaxAge, 500), goldenKey, nil)},
		{name: "get_bounded_answer", what: "its answer: meta, tags, content type, an age of 120 ms, value", make: goldenAnswer(OpGet, 18, StatusOK, AppendExtU64(bytes.Clone(getAnswerExt), ExtAge, 120_000), goldenValue)},
		{name: "get_absent", what: "GET's answer: NOT_FOUND", make: goldenAnswer(OpGet, 5, StatusNotFound, nil, nil)},
		{name: "exists_request", what: "EXISTS user:123 in namespace app, at a past revision, request 6", make: goldenRequest(OpExists, 6, AppendExtU64(AppendExtString(nil, ExtNamespace, "app"), ExtAtRevision, goldenRev), goldenKey, nil)},
		{name: "exists_answer", what: "EXISTS's answer: meta", make: goldenAnswer(OpExists, 6, StatusOK, AppendExtMeta(nil, &goldenMeta), nil)},
		{name: "delete_request", what: "DELETE user:123 if it exists, request 7", make: goldenRequest(OpDelete, 7, AppendExtCondition(nil, ConditionExists, nil), goldenKey, nil)},
		{name: "delete_answer", what: "DELETE's answer: the revision of the deletion", make: goldenAnswer(OpDelete, 7, StatusOK, nil, AppendVersion(nil, goldenRev+2))},
		{name: "delete_absent", what: "DELETE's answer: nothing was there", make: goldenAnswer(OpDelete, 7, StatusNotFound, nil, AppendVersion(nil, 0))},
		{name: "multiget_request", what: "MULTIGET of user:123 and none, request 8", make: goldenRequest(OpMultiGet, 8, nil, nil, multiGet)},
		{name: "multiget_answer", what: "MULTIGET's answer: a record and NOT_FOUND", make: goldenAnswer(OpMultiGet, 8, StatusOK, nil, multiGetAnswer)},
		{name: "scan_request", what: "SCAN of the prefix user:, in reverse, 2 items, continued by a cursor, request 9", make: goldenRequest(OpScan, 9, nil, nil, AppendScanRequest(nil, &ScanRequest{Flags: ScanReverse, Limit: 2, BytesMax: 4096, Prefix: []byte("user:"), Start: []byte("user:1"), End: []byte("user:9"), Cursor: []byte("cursor")}))},
		{name: "scan_answer", what: "SCAN's answer: a page of two items with a cursor", make: goldenAnswer(OpScan, 9, StatusOK, nil, goldenScanPage())},
		{name: "batch_request", what: "BATCH of put, delete and conditional put, each for itself, request 10", make: goldenRequest(OpBatch, 10, AppendExtSession(nil, goldenSession, 8, 7), nil, goldenBatch(0))},
		{name: "batch_atomic", what: "the same BATCH, all or nothing", make: goldenRequest(OpBatch, 10, AppendExtSession(nil, goldenSession, 8, 7), nil, goldenBatch(GroupAtomic))},
		{name: "batch_answer", what: "BATCH's answer: done, absent, condition failed", make: goldenAnswer(OpBatch, 10, StatusOK, nil, batchAnswer)},
		{name: "txn_request", what: "TXN of check, put, delete, get, request 11", make: goldenRequest(OpTxn, 11, nil, nil, goldenTxn())},
		{name: "txn_answer", what: "TXN's answer: committed", make: goldenAnswer(OpTxn, 11, StatusOK, nil, goldenTxnAnswer())},
		{name: "txn_failed", what: "TXN's answer: two conditions do not hold, nothing was done", make: goldenAnswer(OpTxn, 11, StatusConditionFailed, nil, AppendFailed(nil, []FailedCondition{{0, 0}, {1, 0}}))},
		{name: "session_open_request", what: "SESSION_OPEN, request 13", make: goldenRequest(OpSessionOpen, 13, nil, nil, nil)},
		{name: "session_open_answer", what: "SESSION_OPEN's answer: the session and its time to live", make: goldenAnswer(OpSessionOpen, 13, StatusOK, nil, AppendSessionGrant(nil, SessionGrant{goldenSession, 600_000}))},
		{name: "session_close_request", what: "SESSION_CLOSE, request 14", make: goldenRequest(OpSessionClose, 14, AppendExtSession(nil, goldenSession, 0, 0), nil, nil)},
		{name: "session_close_answer", what: "SESSION_CLOSE's answer", make: goldenAnswer(OpSessionClose, 14, StatusOK, nil, nil)},

		{name: "touch_request", what: "TOUCH user:123 with a time to live, if it has the tag team = math, request 19", make: goldenRequest(OpTouch, 19, AppendExtTagCondition(AppendExtU64(nil, ExtTTL, 60_000), "team", "math"), goldenKey, nil)},
		{name: "touch_answer", what: "TOUCH's answer: the version", make: goldenAnswer(OpTouch, 19, StatusOK, nil, AppendVersion(nil, goldenRev))},
		{name: "increment_request", what: "INCREMENT visits by -2, request 20", make: goldenRequest(OpIncrement, 20, nil, []byte("visits"), AppendIncrement(nil, -2))},
		{name: "increment_answer", what: "INCREMENT's answer: the version, and the value 40", make: goldenAnswer(OpIncrement, 20, StatusOK, nil, AppendCounter(nil, goldenRev, 40))},
		{name: "put_compress", what: "PUT k = v, to be compressed with lz4 in the store if that pays, request 24", make: goldenRequest(OpPut, 24, AppendExtU8(nil, ExtCompress, byte(CodecLZ4)), []byte("k"), []byte("v"))},
		{name: "increment_once", what: "INCREMENT visits by 1 in namespace app, with an idempotency key, request 25", make: goldenRequest(OpIncrement, 25, AppendExtString(AppendExtIdempotency(nil, goldenIdempotency), ExtNamespace, "app"), []byte("visits"), AppendIncrement(nil, 1))},
		{name: "increment_reused", what: "INCREMENT's answer: the key belongs to another request", make: goldenAnswer(OpIncrement, 25, StatusKeyReused, nil, nil)},
		{name: "scan_delimiter", what: "SCAN of one level below dir/, streamed, request 21", make: goldenRequest(OpScan, 21, nil, nil, AppendScanRequest(nil, &ScanRequest{Flags: ScanStream | ScanKeysOnly, Limit: 2, BytesMax: 4096, Prefix: []byte("dir/"), Delimiter: []byte("/")}))},
		{name: "scan_prefix_answer", what: "the last page of its answer: one text that keys have in common", make: goldenAnswer(OpScan, 21, StatusOK, nil, goldenPrefixPage())},
		{name: "watch_request", what: "WATCH of the prefix user: behind a revision, with previous values, request 22", make: goldenRequest(OpWatch, 22, AppendExtU32(AppendExt(nil, ExtHistory, bytes.Repeat([]byte{0xd2}, 16)), ExtNamespaceID, 1), nil, AppendWatchRequest(nil, &WatchRequest{Flags: WatchPrevious, Credit: 65536, ProgressMs: 1000, After: goldenRev, Prefix: []byte("user:")}))},
		{name: "watch_begins", what: "the first frame of its answer: the history, the namespace, and where it begins", make: goldenMore(OpWatch, 22, AppendExtU32(AppendExt(nil, ExtHistory, bytes.Repeat([]byte{0xd2}, 16)), ExtNamespaceID, 1), AppendEventBatchHeader(nil, goldenRev, 0))},
		{name: "watch_events", what: "two events: a put over a record, and an expiry", make: goldenMore(OpWatch, 22, nil, goldenEvents())},
		{name: "watch_progress", what: "nothing happened up to a revision", make: goldenMore(OpWatch, 22, nil, AppendEventBatchHeader(nil, MakeRevision(90, 0), 0))},
		{name: "watch_compacted", what: "the end of a watch: its reader was too slow", make: goldenAnswer(OpWatch, 22, StatusCompacted, nil, []byte("events up to revision 59768833 are no longer kept"))},
		{name: "credit", what: "CREDIT of 4096 bytes for request 22; it has no answer", make: goldenRequest(OpCredit, 0, nil, nil, AppendCredit(nil, 22, 4096))},

		{name: "error_not_leader", what: "an answer NOT_LEADER with the leader's address and term", make: goldenAnswer(OpPut, 3, StatusNotLeader, AppendExtU64(AppendExtString(nil, ExtLeader, "10.0.0.2:7001"), ExtTerm, 4), nil)},
		{name: "error_busy", what: "an answer BUSY with a pause of 20 ms", make: goldenAnswer(OpPut, 3, StatusBusy, AppendExtU32(nil, ExtRetryAfter, 20), nil)},
		{name: "error_too_large", what: "an answer TOO_LARGE with the limit and a text", make: func() []byte {
			r := ErrorResponse(refuseLimit(ValueBytesMax, "value of %d bytes; at most %d", ValueBytesMax+1, ValueBytesMax), nil)
			return AppendResponse(nil, Token{ID: 3, Op: OpPut}, &r, true, 180)
		}},
		{name: "compressed_s2", what: "PUT of 1760 bytes compressed with s2, request 12", make: goldenCompressed(CodecS2), decodeOnly: true},
		{name: "compressed_zstd", what: "PUT of 1760 bytes compressed with zstd, request 12", make: goldenCompressed(CodecZstd), decodeOnly: true},
		{name: "entry", what: "a log entry: put, delete, atomic batch, expire, init", make: goldenEntry},
		{name: "entry_level2", what: "a log entry of behaviour level 2: level, namespaces, touch, increment", make: goldenEntryLevel2},
		{name: "entry_level3", what: "a log entry of behaviour level 3: level, increment with an idempotency key", make: goldenEntryLevel3},
	}
}

func goldenHelloAck() *HelloAck {
	return &HelloAck{
		Features: FeatureCRC | FeatureCompression | FeatureSessions, Codec: CodecS2, MaxFrame: FrameBodyBytesMax,
		Inflight: ConnInflightMax, InflightBytes: ConnInflightBytesMax, ClusterID: [16]byte(bytes.Repeat([]byte{0xc1}, 16)),
		NodeID: "node-1", Version: "0.1.0", Term: 4, SessionTTLMs: uint64(SessionTTL.Milliseconds()),
		Members: []MemberInfo{{ID: "node-1", Address: "10.0.0.1:7001", Voter: true, Leader: true}, {ID: "node-2", Address: "10.0.0.2:7001"}},
	}
}

func goldenPath(name string) string { return filepath.Join("testdata", name+".hex") }

// parseHex reads hex digits, blanks and line comments that begin with '#'.
func parseHex(text string) ([]byte, error) {
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	return hex.DecodeString(digits.String())
}

func formatHex(what string, b []byte) string {
	var s strings.Builder
	fmt.Fprintf(&s, "# %s\n", what)
	for len(b) > 0 {
		n := min(16, len(b))
		fmt.Fprintf(&s, "% x\n", b[:n])
		b = b[n:]
	}
	return s.String()
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(goldenPath(name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseHex(string(text))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// If this test breaks, the protocol or the format of the log has changed: clients in the field and logs on
// disk would no longer be understood. Such a change needs a new version or a new behaviour level.
func TestGolden_EncodersMakeTheFrozenBytes(t *testing.T) {
	known := map[string]bool{}
	for _, g := range goldens() {
		known[g.name+".hex"] = true
		b := g.make()
		if *update {
			if err := os.WriteFile(goldenPath(g.name), []byte(formatHex(g.what, b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want := readGolden(t, g.name); !g.decodeOnly && !bytes.Equal(b, want) {
			t.Errorf("%s: made\n%swant\n%s", g.name, formatHex(g.what, b), formatHex(g.what, want))
		}
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".hex") && !known[f.Name()] {
			t.Errorf("testdata/%s belongs to no golden frame", f.Name())
		}
	}
}

// Every golden request passes ParseRequest, every frame its checksum, and taking a frame apart and putting
// it together again gives the same bytes.
func TestGolden_FramesParseAndRoundTrip(t *testing.T) {
	for _, g := range goldens() {
		if strings.HasPrefix(g.name, "entry") || strings.HasPrefix(g.name, "preface") {
			continue
		}
		frame := readGolden(t, g.name)
		var h Header
		if err := DecodeHeader(frame, &h); err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		if int(h.BodyLen) != len(frame)-HeaderBytes {
			t.Errorf("%s: body_len %d in a frame of %d", g.name, h.BodyLen, len(frame))
		}
		if err := VerifyFrame(frame); err != nil {
			t.Errorf("%s: %v", g.name, err)
		}
		body := frame[HeaderBytes:]
		if h.Flags&FlagCompressed != 0 {
			codec := CodecS2
			if g.name == "compressed_zstd" {
				codec = CodecZstd
			}
			raw, err := Decompress(nil, codec, body, FrameBodyBytesMax)
			if err != nil {
				t.Fatalf("%s: %v", g.name, err)
			}
			if want := append(bytes.Clone(goldenKey), goldenText...); !bytes.Equal(raw, want) {
				t.Errorf("%s: unpacks to %q", g.name, raw)
			}
			body = raw
		}
		ext, key, payload, err := SplitBody(&h, body)
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		if h.Flags&FlagCompressed == 0 {
			if again := AppendFrame(nil, h, ext, key, payload); !bytes.Equal(again, frame) {
				t.Errorf("%s: comes back as\n% x\nnot\n% x", g.name, again, frame)
			}
		}
		if h.Flags&FlagResponse == 0 && h.Op != OpHello {
			var r Request
			if ref := ParseRequest(&h, body, &r); ref != nil {
				t.Errorf("%s: %v", g.name, ref)
			}
		}
	}
}
