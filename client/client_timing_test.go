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

// BenchmarkPipeline keeps 128 operations of one goroutine under way, over real sockets to the fake server. ns/op is per operation,
// the server's part included.
func BenchmarkPipeline(b *testing.B) {
	for _, op := range []string{"get", "put"} {
		b.Run(op, func(b *testing.B) {
			_, c := fake(b)
			value := make([]byte, 128)
			if _, err := c.Put(b.Context(), "some/key", value); err != nil {
				b.Fatal(err)
			}
			p := c.NewPipeline()
			ops := make([]Op, 128)
			left := b.N
			start := func(o *Op) {
				if left == 0 {
					return
				}
				if left--; op == "get" {
					p.Get(o, "some/key")
				} else {
					p.Put(o, "some/key", value)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range ops {
				start(&ops[i])
			}
			for p.Len() > 0 {
				done, err := p.Wait(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				for _, o := range done {
					if o.Err() != nil {
						b.Fatal(o.Err())
					}
					start(o)
				}
			}
		})
	}
}

// BenchmarkGetAsync is the same by callbacks.
func BenchmarkGetAsync(b *testing.B) {
	_, c := fake(b, WithMaxInflight(128))
	if _, err := c.Put(b.Context(), "some/key", make([]byte, 128)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var wg sync.WaitGroup
	wg.Add(b.N)
	done := func(_ Value, err error) {
		if err != nil {
			b.Error(err)
		}
		wg.Done()
	}
	b.ResetTimer()
	for range b.N {
		c.GetAsync("some/key", done)
	}
	wg.Wait()
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
