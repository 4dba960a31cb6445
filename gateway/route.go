package gateway

import (
	"net/http"
	"strings"

	"kvstore/wire"
)

const keysPath = "/api/v1/keys/"

// noOp is the operation of a request that is none, noRoute the route of one that has none.
const (
	noOp    wire.Opcode = 0
	noRoute             = "none"
)

// place is where a request goes.
type place struct {
	// op is the operation, as far as path and method tell.
	op wire.Opcode
	// route is the path with names in place of what users store.
	route string
	// rest is what the handler is given of the path, as the client wrote it.
	rest  string
	serve func(s *Server, w http.ResponseWriter, r *http.Request, rest string)
}

// changes reports whether a request that goes there asks for a change.
func (p *place) changes(r *http.Request) bool {
	return p.op.IsWrite() || p.op == wire.OpAdmin && r.Method != http.MethodGet && r.Method != http.MethodHead
}

// placeOf routes by the escaped path as the client wrote it. http.ServeMux is not used: it cleans
// paths and redirects, while `a//b` and `a/../b` are keys of their own here.
func placeOf(r *http.Request) place {
	path := r.URL.EscapedPath()
	switch {
	case strings.HasPrefix(path, keysPath):
		return place{keyOperation(r.Method), keysPath + "{key}", path[len(keysPath):], (*Server).key}
	case path == listPath:
		return place{wire.OpScan, listPath, "", (*Server).listAt}
	case strings.HasPrefix(path, watchPath):
		return place{wire.OpWatch, watchPath + "{prefix}", path[len(watchPath):], (*Server).watch}
	case strings.HasPrefix(path, incrementPath):
		return place{wire.OpIncrement, incrementPath + "{key}", path[len(incrementPath):], (*Server).increment}
	case groupRoutes[path] != nil:
		return place{groupRoutes[path].op, path, path, (*Server).groupAt}
	case path == statusPath:
		return place{wire.OpStatus, statusPath, "", (*Server).statusAt}
	case path == metricsPath:
		return place{noOp, metricsPath, "", (*Server).metrics}
	case openAPIDocuments[path] != nil:
		return place{noOp, path, path, (*Server).openAPI}
	case strings.HasPrefix(path, adminPath):
		return place{wire.OpAdmin, adminRoute(path), path, (*Server).adminAt}
	}
	return place{noOp, noRoute, "", (*Server).nowhere}
}

// adminRoute gives a path below adminPath as the log of requests shows it: members and namespaces have names of
// operators', but what is no route may hold anything.
func adminRoute(path string) string {
	first, rest, deeper := strings.Cut(path[len(adminPath):], "/")
	for _, c := range []byte(first) {
		if (c < 'a' || c > 'z') && c != '-' && c != '_' {
			return adminPath + "{other}"
		}
	}
	route := adminPath + first
	if !deeper {
		return route
	}
	switch {
	case route == namespacesPath:
		return route + "/{name}"
	case route != membersPath:
		return route + "/{other}"
	}
	_, action, _ := strings.Cut(rest, "/")
	switch {
	case action == "":
		return route + "/{id}"
	case memberActions[action] != "":
		return route + "/{id}/" + action
	}
	return route + "/{id}/{other}"
}

// keyOperation is what a method does to a key. HEAD tells all that GET would, the length of the value included, so it
// reads the record too.
func keyOperation(method string) wire.Opcode {
	switch method {
	case http.MethodPut:
		return wire.OpPut
	case http.MethodDelete:
		return wire.OpDelete
	case http.MethodPatch:
		return wire.OpTouch
	}
	return wire.OpGet
}

func (s *Server) listAt(w http.ResponseWriter, r *http.Request, _ string) { s.list(w, r) }

func (s *Server) groupAt(w http.ResponseWriter, r *http.Request, path string) {
	s.group(w, r, groupRoutes[path])
}

func (s *Server) statusAt(w http.ResponseWriter, r *http.Request, _ string) {
	if allow(w, r, http.MethodGet, http.MethodHead) {
		if ref := namespaceAlone(r); ref != nil {
			refuse(w, false, ref.Status, ref.Text)
			return
		}
		s.status(w, r)
	}
}

func (s *Server) adminAt(w http.ResponseWriter, r *http.Request, path string) {
	if !s.admin(w, r, path) {
		s.nowhere(w, r, path)
	}
}

// nowhere answers for a path that is no route.
func (s *Server) nowhere(w http.ResponseWriter, r *http.Request, _ string) {
	applied := ""
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		applied = "no" // whoever means to change something wants to know
	}
	if rec, ok := w.(*recorder); ok {
		rec.op, rec.route = noOp, noRoute
	}
	writeProblem(w, wire.ClassRefused, &problem{
		Type: "about:blank", Title: "NO_ROUTE", Status: http.StatusNotFound, Code: "KV-3000", Applied: applied,
		Detail: "no such route; keys are under " + keysPath + "{key}, lists at " + listPath + ", changes under " + watchPath + "{prefix}, batches at " + batchPath +
			"put, get and delete, transactions at " + transactionPath + ", the cluster's state is at " + statusPath + ", its members at " + membersPath + ", its namespaces at " + namespacesPath + "; all is described at " + openAPIYAMLPath,
	})
}
