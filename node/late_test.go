package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// A founder that waits for the others answers REST with what it waits for, and stops when it is told to.
func TestOpen_WhileFounding_RESTSaysWhatTheNodeWaitsFor(t *testing.T) {
	c := newCluster(t, 3, nil)
	id := c.ids[0]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := c.options(id)
	waits, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	o.Progress = func(text string) {
		if strings.HasPrefix(text, "waiting for ") {
			once.Do(func() { close(waits) })
		}
	}
	go func() { // ends when ctx does
		_, err := Open(ctx, o)
		ended <- err
	}()
	<-waits
	for _, r := range []struct{ method, path, applied string }{
		{http.MethodPut, "/api/v1/keys/a", `"applied":"no"`},
		{http.MethodGet, "/api/v1/keys/a", ""},
		{http.MethodGet, "/api/v1/admin/status", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, fmt.Sprintf("http://%s%s", o.HTTPListen, r.path), strings.NewReader("v"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "waiting for ") || !strings.Contains(string(body), r.applied) {
			t.Errorf("%s %s: %s %s, %v", r.method, r.path, resp.Status, body, err)
		}
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("a founder alone was opened")
	}
}
