package gateway

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"kvstore/wire"
)

func TestAccept_PicksWhatTheClientLikesBest(t *testing.T) {
	for header, want := range map[string]accepted{
		"": {}, "identity": {}, "br": {}, "gzip": {codeGzip, false}, "zstd": {codeZstd, false}, "gzip, deflate, br, zstd": {codeZstd, false},
		"gzip, deflate, br": {codeGzip, false}, "GZIP": {codeGzip, false}, "x-gzip": {codeGzip, false}, "zstd;q=0.5, gzip": {codeGzip, false}, "zstd;q=0.5,gzip;q=0.5": {codeZstd, false},
		"zstd ; q=0 , gzip;q=0.001": {codeGzip, false}, "gzip;q=0": {}, "*": {codeZstd, false}, "*;q=0": {}, "*;q=0.5, zstd;q=0": {codeGzip, false}, "gzip;q=0.5, identity": {}, "gzip;q=0.5, identity;q=0.5": {codeGzip, false},
		"identity;q=0": {}, "identity;q=0, gzip": {codeGzip, true}, "gzip, *;q=0": {codeGzip, true}, "*;q=0, gzip, identity;q=0.1": {codeGzip, false}, "identity;q=0, *;q=0.1": {codeZstd, true},
		"gzip;q=2": {}, "gzip;q=1.001": {}, "gzip;q=0.0001": {}, "gzip;q=": {}, "gzip;level=9": {}, "gzip;q=1.000": {codeGzip, false}, "gzip;Q=0.9": {codeGzip, false}, "gzip;q=-1": {}, ",,gzip,,": {codeGzip, false},
		strings.Repeat("x,", acceptPartsMax) + "gzip": {},
	} {
		if got := accept([]string{header}); got != want {
			t.Errorf("%q: %+v, want %+v", header, got, want)
		}
	}
	if got := accept([]string{"zstd;q=0", "gzip"}); got != (accepted{codeGzip, false}) {
		t.Errorf("two headers: %+v", got)
	}
}

// decoded gives a body as it was before its coding.
func decoded(t *testing.T, coding, body string) string {
	t.Helper()
	var r io.Reader = strings.NewReader(body)
	switch coding {
	case "gzip":
		g, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		r = g
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(8<<20)) // RFC 9659
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJSON_IsEncodedAsAsked_ValuesNever(t *testing.T) {
	m, s := start(t, nil)
	value := bytes.Repeat([]byte("value "), 1<<16)
	m.records["k"] = wire.Record{Meta: wire.Meta{Version: 1}, Value: value}
	get := func(target, header string) (coding, body string, raw int) {
		t.Helper()
		resp, got := send(t, s, "GET", target, "", "Accept-Encoding", header)
		if resp.StatusCode != 200 && resp.StatusCode != 404 {
			t.Fatalf("%s: %d %s", target, resp.StatusCode, got)
		}
		if isValue := strings.HasPrefix(target, keysPath+"k"); isValue != (resp.Header.Get("Vary") == "") {
			t.Errorf("%s: Vary %q", target, resp.Header.Get("Vary"))
		}
		coding = resp.Header.Get("Content-Encoding")
		return coding, decoded(t, coding, got), len(got)
	}
	for range 2 { // the second round has used encoders
		for _, header := range []string{"zstd", "gzip", "identity", "br", "", "identity;q=0, gzip", "zstd, gzip;q=0.5"} {
			if coding, body, _ := get(keysPath+"k", header); coding != "" || body != string(value) {
				t.Errorf("%q: a value with coding %q, %d bytes", header, coding, len(body))
			}
		}
		m.answer = pageOf(1, nil, wire.Item{Op: wire.OpGet, Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 1}), Key: []byte("k"), Value: value})
		_, plain, size := get(listPath, "identity")
		if !json.Valid([]byte(plain)) {
			t.Fatalf("%.100s", plain)
		}
		for header, want := range map[string]string{"zstd": "zstd", "gzip": "gzip", "zstd, gzip": "zstd", "br": "", "": "", "identity;q=0": "", "identity;q=0, gzip": "gzip"} {
			coding, body, raw := get(listPath, header)
			if coding != want || body != plain || want != "" && raw >= size/4 {
				t.Errorf("%q: coding %q, %d bytes of %d, equal %v", header, coding, raw, size, body == plain)
			}
		}
		m.answer = &wire.Response{Payload: []byte(`{"a":"` + strings.Repeat("a", codeBytesMin) + `"}`)}
		if coding, body, _ := get(statusPath, "gzip"); coding != "gzip" || body != string(m.answer.Payload)+"\n" {
			t.Errorf("a status of %d bytes: coding %q, %q", len(m.answer.Payload), coding, body)
		}
		m.answer = &wire.Response{Payload: []byte(`{"a":1}`)}
		if coding, _, _ := get(statusPath, "gzip"); coding != "" {
			t.Errorf("a small status: coding %q", coding)
		}
		if coding, body, _ := get(statusPath, "gzip, identity;q=0"); coding != "gzip" || body != "{\"a\":1}\n" {
			t.Errorf("a small status, never plain: coding %q, %q", coding, body)
		}
		m.answer = nil
		if coding, body, _ := get(keysPath+"absent", "gzip, identity;q=0"); coding != "gzip" || decode(t, body).Title != "NOT_FOUND" {
			t.Errorf("a problem: coding %q, %q", coding, body)
		}
	}
}

// An answer whose reader is gone, or that is written in the smallest pieces, leaves the encoders fit for others.
func TestJSON_EncodersAreReused_WhateverBecameOfTheAnswer(t *testing.T) {
	door := New(Options{Service: &memory{feed: newFeed()}})
	for range 4 {
		for _, accepts := range []string{"gzip", "zstd"} {
			door.streamJSON(&recorder{ResponseWriter: goneWriter{httptest.NewRecorder()}, accepted: accept([]string{accepts})}, 0, false, func(j *jsonWriter) { j.base64(make([]byte, 1<<20)) })
			rec := httptest.NewRecorder()
			door.streamJSON(&recorder{ResponseWriter: rec, accepted: accept([]string{accepts})}, 0, false, func(j *jsonWriter) {
				j.open('[')
				for range 1 << 12 {
					j.next()
					j.raw("1")
				}
				j.close(']')
			})
			if got := decoded(t, accepts, rec.Body.String()); got != "["+strings.TrimSuffix(strings.Repeat("1,", 1<<12), ",")+"]\n" {
				t.Fatalf("%s: %.100q", accepts, got)
			}
		}
	}
}

// goneWriter is a connection that has ended.
type goneWriter struct{ *httptest.ResponseRecorder }

func (goneWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
