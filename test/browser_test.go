package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// page is a site as an operator may put it in front of the cluster: one page, and beside it /api of whichever node
// stands behind it at the time. The page sends what its EventSource shows to /seen, in order.
type page struct {
	script string
	node   atomic.Pointer[url.URL]

	mu sync.Mutex
	// Guarded by mu.
	seen []pageEvent
	more chan struct{} // a token: seen has grown
	from []string      // Last-Event-ID of each request for the stream
}

// pageEvent is one event that the page was shown.
type pageEvent struct{ Kind, ID, Key string }

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!doctype html><script>
let sent = Promise.resolve();
function show(kind, id, key) {
  sent = sent.then(() => fetch("/seen", {method: "POST", body: JSON.stringify({kind, id, key})}));
}
%s
</script>`, p.script)
	case "/seen":
		var s pageEvent
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.mu.Lock()
		p.seen = append(p.seen, s)
		p.mu.Unlock()
		select {
		case p.more <- struct{}{}:
		default:
		}
	default:
		p.mu.Lock()
		p.from = append(p.from, r.Header.Get("Last-Event-ID"))
		p.mu.Unlock()
		proxy := httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(pr *httputil.ProxyRequest) { pr.SetURL(p.node.Load()) }}
		proxy.ServeHTTP(w, r)
	}
}

// wait waits until the page has been shown n events.
func (p *page) wait(t *testing.T, n int) []pageEvent {
	t.Helper()
	for deadline := time.After(patience); ; {
		p.mu.Lock()
		all := slices.Clone(p.seen)
		p.mu.Unlock()
		if len(all) >= n {
			return all
		}
		select {
		case <-p.more:
		case <-deadline:
			t.Fatalf("after %v the page has been shown %d events, want %d", patience, len(all), n)
		}
	}
}

// TestBrowser_EventSource_GoesOnThroughTheDeathOfItsNode runs the script of README.md in a real browser, whose
// EventSource comes back by itself, at another node, with the id of what it saw last.
func TestBrowser_EventSource_GoesOnThroughTheDeathOfItsNode(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium here, which .ci/run installs where it can: ", err)
	}
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	c := openAt(t, cl.Addrs())
	p := &page{script: readmeBlock(t, "run by test/browser_test.go"), more: make(chan struct{}, 1)}
	behind := func(i int) { p.node.Store(&url.URL{Scheme: "http", Host: cl.Node(i).HTTPAddr()}) }
	leader := cl.MustLead()
	behind(leader)
	site := httptest.NewServer(p)
	t.Cleanup(site.Close)

	ctx, cancel := context.WithCancel(t.Context())
	browser := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--user-data-dir="+t.TempDir(), site.URL)
	output, err := os.CreateTemp(t.TempDir(), "chromium")
	if err != nil {
		t.Fatal(err)
	}
	browser.Stdout, browser.Stderr = output, output
	browser.WaitDelay = 10 * time.Second
	if err := browser.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		var killed *exec.ExitError
		if err := browser.Wait(); err != nil && !errors.As(err, &killed) {
			t.Error(err)
		}
		if t.Failed() {
			if b, err := os.ReadFile(output.Name()); err == nil {
				t.Logf("chromium said:\n%s", b)
			}
		}
	})

	var want []pageEvent
	put := func(key string) {
		t.Helper()
		v, err := c.Put(ctx, key, []byte("v"))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, pageEvent{"put", strconv.FormatUint(uint64(v), 10), key})
	}
	// The watch begins where it is when the page asks: what comes before it is not shown.
	eventually(t, "the page watches", func() (bool, error) {
		if _, err := c.Put(ctx, "app/first", []byte("v")); err != nil {
			return false, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.seen) > 0, nil
	})
	put("app/begin")
	from := 0
	eventually(t, "the page has been shown all of the beginning", func() (bool, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		from = len(p.seen)
		return p.seen[from-1] == want[0], nil
	})
	want = want[:0]
	for i := range 30 {
		put(fmt.Sprintf("app/%d", i))
		put(fmt.Sprintf("other/%d", i)) // nothing to the page
		want = want[:len(want)-1]
		if i == 10 {
			p.wait(t, from+5)
			behind((leader + 1) % 3)
			cl.Kill(leader)
		}
	}
	ok, v, err := c.Delete(ctx, "app/0")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	want = append(want, pageEvent{"delete", strconv.FormatUint(uint64(v), 10), "app/0"})
	got := p.wait(t, from+len(want))[from:]
	if !slices.Equal(got, want) {
		t.Errorf("the page was shown\n%v, want\n%v", got, want)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.from[len(p.from)-1]; len(p.from) < 2 || last == "" {
		t.Errorf("the streams were asked for behind %q: the browser has not come back by Last-Event-ID", p.from)
	}
}
