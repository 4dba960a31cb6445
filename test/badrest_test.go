package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// Bad input on the REST port, over raw sockets: an HTTP library would mend it. As on the binary port, each
// case ends in the documented status or in a closed connection, a well-behaved client notices nothing,
// and memory stays bounded.

// restAnswer is an answer with what a problem document holds.
type restAnswer struct {
	*http.Response
	body    []byte
	problem struct {
		Type      string
		Title     string
		Status    int
		Detail    string
		Code      string
		Retryable *bool
		Applied   string
	}
}

// raw sends bytes to the REST port and reads the answers to n requests.
func (b *badServer) raw(t *testing.T, method string, request []byte) *restAnswer {
	t.Helper()
	c, err := net.Dial("tcp", b.n.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() { // ends with the connection; beside the reading, since the answer may come before the end
		_, err := c.Write(request)
		sent <- err
	}()
	a := readAnswer(t, bufio.NewReader(c), method)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	<-sent // an error means that the server did not want the rest
	return a
}

func readAnswer(t *testing.T, r *bufio.Reader, method string) *restAnswer {
	t.Helper()
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	a := &restAnswer{Response: resp}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatalf("the answer %s ends early: %v", resp.Status, err)
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") && method != http.MethodHead {
		if err := json.Unmarshal(a.body, &a.problem); err != nil {
			t.Fatalf("a problem that is not JSON: %v: %s", err, a.body)
		}
	}
	return a
}

// do sends one well-formed request with an arbitrary target.
func (b *badServer) do(t *testing.T, method, target, headers string, body []byte) *restAnswer {
	t.Helper()
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: kvstore\r\nContent-Length: %d\r\n%s\r\n", method, target, len(body), headers)
	return b.raw(t, method, append([]byte(head), body...))
}

// wantProblem checks status, code and applied of a problem document.
func (a *restAnswer) wantProblem(t *testing.T, status int, st wire.Status, applied string) {
	t.Helper()
	p := &a.problem
	if a.StatusCode != status || p.Status != status || p.Code != st.Info().Code || p.Applied != applied || p.Title == "" || p.Detail == "" || p.Retryable == nil {
		t.Errorf("answered by %s %q, code %s, applied %q, retryable %v: %s; want %d, code %s, applied %q", a.Status, a.Header.Get("Content-Type"), p.Code, p.Applied, p.Retryable, a.body, status, st.Info().Code, applied)
	}
}

const keys = "/api/v1/keys/"

