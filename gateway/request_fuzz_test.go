package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"kvstore/wire"
)

// What If-Match and X-KV-Checksum name is exactly what this program would have written.
func FuzzParseETag(f *testing.F) {
	for _, s := range []string{`"7"`, ` "18446744073709551615" `, `"07"`, `"+7"`, `W/"7"`, `"`, `""`, `"18446744073709551616"`, `"7`, "xxh64=00000000000000ff", "xxh64=00000000000000FF", "xxh64=+000000000000001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := parseETag(s); ok && etag(v) != strings.TrimSpace(s) {
			t.Fatalf("%q names version %d, which is %s", s, v, etag(v))
		}
		if sum, ok := parseChecksum(s); ok && !strings.EqualFold(s[len("xxh64="):], fmt.Sprintf("%016x", sum)) {
			t.Fatalf("%q is checksum %016x", s, sum)
		}
	})
}

// Whatever request comes, it is answered in the forms of this interface; what is refused changes nothing, and what is
// said to be stored is what was sent.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"PUT /api/v1/keys/a%2Fb?ttl_seconds=5&tag.x=y HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nvalue",
		"PUT /api/v1/keys/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nIf-None-Match: *\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"PUT /api/v1/keys/k HTTP/1.1\r\nHost: h\r\nIf-Match: \"1048576\", \"7\"\r\nX-KV-Checksum: xxh64=00000000000000ff\r\nContent-Length: 1\r\n\r\nv",
		"GET /api/v1/keys/there?consistency=stale&max_age_ms=7&revision=3 HTTP/1.1\r\nHost: h\r\nIf-None-Match: W/\"1048576\"\r\n\r\n",
		"HEAD /api/v1/keys/there HTTP/1.1\r\nHost: h\r\n\r\n",
		"DELETE /api/v1/keys/there?namespace=n HTTP/1.1\r\nHost: h\r\nIf-Match: *\r\n\r\n",
		"POST /api/v1/keys/%zz HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET /api/v1/keys/?a=1;b=2 HTTP/1.1\r\nHost: h\r\n\r\n",
		"DELETE /api/v1/keys/k HTTP/1.1\r\nHost: h\r\nIdempotency-Key: 1\r\n\r\n",
		"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n", "GET /readyz?verbose HTTP/1.1\r\nHost: h\r\n\r\n",
		"POST " + membersPath + " HTTP/1.1\r\nHost: h\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}",
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		var sent bytes.Buffer
		req.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(req.Body, &sent), req.Body}
		m := &memory{version: 1 << 20, records: map[string]wire.Record{"there": {Meta: wire.Meta{Version: 1 << 20}, Value: []byte("old")}}, feed: newFeed()}
		m.feed.refuseWith(&wire.Response{Status: wire.StatusCompacted})
		before := maps.Clone(m.records)
		door := New(Options{Service: m})
		w := httptest.NewRecorder()
		door.ServeHTTP(w, req)
		switch {
		case w.Code < 200 || w.Code > 599:
			t.Fatalf("answered %d", w.Code)
		case w.Code >= 400:
			if len(m.records) != len(before) || string(m.records["there"].Value) != "old" {
				t.Fatalf("answered %d, and the records are %v", w.Code, m.records)
			}
			var p problem
			if w.Header().Get("Content-Type") == "application/problem+json" && req.Method != http.MethodHead {
				if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || p.Code == "" || p.Detail == "" {
					t.Fatalf("%d: %s: %+v, %v", w.Code, w.Body, p, err)
				}
			}
		case m.last.Op == wire.OpPut:
			rec, there := m.records[string(m.last.Key)]
			if !there || !bytes.Equal(rec.Value, sent.Bytes()) || w.Header().Get("ETag") != etag(rec.Meta.Version) {
				t.Fatalf("%q was sent, %q is stored, ETag %s", sent.Bytes(), rec.Value, w.Header().Get("ETag"))
			}
		case m.last.Op == wire.OpGet && w.Code == 200 && req.Method == http.MethodGet:
			if rec := m.records[string(m.last.Key)]; !bytes.Equal(w.Body.Bytes(), rec.Value) {
				t.Fatalf("%q is stored, %q was answered", rec.Value, w.Body)
			}
		}
	})
}
