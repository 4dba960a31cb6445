package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// message is what an EventSource hands to a page, and the id that it would come back with.
type message struct{ event, data, id string }

// eventSource reads server-sent events as the HTML standard says (9.2.6, "Interpreting an event stream").
type eventSource struct {
	r *bufio.Reader
	// lastID is what Last-Event-ID would say; it takes effect when a block ends.
	lastID, retry string
	comments      int
}

// next gives the next message that fires an event, or io.EOF. Each block that fires none is told to quiet, if set.
func (es *eventSource) next(quiet func()) (message, error) {
	var data []string
	event, id := "", es.lastID
	for {
		line, err := es.r.ReadString('\n')
		if err != nil {
			return message{}, err // an unfinished block is dropped
		}
		line = strings.TrimSuffix(line, "\n")
		if strings.ContainsRune(line, '\r') {
			return message{}, fmt.Errorf("a carriage return ends a line too: %q", line)
		}
		if line == "" {
			es.lastID = id
			if data == nil {
				event = ""
				if quiet != nil {
					quiet()
				}
				continue
			}
			if event == "" {
				event = "message"
			}
			return message{event, strings.Join(data, "\n"), id}, nil
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "":
			es.comments++
		case "event":
			event = value
		case "data":
			data = append(data, value)
		case "id":
			if !strings.ContainsRune(value, 0) {
				id = value
			}
		case "retry":
			es.retry = value
		}
	}
}

// watchFrom opens a watch; its response is closed with the test.
func watchFrom(t *testing.T, s *httptest.Server, target string, header ...string) (*http.Response, *eventSource) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp, &eventSource{r: bufio.NewReader(resp.Body)}
}

// await gives what ended a watch, within a time that measures nothing.
func await(t *testing.T, f *feed) error {
	t.Helper()
	select {
	case err := <-f.ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the watch goes on")
		return nil
	}
}

func TestWatch_QueryAndLastEventID_BecomeTheRequest(t *testing.T) {
	m, s := start(t, nil)
	m.feed.refuseWith(&wire.Response{Status: wire.StatusCompacted})
	stale := wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyStale)
	for name, c := range map[string]struct {
		target, lastID string
		want           wire.WatchRequest
		ext            []byte
	}{
		"all, from now":       {"", "", wire.WatchRequest{Flags: wire.WatchFromNow}, nil},
		"prefix, decoded":     {"a%2Fb//c", "", wire.WatchRequest{Flags: wire.WatchFromNow, Prefix: []byte("a/b//c")}, nil},
		"range":               {"?start=a&end=b", "", wire.WatchRequest{Flags: wire.WatchFromNow, Start: []byte("a"), End: []byte("b")}, nil},
		"one key":             {"?key=a/b", "", wire.WatchRequest{Flags: wire.WatchFromNow | wire.WatchKey, Start: []byte("a/b")}, nil},
		"from the beginning":  {"?from_revision=0", "", wire.WatchRequest{}, nil},
		"from a revision":     {"?from_revision=7", "", wire.WatchRequest{After: 7}, nil},
		"last id":             {"", "7", wire.WatchRequest{After: 7}, nil},
		"empty last id":       {"", "", wire.WatchRequest{Flags: wire.WatchFromNow}, nil},
		"both, id later":      {"?from_revision=7", "9", wire.WatchRequest{After: 9}, nil},
		"both, id earlier":    {"?from_revision=9", "7", wire.WatchRequest{After: 9}, nil},
		"largest":             {"?from_revision=18446744073709551615", "", wire.WatchRequest{After: 1<<64 - 1}, nil},
		"keys only, previous": {"?keys_only=true&previous", "", wire.WatchRequest{Flags: wire.WatchFromNow | wire.WatchKeysOnly | wire.WatchPrevious}, nil},
		"neither":             {"?keys_only=false&previous=0", "", wire.WatchRequest{Flags: wire.WatchFromNow}, nil},
		"puts":                {"?events=put", "", wire.WatchRequest{Flags: wire.WatchFromNow | wire.WatchNoDelete | wire.WatchNoExpire}, nil},
		"all kinds":           {"?events=expire,put,delete", "", wire.WatchRequest{Flags: wire.WatchFromNow}, nil},
		"namespace":           {"?namespace=app", "", wire.WatchRequest{Flags: wire.WatchFromNow}, wire.AppendExtString(nil, wire.ExtNamespace, "app")},
		"stale":               {"?consistency=stale", "", wire.WatchRequest{Flags: wire.WatchFromNow}, stale},
		"progress":            {"?progress_ms=100", "", wire.WatchRequest{Flags: wire.WatchFromNow, ProgressMs: 100}, nil},
		"of one namespace":    {"?namespace_id=4294967295", "", wire.WatchRequest{Flags: wire.WatchFromNow}, wire.AppendExtU32(nil, wire.ExtNamespaceID, 1<<32-1)},
		"history":             {"?history=000102030405060708090a0b0c0d0e0f", "", wire.WatchRequest{Flags: wire.WatchFromNow}, wire.AppendExt(nil, wire.ExtHistory, []byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"))},
	} {
		var header []string
		if c.lastID != "" || name == "empty last id" {
			header = []string{"Last-Event-ID", c.lastID}
		}
		resp, body := send(t, s, "GET", watchPath+c.target, "", header...)
		if resp.StatusCode != http.StatusGone || decode(t, body).Title != "COMPACTED" || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Fatalf("%s: %d %s", name, resp.StatusCode, body)
		}
		got, ext := m.feed.lastAsked()
		if c.want.Credit = streamCredit; c.want.ProgressMs == 0 {
			c.want.ProgressMs = wire.ProgressMsDefault
		}
		for _, b := range []*[]byte{&c.want.Prefix, &c.want.Start, &c.want.End} {
			*b = append([]byte{}, *b...)
		}
		if !reflect.DeepEqual(got, c.want) || !bytes.Equal(ext, c.ext) {
			t.Errorf("%s: asked for %+v with elements % x, want %+v, % x", name, got, ext, c.want, c.ext)
		}
	}
}

