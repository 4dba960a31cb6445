package gateway

import (
	"net/http"
	"strings"
	"time"

	"kvstore/wire"
)

const keysPath = "/api/v1/keys/"

// ServeHTTP routes by the escaped path as the client wrote it. http.ServeMux is not used: it cleans
// paths and redirects, while `a//b` and `a/../b` are keys of their own here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, accepted: accept(r.Header.Values("Accept-Encoding"))}
	start := time.Now()
	s.limitTime(rec, r, start)
	op := s.route(rec, r)
	if rec.took == 0 {
		rec.took = time.Since(start)
	}
	s.stats.observe(op, rec.class, rec.took)
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

// noOp is the operation of a request that is none.
const noOp wire.Opcode = 0

func (s *Server) route(w http.ResponseWriter, r *http.Request) wire.Opcode {
	path := r.URL.EscapedPath()
	if err := s.origin.Check(r); err != nil {
		classify(w, wire.ClassRefused)
		writeJSON(w, http.StatusForbidden, "application/problem+json", problem{
			Type: "about:blank", Title: "CROSS_ORIGIN", Status: http.StatusForbidden, Code: "KV-3000", Applied: "no",
			Detail: "a browser sent this for a page of another site; nothing was changed",
		})
		return noOp
	}
	switch {
	case strings.HasPrefix(path, keysPath):
		return s.key(w, r, path[len(keysPath):])
	case path == listPath:
		s.list(w, r)
		return wire.OpScan
	case strings.HasPrefix(path, watchPath):
		s.watch(w, r, path[len(watchPath):])
		return wire.OpWatch
	case strings.HasPrefix(path, incrementPath):
		s.increment(w, r, path[len(incrementPath):])
		return wire.OpIncrement
	case groupRoutes[path] != nil:
		s.group(w, r, groupRoutes[path])
		return groupRoutes[path].op
	case path == statusPath:
		if allow(w, r, http.MethodGet, http.MethodHead) {
			s.status(w, r)
		}
		return wire.OpStatus
	case strings.HasPrefix(path, adminPath) && s.admin(w, r, path):
		return wire.OpAdmin
	}
	writeJSON(w, http.StatusNotFound, "application/problem+json", problem{
		Type: "about:blank", Title: "NO_ROUTE", Status: http.StatusNotFound, Code: "KV-3000",
		Detail: "no such route; keys are under " + keysPath + "{key}, lists at " + listPath + ", changes under " + watchPath + "{prefix}, batches at " + batchPath +
			"put, get and delete, transactions at " + transactionPath + ", the cluster's state is at " + statusPath + ", its members at " + membersPath + ", its namespaces at " + namespacesPath,
	})
	return noOp
}

func methodNotAllowed(w http.ResponseWriter, allow string) {
	classify(w, wire.ClassRefused)
	w.Header().Set("Allow", allow)
	writeJSON(w, http.StatusMethodNotAllowed, "application/problem+json", problem{
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

// recorder remembers the class of an answer. The status of HTTP would not do: 404 is both an absent key,
// which is a result, and an absent namespace, which is a refusal.
type recorder struct {
	http.ResponseWriter
	class wire.Class
	// took, when set, is the duration that counts: of a stream the time until it began.
	took time.Duration
	// accepted is what the client takes of codings.
	accepted accepted
}

// classify notes the class of the answer; without it the class is ClassResult.
func classify(w http.ResponseWriter, c wire.Class) {
	if r, ok := w.(*recorder); ok {
		r.class = c
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