func TestBadREST_RequestRefused_ProblemSaysWhyAndNothingWasApplied(t *testing.T) {
	b := startBad(t)
	long := strings.Repeat("k", wire.KeyBytesMax+1)
	for name, k := range map[string]struct {
		method, target, headers string
		body                    string
		status                  int
		code                    wire.Status
		applied                 string
	}{
		"key of 0 bytes":                    {"PUT", keys, "", "v", 400, wire.StatusBadKey, "no"},
		"GET of a key of 0 bytes":           {"GET", keys, "", "", 400, wire.StatusBadKey, ""},
		"key of 1025 bytes":                 {"PUT", keys + long, "", "v", 400, wire.StatusBadKey, "no"},
		"GET of a key of 1025 bytes":        {"GET", keys + long, "", "", 400, wire.StatusBadKey, ""},
		"key of 1025 bytes when decoded":    {"DELETE", keys + strings.Repeat("%6B", wire.KeyBytesMax+1), "", "", 400, wire.StatusBadKey, "no"},
		"key of invalid UTF-8":              {"PUT", keys + "a%ff", "", "v", 400, wire.StatusBadKey, "no"},
		"key with half a surrogate":         {"PUT", keys + "%ed%a0%80", "", "v", 400, wire.StatusBadKey, "no"},
		"unknown parameter":                 {"PUT", keys + "refused?ttl=5", "", "v", 400, wire.StatusBadRequest, "no"},
		"parameter twice":                   {"PUT", keys + "refused?ttl_seconds=5&ttl_seconds=6", "", "v", 400, wire.StatusBadRequest, "no"},
		"time to live that is no number":    {"PUT", keys + "refused?ttl_seconds=soon", "", "v", 400, wire.StatusBadRequest, "no"},
		"time to live of 0":                 {"PUT", keys + "refused?ttl_seconds=0", "", "v", 400, wire.StatusBadRequest, "no"},
		"time to live beyond all":           {"PUT", keys + "refused?ttl_seconds=99999999999999999999", "", "v", 400, wire.StatusBadRequest, "no"},
		"tag without a name":                {"PUT", keys + "refused?tag.=v", "", "v", 400, wire.StatusBadRequest, "no"},
		"tag with a bad name":               {"PUT", keys + "refused?tag.A%20B=v", "", "v", 400, wire.StatusBadRequest, "no"},
		"malformed query":                   {"PUT", keys + "refused?a=%zz", "", "v", 400, wire.StatusBadRequest, "no"},
		"namespace that does not exist":     {"PUT", keys + "refused?namespace=nowhere", "", "v", 404, wire.StatusNoNamespace, "no"},
		"checksum of other bytes":           {"PUT", keys + "refused", "X-KV-Checksum: xxh64=0000000000000001\r\n", "v", 422, wire.StatusChecksum, "no"},
		"checksum that is none":             {"PUT", keys + "refused", "X-KV-Checksum: md5=1\r\n", "v", 400, wire.StatusBadRequest, "no"},
		"condition on a missing key":        {"PUT", keys + "refused", "If-Match: \"7\"\r\n", "v", 412, wire.StatusConditionFailed, "no"},
		"ETag that we never gave out":       {"PUT", keys + "refused", "If-Match: W/\"x\"\r\n", "v", 412, wire.StatusConditionFailed, "no"},
		"delete under a condition":          {"DELETE", keys + "refused", "If-Match: *\r\n", "", 412, wire.StatusConditionFailed, "no"},
		"If-None-Match with a version":      {"PUT", keys + "refused", "If-None-Match: \"7\"\r\n", "v", 400, wire.StatusBadRequest, "no"},
		"GET with a consistency of its own": {"GET", keys + "refused?consistency=maybe", "", "", 400, wire.StatusBadRequest, ""},
		"GET of a revision to come":         {"GET", keys + "refused?revision=18446744073709551615", "", "", 400, wire.StatusFutureRevision, ""},
		"missing key":                       {"GET", keys + "refused", "", "", 404, wire.StatusNotFound, ""},
	} {
		b.run(t, name, cheapBytes, func(t *testing.T) {
			b.do(t, k.method, k.target, k.headers, []byte(k.body)).wantProblem(t, k.status, k.code, k.applied)
			if a := b.do(t, "GET", keys+"refused", "", nil); a.StatusCode != http.StatusNotFound {
				t.Errorf("a refused request left %s %q", a.Status, a.body)
			}
		})
	}
	b.run(t, "escape that is none", cheapBytes, func(t *testing.T) {
		// net/http itself refuses such a request line, before any of our code.
		if a := b.do(t, "PUT", keys+"refused%zz", "", []byte("v")); a.StatusCode != http.StatusBadRequest {
			t.Errorf("answered by %s", a.Status)
		}
	})
	b.run(t, "method that is not served", cheapBytes, func(t *testing.T) {
		for _, method := range []string{"POST", "CONNECT", "TRACE", "BREW"} {
			if a := b.do(t, method, keys+"refused", "", nil); a.StatusCode != http.StatusMethodNotAllowed || a.Header.Get("Allow") == "" {
				t.Errorf("%s is answered by %s, Allow %q", method, a.Status, a.Header.Get("Allow"))
			}
		}
	})
	b.run(t, "route that does not exist", cheapBytes, func(t *testing.T) {
		for _, target := range []string{"/", "/api/v1/key/a", "/api/v2/keys/a", "/api/v1/admin/../keys/a", "/debug/pprof/", "//api/v1/keys/a"} {
			if a := b.do(t, "GET", target, "", nil); a.StatusCode != http.StatusNotFound || a.problem.Code == "" {
				t.Errorf("%s is answered by %s: %s", target, a.Status, a.body)
			}
		}
	})
}

