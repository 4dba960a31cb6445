package gateway

import (
	"strings"
	"testing"

	"kvstore/wire"
)

// askedOnce gives the key and the fingerprint that the service was asked with.
func askedOnce(t *testing.T, m *memory) (id wire.Idempotency, found bool) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	v, _, found := wire.FindIdempotency(m.last.Ext)
	if !found {
		return id, false
	}
	id, err := wire.DecodeIdempotency(v)
	if err != nil {
		t.Fatal(err)
	}
	return id, true
}

// The same request has the same fingerprint; another key, value, option or operation has another one.
func TestIdempotency_RequestsBecomeElements(t *testing.T) {
	const key = "5f0b9e7a-order 17"
	const put = `{"items":[{"key":"a","text":"1"}]}`
	m, s := start(t, nil)
	m.answer = &wire.Response{Status: wire.StatusRetryLater}
	type request struct {
		method, target, body string
		header               []string
	}
	seen := make(map[uint64]request)
	for _, r := range []request{
		{"PUT", keysPath + "k", "value", nil},
		{"PUT", keysPath + "k", "valuf", nil},
		{"PUT", keysPath + "l", "value", nil},
		{"PUT", keysPath + "kv", "alue", nil},
		{"PUT", keysPath + "k", "", nil},
		{"PUT", keysPath + "k?ttl_seconds=5", "value", nil},
		{"PUT", keysPath + "k?namespace=app", "value", nil},
		{"PUT", keysPath + "k?tag.a=b", "value", nil},
		{"PUT", keysPath + "k", "value", []string{"Content-Type", "text/plain"}},
		{"PUT", keysPath + "k", "value", []string{"If-None-Match", "*"}},
		{"DELETE", keysPath + "k", "", nil},
		{"PATCH", keysPath + "k?ttl_seconds=5", "", nil},
		{"PATCH", keysPath + "k?ttl_seconds=6", "", nil},
		{"POST", incrementPath + "k", "", nil},
		{"POST", incrementPath + "k?delta=2", "", nil},
		{"POST", batchPath + "put", put, nil},
		{"POST", batchPath + "put", strings.Replace(put, "1", "2", 1), nil},
		{"POST", batchPath + "put?namespace=app", put, nil},
		{"POST", batchPath + "delete", `{"keys":["a"]}`, nil},
		{"POST", transactionPath, `{"operations":[{"type":"DELETE","key":"a"}]}`, nil},
	} {
		var first wire.Idempotency
		for attempt := range 2 {
			header := append([]string{"Idempotency-Key", key}, r.header...)
			if resp, body := send(t, s, r.method, r.target, r.body, header...); resp.StatusCode != 503 {
				t.Fatalf("%v: %d %s", r, resp.StatusCode, body)
			}
			id, found := askedOnce(t, m)
			if !found || id.Key != wire.IdempotencyKey(key) {
				t.Fatalf("%v: %v, %v", r, id, found)
			}
			if attempt == 1 && id != first {
				t.Errorf("%v: %v, then %v", r, first, id)
			}
			first = id
		}
		if other, twice := seen[first.Fingerprint]; twice {
			t.Errorf("%v and %v have one fingerprint", r, other)
		}
		seen[first.Fingerprint] = r
	}

	// What says the same in other words is the same request.
	for _, same := range []request{
		{"POST", batchPath + "put", ` { "items" : [ { "text" : "1" , "key" : "a" } ] } `, nil},
		{"POST", batchPath + "put", `{"items":[{"key":"a","value":"MQ=="}]}`, nil},
		{"POST", incrementPath + "k?delta=1", "", nil},
		{"PUT", keysPath + "%6b", "value", nil},
	} {
		send(t, s, same.method, same.target, same.body, "Idempotency-Key", key)
		if id, _ := askedOnce(t, m); seen[id.Fingerprint].method == "" {
			t.Errorf("%v is a request of its own", same)
		}
	}

	// A read has nothing to repeat, and a write without a key no element.
	for _, r := range []request{
		{"GET", keysPath + "k", "", []string{"Idempotency-Key", key}}, {"POST", batchPath + "get", `{"keys":["a"]}`, []string{"Idempotency-Key", key}},
		{"PUT", keysPath + "k", "value", nil}, {"POST", batchPath + "put", put, nil},
	} {
		send(t, s, r.method, r.target, r.body, r.header...)
		if id, found := askedOnce(t, m); found {
			t.Errorf("%v: %v", r, id)
		}
	}
}

func TestIdempotency_Outcomes_AreTold(t *testing.T) {
	m, s := start(t, nil)
	for name, c := range map[string]struct {
		answer  wire.Response
		status  int
		applied string
		says    string
	}{
		"another request": {wire.Response{Status: wire.StatusKeyReused}, 422, "no", "another request"},
		"full":            {wire.Response{Status: wire.StatusRetryLater, Payload: []byte("as many as may be")}, 503, "no", "as many as may be"},
		"unknown":         {wire.Response{Status: wire.StatusTimeout}, 504, "unknown", ""},
		"condition":       {wire.Response{Status: wire.StatusConditionFailed, Replayed: true, Payload: wire.AppendFailed(nil, []wire.FailedCondition{{}})}, 412, "no", ""},
	} {
		m.answer = &c.answer
		resp, body := send(t, s, "PUT", keysPath+"k", "v", "Idempotency-Key", "a key")
		if p := decode(t, body); resp.StatusCode != c.status || p.Applied != c.applied || !strings.Contains(p.Detail, c.says) || p.Retryable != (c.status == 503) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
	m.answer = &wire.Response{Replayed: true, Payload: wire.AppendVersion(nil, 77)}
	if resp, body := send(t, s, "PUT", keysPath+"k", "v", "Idempotency-Key", "a key"); resp.StatusCode != 200 || resp.Header.Get("ETag") != `"77"` || !strings.Contains(body, `"version":"77"`) {
		t.Errorf("a replay: %d %s", resp.StatusCode, body)
	}
}

func TestIdempotencyElement_TakesOnePrintableText(t *testing.T) {
	for _, c := range []struct {
		keys []string
		want wire.Status
	}{
		{[]string{"k"}, wire.StatusOK}, {[]string{strings.Repeat("k", 255)}, wire.StatusOK}, {[]string{` "quoted" ~`}, wire.StatusOK},
		{[]string{""}, wire.StatusBadRequest}, {[]string{strings.Repeat("k", 256)}, wire.StatusBadRequest}, {[]string{"a\x7f"}, wire.StatusBadRequest},
		{[]string{"a\tb"}, wire.StatusBadRequest}, {[]string{"é"}, wire.StatusBadRequest}, {[]string{"a", "b"}, wire.StatusBadRequest},
	} {
		ext, ref := idempotencyElement(c.keys)
		got := wire.StatusOK
		if ref != nil {
			got = ref.Status
		}
		if got != c.want || (got == wire.StatusOK) != (len(ext) > 0) {
			t.Errorf("%q: %v, %d bytes", c.keys, ref, len(ext))
		}
	}
	if ext, ref := idempotencyElement(nil); ext != nil || ref != nil {
		t.Errorf("nothing: %x, %v", ext, ref)
	}
}
