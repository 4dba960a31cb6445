package netloop

import (
	"bufio"
	"fmt"
	"io"
	"testing"
	"time"

	"kvstore/wire"
)

// The client of these benchmarks shares the cores with the server; allocations are those of both.

// BenchmarkEcho is one connection with a fixed number of requests under way: GET of a 64-byte value,
// answered inline.
func BenchmarkEcho(b *testing.B) {
	for _, depth := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("pipeline=%d", depth), func(b *testing.B) {
			st := newStore()
			st.put("key-of-16-bytes!", make([]byte, 64))
			s := start(b, st, nil)
			p := dial(b, s)
			if err := p.c.SetDeadline(time.Time{}); err != nil {
				b.Fatal(err)
			}
			var out []byte
			for id := uint32(1); id <= uint32(depth); id++ {
				out = append(out, p.frame(wire.OpGet, id, "key-of-16-bytes!", nil)...)
			}
			in := bufio.NewReaderSize(p.c, 64<<10)
			answers := make([]byte, depth*(wire.HeaderBytes+64))
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if n%depth != 0 {
					continue // one round trip carries depth operations
				}
				if _, err := p.c.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(in, answers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSession is the protocol engine alone: parse, serve from a map, encode, hand to the driver.
func BenchmarkSession(b *testing.B) {
	for _, depth := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("pipeline=%d", depth), func(b *testing.B) {
			st := newStore()
			st.put("key-of-16-bytes!", make([]byte, 64))
			r := newRig(b, st, agreed{features: wire.FeatureCRC}, nil)
			var in []byte
			for id := uint32(1); id <= uint32(depth); id++ {
				in = append(in, encode(true, 0, wire.OpGet, id, 0, "key-of-16-bytes!", nil)...)
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if n%depth != 0 {
					continue
				}
				r.s.Feed(in)
				for o := r.s.next(); len(o) > 0; o = r.s.next() {
					r.s.sent(len(o))
				}
			}
		})
	}
}

// BenchmarkComplete is answers from another goroutine than the loop's.
func BenchmarkComplete(b *testing.B) {
	r := newRig(b, newStore(), agreed{features: wire.FeatureCRC}, nil)
	resp := wire.Response{Payload: make([]byte, 8)}
	b.ReportAllocs()
	for n := uint32(1); b.Loop(); n++ {
		r.s.mu.Lock()
		r.s.inflight++
		r.s.mu.Unlock()
		r.s.Complete(wire.Token{ID: n, Op: wire.OpPut, Start: 1}, &resp)
		if n%128 == 0 {
			for o := r.s.next(); len(o) > 0; o = r.s.next() {
				r.s.sent(len(o))
			}
		}
	}
}
