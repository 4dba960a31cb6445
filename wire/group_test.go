package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// group makes the payload of n equal items.
func group(flags uint8, n int, it *Item) []byte {
	b := AppendGroupHeader(nil, flags, n)
	for range n {
		b = AppendItem(b, it)
	}
	return b
}

func TestParseRequest_Groups(t *testing.T) {
	k := []byte("k")
	exists := AppendExtCondition(nil, ConditionExists, nil)
	for _, c := range []struct {
		name    string
		op      Opcode
		payload []byte
		want    Status
		items   int
	}{
		{"no items", OpBatch, group(0, 0, nil), StatusBadRequest, 0},
		{"no items", OpTxn, group(0, 0, nil), StatusBadRequest, 0},
		{"no keys", OpMultiGet, group(0, 0, nil), StatusBadRequest, 0},
		{"most items", OpBatch, group(GroupAtomic, BatchOpsMax, &Item{Op: OpDelete, Key: k}), StatusOK, BatchOpsMax},
		{"an item more", OpBatch, group(0, BatchOpsMax+1, &Item{Op: OpDelete, Key: k}), StatusTooLarge, 0},
		{"most operations", OpTxn, group(0, BatchOpsMax, &Item{Op: OpGet, Key: k}), StatusOK, BatchOpsMax},
		{"an operation more", OpTxn, group(0, BatchOpsMax+1, &Item{Op: OpGet, Key: k}), StatusTooLarge, 0},
		{"most keys", OpMultiGet, group(0, BatchOpsMax, &Item{Op: OpGet, Key: k}), StatusOK, BatchOpsMax},
		{"a key more", OpMultiGet, group(0, BatchOpsMax+1, &Item{Op: OpGet, Key: k}), StatusTooLarge, 0},
		{"unknown flag", OpBatch, group(2, 1, &Item{Op: OpPut, Key: k}), StatusUnsupported, 0},
		{"flag of a transaction", OpTxn, group(GroupAtomic, 1, &Item{Op: OpPut, Key: k}), StatusUnsupported, 0},
		{"flag of a MULTIGET", OpMultiGet, group(GroupAtomic, 1, &Item{Op: OpGet, Key: k}), StatusUnsupported, 0},
		{"get in a batch", OpBatch, group(0, 1, &Item{Op: OpGet, Key: k}), StatusBadRequest, 0},
		{"check in a batch", OpBatch, group(0, 1, &Item{Op: OpCheck, Ext: exists, Key: k}), StatusBadRequest, 0},
		{"batch in a batch", OpBatch, group(0, 1, &Item{Op: OpBatch, Key: k}), StatusBadRequest, 0},
		{"put in a MULTIGET", OpMultiGet, group(0, 1, &Item{Op: OpPut, Key: k}), StatusBadRequest, 0},
		{"key with elements in a MULTIGET", OpMultiGet, group(0, 1, &Item{Op: OpGet, Ext: exists, Key: k}), StatusBadRequest, 0},
		{"key with a value in a MULTIGET", OpMultiGet, group(0, 1, &Item{Op: OpGet, Key: k, Value: k}), StatusBadRequest, 0},
		{"status of a key", OpMultiGet, group(0, 1, &Item{Op: OpGet, Status: 1, Key: k}), StatusBadRequest, 0},
		{"status of an item", OpBatch, group(0, 1, &Item{Op: OpPut, Status: 1, Key: k}), StatusBadRequest, 0},
		{"check", OpTxn, group(0, 1, &Item{Op: OpCheck, Ext: exists, Key: k}), StatusOK, 1},
		{"check of nothing", OpTxn, group(0, 1, &Item{Op: OpCheck, Key: k}), StatusBadRequest, 0},
		{"check with a value", OpTxn, group(0, 1, &Item{Op: OpCheck, Ext: exists, Key: k, Value: k}), StatusBadRequest, 0},
		{"get with a condition", OpTxn, group(0, 1, &Item{Op: OpGet, Ext: exists, Key: k}), StatusOK, 1},
		{"get with a tag", OpTxn, group(0, 1, &Item{Op: OpGet, Ext: AppendExtTag(nil, "a", ""), Key: k}), StatusBadRequest, 0},
		{"get with a value", OpTxn, group(0, 1, &Item{Op: OpGet, Key: k, Value: k}), StatusBadRequest, 0},
		{"delete with a value", OpBatch, group(0, 1, &Item{Op: OpDelete, Key: k, Value: k}), StatusBadRequest, 0},
		{"item without a key", OpBatch, group(0, 1, &Item{Op: OpDelete}), StatusBadKey, 0},
		{"critical element of an item", OpBatch, group(0, 1, &Item{Op: OpPut, Ext: AppendExt(nil, 201, nil), Key: k}), StatusUnsupported, 0},
		{"time to live of an item twice", OpBatch, group(0, 1, &Item{Op: OpPut, Ext: AppendExtU64(AppendExtU64(nil, ExtTTL, 1), ExtTTL, 1), Key: k}), StatusBadRequest, 0},
		{"content type of an item twice", OpTxn, group(0, 1, &Item{Op: OpPut, Ext: AppendExtString(AppendExtString(nil, ExtContentType, "a"), ExtContentType, "b"), Key: k}), StatusBadRequest, 0},
		{"wrong checksum of an item", OpBatch, group(0, 1, &Item{Op: OpPut, Ext: AppendExtU64(nil, ExtChecksum, 1), Key: k}), StatusChecksum, 0},
		{"bytes behind the items", OpBatch, append(group(0, 1, &Item{Op: OpPut, Key: k}), 0), StatusBadRequest, 0},
		{"an item that is not counted", OpBatch, append(group(0, 1, &Item{Op: OpPut, Key: k}), group(0, 1, &Item{Op: OpPut, Key: k})[GroupHeaderBytes:]...), StatusBadRequest, 0},
		{"bytes behind the keys", OpMultiGet, append(group(0, 1, &Item{Op: OpGet, Key: k}), 0), StatusBadRequest, 0},
		{"cut header", OpBatch, make([]byte, GroupHeaderBytes-1), StatusBadRequest, 0},
		{"count beyond the bytes", OpBatch, AppendGroupHeader(nil, 0, -1), StatusBadRequest, 0},
		{"reserved byte", OpBatch, []byte{0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, StatusBadRequest, 0},
	} {
		r, ref := parse(Header{Op: c.op, ID: 1}, nil, nil, c.payload)
		if statusOf(ref) != c.want || r.Items != c.items {
			t.Errorf("%s, %s: %v and %d items, want %s and %d", c.op, c.name, ref, r.Items, c.want, c.items)
		}
		if ref != nil && ref.Status == StatusTooLarge && ref.Limit != BatchOpsMax {
			t.Errorf("%s, %s: limit %d", c.op, c.name, ref.Limit)
		}
	}
}

func TestNextItem_LengthsThatLie_AreCorrupt(t *testing.T) {
	whole := AppendItem(nil, &Item{Op: OpPut, Ext: []byte("ee"), Key: []byte("kkk"), Value: []byte("vvvv")})
	var it Item
	if rest, err := NextItem(whole, &it); err != nil || len(rest) != 0 || string(it.Ext) != "ee" || string(it.Key) != "kkk" || string(it.Value) != "vvvv" {
		t.Fatalf("%+v, rest %d, %v", it, len(rest), err)
	}
	for n := range whole {
		if _, err := NextItem(whole[:n], &it); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	for _, at := range []int{2, 4, 8} {
		lie := bytes.Clone(whole)
		lie[at] += 1
		if _, err := NextItem(lie, &it); !errors.Is(err, ErrCorrupt) {
			t.Errorf("length at %d one too large: %v", at, err)
		}
	}
	lie := bytes.Clone(whole)
	binary.LittleEndian.PutUint32(lie[8:], 1<<32-1)
	if _, err := NextItem(lie, &it); !errors.Is(err, ErrCorrupt) {
		t.Errorf("value of 2^32-1 bytes: %v", err)
	}
}

func TestResult_RoundTrip(t *testing.T) {
	rev, n, items, err := DecodeResult(goldenTxnAnswer())
	if err != nil || rev != goldenRev || n != 4 {
		t.Fatalf("%d, %d, %v", rev, n, err)
	}
	var got []Opcode
	for range n {
		var it Item
		if items, err = NextItem(items, &it); err != nil {
			t.Fatal(err)
		}
		got = append(got, it.Op)
		if it.Op == OpPut {
			if v, ok := DecodeVersion(it.Value); !ok || v != goldenRev {
				t.Errorf("version %d, %v", v, ok)
			}
		}
	}
	if want := []Opcode{OpCheck, OpPut, OpDelete, OpGet}; len(items) != 0 || string(opcodes(got)) != string(opcodes(want)) {
		t.Errorf("items %v, %d bytes left", got, len(items))
	}
	for _, b := range [][]byte{nil, make([]byte, ResultHeaderBytes-1), AppendResultHeader(nil, 1, 1), AppendResultHeader(nil, 1, -1)} {
		if _, _, _, err := DecodeResult(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("% x: %v", b, err)
		}
	}
	if _, ok := DecodeVersion(make([]byte, 7)); ok {
		t.Error("version of 7 bytes")
	}
}

func opcodes(ops []Opcode) []byte {
	var b []byte
	for _, o := range ops {
		b = append(b, byte(o))
	}
	return b
}

func TestFailed_RoundTrip(t *testing.T) {
	want := []FailedCondition{{0, 3}, {65535, 0}}
	got, err := DecodeFailed(AppendFailed(nil, want))
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v, %v", got, err)
	}
	for _, b := range [][]byte{nil, {1, 0, 0}, {1, 0, 0, 0}, {1, 0, 0, 0, 1, 2, 3, 4}, {0, 0, 0, 0, 1}, {255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0x20}} {
		if _, err := DecodeFailed(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("% x: %v", b, err)
		}
	}
}

func TestScanRequest_LimitsAndDefaults(t *testing.T) {
	b := func(n int) []byte { return bytes.Repeat([]byte("a"), n) }
	for _, c := range []struct {
		name string
		s    ScanRequest
		want Status
		n, m uint32
	}{
		{"defaults", ScanRequest{}, StatusOK, ScanLimitDefault, ScanBytesDefault},
		{"greedy", ScanRequest{Limit: 1<<32 - 1, BytesMax: 1<<32 - 1}, StatusOK, ScanLimitMax, ScanBytesMax},
		{"modest", ScanRequest{Limit: 1, BytesMax: 1}, StatusOK, 1, 1},
		{"all flags", ScanRequest{Flags: ScanReverse | ScanKeysOnly | ScanCount | ScanStream}, StatusOK, ScanLimitDefault, ScanBytesDefault},
		{"unknown flag", ScanRequest{Flags: 16}, StatusUnsupported, 0, 0},
		{"longest delimiter", ScanRequest{Delimiter: b(ScanDelimiterBytesMax)}, StatusOK, ScanLimitDefault, ScanBytesDefault},
		{"longer delimiter", ScanRequest{Delimiter: b(ScanDelimiterBytesMax + 1)}, StatusTooLarge, 0, 0},
		{"delimiter not UTF-8", ScanRequest{Delimiter: []byte{0xff}}, StatusBadRequest, 0, 0},
		{"count with a delimiter", ScanRequest{Flags: ScanCount, Delimiter: []byte("/")}, StatusBadRequest, 0, 0},
		{"longest bounds", ScanRequest{Prefix: b(KeyBytesMax), Start: b(KeyBytesMax), End: b(KeyBytesMax), Cursor: b(CursorBytesMax)}, StatusOK, ScanLimitDefault, ScanBytesDefault},
		{"longer prefix", ScanRequest{Prefix: b(KeyBytesMax + 1)}, StatusTooLarge, 0, 0},
		{"longer start", ScanRequest{Start: b(KeyBytesMax + 1)}, StatusTooLarge, 0, 0},
		{"longer end", ScanRequest{End: b(KeyBytesMax + 1)}, StatusTooLarge, 0, 0},
		{"longer cursor", ScanRequest{Cursor: b(CursorBytesMax + 1)}, StatusBadRequest, 0, 0},
	} {
		payload := AppendScanRequest(nil, &c.s)
		if _, ref := parse(Header{Op: OpScan, ID: 1}, nil, nil, payload); statusOf(ref) != c.want {
			t.Errorf("%s: %v, want %s", c.name, ref, c.want)
		}
		var got ScanRequest
		if ref := DecodeScanRequest(payload, &got); ref == nil {
			if got.Limit != c.n || got.BytesMax != c.m || got.Flags != c.s.Flags || !bytes.Equal(got.Prefix, c.s.Prefix) ||
				!bytes.Equal(got.Start, c.s.Start) || !bytes.Equal(got.End, c.s.End) || !bytes.Equal(got.Cursor, c.s.Cursor) || !bytes.Equal(got.Delimiter, c.s.Delimiter) {
				t.Errorf("%s: %+v", c.name, got)
			}
		}
	}
	whole := AppendScanRequest(nil, &ScanRequest{Prefix: []byte("p"), Cursor: []byte("c"), Delimiter: []byte("d")})
	for n := range whole {
		if ref := DecodeScanRequest(whole[:n], &ScanRequest{}); statusOf(ref) != StatusBadRequest {
			t.Errorf("%d of %d bytes: %v", n, len(whole), ref)
		}
	}
	if ref := DecodeScanRequest(append(whole, 0), &ScanRequest{}); statusOf(ref) != StatusBadRequest {
		t.Errorf("a byte more: %v", ref)
	}
	for at := 2; at < 4; at++ {
		lie := AppendScanRequest(nil, &ScanRequest{})
		lie[at] = 1
		if ref := DecodeScanRequest(lie, &ScanRequest{}); statusOf(ref) != StatusUnsupported {
			t.Errorf("reserved byte %d: %v", at, ref)
		}
	}
}

func TestScanPage_RoundTrip(t *testing.T) {
	var p ScanPage
	if err := DecodeScanPage(goldenScanPage(), &p); err != nil || p.Count != 2 || p.Revision != goldenRev || string(p.Cursor) != "cursor" {
		t.Fatalf("%+v, %v", p, err)
	}
	items, n := p.Items, 0
	for ; len(items) > 0; n++ {
		var it Item
		var err error
		if items, err = NextItem(items, &it); err != nil {
			t.Fatal(err)
		}
		var m Meta
		_, v, _, err := NextExt(it.Ext)
		if err != nil || DecodeMeta(v, &m) != nil {
			t.Fatalf("item %d: % x", n, it.Ext)
		}
	}
	if n != 2 {
		t.Errorf("%d items", n)
	}
	short := make([]byte, ScanPageHeaderBytes)
	for _, c := range []struct{ count, cursor int }{{1, 0}, {0, 1}, {-1, 0}, {0, 65535}} {
		PutScanPageHeader(short, 1, c.count, c.cursor)
		if err := DecodeScanPage(short, &p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v in no bytes: %v", c, err)
		}
	}
	if err := DecodeScanPage(short[:15], &p); !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut header: %v", err)
	}
}

func TestMeta_RoundTrip(t *testing.T) {
	want := Meta{Version: 1<<64 - 1, CreatedAt: -1, UpdatedAt: 1<<63 - 1, ExpiresAt: 5, Checksum: 1 << 63}
	e := AppendExtMeta(nil, &want)
	ty, v, rest, err := NextExt(e)
	var got Meta
	if err != nil || ty != ExtMeta || len(rest) != 0 || DecodeMeta(v, &got) != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, n := range []int{0, MetaBytes - 1, MetaBytes + 1} {
		if err := DecodeMeta(make([]byte, n), &got); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestSessionGrant_RoundTrip(t *testing.T) {
	want := SessionGrant{Session: 1 << 63, TTLMs: 600_000}
	if got, ok := DecodeSessionGrant(AppendSessionGrant(nil, want)); !ok || got != want {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := DecodeSessionGrant(make([]byte, 15)); ok {
		t.Error("grant of 15 bytes")
	}
}
