package gateway

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
)

// Sampling is on while at least one profile with seconds is made, and off again after the last.
func TestSampler_OverlappingProfiles_OnUntilTheLastEnds(t *testing.T) {
	var switched []bool
	s := &sampler{set: func(on bool) { switched = append(switched, on) }}
	inside := 0
	var h http.Handler
	h = s.profile(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if inside++; inside < 3 { // another request while this one is under way
			h.ServeHTTP(w, r)
		}
		if len(switched) != 1 {
			t.Errorf("while a profile is made: %v", switched)
		}
	}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/debug/pprof/mutex?seconds=1", nil))
	if inside != 3 || !slices.Equal(switched, []bool{true, false}) {
		t.Errorf("%d requests, %v", inside, switched)
	}
	switched, h = nil, s.profile(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/debug/pprof/mutex", nil))
	if len(switched) != 0 {
		t.Errorf("without seconds: %v", switched)
	}
}
