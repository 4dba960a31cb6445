package gateway

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"kvstore/wire"
)

// Texts that several routes answer with.
const (
	textBusyAnswers = "the answers that wait for slow readers fill the server's budget: try again after a pause"
	textBusyBodies  = "the bodies of requests in progress fill the server's budget; nothing was changed: try again after a pause"
)

func badRequest(format string, a ...any) *wire.Refusal {
	return &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf(format, a...)}
}

// parseQuery reads the query, in which each parameter stands at most once. net/http's form would silently drop what it
// cannot parse.
func parseQuery(r *http.Request) (url.Values, *wire.Refusal) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query is malformed: %v", err)
	}
	for name, values := range q {
		if len(values) != 1 {
			return nil, badRequest("query parameter %.100q is given %d times", name, len(values))
		}
	}
	return q, nil
}

// sortedNames gives the parameters in sorted order: the same request always becomes the same bytes.
func sortedNames(q url.Values) []string {
	if len(q) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(q))
}

func unknownParameter(name string) *wire.Refusal {
	return badRequest("query parameter %.100q is not known to this request", name)
}

// steer appends the element that a parameter common to many routes asks of op; known is false if name is none.
func steer(ext []byte, op wire.Opcode, name string, q url.Values) (out []byte, known bool, ref *wire.Refusal) {
	v := q.Get(name)
	reads := op.IsRead()
	switch {
	case name == "namespace":
		if len(v) == 0 || len(v) > wire.NamespaceBytesMax {
			return nil, true, badRequest("namespace name of %d bytes; 1 to %d", len(v), wire.NamespaceBytesMax)
		}
		ext = wire.AppendExtString(ext, wire.ExtNamespace, v)
	case name == "consistency" && (reads || op == wire.OpWatch):
		switch v {
		case "linearizable":
		case "stale":
			ext = wire.AppendExtU8(ext, wire.ExtConsistency, wire.ConsistencyStale)
		default:
			return nil, true, badRequest("consistency=%.100q is neither linearizable nor stale", v)
		}
	case name == "max_age_ms" && reads:
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil || n == 0 {
			return nil, true, badRequest("max_age_ms=%.100q is not a whole number from 1 on", v)
		}
		if q.Get("consistency") != "stale" {
			return nil, true, badRequest("max_age_ms bounds the age of a stale read: it needs consistency=stale")
		}
		ext = wire.AppendExtU64(ext, wire.ExtMaxAge, n)
	case (name == "revision" || name == "min_revision") && reads:
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil || n == 0 {
			return nil, true, badRequest("%s=%.100q is not a revision", name, v)
		}
		ext = wire.AppendExtU64(ext, map[string]wire.ExtType{"revision": wire.ExtAtRevision, "min_revision": wire.ExtMinRevision}[name], n)
	default:
		return ext, false, nil
	}
	return ext, true, nil
}

// flag reads a parameter that is true or false; one without a value is true.
func flag(name, v string) (bool, *wire.Refusal) {
	switch v {
	case "", "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, badRequest("%s=%.100q is neither true nor false", name, v)
}

// keyOf gives the key that the rest of a path names: percent-decoded once, nothing cleaned.
func keyOf(escaped string) (string, *wire.Refusal) {
	key, err := url.PathUnescape(escaped)
	if err != nil {
		return "", badRequest("the key is not valid percent-encoding: %v", err)
	}
	if len(key) > wire.KeyBytesMax {
		return "", &wire.Refusal{Status: wire.StatusBadKey, Text: fmt.Sprintf("key of %d bytes; at most %d", len(key), wire.KeyBytesMax)}
	}
	return key, nil
}

// hasBody reports whether a body comes with a request that takes none, and refuses it. Nobody reads it, so nothing can
// follow on its connection.
func hasBody(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength == 0 {
		return false
	}
	w.Header().Set("Connection", "close")
	refuse(w, r.Method != http.MethodGet, wire.StatusBadRequest, "this request takes no body; nothing was changed")
	return true
}
