package gateway

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"kvstore/internal/hist"
	"kvstore/wire"
)

// restOps are the operations that the door serves.
var restOps = [...]wire.Opcode{wire.OpGet, wire.OpPut, wire.OpDelete, wire.OpStatus}

// outcomes are the classes of status that a request's duration is counted under; the binary protocol's
// door uses the same names.
var outcomes = [...]string{"ok", "retry", "refused", "unknown"}

// outcome sorts an HTTP status: an absent key and a failed condition are results, not failures.
func outcome(status int) int {
	switch {
	case status < 400, status == http.StatusNotFound, status == http.StatusPreconditionFailed:
		return 0
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return 1
	case status < 500:
		return 2
	default:
		return 3
	}
}

// requestStats is a histogram for each operation and outcome.
type requestStats struct {
	durations [len(restOps)][len(outcomes)]hist.Histogram
}

func (s *requestStats) observe(op wire.Opcode, status int, d time.Duration) {
	for i, o := range restOps {
		if o == op {
			s.durations[i][outcome(status)].Observe(d)
			return
		}
	}
}

// WriteDurations writes the series of kvstore_request_duration_seconds for this door, without the
// family's header: other doors contribute to the same family.
func (s *Server) WriteDurations(w io.Writer) error {
	for i, op := range restOps {
		for class, name := range outcomes {
			h := &s.stats.durations[i][class]
			snap := h.Snapshot()
			if snap.Count() == 0 {
				continue
			}
			labels := fmt.Sprintf(`operation=%q,protocol="rest",status=%q`, op, name)
			if err := snap.WritePrometheus(w, "kvstore_request_duration_seconds", labels); err != nil {
				return err
			}
		}
	}
	return nil
}
