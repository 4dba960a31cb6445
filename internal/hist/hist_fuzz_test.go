package hist

import (
	"strings"
	"testing"
	"time"
)

// Whatever is observed lies in its bucket, is counted once, and reads as what it was, up to the width of a bucket.
func FuzzObserve(f *testing.F) {
	for _, n := range []int64{0, 1, -1, 999, 1 << 20, 1<<63 - 1, -1 << 63} {
		f.Add(n, 0.5)
	}
	f.Fuzz(func(t *testing.T, n int64, q float64) {
		x := uint64(n)
		if i := bucketIndex(x); i < 0 || i > overflow {
			t.Fatalf("%d is in bucket %d of %d", x, i, bucketCount)
		} else if i < overflow {
			if low, high := bucketBounds(i); x < low || x >= high {
				t.Fatalf("%d is in bucket %d, which goes from %d to %d", x, i, low, high)
			}
		} else if x < 1<<octaveMax {
			t.Fatalf("%d is beyond the last bound", x)
		}
		var h Histogram
		h.Observe(time.Duration(n))
		h.Observe(time.Duration(n))
		s := h.Snapshot()
		if s.Count() != 2 {
			t.Fatalf("counted %d times", s.Count())
		}
		if got := s.Quantile(min(max(q, 0), 1)); got < 0 {
			t.Fatalf("quantile %v of %d is %v", q, n, got)
		}
		var z Sizes
		z.Observe(int(n))
		if z.Snapshot().Count() != 1 {
			t.Fatal("not counted")
		}
		var b strings.Builder
		if err := s.WritePrometheus(&b, "x", `a="b"`); err != nil || !strings.Contains(b.String(), "x_count{a=\"b\"} 2\n") {
			t.Fatalf("%v\n%s", err, b.String())
		}
	})
}
