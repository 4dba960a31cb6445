package hist

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The tests prove the bucket arithmetic by exhaustion near every bound, freeze the text format with a
// golden file, and hold the promises of Observe: nothing lost between goroutines, nothing allocated.

var rewrite = flag.Bool("rewrite", false, "write testdata/*.golden from the present output")

func TestBucketIndex_EveryBoundAndItsNeighbours_FallIntoTheRightBucket(t *testing.T) {
	var previous uint64
	for i := range overflow {
		low, high := bucketBounds(i)
		if low != previous || high <= low {
			t.Fatalf("bucket %d = (%d, %d], but the one before ends at %d", i, low, high, previous)
		}
		if low >= 8 && float64(high-low)/float64(low) > 0.125 {
			t.Fatalf("bucket %d = (%d, %d] is wider than 12.5 %%", i, low, high)
		}
		for _, x := range []uint64{low, (low + high - 1) / 2, high - 1} {
			if got := bucketIndex(x); got != i {
				t.Fatalf("x = %d lies in bucket %d, want %d", x, got, i)
			}
		}
		previous = high
	}
	if previous != 1<<octaveMax {
		t.Fatalf("the buckets end at %d, want 2^%d", previous, octaveMax)
	}
	for _, x := range []uint64{1 << octaveMax, 1<<octaveMax + 1, math.MaxUint64} {
		if got := bucketIndex(x); got != overflow {
			t.Fatalf("x = %d lies in bucket %d, want the overflow bucket", x, got)
		}
	}
}

func TestObserve_ValueEqualToABound_CountsUnderThatBound(t *testing.T) {
	for d := time.Microsecond; d <= 1<<24*time.Microsecond; d *= 2 {
		le := strconv.FormatFloat(d.Seconds(), 'g', -1, 64)
		for _, c := range []struct {
			d    time.Duration
			want string
		}{{d, "1"}, {d + 1, "0"}} {
			var h Histogram
			h.Observe(c.d)
			if got := line(t, &h, `le="`+le+`"`); got != c.want {
				t.Fatalf("after Observe(%d ns) the bucket le=%s holds %s, want %s", c.d, le, got, c.want)
			}
		}
	}
	var s Sizes
	s.Observe(4)
	s.Observe(5)
	if got := line(t, &s, `le="4"`); got != "1" {
		t.Fatalf("le=4 holds %s, want 1", got)
	}
}

func TestObserve_NegativeAndHuge_AreCountedAtTheEnds(t *testing.T) {
	var h Histogram
	h.Observe(-time.Second)
	h.Observe(math.MaxInt64)
	s := h.Snapshot()
	if s.Count() != 2 || s.data.counts[0] != 1 || s.data.counts[overflow] != 1 || s.Sum() != math.MaxInt64 {
		t.Fatalf("count %d, first %d, overflow %d, sum %d", s.Count(), s.data.counts[0], s.data.counts[overflow], s.Sum())
	}
	if q := s.Quantile(1); q != 1<<24*time.Microsecond {
		t.Fatalf("the quantile beyond the last bound is %v, want that bound", q)
	}
	var z Sizes
	z.Observe(-1)
	z.Observe(0)
	if s := z.Snapshot(); s.data.counts[0] != 2 || s.Sum() != 0 {
		t.Fatalf("sizes: first %d, sum %d", s.data.counts[0], s.Sum())
	}
}

