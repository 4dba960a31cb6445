package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// restDoorway is REST of one node.
type restDoorway struct {
	t    *testing.T
	rest *restClient
}

// openRESTDoorway makes one; its connections are closed with the test.
func openRESTDoorway(t *testing.T, n *testcluster.Node) *restDoorway {
	t.Helper()
	// A client that decoded by itself would hide the Content-Encoding of a value. Watches have no deadline.
	tr := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &restDoorway{t, &restClient{node: n, http: &http.Client{Transport: tr}}}
}

// broken is what the binary protocol would say of an answer that is none, or that none of ours can be. No test breaks
// connections by itself, so that it is a failure of the test.
func (d *restDoorway) broken(ctx context.Context, what string, err error) wire.Response {
	if ctx.Err() == nil {
		d.t.Errorf("REST: %s: %v", what, err)
	}
	return errorAnswer(wire.StatusInternal, err.Error(), 0, nil)
}

// problem gives the answer that a problem stands for.
func (d *restDoorway) problem(ctx context.Context, what string, write bool, r *restReply) wire.Response {
	if !strings.HasPrefix(r.header.Get("Content-Type"), "application/problem+json") {
		return d.broken(ctx, what, fmt.Errorf("no problem document: %v", r))
	}
	p := r.problem()
	answer, err := p.answer(write || r.status >= 500)
	if err == nil && (r.status == http.StatusGatewayTimeout) != (answer.Status.Class() == wire.ClassUnknown) {
		err = fmt.Errorf("%s is told by %d", answer.Status, r.status)
	}
	if err != nil {
		return d.broken(ctx, what, fmt.Errorf("%w: %v", err, r))
	}
	if s := r.header.Get("Retry-After"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return d.broken(ctx, what, fmt.Errorf("Retry-After: %w", err))
		}
		answer.Ext = wire.AppendExtU32(nil, wire.ExtRetryAfter, uint32(n)*1000)
	}
	return answer
}

// answer gives the answer that a problem stands for. outcome: it is to tell what became of a change.
func (p *problem) answer(outcome bool) (wire.Response, error) {
	st, err := statusNamed(p.Title, p.Code)
	if err == nil {
		err = toldOutcome(outcome, st, p.Applied, p.Retryable)
	}
	failed := make([]wire.FailedCondition, len(p.Failed))
	for i, f := range p.Failed {
		failed[i] = wire.FailedCondition{Operation: f.Operation, Condition: f.Condition}
	}
	return errorAnswer(st, p.Detail, 0, failed), err
}

// json asks with a document, or with none, and reads one into out.
func (d *restDoorway) json(ctx context.Context, write bool, method, target string, q url.Values, in, out any) (wire.Response, bool) {
	what := method + " " + target
	header, body := map[string]string{}, []byte(nil)
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return d.broken(ctx, what, err), false
		}
		header["Content-Type"] = "application/json"
	}
	r, err := d.rest.do(ctx, method, target+"?"+q.Encode(), header, body)
	if err != nil {
		return d.broken(ctx, what, err), false
	}
	return d.read(ctx, what, write, r, out)
}

// read reads a document into out.
func (d *restDoorway) read(ctx context.Context, what string, write bool, r *restReply, out any) (wire.Response, bool) {
	if r.status != http.StatusOK {
		return d.problem(ctx, what, write, r), false
	}
	dec := json.NewDecoder(bytes.NewReader(r.body))
	dec.DisallowUnknownFields() // what is told and not translated would be lost
	if err := dec.Decode(out); err != nil {
		return d.broken(ctx, what, fmt.Errorf("%w in %.200s", err, r.body)), false
	}
	answer := wire.Response{}
	if v := r.header.Get("X-KV-Age-Ms"); v != "" {
		ms, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return d.broken(ctx, what, err), false
		}
		answer.Ext = wire.AppendExtU64(nil, wire.ExtAge, ms*1000)
	}
	return answer, true
}

// query gives the parameters that are common to many routes.
func (a *asked) query() url.Values {
	q := url.Values{}
	if a.namespace != "" {
		q.Set("namespace", a.namespace)
	}
	if a.stale {
		q.Set("consistency", "stale")
	}
	if a.maxAgeMs != 0 {
		q.Set("max_age_ms", strconv.FormatUint(a.maxAgeMs, 10))
	}
	if a.atLeast != 0 {
		q.Set("min_revision", strconv.FormatUint(a.atLeast, 10))
	}
	if a.atRevision != 0 {
		q.Set("revision", strconv.FormatUint(a.atRevision, 10))
	}
	return q
}

