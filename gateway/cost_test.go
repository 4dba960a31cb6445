package gateway

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"kvstore/wire"
)

// fixedService answers each operation with the same answer at once: what is left is the door's own cost.
type fixedService struct {
	*feed
	get, put wire.Response
}

func newFixedService(valueBytes int) *fixedService {
	m := wire.Meta{Version: 123_456_789_012_345, CreatedAt: 1_700_000_000_123_456, UpdatedAt: 1_700_000_000_123_456, Checksum: 1 << 60}
	return &fixedService{
		feed: newFeed(),
		get:  wire.Response{Ext: wire.AppendExtMeta(nil, &m), Payload: bytes.Repeat([]byte("v"), valueBytes)},
		put:  wire.Response{Payload: wire.AppendVersion(nil, m.Version)},
	}
}

func (f *fixedService) Do(_ context.Context, _ any, r *wire.Request) wire.Response {
	if r.Op == wire.OpPut {
		return f.put
	}
	return f.get
}

// emptyHandler reads the body and answers with as many bytes as the door does.
func emptyHandler(w http.ResponseWriter, r *http.Request) {
	answer := "{\"version\":\"123456789012345\"}\n"
	if r.Method == http.MethodGet {
		answer = string(emptyValue)
	}
	_, _ = io.Copy(io.Discard, r.Body) // the client sends what it says
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.WriteString(w, answer) // the client is there
}

var emptyValue = bytes.Repeat([]byte("v"), 128)

// exchange sends the same request again and again over one connection. All answers have the length of the first.
func exchange(b *testing.B, pb *testing.PB, address string, request []byte) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Error(err)
		return
	}
	defer c.Close()
	if _, err := c.Write(request); err != nil {
		b.Error(err)
		return
	}
	counted := &countingReader{r: c}
	resp, err := http.ReadResponse(bufio.NewReader(counted), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Errorf("%v, %v", resp, err)
		return
	}
	answer := make([]byte, counted.n)
	for pb.Next() {
		if _, err = c.Write(request); err == nil {
			_, err = io.ReadFull(c, answer)
		}
		if err != nil {
			b.Error(err)
			return
		}
	}
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// What the REST door takes beyond an empty handler of net/http, over loopback; the client's part is in all of them.
func BenchmarkREST(b *testing.B) {
	get := "GET /api/v1/keys/kvbench/user1234567890123456789 HTTP/1.1\r\nHost: 127.0.0.1:7003\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n"
	put := fmt.Sprintf("PUT /api/v1/keys/kvbench/user1234567890123456789 HTTP/1.1\r\nHost: 127.0.0.1:7003\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\nAccept-Encoding: gzip\r\n\r\n%s", len(emptyValue), emptyValue)
	for _, c := range []struct{ name, request string }{{"get", get}, {"put", put}} {
		for _, own := range []bool{false, true} {
			side := "empty"
			if own {
				side = "door"
			}
			b.Run(c.name+"/"+side, func(b *testing.B) {
				s := httptest.NewUnstartedServer(nil)
				s.Config = New(Options{Service: newFixedService(len(emptyValue))}).HTTPServer()
				if !own {
					s.Config.Handler = http.HandlerFunc(emptyHandler)
				}
				s.Start()
				defer s.Close()
				b.ReportAllocs()
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) { exchange(b, pb, s.Listener.Addr().String(), []byte(c.request)) })
			})
		}
	}
}
