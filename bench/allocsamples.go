package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
)

// AllocSamples tell which share of a node's heap objects some code has allocated. They are sums over the node's heap profile
// since its start, and so may be added over nodes; what was between two of them is their difference. Objects below 16 bytes without
// pointers, which the runtime packs into shared blocks, are sampled by the block, while runtime.MemStats counts each.
type AllocSamples struct {
	// objects estimates how many objects were allocated, matching how many of them by the code that was asked for.
	objects, matching float64
	// squares is the sum, over all samples, of the square of the number of objects that a sample stands for.
	squares float64
}

// Add gives the sums of two nodes.
func (a AllocSamples) Add(b AllocSamples) AllocSamples {
	return AllocSamples{a.objects + b.objects, a.matching + b.matching, a.squares + b.squares}
}

// Since gives what has come since before; nothing when a node has begun anew meanwhile.
func (a AllocSamples) Since(before AllocSamples) AllocSamples {
	d := AllocSamples{a.objects - before.objects, a.matching - before.matching, a.squares - before.squares}
	if d.objects <= 0 || d.matching < 0 || d.squares <= 0 {
		return AllocSamples{}
	}
	return d
}

// Share is 0 to 1; 0 of nothing.
func (a AllocSamples) Share() float64 {
	if a.objects == 0 {
		return 0
	}
	return min(a.matching/a.objects, 1)
}

// Samples tells how far Share can be trusted: the number of samples, each of which stands for as many objects, that would tell it
// as well (Kish's effective sample size). The plain number would promise too much: the runtime samples by bytes, most samples are
// of large blocks and stand for one object, and the few of small objects, each of which stands for tens of thousands, decide.
func (a AllocSamples) Samples() float64 {
	if a.squares == 0 {
		return 0
	}
	return a.objects * a.objects / a.squares
}

// ServerAllocSamples reads the heap profile of a node by its metrics port (HOST:PORT). An object matches when the name of any
// function on the stack that allocated it begins with prefix: what a library calls counts as the library's. The node collects
// garbage first, or what it has allocated since its last collections would be missing. net/http/pprof does so for
// /debug/pprof/heap?gc=1 alone: /debug/pprof/allocs, which has the same values, takes no notice of gc=1.
func ServerAllocSamples(ctx context.Context, endpoint, prefix string) (AllocSamples, error) {
	raw, err := fetch(ctx, endpoint, "/debug/pprof/heap?gc=1", 10*time.Second)
	if err != nil {
		return AllocSamples{}, err
	}
	p, err := profile.Parse(bytes.NewReader(raw))
	if err != nil {
		return AllocSamples{}, fmt.Errorf("cannot read the heap profile of %s: %w", endpoint, err)
	}
	a, err := allocSamples(p, prefix)
	if err != nil {
		return AllocSamples{}, fmt.Errorf("cannot read the heap profile of %s: %w", endpoint, err)
	}
	return a, nil
}

// allocSamples sums up a heap profile. The runtime has already scaled its values: an object of s bytes was sampled with the
// probability 1-exp(-s/rate), and each sample of one counts as 1 over that many objects and s over that many bytes. So
// space/objects is s again, and n samples of weight w, which are n·w objects, add objects·w to the squares.
func allocSamples(p *profile.Profile, prefix string) (a AllocSamples, err error) {
	value := func(kind string) int {
		return slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == kind })
	}
	objects, space := value("alloc_objects"), value("alloc_space")
	if objects < 0 || space < 0 || p.PeriodType == nil || p.PeriodType.Type != "space" || p.PeriodType.Unit != "bytes" {
		return AllocSamples{}, errors.New("it does not tell allocated objects by a rate of bytes")
	}
	for _, s := range p.Sample {
		n, size := float64(s.Value[objects]), float64(s.Value[space])
		// Asking for profiles allocates too, on a quiet node more than all else; the count of mallocs leaves it out as well.
		if n <= 0 || size <= 0 || onStack(s, "net/http/pprof.") {
			continue
		}
		weight := 1.0
		if p.Period > 1 { // else the runtime samples every object and scales nothing
			weight = 1 / -math.Expm1(-size/n/float64(p.Period))
		}
		a.objects += n
		a.squares += n * weight
		if onStack(s, prefix) {
			a.matching += n
		}
	}
	return a, nil
}

// onStack tells whether the name of any function on a sample's stack, inlined ones included, begins with prefix.
func onStack(s *profile.Sample, prefix string) bool {
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function != nil && strings.HasPrefix(line.Function.Name, prefix) {
				return true
			}
		}
	}
	return false
}
