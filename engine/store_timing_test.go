package engine

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// BenchmarkCommit stores entries of n records of 100 bytes with random-looking keys out of 200,000, with
// the default options and the checkpoints that they bring. ns/op is per entry.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("ops=%d", n), func(b *testing.B) {
			o := storeOptions(b, b.TempDir())
			o.MemtableBytes, o.CheckpointInterval, o.CheckpointBytes = 0, 0, 0
			s := mustOpenStore(b, o)
			keys, values := make([][]byte, n), make([][]byte, n)
			for i := range keys {
				keys[i], values[i] = make([]byte, 0, 32), make([]byte, 100)
			}
			index, k := uint64(0), uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				index++
				p := testPoint(index)
				w := s.begin(p.ts)
				for i := range keys {
					k = (k + 0x9E3779B97F4A7C15) // Golden ratio: no key twice in an entry.
					keys[i] = fmt.Appendf(keys[i][:0], "D0001user%016d", (k>>20)%200_000*uint64(n)+uint64(i))
					w.set(keys[i], values[i])
				}
				marker := storeTestMarker(p)
				if err := w.commit(marker); err != nil {
					b.Fatal(err)
				}
				s.publish(p, marker)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkCheckpoint makes n records of 1 KB durable. ns/op is the checkpoint alone.
func BenchmarkCheckpoint(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			o := storeOptions(b, b.TempDir())
			o.MemtableBytes = 0
			s := mustOpenStore(b, o)
			value := make([]byte, 1000)
			index, total := uint64(0), time.Duration(0)
			for b.Loop() {
				index++
				p := testPoint(index)
				w := s.begin(p.ts)
				for i := range n {
					w.set(fmt.Appendf(nil, "D%08d", i), value)
				}
				marker := storeTestMarker(p)
				if err := w.commit(marker); err != nil {
					b.Fatal(err)
				}
				s.publish(p, marker)
				start := time.Now()
				if err := s.checkpointNow(context.Background()); err != nil {
					b.Fatal(err)
				}
				total += time.Since(start)
			}
			b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/checkpoint")
		})
	}
}

// BenchmarkRead reads one of 10,000 records of 100 bytes through the fence.
func BenchmarkRead(b *testing.B) {
	s := mustOpenStore(b, storeOptions(b, b.TempDir()))
	const keys = 10_000
	for i := uint64(1); i <= keys; i++ {
		if err := applyEntry(s, i, []mutation{{fmt.Appendf(nil, "D%08d", i), make([]byte, 100)}}); err != nil {
			b.Fatal(err)
		}
	}
	key, n, bytes := []byte(nil), uint64(0), 0
	view := func(v []byte) error { bytes += len(v); return nil }
	get := func(r *reader) error {
		found, err := r.get(key, view)
		if !found {
			return fmt.Errorf("%s is missing: %v", key, err)
		}
		return err
	}
	b.ReportAllocs()
	for b.Loop() {
		n += 7919
		key = fmt.Appendf(key[:0], "D%08d", 1+n%keys)
		if err := s.read(0, get); err != nil {
			b.Fatal(err)
		}
	}
}
