package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// memory is a Service over a map: enough of a store to see what the door makes of requests and answers.
type memory struct {
	mu      sync.Mutex
	version uint64
	records map[string]wire.Record
	// answer, when set, is given to every request instead.
	answer *wire.Response
	last   wire.Request

	*feed
}

func (m *memory) Do(_ context.Context, _ any, r *wire.Request) wire.Response {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = *r
	m.last.Key, m.last.Ext, m.last.Payload = bytes.Clone(r.Key), bytes.Clone(r.Ext), bytes.Clone(r.Payload)
	if m.answer != nil {
		return *m.answer
	}
	key := string(r.Key)
	rec, found := m.records[key]
	ext := r.Ext
	for i := uint32(0); ; i++ {
		c, rest, ok := wire.NextCondition(ext)
		if !ok {
			break
		}
		ext = rest
		if (c.Kind == wire.ConditionExists && !found) || (c.Kind == wire.ConditionAbsent && found) ||
			(c.Kind == wire.ConditionVersion && !(found && c.HasVersion(rec.Meta.Version))) {
			return wire.Response{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, []wire.FailedCondition{{Condition: i}})}
		}
	}
	switch r.Op {
	case wire.OpPut:
		m.version += 1 << 20
		meta := wire.Meta{Version: m.version, CreatedAt: 1e15, UpdatedAt: 1e15 + 5e5, Checksum: wire.Checksum(r.Payload)}
		m.records[key] = wire.Record{Meta: meta, Ext: wire.AppendKept(nil, r.Ext), Value: bytes.Clone(r.Payload)}
		return wire.Response{Payload: wire.AppendVersion(nil, m.version)}
	case wire.OpDelete:
		st := wire.StatusNotFound
		if found {
			st = wire.StatusOK
			m.version += 1 << 20
			delete(m.records, key)
		}
		return wire.Response{Status: st, Payload: wire.AppendVersion(nil, m.version)}
	case wire.OpGet, wire.OpExists:
		if !found {
			return wire.Response{Status: wire.StatusNotFound}
		}
		resp := wire.Response{Ext: append(wire.AppendExtMeta(nil, &rec.Meta), rec.Ext...)}
		if r.Op == wire.OpGet {
			resp.Payload = rec.Value
		}
		return resp
	case wire.OpStatus:
		return wire.Response{Payload: []byte(`{"node_id":"n"}`)}
	}
	return wire.Response{Status: wire.StatusUnknownOp}
}

func start(t *testing.T, change func(*Options)) (*memory, *httptest.Server) {
	t.Helper()
	m := &memory{records: map[string]wire.Record{}, feed: newFeed()}
	o := Options{Service: m}
	if change != nil {
		change(&o)
	}
	s := httptest.NewUnstartedServer(nil)
	s.Config = New(o).HTTPServer()
	s.Start()
	t.Cleanup(s.Close)
	return m, s
}

// send makes one request with the path as it is: Go's client would clean it.
func send(t *testing.T, s *httptest.Server, method, target, body string, header ...string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n", method, target)
	for i := 0; i+1 < len(header); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", header[i], header[i+1])
	}
	if body != "" || method == "PUT" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	// A server that refuses early may close before all is sent; what it answered is what counts.
	_, writeErr := io.WriteString(c, b.String()+"\r\n"+body)
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v (write: %v)", method, target, err, writeErr)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(got)
}

func decode(t *testing.T, body string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("not problem JSON: %v: %q", err, body)
	}
	return p
}

