package engine

import (
	"fmt"
	"testing"

	"kvstore/wire"
)

// nowhere is a storer that keeps nothing.
type nowhere struct{}

func (nowhere) set(_, _ []byte) {}
func (nowhere) del(_ []byte)    {}

// BenchmarkSessions_Write does what the session table has to do for writes of n sessions by turns, in entries of 40, each session
// with 256/n of them on their way. ns/op is per write.
func BenchmarkSessions_Write(b *testing.B) {
	for _, n := range []uint64{1, 16, 256} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			t := newSessions()
			for id := range n {
				t.open(id+1, 0)
			}
			var mem arena
			var d digest
			res := wire.Result{Status: wire.StatusOK, Rev: 1}
			b.ReportAllocs()
			i := uint64(0)
			for ts := uint64(1); b.Loop(); i++ {
				seq := i/n + 1
				s, _, answered := t.begin(i%n+1, seq, seq-min(seq, 256/n+1), int64(ts))
				if answered {
					b.Fatal("answered")
				}
				t.keep(s, seq, ts, &res)
				if i%40 == 39 {
					t.flush(nowhere{}, &mem, &d)
					mem.reset()
					ts++
				}
			}
		})
	}
}