// TestBadREST_KeysAreTakenAsWritten_NothingIsCleanedOrRedirected.
func TestBadREST_KeysAreTakenAsWritten_NothingIsCleanedOrRedirected(t *testing.T) {
	b := startBad(t)
	for target, key := range map[string]string{
		"a//b":                                "a//b",
		"a/b":                                 "a/b",
		"a%2Fc":                               "a/c",
		"a/../b":                              "a/../b",
		"..":                                  "..",
		"../../etc":                           "../../etc",
		"%2e%2e/passwd":                       "../passwd",
		".":                                   ".",
		"trailing/":                           "trailing/",
		"/":                                   "/",
		"%20":                                 " ",
		"a+b":                                 "a+b",
		"%00":                                 "\x00",
		"100%25":                              "100%",
		"%252F":                               "%2F",
		"%C3%A9%F0%9D%84%9E":                  "é𝄞",
		strings.Repeat("k", wire.KeyBytesMax): strings.Repeat("k", wire.KeyBytesMax),
	} {
		value := []byte("value of " + target)
		if a := b.do(t, "PUT", keys+target, "Content-Type: text/x-test\r\n", value); a.StatusCode != http.StatusOK {
			t.Errorf("PUT %s: %s %s", target, a.Status, a.body)
			continue
		}
		if a := b.do(t, "GET", keys+target, "", nil); a.StatusCode != http.StatusOK || !bytes.Equal(a.body, value) || a.Header.Get("Content-Type") != "text/x-test" {
			t.Errorf("GET %s: %s %q %q", target, a.Status, a.Header.Get("Content-Type"), a.body)
		}
		// The binary protocol knows it by the decoded name, and by no other.
		if v, found := hello(t, b.n, 0).get(key); !found || !bytes.Equal(v, value) {
			t.Errorf("PUT %s is not the key %q: %q, %v", target, key, v, found)
		}
	}
	for target, other := range map[string]string{"a//b": "a/b", "a/../b": "b"} {
		if a := b.do(t, "GET", keys+other, "", nil); a.StatusCode == http.StatusOK && string(a.body) == "value of "+target {
			t.Errorf("PUT %s was cleaned to %s", target, other)
		}
	}
}

