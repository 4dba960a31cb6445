package netloop

import (
	"fmt"
	"io"
	"strings"

	"kvstore/internal/hist"
)

// DurationMetric is the family that WriteDurations writes. All doors share it, so whoever assembles the
// scrape writes its header once, with hist.WriteHeader and DurationHelp.
const (
	DurationMetric = "kvstore_request_duration_seconds"
	DurationHelp   = "Time from the arrival of a request to its answer, by operation, protocol and class of status (ok, retry, refused, unknown)."
)

// WriteDurations writes the samples of kvstore_request_duration_seconds for protocol="native", without
// the family's header. Label sets that never occurred are left out. The error is that of w.
func (s *Server) WriteDurations(w io.Writer) error {
	c := s.core
	c.mu.Lock()
	shards := c.shards
	c.mu.Unlock()
	for op := range ops {
		for class := range classes {
			var sum hist.Snapshot
			for _, sh := range shards {
				sh.durations[op][class].AddTo(&sum)
			}
			if sum.Count() == 0 {
				continue
			}
			labels := `operation="` + opNames[op] + `",protocol="native",status="` + classNames[class] + `"`
			if err := sum.WritePrometheus(w, DurationMetric, labels); err != nil {
				return err
			}
		}
	}
	return nil
}

// WriteMetrics writes every other family of this door in Prometheus text format. The error is that of w.
func (s *Server) WriteMetrics(w io.Writer) error {
	st := s.Stats()
	var b strings.Builder
	family := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	single := func(name, kind, help string, v any) {
		family(name, kind, help)
		fmt.Fprintf(&b, "%s %v\n", name, v)
	}
	labelled := func(name, help string, names []string, values map[string]uint64) {
		family(name, "counter", help)
		for _, n := range names {
			fmt.Fprintf(&b, "%s{reason=%q} %d\n", name, n, values[n])
		}
	}
	single("kvstore_native_connections", "gauge", "Connections being served.", st.ConnsOpen)
	single("kvstore_native_handshakes", "gauge", "Connections between accept and the end of HELLO.", st.Handshakes)
	single("kvstore_native_connections_total", "counter", "Connections that completed HELLO.", st.ConnsTotal)
	labelled("kvstore_native_connections_refused_total", "Connections that were not served, by reason.", refuseNames[:], st.Refused)
	labelled("kvstore_native_connections_closed_total", "Served connections that ended, by reason.", closeNames[:], st.Closed)
	labelled("kvstore_native_busy_total", "Requests answered BUSY by this door, by reason.", busyNames[:], st.Busy)
	single("kvstore_native_received_bytes_total", "counter", "Bytes read from clients.", st.BytesInTotal)
	single("kvstore_native_sent_bytes_total", "counter", "Bytes written to clients.", st.BytesOutTotal)
	single("kvstore_native_requests_total", "counter", "Frames received, refused ones included.", st.RequestsTotal)
	single("kvstore_native_loop_wakes_total", "counter", "Wake-ups of event loops by answers.", st.WakesTotal)
	single("kvstore_native_accept_errors_total", "counter", "Failed accepts, such as running out of files.", st.AcceptErrorsTotal)
	single("kvstore_native_panics_total", "counter", "Panics that were caught; each cost a connection.", st.PanicsTotal)
	single("kvstore_native_stream_waits_total", "counter", "Frames of streams that found too much pending on their connection and wait.", st.StreamWaitsTotal)
	single("kvstore_native_inflight_requests", "gauge", "Requests not answered yet.", st.Inflight)
	single("kvstore_native_out_bytes", "gauge", "Bytes of answers that wait to be written.", st.OutBytes)
	single("kvstore_native_stream_bytes", "gauge", "Bytes among them that are frames of watches and streamed listings.", st.StreamBytes)
	single("kvstore_native_out_buffer_bytes", "gauge", "Memory of the buffers that hold them.", st.OutBufferBytes)
	single("kvstore_native_big_frame_bytes", "gauge", "Memory of incomplete and unpacked frames above 64 KiB.", st.BigFrameBytes)

	var sizes hist.SizesSnapshot
	c := s.core
	c.mu.Lock()
	shards := c.shards
	c.mu.Unlock()
	for _, sh := range shards {
		sh.bunchSizes.AddTo(&sizes)
	}
	const bunch = "kvstore_native_bunch_requests"
	if err := hist.WriteHeader(&b, bunch, "Requests handed on at once."); err != nil {
		return err
	}
	if err := sizes.WritePrometheus(&b, bunch, ""); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}