func TestWatch_BadRequests_AreRefusedBeforeAnyStream(t *testing.T) {
	m, s := start(t, nil)
	for _, c := range []struct {
		method, target string
		header         []string
		status         int
	}{
		{"GET", "?from_revision=-1", nil, 400}, {"GET", "?from_revision=", nil, 400}, {"GET", "?from_revision=18446744073709551616", nil, 400},
		{"GET", "", []string{"Last-Event-ID", "abc"}, 400}, {"GET", "", []string{"Last-Event-ID", "1", "Last-Event-ID", "2"}, 400},
		{"GET", "?events=", nil, 400}, {"GET", "?events=put,put", nil, 400}, {"GET", "?events=PUT", nil, 400}, {"GET", "?events=put,", nil, 400},
		{"GET", "p?key=k", nil, 400}, {"GET", "?key=k&start=a", nil, 400}, {"GET", "?key=", nil, 400}, {"GET", "?key=%ff", nil, 400},
		{"GET", "?key=" + strings.Repeat("k", 1025), nil, 400}, {"GET", strings.Repeat("p", 1025), nil, 400},
		{"GET", "?nonsense=1", nil, 400}, {"GET", "?start=a&start=b", nil, 400}, {"GET", "?previous=maybe", nil, 400}, {"GET", "?history=xy", nil, 400},
		{"GET", "?namespace=", nil, 400}, {"GET", "?max_age_ms=5", nil, 400}, {"GET", "?revision=5", nil, 400}, {"GET", "?%zz", nil, 400},
		{"HEAD", "", nil, 405}, {"POST", "", nil, 405}, {"GET", "", []string{"Content-Length", "5"}, 400},
		{"GET", "?start=" + strings.Repeat("x", 2000), nil, 400},
		{"GET", "?progress_ms=99", nil, 400}, {"GET", "?progress_ms=60001", nil, 400}, {"GET", "?progress_ms=", nil, 400},
		{"GET", "?namespace_id=0", nil, 400}, {"GET", "?namespace_id=4294967296", nil, 400}, {"GET", "?namespace_id=app", nil, 400},
	} {
		resp, body := send(t, s, c.method, watchPath+c.target, "", c.header...)
		if resp.StatusCode != c.status || c.method != "HEAD" && decode(t, body).Status != c.status {
			t.Errorf("%s %.80s: %d %s", c.method, c.target, resp.StatusCode, body)
		}
	}
	if len(m.feed.asked) != 0 {
		t.Errorf("a bad request became the watch %+v", m.feed.asked)
	}
}

