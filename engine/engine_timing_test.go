package engine

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"kvstore/wire"
)

func benchmarkEngine(b *testing.B, cacheBytes int64) *driver {
	o := engineOptions(b, b.TempDir())
	o.MemtableBytes, o.CheckpointInterval, o.CheckpointBytes, o.CacheBytes = 0, 0, 0, cacheBytes
	return newDriver(b, o)
}

const benchmarkKeys = 100_000

func benchmarkKey(rng *rand.Rand) string { return fmt.Sprintf("user%016d", rng.IntN(benchmarkKeys)) }

// BenchmarkApply_Put applies entries of n puts of 128 bytes under random keys out of 100,000, each of a
// session, with the default options. ns/op is per put.
func BenchmarkApply_Put(b *testing.B) {
	for _, n := range []int{1, 10, 40, 100, 1000} {
		b.Run(fmt.Sprintf("ops=%d", n), func(b *testing.B) {
			d := benchmarkEngine(b, 0)
			g, _ := wire.DecodeSessionGrant(d.one(sessionOpenOp()).Payload)
			rng := rand.New(rand.NewPCG(1, 1))
			value := make([]byte, 128)
			entries := make([][]byte, b.N/n+1)
			seq := uint64(0)
			for i := range entries {
				ops := make([]testOp, n)
				for j := range ops {
					seq++
					ops[j] = putOp(benchmarkKey(rng), value, nil).session(g.Session, seq, seq-min(seq, 256))
				}
				entries[i] = sealEntry(d.now, ops...)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, entry := range entries {
				d.index++
				d.e.Apply(d.index, 1, entry)
			}
			b.ReportMetric(float64(len(entries)*n)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkApply_PutCold applies entries of n puts under random keys out of a million of which memory has none: each put reads the
// record that it replaces from Badger. ns/op is per put; -cpu 1,2,4 tells what fetching them at the same time is worth.
func BenchmarkApply_PutCold(b *testing.B) {
	const keys = 1_000_000
	d := benchmarkEngine(b, -1)
	value := make([]byte, 128)
	entry := func(n int, key func(i int) int) []byte {
		ops := make([]testOp, n)
		for i := range ops {
			ops[i] = putOp(fmt.Sprintf("user%016d", key(i)), value, nil)
		}
		return sealEntry(d.now, ops...)
	}
	for from := 0; from < keys; from += 1000 {
		d.index++
		d.e.Apply(d.index, 1, entry(1000, func(i int) int { return from + i }))
	}
	rng := rand.New(rand.NewPCG(1, 1)) // goes on from run to run, so that each finds other keys
	for _, n := range []int{1, 32, 128, 1000} {
		b.Run(fmt.Sprintf("ops=%d", n), func(b *testing.B) {
			if err := d.e.CheckpointNow(b.Context()); err != nil {
				b.Fatal(err)
			}
			entries := make([][]byte, b.N/n+1)
			for i := range entries {
				entries[i] = entry(n, func(int) int { return rng.IntN(keys) })
			}
			b.ResetTimer()
			for _, e := range entries {
				d.index++
				d.e.Apply(d.index, 1, e)
			}
			b.ReportMetric(float64(len(entries)*n)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

func fillBenchmark(b *testing.B, d *driver) {
	b.Helper()
	value := make([]byte, 128)
	for i := 0; i < benchmarkKeys; i += 1000 {
		ops := make([]testOp, 1000)
		for j := range ops {
			ops[j] = putOp(fmt.Sprintf("user%016d", i+j), value, nil)
		}
		d.apply(ops...)
	}
}

// BenchmarkGet reads random keys out of 100,000, with values of 128 bytes.
func BenchmarkGet(b *testing.B) {
	for name, cacheBytes := range map[string]int64{"store": -1, "cache": 64 << 20} {
		b.Run(name, func(b *testing.B) {
			d := benchmarkEngine(b, cacheBytes)
			fillBenchmark(b, d)
			rng := rand.New(rand.NewPCG(1, 1))
			keys := make([][]byte, 1<<14)
			for i := range keys {
				keys[i] = []byte(benchmarkKey(rng))
			}
			var buf []byte
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				_, out, st, err := d.e.Get(ReadOptions{Namespace: 1}, keys[i&(1<<14-1)], buf)
				if st != wire.StatusOK || err != nil {
					b.Fatal(st, err)
				}
				buf = out
			}
		})
	}
}

// BenchmarkGetCached is BenchmarkGet from memory alone, of bunches, before and after a checkpoint. ns/op is per read.
func BenchmarkGetCached(b *testing.B) {
	d := benchmarkEngine(b, 64<<20)
	fillBenchmark(b, d)
	rng := rand.New(rand.NewPCG(1, 1))
	keys := make([][]byte, benchmarkKeys)
	for i := range keys {
		keys[i] = []byte(benchmarkKey(rng))
	}
	run := func(b *testing.B, bunch int) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			var g CachedGets
			out := make([]byte, 0, 256)
			take := func(_ int, rec *wire.Record, _ Point) { out = append(out[:0], rec.Value...) }
			answer := func() {
				d.e.GetCached(&g, take)
				for i := range g.Len() {
					if _, hit := g.Result(i); !hit {
						b.Error("miss")
					}
				}
				g.Reset()
			}
			for i := rand.IntN(len(keys)); pb.Next(); i++ {
				if g.Add(1, keys[i%len(keys)]); g.Len() == bunch {
					answer()
				}
			}
			answer()
		})
	}
	for _, place := range []string{"layer", "cache"} {
		for _, bunch := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/bunch=%d", place, bunch), func(b *testing.B) { run(b, bunch) })
		}
		if err := d.e.CheckpointNow(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScan reads pages of 1,000 records of 128 bytes. ns/op is per page.
func BenchmarkScan(b *testing.B) {
	d := benchmarkEngine(b, -1)
	fillBenchmark(b, d)
	req := wire.ScanRequest{Limit: 1000, BytesMax: 1 << 20}
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &req, dst[:0])
		if st != wire.StatusOK || err != nil {
			b.Fatal(st, err)
		}
		dst = payload
	}
}

// BenchmarkSnapshot sends a state of 100,000 records of 128 bytes that can't be compressed, and receives it
// with all its checks. Bytes are those of keys and values in the stream.
func BenchmarkSnapshot(b *testing.B) {
	d := benchmarkEngine(b, 0)
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 128)
	for i := 0; i < benchmarkKeys; i += 1000 {
		ops := make([]testOp, 1000)
		for j := range ops {
			for k := range value {
				value[k] = byte(rng.Uint32())
			}
			ops[j] = putOp(fmt.Sprintf("user%016d", i+j), bytes.Clone(value), nil)
		}
		d.apply(ops...)
	}
	if err := d.e.CheckpointNow(b.Context()); err != nil {
		b.Fatal(err)
	}
	meta, stream := snapshotOf(b, d.e)
	b.Run("send", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s, err := d.e.OpenSnapshot(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, s); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(s.Progress().Bytes))
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("receive", func(b *testing.B) {
		b.ReportAllocs()
		to := benchmarkEngine(b, 0)
		for b.Loop() {
			received, err := to.e.ReceiveSnapshot(b.Context(), meta, bytes.NewReader(stream))
			if err != nil {
				b.Fatal(err)
			}
			received.Discard()
			b.SetBytes(int64(len(stream)))
		}
	})
}
