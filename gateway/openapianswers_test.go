package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	validator "github.com/pb33f/libopenapi-validator"

	"kvstore/wire"
)

// heldToDescription makes one request and holds its answer against the description.
func heldToDescription(t *testing.T, v validator.Validator, s *Server, d *describedOperation, target, body string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(d.method, target, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	if d.method == http.MethodHead {
		rec.Body.Reset() // as net/http does
	}
	resp := rec.Result()
	status := strconv.Itoa(resp.StatusCode)
	if d.responses[status] == nil && d.responses[status[:1]+"XX"] == nil {
		t.Errorf("%s: %d is not described: %s", d.id, resp.StatusCode, rec.Body)
		return resp
	}
	ok, errs := v.ValidateHttpResponse(r, resp)
	for _, err := range errs {
		t.Errorf("%s: %d: %s: %s", d.id, resp.StatusCode, err.Message, err.Reason)
		for _, e := range err.SchemaValidationErrors {
			t.Errorf("%s: %s: %s", d.id, e.FieldPath, e.Reason)
		}
	}
	if !ok {
		t.Errorf("%s: %v %s", d.id, resp.Header, rec.Body)
	}
	resp = rec.Result()
	return resp
}

// What the fake answers to each operation, and what is asked besides the examples.
func TestOpenAPI_AnswersAreAsDescribed(t *testing.T) {
	v := newValidator(t)
	meta := wire.Meta{Version: 1 << 20, CreatedAt: 1e15, UpdatedAt: 1e15 + 5e5, ExpiresAt: 2e15, Checksum: 1}
	ext := wire.AppendExtMeta(nil, &meta)
	ext = wire.AppendExtTag(ext, "owner", "ann & bob")
	ext = wire.AppendExtString(ext, wire.ExtContentType, "text/x-thing")
	ext = wire.AppendExtString(ext, wire.ExtEncoding, "br")
	plain := wire.AppendExtMeta(nil, &wire.Meta{Version: 1 << 20, CreatedAt: 1e15, UpdatedAt: 1e15, Checksum: 1})
	version := wire.Response{Payload: wire.AppendVersion(nil, 1<<20)}
	record := wire.Response{Ext: ext, Payload: []byte("\x00value")}
	aged := wire.Response{Ext: wire.AppendExtU64(slices.Clone(ext), wire.ExtAge, 1500), Payload: []byte("value")}
	page := *pageOf(1<<20, []byte("more"), wire.Item{Op: wire.OpGet, Key: []byte("a"), Ext: ext, Value: []byte("v")}, wire.Item{Op: wire.OpGet, Key: []byte("b"), Ext: plain}, wire.Item{Op: wire.OpScan, Key: []byte("dir/")})
	wrote := wire.Item{Op: wire.OpPut, Value: wire.AppendVersion(nil, 1<<20)}
	cluster := wire.Response{Payload: []byte(`{"cluster_id":"8f","history_id":"01","leader_id":"node-1","term":7,"members":[{"id":"node-1","role":"voter","leader":true,"raft_address":"h:1","address":"h:2","http_address":"h:3","grpc_address":"","incarnation":"00","version":"v1","match_index":9,"lag":0,"last_contact_ms":-1,"state":"ok","priority":0,"kept_learner":false}],"current":[{"node_id":"node-1","address":"h:1","role":"voter"}],"pending":null,"autopilot":{"healthy":true,"failure_tolerance":0,"servers":[]}}`)}
	status := wire.Response{Payload: []byte(`{"cluster_id":"8f","node_id":"node-1","is_leader":true,"leader_id":"node-1","term":7,"applied_index":9,"revision":"1048576","state_digest":"00","lease":{"held":true,"mode":"lease","reason":""},"nodes":[{"id":"node-1","role":"leader","state":"ok","raft_address":"h:1","address":"h:2","applied_index":9,"lag":null,"version":"v1","pid":1,"disk":null}],"current_config":[{"node_id":"node-1","address":"h:1","role":"voter"}],"pending_config":null,"durability":"fsync","read_mode":"lease"}`)}
	scrub := wire.Response{Payload: []byte(`{"running":true,"started_at":"2026-01-01T00:00:00Z","finished_at":null,"next_at":null,"records":1,"bytes":2,"index":3,"digest_matches":null,"damaged":[],"damaged_count":0,"log_error":"","error":""}`)}
	namespaces := wire.Response{Payload: []byte(`{"namespaces":[{"name":"app","id":2,"state":"active","created_at":"2026-01-01T00:00:00Z","keys":1,"bytes":2,"settings":{"bytes_max":1,"keys_max":2,"ops_per_second":3,"watches_max":4,"compress":"zstd"}}]}`)}
	two := *resultOf(1<<20, wrote, wrote)
	type answers []struct {
		query  string
		answer wire.Response
	}
	cases := map[string]answers{
		"getKey": {{"", record}, {"consistency=stale", aged}}, "headKey": {{"", record}},
		"putKey": {{"", version}, {"ttl_seconds=5&tag.a=b", version}}, "touchKey": {{"ttl_seconds=0", version}},
		"deleteKey":    {{"", version}, {"", wire.Response{Status: wire.StatusNotFound, Payload: version.Payload}}},
		"incrementKey": {{"delta=-5", wire.Response{Payload: wire.AppendCounter(nil, 1<<20, -5)}}},
		"listKeys":     {{"", page}, {"keys_only", page}, {"delimiter=/", page}, {"count", *pageOf(1, nil)}, {"", *pageOf(1, nil)}}, "headKeys": {{"", page}},
		"batchPut":    {{"", two}, {"", *resultOf(1<<20, wrote, wire.Item{Op: wire.OpPut, Status: wire.StatusQuota})}},
		"batchDelete": {{"", two}, {"", *resultOf(1<<20, wire.Item{Op: wire.OpDelete, Status: wire.StatusNotFound}, wire.Item{Op: wire.OpDelete, Value: version.Payload})}},
		"batchGet": {{"", *resultOf(1<<20, wire.Item{Op: wire.OpGet, Ext: ext, Value: []byte("v")}, wire.Item{Op: wire.OpGet, Status: wire.StatusNotFound})},
			{"", *resultOf(1<<20, wire.Item{Op: wire.OpGet, Ext: plain}, wire.Item{Op: wire.OpGet, Status: wire.StatusReplyFull})}},
		"transaction": {{"", *resultOf(1<<20, wire.Item{Op: wire.OpCheck}, wrote, wire.Item{Op: wire.OpGet, Ext: ext, Value: []byte("v")})}},
		"getStatus":   {{"", status}}, "headStatus": {{"", status}}, "scrub": {{"", scrub}},
		"getMetrics": {{"", status}}, "headMetrics": {{"", status}},
		"listMembers": {{"", cluster}}, "headMembers": {{"", cluster}}, "addMember": {{"", cluster}}, "removeMember": {{"", cluster}}, "promoteMember": {{"", cluster}},
		"demoteMember": {{"", cluster}}, "replaceMember": {{"", cluster}}, "setMemberPriority": {{"", cluster}}, "transferLeadership": {{"", cluster}},
		"listNamespaces": {{"", namespaces}}, "headNamespaces": {{"", namespaces}}, "createNamespace": {{"", namespaces}}, "describeNamespace": {{"", namespaces}},
		"headNamespace": {{"", namespaces}}, "setNamespace": {{"", namespaces}}, "dropNamespace": {{"", wire.Response{Payload: []byte(`{"namespaces":[]}`)}}},
		"backup": {{"", status}}, "restore": {{"mode=merge", wire.Response{Payload: []byte(`{"namespaces":1,"namespaces_created":0,"records":2,"bytes":3,"expired_skipped":4,"revision":"1048576","stream_bytes":5}`)}}},
		"getOpenAPIYAML": {{"", status}}, "headOpenAPIYAML": {{"", status}}, "headOpenAPIJSON": {{"", status}},
	}
	_, all := description(t)
	for _, d := range all {
		if d.id == "watchAll" || d.id == "watchPrefix" || d.id == "getOpenAPIJSON" {
			continue // TestOpenAPI_EventsAreAsDescribed, TestOpenAPI_IsServedInBothForms
		}
		if len(cases[d.id]) == 0 {
			t.Errorf("%s is answered by no case", d.id)
		}
		for _, c := range cases[d.id] {
			_, s := describedDoor(c.answer)
			if resp := heldToDescription(t, v, s, d, d.target(t)+"?"+c.query, d.goodBody(t)); resp.StatusCode != 200 {
				t.Errorf("%s?%s: %d", d.id, c.query, resp.StatusCode)
			}
		}
	}
}

// Any operation may be answered with these, and all that are answered look as is described.
func TestOpenAPI_ProblemsAreAsDescribed(t *testing.T) {
	v := newValidator(t)
	_, all := description(t)
	anywhere := []wire.Status{
		wire.StatusNotLeader, wire.StatusBusy, wire.StatusTooLate, wire.StatusDraining, wire.StatusNoLeader, wire.StatusLimited, wire.StatusNotReady,
		wire.StatusRetryLater, wire.StatusBadRequest, wire.StatusUnknownOp, wire.StatusUnauthenticated, wire.StatusDenied, wire.StatusTimeout, wire.StatusInternal,
	}
	for _, d := range all {
		if strings.HasSuffix(d.path, "/metrics") || strings.Contains(d.path, "openapi") {
			continue // the service isn't asked
		}
		target := d.target(t)
		if d.id == "touchKey" {
			target += "?ttl_seconds=1"
		}
		for _, info := range wire.Statuses() {
			answer := wire.Response{Status: info.Status}
			if code := httpStatus(info.Status); code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable {
				answer.Ext = wire.AppendExtU32(nil, wire.ExtRetryAfter, 1500)
			}
			if info.Status == wire.StatusConditionFailed {
				answer.Payload = wire.AppendFailed(nil, []wire.FailedCondition{{Operation: 0, Condition: 0}})
			}
			status := strconv.Itoa(httpStatus(info.Status))
			if d.responses[status] == nil && !slices.Contains(anywhere, info.Status) || info.Status.Class() == wire.ClassResult && d.responses[status] == nil || info.Status == wire.StatusOK ||
				info.Status == wire.StatusConditionFailed && strings.HasPrefix(d.path, adminPath) || info.Status == wire.StatusNotFound && d.id == "deleteKey" {
				continue
			}
			_, s := describedDoor(answer)
			if resp := heldToDescription(t, v, s, d, target, d.goodBody(t)); resp.StatusCode != httpStatus(info.Status) {
				t.Errorf("%s: %s became %d", d.id, info.Name, resp.StatusCode)
			}
		}
		// A query and a body of nobody's, and too many requests.
		_, s := describedDoor(wire.Response{Status: wire.StatusBusy})
		heldToDescription(t, v, s, d, target+"?"+url.Values{"nobody_knows": {"1"}}.Encode(), "")
		if d.method == "POST" && !strings.Contains(d.path, "increment") && d.id != "backup" && d.id != "restore" {
			if resp := heldToDescription(t, v, s, d, target, "{]"); resp.StatusCode != 400 {
				t.Errorf("%s: no JSON: %d", d.id, resp.StatusCode)
			}
			if resp := heldToDescription(t, v, s, d, target, "{}", "Content-Type", "text/plain"); resp.StatusCode != 415 {
				t.Errorf("%s: not JSON: %d", d.id, resp.StatusCode)
			}
		}
		if d.method != "GET" && d.method != "HEAD" {
			if resp := heldToDescription(t, v, s, d, target, "", "Sec-Fetch-Site", "cross-site"); resp.StatusCode != 403 {
				t.Errorf("%s: from another site: %d", d.id, resp.StatusCode)
			}
		}
		s = New(Options{Service: s.o.Service, ClientRequestsPerSecond: 1, now: func() int64 { return 0 }})
		heldToDescription(t, v, s, d, target, d.goodBody(t))
		if resp := heldToDescription(t, v, s, d, target, d.goodBody(t)); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: the second request of a second: %d %v", d.id, resp.StatusCode, resp.Header)
		}
	}
}

