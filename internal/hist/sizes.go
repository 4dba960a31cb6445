package hist

import "io"

// Sizes counts plain numbers: operations per batch, bytes per entry, frames per read. The zero value is
// ready; it must not be copied after first use. All methods may be called from any goroutine.
type Sizes struct {
	core core
}

// Observe counts one number. Zero falls under the first bound, 1; a negative one counts as zero.
func (h *Sizes) Observe(n int) {
	v := uint64(max(n, 0))
	var x uint64
	if v > 0 {
		x = v - 1
	}
	h.core.observe(bucketIndex(x), v)
}

// Add adds what other has counted so far to h; other stays as it is.
func (h *Sizes) Add(other *Sizes) {
	h.core.add(&other.core)
}

// AddTo adds what h has counted so far to s, with the caveat of Histogram.AddTo.
func (h *Sizes) AddTo(s *SizesSnapshot) {
	h.core.addTo(&s.data)
}

// Snapshot returns a copy of what h has counted so far, with the caveat of Histogram.AddTo.
func (h *Sizes) Snapshot() *SizesSnapshot {
	s := new(SizesSnapshot)
	h.AddTo(s)
	return s
}

// WritePrometheus writes h as SizesSnapshot.WritePrometheus does.
func (h *Sizes) WritePrometheus(w io.Writer, name, labels string) error {
	return h.Snapshot().WritePrometheus(w, name, labels)
}

// SizesSnapshot is a plain copy of one or several Sizes. The zero value is empty. It belongs to one
// goroutine at a time.
type SizesSnapshot struct {
	data data
}

// Merge adds other to s; other stays as it is.
func (s *SizesSnapshot) Merge(other *SizesSnapshot) {
	s.data.merge(&other.data)
}

// Count returns the number of observations.
func (s *SizesSnapshot) Count() uint64 { return s.data.count }

// Sum returns the sum of all observations.
func (s *SizesSnapshot) Sum() uint64 { return s.data.sum }

// Quantile estimates the q-quantile, 0 ≤ q ≤ 1 (outside values are clamped): the error is at most one
// bucket, 12.5 % of the value, or 1 below 16. It is 0 without observations and 134,217,728 when the
// quantile lies above the last bound.
func (s *SizesSnapshot) Quantile(q float64) float64 {
	return s.data.quantile(q)
}

// WritePrometheus writes the text format: cumulative `le` buckets at every power of two from 1 to
// 134,217,728 and +Inf, then _sum and _count. labels is the inside of the braces without le, or empty.
// The error is that of w.
func (s *SizesSnapshot) WritePrometheus(w io.Writer, name, labels string) error {
	buf := s.data.appendPrometheus(make([]byte, 0, 4096), name, labels, 0, 1, float64(s.data.sum))
	_, err := w.Write(buf)
	return err
}

// SizesSet holds one Sizes per event loop (or worker); Snapshot merges them. Immutable after
// NewSizesSet, apart from the counts.
type SizesSet struct {
	shards []Sizes
}

// NewSizesSet returns a set of n ≥ 1 empty ones.
func NewSizesSet(n int) *SizesSet {
	return &SizesSet{shards: make([]Sizes, n)}
}

// Shard returns the Sizes of loop i, 0 ≤ i < n. Keep the pointer: it never changes.
func (s *SizesSet) Shard(i int) *Sizes { return &s.shards[i] }

// Snapshot returns the sum of all shards.
func (s *SizesSet) Snapshot() *SizesSnapshot {
	sum := new(SizesSnapshot)
	for i := range s.shards {
		s.shards[i].AddTo(sum)
	}
	return sum
}
