package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"kvstore/wire"
)

// describe writes the operations that the service was asked for, in a form that a test can name.
func describe(t *testing.T, m *memory) []string {
	t.Helper()
	flags, n, items, err := wire.DecodeGroup(m.last.Payload)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{fmt.Sprintf("%s %d", m.last.Op, flags)}
	var it wire.Item
	for range n {
		if items, err = wire.NextItem(items, &it); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%s %q", it.Op, it.Key)
		for ext := it.Ext; len(ext) > 0; {
			ty, v, rest, err := wire.NextExt(ext)
			if err != nil {
				t.Fatal(err)
			}
			ext = rest
			text += fmt.Sprintf(" %d:%x", ty, v)
		}
		out = append(out, fmt.Sprintf("%s = %q", text, it.Value))
	}
	return out
}

// result makes the answer to a group.
func resultOf(rev wire.Revision, items ...wire.Item) *wire.Response {
	b := wire.AppendResultHeader(nil, rev, len(items))
	for i := range items {
		b = wire.AppendItem(b, &items[i])
	}
	return &wire.Response{Payload: b}
}

func TestGroups_DocumentsBecomeOperations_AndResultsAreTold(t *testing.T) {
	m, s := start(t, nil)
	meta := wire.Meta{Version: 9, CreatedAt: 1e15, UpdatedAt: 1e15, Checksum: 1}
	for name, c := range map[string]struct {
		target, body string
		answer       *wire.Response
		asked        []string
		want         string
	}{
		"put": {
			batchPath + "put", `{"items":[{"key":"a","value":"AP8="},{"key":"b\/é\u00e9\ud83d\ude00","text":"x\n","ttl_seconds":5,"tags":{"z":"1","a":"2"},
				"content_type":"text/plain","encoding":"br","checksum":"xxh64=` + fmt.Sprintf("%016x", wire.Checksum([]byte("x\n"))) + `","compress":"zstd","conditions":[{"if_not_exists":true}]}]}`,
			resultOf(7, wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 7)}, wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 8)}),
			[]string{"batch 1", `put "a" = "\x00\xff"`, fmt.Sprintf(`put "b/éé😀" 9:03 7:8813000000000000 11:0161%x 11:017a%x 13:%x 15:%x 17:%x 25:02 = "x\n"`, "2", "1", "text/plain", "br",
				wire.AppendVersion(nil, wire.Checksum([]byte("x\n"))))},
			`{"results":[{"key":"a","version":"7"},{"key":"b/éé😀","version":"8"}],"version":"7"}`,
		},
		"put of nothing much": {
			batchPath + "put", ` { "items" : [ { "text" : "" , "key" : "a" } ] } `, resultOf(7, wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 7)}),
			[]string{"batch 1", `put "a" = ""`}, `{"results":[{"key":"a","version":"7"}],"version":"7"}`,
		},
		"delete": {
			batchPath + "delete?namespace=app", `{"keys":["a","b"]}`,
			resultOf(7, wire.Item{Op: wire.OpDelete, Value: wire.AppendVersion(nil, 7)}, wire.Item{Op: wire.OpDelete, Status: wire.StatusNotFound, Value: wire.AppendVersion(nil, 0)}),
			[]string{"batch 1", `delete "a" = ""`, `delete "b" = ""`},
			`{"results":[{"key":"a","deleted":true,"version":"7"},{"key":"b","deleted":false,"version":"0"}],"version":"7"}`,
		},
		"get": {
			batchPath + "get?consistency=stale&max_age_ms=5", `{"keys":["a","b","c"]}`,
			resultOf(70, wire.Item{Op: wire.OpGet, Ext: wire.AppendExtMeta(nil, &meta), Value: []byte("\xff\x00")}, wire.Item{Op: wire.OpGet, Status: wire.StatusNotFound}, wire.Item{Op: wire.OpGet, Status: wire.StatusReplyFull}),
			[]string{"multiget 0", `get "a" = ""`, `get "b" = ""`, `get "c" = ""`},
			`{"items":[{"key":"a","found":true,"value":"/wA=","version":"9","created_at":"2001-09-09T01:46:40Z","updated_at":"2001-09-09T01:46:40Z","checksum":"xxh64=0000000000000001"},` +
				`{"key":"b","found":false},{"key":"c","error":{"type":"about:blank","title":"REPLY_FULL","status":413,"detail":"the answer to the whole request is full; ask for this key again","code":"KV-2008","retryable":true}}],"revision":"70"}`,
		},
		"transaction": {
			transactionPath, `{"operations":[
				{"type":"CHECK","key":"a","conditions":[{"if_version_match":"5"},{"if_version_match":6},{"if_version_match":["7",8]},{"if_exists":true},{"if_value_match":"AQI="},
					{"if_tag_match":{"value":"v","name":"n"}},{"if_tag_present":"p"},{"if_tag_absent":"q"}]},
				{"type":"GET","key":"a"},{"type":"PUT","key":"b","text":"é"},{"type":"DELETE","key":"c"},
				{"type":"TOUCH","key":"d","ttl_ms":0},{"type":"TOUCH","key":"d","ttl_seconds":1},
				{"type":"INCREMENT","key":"n","delta":-9223372036854775808},{"type":"INCREMENT","key":"n","delta":"9223372036854775807","ttl_ms":1000}]}`,
			resultOf(7, wire.Item{Op: wire.OpCheck}, wire.Item{Op: wire.OpGet, Status: wire.StatusNotFound}, wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 7)},
				wire.Item{Op: wire.OpDelete, Value: wire.AppendVersion(nil, 8)}, wire.Item{Op: wire.OpTouch, Value: wire.AppendVersion(nil, 9)}, wire.Item{Op: wire.OpTouch, Status: wire.StatusNotFound, Value: wire.AppendVersion(nil, 0)},
				wire.Item{Op: wire.OpIncrement, Value: wire.AppendCounter(nil, 10, -1<<63)}, wire.Item{Op: wire.OpIncrement, Value: wire.AppendCounter(nil, 11, -1)}),
			[]string{"txn 0", `check "a" 9:010500000000000000 9:010600000000000000 9:0107000000000000000800000000000000 9:02 9:040102 9:05016e76 9:0670 9:0771 = ""`,
				`get "a" = ""`, `put "b" = "é"`, `delete "c" = ""`, `touch "d" = ""`, `touch "d" 7:e803000000000000 = ""`,
				`increment "n" = "\x00\x00\x00\x00\x00\x00\x00\x80"`, `increment "n" 7:e803000000000000 = "\xff\xff\xff\xff\xff\xff\xff\x7f"`},
			`{"committed":true,"results":[{"key":"a"},{"key":"a","found":false},{"key":"b","version":"7"},{"key":"c","deleted":true,"version":"8"},{"key":"d","found":true,"version":"9"},` +
				`{"key":"d","found":false,"version":"0"},{"key":"n","value":"-9223372036854775808","version":"10"},{"key":"n","value":"-1","version":"11"}],"version":"7"}`,
		},
	} {
		m.answer = c.answer
		resp, body := send(t, s, "POST", c.target, c.body, "Content-Type", "application/json")
		if resp.StatusCode != 200 || body != c.want+"\n" || resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: %d %v\n got %s\nwant %s", name, resp.StatusCode, resp.Header, body, c.want)
			continue
		}
		if got := describe(t, m); !reflect.DeepEqual(got, c.asked) {
			t.Errorf("%s: asked for\n%q, want\n%q", name, got, c.asked)
		}
		if name == "delete" && string(m.last.Namespace) != "app" || name == "get" && (!m.last.Stale || m.last.MaxAgeMs != 5) {
			t.Errorf("%s: elements % x", name, m.last.Ext)
		}
	}
}

