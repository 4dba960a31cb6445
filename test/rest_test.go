package test

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
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// restClient speaks REST with one node and with no other.
type restClient struct {
	node *testcluster.Node
	http *http.Client
}

// openREST makes a client; its connections are closed with the test.
func openREST(t *testing.T, n *testcluster.Node, timeout time.Duration) *restClient {
	t.Helper()
	tr := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	return &restClient{node: n, http: &http.Client{Transport: tr, Timeout: timeout}}
}

// restReply is what a node answered.
type restReply struct {
	status int
	header http.Header
	body   []byte
}

// do sends one request; target begins with /. An error means that no answer came.
func (c *restClient) do(ctx context.Context, method, target string, header map[string]string, body []byte) (*restReply, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.node.HTTPAddr()+target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	return &restReply{resp.StatusCode, resp.Header, b}, nil
}

func keyPath(key string) string { return "/api/v1/keys/" + url.PathEscape(key) }

// problem is a problem document.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	Applied   string `json:"applied"`
	Retryable bool   `json:"retryable"`
	Committed *bool  `json:"committed"`
	RequestID string `json:"request_id"`
	Failed    []struct {
		Operation, Condition uint32
		Key                  string
	} `json:"failed"`
}

func (r *restReply) problem() (p problem) {
	if strings.HasPrefix(r.header.Get("Content-Type"), "application/problem+json") {
		// A document that can't be read tells nothing, which is what its zero value says.
		_ = json.Unmarshal(r.body, &p)
	}
	return p
}

// version reads the ETag; 0 if there is none.
func (r *restReply) version() uint64 {
	v, err := strconv.ParseUint(strings.Trim(r.header.Get("ETag"), `"`), 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// notSent reports whether a request surely did not reach the server.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// writeOutcome sorts the answer to a write. ok: applied; failed: a condition did not hold; else the error
// says whether it may have been applied.
func (r *restReply) writeOutcome(err error) (o outcome, failed bool) {
	switch {
	case err != nil && notSent(err):
		return refused, false
	case err != nil:
		return unknown, false
	case r.status == http.StatusOK:
		return acked, false
	case r.status == http.StatusPreconditionFailed:
		return refused, true
	case r.problem().Applied == "no":
		return refused, false
	case r.problem().Code != "" && (r.status == http.StatusServiceUnavailable || r.status == http.StatusTooManyRequests):
		return refused, false
	}
	return unknown, false
}

// mustDo is do that ends the test when no answer comes.
func (c *restClient) mustDo(t *testing.T, method, target string, header map[string]string, body []byte) *restReply {
	t.Helper()
	r, err := c.do(context.Background(), method, target, header, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// String gives the answer for people.
func (r *restReply) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }
