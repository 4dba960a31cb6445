package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kvstore/wire"
)

// logged is a log of requests on a clock that the test moves.
type logged struct {
	*requestLog
	t    *testing.T
	path string
	now  atomic.Int64
	told safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newLogged(t *testing.T, o Options) *logged {
	l := &logged{requestLog: new(requestLog), t: t, path: filepath.Join(t.TempDir(), "requests.log")}
	o.RequestLogFile, o.Logger = l.path, slog.New(slog.NewTextHandler(&l.told, nil))
	l.init(&o, l.now.Load)
	t.Cleanup(l.close)
	return l
}

// flush waits until all lines are written.
func (l *requestLog) flush() {
	l.mu.Lock()
	writer := l.writer
	l.mu.Unlock()
	if writer != nil {
		<-writer
	}
}

// lines reads the lines of a file; one that is not there has none.
func lines(t *testing.T, path string) (entries []requestEntry) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var e requestEntry
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		entries = append(entries, e)
	}
	return entries
}

// offer is what a door does for each request.
func (l *logged) offer(id string, failed bool) {
	if l.wants(failed) {
		l.note(&requestEntry{ID: id, Protocol: protocolGRPC, Route: "/x/Y", Failed: failed})
	}
}

func TestRequestLog_Modes_WantWhatTheySay(t *testing.T) {
	for _, test := range []struct {
		mode            string
		sample          int
		failures, wells int // of 10,000 each
		within          int
	}{
		{RequestLogOff, 1, 0, 0, 0},
		{"", 1, 0, 0, 0},
		{RequestLogErrors, 1, 10_000, 0, 0},
		{RequestLogSampled, 10, 10_000, 1000, 250}, // 250 is more than eight times the standard deviation
		{RequestLogSampled, 1, 10_000, 10_000, 0},
		{RequestLogAll, 10, 10_000, 10_000, 0},
	} {
		l := newLogged(t, Options{RequestLog: test.mode, RequestLogSample: test.sample})
		failures, wells := 0, 0
		for range 10_000 {
			if l.wants(true) {
				failures++
			}
			if l.wants(false) {
				wells++
			}
		}
		if failures != test.failures || wells < test.wells-test.within || wells > test.wells+test.within {
			t.Errorf("%q, one in %d: %d failures and %d others of 10,000 each", test.mode, test.sample, failures, wells)
		}
	}
}

// No flood writes more than its rate; the next line tells what is missing; and a flood of others hides no failure.
func TestRequestLog_Flood_KeepsTheRateAndTellsWhatIsMissing(t *testing.T) {
	l := newLogged(t, Options{RequestLog: RequestLogAll, RequestLogRate: 5})
	for i := range 1000 {
		l.offer(fmt.Sprint("well-", i), false)
	}
	l.offer("failure", true)
	l.flush()
	got := lines(t, l.path)
	if len(got) != 6 || got[4].ID != "well-4" || got[4].Dropped != 0 || got[5].ID != "failure" || got[5].Dropped != 995 {
		t.Fatalf("%d lines, the last %+v", len(got), got[len(got)-1])
	}
	l.now.Add(int64(time.Second))
	for range 6 {
		l.offer("later", false)
	}
	l.flush()
	if got = lines(t, l.path)[6:]; len(got) != 5 || got[0].Dropped != 0 {
		t.Errorf("a second later: %+v", got)
	}
	if n, d := l.lines.Load(), l.dropped.Load(); n != 11 || d != 996 {
		t.Errorf("%d lines, %d dropped", n, d)
	}
}

// A file that can't be written fails nobody: it is counted, told once, and tried again later.
func TestRequestLog_UnwritableFile_IsToldOnceAndTriedAgain(t *testing.T) {
	l := newLogged(t, Options{RequestLog: RequestLogAll})
	dir := filepath.Dir(l.path)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		l.offer(fmt.Sprint(i), false)
		l.flush()
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l.offer("before the pause is over", false)
	l.flush()
	l.now.Add(int64(requestLogRetry))
	l.offer("after", false)
	l.flush()
	if got := lines(t, l.path); len(got) != 1 || got[0].ID != "after" || got[0].Dropped != 6 {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(l.told.String(), "cannot write the request log"); n != 1 || l.unwritten.Load() != 6 || l.dropped.Load() != 6 {
		t.Errorf("told %d times, %d unwritten, %d dropped:\n%s", n, l.unwritten.Load(), l.dropped.Load(), l.told.String())
	}
}

func TestRequestLog_FileIsMovedAway_BeginsANewOne(t *testing.T) {
	l := newLogged(t, Options{RequestLog: RequestLogAll})
	l.offer("1", false)
	l.flush()
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		t.Fatal(err)
	}
	l.now.Add(int64(requestLogLook))
	l.offer("2", false)
	l.flush()
	if old, now := lines(t, l.path+".1"), lines(t, l.path); len(old) != 1 || len(now) != 1 || now[0].ID != "2" {
		t.Errorf("%+v, %+v", old, now)
	}
}