func TestKey_PutGetHeadDelete_RoundTripWithAllMetadata(t *testing.T) {
	m, s := start(t, nil)
	value := "\x00raw \xff bytes"
	resp, body := send(t, s, "PUT", keysPath+"a/b%20c?ttl_seconds=60&tag.owner=ann%26bob+%2B", value,
		"Content-Type", "text/x-thing", "Content-Encoding", "br", "X-KV-Checksum", fmt.Sprintf("xxh64=%016x", wire.Checksum([]byte(value))))
	if resp.StatusCode != 200 || resp.Header.Get("ETag") != `"1048576"` || body != "{\"version\":\"1048576\"}\n" {
		t.Fatalf("put: %d %v %q", resp.StatusCode, resp.Header, body)
	}
	if string(m.last.Key) != "a/b c" {
		t.Fatalf("key %q", m.last.Key)
	}
	var mu wire.Mutation
	if ref := wire.DecodeMutation(wire.OpPut, m.last.Ext, &mu); ref != nil || mu.TTLMs != 60_000 {
		t.Fatalf("ttl %d, %v", mu.TTLMs, ref)
	}
	resp, body = send(t, s, "GET", keysPath+"a/b%20c", "")
	want := map[string]string{
		"ETag": `"1048576"`, "Content-Type": "text/x-thing", "Content-Encoding": "br", "X-KV-Tag-Owner": "ann%26bob%20%2B",
		"X-KV-Created-At": "2001-09-09T01:46:40Z", "X-KV-Updated-At": "2001-09-09T01:46:40.5Z",
		"X-KV-Checksum": fmt.Sprintf("xxh64=%016x", wire.Checksum([]byte(value))),
	}
	for k, v := range want {
		if got := resp.Header.Get(k); got != v {
			t.Errorf("%s: %q, want %q", k, got, v)
		}
	}
	if resp.StatusCode != 200 || body != value {
		t.Errorf("get: %d %q", resp.StatusCode, body)
	}
	resp, body = send(t, s, "HEAD", keysPath+"a/b%20c", "")
	if resp.StatusCode != 200 || body != "" || resp.Header.Get("ETag") != `"1048576"` || resp.Header.Get("Content-Type") != "text/x-thing" || resp.ContentLength != int64(len(value)) {
		t.Errorf("head: %d %q %v", resp.StatusCode, body, resp.Header)
	}
	resp, body = send(t, s, "GET", keysPath+"a/b%20c", "", "If-None-Match", `"1", "1048576"`)
	if resp.StatusCode != 304 || body != "" {
		t.Errorf("conditional get: %d %q", resp.StatusCode, body)
	}
	resp, body = send(t, s, "DELETE", keysPath+"a/b%20c", "")
	if resp.StatusCode != 200 || body != "{\"deleted\":true,\"version\":\"2097152\"}\n" {
		t.Errorf("delete: %d %q", resp.StatusCode, body)
	}
	resp, body = send(t, s, "DELETE", keysPath+"a/b%20c", "")
	if resp.StatusCode != 200 || !strings.Contains(body, `"deleted":false`) {
		t.Errorf("second delete: %d %q", resp.StatusCode, body)
	}
	resp, body = send(t, s, "GET", keysPath+"a/b%20c", "")
	if p := decode(t, body); resp.StatusCode != 404 || p.Title != "NOT_FOUND" || p.Applied != "" {
		t.Errorf("get after delete: %d %+v", resp.StatusCode, p)
	}
}

func TestKey_PathIsTakenAsWritten_DecodedOnceNeverCleaned(t *testing.T) {
	m, s := start(t, nil)
	for target, key := range map[string]string{
		"a//b": "a//b", "a/../b": "a/../b", "./x": "./x", "%2Fslash": "/slash", "a%252Fb": "a%2Fb", "trailing/": "trailing/",
		"%C3%A9": "é", "plus+plus": "plus+plus", "q%3Fmark": "q?mark", "%00": "\x00",
	} {
		resp, body := send(t, s, "PUT", keysPath+target, "v")
		if resp.StatusCode != 200 || string(m.last.Key) != key {
			t.Errorf("%s: %d, key %q, want %q (%s)", target, resp.StatusCode, m.last.Key, key, body)
		}
	}
}

