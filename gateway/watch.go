package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kvstore/wire"
)

const watchPath = "/api/v1/watch/"

const (
	// streamBufferBytes is what a stream gathers before it writes; each write has StallTimeout.
	streamBufferBytes = 32 << 10
	// streamCredit lets one frame be under way at a time: none waits uncounted behind the one that is being written.
	streamCredit = 1
	// streamEndTime is how long the last words of a stream may take once the server is to stop.
	streamEndTime = time.Second
	// streamRetryMs is the pause after which a browser comes back.
	streamRetryMs = 1000
	// streamsRetrySeconds is the pause suggested to a client that finds all streams taken.
	streamsRetrySeconds = 5
)

// parseWatch reads what a watch asks for from the path's rest, the query and Last-Event-ID.
func parseWatch(escaped string, r *http.Request) (ext []byte, watch *wire.WatchRequest, ref *wire.Refusal) {
	prefix, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, nil, badRequest("the prefix is not valid percent-encoding: %v", err)
	}
	q, ref := parseQuery(r)
	if ref != nil {
		return nil, nil, ref
	}
	watch = &wire.WatchRequest{Flags: wire.WatchFromNow, Prefix: []byte(prefix), Credit: streamCredit}
	// A browser that comes back sends the URL as it was at first, and the id of what it saw last: what is larger is
	// what it has seen.
	after := func(what, v string) *wire.Refusal {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return badRequest("%s %.40q is not a revision", what, v)
		}
		watch.Flags &^= wire.WatchFromNow
		watch.After = max(watch.After, n)
		return nil
	}
	if v := r.Header.Values("Last-Event-ID"); len(v) > 1 {
		return nil, nil, badRequest("Last-Event-ID is given %d times", len(v))
	} else if len(v) == 1 && v[0] != "" {
		if ref := after("Last-Event-ID", v[0]); ref != nil {
			return nil, nil, ref
		}
	}
	for _, name := range sortedNames(q) {
		v := q.Get(name)
		var ref *wire.Refusal
		switch name {
		case "from_revision":
			ref = after("from_revision", v)
		case "start":
			watch.Start = []byte(v)
		case "end":
			watch.End = []byte(v)
		case "key":
			if q.Has("start") || q.Has("end") || prefix != "" {
				return nil, nil, badRequest("key= watches one key: it goes with neither a prefix in the path nor start= and end=")
			}
			watch.Flags |= wire.WatchKey
			watch.Start = []byte(v)
		case "keys_only", "previous":
			var on bool
			if on, ref = flag(name, v); on {
				watch.Flags |= map[string]uint8{"keys_only": wire.WatchKeysOnly, "previous": wire.WatchPrevious}[name]
			}
		case "events":
			ref = parseKinds(v, watch)
		case "progress_ms":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil || n < wire.ProgressMsMin || n > wire.ProgressMsMax {
				ref = badRequest("progress_ms=%.40q is not a whole number from %d to %d", v, wire.ProgressMsMin, wire.ProgressMsMax)
			}
			watch.ProgressMs = uint32(n)
		case "namespace_id":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil || n == 0 {
				ref = badRequest("namespace_id=%.40q is no number of a namespace, as X-KV-Namespace-Id tells it", v)
			}
			ext = wire.AppendExtU32(ext, wire.ExtNamespaceID, uint32(n))
		case "history":
			b, err := hex.DecodeString(v)
			if err != nil || len(b) != 16 {
				ref = badRequest("history=%.40q is not 32 hex digits", v)
			}
			ext = wire.AppendExt(ext, wire.ExtHistory, b)
		default:
			var known bool
			if ext, known, ref = steer(ext, wire.OpWatch, name, q); ref == nil && !known {
				ref = unknownParameter(name)
			}
		}
		if ref != nil {
			return nil, nil, ref
		}
	}
	for _, b := range [...][]byte{watch.Prefix, watch.Start, watch.End} {
		if len(b) > wire.KeyBytesMax {
			return nil, nil, badRequest("prefix, start, end and key have at most %d bytes", wire.KeyBytesMax)
		}
	}
	return ext, watch, nil
}

