package consensus

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// BenchmarkPropose measures one group on a real disk: entries per second and the median time from
// Propose to the answer, with n proposals in flight. "raft" is the library alone over the same log, as
// the floor.
func BenchmarkPropose(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, inflight := range []int{1, 4} {
			data := make([]byte, size)
			b.Run(fmt.Sprintf("value=%d/inflight=%d", size, inflight), func(b *testing.B) {
				g, _ := benchGroup(b)
				run(b, size, inflight, func(done func()) {
					if err := g.Propose(data, func(_ any, err error) {
						if err != nil {
							b.Error(err)
						}
						done()
					}); err != nil {
						b.Fatal(err)
					}
				})
			})
			b.Run(fmt.Sprintf("raft/value=%d/inflight=%d", size, inflight), func(b *testing.B) {
				g, _ := benchGroup(b)
				futures := make(chan func(), inflight)
				go func() { // ends when the benchmark closes futures
					for f := range futures {
						f()
					}
				}()
				defer close(futures)
				run(b, size, inflight, func(done func()) {
					f := g.raft.ApplyLog(raft.Log{Data: data}, time.Second)
					futures <- func() {
						if err := f.Error(); err != nil {
							b.Error(err)
						}
						done()
					}
				})
			})
		}
	}
}

// BenchmarkProposeCall measures the call alone: what a batcher's goroutine spends.
func BenchmarkProposeCall(b *testing.B) {
	g, _ := benchGroup(b)
	data := make([]byte, 64)
	slots := make(chan struct{}, 16)
	var spent time.Duration
	b.ReportAllocs()
	for b.Loop() {
		slots <- struct{}{}
		start := time.Now()
		if err := g.Propose(data, func(any, error) { <-slots }); err != nil {
			b.Fatal(err)
		}
		spent += time.Since(start)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "ns/call")
}

// BenchmarkOpen measures a start: from Open to the first applied write on a virgin directory.
func BenchmarkOpen(b *testing.B) {
	base := b.TempDir()
	for b.Loop() {
		dir := filepath.Join(base, "node")
		o := testOptions(dir)
		o.SegmentBytes = 0
		g := openGroup(b, o, openMachine(b, dir))
		mustPropose(b, g, "x")
		b.StopTimer()
		closeGroup(b, g)
		// At once: each start allocates a segment of half a gigabyte.
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// nullMachine applies nothing, and has always all of it durable.
type nullMachine struct{ *testMachine }

func (nullMachine) Apply(uint64, uint64, []byte) any { return nil }

func benchGroup(b *testing.B) (*Group, nullMachine) {
	b.Helper()
	dir := b.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 0
	m := nullMachine{openMachine(b, dir)}
	g := openGroup(b, o, m)
	b.Cleanup(func() { closeGroup(b, g) })
	return g, m
}

func run(b *testing.B, size, inflight int, start func(done func())) {
	b.SetBytes(int64(size))
	b.ReportAllocs()
	slots := make(chan struct{}, inflight)
	latencies := make(chan time.Duration, 1<<20)
	began := time.Now()
	n := 0
	for b.Loop() {
		slots <- struct{}{}
		t := time.Now()
		start(func() {
			select {
			case latencies <- time.Since(t):
			default:
			}
			<-slots
		})
		n++
	}
	for range inflight {
		slots <- struct{}{}
	}
	b.ReportMetric(float64(n)/time.Since(began).Seconds(), "entries/s")
	var all []time.Duration
	for len(latencies) > 0 {
		all = append(all, <-latencies)
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkProposeOverhead alternates Propose with the library's own call on one group, so that both see
// the same disk, and reports the difference of the medians: what Propose and its answer add.
func BenchmarkProposeOverhead(b *testing.B) {
	g, _ := benchGroup(b)
	data := make([]byte, 4<<10)
	done := make(chan struct{}, 1)
	var ours, theirs []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := g.Propose(data, func(any, error) { done <- struct{}{} }); err != nil {
			b.Fatal(err)
		}
		<-done
		middle := time.Now()
		if err := g.raft.ApplyLog(raft.Log{Data: data}, time.Second).Error(); err != nil {
			b.Fatal(err)
		}
		ours, theirs = append(ours, middle.Sub(start)), append(theirs, time.Since(middle))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	b.ReportMetric(float64((ours[len(ours)/2] - theirs[len(theirs)/2]).Nanoseconds()), "added-p50-ns")
	b.ReportMetric(float64(theirs[len(theirs)/2].Nanoseconds()), "raft-p50-ns")
}
