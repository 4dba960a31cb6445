package record

import (
	"fmt"
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{64, 4096, 512 << 10} {
		b.Run(fmt.Sprintf("payload=%dB", size), func(b *testing.B) {
			payload, buf := make([]byte, size), make([]byte, 0, size+HeaderSize)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				buf = Append(buf[:0], payload)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, size := range []int{64, 4096, 512 << 10} {
		b.Run(fmt.Sprintf("payload=%dB", size), func(b *testing.B) {
			buf := Append(nil, make([]byte, size))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Decode(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
