package gateway

import (
	"encoding/binary"
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

const incrementPath = "/api/v1/increment/"

// Headers of records, spelled as net/http spells them: each other spelling it would have to convert on every request.
const (
	headerETag      = "Etag"
	headerCreatedAt = "X-Kv-Created-At"
	headerUpdatedAt = "X-Kv-Updated-At"
	headerExpiresAt = "X-Kv-Expires-At"
	headerChecksum  = "X-Kv-Checksum"
)

// key serves one key: PUT, GET, HEAD, DELETE, and PATCH for its time to live. escaped is the rest of the path as the
// client wrote it.
func (s *Server) key(w http.ResponseWriter, r *http.Request, escaped string) {
	if allow(w, r, http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch) {
		s.keyOp(w, r, keyOperation(r.Method), escaped)
	}
}

// increment adds to a number.
func (s *Server) increment(w http.ResponseWriter, r *http.Request, escaped string) {
	if allow(w, r, http.MethodPost) {
		s.keyOp(w, r, wire.OpIncrement, escaped)
	}
}

// keyOp executes an operation on one key.
func (s *Server) keyOp(w http.ResponseWriter, r *http.Request, op wire.Opcode, escaped string) {
	write := op.IsWrite()
	if (op == wire.OpTouch || op == wire.OpIncrement) && hasBody(w, r) {
		return
	}
	key, ref := keyOf(escaped)
	var query url.Values
	if ref == nil {
		query, ref = parseQuery(r)
	}
	var ext []byte
	if ref == nil {
		ext, ref = extensions(op, r.Header, query)
	}
	if ref == nil && len(ext) > wire.ExtBytesMax {
		ref = &wire.Refusal{Status: wire.StatusTooLarge, Text: fmt.Sprintf("tags and conditions take %d bytes; at most %d", len(ext), wire.ExtBytesMax)}
	}
	body, release := append(ext, key...), func() {}
	switch {
	case ref != nil:
	case op == wire.OpIncrement:
		var delta int64
		delta, ref = parseDelta(query)
		body = wire.AppendIncrement(body, delta)
	case op == wire.OpPut:
		var done func()
		if body, done, ref = s.readBody(w, r, body, wire.ValueBytesMax, "the value"); ref == nil {
			release = done
		}
	}
	defer func() { release() }()
	h := wire.Header{Op: op, ID: 1, ExtLen: uint16(len(ext)), KeyLen: uint16(len(key))}
	var req wire.Request
	if ref == nil {
		ref = parseRequest(&h, body, &req)
	}
	if ref != nil {
		refuse(w, write, ref.Status, ref.Text)
		return
	}
	resp := s.do(r.Context(), &req)
	switch op {
	case wire.OpPut, wire.OpTouch:
		answerPut(w, &resp)
	case wire.OpDelete:
		answerDelete(w, &resp)
	case wire.OpIncrement:
		answerIncrement(w, &resp)
	default:
		s.answerGet(w, r, &resp)
	}
}

// parseDelta reads what an increment adds; 1 if nothing is said.
func parseDelta(q url.Values) (int64, *wire.Refusal) {
	if !q.Has("delta") {
		return 1, nil
	}
	v := q.Get("delta")
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, badRequest("delta=%.40q is not a whole number of 64 bits", v)
	}
	return n, nil
}

// bodyStepBytes is the room that a body is given at first, if it is not said to be smaller, and the least that it grows
// by.
const bodyStepBytes = 16 << 10

