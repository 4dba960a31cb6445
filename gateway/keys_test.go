package gateway

import (
	"net/http"
	"strings"
	"testing"

	"kvstore/wire"
)

func TestGet_Consistency_BecomesElementsAndAgesAreTold(t *testing.T) {
	m, s := start(t, nil)
	for query, want := range map[string][]byte{
		"":                                nil,
		"?consistency=linearizable":       nil,
		"?consistency=stale":              wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyStale),
		"?consistency=stale&max_age_ms=7": wire.AppendExtU64(wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyStale), wire.ExtMaxAge, 7),
	} {
		if r, body := send(t, s, "GET", "/api/v1/keys/k"+query, ""); r.StatusCode != http.StatusNotFound || string(m.last.Ext) != string(want) {
			t.Errorf("%s: %d %s, elements % x, want % x", query, r.StatusCode, body, m.last.Ext, want)
		}
	}
	for _, query := range []string{"?max_age_ms=7", "?consistency=linearizable&max_age_ms=7", "?consistency=stale&max_age_ms=0", "?consistency=stale&max_age_ms=-1", "?consistency=stale&max_age_ms=x"} {
		if r, body := send(t, s, "GET", "/api/v1/keys/k"+query, ""); r.StatusCode != http.StatusBadRequest || decode(t, body).Code != "KV-3000" {
			t.Errorf("%s: %d %s", query, r.StatusCode, body)
		}
	}
	if r, _ := send(t, s, "DELETE", "/api/v1/keys/k?consistency=stale", ""); r.StatusCode != http.StatusBadRequest {
		t.Errorf("a stale delete: %d", r.StatusCode)
	}
	meta := wire.AppendExtMeta(nil, &wire.Meta{Version: 1})
	for _, c := range []struct {
		status wire.Status
		ext    []byte
		want   string
	}{
		{wire.StatusOK, meta, ""},
		{wire.StatusOK, wire.AppendExtU64(meta[:len(meta):len(meta)], wire.ExtAge, 0), "0"},
		{wire.StatusOK, wire.AppendExtU64(meta[:len(meta):len(meta)], wire.ExtAge, 1), "1"},
		{wire.StatusNotFound, wire.AppendExtU64(nil, wire.ExtAge, 12_001), "13"},
		{wire.StatusOK, wire.AppendExtU64(meta[:len(meta):len(meta)], wire.ExtAge, wire.AgeUnknown), ""},
		{wire.StatusOK, wire.AppendExtU64(meta[:len(meta):len(meta)], wire.ExtAge, wire.AgeUnknown-1), "18446744073709552"},
	} {
		m.answer = &wire.Response{Status: c.status, Ext: c.ext}
		if r, _ := send(t, s, "GET", "/api/v1/keys/k?consistency=stale", ""); r.Header.Get("X-KV-Age-Ms") != c.want {
			t.Errorf("%s with elements % x: age %q, want %q", c.status, c.ext, r.Header.Get("X-KV-Age-Ms"), c.want)
		}
	}
}

// A body that says how small it is takes no more of the budget than that.
func TestPut_SmallBodies_FitASmallBudget(t *testing.T) {
	m, s := start(t, func(o *Options) { o.BodyBytesMax = 1000 })
	for _, n := range []int{0, 1, 900} {
		value := strings.Repeat("v", n)
		if r, body := send(t, s, "PUT", "/api/v1/keys/k", value); r.StatusCode != http.StatusOK || string(m.last.Payload) != value {
			t.Errorf("%d bytes: %d %s; %d bytes came", n, r.StatusCode, body, len(m.last.Payload))
		}
	}
	if r, body := send(t, s, "PUT", "/api/v1/keys/k", strings.Repeat("v", 1100)); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a body beyond the budget: %d %s", r.StatusCode, body)
	}
}

// What a cache may keep must be asked for again: reads are linearizable. A read whose outcome is unknown has changed
// nothing.
func TestGet_Answers_AreNotShownAgainByCachesAndChangeNothing(t *testing.T) {
	m, s := start(t, nil)
	if resp, body := send(t, s, "GET", "/api/v1/keys/k", ""); resp.StatusCode != 404 || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("absent: %d %v %s", resp.StatusCode, resp.Header, body)
	}
	send(t, s, "PUT", "/api/v1/keys/k", "v")
	if resp, body := send(t, s, "GET", "/api/v1/keys/k", ""); resp.StatusCode != 200 || resp.Header.Get("Cache-Control") != "no-cache" {
		t.Errorf("there: %d %v %s", resp.StatusCode, resp.Header, body)
	}
	m.answer = &wire.Response{Status: wire.StatusInternal}
	for method, want := range map[string]string{"GET": `"applied":"no"`, "PUT": `"applied":"unknown"`} {
		if resp, body := send(t, s, method, "/api/v1/keys/k", ""); resp.StatusCode != 504 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", method, resp.StatusCode, body)
		}
	}
}
