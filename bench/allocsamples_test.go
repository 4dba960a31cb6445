package bench

import (
	"bytes"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

// heapRecord is one stack of a synthetic heap profile: count samples of objects of size bytes.
type heapRecord struct {
	stack       []string // innermost first; names with a space between are one place, where the first is inlined
	count, size int64
}

const heapRate = 512 << 10

// heapProfile scales as runtime/pprof does.
func heapProfile(records ...heapRecord) *profile.Profile {
	p := &profile.Profile{
		PeriodType: &profile.ValueType{Type: "space", Unit: "bytes"}, Period: heapRate,
		SampleType: []*profile.ValueType{{Type: "alloc_objects", Unit: "count"}, {Type: "alloc_space", Unit: "bytes"}, {Type: "inuse_objects", Unit: "count"}, {Type: "inuse_space", Unit: "bytes"}},
	}
	for _, r := range records {
		scale := 1 / (1 - math.Exp(-float64(r.size)/heapRate))
		s := &profile.Sample{Value: []int64{int64(float64(r.count) * scale), int64(float64(r.count*r.size) * scale), 0, 0}}
		for _, place := range r.stack {
			l := &profile.Location{ID: uint64(len(p.Location) + 1)}
			for _, name := range strings.Fields(place) {
				f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: name}
				p.Function = append(p.Function, f)
				l.Line = append(l.Line, profile.Line{Function: f})
			}
			p.Location = append(p.Location, l)
			s.Location = append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
	}
	return p
}

const library = "example.org/library/"

func samplesOf(t *testing.T, records ...heapRecord) AllocSamples {
	t.Helper()
	a, err := allocSamples(heapProfile(records...), library)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func near(got, want float64) bool { return math.Abs(got-want) <= want/1000 }

func TestAllocSamples_Difference_ShareOfObjects(t *testing.T) {
	own := []string{"kvstore/node.apply", "runtime.goexit"}
	called := []string{"io.Copy", "example.org/library/sub.Read", "kvstore/node.apply"}
	inlined := []string{"bytes.Clone example.org/library/sub.copy", "kvstore/node.apply"}
	asking := []string{"compress/flate.NewWriter", "net/http/pprof.handler.ServeHTTP"}
	before := samplesOf(t, heapRecord{own, 1000, 64}, heapRecord{called, 10, 64})
	after := samplesOf(t, heapRecord{own, 1040, 64}, heapRecord{called, 60, 64}, heapRecord{inlined, 10, 64}, heapRecord{asking, 500, 64})
	// Of one size all samples weigh the same: 40 of ours, 60 of the library.
	d := after.Since(before)
	if !near(d.Share(), 0.6) || !near(d.Samples(), 100) {
		t.Errorf("share %v by %v samples", d.Share(), d.Samples())
	}
	// Two nodes: 40 and 60 beside 100 and 0.
	if both := d.Add(samplesOf(t, heapRecord{own, 100, 64})); !near(both.Share(), 0.3) || !near(both.Samples(), 200) {
		t.Errorf("both nodes: share %v by %v samples", both.Share(), both.Samples())
	}
	// A sample of 16 bytes stands for 32,768 objects, one of 64 KiB for 8.5: thousands of these tell nothing about the share.
	mixed := samplesOf(t, heapRecord{own, 10, 16}, heapRecord{called, 10, 16}, heapRecord{called, 5000, 64 << 10})
	if got := mixed.Samples(); got < 20 || got > 25 {
		t.Errorf("%v samples decide", got)
	}
	if got := mixed.Share(); got < 0.5 || got > 0.55 {
		t.Errorf("share %v", got)
	}
	// Objects larger than the rate are sampled more than once in their bytes; they count once.
	if got := samplesOf(t, heapRecord{own, 7, 64 << 20}); !near(got.Samples(), 7) || got.Share() != 0 {
		t.Errorf("%+v", got)
	}
	// A node that has begun anew, and nothing at all.
	for _, none := range []AllocSamples{before.Since(after), after.Since(after), samplesOf(t)} {
		if none.Share() != 0 || none.Samples() != 0 {
			t.Errorf("%+v of nothing", none)
		}
	}
}

func TestAllocSamples_OtherProfiles_Refused(t *testing.T) {
	for name, spoil := range map[string]func(p *profile.Profile){
		"no objects": func(p *profile.Profile) { p.SampleType[0].Type = "samples" },
		"by time":    func(p *profile.Profile) { p.PeriodType = &profile.ValueType{Type: "cpu", Unit: "nanoseconds"} },
		"no period":  func(p *profile.Profile) { p.PeriodType = nil },
	} {
		p := heapProfile(heapRecord{[]string{"main.main"}, 10, 64})
		spoil(p)
		if a, err := allocSamples(p, library); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

//go:noinline
func allocateForSamples(n int) {
	for range n {
		allocationSink = append(allocationSink[:0], new([64]byte))
	}
}

// A real process: what was allocated just now is in the profile, as many objects as there were, under the function's name.
func TestServerAllocSamples_OwnProcess_UpToDate(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	var answer []byte
	mux.HandleFunc("/other/debug/pprof/heap", func(w http.ResponseWriter, _ *http.Request) { w.Write(answer) })
	s := httptest.NewServer(mux)
	defer s.Close()
	endpoint := strings.TrimPrefix(s.URL, "http://")
	ask := func(endpoint string) (AllocSamples, error) {
		return ServerAllocSamples(t.Context(), endpoint, "kvstore/bench.allocateForSamples")
	}
	before, err := ask(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	const n = 4_000_000 // 256 MB: 488 samples, so that an error of a quarter is one of five standard deviations
	allocateForSamples(n)
	after, err := ask(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	d := after.Since(before)
	if math.Abs(d.matching-n) > n/4 || d.Share() < 0.9 || d.Samples() < 300 {
		t.Errorf("%.0f objects of %d, share %v by %v samples", d.matching, n, d.Share(), d.Samples())
	}

	var cpu bytes.Buffer
	p := heapProfile(heapRecord{[]string{"main.main"}, 10, 64})
	p.PeriodType.Type = "cpu"
	if err := p.Write(&cpu); err != nil {
		t.Fatal(err)
	}
	for _, answer = range [][]byte{nil, []byte("no profile"), cpu.Bytes()} {
		if a, err := ask(endpoint + "/other"); err == nil {
			t.Errorf("%q told %+v", answer, a)
		}
	}
	if _, err := ask(endpoint + "/nowhere"); err == nil {
		t.Error("a page that is not there told samples")
	}
}