// readBody appends the request's body, called what in messages, to prefix, within bytesMax and the server's
// budget. The declared length is a claim: room is made, and taken from the budget, as bytes arrive, so that
// silence costs nothing. release returns what was taken.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, prefix []byte, bytesMax int64, what string) (body []byte, release func(), ref *wire.Refusal) {
	tooLarge := func() *wire.Refusal {
		return &wire.Refusal{Status: wire.StatusTooLarge, Text: fmt.Sprintf("%s exceeds %d bytes; nothing was changed", what, bytesMax)}
	}
	if r.ContentLength > bytesMax {
		return nil, nil, tooLarge()
	}
	var taken int64
	defer func() {
		if ref != nil {
			s.bodies.Release(taken)
		}
	}()
	src := http.MaxBytesReader(w, r.Body, bytesMax)
	step := int64(bodyStepBytes)
	if r.ContentLength >= 0 {
		// All of a small body fits at once, and nothing more is taken for it; the byte is for the end to be read.
		step = min(step, r.ContentLength+1)
	}
	body = prefix
	for {
		if len(body) == cap(body) {
			more := max(step, int64(len(body)))
			step = bodyStepBytes
			if !s.bodies.TryAcquire(more) {
				return nil, nil, &wire.Refusal{Status: wire.StatusBusy, Text: textBusyBodies}
			}
			taken += more
			grown := make([]byte, len(body), len(body)+int(more))
			copy(grown, body)
			body = grown
		}
		n, err := src.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var limit *http.MaxBytesError
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			// The deadline was for the body. Left in place it could end the wait for the write's outcome.
			if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return nil, nil, &wire.Refusal{Status: wire.StatusRetryLater, Text: "the connection is gone"}
			}
			return body, func() { s.bodies.Release(taken) }, nil
		case errors.As(err, &limit):
			return nil, nil, tooLarge()
		default:
			return nil, nil, &wire.Refusal{Status: wire.StatusBadRequest, Text: "the body ended early; nothing was changed"}
		}
	}
}

// extensions builds the extension block of a request on one key from its headers and query.
func extensions(op wire.Opcode, h http.Header, q url.Values) ([]byte, *wire.Refusal) {
	bad := func(format string, a ...any) ([]byte, *wire.Refusal) { return nil, badRequest(format, a...) }
	write := op.IsWrite()
	var ext []byte
	if write {
		var ref *wire.Refusal
		if ext, ref = idempotencyElement(h.Values(idempotencyHeader)); ref != nil {
			return nil, ref
		}
	}
	for _, name := range sortedNames(q) {
		v := q.Get(name)
		tag, isTag := strings.CutPrefix(name, "tag.")
		switch {
		case (name == "ttl_seconds" || name == "ttl_ms") && (op == wire.OpPut || op == wire.OpTouch || op == wire.OpIncrement):
			if name == "ttl_ms" && q.Has("ttl_seconds") {
				return bad("both ttl_seconds and ttl_ms")
			}
			unit := uint64(1)
			if name == "ttl_seconds" {
				unit = 1000
			}
			n, err := strconv.ParseUint(v, 10, 64)
			if err == nil && n == 0 && op == wire.OpTouch {
				continue // no deadline
			}
			if err != nil || n == 0 || n > wire.TTLMsMax/unit {
				return bad("%s=%.40q is not a whole number from 1 to %d", name, v, wire.TTLMsMax/unit)
			}
			ext = wire.AppendExtU64(ext, wire.ExtTTL, n*unit)
		case isTag && op == wire.OpPut:
			if len(tag) == 0 || len(tag) > wire.TagNameBytesMax || len(v) > wire.TagValueBytesMax {
				return bad("tag %.100q: a name has 1 to %d bytes of a-z 0-9 . _ -, a value at most %d", tag, wire.TagNameBytesMax, wire.TagValueBytesMax)
			}
			ext = wire.AppendExtTag(ext, tag, v)
		case name == "compress" && op == wire.OpPut:
			codec, ok := parseCodec(v)
			if !ok {
				return bad("compress=%.40q is none of %s", v, codecNames)
			}
			ext = wire.AppendExtU8(ext, wire.ExtCompress, byte(codec))
		case name == "delta" && op == wire.OpIncrement: // it is the payload
		default:
			var known bool
			var ref *wire.Refusal
			if ext, known, ref = steer(ext, op, name, q); ref == nil && !known {
				ref = unknownParameter(name)
			}
			if ref != nil {
				return nil, ref
			}
		}
	}
	if op == wire.OpTouch && !q.Has("ttl_seconds") && !q.Has("ttl_ms") {
		return bad("PATCH sets the time to live: it needs ttl_seconds= or ttl_ms=, which is 0 to take the deadline away; nothing was changed")
	}
	if op == wire.OpPut {
		if len(h.Values("Content-Range")) != 0 {
			// The part would take the place of the whole (RFC 9110, 14.5).
			return bad("Content-Range names a part of a value, and a PUT writes all of it; nothing was changed")
		}
		if v := h.Get("Content-Type"); v != "" {
			if len(v) > wire.ContentTypeBytesMax {
				return bad("Content-Type of %d bytes; at most %d", len(v), wire.ContentTypeBytesMax)
			}
			ext = wire.AppendExtString(ext, wire.ExtContentType, v)
		}
		if v := strings.Join(h.Values("Content-Encoding"), ", "); v != "" {
			if len(v) > wire.EncodingBytesMax {
				return bad("Content-Encoding of %d bytes; at most %d", len(v), wire.EncodingBytesMax)
			}
			ext = wire.AppendExtString(ext, wire.ExtEncoding, v)
		}
		if v := h.Get(headerChecksum); v != "" {
			sum, ok := parseChecksum(v)
			if !ok {
				return bad("X-KV-Checksum %q is not xxh64= and 16 hex digits", v)
			}
			ext = wire.AppendExtU64(ext, wire.ExtChecksum, sum)
		}
	}
	if write {
		return conditions(ext, h)
	}
	return ext, nil
}

