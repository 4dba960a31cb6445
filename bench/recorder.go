package bench

import (
	"runtime"
	"sync"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms hold nanoseconds from 100 ns to ten minutes with three significant digits; longer latencies
// count as ten minutes. Shards, not one histogram per worker: each histogram takes about 200 KB.
const (
	latencyMin    = 100
	latencyMax    = int64(10 * time.Minute)
	latencyDigits = 3
)

func newHistogram() *hdr.Histogram { return hdr.New(latencyMin, latencyMax, latencyDigits) }

// record adds one latency to h.
func record(h *hdr.Histogram, d time.Duration) {
	if err := h.RecordValue(min(max(int64(d), 0), latencyMax)); err != nil {
		panic("BUG: latency outside the histogram: " + err.Error())
	}
}

// recorder gathers the outcomes of a run.
type recorder struct {
	shards []recorderShard

	// Immutable after newRecorder: the window, as offsets from the run's start.
	from, until time.Duration
}

type recorderShard struct {
	mu sync.Mutex
	// Guarded by mu.
	ops  [opCount]opStats
	last time.Duration

	_ [64]byte // keeps neighbouring locks off one cache line
}

type opStats struct {
	latency *hdr.Histogram
	misses  uint64
	errors  [kindCount]uint64
	// sample is the text of the first error of each kind.
	sample [kindCount]string
}

func newRecorder(workers int, from, until time.Duration) *recorder {
	return &recorder{shards: make([]recorderShard, min(workers, 4*runtime.GOMAXPROCS(0))), from: from, until: until}
}

// outcome is how one operation ended.
type outcome struct {
	op   Op
	miss bool
	err  error
	kind Kind
}

// add records an operation of a worker that was due and ended at the given offsets from the run's start.
func (r *recorder) add(worker int, due, end time.Duration, o outcome) {
	if due < r.from || due >= r.until {
		return
	}
	s := &r.shards[worker%len(r.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.ops[o.op]
	s.last = max(s.last, end)
	if o.err != nil {
		if st.errors[o.kind] == 0 {
			st.sample[o.kind] = o.err.Error()
		}
		st.errors[o.kind]++
		return
	}
	if st.latency == nil {
		st.latency = newHistogram()
	}
	record(st.latency, end-due)
	if o.miss {
		st.misses++
	}
}

// totals merges all shards. Call it when no worker records any more.
func (r *recorder) totals() (ops [opCount]opStats, last time.Duration) {
	for i := range r.shards {
		s := &r.shards[i]
		last = max(last, s.last)
		for op := range s.ops {
			from, to := &s.ops[op], &ops[op]
			if from.latency != nil {
				if to.latency == nil {
					to.latency = newHistogram()
				}
				to.latency.Merge(from.latency)
			}
			to.misses += from.misses
			for k := range from.errors {
				to.errors[k] += from.errors[k]
				if to.sample[k] == "" {
					to.sample[k] = from.sample[k]
				}
			}
		}
	}
	return ops, last
}