func TestKey_BadRequests_AreRefusedWithCodeAndAppliedNo(t *testing.T) {
	_, s := start(t, nil)
	for name, c := range map[string]struct {
		method, target string
		header         []string
		status         int
		title          string
	}{
		"empty key":                    {"PUT", "", nil, 400, "BAD_KEY"},
		"key of 1025 bytes":            {"PUT", strings.Repeat("k", 1025), nil, 400, "BAD_KEY"},
		"invalid UTF-8":                {"PUT", "%ff%fe", nil, 400, "BAD_KEY"},
		"bad percent":                  {"PUT", "a%zz", nil, 400, ""},
		"unknown parameter":            {"PUT", "k?ttl=5", nil, 400, "BAD_REQUEST"},
		"ttl zero":                     {"PUT", "k?ttl_seconds=0", nil, 400, "BAD_REQUEST"},
		"ttl negative":                 {"PUT", "k?ttl_seconds=-1", nil, 400, "BAD_REQUEST"},
		"ttl twice":                    {"PUT", "k?ttl_seconds=1&ttl_seconds=2", nil, 400, "BAD_REQUEST"},
		"ttl in two units":             {"PUT", "k?ttl_seconds=1&ttl_ms=1000", nil, 400, "BAD_REQUEST"},
		"ttl of 0 ms":                  {"PUT", "k?ttl_ms=0", nil, 400, "BAD_REQUEST"},
		"ttl of too many ms":           {"PUT", fmt.Sprintf("k?ttl_ms=%d", uint64(wire.TTLMsMax+1)), nil, 400, "BAD_REQUEST"},
		"tag name":                     {"PUT", "k?tag.UPPER=1", nil, 400, "BAD_REQUEST"},
		"checksum form":                {"PUT", "k", []string{"X-KV-Checksum", "crc32=00000000"}, 400, "BAD_REQUEST"},
		"checksum mismatch":            {"PUT", "k", []string{"X-KV-Checksum", "xxh64=0000000000000000"}, 422, "CHECKSUM_MISMATCH"},
		"if-none-match tag":            {"PUT", "k", []string{"If-None-Match", `"5"`}, 400, "BAD_REQUEST"},
		"if-match absent":              {"PUT", "k", []string{"If-Match", `"5"`}, 412, "CONDITION_FAILED"},
		"if-match nonsense":            {"PUT", "k", []string{"If-Match", `W/abc`}, 412, "CONDITION_FAILED"},
		"if-match empty":               {"PUT", "k", []string{"If-Match", ""}, 412, "CONDITION_FAILED"},
		"if-none-match empty":          {"PUT", "k", []string{"If-None-Match", ""}, 400, "BAD_REQUEST"},
		"if-match star absent":         {"DELETE", "k", []string{"If-Match", `*`}, 412, "CONDITION_FAILED"},
		"idempotency key of 256 bytes": {"PUT", "k", []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400, "BAD_REQUEST"},
		"idempotency key empty":        {"DELETE", "k", []string{"Idempotency-Key", ""}, 400, "BAD_REQUEST"},
		"idempotency key not ASCII":    {"PATCH", "k?ttl_seconds=1", []string{"Idempotency-Key", "caf\xc3\xa9"}, 400, "BAD_REQUEST"},
		"idempotency key twice":        {"PUT", "k", []string{"Idempotency-Key", "a", "Idempotency-Key", "a"}, 400, "BAD_REQUEST"},
		"part of a value":              {"PUT", "k", []string{"Content-Range", "bytes 0-0/5"}, 400, "BAD_REQUEST"},
		"bad query":                    {"PUT", "k?%zz=1", nil, 400, "BAD_REQUEST"},
		"method":                       {"POST", "k", nil, 405, "METHOD_NOT_ALLOWED"},
		"touch without ttl":            {"PATCH", "k", nil, 400, "BAD_REQUEST"},
		"compress":                     {"PUT", "k?compress=gzip", nil, 400, "BAD_REQUEST"},
		"namespace empty":              {"PUT", "k?namespace=", nil, 400, "BAD_REQUEST"},
	} {
		resp, body := send(t, s, c.method, keysPath+c.target, "v", c.header...)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d (%s)", name, resp.StatusCode, c.status, body)
			continue
		}
		if c.title == "" {
			continue // refused by net/http itself
		}
		p := decode(t, body)
		if p.Title != c.title || p.Applied != "no" || !strings.HasPrefix(p.Code, "KV-") || p.Status != c.status {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for target, title := range map[string]string{"k?consistency=maybe": "BAD_REQUEST", "k?revision=x": "BAD_REQUEST", "k?ttl_seconds=5": "BAD_REQUEST"} {
		resp, body := send(t, s, "GET", keysPath+target, "")
		if p := decode(t, body); resp.StatusCode != 400 || p.Title != title {
			t.Errorf("GET %s: %d %+v", target, resp.StatusCode, p)
		}
	}
}

func TestKey_Conditions_BecomeConditionsOfTheWrite(t *testing.T) {
	_, s := start(t, nil)
	resp, _ := send(t, s, "PUT", keysPath+"k", "1", "If-None-Match", "*")
	tag := resp.Header.Get("ETag")
	if resp.StatusCode != 200 {
		t.Fatalf("create: %d", resp.StatusCode)
	}
	resp, body := send(t, s, "PUT", keysPath+"k", "2", "If-None-Match", "*")
	if p := decode(t, body); resp.StatusCode != 412 || len(p.Failed) != 1 {
		t.Fatalf("create again: %d %+v", resp.StatusCode, p)
	}
	if resp, _ = send(t, s, "PUT", keysPath+"k", "2", "If-Match", `"7", `+tag); resp.StatusCode != 200 {
		t.Fatalf("update by version: %d", resp.StatusCode)
	}
	if resp, _ = send(t, s, "PUT", keysPath+"k", "3", "If-Match", tag); resp.StatusCode != 412 {
		t.Fatalf("update by an old version: %d", resp.StatusCode)
	}
	if resp, _ = send(t, s, "DELETE", keysPath+"k", "", "If-Match", "*"); resp.StatusCode != 200 {
		t.Fatalf("delete if present: %d", resp.StatusCode)
	}
}

func TestKey_Outcomes_KeepTheirCertainty(t *testing.T) {
	m, s := start(t, nil)
	for st, want := range map[wire.Status]struct {
		http    int
		applied string
		retry   bool
	}{
		wire.StatusBusy:           {503, "no", true},
		wire.StatusNoLeader:       {503, "no", true},
		wire.StatusLimited:        {429, "no", true},
		wire.StatusDiskFull:       {503, "no", true},
		wire.StatusTimeout:        {504, "unknown", false},
		wire.StatusLeadershipLost: {504, "unknown", false},
		wire.StatusInternal:       {504, "unknown", false},
		wire.Status(0x3f):         {504, "unknown", false},
		wire.Status(0x7f):         {504, "unknown", false},
		wire.StatusDenied:         {403, "no", false},
		wire.StatusTooLarge:       {413, "no", false},
	} {
		m.mu.Lock()
		m.answer = &wire.Response{Status: st, Ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 1500)}
		m.mu.Unlock()
		resp, body := send(t, s, "PUT", keysPath+"k", "v")
		p := decode(t, body)
		if resp.StatusCode != want.http || p.Applied != want.applied || p.Retryable != want.retry {
			t.Errorf("%s: %d applied=%s retryable=%v, want %+v", st, resp.StatusCode, p.Applied, p.Retryable, want)
		}
		if resp.Header.Get("Retry-After") != "2" {
			t.Errorf("%s: Retry-After %q", st, resp.Header.Get("Retry-After"))
		}
	}
}