// conditions appends what If-Match and If-None-Match demand of a write.
func conditions(ext []byte, h http.Header) ([]byte, *wire.Refusal) {
	// A header that is there but empty, as a script with an unset variable sends it, is a condition that no
	// record meets, not the absence of one.
	if values := h.Values("If-Match"); len(values) != 0 {
		v := strings.Join(values, ",")
		if strings.TrimSpace(v) == "*" {
			ext = wire.AppendExtCondition(ext, wire.ConditionExists, nil)
		} else {
			var versions []wire.Revision
			for part := range strings.SplitSeq(v, ",") {
				n, ok := parseETag(part)
				if !ok {
					// An ETag that we never gave out matches nothing: version 0 exists on no record.
					n = 0
				}
				if versions = append(versions, n); len(versions) > wire.ConditionsMax {
					return nil, &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf("If-Match lists more than %d versions", wire.ConditionsMax)}
				}
			}
			ext = wire.AppendExtVersions(ext, versions...)
		}
	}
	if values := h.Values("If-None-Match"); len(values) != 0 {
		if strings.TrimSpace(strings.Join(values, ",")) != "*" {
			return nil, &wire.Refusal{Status: wire.StatusBadRequest, Text: "If-None-Match on a write takes only *: the key must not exist"}
		}
		ext = wire.AppendExtCondition(ext, wire.ConditionAbsent, nil)
	}
	return ext, nil
}

func parseChecksum(v string) (uint64, bool) {
	digits, ok := strings.CutPrefix(v, "xxh64=")
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil
}

// parseETag reads one strong ETag of ours.
func parseETag(v string) (wire.Revision, bool) {
	v = strings.TrimSpace(v)
	if len(v) < 3 || v[0] != '"' || v[len(v)-1] != '"' {
		return 0, false
	}
	n, err := strconv.ParseUint(v[1:len(v)-1], 10, 64)
	// "07" is none of ours, though the number is.
	return n, err == nil && etag(n) == v
}

func etag(v wire.Revision) string { return `"` + strconv.FormatUint(v, 10) + `"` }

// version reads the payload of an answer to PUT and DELETE.
func version(resp *wire.Response) (wire.Revision, bool) {
	if len(resp.Payload) != wire.VersionBytes {
		return 0, false
	}
	return binary.LittleEndian.Uint64(resp.Payload), true
}

func answerPut(w http.ResponseWriter, resp *wire.Response) {
	v, ok := version(resp)
	if resp.Status != wire.StatusOK || !ok {
		fail(w, true, resp)
		return
	}
	tag := etag(v)
	w.Header().Set(headerETag, tag)
	sawRevision(w, v)
	sendJSON(w, http.StatusOK, "application/json", []byte(`{"version":`+tag+"}\n")) // an ETag is a string of JSON as well
}

func answerDelete(w http.ResponseWriter, resp *wire.Response) {
	v, ok := version(resp)
	if (resp.Status != wire.StatusOK && resp.Status != wire.StatusNotFound) || !ok {
		fail(w, true, resp)
		return
	}
	sawRevision(w, v)
	writeJSON(w, http.StatusOK, "application/json", struct {
		Deleted bool   `json:"deleted"`
		Version string `json:"version"`
	}{resp.Status == wire.StatusOK, strconv.FormatUint(v, 10)})
}