// Each event is one message with its revision as its id, whatever its key and value hold, and frames without events
// move the id that a browser comes back with.
func TestWatch_EventsAndProgress_AreWhatAnEventSourceUnderstands(t *testing.T) {
	m, s := start(t, nil)
	meta := wire.Meta{Version: 10, CreatedAt: 1e15, UpdatedAt: 1e15, ExpiresAt: 2e15, Checksum: 7}
	ext := wire.AppendExtTag(wire.AppendExtMeta(nil, &meta), "color", "r\r\nd")
	hostile := "k\r\n\r\nevent: forged\ndata: x\u2028\u0085\x00\"<"
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	first := frame(5)
	first.Ext = wire.AppendExtU32(wire.AppendExt(nil, wire.ExtHistory, bytes.Repeat([]byte{0xab}, 16)), wire.ExtNamespaceID, 7)
	m.feed.frames <- first
	m.feed.frames <- frame(12,
		wire.Event{Kind: wire.EventPut, Flags: wire.EventLast, Revision: 10, Ext: ext, Key: []byte(hostile), Value: []byte("v\n\xff")},
		wire.Event{Kind: wire.EventDelete, Revision: 11, Key: []byte("gone"), Flags: wire.EventHadPrevious, PreviousExt: ext, Previous: []byte("old")},
	)
	m.feed.frames <- frame(12)
	m.feed.frames <- frame(20, wire.Event{Kind: wire.EventExpire, Revision: 20, Key: []byte("dead"), Flags: wire.EventPreviousLost | wire.EventLast})
	m.feed.frames <- frame(21, wire.Event{Kind: wire.EventPut, Revision: 21, Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 21}), Key: []byte("large"), Value: large})
	m.feed.end = wire.Response{Status: wire.StatusCompacted}
	close(m.feed.frames)
	resp, es := watchFrom(t, s, watchPath+"k?previous=true", "Accept-Encoding", "gzip, zstd")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" ||
		resp.Header.Get("Content-Encoding") != "" || resp.Header.Get("X-KV-History") != strings.Repeat("ab", 16) || resp.Header.Get("X-KV-Namespace-Id") != "7" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	var quiet []string
	next := func() message {
		t.Helper()
		got, err := es.next(func() { quiet = append(quiet, es.lastID) })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	put := next()
	var item struct {
		Key, Version, Checksum string
		Value                  []byte
		CreatedAt              string `json:"created_at"`
		ExpiresAt              string `json:"expires_at"`
		Tags                   map[string]string
		Last                   bool
		PreviousLost           bool `json:"previous_lost"`
		Previous               *struct {
			Version string
			Value   []byte
			Tags    map[string]string
		}
	}
	read := func(m message) {
		t.Helper()
		item.Previous, item.Value, item.Last, item.PreviousLost, item.Tags = nil, nil, false, false, nil
		if err := json.Unmarshal([]byte(m.data), &item); err != nil {
			t.Fatalf("%v: %q", err, m.data)
		}
	}
	read(put)
	if put.event != "put" || put.id != "10" || item.Key != hostile || string(item.Value) != "v\n\xff" || item.Version != "10" || item.Tags["color"] != "r\r\nd" ||
		item.CreatedAt != "2001-09-09T01:46:40Z" || item.ExpiresAt == "" || item.Checksum != "xxh64=0000000000000007" || !item.Last || item.Previous != nil {
		t.Errorf("put: %+v: %+v", put, item)
	}
	if es.retry != "1000" || !reflect.DeepEqual(quiet, []string{"", "5"}) {
		t.Errorf("retry %q, quiet blocks %q", es.retry, quiet)
	}
	deleted := next()
	read(deleted)
	if deleted.event != "delete" || deleted.id != "11" || item.Key != "gone" || item.Version != "11" || item.Value != nil || item.Last ||
		item.Previous == nil || item.Previous.Version != "10" || string(item.Previous.Value) != "old" || item.Previous.Tags["color"] != "r\r\nd" {
		t.Errorf("delete: %+v: %+v", deleted, item)
	}
	expired := next()
	read(expired)
	if expired.event != "expire" || expired.id != "20" || item.Key != "dead" || item.Version != "20" || !item.PreviousLost || item.Previous != nil {
		t.Errorf("expire: %+v: %+v", expired, item)
	}
	if !reflect.DeepEqual(quiet, []string{"", "5", "12", "12"}) || es.comments != 2 {
		t.Errorf("quiet blocks %q, %d comments", quiet, es.comments)
	}
	if read(next()); !bytes.Equal(item.Value, large) {
		t.Errorf("a value of %d bytes came as %d", len(large), len(item.Value))
	}
	end := next()
	if p := decode(t, end.data); end.event != "error" || p.Title != "COMPACTED" || p.Status != 410 || end.id != "21" {
		t.Errorf("the end: %+v", end)
	}
	if _, err := es.next(nil); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
}

