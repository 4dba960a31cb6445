package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// callers spreads b.N operations over n goroutines. Client and fake server share the machine.
func callers(b *testing.B, n int, f func() error) {
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

var callerCounts = []int{1, 16, 64, 256}

func BenchmarkGetAppend(b *testing.B) {
	for _, n := range callerCounts {
		b.Run(fmt.Sprintf("value=64B/callers=%d", n), func(b *testing.B) {
			_, c := fake(b)
			ctx := context.Background()
			if _, err := c.Put(ctx, "some/key", make([]byte, 64)); err != nil {
				b.Fatal(err)
			}
			bufs := sync.Pool{New: func() any { s := make([]byte, 0, 256); return &s }}
			callers(b, n, func() error {
				buf := bufs.Get().(*[]byte)
				out, _, err := c.GetAppend(ctx, (*buf)[:0], "some/key")
				if len(out) != 64 {
					b.Error(len(out))
				}
				bufs.Put(buf)
				return err
			})
		})
	}
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{64, 1 << 20} {
		for _, n := range callerCounts {
			if size > 64 && n > 16 {
				continue
			}
			b.Run(fmt.Sprintf("value=%dB/callers=%d", size, n), func(b *testing.B) {
				_, c := fake(b)
				ctx := context.Background()
				value := make([]byte, size)
				b.SetBytes(int64(size))
				callers(b, n, func() error {
					_, err := c.Put(ctx, "some/key", value)
					return err
				})
			})
		}
	}
}

func BenchmarkPutAsync(b *testing.B) {
	_, c := fake(b)
	b.ReportAllocs()
	value := make([]byte, 64)
	var wg sync.WaitGroup
	wg.Add(b.N)
	done := func(_ Version, err error) {
		if err != nil {
			b.Error(err)
		}
		wg.Done()
	}
	b.ResetTimer()
	for range b.N {
		c.PutAsync("some/key", value, done)
	}
	wg.Wait()
}