func TestWritePrometheus_KnownObservations_MatchTheGoldenText(t *testing.T) {
	// If this test breaks, the buckets or names that dashboards and alerts rely on have changed.
	var h Histogram
	for _, d := range []time.Duration{0, 900, 1000, 1001, 48 * time.Microsecond, time.Millisecond, 1024 * time.Microsecond, 20 * time.Millisecond, 3 * time.Second, time.Minute} {
		h.Observe(d)
	}
	var z Sizes
	for _, n := range []int{1, 2, 3, 128, 129, 1 << 27, 1<<27 + 1} {
		z.Observe(n)
	}
	var out bytes.Buffer
	for _, err := range []error{
		WriteHeader(&out, "kvstore_request_duration_seconds", "Time from the last byte of a request to its reply's first."),
		h.WritePrometheus(&out, "kvstore_request_duration_seconds", `operation="get",status="ok"`),
		WriteHeader(&out, "kvstore_batch_operations", "Operations per entry."),
		z.WritePrometheus(&out, "kvstore_batch_operations", ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const path = "testdata/format.golden"
	if *rewrite {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Fatalf("the output differs from %s:\n%s", path, out.Bytes())
	}
}

func TestWritePrometheus_FailingWriter_ReturnsItsError(t *testing.T) {
	var h Histogram
	var z Sizes
	for _, err := range []error{h.WritePrometheus(failing{}, "a", ""), z.WritePrometheus(failing{}, "a", ""), WriteHeader(failing{}, "a", "b")} {
		if !errors.Is(err, errFailing) {
			t.Fatalf("error is %v, want the writer's", err)
		}
	}
}

func TestQuantile_RandomValues_WithinOneBucketOfTheTruth(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var h Histogram
	var z Sizes
	values := make([]float64, 20_000)
	for i := range values {
		values[i] = math.Floor(math.Exp(math.Log(2e3) + rnd.Float64()*math.Log(5e6))) // 2 µs to 10 s in ns
		h.Observe(time.Duration(values[i]))
		z.Observe(int(values[i] / 1000))
	}
	slices.Sort(values)
	s, zs := h.Snapshot(), z.Snapshot()
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		truth := values[max(int(math.Ceil(q*float64(len(values))))-1, 0)]
		if got := float64(s.Quantile(q)); math.Abs(got-truth)/truth > 0.13 {
			t.Errorf("quantile %v is %v ns, the truth is %v ns", q, got, truth)
		}
		if got := zs.Quantile(q); math.Abs(got-truth/1000) > max(0.13*truth/1000, 1.5) {
			t.Errorf("size quantile %v is %v, the truth is %v", q, got, truth/1000)
		}
	}
	for _, q := range []float64{-1, 2, math.NaN()} {
		if got := s.Quantile(q); got < 0 || got > 17*time.Second {
			t.Errorf("quantile %v is %v", q, got)
		}
	}
	if got := new(Snapshot).Quantile(0.5); got != 0 {
		t.Errorf("the quantile of nothing is %v, want 0", got)
	}
}

func TestHistogramSet_ObservedAndScrapedConcurrently_LosesNothing(t *testing.T) {
	const loops, each = 4, 5000
	set, sizes := NewHistogramSet(loops), NewSizesSet(loops)
	var shared Histogram
	var wg sync.WaitGroup
	for i := range loops {
		wg.Go(func() {
			for n := range each {
				set.Shard(i).Observe(time.Duration(n))
				sizes.Shard(i).Observe(n)
				shared.Observe(time.Duration(n))
			}
		})
	}
	var last uint64
	for range 50 {
		s := set.Snapshot()
		if s.Count() < last {
			t.Fatalf("the count went back from %d to %d", last, s.Count())
		}
		last = s.Count()
	}
	wg.Wait()
	wantSum := time.Duration(loops * each * (each - 1) / 2)
	merged := new(Snapshot)
	merged.Merge(set.Snapshot())
	merged.Merge(shared.Snapshot())
	if merged.Count() != 2*loops*each || merged.Sum() != 2*wantSum {
		t.Fatalf("count %d, sum %d; want %d, %d", merged.Count(), merged.Sum(), 2*loops*each, 2*wantSum)
	}
	mergedSizes := new(SizesSnapshot)
	mergedSizes.Merge(sizes.Snapshot())
	if mergedSizes.Count() != loops*each || mergedSizes.Sum() != uint64(wantSum) {
		t.Fatalf("sizes: count %d, sum %d", mergedSizes.Count(), mergedSizes.Sum())
	}
}

func TestObserveN_IsObserveSoManyTimes(t *testing.T) {
	var all, single Histogram
	for i, d := range []time.Duration{-1, 0, 1, 999, time.Millisecond, time.Hour} {
		all.ObserveN(d, uint64(3*i))
		for range 3 * i {
			single.Observe(d)
		}
	}
	if *all.Snapshot() != *single.Snapshot() {
		t.Fatalf("%+v, and one by one %+v", all.Snapshot(), single.Snapshot())
	}
}

func TestAdd_TwoHistograms_SumsEveryBucket(t *testing.T) {
	var a, b Histogram
	var x, y Sizes
	for i := range 1000 {
		a.Observe(time.Duration(i * i))
		b.Observe(time.Duration(i * 1000))
		x.Observe(i)
		y.Observe(i * i)
	}
	want, wantSizes := a.Snapshot(), x.Snapshot()
	want.Merge(b.Snapshot())
	wantSizes.Merge(y.Snapshot())
	a.Add(&b)
	x.Add(&y)
	if *a.Snapshot() != *want || *x.Snapshot() != *wantSizes {
		t.Fatal("Add and Merge disagree")
	}
}

func TestObserve_Always_AllocatesNothing(t *testing.T) {
	var h Histogram
	var z Sizes
	var s Snapshot
	if n := testing.AllocsPerRun(100, func() {
		h.Observe(time.Millisecond)
		z.Observe(128)
		h.AddTo(&s)
	}); n != 0 {
		t.Fatalf("%v allocations, want 0", n)
	}
}

// line returns the value on the line of h's text that holds part.
func line(t *testing.T, h interface {
	WritePrometheus(w io.Writer, name, labels string) error
}, part string) string {
	t.Helper()
	var out strings.Builder
	if err := h.WritePrometheus(&out, "x", ""); err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(out.String()) {
		if name, value, _ := strings.Cut(strings.TrimSpace(l), " "); strings.Contains(name, part) {
			return value
		}
	}
	t.Fatalf("no line with %s in\n%s", part, out.String())
	return ""
}

var errFailing = errors.New("the writer fails")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFailing }
