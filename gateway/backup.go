package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kvstore/wire"
)

const (
	backupPath  = adminPath + "backup"
	restorePath = adminPath + "restore"

	// backupPieceBytes is what a reader of a backup must take within AnswerTimeout, and a sender of one give within
	// BodyTimeout: no bound on the whole would fit both a small store and a large one.
	backupPieceBytes = 256 << 10
)

// Backups makes and takes in copies of the store. node implements it, with package backup.
type Backups interface {
	// Backup writes a copy of one namespace, or of all if none is named. begin is called once, before the first byte, and
	// gives where it goes. StatusOK, with a summary as a JSON document: it is complete. Anything else: what was written,
	// if anything, is not a backup.
	Backup(ctx context.Context, principal any, namespace string, begin func(revision wire.Revision, name string) io.Writer) wire.Response
	// Restore reads a backup to its end, verifies it, and only then writes its records: of one namespace, or all that it
	// holds if none is named. merge lets it into namespaces that hold records. StatusOK, with a summary as a JSON
	// document: all is written. A status of wire.ClassUnknown: a part is, and the payload tells how much. All others:
	// nothing is.
	Restore(ctx context.Context, principal any, namespace string, merge bool, body io.Reader) wire.Response
}

// backup streams a copy of the store. An answer that fails behind its header is broken off, so that nobody takes it for a
// whole one: its chunked body has no end, and the copy no trailer.
func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodPost) || hasBody(w, r) {
		return
	}
	namespace, _, ref := backupQuery(r, false)
	if ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	ctx, cancel := s.untilEnd(r.Context())
	defer cancel()
	start, begun := time.Now(), false
	out := &pacedWriter{w: w, conn: http.NewResponseController(w), pause: s.o.AnswerTimeout}
	out.limit()
	resp := s.o.Backups.Backup(ctx, s.o.Principal, namespace, func(revision wire.Revision, name string) io.Writer {
		begun = true
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", `attachment; filename="`+name+`"`)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-KV-Revision", strconv.FormatUint(revision, 10))
		if rec, ok := w.(*recorder); ok {
			rec.took = time.Since(start)
		}
		w.WriteHeader(http.StatusOK)
		return out
	})
	if resp.Status == wire.StatusOK {
		return
	}
	if !begun {
		out.limit()
		fail(w, false, &resp)
		return
	}
	s.o.Logger.Warn("a backup was broken off", "status", resp.Status.String(), "error", string(resp.Payload))
	if rec, ok := w.(*recorder); ok {
		rec.class, rec.code, rec.failed = resp.Status.Class(), resp.Status.Info().Code, failure(resp.Status)
	}
	panic(http.ErrAbortHandler)
}

// restore takes a copy in.
func (s *Server) restore(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodPost) {
		return
	}
	namespace, merge, ref := backupQuery(r, true)
	switch e := r.Header.Get("Content-Encoding"); {
	case ref != nil:
	case r.Header.Get("Idempotency-Key") != "":
		ref = badRequest("a restore takes no Idempotency-Key: run again in mode=merge, it writes the same; nothing was changed")
	case e != "" && !strings.EqualFold(e, "identity"):
		ref = badRequest("a backup is sent as it is, not with Content-Encoding %.40q; nothing was changed", e)
	case r.ContentLength == 0:
		ref = badRequest("the body is empty: it takes a backup; nothing was changed")
	}
	conn := http.NewResponseController(w)
	if ref != nil {
		w.Header().Set("Connection", "close") // nobody reads the body
		refuse(w, true, ref.Status, ref.Text)
		return
	}
	ctx, cancel := s.untilEnd(r.Context())
	defer cancel()
	body := &pacedReader{ctx: ctx, r: r.Body, conn: conn, pause: s.o.BodyTimeout}
	// A sender that is silent would hold up the stop.
	stop := context.AfterFunc(ctx, body.limit)
	defer stop()
	// Whoever waits for the outcome of a long restore is not to be cut off in the middle; without a deadline it is the
	// context that ends with the connection.
	_ = conn.SetWriteDeadline(time.Time{})
	resp := s.o.Backups.Restore(ctx, s.o.Principal, namespace, merge, body)
	_ = conn.SetWriteDeadline(time.Now().Add(s.o.AnswerTimeout))
	if !body.ended {
		w.Header().Set("Connection", "close")
	}
	if resp.Status != wire.StatusOK {
		fail(w, true, &resp)
		return
	}
	writeDocument(w, resp.Payload)
}