func TestBody_AtAndBeyondTheLimit(t *testing.T) {
	m, s := start(t, nil)
	value := strings.Repeat("x", wire.ValueBytesMax)
	if resp, body := send(t, s, "PUT", keysPath+"k", value); resp.StatusCode != 200 {
		t.Fatalf("16 MiB: %d %s", resp.StatusCode, body)
	}
	if got := len(m.records["k"].Value); got != wire.ValueBytesMax {
		t.Fatalf("stored %d bytes", got)
	}
	resp, body := send(t, s, "PUT", keysPath+"k", value+"x")
	if p := decode(t, body); resp.StatusCode != 413 || p.Applied != "no" {
		t.Fatalf("16 MiB + 1: %d %+v", resp.StatusCode, p)
	}
	// The same without a declared length.
	req, err := http.NewRequest("PUT", s.URL+keysPath+"k", io.MultiReader(strings.NewReader(value), strings.NewReader("x")))
	if err != nil {
		t.Fatal(err)
	}
	chunked, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	chunked.Body.Close()
	if chunked.StatusCode != 413 {
		t.Fatalf("16 MiB + 1, chunked: %d", chunked.StatusCode)
	}
}

func TestBody_LyingLength_CostsNoMoreThanWhatArrives(t *testing.T) {
	m, s := start(t, func(o *Options) { o.BodyTimeout = 100 * time.Millisecond })
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PUT %sk HTTP/1.1\r\nHost: t\r\nContent-Length: %s\r\n\r\nonly this", keysPath, strconv.Itoa(wire.ValueBytesMax))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if p := decode(t, string(body)); resp.StatusCode != 400 || p.Applied != "no" {
		t.Fatalf("%d %+v", resp.StatusCode, p)
	}
	if len(m.records) != 0 {
		t.Fatal("half a value was stored")
	}
}

