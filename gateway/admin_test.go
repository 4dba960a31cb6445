package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// adminAnswer is what the fake answers to OpAdmin, passed on byte for byte.
const adminAnswer = `{"cluster_id":"8f3a","history_id":"01","leader_id":"node-1","term":7,"members":[{"id":"node-1","role":"voter","leader":true,"state":"ok"}],"pending":null}`

// asked decodes the admin document that the service got last, or fails the test.
func asked(t *testing.T, m *memory) map[string]any {
	t.Helper()
	if m.last.Op != wire.OpAdmin {
		t.Fatalf("the service was asked for %s", m.last.Op)
	}
	if m.last.Group != wire.GroupDefault || len(m.last.Key) != 0 || len(m.last.Ext) != 0 {
		t.Errorf("group %d, key %q, extensions %x", m.last.Group, m.last.Key, m.last.Ext)
	}
	var got map[string]any
	if err := json.Unmarshal(m.last.Payload, &got); err != nil {
		t.Fatalf("%v: %q", err, m.last.Payload)
	}
	return got
}

func TestAdmin_EachRoute_AsksForItsActionAndPassesTheAnswerOn(t *testing.T) {
	m, s := start(t, nil)
	long := strings.Repeat("n", wire.NodeIDBytesMax)
	for name, c := range map[string]struct {
		method, target, body string
		header               []string
		want                 map[string]any
	}{
		"list":             {"GET", membersPath, "", nil, map[string]any{"action": "list"}},
		"remove":           {"DELETE", membersPath + "/node-2", "", nil, map[string]any{"action": "remove", "id": "node-2"}},
		"remove, longest":  {"DELETE", membersPath + "/" + long, "", nil, map[string]any{"action": "remove", "id": long}},
		"remove, decoded":  {"DELETE", membersPath + "/%6eode%2F2", "", nil, map[string]any{"action": "remove", "id": "node/2"}},
		"remove, once":     {"DELETE", membersPath + "/a%252Fb", "", nil, map[string]any{"action": "remove", "id": "a%2Fb"}},
		"remove, dots":     {"DELETE", membersPath + "/..", "", nil, map[string]any{"action": "remove", "id": ".."}},
		"remove, plus":     {"DELETE", membersPath + "/a+b", "", nil, map[string]any{"action": "remove", "id": "a+b"}},
		"remove, quotes":   {"DELETE", membersPath + "/%22,%22id%22:%22x", "", nil, map[string]any{"action": "remove", "id": `","id":"x`}},
		"remove, promote":  {"DELETE", membersPath + "/promote", "", nil, map[string]any{"action": "remove", "id": "promote"}},
		"promote":          {"POST", membersPath + "/node-2/promote", "", nil, map[string]any{"action": "promote", "id": "node-2"}},
		"promote, empty":   {"POST", membersPath + "/node-2/promote", "{}", nil, map[string]any{"action": "promote", "id": "node-2"}},
		"promote, promote": {"POST", membersPath + "/promote/promote", "", nil, map[string]any{"action": "promote", "id": "promote"}},
		"demote":           {"POST", membersPath + "/node-2/demote", "", nil, map[string]any{"action": "demote", "id": "node-2"}},
		"replace":          {"POST", membersPath + "/node-2/replace", "", nil, map[string]any{"action": "replace", "id": "node-2"}},
		"replace, with":    {"POST", membersPath + "/node-2/replace", `{"with":"node-4"}`, nil, map[string]any{"action": "replace", "id": "node-2", "with": "node-4"}},
		"priority":         {"PUT", membersPath + "/node-2/priority", `{"priority":30}`, nil, map[string]any{"action": "priority", "id": "node-2", "priority": 30.0}},
		"no priority":      {"PUT", membersPath + "/node-2/priority", `{"priority":0}`, nil, map[string]any{"action": "priority", "id": "node-2", "priority": 0.0}},
		"transfer":         {"POST", leaderPath, `{"node_id":"node-2"}`, nil, map[string]any{"action": "transfer", "id": "node-2"}},
		"transfer, any":    {"POST", leaderPath, "", nil, map[string]any{"action": "transfer"}},
		"transfer, empty":  {"POST", leaderPath, " {} \n", nil, map[string]any{"action": "transfer"}},
		"with a charset":   {"POST", leaderPath, `{}`, []string{"Content-Type", "Application/JSON; charset=utf-8"}, map[string]any{"action": "transfer"}},
		"not encoded":      {"POST", leaderPath, `{}`, []string{"Content-Encoding", "identity"}, map[string]any{"action": "transfer"}},
		"add, least": {"POST", membersPath, `{"id":"n4","raft_address":"h:7030"}`, []string{"Content-Type", "application/json"},
			map[string]any{"action": "add", "id": "n4", "raft_address": "h:7030"}},
		"add, all": {"POST", membersPath, `{"id":"n4","raft_address":"h:7030","address":"h:7031","http_address":"h:7033","grpc_address":"h:7032","incarnation":"000102030405060708090a0b0c0d0e0f","version":"v1 <&>"}`, nil,
			map[string]any{"action": "add", "id": "n4", "raft_address": "h:7030", "address": "h:7031", "http_address": "h:7033", "grpc_address": "h:7032", "incarnation": "000102030405060708090a0b0c0d0e0f", "version": "v1 <&>"}},
	} {
		m.answer = &wire.Response{Payload: []byte(adminAnswer)}
		resp, body := send(t, s, c.method, c.target, c.body, c.header...)
		if resp.StatusCode != 200 || body != adminAnswer+"\n" || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %q", name, resp.StatusCode, resp.Header, body)
			continue
		}
		if got := asked(t, m); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: asked for %v, want %v", name, got, c.want)
		}
	}
	if resp, body := send(t, s, "HEAD", membersPath, ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %q", resp.StatusCode, body)
	}
}