// untilEnd gives a context that ends with the request, and when the server is to stop.
func (d *Door) untilEnd(request context.Context) (ctx context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(request)
	stop := context.AfterFunc(d.streams.ending, func() { end(errStopping) })
	return ctx, func() {
		stop()
		end(nil)
	}
}

var errStopping = errors.New("the server is shutting down")

// backupQuery reads the query of both routes: namespace=, which means all where it is not given, and of a restore mode=.
func backupQuery(r *http.Request, restore bool) (namespace string, merge bool, ref *wire.Refusal) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", false, badRequest("the query is malformed: %v", err)
	}
	for name, v := range q {
		switch {
		case len(v) != 1:
			return "", false, badRequest("%.40s= is given %d times; nothing was changed", name, len(v))
		case name == "namespace" && wire.ValidNamespaceName(v[0]):
			namespace = v[0]
		case name == "namespace":
			return "", false, badRequest("%s; nothing was changed", textNamespaceName)
		case name == "mode" && restore && (v[0] == "merge" || v[0] == "empty"):
			merge = v[0] == "merge"
		case name == "mode" && restore:
			return "", false, badRequest("mode=%.40q is neither empty, the default, nor merge; nothing was changed", v[0])
		default:
			return "", false, &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf("query parameter %.100q is not known to this request; nothing was changed", name)}
		}
	}
	return namespace, merge, nil
}

// pacedWriter gives each piece of an answer a deadline of its own.
type pacedWriter struct {
	w     io.Writer
	conn  *http.ResponseController
	pause time.Duration
}

// limit gives what is written next its deadline. An error means that there is no connection (any more), which Write meets.
func (p *pacedWriter) limit() { _ = p.conn.SetWriteDeadline(time.Now().Add(p.pause)) }

func (p *pacedWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), backupPieceBytes)]
		p.limit()
		var m int
		m, err = p.w.Write(piece)
		n, b = n+m, b[m:]
	}
	p.limit() // for what net/http holds back
	return n, err
}

// pacedReader gives each piece of a body a deadline of its own.
type pacedReader struct {
	ctx   context.Context // its end is that of the body
	r     io.Reader
	conn  *http.ResponseController
	pause time.Duration
	left  int // bytes until the deadline is moved
	ended bool
}

// limit gives what is read next its deadline. An error means that there is no connection (any more), which Read meets.
func (p *pacedReader) limit() {
	end := time.Now()
	if p.ctx.Err() == nil {
		end = end.Add(p.pause)
	}
	_ = p.conn.SetReadDeadline(end)
}

func (p *pacedReader) Read(b []byte) (int, error) {
	if p.left <= 0 {
		p.left = backupPieceBytes
		if p.limit(); p.ctx.Err() != nil {
			p.limit() // the end may have come between the look at it and the deadline
		}
	}
	n, err := p.r.Read(b)
	p.left -= n
	if errors.Is(err, io.EOF) {
		// Left in place it would end the wait for the outcome.
		if e := p.conn.SetReadDeadline(time.Time{}); e != nil && !errors.Is(e, http.ErrNotSupported) {
			return n, e
		}
		p.ended = true
	}
	return n, err
}

// noBackups is a door without copies.
type noBackups struct{}

var textNoBackups = wire.Response{Status: wire.StatusNotReady, Payload: []byte("this node makes no backups yet; nothing was changed: try again shortly")}

func (noBackups) Backup(context.Context, any, string, func(wire.Revision, string) io.Writer) wire.Response {
	return textNoBackups
}

func (noBackups) Restore(context.Context, any, string, bool, io.Reader) wire.Response {
	return textNoBackups
}
