package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"kvstore/wire"
)

const (
	adminPath   = "/api/v1/admin/"
	statusPath  = adminPath + "status"
	membersPath = adminPath + "members"
	leaderPath  = adminPath + "leader"
	scrubPath   = adminPath + "scrub"
)

// memberActions are what stands behind a member in a path, with the method of each.
var memberActions = map[string]string{"promote": http.MethodPost, "demote": http.MethodPost, "replace": http.MethodPost, "priority": http.MethodPut}

// adminRequest is what OpAdmin carries; its answer is passed on as it is.
type adminRequest struct {
	Action      string `json:"action"`
	ID          string `json:"id,omitempty"`
	RaftAddress string `json:"raft_address,omitempty"`
	Address     string `json:"address,omitempty"`
	HTTPAddress string `json:"http_address,omitempty"`
	GRPCAddress string `json:"grpc_address,omitempty"`
	Incarnation string `json:"incarnation,omitempty"`
	Version     string `json:"version,omitempty"`
	With        string `json:"with,omitempty"`
	Priority    *int   `json:"priority,omitempty"`
	Namespace   string `json:"namespace,omitempty"`

	Settings *namespaceSettings `json:"settings,omitempty"`
}

// fields are the members that a body may have and where they go: a *string, or a **int for a whole number.
type fields map[string]any

// admin serves what lies under adminPath, the status aside. It reports false for a path that is no route.
// escaped is the path as the client wrote it.
func (s *Server) admin(w http.ResponseWriter, r *http.Request, escaped string) bool {
	if escaped == namespacesPath {
		s.namespaces(w, r)
		return true
	}
	if name, ok := strings.CutPrefix(escaped, namespacesPath+"/"); ok {
		s.namespace(w, r, name)
		return true
	}
	switch rest, ok := strings.CutPrefix(escaped, membersPath+"/"); {
	case escaped == leaderPath:
		if allow(w, r, http.MethodPost) {
			q := adminRequest{Action: "transfer"}
			s.change(w, r, &q, fields{"node_id": &q.ID})
		}
	case escaped == scrubPath:
		if allow(w, r, http.MethodPost) {
			q := adminRequest{Action: "scrub"}
			s.change(w, r, &q, fields{"node_id": &q.ID})
		}
	case escaped == backupPath:
		s.backup(w, r)
	case escaped == restorePath:
		s.restore(w, r)
	case escaped == membersPath:
		switch {
		case !allow(w, r, http.MethodGet, http.MethodHead, http.MethodPost):
		case r.Method == http.MethodPost:
			q := adminRequest{Action: "add"}
			s.change(w, r, &q, fields{
				"id": &q.ID, "raft_address": &q.RaftAddress, "address": &q.Address, "http_address": &q.HTTPAddress,
				"grpc_address": &q.GRPCAddress, "incarnation": &q.Incarnation, "version": &q.Version,
			}, "id", "raft_address")
		default:
			s.members(w, r)
		}
	case ok && !strings.Contains(rest, "/"):
		if allow(w, r, http.MethodDelete) {
			s.changeMember(w, r, "remove", rest)
		}
	case ok:
		member, action, _ := strings.Cut(rest, "/")
		method := memberActions[action]
		if method == "" {
			return false
		}
		if allow(w, r, method) {
			s.changeMember(w, r, action, member)
		}
	default:
		return false
	}
	return true
}

// allow refuses a method that the route does not take.
func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	if slices.Contains(methods, r.Method) {
		return true
	}
	methodNotAllowed(w, strings.Join(methods, ", "))
	return false
}

// members lists the members.
func (s *Server) members(w http.ResponseWriter, r *http.Request) {
	if ref := noQuery(r); ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	s.answerAdmin(w, r, &adminRequest{Action: "list"}, false)
}

// changeMember changes the member that the path names.
func (s *Server) changeMember(w http.ResponseWriter, r *http.Request, action, escaped string) {
	id, err := url.PathUnescape(escaped)
	switch {
	case err != nil:
		refuse(w, true, wire.StatusBadRequest, "the member's id is not valid percent-encoding: "+err.Error())
	case id == "" || len(id) > wire.NodeIDBytesMax || !utf8.ValidString(id):
		refuse(w, true, wire.StatusBadRequest, fmt.Sprintf("the path names no member: an id is text of 1 to %d bytes; nothing was changed", wire.NodeIDBytesMax))
	case r.Method == http.MethodDelete:
		// A body of a DELETE means nothing (RFC 9110, 9.3.5); it is neither read nor waited for.
		if ref := changeHeaders(r); ref != nil {
			refuse(w, true, ref.Status, ref.Text)
			return
		}
		s.answerAdmin(w, r, &adminRequest{Action: action, ID: id}, true)
	default:
		q := adminRequest{Action: action, ID: id}
		switch action {
		case "replace":
			s.change(w, r, &q, fields{"with": &q.With})
		case "priority":
			s.change(w, r, &q, fields{"priority": &q.Priority}, "priority")
		default:
			s.change(w, r, &q, fields{})
		}
	}
}

// change reads the body into the fields of q and executes it. Fields that are named in required may be
// neither absent nor empty; where there is none, neither need there be a body.
func (s *Server) change(w http.ResponseWriter, r *http.Request, q *adminRequest, known fields, required ...string) {
	ref := changeHeaders(r)
	if ref == nil && !isJSON(r.Header) {
		unsupportedMedia(w)
		return
	}
	if ref == nil {
		var body []byte
		var release func()
		if body, release, ref = s.readBody(w, r, nil, wire.AdminBytesMax, "the document"); ref == nil {
			ref = decodeFields(body, known, required)
			release()
		}
	}
	if ref != nil {
		refuse(w, true, ref.Status, ref.Text)
		return
	}
	s.answerAdmin(w, r, q, true)
}