// conditionHeaders says the condition of a write in a header; ok is false where headers can't.
func (a *asked) conditionHeaders(header map[string]string) (ok bool) {
	if len(a.conditions) == 0 {
		return true
	}
	if len(a.conditions) > 1 {
		return false
	}
	switch c := a.conditions[0]; c.Kind {
	case wire.ConditionVersion:
		var tags []string
		for _, v := range versions(c) {
			tags = append(tags, strconv.Quote(strconv.FormatUint(v, 10)))
		}
		header["If-Match"] = strings.Join(tags, ", ")
	case wire.ConditionExists:
		header["If-Match"] = "*"
	case wire.ConditionAbsent:
		header["If-None-Match"] = "*"
	default:
		return false
	}
	return true
}

// single implements door.
func (d *restDoorway) single(ctx context.Context, a *asked) wire.Response {
	header := map[string]string{}
	if !a.conditionHeaders(header) {
		return d.alone(ctx, a)
	}
	q, method, target := a.query(), http.MethodGet, keyPath(a.key)
	if a.ttlMs != 0 {
		q.Set("ttl_ms", strconv.FormatUint(a.ttlMs, 10))
	}
	var body []byte
	switch a.op {
	case wire.OpExists:
		method = http.MethodHead
	case wire.OpPut:
		method, body = http.MethodPut, a.value
		for _, t := range a.tags {
			q.Add("tag."+t.name, t.value)
		}
		if a.compress != nil {
			q.Set("compress", a.compress.String())
		}
		if a.contentType != "" {
			header["Content-Type"] = a.contentType
		}
		if a.encoding != "" {
			header["Content-Encoding"] = a.encoding
		}
		if a.checksum != nil {
			header["X-KV-Checksum"] = fmt.Sprintf("xxh64=%016x", *a.checksum)
		}
	case wire.OpDelete:
		method = http.MethodDelete
	case wire.OpTouch:
		method = http.MethodPatch
		if a.ttlMs == 0 {
			q.Set("ttl_ms", "0")
		}
	case wire.OpIncrement:
		method, target = http.MethodPost, "/api/v1/increment/"+url.PathEscape(a.key)
		delta, _ := wire.DecodeIncrement(a.value)
		q.Set("delta", strconv.FormatInt(delta, 10))
	}
	what := method + " " + target
	r, err := d.rest.do(ctx, method, target+"?"+q.Encode(), header, body)
	if err != nil {
		return d.broken(ctx, what, err)
	}
	if a.op == wire.OpGet || a.op == wire.OpExists {
		if a.op == wire.OpExists && r.status != http.StatusOK {
			// HEAD has no body, so it can't say why: an absent key and an absent namespace are both 404.
			get := *a
			get.op = wire.OpGet
			return d.single(ctx, &get)
		}
		return d.record(ctx, what, r)
	}
	var told struct {
		Version uint64 `json:",string"`
		Value   int64  `json:",string"`
		Deleted *bool
	}
	answer, ok := d.read(ctx, what, true, r, &told)
	if !ok {
		return answer
	}
	if tag := r.header.Get("ETag"); a.op != wire.OpDelete && tag != strconv.Quote(strconv.FormatUint(told.Version, 10)) {
		return d.broken(ctx, what, fmt.Errorf("the ETag is %s: %v", tag, r))
	}
	answer.Payload = wire.AppendVersion(nil, told.Version)
	switch {
	case a.op == wire.OpIncrement:
		answer.Payload = wire.AppendCounter(nil, told.Version, told.Value)
	case a.op == wire.OpDelete && told.Deleted == nil:
		return d.broken(ctx, what, fmt.Errorf("an answer without deleted: %v", r))
	case a.op == wire.OpDelete && !*told.Deleted:
		answer.Status = wire.StatusNotFound
	}
	return answer
}