// Nothing malformed reaches the service, and each refusal names what is wrong.
func TestAdmin_HostileRequests_AreRefusedBeforeTheService(t *testing.T) {
	m, s := start(t, nil)
	good := `{"id":"n4","raft_address":"h:7030"}`
	large := `{"id":"n4","raft_address":"` + strings.Repeat("h", wire.AdminBytesMax) + `"}`
	for name, c := range map[string]struct {
		method, target, body string
		header               []string
		status               int
		title, detail        string
	}{
		"unknown field":         {"POST", membersPath, `{"id":"n4","raft_address":"h:1","voter":"yes"}`, nil, 400, "BAD_REQUEST", `"voter"`},
		"field of another case": {"POST", membersPath, `{"ID":"n4","raft_address":"h:1"}`, nil, 400, "BAD_REQUEST", `"ID"`},
		"action from outside":   {"POST", membersPath, `{"action":"remove","id":"n4"}`, nil, 400, "BAD_REQUEST", `"action"`},
		"field twice":           {"POST", membersPath, `{"id":"n4","raft_address":"h:1","id":"n5"}`, nil, 400, "BAD_REQUEST", `"id" is given twice`},
		"number":                {"POST", membersPath, `{"id":4}`, nil, 400, "BAD_REQUEST", `"id" is not a string`},
		"null":                  {"POST", membersPath, `{"id":null}`, nil, 400, "BAD_REQUEST", `"id" is not a string`},
		"object":                {"POST", membersPath, `{"id":{"id":"n4"}}`, nil, 400, "BAD_REQUEST", `"id" is not a string`},
		"array":                 {"POST", membersPath, `[` + good + `]`, nil, 400, "BAD_REQUEST", "not a JSON object"},
		"no JSON":               {"POST", membersPath, `id=n4`, nil, 400, "BAD_REQUEST", "not a JSON object"},
		"cut off":               {"POST", membersPath, good[:len(good)-1], nil, 400, "BAD_REQUEST", "not JSON"},
		"cut within a text":     {"POST", membersPath, good[:8], nil, 400, "BAD_REQUEST", "not JSON"},
		"comma at the end":      {"POST", membersPath, `{"id":"n4",}`, nil, 400, "BAD_REQUEST", "not JSON"},
		"two documents":         {"POST", membersPath, good + good, nil, 400, "BAD_REQUEST", "more behind the document"},
		"invalid UTF-8":         {"POST", membersPath, "{\"id\":\"n\xff\"}", nil, 400, "BAD_REQUEST", "UTF-8"},
		"half a surrogate pair": {"POST", membersPath, `{"id":"n\ud800"}`, nil, 400, "BAD_REQUEST", "surrogate"},
		"no body":               {"POST", membersPath, "", nil, 400, "BAD_REQUEST", "not a JSON object"},
		"no id":                 {"POST", membersPath, `{"raft_address":"h:1"}`, nil, 400, "BAD_REQUEST", `"id" is missing`},
		"empty raft address":    {"POST", membersPath, `{"id":"n4","raft_address":""}`, nil, 400, "BAD_REQUEST", `"raft_address" is missing`},
		"too large":             {"POST", membersPath, large, nil, 413, "TOO_LARGE", "16384"},
		"a form":                {"POST", membersPath, good, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json"},
		"plain text":            {"POST", membersPath, good, []string{"Content-Type", "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json"},
		"two types":             {"POST", leaderPath, `{}`, []string{"Content-Type", "application/json", "Content-Type", "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json"},
		"malformed type":        {"POST", leaderPath, `{}`, []string{"Content-Type", "application/json; ="}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json"},
		"compressed":            {"POST", leaderPath, `{}`, []string{"Content-Encoding", "gzip"}, 415, "UNSUPPORTED_MEDIA_TYPE", "encoded"},
		"form without a body":   {"POST", membersPath + "/n2/promote", "", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json"},
		"id of 65 bytes":        {"DELETE", membersPath + "/" + strings.Repeat("n", wire.NodeIDBytesMax+1), "", nil, 400, "BAD_REQUEST", "1 to 64"},
		"id not UTF-8":          {"DELETE", membersPath + "/%ff", "", nil, 400, "BAD_REQUEST", "1 to 64"},
		"no id in the path":     {"DELETE", membersPath + "/", "", nil, 400, "BAD_REQUEST", "names no member"},
		"no id to promote":      {"POST", membersPath + "//promote", "", nil, 400, "BAD_REQUEST", "names no member"},
		"promote with a field":  {"POST", membersPath + "/n2/promote", `{"force":"yes"}`, nil, 400, "BAD_REQUEST", `"force"`},
		"demote with a field":   {"POST", membersPath + "/n2/demote", `{"with":"n4"}`, nil, 400, "BAD_REQUEST", `"with"`},
		"replace with a number": {"POST", membersPath + "/n2/replace", `{"with":4}`, nil, 400, "BAD_REQUEST", `"with" is not a string`},
		"priority as a text":    {"PUT", membersPath + "/n2/priority", `{"priority":"high"}`, nil, 400, "BAD_REQUEST", `"priority" is not a whole number`},
		"digits in quotes":      {"PUT", membersPath + "/n2/priority", `{"priority":"30"}`, nil, 400, "BAD_REQUEST", `"priority" is not a whole number`},
		"half a priority":       {"PUT", membersPath + "/n2/priority", `{"priority":0.5}`, nil, 400, "BAD_REQUEST", `"priority" is not a whole number`},
		"priority null":         {"PUT", membersPath + "/n2/priority", `{"priority":null}`, nil, 400, "BAD_REQUEST", `"priority" is not a whole number`},
		"huge priority":         {"PUT", membersPath + "/n2/priority", `{"priority":1e999}`, nil, 400, "BAD_REQUEST", `"priority" is not a whole number`},
		"priority twice":        {"PUT", membersPath + "/n2/priority", `{"priority":1,"priority":2}`, nil, 400, "BAD_REQUEST", `twice`},
		"no priority given":     {"PUT", membersPath + "/n2/priority", `{}`, nil, 400, "BAD_REQUEST", `"priority" is missing`},
		"priority, no body":     {"PUT", membersPath + "/n2/priority", "", nil, 400, "BAD_REQUEST", "not a JSON object"},
		"transfer to a field":   {"POST", leaderPath, `{"id":"n2"}`, nil, 400, "BAD_REQUEST", `"id"`},
		"parameter":             {"DELETE", membersPath + "/n2?force=true", "", nil, 400, "BAD_REQUEST", `"force"`},
		"parameter of a list":   {"GET", membersPath + "?all=1", "", nil, 400, "BAD_REQUEST", `"all"`},
		"malformed query":       {"POST", leaderPath + "?%zz", "{}", nil, 400, "BAD_REQUEST", "query"},
		"idempotency key":       {"POST", leaderPath, "{}", []string{"Idempotency-Key", "1"}, 400, "UNSUPPORTED", "Idempotency-Key"},
		"removal, idempotent":   {"DELETE", membersPath + "/n2", "", []string{"Idempotency-Key", "1"}, 400, "UNSUPPORTED", "Idempotency-Key"},
	} {
		resp, body := send(t, s, c.method, c.target, c.body, c.header...)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d (%s)", name, resp.StatusCode, c.status, body)
			continue
		}
		p := decode(t, body)
		if p.Title != c.title || !strings.Contains(p.Detail, c.detail) || p.Status != c.status || p.Retryable || !strings.HasPrefix(p.Code, "KV-") ||
			(c.method != "GET" && p.Applied != "no") {
			t.Errorf("%s: %+v, want %s with %q", name, p, c.title, c.detail)
		}
		if m.last.Op != 0 {
			t.Errorf("%s: the service was asked for %q", name, m.last.Payload)
			m.last = wire.Request{}
		}
	}
}

func TestAdmin_WrongMethodsAndPaths_Are405WithAllowOr404(t *testing.T) {
	m, s := start(t, nil)
	for target, allowed := range map[string]string{
		membersPath: "GET, HEAD, POST", membersPath + "/n2": "DELETE", membersPath + "/n2/promote": "POST", leaderPath: "POST",
		membersPath + "/n2/demote": "POST", membersPath + "/n2/replace": "POST", membersPath + "/n2/priority": "PUT", statusPath: "GET, HEAD",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
			if strings.Contains(allowed, method) {
				continue
			}
			resp, body := send(t, s, method, target, "")
			if p := decode(t, body); resp.StatusCode != 405 || resp.Header.Get("Allow") != allowed || p.Title != "METHOD_NOT_ALLOWED" || p.Applied != "no" {
				t.Errorf("%s %s: %d, Allow %q, %+v", method, target, resp.StatusCode, resp.Header.Get("Allow"), p)
			}
		}
	}
	for _, target := range []string{adminPath, adminPath + "nothing", membersPath + "/n2/promote/", membersPath + "/n2/eject", membersPath + "/a/b/promote", membersPath + "x", leaderPath + "/", "/api/v1/admin"} {
		resp, body := send(t, s, "POST", target, `{"x":1}`)
		if p := decode(t, body); resp.StatusCode != 404 || p.Title != "NO_ROUTE" {
			t.Errorf("%s: %d %+v", target, resp.StatusCode, p)
		}
	}
	if m.last.Op != 0 {
		t.Errorf("the service was asked for %s", m.last.Op)
	}
}

// A change has the three outcomes of a write; a list has changed nothing whatever became of it. A follower
// that could not pass a request on answers NOT_LEADER: surely not applied.
func TestAdmin_Outcomes_KeepTheirCertainty(t *testing.T) {
	m, s := start(t, nil)
	for st, want := range map[wire.Status]struct {
		http      int
		applied   string
		retry     bool
		listRetry bool
	}{
		wire.StatusNotLeader:      {503, "no", true, true},
		wire.StatusNoLeader:       {503, "no", true, true},
		wire.StatusTooLate:        {503, "no", true, true},
		wire.StatusDraining:       {503, "no", true, true},
		wire.StatusLimited:        {429, "no", true, true},
		wire.StatusBadRequest:     {400, "no", false, false},
		wire.StatusUnknownOp:      {400, "no", false, false},
		wire.StatusDenied:         {403, "no", false, false},
		wire.StatusTimeout:        {504, "unknown", false, true},
		wire.StatusLeadershipLost: {504, "unknown", false, true},
		wire.StatusShutdown:       {504, "unknown", false, true},
		wire.StatusInternal:       {504, "unknown", false, true},
		wire.Status(0x3f):         {504, "unknown", false, true},
		wire.Status(0x7f):         {504, "unknown", false, true},
	} {
		m.answer = &wire.Response{Status: st, Ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 200), Payload: []byte("why")}
		for _, target := range []string{"DELETE " + membersPath + "/n2", "POST " + membersPath + "/n2/promote", "POST " + leaderPath} {
			method, path, _ := strings.Cut(target, " ")
			resp, body := send(t, s, method, path, "")
			p := decode(t, body)
			if resp.StatusCode != want.http || p.Applied != want.applied || p.Retryable != want.retry || p.Detail != "why" || resp.Header.Get("Retry-After") != "1" {
				t.Errorf("%s: %s: %d %+v, Retry-After %q; want %+v", target, st, resp.StatusCode, p, resp.Header.Get("Retry-After"), want)
			}
		}
		resp, body := send(t, s, "GET", membersPath, "")
		p := decode(t, body)
		if resp.StatusCode != want.http || p.Applied == "unknown" || p.Retryable != want.listRetry || (resp.StatusCode >= 500 && p.Applied != "no") {
			t.Errorf("list: %s: %d %+v", st, resp.StatusCode, p)
		}
	}
	m.answer = &wire.Response{Status: wire.StatusNotFound}
	resp, body := send(t, s, "DELETE", membersPath+"/n9", "")
	if p := decode(t, body); resp.StatusCode != 404 || p.Applied != "no" || !strings.Contains(p.Detail, `no member "n9"`) {
		t.Errorf("unknown member: %d %+v", resp.StatusCode, p)
	}
	m.answer = &wire.Response{Status: wire.StatusConditionFailed, Payload: []byte("n4 is a member with another data directory: remove it first")}
	resp, body = send(t, s, "POST", membersPath, `{"id":"n4","raft_address":"h:1"}`)
	if p := decode(t, body); resp.StatusCode != 412 || p.Applied != "no" || p.Failed != nil || !strings.HasSuffix(p.Detail, "remove it first") {
		t.Errorf("other data directory: %d %+v", resp.StatusCode, p)
	}
}

// A listing changes nothing: whatever became of the question, nobody is told that something may be applied.
func TestMembers_LeaderDoesNotAnswer_NothingIsSaidOfChanges(t *testing.T) {
	m, s := start(t, nil)
	for _, st := range []wire.Status{wire.StatusLeadershipLost, wire.StatusTimeout} {
		m.answer = &wire.Response{Status: st, Payload: []byte("the connection was lost; it may or may not be applied")}
		resp, body := send(t, s, "GET", membersPath, "")
		if p := decode(t, body); resp.StatusCode != 504 || p.Applied != "no" || !p.Retryable || strings.Contains(p.Detail, "applied") {
			t.Errorf("%s: %d %+v", st, resp.StatusCode, p)
		}
	}
}

// A follower passes writes on by itself; where it could not, its status means surely not applied, and where
// the answer got lost on the way, unknown. The keys' routes say so as well.
func TestKey_OnAFollower_NotPassedOnIs503AndLostOnTheWayIs504(t *testing.T) {
	m, s := start(t, nil)
	for st, want := range map[wire.Status]int{wire.StatusNotLeader: 503, wire.StatusNoLeader: 503, wire.StatusLeadershipLost: 504, wire.StatusTimeout: 504} {
		applied := map[int]string{503: "no", 504: "unknown"}[want]
		m.answer = &wire.Response{Status: st, Ext: wire.AppendExtU64(wire.AppendExtString(nil, wire.ExtLeader, "10.0.1.11:7001"), wire.ExtTerm, 7)}
		for _, method := range []string{"PUT", "DELETE"} {
			resp, body := send(t, s, method, keysPath+"k", "")
			if p := decode(t, body); resp.StatusCode != want || p.Applied != applied || p.Retryable != (want == 503) {
				t.Errorf("%s: %s: %d %+v", method, st, resp.StatusCode, p)
			}
		}
	}
}

func TestAdmin_BodyThatNeverComes_IsRefusedInTime(t *testing.T) {
	m, s := start(t, func(o *Options) { o.BodyTimeout = 100 * time.Millisecond })
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{}", leaderPath)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if p := decode(t, string(body)); resp.StatusCode != 400 || p.Applied != "no" || m.last.Op != 0 {
		t.Errorf("%d %+v, service asked for %s", resp.StatusCode, p, m.last.Op)
	}
}

// One connection serves many requests: a body that is read leaves it in order.
func TestAdmin_ManyRequestsOnOneConnection(t *testing.T) {
	m, s := start(t, nil)
	m.answer = &wire.Response{Payload: []byte(adminAnswer)}
	connections := 0
	c := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer c.CloseIdleConnections()
	for i := range 20 {
		req, err := http.NewRequestWithContext(countConnections(t, &connections), "POST", s.URL+leaderPath, strings.NewReader(fmt.Sprintf(`{"node_id":"n%d"}`, i)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 || asked(t, m)["id"] != fmt.Sprintf("n%d", i) {
			t.Fatalf("request %d: %d, %v", i, resp.StatusCode, asked(t, m))
		}
		drain(t, resp)
	}
	if connections != 1 {
		t.Errorf("%d connections were made", connections)
	}
}

func TestAdmin_CountsInTheDurations(t *testing.T) {
	m := &memory{answer: &wire.Response{Payload: []byte(adminAnswer)}}
	door := New(Options{Service: m})
	door.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", membersPath, nil))
	door.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", membersPath, strings.NewReader("{}")))
	var b strings.Builder
	if err := door.WriteDurations(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ok", "refused"} {
		if line := fmt.Sprintf("kvstore_request_duration_seconds_count{operation=\"admin\",protocol=\"rest\",status=%q} 1\n", want); !strings.Contains(b.String(), line) {
			t.Errorf("lacks %s:\n%s", line, b.String())
		}
	}
}

// Whatever the body, it is refused, or becomes a document with nothing in it but the known fields.
func FuzzAdminBody(f *testing.F) {
	for _, b := range []string{``, `{}`, `{"id":"a","raft_address":"b"}`, `{"id":"a","id":"b"}`, `{"id":"\ud83d\ude00"}`, `[`, `{"id"`, `{"":""}`, `{"id":1e999}`, `{"id":"a"}}`} {
		f.Add([]byte(b), "n")
	}
	f.Fuzz(func(t *testing.T, body []byte, id string) {
		m := &memory{answer: &wire.Response{Payload: []byte(adminAnswer)}}
		door := New(Options{Service: m})
		rec := httptest.NewRecorder()
		door.ServeHTTP(rec, httptest.NewRequest("POST", membersPath, strings.NewReader(string(body))))
		if (rec.Code == 200) != (m.last.Op == wire.OpAdmin) || (rec.Code != 200 && rec.Code != 400 && rec.Code != 413) {
			t.Fatalf("%d, service asked for %s", rec.Code, m.last.Op)
		}
		if rec.Code == 200 {
			var in, out map[string]string
			if err := json.Unmarshal(body, &in); err != nil {
				t.Fatalf("accepted %q: %v", body, err)
			}
			if err := json.Unmarshal(m.last.Payload, &out); err != nil {
				t.Fatal(err)
			}
			for name, v := range in {
				if out[name] != v {
					t.Fatalf("%q became %q", body, m.last.Payload)
				}
			}
			if out["action"] != "add" || out["id"] == "" || out["raft_address"] == "" {
				t.Fatalf("%q became %q", body, m.last.Payload)
			}
		}
		*m = memory{answer: m.answer}
		rec = httptest.NewRecorder()
		req := httptest.NewRequest("DELETE", membersPath+"/x", nil)
		req.URL = &url.URL{Path: membersPath + "/" + id, RawPath: membersPath + "/" + url.PathEscape(id)}
		door.ServeHTTP(rec, req)
		if rec.Code == 200 && asked(t, m)["id"] != id {
			t.Fatalf("member %q became %q", id, m.last.Payload)
		}
	})
}

// countConnections counts in n the connections that requests with this context make.
func countConnections(t *testing.T, n *int) context.Context {
	return httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			*n++
		}
	}})
}

// drain reads an answer to its end, so that its connection can be used again.
func drain(t *testing.T, resp *http.Response) {
	t.Helper()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
}
