package gateway

import (
	"context"
	"net/http"
	"strings"
	"time"

	"kvstore/wire"
)

const (
	keysPath   = "/api/v1/keys/"
	statusPath = "/api/v1/admin/status"
)

// ServeHTTP routes by the escaped path as the client wrote it. http.ServeMux is not used: it cleans
// paths and redirects, while `a//b` and `a/../b` are keys of their own here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	start := time.Now()
	op := s.route(rec, r)
	s.stats.observe(op, rec.status, time.Since(start))
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) wire.Opcode {
	path := r.URL.EscapedPath()
	switch {
	case strings.HasPrefix(path, keysPath):
		return s.key(w, r, path[len(keysPath):])
	case path == statusPath:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			methodNotAllowed(w, "GET, HEAD")
			return wire.OpStatus
		}
		s.status(w, r)
		return wire.OpStatus
	}
	w.Header().Set("Content-Type", "application/problem+json")
	writeJSON(w, http.StatusNotFound, "application/problem+json", problem{
		Type: "about:blank", Title: "NO_ROUTE", Status: http.StatusNotFound, Code: "KV-3000",
		Detail: "no such route; keys are under " + keysPath + "{key}, the node's state is at " + statusPath,
	})
	return wire.OpStatus
}

func methodNotAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	writeJSON(w, http.StatusMethodNotAllowed, "application/problem+json", problem{
		Type: "about:blank", Title: "METHOD_NOT_ALLOWED", Status: http.StatusMethodNotAllowed, Code: "KV-3000",
		Detail: "this route takes " + allow, Applied: "no",
	})
}

// status answers with the node's state. It is JSON already.
func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	resp := s.do(r.Context(), &wire.Request{Op: wire.OpStatus, Group: wire.GroupDefault})
	if resp.Status != wire.StatusOK {
		fail(w, false, &resp)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(resp.Payload, '\n')) // an error means that the client is gone
}

// do executes req within the request's deadline.
func (s *Server) do(ctx context.Context, req *wire.Request) wire.Response {
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	return s.o.Service.Do(ctx, s.o.Principal, req)
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status and passes it on.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
