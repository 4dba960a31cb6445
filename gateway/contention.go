package gateway

import (
	"net/http"
	"runtime"
	"sync"
)

const (
	// mutexFraction samples one of so many contended locks.
	mutexFraction = 10
	// blockRateNs samples one blocking event for so many nanoseconds of blocking: 10 µs are the order of one hand-off
	// between goroutines, of which a busy node has hundreds of thousands a second.
	blockRateNs = 10_000
)

// sampler switches one of the runtime's contention profiles on while somebody asks for it, since always on it costs every
// hand-off. Safe for any goroutine.
type sampler struct {
	// set switches sampling; immutable.
	set func(on bool)

	mu sync.Mutex
	// asking is how many requests are under way. Guarded by mu.
	asking int
}

// The profiles are the runtime's, one of each for the process.
var (
	mutexes = &sampler{set: func(on bool) {
		if on {
			runtime.SetMutexProfileFraction(mutexFraction)
		} else {
			runtime.SetMutexProfileFraction(0)
		}
	}}
	blocks = &sampler{set: func(on bool) {
		if on {
			runtime.SetBlockProfileRate(blockRateNs)
		} else {
			runtime.SetBlockProfileRate(0)
		}
	}}
)

// profile samples while next makes a profile of some seconds (?seconds=), which then tells of those seconds alone. A
// profile without seconds shows what earlier ones have sampled.
func (s *sampler) profile(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("seconds") != "" {
			s.begin()
			defer s.end()
		}
		next.ServeHTTP(w, r)
	})
}

func (s *sampler) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking++; s.asking == 1 {
		s.set(true)
	}
}

func (s *sampler) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking--; s.asking == 0 {
		s.set(false)
	}
}