func TestBadREST_BodyThatLiesOrIsTooLarge_RefusedOrClosedAndNothingStored(t *testing.T) {
	b := startBad(t)
	chunked := func(n int) []byte {
		var w bytes.Buffer
		w.WriteString("PUT " + keys + "body HTTP/1.1\r\nHost: kvstore\r\nTransfer-Encoding: chunked\r\n\r\n")
		for left := n; left > 0; {
			c := min(left, 1<<20)
			fmt.Fprintf(&w, "%x\r\n", c)
			w.Write(make([]byte, c))
			w.WriteString("\r\n")
			left -= c
		}
		w.WriteString("0\r\n\r\n")
		return w.Bytes()
	}
	absent := func(t *testing.T) {
		t.Helper()
		if a := b.do(t, "GET", keys+"body", "", nil); a.StatusCode != http.StatusNotFound {
			t.Errorf("what was refused is there: %s, %d bytes", a.Status, len(a.body))
		}
	}
	b.run(t, "16 MiB", dearBytes, func(t *testing.T) {
		value := content("rest", 0, wire.ValueBytesMax)
		if a := b.do(t, "PUT", keys+"largest", "", value); a.StatusCode != http.StatusOK {
			t.Fatalf("answered by %s %s", a.Status, a.body)
		}
		if a := b.do(t, "GET", keys+"largest", "", nil); a.StatusCode != http.StatusOK || !bytes.Equal(a.body, value) {
			t.Errorf("%s, %d bytes come back", a.Status, len(a.body))
		}
	})
	b.run(t, "16 MiB and a byte", cheapBytes, func(t *testing.T) {
		b.do(t, "PUT", keys+"body", "", make([]byte, wire.ValueBytesMax+1)).wantProblem(t, 413, wire.StatusTooLarge, "no")
		absent(t)
	})
	b.run(t, "16 MiB in chunks", dearBytes, func(t *testing.T) {
		if a := b.raw(t, "PUT", bytes.Replace(chunked(wire.ValueBytesMax), []byte("keys/body"), []byte("keys/chun"), 1)); a.StatusCode != http.StatusOK {
			t.Errorf("answered by %s %s", a.Status, a.body)
		}
	})
	b.run(t, "16 MiB and a byte in chunks", dearBytes, func(t *testing.T) {
		b.raw(t, "PUT", chunked(wire.ValueBytesMax+1)).wantProblem(t, 413, wire.StatusTooLarge, "no")
		absent(t)
	})
	b.run(t, "Content-Length of 2^60", cheapBytes, func(t *testing.T) {
		b.raw(t, "PUT", []byte("PUT "+keys+"body HTTP/1.1\r\nHost: k\r\nContent-Length: 1152921504606846976\r\n\r\nv")).wantProblem(t, 413, wire.StatusTooLarge, "no")
		absent(t)
	})
	for name, length := range map[string]string{"negative": "-1", "no number": "many", "two": "3\r\nContent-Length: 4"} {
		b.run(t, "Content-Length: "+name, cheapBytes, func(t *testing.T) {
			a := b.raw(t, "PUT", []byte("PUT "+keys+"body HTTP/1.1\r\nHost: k\r\nContent-Length: "+length+"\r\n\r\nabcd"))
			if a.StatusCode != http.StatusBadRequest {
				t.Errorf("answered by %s %s", a.Status, a.body)
			}
			absent(t)
		})
	}
	b.run(t, "Content-Length longer than the body", cheapBytes, func(t *testing.T) {
		c, err := net.Dial("tcp", b.n.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "PUT "+keys+"body HTTP/1.1\r\nHost: k\r\nContent-Length: 100\r\n\r\nonly this"); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(c)
		if err != nil && !isClosed(err) {
			t.Fatal(err)
		}
		if len(said) > 0 && !bytes.HasPrefix(said, []byte("HTTP/1.1 400 ")) {
			t.Errorf("answered by %q", said)
		}
		absent(t)
	})
	b.run(t, "claims of 16 MiB without a byte", cheapBytes, func(t *testing.T) {
		var conns []net.Conn
		claim := func() {
			c, err := net.Dial("tcp", b.n.HTTPAddr())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			if _, err := fmt.Fprintf(c, "PUT %sbody HTTP/1.1\r\nHost: k\r\nContent-Length: %d\r\n\r\n", keys, wire.ValueBytesMax); err != nil {
				t.Fatal(err)
			}
		}
		for range 64 {
			claim()
		}
		// 1 GiB is claimed, four times the budget for bodies, and none of it sent: nobody else is refused.
		for range 20 {
			if a := b.do(t, "PUT", keys+"beside", "", []byte("v")); a.StatusCode != http.StatusOK {
				t.Fatalf("a small body beside silent claims is answered by %s", a.Status)
			}
		}
		// A small one: what is measured here is what the claims cost, and copies of 16 MiB cost most of the bound.
		if a := b.do(t, "GET", keys+"beside", "", nil); a.StatusCode != http.StatusOK {
			t.Errorf("a read beside them is answered by %s", a.Status)
		}
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		absent(t)
	})
	b.run(t, "body that drips, then an end", cheapBytes, func(t *testing.T) {
		c, err := net.Dial("tcp", b.n.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "PUT "+keys+"body HTTP/1.1\r\nHost: k\r\nContent-Length: 1000\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			b.by.progress(2)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		absent(t)
	})
	b.run(t, "compressed body is kept as it is", cheapBytes, func(t *testing.T) {
		// Nothing is unpacked: a bomb for whoever reads it is no bomb here.
		bomb := append([]byte{0x1f, 0x8b, 8, 0}, make([]byte, 1000)...)
		if a := b.do(t, "PUT", keys+"gzip", "Content-Encoding: gzip\r\n", bomb); a.StatusCode != http.StatusOK {
			t.Fatalf("answered by %s %s", a.Status, a.body)
		}
		if a := b.do(t, "GET", keys+"gzip", "Accept-Encoding: identity\r\n", nil); !bytes.Equal(a.body, bomb) || a.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: %d bytes, encoding %q", a.Status, len(a.body), a.Header.Get("Content-Encoding"))
		}
	})
}

