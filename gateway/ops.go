package gateway

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"kvstore/internal/failpoint"
)

// Check is the state of one thing that readiness depends on.
type Check struct {
	Name string
	// Err is nil when all is well.
	Err error
}

// Operations is what the operator's port shows.
type Operations interface {
	// Checks gives the checks of readiness, in a fixed order.
	Checks() []Check
	// WriteMetrics writes all metrics as Prometheus text.
	WriteMetrics(w io.Writer) error
}

// NewOps builds the operator's port: /metrics, /livez, /readyz, /health and /debug/pprof, and /debug/failpoints in a
// build that has them.
func NewOps(o Operations) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		// Gathered first: half a scrape, or an empty one, with status 200 would pass for a whole one.
		var b bytes.Buffer
		if err := o.WriteMetrics(&b); err != nil {
			http.Error(w, "cannot gather the metrics: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", metricsContentType)
		w.Write(b.Bytes()) // an error means that the scraper is gone
	})
	// Alive means that the process answers; it never fails for a lost quorum, or a supervisor would
	// restart a node that can only wait.
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	ready := func(w http.ResponseWriter, r *http.Request) { readyz(w, r, o.Checks()) }
	mux.HandleFunc("GET /readyz", ready)
	mux.HandleFunc("GET /health", ready)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.Handle("GET /debug/pprof/mutex", mutexes.profile(pprof.Handler("mutex")))
	mux.Handle("GET /debug/pprof/block", blocks.profile(pprof.Handler("block")))
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	if failpoint.Enabled {
		mux.Handle("/debug/failpoints", failpoint.Handler())
	}
	return &http.Server{Handler: timed(mux, opsTime), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: headerBytesMax}
}

const (
	// opsTime is how long a request of the operator's port may take to be read and answered.
	opsTime = 30 * time.Second
	// profileSecondsMax bounds the longest profile or trace.
	profileSecondsMax = 600
)

// timed bounds what a peer that neither sends nor takes anything can hold. A profile takes as long as it is asked to
// besides; a fixed http.Server.WriteTimeout would refuse it.
func timed(next http.Handler, most time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit := most
		if strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
			seconds, err := strconv.ParseFloat(cmp.Or(r.URL.Query().Get("seconds"), "30"), 64)
			if err != nil || !(seconds >= 0 && seconds <= profileSecondsMax) {
				http.Error(w, fmt.Sprintf("seconds is not a number from 0 to %d", profileSecondsMax), http.StatusBadRequest)
				return
			}
			limit += time.Duration(seconds * float64(time.Second))
		}
		// Errors mean that there is no connection (any more): whoever reads or writes meets it.
		c := http.NewResponseController(w)
		_ = c.SetWriteDeadline(time.Now().Add(limit))
		if r.ContentLength != 0 {
			// net/http reads what the handler leaves.
			_ = c.SetReadDeadline(time.Now().Add(limit))
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// readyz answers 200 when every check passes, else 503. ?exclude=NAME leaves a check out, ?verbose lists
// them.
func readyz(w http.ResponseWriter, r *http.Request, checks []Check) {
	q := r.URL.Query()
	status := http.StatusOK
	for _, c := range checks {
		if c.Err != nil && !slices.Contains(q["exclude"], c.Name) {
			status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if _, verbose := q["verbose"]; verbose || status != http.StatusOK {
		for _, c := range checks {
			switch {
			case slices.Contains(q["exclude"], c.Name):
				fmt.Fprintf(w, "[+] %s excluded: ok\n", c.Name)
			case c.Err != nil:
				fmt.Fprintf(w, "[-] %s failed: %v\n", c.Name, c.Err)
			default:
				fmt.Fprintf(w, "[+] %s ok\n", c.Name)
			}
		}
	}
	if status == http.StatusOK {
		fmt.Fprintln(w, "ok")
	} else {
		fmt.Fprintln(w, "not ready")
	}
}
