package gateway

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"kvstore/wire"
)

// problem is the body of every error: RFC 9457 problem details with some members of ours.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Code is the stable code of the status table, such as KV-3001.
	Code string `json:"code"`
	// Retryable: the same request may be sent again without harm.
	Retryable bool `json:"retryable"`
	// Applied says of a write whether it happened: "no" or "unknown".
	Applied string `json:"applied,omitempty"`
	// Failed lists the conditions that did not hold.
	Failed []failedCondition `json:"failed,omitempty"`
	// Committed, of a transaction that surely was not, is false.
	Committed *bool `json:"committed,omitempty"`
	// RequestID is what the request is called, here as in the header X-Request-Id. It is not told of one operation
	// among many.
	RequestID string `json:"request_id,omitempty"`
}

// failedCondition names a condition that did not hold: the operation's place, the condition's place in it, and, in a
// batch or transaction, the operation's key.
type failedCondition struct {
	Operation uint32 `json:"operation"`
	Condition uint32 `json:"condition"`
	Key       string `json:"key,omitempty"`
}

// httpStatus maps a status to HTTP. 503 and 429 mean that a write was not applied; an outcome that can't
// be known is 504.
func httpStatus(st wire.Status) int {
	switch st {
	case wire.StatusOK:
		return http.StatusOK
	case wire.StatusNotFound:
		return http.StatusNotFound
	case wire.StatusConditionFailed:
		return http.StatusPreconditionFailed
	case wire.StatusLimited, wire.StatusQuota, wire.StatusTooMany:
		return http.StatusTooManyRequests
	case wire.StatusNamespaceExists:
		return http.StatusConflict
	case wire.StatusTooLarge, wire.StatusReplyFull:
		return http.StatusRequestEntityTooLarge
	case wire.StatusUnauthenticated:
		return http.StatusUnauthorized
	case wire.StatusDenied:
		return http.StatusForbidden
	case wire.StatusCompacted:
		return http.StatusGone
	case wire.StatusNoNamespace:
		return http.StatusNotFound
	case wire.StatusChecksum, wire.StatusSessionExpired, wire.StatusSessionStale, wire.StatusNotANumber, wire.StatusKeyReused:
		return http.StatusUnprocessableEntity
	case wire.StatusDamaged:
		return http.StatusInternalServerError
	case wire.StatusSessionsTooMany:
		return http.StatusServiceUnavailable
	}
	switch st.Class() {
	case wire.ClassRetry:
		return http.StatusServiceUnavailable
	case wire.ClassRefused:
		return http.StatusBadRequest
	default:
		return http.StatusGatewayTimeout
	}
}

// fail answers with a problem. write says that the request was one that changes something.
func fail(w http.ResponseWriter, write bool, r *wire.Response) {
	p := problemOf(write, r)
	sendProblem(w, r, &p)
}

// problemOf describes an answer that is none of success.
func problemOf(write bool, r *wire.Response) problem {
	info := r.Status.Info()
	p := problem{
		Type:      "about:blank",
		Title:     info.Name,
		Status:    httpStatus(r.Status),
		Detail:    info.Message,
		Code:      info.Code,
		Retryable: r.Status.Retryable(),
	}
	if write || p.Status >= http.StatusInternalServerError {
		p.Applied = "no" // of a read, whatever became of it
		if write {
			p.Applied = r.Status.Applied()
		}
	}
	if r.Status == wire.StatusConditionFailed {
		if failed, err := wire.DecodeFailed(r.Payload); err == nil {
			for _, f := range failed {
				p.Failed = append(p.Failed, failedCondition{Operation: f.Operation, Condition: f.Condition})
			}
		}
	} else if len(r.Payload) != 0 && r.Status.Class() != wire.ClassResult {
		p.Detail = string(r.Payload)
	}
	return p
}

// The pauses that 429 suggests where the answer names none: a rate is another one a second later, while a quota gives
// way only when somebody removes something, or raises it.
const (
	limitedRetrySeconds = 1
	quotaRetrySeconds   = 30
)

// retryAfter gives the pause that an answer suggests, or 0.
func retryAfter(r *wire.Response) time.Duration {
	for ext := r.Ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		if ext = rest; t == wire.ExtRetryAfter && len(v) == 4 {
			return time.Duration(binary.LittleEndian.Uint32(v)) * time.Millisecond
		}
	}
	switch r.Status {
	case wire.StatusLimited:
		return limitedRetrySeconds * time.Second
	case wire.StatusQuota, wire.StatusTooMany:
		return quotaRetrySeconds * time.Second
	}
	return 0
}

// sendProblem answers with p, which describes r.
func sendProblem(w http.ResponseWriter, r *wire.Response, p *problem) {
	if pause := retryAfter(r); pause != 0 {
		// Whole seconds is all that the header can say: round up.
		w.Header().Set("Retry-After", strconv.FormatInt(int64((pause+time.Second-1)/time.Second), 10))
	}
	writeProblem(w, r.Status.Class(), p)
}

// writeProblem answers with p and nothing else.
func writeProblem(w http.ResponseWriter, class wire.Class, p *problem) {
	toldProblem(w, class, p)
	writeJSON(w, p.Status, "application/problem+json", p)
}

// toldProblem notes that the request is answered, or its stream ended, with p, and gives p the request's id.
func toldProblem(w http.ResponseWriter, class wire.Class, p *problem) {
	if r, ok := w.(*recorder); ok {
		r.class, r.code, r.failed = class, p.Code, p.Status >= http.StatusInternalServerError
		p.RequestID = r.id
	}
}

// refuse answers with a refusal of the gateway's own.
func refuse(w http.ResponseWriter, write bool, st wire.Status, text string) {
	fail(w, write, &wire.Response{Status: st, Payload: []byte(text)})
}

// writeJSON writes v. An error of writing means that the client is gone: there is nobody to tell.
func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: cannot encode an answer of our own: " + err.Error())
	}
	sendJSON(w, status, contentType, append(b, '\n'))
}