func TestBadREST_HeadersAsBombs_RefusedWithinBounds(t *testing.T) {
	b := startBad(t)
	b.run(t, "header of 1 MiB", cheapBytes, func(t *testing.T) {
		a := b.do(t, "GET", keys+"a", "X-Large: "+strings.Repeat("x", 1<<20)+"\r\n", nil)
		if a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("answered by %s", a.Status)
		}
	})
	b.run(t, "10,000 headers", cheapBytes, func(t *testing.T) {
		var h strings.Builder
		for i := range 10_000 {
			fmt.Fprintf(&h, "X-H-%d: v\r\n", i)
		}
		if a := b.do(t, "GET", keys+"a", h.String(), nil); a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("answered by %s", a.Status)
		}
	})
	b.run(t, "request line of 1 MiB", cheapBytes, func(t *testing.T) {
		if a := b.do(t, "GET", keys+strings.Repeat("k", 1<<20), "", nil); a.StatusCode != http.StatusRequestHeaderFieldsTooLarge && a.StatusCode != http.StatusRequestURITooLong {
			t.Errorf("answered by %s", a.Status)
		}
	})
	b.run(t, "line break in a header", cheapBytes, func(t *testing.T) {
		if a := b.do(t, "PUT", keys+"a", "Content-Type: text/plain\rX: y\r\n", []byte("v")); a.StatusCode != http.StatusBadRequest {
			t.Errorf("answered by %s", a.Status)
		}
	})
	b.run(t, "garbage", cheapBytes, func(t *testing.T) {
		rng := random(seed(t), 1)
		for range 50 {
			c, err := net.Dial("tcp", b.n.HTTPAddr())
			if err != nil {
				t.Fatal(err)
			}
			// What is left of it when the server has answered and closed is of no interest.
			_, _ = c.Write(append(randomBytes(rng, 1+rng.IntN(2000)), "\r\n\r\n"...))
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(c)
			if err != nil && !isClosed(err) {
				t.Fatal(err)
			}
			if len(said) > 0 && !bytes.HasPrefix(said, []byte("HTTP/1.1 400 ")) && !bytes.HasPrefix(said, []byte("HTTP/1.1 505 ")) {
				t.Errorf("garbage is answered by %.100q", said)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	b.run(t, "the binary protocol", cheapBytes, func(t *testing.T) {
		c, err := net.Dial("tcp", b.n.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(append(wire.AppendHello(wire.AppendPreface(nil, 1, 1), &wire.Hello{}), "\r\n\r\n"...)); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil && !isClosed(err) {
			t.Fatal(err)
		}
	})
	b.run(t, "headers that never end", cheapBytes, func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes the five seconds that the server allows")
		}
		c, err := net.Dial("tcp", b.n.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET "+keys+"a HTTP/1.1\r\nHost: k\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil && !isClosed(err) {
			t.Fatalf("the server keeps a connection whose headers never end: %v", err)
		}
	})
	b.run(t, "a crowd of silent connections", cheapBytes, func(t *testing.T) {
		var crowd []net.Conn
		for range 300 {
			c, err := net.Dial("tcp", b.n.HTTPAddr())
			if err != nil {
				t.Fatal(err)
			}
			crowd = append(crowd, c)
		}
		if a := b.do(t, "GET", keys+"a", "", nil); a.StatusCode != http.StatusNotFound {
			t.Errorf("beside silent connections a request is answered by %s", a.Status)
		}
		for _, c := range crowd {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if !b.n.Running() {
		t.Fatalf("the node ended: %s", b.n.LastOutput())
	}
}