func TestWatch_KeysOnly_LeavesValuesOut(t *testing.T) {
	m, s := start(t, nil)
	ext := wire.AppendExtMeta(nil, &wire.Meta{Version: 3})
	m.feed.frames <- frame(3, wire.Event{Kind: wire.EventPut, Revision: 3, Ext: ext, Key: []byte("k"), Flags: wire.EventHadPrevious, PreviousExt: ext})
	_, es := watchFrom(t, s, watchPath+"?keys_only=true&previous=true")
	if got, err := es.next(nil); err != nil || strings.Contains(got.data, `"value"`) || strings.Count(got.data, `"version":"3"`) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWatch_RefusedOrEnded_SaysWhyInTheFormThatIsLeft(t *testing.T) {
	for st, want := range map[wire.Status]int{
		wire.StatusCompacted: 410, wire.StatusFutureRevision: 400, wire.StatusNoNamespace: 404, wire.StatusTooMany: 429, wire.StatusNotReady: 503,
		wire.StatusUnsupported: 400, wire.StatusOK: 503, wire.StatusDraining: 503,
	} {
		m, s := start(t, nil)
		m.feed.end = wire.Response{Status: st}
		m.feed.refuseWith(&wire.Response{Status: st})
		resp, body := send(t, s, "GET", watchPath, "")
		if p := decode(t, body); resp.StatusCode != want || p.Status != want || (want == 429) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("%s, before: %d %v %s", st, resp.StatusCode, resp.Header, body)
		}
		m.feed.refuseWith(nil)
		m.feed.frames <- frame(1)
		close(m.feed.frames)
		_, es := watchFrom(t, s, watchPath)
		if got, err := es.next(nil); err != nil || got.event != "error" || decode(t, got.data).Status != want || got.id != "1" {
			t.Errorf("%s, after: %+v, %v", st, got, err)
		}
	}
}

func TestWatch_FrameThatCannotBeRead_EndsTheStreamAsAnInternalError(t *testing.T) {
	m, s := start(t, nil)
	m.feed.frames <- frame(1)
	broken := frame(2, wire.Event{Kind: wire.EventPut, Key: []byte("k")})
	broken.Payload[wire.EventBatchHeaderBytes] = 99 // no such kind
	m.feed.frames <- broken
	_, es := watchFrom(t, s, watchPath)
	if got, err := es.next(nil); err != nil || got.event != "error" || decode(t, got.data).Title != "INTERNAL" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := await(t, m.feed); err != errStreamBroken {
		t.Errorf("the watch was ended by %v", err)
	}
}

func TestWatch_ClientGoes_EndsTheWatchAtOnce(t *testing.T) {
	m, s := start(t, nil)
	for range 3 { // also on a server that has seen it before
		m.feed.frames <- frame(1)
		resp, es := watchFrom(t, s, watchPath)
		if _, err := es.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // no frame is under way: only the connection tells
		if err := await(t, m.feed); err != context.Canceled {
			t.Errorf("ended by %v", err)
		}
	}
}

// stallBytes is more than socket buffers take.
const stallBytes = 15 << 20

func bigFrame() wire.Response {
	return frame(2, wire.Event{Kind: wire.EventPut, Revision: 2, Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 2}), Key: []byte("k"), Value: make([]byte, stallBytes)})
}

// stall opens a watch that is sent a large event and never reads.
func stall(t *testing.T, f *feed, s *httptest.Server) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: t\r\n\r\n", watchPath)
	f.frames <- bigFrame()
	for deadline := time.Now().Add(30 * time.Second); len(f.frames) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody took the frame")
		}
	}
	return c
}

