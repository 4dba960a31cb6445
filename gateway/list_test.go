package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"kvstore/wire"
)

// pageOf makes the answer to a listing.
func pageOf(rev wire.Revision, cursor []byte, items ...wire.Item) *wire.Response {
	b := make([]byte, wire.ScanPageHeaderBytes)
	wire.PutScanPageHeader(b, rev, len(items), len(cursor))
	for i := range items {
		b = wire.AppendItem(b, &items[i])
	}
	return &wire.Response{Payload: append(b, cursor...)}
}

func TestList_QueryBecomesTheRequest(t *testing.T) {
	m, s := start(t, nil)
	m.answer = pageOf(1, nil)
	cursor := []byte("\x00\xffcursor")
	for query, want := range map[string]wire.ScanRequest{
		"": {}, "?prefix=a%2Fb&start=a&end=c&limit=7": {Prefix: []byte("a/b"), Start: []byte("a"), End: []byte("c"), Limit: 7},
		"?keys_only=true&reverse=1": {Flags: wire.ScanKeysOnly | wire.ScanReverse}, "?keys_only&reverse=false": {Flags: wire.ScanKeysOnly},
		"?delimiter=/": {Delimiter: []byte("/")}, "?limit=4294967295": {Limit: wire.ScanLimitMax},
		"?cursor=" + cursorText(cursor):                                     {Cursor: cursor},
		"?namespace=app&consistency=stale&max_age_ms=9&revision=3&prefix=p": {Prefix: []byte("p")},
	} {
		resp, body := send(t, s, "GET", listPath+query, "")
		if resp.StatusCode != 200 || body != `{"items":[],`+map[bool]string{true: `"common_prefixes":[],`}[want.Delimiter != nil]+`"next_cursor":"","revision":"1"}`+"\n" {
			t.Errorf("%s: %d %s", query, resp.StatusCode, body)
			continue
		}
		var got wire.ScanRequest
		if ref := wire.DecodeScanRequest(m.last.Payload, &got); ref != nil || m.last.Op != wire.OpScan {
			t.Fatal(m.last, ref)
		}
		if want.Limit == 0 {
			want.Limit = wire.ScanLimitDefault
		}
		want.BytesMax = wire.ScanBytesDefault
		for _, b := range []*[]byte{&want.Prefix, &want.Start, &want.End, &want.Cursor, &want.Delimiter} {
			*b = append([]byte{}, *b...)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: asked for %+v, want %+v", query, got, want)
		}
		if strings.Contains(query, "namespace") && (string(m.last.Namespace) != "app" || !m.last.Stale || m.last.MaxAgeMs != 9 || m.last.AtRevision != 3) {
			t.Errorf("%s: %+v", query, m.last)
		}
	}
	m.last = wire.Request{}
	for _, query := range []string{
		"?limit=0", "?limit=x", "?limit=-1", "?limit=4294967296", "?cursor=", "?cursor=!", "?cursor=AA==", "?cursor=AB", "?cursor=" + strings.Repeat("A", 4000), "?delimiter=", "?delimiter=%ff",
		"?delimiter=" + strings.Repeat("x", 65), "?count=true&delimiter=/", "?keys_only=yes", "?prefix=a&prefix=b", "?nonsense=1", "?max_age_ms=5", "?consistency=x", "?prefix=" + strings.Repeat("p", 1025), "?%zz",
		"?namespace=", "?revision=0", "?stream=1",
	} {
		if resp, body := send(t, s, "GET", listPath+query, ""); resp.StatusCode/100 != 4 || decode(t, body).Status != resp.StatusCode || m.last.Op != 0 {
			t.Errorf("%.60s: %d %s", query, resp.StatusCode, body)
		}
	}
	if resp, _ := send(t, s, "POST", listPath, ""); resp.StatusCode != 405 {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	if resp, body := send(t, s, "HEAD", listPath, ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %q", resp.StatusCode, body)
	}
	if resp, _ := send(t, s, "GET", keysPath, ""); resp.StatusCode != 400 {
		t.Errorf("an empty key: %d", resp.StatusCode)
	}
}

func TestList_PageIsTold_WithCommonPrefixesAndCursor(t *testing.T) {
	m, s := start(t, nil)
	meta := wire.Meta{Version: 9, CreatedAt: 1e15, UpdatedAt: 1e15, ExpiresAt: 2e15, Checksum: 1}
	ext := wire.AppendExtMeta(nil, &meta)
	ext = wire.AppendExtString(wire.AppendExtString(wire.AppendExtTag(wire.AppendExtTag(ext, "a", "1"), "b", `"`), wire.ExtContentType, "text/x"), wire.ExtEncoding, "br")
	cursor := []byte("\xfb\xff\xfe more")
	m.answer = pageOf(1<<63, cursor,
		wire.Item{Op: wire.OpGet, Ext: ext, Key: []byte("k<é"), Value: []byte("\xff\x00")}, wire.Item{Op: wire.OpScan, Key: []byte("p/")},
		wire.Item{Op: wire.OpGet, Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 10, CreatedAt: 1e15, UpdatedAt: 1e15}), Key: []byte("q")}, wire.Item{Op: wire.OpScan, Key: []byte("r/")})
	m.answer.Ext = wire.AppendExtU64(nil, wire.ExtAge, 2500)
	resp, body := send(t, s, "GET", listPath+"?delimiter=/", "")
	full := `{"key":"k\u003cé","value":"/wA=","version":"9","created_at":"2001-09-09T01:46:40Z","updated_at":"2001-09-09T01:46:40Z","expires_at":"2033-05-18T03:33:20Z","checksum":"xxh64=0000000000000001","content_type":"text/x","encoding":"br","tags":{"a":"1","b":"\""}}`
	bare := `{"key":"q","value":"","version":"10","created_at":"2001-09-09T01:46:40Z","updated_at":"2001-09-09T01:46:40Z","checksum":"xxh64=0000000000000000"}`
	end := `"next_cursor":"` + base64.RawURLEncoding.EncodeToString(cursor) + `","revision":"9223372036854775808"}` + "\n"
	if want := `{"items":[` + full + `,` + bare + `],"common_prefixes":["p/","r/"],` + end; resp.StatusCode != 200 || body != want || resp.Header.Get("X-KV-Age-Ms") != "3" {
		t.Errorf("%d %v\n got %s\nwant %s", resp.StatusCode, resp.Header, body, want)
	}
	if !json.Valid([]byte(body)) {
		t.Error("that is no JSON")
	}
	m.answer = pageOf(1, nil, wire.Item{Op: wire.OpGet, Ext: wire.AppendExtMeta(nil, &meta), Key: []byte("k")})
	if _, body := send(t, s, "GET", listPath+"?keys_only=true", ""); strings.Contains(body, `"value"`) || !strings.Contains(body, `"version":"9"`) {
		t.Errorf("keys only: %s", body)
	}
	for st, want := range map[wire.Status]int{wire.StatusCompacted: 410, wire.StatusFutureRevision: 400, wire.StatusNoNamespace: 404, wire.StatusNoLeader: 503, wire.StatusInternal: 504} {
		m.answer = &wire.Response{Status: st}
		if resp, body := send(t, s, "GET", listPath+"?cursor=AA", ""); resp.StatusCode != want || decode(t, body).Title != st.String() {
			t.Errorf("%s: %d %s", st, resp.StatusCode, body)
		}
	}
	good := pageOf(1, nil, wire.Item{Op: wire.OpGet, Key: []byte("k")}).Payload
	for _, payload := range [][]byte{nil, good[:len(good)-1], append(bytes.Clone(good), 0)} {
		m.answer = &wire.Response{Payload: payload}
		if resp, body := send(t, s, "GET", listPath, ""); resp.StatusCode != 504 || decode(t, body).Title != "INTERNAL" {
			t.Errorf("page % x: %d %s", payload, resp.StatusCode, body)
		}
	}
}

