package hist

import (
	"io"
	"testing"
	"time"
)

func BenchmarkObserve(b *testing.B) {
	b.Run("one-goroutine", func(b *testing.B) {
		var h Histogram
		b.ReportAllocs()
		d := time.Duration(0)
		for b.Loop() {
			h.Observe(d)
			d = (d + 7919) & (1<<24 - 1)
		}
	})
	b.Run("shard-per-goroutine", func(b *testing.B) {
		set := NewHistogramSet(64)
		next := make(chan int, 64)
		for i := range 64 {
			next <- i
		}
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			h := set.Shard(<-next)
			d := time.Duration(0)
			for pb.Next() {
				h.Observe(d)
				d = (d + 7919) & (1<<24 - 1)
			}
		})
	})
	b.Run("shared", func(b *testing.B) {
		var h Histogram
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			d := time.Duration(0)
			for pb.Next() {
				h.Observe(d)
				d = (d + 7919) & (1<<24 - 1)
			}
		})
	})
}

func BenchmarkScrape(b *testing.B) {
	set := NewHistogramSet(4)
	for i := range 4 {
		for d := range 10_000 {
			set.Shard(i).Observe(time.Duration(d) * time.Microsecond)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := set.Snapshot().WritePrometheus(io.Discard, "kvstore_request_duration_seconds", `operation="get"`); err != nil {
			b.Fatal(err)
		}
	}
}