// A reader that takes nothing is cut off by time, and until then holds no more than the budget of answers; another one
// that comes beyond the budget is told to come back.
func TestWatch_ReaderThatStalls_IsCutOffAndHoldsBoundedMemory(t *testing.T) {
	const value = stallBytes
	m, s := start(t, func(o *Options) { o.StallTimeout, o.AnswerBytesMax = 2*time.Second, value+value/2 })
	stalled := stall(t, m.feed, s)
	defer stalled.Close()
	m.feed.frames <- frame(1)
	_, es := watchFrom(t, s, watchPath)
	if _, err := es.r.ReadString('\n'); err != nil { // its first frame has come, the next is its own
		t.Fatal(err)
	}
	m.feed.frames <- bigFrame()
	got, err := es.next(nil)
	if err != nil || got.event != "put" && decode(t, got.data).Title != "BUSY" {
		t.Fatalf("beside a stalled reader: %.200v, %v", got, err)
	}
	var cut net.Error
	for range 2 {
		switch err := await(t, m.feed); {
		case err == errStreamBudget:
			if got.event != "error" || got.id != "1" {
				t.Fatalf("the second was told %.200v", got)
			}
		case err == context.Canceled:
		default:
			var ok bool
			if cut, ok = err.(net.Error); !ok || !cut.Timeout() {
				t.Fatalf("ended by %v", err)
			}
		}
		if cut != nil {
			return
		}
	}
	t.Fatal("the stalled reader was not cut off")
}

func TestWatch_BeyondStreamsMax_IsRefusedUntilOneEnds(t *testing.T) {
	m, s := start(t, func(o *Options) { o.StreamsMax = 1 })
	m.feed.frames <- frame(1)
	resp, es := watchFrom(t, s, watchPath)
	if _, err := es.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	refused, body := send(t, s, "GET", watchPath, "")
	if p := decode(t, body); refused.StatusCode != 503 || p.Title != "BUSY" || !p.Retryable || refused.Header.Get("Retry-After") == "" {
		t.Fatalf("%d %v %s", refused.StatusCode, refused.Header, body)
	}
	resp.Body.Close()
	await(t, m.feed)
	for deadline := time.Now().Add(30 * time.Second); ; {
		m.feed.frames <- frame(1)
		m.feed.refuseWith(&wire.Response{Status: wire.StatusCompacted})
		if again, _ := send(t, s, "GET", watchPath, ""); again.StatusCode == 410 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place is never free again")
		}
	}
}

// Shutdown waits for requests in progress: a stream that nobody ended would hold up the stop of a node.
func TestWatch_ServerStops_EndsStreamsAlsoOfStalledReaders(t *testing.T) {
	m := &memory{feed: newFeed()}
	s := httptest.NewUnstartedServer(nil)
	s.Config = New(Options{Service: m}).HTTPServer()
	s.Start()
	defer s.Close()
	stalled := stall(t, m.feed, s)
	defer stalled.Close()
	m.feed.frames <- frame(1)
	_, es := watchFrom(t, s, watchPath)
	if _, err := es.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second) // less than the time that a stall may take
	defer cancel()
	if err := s.Config.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := es.next(nil)
	if p := decode(t, got.data); err != nil || got.event != "error" || p.Title != "DRAINING" || !p.Retryable || got.id != "1" {
		t.Fatalf("%+v, %v", got, err)
	}
}

// Whatever query and id come, what is accepted is a watch that the wire knows, and begins no earlier than the client
// said.
func FuzzWatchQuery(f *testing.F) {
	f.Add("a%2Fb", "from_revision=7&events=put,delete&keys_only", "9")
	f.Add("", "key=k&previous=true&namespace=n&consistency=stale", "")
	f.Add("p", "start=a&end=b&history=000102030405060708090a0b0c0d0e0f", "18446744073709551615")
	f.Fuzz(func(t *testing.T, path, query, lastID string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.RawQuery = query
		r.Header["Last-Event-Id"] = []string{lastID}
		ext, watch, ref := parseWatch(path, r)
		if ref != nil {
			if ref.Text == "" || ref.Status.Class() != wire.ClassRefused {
				t.Fatalf("refused as %+v", ref)
			}
			return
		}
		if n, err := strconv.ParseUint(lastID, 10, 64); err == nil && (watch.After < n || watch.Flags&wire.WatchFromNow != 0) {
			t.Fatalf("seen up to %d, begins behind %d (flags %x)", n, watch.After, watch.Flags)
		}
		var req wire.Request
		var back wire.WatchRequest
		h := wire.Header{Op: wire.OpWatch, ID: 1, ExtLen: uint16(len(ext))}
		if wire.ParseRequest(&h, wire.AppendWatchRequest(ext, watch), &req) != nil {
			return
		}
		if ref := wire.DecodeWatchRequest(req.Payload, &back); ref != nil || back.Flags != watch.Flags || back.After != watch.After || !bytes.Equal(back.Prefix, watch.Prefix) {
			t.Fatalf("%+v became %+v, %v", watch, back, ref)
		}
	})
}