func TestBody_BudgetUsedUp_RefusesUntilItIsFreeAgain(t *testing.T) {
	m, s := start(t, func(o *Options) { o.BodyBytesMax = 3 * bodyStepBytes })
	large := strings.Repeat("x", 4*bodyStepBytes)
	resp, body := send(t, s, "PUT", keysPath+"k", large)
	if p := decode(t, body); resp.StatusCode != 503 || p.Title != "BUSY" || p.Applied != "no" {
		t.Fatalf("%d %+v", resp.StatusCode, p)
	}
	// Nothing of it is held on to, neither after a refusal nor after a success.
	for range 10 {
		if resp, body := send(t, s, "PUT", keysPath+"k", "small"); resp.StatusCode != 200 {
			t.Fatalf("within the budget: %d %s", resp.StatusCode, body)
		}
		if resp, _ := send(t, s, "PUT", keysPath+"k", large); resp.StatusCode != 503 {
			t.Fatalf("beyond it: %d", resp.StatusCode)
		}
	}
	if string(m.records["k"].Value) != "small" {
		t.Fatal("a refused body was stored")
	}
}

func TestBody_SilentClaims_TakeNothingFromOthers(t *testing.T) {
	_, s := start(t, func(o *Options) { o.BodyBytesMax = 10 * bodyStepBytes })
	for range 8 {
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "PUT %sk HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\nx", keysPath, wire.ValueBytesMax)
	}
	if resp, body := send(t, s, "PUT", keysPath+"k", "v"); resp.StatusCode != 200 {
		t.Fatalf("beside eight claims of 16 MiB: %d %s", resp.StatusCode, body)
	}
}

// A client that asks for a value and never reads it holds its share of the budget only until the deadline.
func TestAnswer_NeverRead_IsBoundedInBytesAndTime(t *testing.T) {
	m, s := start(t, func(o *Options) {
		o.AnswerBytesMax, o.AnswerTimeout = wire.ValueBytesMax+1<<10, 500*time.Millisecond
	})
	m.records["large"] = wire.Record{Value: make([]byte, wire.ValueBytesMax)} // more than socket buffers take
	m.records["small"] = wire.Record{Value: make([]byte, 2<<10)}
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %slarge HTTP/1.1\r\nHost: t\r\n\r\n", keysPath)
	busy := false
	for deadline := time.Now().Add(20 * time.Second); ; {
		resp, body := send(t, s, "GET", keysPath+"small", "")
		if resp.StatusCode == 503 {
			if p := decode(t, body); p.Title != "BUSY" || p.Applied != "no" || resp.Header.Get("ETag") != "" {
				t.Fatalf("beyond the budget: %v %+v", resp.Header, p)
			}
			busy = true
		} else if busy {
			return // free again, although the client is still there and still silent
		}
		if time.Now().After(deadline) {
			t.Fatalf("refused beside an unread answer: %v; never free again", busy)
		}
	}
}

