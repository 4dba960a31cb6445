package gateway

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"kvstore/wire"
)

func TestNamespaces_EachRoute_AsksForItsAction(t *testing.T) {
	m, s := start(t, nil)
	none := map[string]any{"bytes_max": 0.0, "keys_max": 0.0, "ops_per_second": 0.0, "watches_max": 0.0, "compress": "none"}
	all := map[string]any{"bytes_max": 1.0, "keys_max": 2.0, "ops_per_second": 3.0, "watches_max": 4.0, "compress": "zstd"}
	const given = `{"bytes_max":1,"keys_max":"2","ops_per_second":3,"watches_max":4,"compress":"zstd"}`
	for name, c := range map[string]struct {
		method, target, body string
		want                 map[string]any
	}{
		"list":           {"GET", namespacesPath, "", map[string]any{"action": "namespace_list"}},
		"create, least":  {"POST", namespacesPath, `{"name":"app"}`, map[string]any{"action": "namespace_create", "namespace": "app", "settings": none}},
		"create, all":    {"POST", namespacesPath, `{"settings":` + given + `,"name":"a/b:c"}`, map[string]any{"action": "namespace_create", "namespace": "a/b:c", "settings": all}},
		"describe":       {"GET", namespacesPath + "/app", "", map[string]any{"action": "namespace_describe", "namespace": "app"}},
		"describe slash": {"GET", namespacesPath + "/a/b%2Fc", "", map[string]any{"action": "namespace_describe", "namespace": "a/b/c"}},
		"set":            {"PUT", namespacesPath + "/app", `{"settings":` + given + `}`, map[string]any{"action": "namespace_set", "namespace": "app", "settings": all}},
		"set to nothing": {"PUT", namespacesPath + "/app", `{"settings":{}}`, map[string]any{"action": "namespace_set", "namespace": "app", "settings": none}},
		"drop":           {"DELETE", namespacesPath + "/app", "", map[string]any{"action": "namespace_drop", "namespace": "app"}},
	} {
		m.answer = &wire.Response{Payload: []byte(`{"namespaces":[]}`)}
		resp, body := send(t, s, c.method, c.target, c.body)
		if resp.StatusCode != 200 || body != `{"namespaces":[]}`+"\n" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
			continue
		}
		if got := asked(t, m); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: asked for %v, want %v", name, got, c.want)
		}
	}
	if _, body := send(t, s, "POST", namespacesPath, `{"name":"big","settings":{"bytes_max":18446744073709551615}}`); !json.Valid([]byte(body)) || !strings.Contains(string(m.last.Payload), "18446744073709551615") {
		t.Errorf("64 bits became %s", m.last.Payload)
	}
}

func TestNamespaces_BadRequests_AreRefused(t *testing.T) {
	m, s := start(t, nil)
	long := strings.Repeat("n", wire.NamespaceBytesMax+1)
	for _, c := range []struct {
		method, target, body string
		status               int
	}{
		{"POST", "", ``, 400}, {"POST", "", `{}`, 400}, {"POST", "", `{"name":""}`, 400}, {"POST", "", `{"name":"` + long + `"}`, 400}, {"POST", "", `{"name":"a b"}`, 400}, {"POST", "", `{"name":"-a"}`, 400},
		{"POST", "", `{"name":"a","name":"b"}`, 400}, {"POST", "", `{"name":"a","x":1}`, 400}, {"POST", "", `{"name":1}`, 400}, {"POST", "", `{"name":"a","settings":null}`, 400}, {"POST", "", `{"name":"a"}{}`, 400},
		{"POST", "", `{"name":"a","settings":{"bytes_max":-1}}`, 400}, {"POST", "", `{"name":"a","settings":{"keys_max":1.5}}`, 400}, {"POST", "", `{"name":"a","settings":{"keys_max":18446744073709551616}}`, 400},
		{"POST", "", `{"name":"a","settings":{"compress":"gzip"}}`, 400}, {"POST", "", `{"name":"a","settings":{"bytes":1}}`, 400}, {"POST", "?x=1", `{"name":"a"}`, 400}, {"POST", "", strings.Repeat(" ", 1<<20), 413},
		{"PUT", "/a", `{}`, 400}, {"PUT", "/a", `{"name":"a","settings":{}}`, 400}, {"PUT", "/" + long, `{"settings":{}}`, 400}, {"PUT", "/%zz", `{"settings":{}}`, 400}, {"PUT", "", `{"settings":{}}`, 405}, {"POST", "/a", `{}`, 405},
		{"GET", "/", "", 400}, {"GET", "/%ff", "", 400}, {"GET", "?x=1", "", 400}, {"DELETE", "/a?force=1", "", 400}, {"DELETE", "", "", 405},
	} {
		resp, body := send(t, s, c.method, namespacesPath+c.target, c.body)
		if strings.Contains(c.target, "%zz") && resp.StatusCode == 400 {
			continue // net/http's own
		}
		if p := decode(t, body); resp.StatusCode != c.status || p.Status != c.status || c.method != "GET" && p.Applied != "no" {
			t.Errorf("%s %.40s %.80s: %d %s", c.method, c.target, c.body, resp.StatusCode, body)
		}
	}
	if resp, _ := send(t, s, "POST", namespacesPath, `{"name":"a"}`, "Content-Type", "text/plain"); resp.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("text/plain: %d", resp.StatusCode)
	}
	if m.last.Op != 0 {
		t.Errorf("a bad request became %s", m.last.Op)
	}
	for st, want := range map[wire.Status]int{
		wire.StatusNamespaceExists: 409, wire.StatusNoNamespace: 404, wire.StatusTooMany: 429, wire.StatusLimited: 429, wire.StatusQuota: 429, wire.StatusBadRequest: 400, wire.StatusNoLeader: 503, wire.StatusTimeout: 504,
	} {
		m.answer = &wire.Response{Status: st, Payload: []byte("because")}
		resp, body := send(t, s, "DELETE", namespacesPath+"/app", "")
		p := decode(t, body)
		if resp.StatusCode != want || p.Detail != "because" || p.Applied != st.Applied() || (want == 429) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("%s: %d %v %s", st, resp.StatusCode, resp.Header, body)
		}
		if resp, body := send(t, s, "GET", namespacesPath, ""); want == 504 && (decode(t, body).Applied != "no" || resp.StatusCode != 504) {
			t.Errorf("%s of a question: %d %s", st, resp.StatusCode, body)
		}
	}
}
