package gateway

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Whoever announces a body and sends none, or takes no answer, does not hold a connection of the operator's port.
func TestOps_PeerThatStalls_IsCutOff(t *testing.T) {
	handled := make(chan error, 1)
	s := httptest.NewServer(timed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if r.URL.Path == "/large" {
			for b := make([]byte, 1<<20); err == nil; {
				_, err = w.Write(b)
			}
		}
		handled <- err
	}), 100*time.Millisecond))
	defer s.Close()
	for _, test := range []struct {
		target, header string
		fails          bool
	}{
		{"/metrics", "Content-Length: 10\r\n", false},
		{"/large", "", true},
	} {
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET "+test.target+" HTTP/1.1\r\nHost: test\r\n"+test.header+"\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-handled:
			if (err != nil) != test.fails {
				t.Errorf("%s: %v", test.target, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: still held", test.target)
		}
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the connection is still open: %v", test.target, err)
		}
	}
}

func TestOps_Profiles_HaveABoundOfTheirOwn(t *testing.T) {
	h := timed(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), time.Second)
	for seconds, want := range map[string]int{"": 204, "?seconds=600": 204, "?seconds=0.5": 204, "?seconds=601": 400, "?seconds=-1": 400, "?seconds=NaN": 400, "?seconds=x": 400} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/debug/pprof/profile"+seconds, nil))
		if w.Code != want {
			t.Errorf("%q: %d, want %d", seconds, w.Code, want)
		}
	}
}
