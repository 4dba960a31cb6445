package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// fakeBackups gives copy as a backup, and takes anything in.
type fakeBackups struct {
	copy []byte
	// first ends a backup before its first byte, last behind its last one.
	first, last wire.Response
	// restored answers a restore that was read to its end.
	restored wire.Response

	namespace string
	merge     bool
	got       int64
	sum       uint64
	err       error
	begun     chan struct{}        // if not nil: told when a restore begins to read
	entered   chan context.Context // if not nil: a restore tells its context there, and ends with it
}

func (f *fakeBackups) Backup(_ context.Context, _ any, namespace string, begin func(wire.Revision, string) io.Writer) wire.Response {
	f.namespace = namespace
	if f.first.Status != wire.StatusOK {
		return f.first
	}
	if _, err := begin(77<<20, "name.kvbackup").Write(f.copy); err != nil {
		return wire.Response{Status: wire.StatusCancelled}
	}
	return f.last
}

func (f *fakeBackups) Restore(ctx context.Context, _ any, namespace string, merge bool, body io.Reader) wire.Response {
	f.namespace, f.merge = namespace, merge
	if f.entered != nil {
		f.entered <- ctx
		<-ctx.Done()
		return wire.Response{Status: wire.StatusDraining}
	}
	if f.begun != nil {
		f.begun <- struct{}{}
	}
	var all bytes.Buffer
	f.got, f.err = io.Copy(&all, body)
	f.sum = wire.Checksum(all.Bytes())
	if f.err != nil {
		return wire.Response{Status: wire.StatusBadRequest, Payload: []byte("the body ended early; nothing was changed")}
	}
	return f.restored
}

func TestBackup_Whole_HasItsHeadersAndAllBytes(t *testing.T) {
	f := &fakeBackups{copy: bytes.Repeat([]byte("0123456789"), 100_000)}
	_, s := start(t, func(o *Options) { o.Backups = f })
	resp, body := send(t, s, "POST", "/api/v1/admin/backup?namespace=app/x", "")
	if resp.StatusCode != 200 || body != string(f.copy) || f.namespace != "app/x" {
		t.Fatalf("%s, %d bytes of namespace %q", resp.Status, len(body), f.namespace)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/octet-stream", "X-KV-Revision": fmt.Sprint(77 << 20), "Content-Disposition": `attachment; filename="name.kvbackup"`, "Cache-Control": "no-store",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// An error that comes behind the first byte must not leave an answer that looks whole, to whatever client.
func TestBackup_FailsInTheMidst_AnswerIsBrokenOff(t *testing.T) {
	for _, size := range []int{10, 1 << 20} {
		f := &fakeBackups{copy: make([]byte, size), last: wire.Response{Status: wire.StatusCompacted}}
		_, s := start(t, func(o *Options) { o.Backups = f })
		for _, version := range []string{"1.1", "1.0"} {
			c, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := fmt.Fprintf(c, "POST /api/v1/admin/backup HTTP/%s\r\nHost: test\r\nContent-Length: 0\r\n\r\n", version); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "POST"})
			if err != nil {
				continue // not even its headers came
			}
			b, err := io.ReadAll(resp.Body)
			// HTTP/1.0 marks the end of such a body by that of the connection alone: there the trailer that it lacks tells.
			if err == nil && version == "1.1" {
				t.Errorf("%d bytes by HTTP/%s: it reads as a whole answer of %d bytes", size, version, len(b))
			}
		}
	}
}