// parseKinds reads which kinds of events are wanted.
func parseKinds(v string, watch *wire.WatchRequest) *wire.Refusal {
	skip := map[string]uint8{"put": wire.WatchNoPut, "delete": wire.WatchNoDelete, "expire": wire.WatchNoExpire}
	for kind := range strings.SplitSeq(v, ",") {
		if _, ok := skip[kind]; !ok {
			return badRequest("events=%.100q is not a list of put, delete and expire, each once", v)
		}
		delete(skip, kind)
	}
	for _, bit := range skip {
		watch.Flags |= bit
	}
	return nil
}

// watch serves changes as server-sent events.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, escaped string) {
	if !allow(w, r, http.MethodGet) || hasBody(w, r) {
		return
	}
	ext, watch, ref := parseWatch(escaped, r)
	var req wire.Request
	if ref == nil {
		h := wire.Header{Op: wire.OpWatch, ID: 1, ExtLen: uint16(len(ext))}
		ref = wire.ParseRequest(&h, wire.AppendWatchRequest(ext, watch), &req)
	}
	if ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	if s.streams.open.Add(1) > int64(s.o.StreamsMax) {
		s.streams.open.Add(-1)
		w.Header().Set("Retry-After", strconv.Itoa(streamsRetrySeconds))
		refuse(w, false, wire.StatusBusy, fmt.Sprintf("this node serves as many event streams (%d) as it may: try again after a pause, or another node", s.o.StreamsMax))
		return
	}
	defer s.streams.open.Add(-1)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	es := &eventStream{s: s, w: w, ctx: ctx, conn: http.NewResponseController(w), start: time.Now(), values: watch.Flags&wire.WatchKeysOnly == 0}
	es.j.w = bufio.NewWriterSize(es, streamBufferBytes)
	stop := context.AfterFunc(s.streams.ending, func() {
		cancel()
		es.limit()
	})
	defer stop()
	resp := s.o.Service.Stream(ctx, s.o.Principal, &req, es.frame)
	es.finish(&resp)
}

// eventStream is one response of server-sent events. It belongs to the goroutine of its request.
type eventStream struct {
	s     *Server
	w     http.ResponseWriter
	conn  *http.ResponseController
	ctx   context.Context // ends with the request, and when the server is to stop
	start time.Time
	// values: they were asked for.
	values bool

	begun bool
	j     jsonWriter
	// err is why the stream was given up from this side.
	err error
}

// Why a stream is given up.
var (
	errStreamBudget = errors.New("no room for an event that waits for its reader")
	errStreamBroken = errors.New("a frame of events can't be read")
)

// limit sets how long the next write may take.
func (es *eventStream) limit() {
	d := es.s.o.StallTimeout
	if es.ctx.Err() != nil {
		d = min(d, streamEndTime)
	}
	// An error means that there is no connection (any more), which the write meets too.
	_ = es.conn.SetWriteDeadline(time.Now().Add(d))
}

// Write writes what was gathered: a reader that stalls is cut off.
func (es *eventStream) Write(b []byte) (int, error) {
	es.limit()
	if es.ctx.Err() != nil {
		es.limit() // the end may have come between the look at it and the deadline
	}
	return es.w.Write(b)
}