// The bodies that the description gives as examples are those that it allows.
func TestOpenAPI_ExamplesAreAsDescribed(t *testing.T) {
	v := newValidator(t)
	_, all := description(t)
	for _, d := range all {
		body := d.goodBody(t)
		if body == "" || body == "raw bytes" {
			continue
		}
		r := httptest.NewRequest(d.method, d.target(t), strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		_, errs := v.GetRequestBodyValidator().ValidateRequestBody(r)
		for _, err := range errs {
			t.Errorf("%s: %s: %s", d.id, err.Message, err.Reason)
		}
		bad := strings.Replace(body, "{", `{"nobody_knows":1,`, 1)
		if body == "{}" {
			bad = `{"nobody_knows":1}`
		}
		r = httptest.NewRequest(d.method, d.target(t), strings.NewReader(bad))
		r.Header.Set("Content-Type", "application/json")
		if ok, _ := v.GetRequestBodyValidator().ValidateRequestBody(r); ok {
			t.Errorf("%s: %s is allowed", d.id, bad)
		}
	}
}

func TestOpenAPI_EventsAreAsDescribed(t *testing.T) {
	v := newValidator(t)
	_, all := description(t)
	meta := wire.AppendExtMeta(nil, &wire.Meta{Version: 5, CreatedAt: 1e15, UpdatedAt: 1e15, Checksum: 1})
	for _, d := range all {
		if d.id != "watchAll" && d.id != "watchPrefix" {
			continue
		}
		m, s := describedDoor(wire.Response{})
		m.refuseWith(nil)
		m.frames <- frame(7,
			wire.Event{Kind: wire.EventPut, Revision: 5, Key: []byte("a"), Ext: meta, Value: []byte("v")},
			wire.Event{Kind: wire.EventDelete, Revision: 6, Key: []byte("a"), Flags: wire.EventHadPrevious, PreviousExt: meta, Previous: []byte("v")},
			wire.Event{Kind: wire.EventExpire, Revision: 7, Key: []byte("b"), Flags: wire.EventPreviousLost | wire.EventLast})
		close(m.frames)
		m.end = wire.Response{Status: wire.StatusCompacted}
		resp := heldToDescription(t, v, s, d, d.target(t), "")
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode, err)
		}
		kinds := map[string]int{}
		for block := range strings.SplitSeq(string(body), "\n\n") {
			kind, data := "", ""
			for line := range strings.SplitSeq(block, "\n") {
				if v, ok := strings.CutPrefix(line, "event: "); ok {
					kind = v
				}
				if v, ok := strings.CutPrefix(line, "data: "); ok {
					data = v
				}
			}
			if kind == "" {
				continue
			}
			kinds[kind]++
			schema := "WatchEvent"
			if kind == "error" {
				schema = "Problem"
			}
			conforms(t, schema, data)
		}
		if len(kinds) != 4 {
			t.Errorf("events of %v: %s", kinds, body)
		}
	}
}

// conforms holds a document against a schema of the description, as if status answered with it.
func conforms(t *testing.T, schema, document string) {
	t.Helper()
	const name = "#/components/schemas/"
	v := newValidator(t, "schema: {$ref: '"+name+"Status'}", "schema: {$ref: '"+name+schema+"'}")
	resp := httptest.NewRecorder()
	resp.Header().Set("Content-Type", "application/json")
	resp.Header().Set(requestIDHeader, "1")
	resp.WriteString(document)
	_, errs := v.ValidateHttpResponse(httptest.NewRequest("GET", statusPath, nil), resp.Result())
	for _, err := range errs {
		t.Errorf("%s: %s: %s: %s", schema, err.Message, err.Reason, document)
	}
}