func TestBackup_FailsBeforeTheFirstByte_IsAProblem(t *testing.T) {
	f := &fakeBackups{first: *refusalOf(wire.StatusBusy, 5000)}
	_, s := start(t, func(o *Options) { o.Backups = f })
	resp, body := send(t, s, "POST", "/api/v1/admin/backup", "")
	if p := decode(t, body); resp.StatusCode != 503 || p.Code != "KV-2001" || !p.Retryable || p.Applied != "no" || resp.Header.Get("Retry-After") != "5" {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func refusalOf(st wire.Status, retryMs uint32) *wire.Response {
	r := wire.ErrorResponse(&wire.Refusal{Status: st, RetryAfterMs: retryMs}, nil)
	return &r
}

func TestBackupRestore_BadRequests_AreRefused(t *testing.T) {
	f := &fakeBackups{}
	_, s := start(t, func(o *Options) { o.Backups = f })
	for _, c := range []struct {
		method, target, body string
		status               int
		header               []string
	}{
		{"GET", "backup", "", 405, nil},
		{"GET", "restore", "", 405, nil},
		{"POST", "backup", "x", 400, nil},
		{"POST", "backup?mode=merge", "", 400, nil},
		{"POST", "backup?namespace=", "", 400, nil},
		{"POST", "backup?namespace=a&namespace=b", "", 400, nil},
		{"POST", "restore?mode=overwrite", "x", 400, nil},
		{"POST", "restore?force=1", "x", 400, nil},
		{"POST", "restore", "", 400, nil},
		{"POST", "restore", "x", 400, []string{"Content-Encoding", "gzip"}},
		{"POST", "restore", "x", 400, []string{"Idempotency-Key", "k"}},
	} {
		f.got, f.namespace = -1, "untouched"
		resp, body := send(t, s, c.method, "/api/v1/admin/"+c.target, c.body, c.header...)
		if resp.StatusCode != c.status || f.got != -1 || f.namespace != "untouched" {
			t.Errorf("%s %s: %s %s", c.method, c.target, resp.Status, body)
		}
		if p := decode(t, body); c.method == "POST" && strings.HasPrefix(c.target, "restore") && p.Applied != "no" {
			t.Errorf("%s %s: %s", c.method, c.target, body)
		}
	}
}

func TestRestore_BodyBeyondAllLimits_IsStreamed(t *testing.T) {
	f := &fakeBackups{restored: wire.Response{Payload: []byte(`{"records":3}`)}}
	_, s := start(t, func(o *Options) { o.Backups, o.BodyBytesMax = f, 1<<20 })
	body := strings.Repeat("0123456789abcdef", (wire.ValueBytesMax+4<<20)/16)
	resp, got := send(t, s, "POST", "/api/v1/admin/restore?mode=merge&namespace=app", body)
	if resp.StatusCode != 200 || got != `{"records":3}`+"\n" || f.got != int64(len(body)) || f.sum != wire.Checksum([]byte(body)) || !f.merge || f.namespace != "app" {
		t.Errorf("%s %s: %d bytes of %d, merge %v, namespace %q", resp.Status, got, f.got, len(body), f.merge, f.namespace)
	}
}

func TestRestore_Outcomes_KeepTheirCertainty(t *testing.T) {
	for st, want := range map[wire.Status]struct {
		status  int
		applied string
	}{
		wire.StatusInternal:        {504, "unknown"},
		wire.StatusNamespaceExists: {409, "no"},
		wire.StatusChecksum:        {422, "no"},
		wire.StatusDiskFull:        {503, "no"},
	} {
		f := &fakeBackups{restored: wire.Response{Status: st, Payload: []byte("this many")}}
		_, s := start(t, func(o *Options) { o.Backups = f })
		resp, body := send(t, s, "POST", "/api/v1/admin/restore", "x")
		if p := decode(t, body); resp.StatusCode != want.status || p.Applied != want.applied || p.Detail != "this many" {
			t.Errorf("%s: %s %s", st, resp.Status, body)
		}
	}
}

// A body may take as long as it needs while pieces of it come; silence ends it.
func TestRestore_SilentBody_IsCutOffButASlowOneIsNot(t *testing.T) {
	f := &fakeBackups{restored: wire.Response{Payload: []byte(`{}`)}}
	_, s := start(t, func(o *Options) { o.Backups, o.BodyTimeout = f, time.Second })
	ask := func(pieces, declared int) (*http.Response, error) {
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := fmt.Fprintf(c, "POST /api/v1/admin/restore HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n", declared*backupPieceBytes); err != nil {
			t.Fatal(err)
		}
		for range pieces {
			if _, err := c.Write(make([]byte, backupPieceBytes)); err != nil {
				return nil, err
			}
			time.Sleep(300 * time.Millisecond) // the pace is what is tested
		}
		return http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "POST"})
	}
	if resp, err := ask(5, 5); err != nil || resp.StatusCode != 200 || f.got != 5*backupPieceBytes {
		t.Errorf("a slow body: %v, %v, %d bytes", resp, err, f.got)
	}
	if resp, err := ask(1, 2); err != nil || resp.StatusCode != 400 || f.err == nil {
		t.Errorf("a body that stops: %v, %v, %v", resp, err, f.err)
	}
}

// A server that is to stop does not wait for a sender that is silent.
func TestRestore_ServerStopsWhileTheBodyIsSilent_EndsAtOnce(t *testing.T) {
	f := &fakeBackups{begun: make(chan struct{}, 1)}
	_, s := start(t, func(o *Options) { o.Backups, o.BodyTimeout = f, time.Hour })
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /api/v1/admin/restore HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\nKV"); err != nil {
		t.Fatal(err)
	}
	<-f.begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Config.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "POST"}); err != nil || resp.StatusCode != 400 {
		t.Errorf("%v, %v", resp, err)
	}
}

// A server that is to stop tells a restore under way, and does not wait until it is done.
func TestRestore_ServerStops_ItIsToldSo(t *testing.T) {
	f := &fakeBackups{entered: make(chan context.Context, 1)}
	_, s := start(t, func(o *Options) { o.Backups = f })
	answered := make(chan int, 1)
	go func() { // ends with the answer
		resp, err := http.Post(s.URL+"/api/v1/admin/restore", "application/octet-stream", strings.NewReader("x"))
		if err != nil {
			answered <- 0
			return
		}
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	ctx := <-f.entered
	if err := s.Config.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := <-answered; code != 503 || !errors.Is(context.Cause(ctx), errStopping) {
		t.Errorf("answered %d, ended by %v", code, context.Cause(ctx))
	}
}
