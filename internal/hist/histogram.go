package hist

import (
	"io"
	"time"
)

// Histogram counts durations. The zero value is ready; it must not be copied after first use. All
// methods may be called from any goroutine.
type Histogram struct {
	core core
}

// Observe counts one duration. A negative one (a clock that stepped back) counts as zero.
func (h *Histogram) Observe(d time.Duration) { h.ObserveN(d, 1) }

// ObserveN counts n durations that are all d.
func (h *Histogram) ObserveN(d time.Duration, n uint64) {
	ns := uint64(max(d, 0))
	var x uint64
	if ns > 0 {
		x = (ns - 1) / stepsNs
	}
	h.core.observeN(bucketIndex(x), ns, n)
}

// Add adds what other has counted so far to h; other stays as it is.
func (h *Histogram) Add(other *Histogram) {
	h.core.add(&other.core)
}

// AddTo adds what h has counted so far to s. It is how a scrape merges per-loop histograms without a
// copy of each. Observations that arrive meanwhile may be missed until the next scrape, and the sum
// may be ahead of or behind the counts by those; no observation is ever counted twice or lost.
func (h *Histogram) AddTo(s *Snapshot) {
	h.core.addTo(&s.data)
}

// Snapshot returns a copy of what h has counted so far, with the same caveat as AddTo.
func (h *Histogram) Snapshot() *Snapshot {
	s := new(Snapshot)
	h.AddTo(s)
	return s
}

// WritePrometheus writes h as Snapshot.WritePrometheus does.
func (h *Histogram) WritePrometheus(w io.Writer, name, labels string) error {
	return h.Snapshot().WritePrometheus(w, name, labels)
}

// Snapshot is a plain copy of one or several Histograms. The zero value is empty. It belongs to one
// goroutine at a time.
type Snapshot struct {
	data data
}

// Merge adds other to s; other stays as it is.
func (s *Snapshot) Merge(other *Snapshot) {
	s.data.merge(&other.data)
}

// Count returns the number of observations.
func (s *Snapshot) Count() uint64 { return s.data.count }

// Sum returns the sum of all observations. It wraps after 292 years of summed time.
func (s *Snapshot) Sum() time.Duration { return time.Duration(s.data.sum) }

// Quantile estimates the q-quantile, 0 ≤ q ≤ 1 (outside values are clamped): the error is at most one
// bucket, 12.5 % of the value, or 125 ns below 1 µs. It is 0 without observations and 16.777216 s when
// the quantile lies above the last bound.
func (s *Snapshot) Quantile(q float64) time.Duration {
	return time.Duration(s.data.quantile(q) * stepsNs)
}

// WritePrometheus writes the text format: cumulative `le` buckets in seconds at every power of two from
// 1 µs to 16.777216 s and +Inf, then _sum in seconds and _count. labels is the inside of the braces
// without le, such as `operation="get",status="ok"`, or empty. The error is that of w.
func (s *Snapshot) WritePrometheus(w io.Writer, name, labels string) error {
	// 2^3 steps are 1 µs: the first bound.
	buf := s.data.appendPrometheus(make([]byte, 0, 4096), name, labels, subBits, 1e6, float64(s.data.sum)/1e9)
	_, err := w.Write(buf)
	return err
}

// HistogramSet holds one Histogram per event loop (or worker), so that no two cores write one cache
// line; Snapshot merges them. Immutable after NewHistogramSet, apart from the counts.
type HistogramSet struct {
	shards []Histogram
}

// NewHistogramSet returns a set of n ≥ 1 empty histograms.
func NewHistogramSet(n int) *HistogramSet {
	return &HistogramSet{shards: make([]Histogram, n)}
}

// Shard returns the histogram of loop i, 0 ≤ i < n. Keep the pointer: it never changes.
func (s *HistogramSet) Shard(i int) *Histogram { return &s.shards[i] }

// Snapshot returns the sum of all shards.
func (s *HistogramSet) Snapshot() *Snapshot {
	sum := new(Snapshot)
	for i := range s.shards {
		s.shards[i].AddTo(sum)
	}
	return sum
}