// What is wrong with a document is said with the place, the name and "applied":"no", and nothing reaches the service.
func TestGroups_BadDocuments_AreRefusedWithItemAndField(t *testing.T) {
	m, s := start(t, nil)
	put, txn := batchPath+"put", transactionPath
	for _, c := range []struct {
		target, body string
		status       int
		says         string
	}{
		{put, ``, 400, "an object is expected"}, {put, `[]`, 400, "an object is expected"}, {put, `{}`, 400, `no "items"`}, {put, `{"items":[]}`, 400, "without operations"},
		{put, `{"items":[{"key":"a","text":"b"}]}x`, 400, "more behind"}, {put, `{"items":[{"key":"a","text":"b"}]}{}`, 400, "more behind"},
		{put, `{"items":[{"key":"a","text":"b"}],"items":[]}`, 400, "given twice"}, {put, `{"Items":[]}`, 400, "nothing else"},
		{put, `{"items":[{"key":"a","text":"b","key":"c"}]}`, 400, `items[0]: "key" is given twice`}, {put, `{"items":[{"key":"a","k\u0065y":"c"}]}`, 400, "given twice"},
		{put, `{"items":[{"key":"a","text":"b"},{"key":"a","value":"b","text":"c"}]}`, 400, "items[1]: one of"}, {put, `{"items":[{"key":"a"}]}`, 400, "items[0]: one of"},
		{put, `{"items":[{"key":"a","value":null}]}`, 400, "items[0].value: a string is expected"}, {put, `{"items":[{"key":"a","value":"b"}]}`, 400, "items[0].value: this is not base64"},
		{put, `{"items":[{"key":"a","value":"AB=="}]}`, 400, "items[0].value"}, {put, `{"items":[{"key":"a","value":"AA"}]}`, 400, "items[0].value"},
		{put, `{"items":[{"type":"PUT","key":"a","text":"b"}]}`, 400, "items[0].type"}, {put, `{"items":[{"key":"a","text":"b","delta":1}]}`, 400, "items[0].delta"},
		{put, `{"items":[{"text":"b"}]}`, 400, "items[0]: it has no key"}, {put, `{"items":[{"key":"","text":"b"}]}`, 400, "operation 0: empty key"},
		{put, `{"items":[{"key":"` + strings.Repeat("k", 1025) + `","text":"b"}]}`, 400, "items[0].key: key of 1025"},
		{put, `{"items":[{"key":"a","text":"b","ttl_seconds":0}]}`, 400, "items[0].ttl_seconds"}, {put, `{"items":[{"key":"a","text":"b","ttl_seconds":1.5}]}`, 400, "items[0].ttl_seconds"},
		{put, `{"items":[{"key":"a","text":"b","ttl_seconds":1e3}]}`, 400, "whole number"}, {put, `{"items":[{"key":"a","text":"b","ttl_seconds":-1}]}`, 400, "ttl_seconds"},
		{put, `{"items":[{"key":"a","text":"b","ttl_seconds":01}]}`, 400, "whole number"}, {put, `{"items":[{"key":"a","text":"b","ttl_seconds":99999999999}]}`, 400, "ttl_seconds"},
		{put, `{"items":[{"key":"a","text":"b","ttl_ms":0}]}`, 400, "items[0].ttl_ms"}, {put, `{"items":[{"key":"a","text":"b","ttl_ms":1,"ttl_seconds":1}]}`, 400, "items[0]: both"},
		{put, `{"items":[{"key":"a","text":"b","tags":{"UP":"x"}}]}`, 400, "operation 0: a tag's name"}, {put, `{"items":[{"key":"a","text":"b","tags":{"a":"x","a":"y"}}]}`, 400, "items[0].tags: \"a\" is given twice"},
		{put, `{"items":[{"key":"a","text":"b","tags":{"` + strings.Repeat("a", 300) + `":"x"}}]}`, 400, "items[0].tags"}, {put, `{"items":[{"key":"a","text":"b","tags":["a"]}]}`, 400, "items[0].tags: an object"},
		{put, `{"items":[{"key":"a","text":"b","checksum":"xxh64=00"}]}`, 400, "items[0].checksum"}, {put, `{"items":[{"key":"a","text":"b","checksum":"xxh64=0000000000000000"}]}`, 422, "operation 0"},
		{put, `{"items":[{"key":"a","text":"b","compress":"gzip"}]}`, 400, "items[0].compress"}, {put, `{"items":[{"key":"a","text":"b","content_type":"` + strings.Repeat("x", 257) + `"}]}`, 413, "items[0].content_type"},
		{put, `{"items":[{"key":"a","text":"b","content_type":""}]}`, 400, "operation 0"}, {put, `{"items":[{"key":"a","text":"\ud800"}]}`, 400, "surrogate"}, {put, `{"items":[{"key":"a","text":"\udc00\ud800"}]}`, 400, "surrogate"},
		{put, "{\"items\":[{\"key\":\"a\",\"text\":\"\xff\"}]}", 400, "UTF-8"}, {put, "{\"items\":[{\"key\":\"a\",\"text\":\"\n\"}]}", 400, "control"}, {put, `{"items":[{"key":"a","text":"\x"}]}`, 400, "escape"},
		{put, `{"items":[{"key":"a","text":"b"},]}`, 400, "items[1]"}, {put, `{"items":[{"key":"a","text":"b",}]}`, 400, "items[0]"}, {put, `{"items":[{"key":"a" "text":"b"}]}`, 400, "comma"},
		{put, `{"items":[{"key":"a","text":"b"}`, 400, "comma or the end"}, {put, `{"items":[{"key":"a`, 400, "ends within"}, {put, strings.Repeat("[", 1<<20), 400, "object is expected"},
		{txn, `{"operations":[{"key":"a"}]}`, 400, "operations[0]: it has no type"}, {txn, `{"operations":[{"type":"put","key":"a","text":""}]}`, 400, "operations[0].type"},
		{txn, `{"operations":[{"type":"GET","key":"a","text":"b"}]}`, 400, "operations[0].text"}, {txn, `{"operations":[{"type":"CHECK","key":"a"}]}`, 400, "check without a condition"},
		{txn, `{"operations":[{"type":"TOUCH","key":"a"}]}`, 400, "operations[0]: it has no ttl_seconds"},
		{txn, `{"operations":[{"type":"INCREMENT","key":"a","delta":9223372036854775808}]}`, 400, "64 bits"}, {txn, `{"operations":[{"type":"INCREMENT","key":"a","delta":-0}]}`, 400, "whole number"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{}]}]}`, 400, "operations[0].conditions[0]: a condition without"}, {txn, `{"operations":[{"type":"GET","key":"a","conditions":{}}]}`, 400, "an array"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_exists":false}]}]}`, 400, "operations[0].conditions[0].if_exists: true"}, {txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_exists":true,"if_tag_present":"t"}]}]}`, 400, "of its own"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_version":"5"}]}]}`, 400, "no such condition"}, {txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_version_match":"-5"}]}]}`, 400, "if_version_match"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_version_match":[]}]}]}`, 400, "list of no versions"}, {txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_version_match":["1","x"]}]}]}`, 400, "if_version_match[1]"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_version_match":[` + strings.TrimSuffix(strings.Repeat("1,", wire.ConditionsMax+1), ",") + `]}]}]}`, 400, "more than 64 versions"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_version_match":"05"}]}]}`, 400, "whole number"}, {txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_value_match":"!"}]}]}`, 400, "if_value_match"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_value_match":"` + base64.StdEncoding.EncodeToString(make([]byte, wire.ConditionValueBytesMax+1)) + `"}]}]}`, 413, "at most"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_tag_match":{"name":"n"}}]}]}`, 400, "if_tag_match"}, {txn, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_tag_match":{"name":"n","value":"v","x":1}}]}]}`, 400, "if_tag_match.x"},
		{txn, `{"operations":[{"type":"GET","key":"a","conditions":[` + strings.TrimSuffix(strings.Repeat(`{"if_exists":true},`, 65), ",") + `]}]}`, 413, "operation 0"},
		{batchPath + "get", `{"keys":"a"}`, 400, "keys: an array"}, {batchPath + "get", `{"keys":[1]}`, 400, "keys[0]"}, {batchPath + "get", `{"keys":[""]}`, 400, "key 0"}, {batchPath + "get", `{"items":[]}`, 400, `"keys"`},
		{batchPath + "delete", `{"keys":["a",]}`, 400, "keys[1]"}, {batchPath + "delete", `{"keys":[` + strings.TrimSuffix(strings.Repeat(`"a",`, wire.BatchOpsMax+1), ",") + `]}`, 413, "more than 65536"},
		{put + "?ttl_seconds=5", `{"items":[]}`, 400, "ttl_seconds"}, {put + "?consistency=stale", `{"items":[]}`, 400, "consistency"}, {put + "?namespace=a&namespace=b", `{"items":[]}`, 400, "2 times"},
	} {
		resp, body := send(t, s, "POST", c.target, c.body)
		p := decode(t, body)
		if resp.StatusCode != c.status || !strings.Contains(p.Detail, c.says) || c.target != batchPath+"get" && p.Applied != "no" {
			t.Errorf("%s %.120s: %d %s, want %d and %q", c.target, c.body, resp.StatusCode, body, c.status, c.says)
		}
	}
	if m.last.Op != 0 {
		t.Errorf("a bad document became %s", m.last.Op)
	}
	for _, c := range []struct {
		method, target string
		header         []string
		status         int
	}{
		{"GET", put, nil, 405}, {"PUT", txn, nil, 405}, {"POST", put + "/", nil, 404}, {"POST", batchPath, nil, 404},
		{"POST", put, []string{"Content-Type", "text/plain"}, 415}, {"POST", txn, []string{"Content-Encoding", "gzip"}, 415}, {"POST", txn, []string{"Idempotency-Key", ""}, 400},
		{"POST", txn, []string{"Origin", "http://elsewhere.example"}, 403}, {"POST", incrementPath + "k", []string{"Sec-Fetch-Site", "cross-site"}, 403},
	} {
		if resp, body := send(t, s, c.method, c.target, "", c.header...); resp.StatusCode != c.status || decode(t, body).Status != c.status {
			t.Errorf("%s %s %q: %d %s", c.method, c.target, c.header, resp.StatusCode, body)
		}
	}
}

func TestTransaction_NotCommitted_SaysSoOnlyWhenThatIsCertain(t *testing.T) {
	m, s := start(t, nil)
	const body = `{"operations":[{"type":"CHECK","key":"a","conditions":[{"if_exists":true}]},{"type":"PUT","key":"b","text":"v","conditions":[{"if_not_exists":true},{"if_not_exists":true}]}]}`
	m.answer = &wire.Response{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, []wire.FailedCondition{{Operation: 0, Condition: 0}, {Operation: 1, Condition: 1}})}
	resp, got := send(t, s, "POST", transactionPath, body)
	var doc map[string]any
	if err := json.Unmarshal([]byte(got), &doc); err != nil {
		t.Fatal(err)
	}
	want := []any{map[string]any{"operation": 0.0, "condition": 0.0, "key": "a"}, map[string]any{"operation": 1.0, "condition": 1.0, "key": "b"}}
	if resp.StatusCode != 412 || doc["committed"] != false || doc["applied"] != "no" || !reflect.DeepEqual(doc["failed"], want) {
		t.Errorf("%d %s", resp.StatusCode, got)
	}
	for st, c := range map[wire.Status]struct {
		http      int
		committed any
		applied   string
	}{
		wire.StatusBusy: {503, false, "no"}, wire.StatusQuota: {429, false, "no"}, wire.StatusNotANumber: {422, false, "no"}, wire.StatusNoNamespace: {404, false, "no"},
		wire.StatusTimeout: {504, nil, "unknown"}, wire.StatusShutdown: {504, nil, "unknown"},
	} {
		m.answer = &wire.Response{Status: st}
		resp, got := send(t, s, "POST", transactionPath, body)
		doc = nil
		if err := json.Unmarshal([]byte(got), &doc); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != c.http || doc["committed"] != c.committed || doc["applied"] != c.applied || (c.http == 429) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("%s: %d %v %s", st, resp.StatusCode, resp.Header, got)
		}
	}
	// An answer that makes no sense says nothing about the write.
	for _, payload := range [][]byte{nil, wire.AppendResultHeader(nil, 1, 0), wire.AppendResultHeader(nil, 1, 2), resultOf(1, wire.Item{Op: wire.OpCheck}).Payload} {
		m.answer = &wire.Response{Payload: payload}
		if resp, got := send(t, s, "POST", transactionPath, body); resp.StatusCode != 504 || decode(t, got).Applied != "unknown" {
			t.Errorf("result % x: %d %s", payload, resp.StatusCode, got)
		}
	}
}

// A document costs its own size and what it becomes, and both are given back.
func TestGroups_BudgetUsedUp_RefusesUntilItIsFreeAgain(t *testing.T) {
	m, s := start(t, func(o *Options) { o.BodyBytesMax = 8 * bodyStepBytes })
	m.answer = resultOf(1, wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 1)})
	large := `{"items":[{"key":"a","text":"` + strings.Repeat("x", 5*bodyStepBytes) + `"}]}`
	for range 5 {
		if resp, body := send(t, s, "POST", batchPath+"put", large); resp.StatusCode != 503 || decode(t, body).Applied != "no" {
			t.Fatalf("beyond the budget: %d %s", resp.StatusCode, body)
		}
		if resp, body := send(t, s, "POST", batchPath+"put", `{"items":[{"key":"a","text":"v"}]}`); resp.StatusCode != 200 {
			t.Fatalf("within it: %d %s", resp.StatusCode, body)
		}
		if resp, _ := send(t, s, "POST", batchPath+"put", `{"items":[{"key":"a","text":`); resp.StatusCode != 400 {
			t.Fatalf("half a document: %d", resp.StatusCode)
		}
	}
}

func TestGroups_LargestValue_IsTakenAndALargerOneIsRefused(t *testing.T) {
	m, s := start(t, nil)
	m.answer = resultOf(1, wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 1)})
	doc := func(n int) string {
		return `{"items":[{"key":"a","value":"` + base64.StdEncoding.EncodeToString(make([]byte, n)) + `"}]}`
	}
	if resp, body := send(t, s, "POST", batchPath+"put", doc(wire.ValueBytesMax)); resp.StatusCode != 200 || len(m.last.Payload) < wire.ValueBytesMax {
		t.Errorf("16 MiB: %d %s", resp.StatusCode, body)
	}
	for _, n := range []int{wire.ValueBytesMax + 1, wire.ValueBytesMax + 1<<20} {
		if resp, body := send(t, s, "POST", batchPath+"put", doc(n)); resp.StatusCode != 413 || decode(t, body).Applied != "no" {
			t.Errorf("%d bytes: %d %s", n, resp.StatusCode, body)
		}
	}
	if resp, body := send(t, s, "POST", batchPath+"put", doc(documentBytesMax)); resp.StatusCode != 413 {
		t.Errorf("a document beyond its limit: %d %s", resp.StatusCode, body)
	}
}

func TestTouchAndIncrement_BecomeTheirOperations(t *testing.T) {
	m, s := start(t, nil)
	ttl := wire.AppendExtU64(nil, wire.ExtTTL, 5000)
	for name, c := range map[string]struct {
		method, target string
		header         []string
		answer         wire.Response
		op             wire.Opcode
		ext, payload   []byte
		status         int
		body           string
	}{
		"touch in ms":     {"PATCH", keysPath + "a%2Fb?ttl_ms=5000", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpTouch, ttl, nil, 200, `{"version":"7"}`},
		"no deadline, ms": {"PATCH", keysPath + "a%2Fb?ttl_ms=0", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpTouch, nil, nil, 200, `{"version":"7"}`},
		"put in ms":       {"PUT", keysPath + "a%2Fb?ttl_ms=5001", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpPut, wire.AppendExtU64(nil, wire.ExtTTL, 5001), nil, 200, `{"version":"7"}`},
		"touch":           {"PATCH", keysPath + "a%2Fb?ttl_seconds=5", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpTouch, ttl, nil, 200, `{"version":"7"}`},
		"no deadline":     {"PATCH", keysPath + "a%2Fb?ttl_seconds=0", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpTouch, nil, nil, 200, `{"version":"7"}`},
		"touch of absent": {"PATCH", keysPath + "a%2Fb?ttl_seconds=5", nil, wire.Response{Status: wire.StatusNotFound, Payload: wire.AppendVersion(nil, 0)}, wire.OpTouch, ttl, nil, 404, ""},
		"touch if":        {"PATCH", keysPath + "a%2Fb?ttl_seconds=0", []string{"If-Match", "*"}, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpTouch, wire.AppendExtCondition(nil, wire.ConditionExists, nil), nil, 200, `{"version":"7"}`},
		"increment":       {"POST", incrementPath + "a%2Fb", nil, wire.Response{Payload: wire.AppendCounter(nil, 7, 42)}, wire.OpIncrement, nil, wire.AppendIncrement(nil, 1), 200, `{"value":"42","version":"7"}`},
		"by delta": {"POST", incrementPath + "a%2Fb?delta=-9223372036854775808&ttl_seconds=5", nil, wire.Response{Payload: wire.AppendCounter(nil, 7, -1<<63)}, wire.OpIncrement, ttl,
			wire.AppendIncrement(nil, -1<<63), 200, `{"value":"-9223372036854775808","version":"7"}`},
		"not a number":  {"POST", incrementPath + "a%2Fb", nil, wire.Response{Status: wire.StatusNotANumber}, wire.OpIncrement, nil, wire.AppendIncrement(nil, 1), 422, ""},
		"unknown":       {"POST", incrementPath + "a%2Fb", nil, wire.Response{Status: wire.StatusTimeout}, wire.OpIncrement, nil, wire.AppendIncrement(nil, 1), 504, ""},
		"compress":      {"PUT", keysPath + "a%2Fb?compress=lz4", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpPut, wire.AppendExtU8(nil, wire.ExtCompress, 3), nil, 200, `{"version":"7"}`},
		"compress none": {"PUT", keysPath + "a%2Fb?compress=none", nil, wire.Response{Payload: wire.AppendVersion(nil, 7)}, wire.OpPut, wire.AppendExtU8(nil, wire.ExtCompress, 0), nil, 200, `{"version":"7"}`},
	} {
		m.answer = &c.answer
		resp, body := send(t, s, c.method, c.target, "", c.header...)
		if m.last.Op != c.op || string(m.last.Key) != "a/b" || !bytes.Equal(m.last.Ext, c.ext) || !bytes.Equal(m.last.Payload, c.payload) {
			t.Errorf("%s: asked for %+v", name, m.last)
		}
		if resp.StatusCode != c.status || c.body != "" && (body != c.body+"\n" || resp.Header.Get("ETag") != `"7"`) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
		if want := c.answer.Status.Applied(); c.status >= 400 && decode(t, body).Applied != want {
			t.Errorf("%s: %s, want applied %s", name, body, want)
		}
	}
	m.last = wire.Request{}
	for _, c := range [][2]string{
		{"PATCH", keysPath + "k"}, {"PATCH", keysPath + "k?ttl_seconds=-1"}, {"PATCH", keysPath + "k?ttl_seconds=5&tag.a=b"}, {"PATCH", keysPath + "?ttl_seconds=5"},
		{"POST", incrementPath}, {"POST", incrementPath + "k?delta=x"}, {"POST", incrementPath + "k?delta=9223372036854775808"}, {"POST", incrementPath + "k?ttl_seconds=0"}, {"POST", incrementPath + "k?ttl_ms=0"}, {"PATCH", keysPath + "k?ttl_ms=5&ttl_seconds=5"}, {"POST", incrementPath + "k?by=1"},
	} {
		if resp, body := send(t, s, c[0], c[1], ""); resp.StatusCode != http.StatusBadRequest || decode(t, body).Applied != "no" {
			t.Errorf("%s %s: %d %s", c[0], c[1], resp.StatusCode, body)
		}
	}
	for _, c := range [][2]string{{"PATCH", keysPath + "k?ttl_seconds=5"}, {"POST", incrementPath + "k"}} {
		if resp, _ := send(t, s, c[0], c[1], "body"); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s with a body: %d", c[0], resp.StatusCode)
		}
	}
	if m.last.Op != 0 {
		t.Errorf("a bad request became %s", m.last.Op)
	}
}

// What is accepted is JSON, becomes a request that the wire knows, and says what encoding/json reads in it.
func FuzzGroupDocument(f *testing.F) {
	for _, s := range []string{
		`{"items":[{"key":"a","value":"AP8=","ttl_seconds":5,"tags":{"b":"c"},"conditions":[{"if_not_exists":true}]},{"text":"\u00e9\ud83d\ude00\n","key":"\/"}]}`,
		`{"keys":["a","b\u0000"]}`,
		`{"operations":[{"type":"CHECK","key":"a","conditions":[{"if_version_match":"5"},{"if_tag_match":{"name":"n","value":"v"}}]},{"type":"INCREMENT","key":"n","delta":"-7"},{"type":"TOUCH","key":"t","ttl_seconds":0}]}`,
		`{"operations":[{"type":"PUT","key":"a","text":"b","checksum":"xxh64=0000000000000000","compress":"s2","content_type":"t","encoding":"e"}]}`,
		`{"items":[{"key":"a","text":"b"}]} x`, `{"items":[{"key":"\ud800","text":"b"}]}`, "{\"keys\":[\"\xff\"]}",
	} {
		for i := range 4 {
			f.Add(uint8(i), []byte(s))
		}
	}
	routes := []string{batchPath + "put", batchPath + "delete", batchPath + "get", transactionPath}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		door := New(Options{Service: &memory{feed: newFeed()}, BodyBytesMax: 64 << 20})
		route := groupRoutes[routes[int(which)%len(routes)]]
		r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		req, release, ref := door.readGroup(httptest.NewRecorder(), r, route)
		release()
		if !door.bodies.TryAcquire(64 << 20) {
			t.Fatal("the budget was not given back")
		}
		if ref != nil {
			if ref.Text == "" || ref.Status == wire.StatusOK {
				t.Fatalf("refused as %+v", ref)
			}
			return
		}
		var doc map[string][]json.RawMessage
		if err := json.Unmarshal(body, &doc); err != nil || len(doc[route.field]) != req.Items {
			t.Fatalf("%d operations were read where encoding/json reads %v, %v", req.Items, doc, err)
		}
		i := 0
		for it := range operationsOf(req) {
			raw := doc[route.field][i]
			i++
			var want struct {
				Key   string
				Text  *string
				Value []byte
			}
			if route.field == "keys" {
				if err := json.Unmarshal(raw, &want.Key); err != nil {
					t.Fatal(err)
				}
			} else if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			if want.Text != nil {
				want.Value = []byte(*want.Text)
			}
			if string(it.Key) != want.Key || it.Op == wire.OpPut && !bytes.Equal(it.Value, want.Value) {
				t.Fatalf("%s became %+v", raw, it)
			}
		}
	})
}