// changeHeaders checks what a change must not be asked with.
func changeHeaders(r *http.Request) *wire.Refusal {
	if len(r.Header.Values(idempotencyHeader)) != 0 {
		return &wire.Refusal{Status: wire.StatusUnsupported, Text: textIdempotencyWritesOnly}
	}
	return noQuery(r)
}

// noQuery refuses a query: none of these routes knows a parameter, and one that is passed over, such as
// force, would not do what its sender thinks.
func noQuery(r *http.Request) *wire.Refusal {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &wire.Refusal{Status: wire.StatusBadRequest, Text: "the query is malformed: " + err.Error()}
	}
	if names := slices.Sorted(maps.Keys(query)); len(names) != 0 {
		return &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf("query parameter %.100q is not known to this request; nothing was changed", names[0])}
	}
	return nil
}

// namespaceAlone refuses a query that holds more than a namespace, which every route on data takes: what speaks of the
// whole node is the same in each.
func namespaceAlone(r *http.Request) *wire.Refusal {
	q, ref := parseQuery(r)
	if ref != nil {
		return ref
	}
	for _, name := range sortedNames(q) {
		if name != "namespace" {
			return unknownParameter(name)
		}
		if !wire.ValidNamespaceName(q.Get(name)) {
			return badRequest("%s", textNamespaceName)
		}
	}
	return nil
}

// isJSON reports whether the body is declared as JSON, or not declared at all. What a page of another site
// can make a browser send without asking is declared as something else.
func isJSON(h http.Header) bool {
	if e := h.Values("Content-Encoding"); len(e) != 0 && (len(e) != 1 || !strings.EqualFold(e[0], "identity")) {
		return false
	}
	types := h.Values("Content-Type")
	if len(types) == 0 {
		return true
	}
	t, _, err := mime.ParseMediaType(types[0])
	return err == nil && len(types) == 1 && t == "application/json"
}

func unsupportedMedia(w http.ResponseWriter) {
	writeProblem(w, wire.ClassRefused, &problem{
		Type: "about:blank", Title: "UNSUPPORTED_MEDIA_TYPE", Status: http.StatusUnsupportedMediaType, Code: "KV-3000",
		Detail: "this route takes a body of Content-Type application/json, not encoded further; nothing was changed", Applied: "no",
	})
}

// decodeFields reads one JSON object of strings and whole numbers. encoding/json alone would match names whatever their case,
// let the last of equal names win, and put U+FFFD where the text is not UTF-8.
func decodeFields(body []byte, known fields, required []string) *wire.Refusal {
	bad := func(format string, a ...any) *wire.Refusal {
		return &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf(format, a...) + "; nothing was changed"}
	}
	if len(bytes.TrimSpace(body)) == 0 && len(required) == 0 {
		return nil
	}
	names := "no fields"
	if len(known) != 0 {
		names = strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	}
	if !utf8.Valid(body) {
		return bad("the document is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return bad("the body is not a JSON object with %s", names)
	}
	seen := make(map[string]bool, len(known))
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return bad("the document is not JSON: %v", err)
		}
		name := t.(string) // the decoder gives nothing else where a name stands
		to := known[name]
		switch {
		case to == nil:
			return bad("field %.100q is not known to this request, which takes %s", name, names)
		case seen[name]:
			return bad("field %q is given twice", name)
		}
		seen[name] = true
		if t, err = d.Token(); err != nil {
			return bad("field %q is not JSON: %v", name, err)
		}
		switch to := to.(type) {
		case *string:
			v, ok := t.(string)
			if !ok {
				return bad("field %q is not a string", name)
			}
			if strings.ContainsRune(v, utf8.RuneError) {
				return bad("field %q holds half a surrogate pair or a replacement character", name)
			}
			*to = v
		case **int:
			v, _ := t.(json.Number)
			n, err := strconv.Atoi(v.String())
			if err != nil {
				return bad("field %q is not a whole number", name)
			}
			*to = &n
		}
	}
	if _, err := d.Token(); err != nil {
		return bad("the document is not JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("there is more behind the document")
	}
	for _, name := range required {
		if text, ok := known[name].(*string); !seen[name] || ok && *text == "" {
			return bad("field %q is missing or empty", name)
		}
	}
	return nil
}

// answerAdmin executes q and passes its answer on.
func (s *Server) answerAdmin(w http.ResponseWriter, r *http.Request, q *adminRequest, write bool) {
	payload, err := json.Marshal(q)
	if err != nil {
		panic("BUG: cannot encode a request of our own: " + err.Error())
	}
	h := wire.Header{Op: wire.OpAdmin, ID: 1}
	var req wire.Request
	if ref := wire.ParseRequest(&h, payload, &req); ref != nil {
		refuse(w, write, ref.Status, ref.Text)
		return
	}
	resp := s.do(r.Context(), &req)
	if resp.Status == wire.StatusOK {
		writeDocument(w, resp.Payload)
		return
	}
	p := problemOf(write, &resp)
	switch {
	case resp.Status == wire.StatusNotFound && q.Namespace == "":
		p.Detail = fmt.Sprintf("the cluster has no member %q; nothing was changed", q.ID)
	case resp.Status.Class() == wire.ClassResult:
		// Here such a status stands for the state of the cluster, not for conditions of an operation.
		if p.Failed = nil; len(resp.Payload) != 0 {
			p.Detail = string(resp.Payload)
		}
	case !write && resp.Status.Class() == wire.ClassUnknown:
		// Nothing was to be changed, whatever became of the question.
		p.Retryable, p.Applied = true, "no"
		p.Detail = "the leader did not answer: try again"
	}
	sendProblem(w, &resp, &p)
}