// A body where none belongs is not waited for without a bound.
func TestBody_OfAGetThatNeverComes_EndsTheConnection(t *testing.T) {
	_, s := start(t, func(o *Options) { o.BodyTimeout = 100 * time.Millisecond })
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %sk HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n", keysPath)
	if _, err := io.ReadAll(c); err != nil {
		t.Fatalf("the connection stays open: %v", err)
	}
}

func TestStatus_IsServed_OtherRoutesAre404(t *testing.T) {
	_, s := start(t, nil)
	resp, body := send(t, s, "GET", statusPath, "")
	if resp.StatusCode != 200 || strings.TrimSpace(body) != `{"node_id":"n"}` {
		t.Errorf("status: %d %q", resp.StatusCode, body)
	}
	if resp, _ := send(t, s, "GET", "/api/v1/nothing", ""); resp.StatusCode != 404 {
		t.Errorf("unknown route: %d", resp.StatusCode)
	}
}

func TestWriteDurations_CountsByOperationAndOutcome(t *testing.T) {
	m := &memory{records: map[string]wire.Record{}}
	door := New(Options{Service: m})
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", "/api/v1/nowhere", nil),
		httptest.NewRequest("PUT", keysPath+"k", strings.NewReader("v")),
		httptest.NewRequest("GET", keysPath+"k", nil),
		httptest.NewRequest("GET", keysPath+"absent", nil),
		httptest.NewRequest("PUT", keysPath+"k?nonsense=1", strings.NewReader("v")),
	} {
		door.ServeHTTP(httptest.NewRecorder(), r)
	}
	for _, st := range []wire.Status{wire.StatusNoNamespace, wire.StatusDamaged, wire.StatusTooLate} {
		m.answer = &wire.Response{Status: st}
		door.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", keysPath+"k", nil))
	}
	var b bytes.Buffer
	if err := door.WriteDurations(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`kvstore_request_duration_seconds_count{operation="put",protocol="rest",status="ok"} 1`,
		`kvstore_request_duration_seconds_count{operation="get",protocol="rest",status="ok"} 2`,
		`kvstore_request_duration_seconds_count{operation="put",protocol="rest",status="refused"} 1`,
		`kvstore_request_duration_seconds_count{operation="get",protocol="rest",status="refused"} 2`,
		`kvstore_request_duration_seconds_count{operation="get",protocol="rest",status="retry"} 1`,
	} {
		if !strings.Contains(b.String(), want+"\n") {
			t.Errorf("lacks %s:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), `operation="status"`) {
		t.Errorf("a request without a route counts as a status:\n%s", b.String())
	}
}

type fakeOps struct{ err error }

func (o fakeOps) Checks() []Check { return []Check{{Name: "leader"}, {Name: "disk", Err: o.err}} }

func (o fakeOps) WriteMetrics(w io.Writer) error {
	_, err := io.WriteString(w, "kvstore_up 1\n")
	return errors.Join(err, o.err)
}

func TestOps_Readyz_FollowsItsChecks(t *testing.T) {
	get := func(o fakeOps, path string) (int, string) {
		rec := httptest.NewRecorder()
		NewOps(o).Handler.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		return rec.Code, rec.Body.String()
	}
	good, bad := fakeOps{}, fakeOps{err: errors.New("full")}
	for _, c := range []struct {
		o    fakeOps
		path string
		code int
		body string
	}{
		{good, "/readyz", 200, "ok\n"},
		{good, "/readyz?verbose", 200, "[+] leader ok\n[+] disk ok\nok\n"},
		{bad, "/readyz", 503, "[+] leader ok\n[-] disk failed: full\nnot ready\n"},
		{bad, "/readyz?exclude=disk", 200, "ok\n"},
		{bad, "/livez", 200, "ok\n"},
		{good, "/metrics", 200, "kvstore_up 1\n"},
		{bad, "/metrics", 500, "cannot gather the metrics: full\n"},
	} {
		if code, body := get(c.o, c.path); code != c.code || body != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.path, code, body, c.code, c.body)
		}
	}
	if code, body := get(good, "/debug/pprof/"); code != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("pprof: %d", code)
	}
}