func answerIncrement(w http.ResponseWriter, resp *wire.Response) {
	v, n, ok := wire.DecodeCounter(resp.Payload)
	if resp.Status != wire.StatusOK || !ok {
		fail(w, true, resp)
		return
	}
	w.Header().Set(headerETag, etag(v))
	sawRevision(w, v)
	writeJSON(w, http.StatusOK, "application/json", struct {
		Value   string `json:"value"`
		Version string `json:"version"`
	}{strconv.FormatInt(n, 10), strconv.FormatUint(v, 10)})
}

const (
	// recordHeaders are as many as most records have.
	recordHeaders = 9
	// smallAnswerBytes is what a socket takes at once from a reader who keeps up: of so little the deadline that the
	// request began with is bound enough.
	smallAnswerBytes = 16 << 10
)

// answerGet writes a record: its bytes as they were stored, and all that is known of them as headers.
func (s *Server) answerGet(w http.ResponseWriter, r *http.Request, resp *wire.Response) {
	tellAge(w, resp.Ext)
	if resp.Status != wire.StatusOK {
		fail(w, false, resp)
		return
	}
	// From here on the value waits for its reader, who may be slow or gone.
	size := int64(len(resp.Payload))
	if !s.answers.TryAcquire(size) {
		refuse(w, false, wire.StatusBusy, textBusyAnswers)
		return
	}
	defer s.answers.Release(size)
	h := w.Header()
	values := make([]string, 0, recordHeaders)
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	var m wire.Meta
	for ext := resp.Ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		ext = rest
		switch t {
		case wire.ExtMeta:
			if wire.DecodeMeta(v, &m) != nil {
				continue
			}
			set(headerETag, etag(m.Version))
			sawRevision(w, m.Version)
			created := stamp(m.CreatedAt)
			set(headerCreatedAt, created)
			if m.UpdatedAt == m.CreatedAt {
				set(headerUpdatedAt, created)
			} else {
				set(headerUpdatedAt, stamp(m.UpdatedAt))
			}
			if m.ExpiresAt != 0 {
				set(headerExpiresAt, stamp(m.ExpiresAt))
			}
			set(headerChecksum, checksumText(m.Checksum))
		case wire.ExtContentType:
			set("Content-Type", headerText(v))
		case wire.ExtEncoding:
			h.Set("Content-Encoding", headerText(v))
		case wire.ExtTag:
			if name, value, err := wire.SplitTag(v); err == nil {
				h.Set("X-KV-Tag-"+string(name), percentEncode(string(value)))
			}
		}
	}
	if h.Get("Content-Type") == "" {
		// Without this net/http would guess from the bytes.
		set("Content-Type", "application/octet-stream")
	}
	set("X-Content-Type-Options", "nosniff")
	set("Cache-Control", "no-cache") // kept it may be, but not shown again without asking: reads are linearizable
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		if v, ok := parseETag(strings.TrimPrefix(strings.TrimSpace(part), "W/")); ok && v == m.Version || strings.TrimSpace(part) == "*" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	set("Content-Length", strconv.Itoa(len(resp.Payload)))
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return
	}
	if len(resp.Payload) > smallAnswerBytes {
		// An error means that there is no connection (any more), which Write meets too.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.o.AnswerTimeout))
	}
	w.Write(resp.Payload) // an error means that the client is gone
}

// tellAge says how old a stale answer may be, in milliseconds, rounded up; nothing where that is not known.
func tellAge(w http.ResponseWriter, ext []byte) {
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return
		}
		ext = rest
		if t != wire.ExtAge || len(v) != 8 {
			continue
		}
		if us := binary.LittleEndian.Uint64(v); us != wire.AgeUnknown {
			w.Header().Set("X-KV-Age-Ms", strconv.FormatUint(us/1000+min(us%1000, 1), 10))
		}
	}
}

// percentEncode escapes everything that could mean something, the space as %20: "+" stands for a space in
// forms only.
func percentEncode(v string) string { return strings.ReplaceAll(url.QueryEscape(v), "+", "%20") }

// stamp formats Unix microseconds.
func stamp(us int64) string { return time.UnixMicro(us).UTC().Format(time.RFC3339Nano) }

// headerText makes stored text safe for a header: a binary client may have stored anything.
func headerText(v []byte) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 || c == 0x7f {
			return ' '
		}
		return c
	}, string(v))
}
