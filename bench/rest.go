package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"kvstore/wire"
)

// Routes of REST that are driven.
const (
	restKeys     = "/api/v1/keys/"
	restBatchPut = "/api/v1/batch/put"
	restStatus   = "/api/v1/admin/status"
)

// restAnswerMax bounds the answers that are read: the largest value fits.
const restAnswerMax = valueBytesMax + 1<<20

// RESTTarget is a Target through REST: Go's client with a kept connection for each caller.
type RESTTarget struct {
	keysOnly

	// Immutable.
	client    *http.Client
	transport *http.Transport
	endpoints []string
	timeout   time.Duration

	turn turns
}

// OpenREST connects to the REST ports of o.Endpoints, which are used in turn.
func OpenREST(ctx context.Context, o ClientOptions) (*RESTTarget, error) {
	setDefault(&o.Callers, 16)
	setDefault(&o.Timeout, timeoutDefault)
	if err := reach(ctx, o.Endpoints); err != nil {
		return nil, err
	}
	tr := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: o.Timeout}).DialContext,
		MaxIdleConnsPerHost: o.Callers,
		IdleConnTimeout:     time.Minute,
	}
	return &RESTTarget{client: &http.Client{Transport: tr}, transport: tr, endpoints: o.Endpoints, timeout: o.Timeout}, nil
}

// Close ends the connections.
func (t *RESTTarget) Close() error {
	t.transport.CloseIdleConnections()
	return nil
}

// Status returns the cluster's status as JSON.
func (t *RESTTarget) Status(ctx context.Context) ([]byte, error) {
	_, body, err := t.send(ctx, http.MethodGet, restStatus, nil, nil)
	return body, err
}

// Get implements Target.
func (t *RESTTarget) Get(ctx context.Context, key string, dst []byte) ([]byte, bool, error) {
	status, value, err := t.send(ctx, http.MethodGet, restKeys+key, nil, dst)
	if status == http.StatusNotFound && err == nil {
		return dst, false, nil
	}
	return value, err == nil, err
}

// Put implements Target.
func (t *RESTTarget) Put(ctx context.Context, key string, value []byte) error {
	_, _, err := t.send(ctx, http.MethodPut, restKeys+key, value, nil)
	return err
}

// PutMany implements Target.
func (t *RESTTarget) PutMany(ctx context.Context, keys []string, values [][]byte) error {
	type item struct {
		Key   string `json:"key"`
		Value []byte `json:"value"`
	}
	items := make([]item, len(keys))
	for i := range keys {
		items[i] = item{keys[i], values[i]}
	}
	doc, err := json.Marshal(map[string]any{"items": items})
	if err != nil {
		return fmt.Errorf("cannot encode batch: %w", err)
	}
	_, _, err = t.send(ctx, http.MethodPost, restBatchPut, doc, nil)
	return err
}

// send makes one request and appends the body of its answer to dst. An absent key is no error.
func (t *RESTTarget) send(ctx context.Context, method, path string, body, dst []byte) (status int, _ []byte, err error) {
	write := method != http.MethodGet
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	host := t.endpoints[t.turn.next(len(t.endpoints))]
	r := (&http.Request{
		Method: method, URL: &url.URL{Scheme: "http", Host: host, Path: path}, Host: host, Header: http.Header{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if write {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	resp, err := t.client.Do(r)
	if err != nil {
		return 0, dst, lostError(err, write)
	}
	defer resp.Body.Close()
	out, err := readAnswer(resp, dst)
	if err != nil {
		return 0, dst, lostError(err, write)
	}
	if resp.StatusCode < 300 {
		return resp.StatusCode, out, nil
	}
	p, ours := problemOf(resp, out[len(dst):])
	if !write && ours && p.Title == wire.StatusNotFound.Info().Name {
		return http.StatusNotFound, dst, nil
	}
	return resp.StatusCode, dst, restError(resp.StatusCode, p, ours, write)
}

// readAnswer appends the body to dst.
func readAnswer(resp *http.Response, dst []byte) ([]byte, error) {
	n := resp.ContentLength
	if n > restAnswerMax {
		return dst, fmt.Errorf("an answer of %d bytes; at most %d are read", n, restAnswerMax)
	}
	if n < 0 {
		more, err := io.ReadAll(io.LimitReader(resp.Body, restAnswerMax))
		return append(dst, more...), err
	}
	out := slices.Grow(dst, int(n))[:len(dst)+int(n)]
	if _, err := io.ReadFull(resp.Body, out[len(dst):]); err != nil {
		return dst, err
	}
	// The end is read too, or the connection could not be used again.
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return dst, err
	}
	return out, nil
}

// problem is what a problem document says that matters here.
type problem struct {
	Title   string `json:"title"`
	Detail  string `json:"detail"`
	Code    string `json:"code"`
	Applied string `json:"applied"`
}

// problemOf reads a problem document; ours is false for an error that somebody else on the way made up.
func problemOf(resp *http.Response, body []byte) (p problem, ours bool) {
	ours = strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") && json.Unmarshal(body, &p) == nil && strings.HasPrefix(p.Code, "KV-")
	return p, ours
}

// restError sorts an answer that is none of success.
func restError(status int, p problem, ours, write bool) error {
	kind := KindOther
	switch {
	case write && (p.Applied == wire.StatusTimeout.Applied() || !ours && status >= http.StatusInternalServerError):
		kind = KindUnknown
	case status == http.StatusServiceUnavailable:
		kind = KindUnavailable
	case status == http.StatusTooManyRequests:
		kind = KindBusy
	case status == http.StatusGatewayTimeout:
		kind = KindTimeout
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		kind = KindDenied
	case status >= 400 && status < 500:
		kind = KindRefused
	}
	return &doorError{kind, fmt.Errorf("%d %s: %s", status, p.Title, p.Detail)}
}

// lostError sorts a failure without an answer: of a write that was sent, nobody knows the outcome.
func lostError(err error, write bool) error {
	var op *net.OpError
	dialled := errors.As(err, &op) && op.Op == "dial"
	switch {
	case write && !dialled:
		return &doorError{KindUnknown, err}
	case errors.Is(err, context.DeadlineExceeded):
		return &doorError{KindTimeout, err}
	}
	return &doorError{KindUnavailable, err}
}

// Pipeline implements Target.
func (t *RESTTarget) Pipeline(ctx context.Context, depth int) Pipeline { return Spawn(ctx, t, depth) }