// alone executes a write as a transaction of one operation.
func (d *restDoorway) alone(ctx context.Context, a *asked) wire.Response {
	r := d.group(ctx, &asked{op: wire.OpTxn, namespace: a.namespace}, []asked{*a})
	if r.Status != wire.StatusOK {
		return r
	}
	_, _, items, err := wire.DecodeResult(r.Payload)
	var it wire.Item
	if err == nil {
		_, err = wire.NextItem(items, &it)
	}
	if err != nil {
		return d.broken(ctx, "transaction of one", err)
	}
	if it.Status == wire.StatusNotFound && a.op == wire.OpTouch {
		return errorAnswer(it.Status, "", 0, nil)
	}
	return wire.Response{Status: it.Status, Ext: it.Ext, Payload: it.Value}
}

// record reads the answer to GET and HEAD.
func (d *restDoorway) record(ctx context.Context, what string, r *restReply) wire.Response {
	if r.status != http.StatusOK {
		return d.problem(ctx, what, false, r)
	}
	rec := toldRecord{value: r.body, encoding: r.header.Get("Content-Encoding")}
	if v := r.header.Get("Content-Type"); v != "application/octet-stream" {
		rec.contentType = v
	}
	var errs []error
	text := func(name string) string { return r.header.Get(name) }
	rec.meta.Version = r.version()
	rec.meta.CreatedAt = micros(text("X-KV-Created-At"), &errs)
	rec.meta.UpdatedAt = micros(text("X-KV-Updated-At"), &errs)
	if v := text("X-KV-Expires-At"); v != "" {
		rec.meta.ExpiresAt = micros(v, &errs)
	}
	rec.meta.Checksum = checksumOf(text("X-KV-Checksum"), &errs)
	for name, values := range r.header {
		// Names of tags are in lower case, those of headers in any.
		if tag, ok := strings.CutPrefix(strings.ToLower(name), "x-kv-tag-"); ok {
			v, err := url.PathUnescape(values[0])
			errs = append(errs, err)
			if rec.tags == nil {
				rec.tags = make(map[string]string)
			}
			rec.tags[tag] = v
		}
	}
	answer := wire.Response{Ext: rec.ext(), Payload: rec.value}
	if v := text("X-KV-Age-Ms"); v != "" {
		ms, err := strconv.ParseUint(v, 10, 64)
		errs = append(errs, err)
		answer.Ext = wire.AppendExtU64(answer.Ext, wire.ExtAge, ms*1000)
	}
	if err := errors.Join(errs...); err != nil || rec.meta.Version == 0 {
		return d.broken(ctx, what, fmt.Errorf("the headers of a record: %v: %v", err, r.header))
	}
	return answer
}

// micros reads a time as Unix microseconds.
func micros(v string, errs *[]error) int64 {
	at, err := time.Parse(time.RFC3339Nano, v)
	*errs = append(*errs, err)
	return at.UnixMicro()
}

func checksumOf(v string, errs *[]error) uint64 {
	digits, ok := strings.CutPrefix(v, "xxh64=")
	sum, err := strconv.ParseUint(digits, 16, 64)
	if !ok {
		err = fmt.Errorf("checksum %q", v)
	}
	*errs = append(*errs, err)
	return sum
}

// admin implements door: the documents of namespaces.
func (d *restDoorway) admin(ctx context.Context, doc []byte) wire.Response {
	var in struct {
		Action    string          `json:"action"`
		Namespace string          `json:"namespace"`
		Settings  json.RawMessage `json:"settings"`
	}
	if err := json.Unmarshal(doc, &in); err != nil {
		return d.broken(ctx, "admin", err)
	}
	method, target, body, write := http.MethodGet, "/api/v1/admin/namespaces", any(nil), true
	one := target + "/" + url.PathEscape(in.Namespace)
	switch in.Action {
	case "namespace_create":
		method, body = http.MethodPost, map[string]any{"name": in.Namespace, "settings": in.Settings}
	case "namespace_set":
		method, target, body = http.MethodPut, one, map[string]any{"settings": in.Settings}
	case "namespace_drop":
		method, target = http.MethodDelete, one
	case "namespace_describe":
		target, write = one, false
	case "namespace_list":
		write = false
	default:
		return d.broken(ctx, "admin", fmt.Errorf("action %q is not translated", in.Action))
	}
	var out json.RawMessage
	answer, ok := d.json(ctx, write, method, target, nil, body, &out)
	if ok {
		answer.Payload = out
	}
	return answer
}