// A disk that hangs holds up no request and no stop, and no more than requestLogLinesMax lines wait for it.
func TestRequestLog_DiskHangs_NobodyWaits(t *testing.T) {
	l := newLogged(t, Options{RequestLog: RequestLogAll, RequestLogRate: 1 << 20})
	if err := syscall.Mkfifo(l.path, 0o600); err != nil {
		t.Skip("cannot make a pipe that hangs:", err)
	}
	const n = 4 * requestLogLinesMax
	for i := range n {
		l.offer(fmt.Sprint(i), false) // opening the pipe waits for its reader
	}
	// The goroutine that writes took none, one, or many of them with it.
	if d := l.dropped.Load(); d < n-2*requestLogLinesMax-1 || d > n-requestLogLinesMax {
		t.Errorf("%d of %d dropped", d, n)
	}
	began := time.Now()
	l.close()
	if took := time.Since(began); took < requestLogCloseTime || !strings.Contains(l.told.String(), "too slow") {
		t.Errorf("closed after %s:\n%s", took, l.told.String())
	}
	l.offer("after the end", false)
	reader, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	read := make(chan int)
	go func() { // ends when the pipe is closed below
		b, _ := io.ReadAll(reader)
		read <- bytes.Count(b, []byte("\n"))
	}()
	l.flush()
	if err := l.file.close(); err != nil {
		t.Error(err)
	}
	if got := <-read; uint64(got)+l.dropped.Load() != n+1 {
		t.Errorf("%d lines and %d dropped of %d", got, l.dropped.Load(), n+1)
	}
}