// counter is a Service that counts n keys, some at a time.
type counter struct {
	*memory
	n, step int
	asked   []wire.ScanRequest
}

func (c *counter) Do(_ context.Context, _ any, r *wire.Request) wire.Response {
	var q wire.ScanRequest
	if ref := wire.DecodeScanRequest(r.Payload, &q); ref != nil {
		return wire.ErrorResponse(ref, nil)
	}
	from := 0
	if len(q.Cursor) != 0 {
		from, _ = strconv.Atoi(string(q.Cursor))
	}
	c.asked = append(c.asked, q)
	to := min(from+c.step, c.n)
	cursor := ""
	if to < c.n {
		cursor = strconv.Itoa(to)
	}
	b := make([]byte, wire.ScanPageHeaderBytes)
	wire.PutScanCountHeader(b, 77, to-from, len(cursor))
	return wire.Response{Payload: append(b, cursor...)}
}

func TestList_Count_AddsUpPagesOrGivesACursor(t *testing.T) {
	for _, n := range []int{0, 1, 10, 95} {
		c := &counter{n: n, step: 10, memory: &memory{feed: newFeed()}}
		_, s := start(t, func(o *Options) { o.Service = c })
		if resp, body := send(t, s, "GET", listPath+"?count=true&prefix=p", ""); resp.StatusCode != 200 || body != `{"count":`+strconv.Itoa(n)+`,"next_cursor":"","revision":"77"}`+"\n" {
			t.Errorf("%d keys: %d %s", n, resp.StatusCode, body)
		}
		for _, q := range c.asked {
			if string(q.Prefix) != "p" || q.Flags != wire.ScanCount {
				t.Errorf("asked for %+v", q)
			}
		}
	}
	// Out of time after each page: what was counted is told, and the rest can be asked for.
	c := &counter{n: 95, step: 10, memory: &memory{feed: newFeed()}}
	_, s := start(t, func(o *Options) { o.Service, o.RequestTimeout = c, 1 })
	total, cursor := 0, ""
	for range 20 {
		target := listPath + "?count=true"
		if cursor != "" {
			target += "&cursor=" + url.QueryEscape(cursor)
		}
		resp, body := send(t, s, "GET", target, "")
		var doc struct {
			Count      int
			NextCursor string `json:"next_cursor"`
		}
		if err := json.Unmarshal([]byte(body), &doc); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.StatusCode, body, err)
		}
		total += doc.Count
		if cursor = doc.NextCursor; cursor == "" {
			break
		}
	}
	if total != 95 || len(c.asked) != 10 {
		t.Errorf("%d keys in %d pages", total, len(c.asked))
	}
}

// A cursor has one form, which is what next_cursor said.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"AA", "AB", "", "-_", "+/", "AA==", "AA\n", "AAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, ref := parseCursor(s)
		if ref == nil && (cursorText(b) != s || len(b) == 0 || len(b) > wire.CursorBytesMax || url.QueryEscape(s) != s) {
			t.Fatalf("%q is the cursor % x", s, b)
		}
		if back, ref := parseCursor(cursorText([]byte(s))); ref == nil && string(back) != s {
			t.Fatalf("%q came back as %q", s, back)
		}
	})
}
