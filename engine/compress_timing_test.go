package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkCompress compresses and unpacks values of which about half can be saved. Bytes are those of the values.
func BenchmarkCompress(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, c := range allCodecs {
		for _, n := range []int{1 << 10, 16 << 10, 1 << 20} {
			value := wordy(rng, n)
			p := packer{level: 1}
			packed, ok := p.pack(c, value)
			if !ok {
				b.Fatal("it doesn't pay")
			}
			stored := append([]byte(nil), packed...)
			b.Run(fmt.Sprintf("%s/%d/pack", c, n), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					p.pack(c, value)
				}
				b.ReportMetric(float64(len(stored))/float64(n), "part")
			})
			b.Run(fmt.Sprintf("%s/%d/unpack", c, n), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(n))
				buf := make([]byte, 0, n)
				for b.Loop() {
					if _, err := unpack(buf, c, stored, n); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