// What REST logs: one line for each request, with what came of it, and nothing of what users store.
func TestREST_RequestLog_TellsWhatCameOfItAndNoData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.log")
	m, s := start(t, func(o *Options) { o.RequestLog, o.RequestLogFile = RequestLogAll, path })
	put := wire.Response{Payload: wire.AppendVersion(nil, 7<<20)}
	document := `{"items":[{"key":"secret","text":"secret","tags":{"secret":"secret"}}]}`
	unknown := wire.Response{Status: wire.StatusTimeout}
	for _, r := range []struct {
		method, target, body string
		answer               *wire.Response
		want                 requestEntry
	}{
		{"PUT", "/api/v1/keys/secret?tag.secret=secret&namespace=app", "secret", &put,
			requestEntry{Operation: "put", Route: "/api/v1/keys/{key}", Namespace: "app", Status: 200, RequestBytes: 6, Revision: 7 << 20}},
		{"GET", "/api/v1/keys/secret?namespace=not%20one", "", &wire.Response{Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 9}), Payload: []byte("secret")},
			requestEntry{Operation: "get", Route: "/api/v1/keys/{key}", Status: 200, ResponseBytes: 6, Revision: 9}},
		{"HEAD", "/api/v1/keys/secret", "", &wire.Response{Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 9}), Payload: []byte("secret")},
			requestEntry{Operation: "get", Route: "/api/v1/keys/{key}", Status: 200, Revision: 9}},
		{"GET", "/api/v1/keys/secret?secret=secret", "", nil, requestEntry{Operation: "get", Route: "/api/v1/keys/{key}", Status: 400, Code: "KV-3000"}},
		{"DELETE", "/api/v1/keys/secret", "", &unknown, requestEntry{Operation: "delete", Route: "/api/v1/keys/{key}", Status: 504, Code: wire.StatusTimeout.Info().Code}},
		{"POST", "/api/v1/increment/secret", "", &wire.Response{Status: wire.StatusNotANumber, Payload: []byte("secret")},
			requestEntry{Operation: "increment", Route: "/api/v1/increment/{key}", Status: 422, Code: wire.StatusNotANumber.Info().Code}},
		{"POST", "/api/v1/batch/put", document, &wire.Response{Status: wire.StatusNoNamespace, Payload: []byte("secret")},
			requestEntry{Operation: "batch", Route: "/api/v1/batch/put", Status: 404, Code: wire.StatusNoNamespace.Info().Code, RequestBytes: int64(len(document))}},
		{"GET", "/api/v1/watch/secret?key=secret", "", nil, requestEntry{Operation: "watch", Route: "/api/v1/watch/{prefix}", Status: 400, Code: "KV-3000"}},
		{"GET", "/api/v1/keys?prefix=secret&limit=0", "", nil, requestEntry{Operation: "scan", Route: "/api/v1/keys", Status: 400, Code: "KV-3000"}},
		{"GET", "/secret", "", nil, requestEntry{Route: "none", Status: 404, Code: "KV-3000"}},
		{"GET", "/api/v1/admin/secret", "", nil, requestEntry{Route: "none", Status: 404, Code: "KV-3000"}},
		{"GET", "/api/v1/admin/status", "", nil, requestEntry{Operation: "status", Route: "/api/v1/admin/status", Status: 200}},
		{"DELETE", "/api/v1/admin/members/secret", "", &unknown, requestEntry{Operation: "admin", Route: "/api/v1/admin/members/{id}", Status: 504, Code: wire.StatusTimeout.Info().Code}},
		{"SECRET", "/api/v1/keys/secret", "", nil, requestEntry{Method: "other", Operation: "get", Route: "/api/v1/keys/{key}", Status: 405, Code: "KV-3000"}},
	} {
		m.mu.Lock()
		m.answer = r.answer
		m.mu.Unlock()
		before := len(lines(t, path))
		resp, body := send(t, s, r.method, r.target, r.body, "X-Request-Id", "id-1", "Content-Type", "application/json")
		if resp.StatusCode != r.want.Status {
			t.Fatalf("%s %s: %d %s", r.method, r.target, resp.StatusCode, body)
		}
		log := &s.Config.Handler.(*Server).log
		eventually(t, "the line is written", func() bool { return int(log.lines.Load()) > before })
		all := lines(t, path)
		got := all[len(all)-1]
		if got.Time.Before(time.Now().Add(-time.Minute)) || !strings.HasPrefix(got.Remote, "127.0.0.1:") || got.Microseconds < 0 {
			t.Errorf("%+v", got)
		}
		want := r.want
		want.ID, want.Protocol = "id-1", protocolREST
		if want.Method == "" {
			want.Method = r.method
		}
		if want.ResponseBytes == 0 && r.method != http.MethodHead {
			want.ResponseBytes = int64(len(body))
		}
		want.Time, want.Remote, want.Microseconds = got.Time, got.Remote, got.Microseconds
		if got != want {
			t.Errorf("%s %s:\n got %+v\nwant %+v", r.method, r.target, got, want)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ToLower(string(b)), "secret") {
		t.Errorf("the log tells what users store:\n%s", b)
	}
}

// With errors alone, what the server is to blame for is logged, and what a client did wrong is not.
func TestREST_RequestLog_ErrorsAreTheServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.log")
	m, s := start(t, func(o *Options) { o.RequestLog, o.RequestLogFile = RequestLogErrors, path })
	for _, st := range []wire.Status{wire.StatusOK, wire.StatusNotFound, wire.StatusLimited, wire.StatusDenied, wire.StatusConditionFailed, wire.StatusNoLeader, wire.StatusTimeout, wire.StatusDamaged} {
		m.answer = &wire.Response{Status: st}
		send(t, s, "GET", "/api/v1/keys/k", "")
		if failure(st) != (st == wire.StatusNoLeader || st == wire.StatusTimeout || st == wire.StatusDamaged) {
			t.Errorf("%s is blamed on the server: %v", st, failure(st))
		}
	}
	s.Close() // the lines are noted behind the answers
	s.Config.Handler.(*Server).Close()
	var got []int
	for _, e := range lines(t, path) {
		got = append(got, e.Status)
	}
	if fmt.Sprint(got) != "[503 504 500]" {
		t.Errorf("logged: %v", got)
	}
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: ", what)
		}
	}
}
