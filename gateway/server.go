package gateway

import (
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"kvstore/wire"
)

// ServeHTTP serves one request: it gives it an id and its time, asks the limits, has the route's handler answer, and
// notes what came of it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w, id: requestID(r.Header[requestIDHeader]), accepted: accept(r.Header.Values("Accept-Encoding"))}
	rec.Header().Set(requestIDHeader, rec.id)
	if r.ContentLength != 0 {
		// In a copy: what net/http does with a body that is left unread depends on the type of the one that it has made. It
		// would wait for 256 KiB of a body of ours, before the refusal of one that is too large went out.
		counted := *r
		rec.in.ReadCloser = r.Body
		counted.Body = &rec.in
		r = &counted
	}
	s.limitTime(rec, r, start)
	at := placeOf(r)
	rec.op, rec.route = at.op, at.route
	defer s.note(rec, r, start) // also of an answer that is broken off
	// Without a port there is no connection of TCP behind this; all such requests are of one client.
	remote, _ := netip.ParseAddrPort(r.RemoteAddr)
	if ref := s.admit(remote.Addr()); ref != nil {
		answer := wire.ErrorResponse(ref, nil)
		fail(rec, at.changes(r), &answer)
	} else if s.origin.Check(r) != nil {
		rec.op = noOp
		writeProblem(rec, wire.ClassRefused, &problem{
			Type: "about:blank", Title: "CROSS_ORIGIN", Status: http.StatusForbidden, Code: "KV-3000", Applied: "no",
			Detail: "a browser sent this for a page of another site; nothing was changed",
		})
	} else {
		at.serve(s, rec, r, at.rest)
	}
}

// note counts a request and logs it.
func (s *Server) note(rec *recorder, r *http.Request, start time.Time) {
	took := time.Since(start)
	if rec.took == 0 {
		rec.took = took
	}
	s.stats.observe(rec.op, rec.class, rec.took)
	if s.log.wants(rec.failed) {
		s.log.note(rec.entry(r, start, took))
	}
}

// entry tells of the request in the log.
func (r *recorder) entry(q *http.Request, start time.Time, took time.Duration) *requestEntry {
	e := &requestEntry{
		Time: start.UTC(), ID: r.id, Protocol: protocolREST, Method: methodName(q.Method), Route: r.route, Namespace: namespaceOf(q.URL.RawQuery), Remote: q.RemoteAddr,
		Status: r.status, Code: r.code, Microseconds: took.Microseconds(), RequestBytes: r.in.n, ResponseBytes: r.out, Revision: r.revision, Failed: r.failed,
	}
	if r.op != noOp {
		e.Operation = r.op.String()
	}
	if q.Method == http.MethodHead {
		e.ResponseBytes = 0 // net/http has left out what was written
	}
	if e.Status == 0 {
		e.Status = http.StatusOK // net/http sends it when the handler has returned
	}
	return e
}

// methodName gives a method as it may stand in the log: a client may send any token for one.
func methodName(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

// namespaceOf gives the namespace that a query names, if it can be one.
func namespaceOf(query string) string {
	if query == "" {
		return ""
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return ""
	}
	if name := q.Get("namespace"); wire.ValidNamespaceName(name) {
		return name
	}
	return ""
}

// limitTime bounds what a peer that neither sends nor takes anything can hold. An error means that there is
// no connection (any more): whoever reads or writes meets it.
func (s *Server) limitTime(w http.ResponseWriter, r *http.Request, start time.Time) {
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(start.Add(s.o.BodyTimeout + s.o.RequestTimeout + s.o.AnswerTimeout))
	if r.ContentLength == 0 {
		return
	}
	_ = c.SetReadDeadline(start.Add(s.o.BodyTimeout))
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		// Nobody reads this body. net/http watches the connection while an answer is written; a deadline
		// that passed then would cancel the requests that follow on it, so none follow.
		w.Header().Set("Connection", "close")
	}
}

func methodNotAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	writeProblem(w, wire.ClassRefused, &problem{
		Type: "about:blank", Title: "METHOD_NOT_ALLOWED", Status: http.StatusMethodNotAllowed, Code: "KV-3000",
		Detail: "this route takes " + allow, Applied: "no",
	})
}

// status answers with the cluster's state as this node sees it.
func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	resp := s.do(r.Context(), &wire.Request{Op: wire.OpStatus, Group: wire.GroupDefault})
	if resp.Status != wire.StatusOK {
		fail(w, false, &resp)
		return
	}
	writeDocument(w, resp.Payload)
}

// writeDocument answers with a document that is JSON already, and true for this moment only.
func writeDocument(w http.ResponseWriter, doc []byte) {
	w.Header().Set("Cache-Control", "no-store")
	sendJSON(w, http.StatusOK, "application/json", append(doc, '\n'))
}