// flush sends what was written.
func (es *eventStream) flush() error {
	if err := es.j.w.Flush(); err != nil {
		return err
	}
	es.limit()
	if err := es.conn.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// frame sends one frame of the watch. Its error ends the watch.
func (es *eventStream) frame(resp *wire.Response) error {
	// While the reader takes its time, the frame is held: that counts as an answer.
	size := int64(len(resp.Payload))
	if !es.s.answers.TryAcquire(size) {
		es.err = errStreamBudget
		return es.err
	}
	defer es.s.answers.Release(size)
	var batch wire.EventBatch
	if err := wire.DecodeEventBatch(resp.Payload, &batch); err != nil {
		es.err = errStreamBroken
		return es.err
	}
	if !es.begun {
		es.begin(resp)
	}
	last, rest := wire.Revision(0), batch.Events
	for range batch.Count {
		var e wire.Event
		var err error
		if rest, err = wire.NextEvent(rest, &e); err != nil {
			es.err = errStreamBroken
			return es.err
		}
		es.event(&e)
		last = e.Revision
	}
	if batch.Count == 0 {
		es.j.raw(": nothing new\n")
	}
	if batch.Revision > last {
		es.id(batch.Revision)
		es.j.raw("\n")
	}
	sawRevision(es.w, batch.Revision)
	es.err = es.flush()
	return es.err
}

// begin sends the headers.
func (es *eventStream) begin(resp *wire.Response) {
	es.begun = true
	h := es.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would gather events
	h.Set("X-Content-Type-Options", "nosniff")
	for ext := resp.Ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		ext = rest
		switch {
		case t == wire.ExtHistory:
			h.Set("X-KV-History", hex.EncodeToString(v))
		case t == wire.ExtNamespaceID && len(v) == 4:
			h.Set("X-KV-Namespace-Id", strconv.FormatUint(uint64(binary.LittleEndian.Uint32(v)), 10))
		}
	}
	if rec, ok := es.w.(*recorder); ok {
		rec.took = time.Since(es.start)
	}
	es.w.WriteHeader(http.StatusOK)
	es.j.raw("retry: " + strconv.Itoa(streamRetryMs) + "\n\n")
}

// id writes the line that names what has been seen. Browsers take it when the block ends, also where they fire no event.
func (es *eventStream) id(rev wire.Revision) {
	es.j.raw("id: ")
	es.j.scratch = append(strconv.AppendUint(es.j.scratch[:0], rev, 10), '\n')
	_, _ = es.j.w.Write(es.j.scratch) // flush tells
}

// event writes one event. JSON has no line ends, so that its data takes one line.
func (es *eventStream) event(e *wire.Event) {
	j := &es.j
	j.raw("event: ")
	j.raw(e.Kind.String())
	j.raw("\n")
	es.id(e.Revision)
	j.raw("data: ")
	j.open('{')
	j.field("key")
	j.text(string(e.Key))
	if e.Kind == wire.EventPut {
		j.record(e.Ext, e.Value, es.values)
	} else {
		j.field("version")
		j.number(e.Revision)
	}
	if e.Flags&wire.EventHadPrevious != 0 && len(e.PreviousExt) != 0 {
		j.field("previous")
		j.open('{')
		j.record(e.PreviousExt, e.Previous, es.values)
		j.close('}')
	}
	if e.Flags&wire.EventPreviousLost != 0 {
		j.field("previous_lost")
		j.bool(true)
	}
	j.field("last")
	j.bool(e.Flags&wire.EventLast != 0)
	j.close('}')
	j.raw("\n\n")
}

// finish tells why the watch ended.
func (es *eventStream) finish(resp *wire.Response) {
	end := *resp
	switch {
	case errors.Is(es.err, errStreamBudget):
		end = wire.Response{Status: wire.StatusBusy, Payload: []byte(textBusyAnswers)}
	case errors.Is(es.err, errStreamBroken):
		es.s.o.Logger.Error("a watch was answered with what are no events")
		end = wire.Response{Status: wire.StatusInternal, Payload: []byte("the events can't be read: see the server's log")}
	case es.err != nil:
		return // the client is gone, or was cut off
	case es.s.streams.ending.Err() != nil:
		end = wire.Response{Status: wire.StatusDraining}
	case es.ctx.Err() != nil:
		return // the client is gone
	}
	if end.Status == wire.StatusOK {
		// A watch has no end of its own. Whoever comes back goes on where it was.
		end = wire.Response{Status: wire.StatusRetryLater}
	}
	if !es.begun {
		fail(es.w, false, &end)
		return
	}
	p := problemOf(false, &end)
	toldProblem(es.w, end.Status.Class(), &p)
	es.j.raw("event: error\ndata: ")
	es.j.value(&p)
	es.j.raw("\n\n")
	_ = es.flush() // the client is gone
}
