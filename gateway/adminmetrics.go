package gateway

import (
	"bytes"
	"net/http"
	"time"

	"kvstore/wire"
)

const metricsPath = adminPath + "metrics"

// metricsContentType is that of Prometheus' text format.
const metricsContentType = "text/plain; version=0.0.4; charset=utf-8"

// metrics answers with what the operator's port shows: for those who reach this port alone.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request, rest string) {
	if s.o.Metrics == nil {
		s.nowhere(w, r, rest)
		return
	}
	if !allow(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	if ref := namespaceAlone(r); ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	// Gathered first: half a scrape, or an empty one, with status 200 would pass for a whole one.
	var b bytes.Buffer
	if err := s.o.Metrics(&b); err != nil {
		s.o.Logger.Error("the metrics can't be gathered", "error", err)
		refuse(w, false, wire.StatusRetryLater, "cannot gather the metrics: "+err.Error())
		return
	}
	size := int64(b.Len())
	if !s.answers.TryAcquire(size) {
		refuse(w, false, wire.StatusBusy, textBusyAnswers)
		return
	}
	defer s.answers.Release(size)
	// An error means that there is no connection (any more), which Write meets too.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.o.AnswerTimeout))
	w.Header().Set("Cache-Control", "no-store")
	sendJSON(w, http.StatusOK, metricsContentType, b.Bytes())
}
