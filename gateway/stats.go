package gateway

import (
	"fmt"
	"io"
	"time"

	"kvstore/internal/hist"
	"kvstore/wire"
)

// doorOps are the operations that the doors of this package serve.
var doorOps = [...]wire.Opcode{wire.OpGet, wire.OpPut, wire.OpDelete, wire.OpStatus, wire.OpAdmin,
	wire.OpTouch, wire.OpIncrement, wire.OpScan, wire.OpMultiGet, wire.OpBatch, wire.OpTxn, wire.OpWatch}

// The protocols, as metrics and the log of requests call them.
const (
	protocolREST = "rest"
	protocolGRPC = "grpc"
)

// outcomes names the classes of status that a request's duration is counted under, by wire.Class; the
// binary protocol's door uses the same names.
var outcomes = [...]string{wire.ClassResult: "ok", wire.ClassRetry: "retry", wire.ClassRefused: "refused", wire.ClassUnknown: "unknown"}

// requestStats is a histogram for each operation and outcome.
type requestStats struct {
	durations [len(doorOps)][len(outcomes)]hist.Histogram
}

// observe counts one request; a request that is none of doorOps is not counted.
func (s *requestStats) observe(op wire.Opcode, class wire.Class, d time.Duration) {
	for i, o := range doorOps {
		if o == op {
			s.durations[i][class].Observe(d)
			return
		}
	}
}

// WriteDurations writes the series of kvstore_request_duration_seconds for this door, without the
// family's header: other doors contribute to the same family.
func (s *Server) WriteDurations(w io.Writer) error { return s.stats.write(w, protocolREST) }

// write writes the histograms of a door.
func (s *requestStats) write(w io.Writer, protocol string) error {
	for i, op := range doorOps {
		for class, name := range outcomes {
			h := &s.durations[i][class]
			snap := h.Snapshot()
			if snap.Count() == 0 {
				continue
			}
			labels := fmt.Sprintf(`operation=%q,protocol=%q,status=%q`, op, protocol, name)
			if err := snap.WritePrometheus(w, "kvstore_request_duration_seconds", labels); err != nil {
				return err
			}
		}
	}
	return nil
}
