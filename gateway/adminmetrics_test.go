package gateway

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestMetrics_AreThoseOfTheOperatorsPort_OrAProblem(t *testing.T) {
	var failed error
	text := "kvstore_up 1\n" + strings.Repeat("kvstore_more 1\n", 100)
	_, s := start(t, func(o *Options) {
		o.Metrics = func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return errors.Join(err, failed)
		}
	})
	resp, body := send(t, s, "GET", metricsPath, "")
	if resp.StatusCode != 200 || body != text || resp.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
	}
	if resp, body := send(t, s, "HEAD", metricsPath, ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %q", resp.StatusCode, body)
	}
	failed = errors.New("full")
	resp, body = send(t, s, "GET", metricsPath, "")
	if p := decode(t, body); resp.StatusCode != 503 || !p.Retryable || p.Applied != "no" || !strings.Contains(p.Detail, "full") {
		t.Errorf("half a scrape: %d %+v", resp.StatusCode, p)
	}
	_, without := start(t, nil)
	if resp, body := send(t, without, "GET", metricsPath, ""); resp.StatusCode != 404 || decode(t, body).Title != "NO_ROUTE" {
		t.Errorf("without metrics: %d %s", resp.StatusCode, body)
	}
}

// What speaks of the whole node takes the namespace that every route takes, and no other parameter.
func TestStatus_Query_HoldsANamespaceAtMost(t *testing.T) {
	_, s := start(t, nil)
	for query, want := range map[string]int{"": 200, "?namespace=app": 200, "?namespace=-": 400, "?namespace=a&namespace=b": 400, "?local=1": 400} {
		if resp, body := send(t, s, "GET", statusPath+query, ""); resp.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", query, resp.StatusCode, body, want)
		}
	}
}

func TestNoRoute_ToAChange_SaysThatNothingWasChanged(t *testing.T) {
	_, s := start(t, nil)
	for method, want := range map[string]string{"GET": "", "PUT": "no", "POST": "no", "DELETE": "no", "PATCH": "no"} {
		for _, path := range []string{"/api/v1/nothing", adminPath + "nothing"} {
			resp, body := send(t, s, method, path, "")
			if p := decode(t, body); resp.StatusCode != 404 || p.Title != "NO_ROUTE" || p.Applied != want {
				t.Errorf("%s %s: %d %+v", method, path, resp.StatusCode, p)
			}
		}
	}
}
