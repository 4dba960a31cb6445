package bench

import (
	"math"
	"math/rand/v2"
)

// ZipfianTheta is the skew of the YCSB core workloads.
const ZipfianTheta = 0.99

// Scrambled draws come from a fixed, huge item space, as in YCSB: the hash then spreads the popular items
// over the real keys, and which keys are popular does not depend on how many there are. The zeta of that
// space is a constant, since summing ten billion terms would take minutes.
const (
	scrambledItems = 10_000_000_000
	scrambledZeta  = 26.46902820178302
)

// Zipfian draws items 0, 1, 2, … with falling popularity after the algorithm of Gray et al., "Quickly
// Generating Billion-Record Synthetic Databases", SIGMOD 1994, which YCSB uses too. Not safe for
// concurrent use.
type Zipfian struct {
	rng *rand.Rand

	items             int64
	theta, alpha      float64
	zeta2, zetan, eta float64
}

// NewZipfian returns a generator over items 0 to items-1; it sums items terms once. It panics when items
// is below 1 or theta is outside (0, 1).
func NewZipfian(rng *rand.Rand, items int64, theta float64) *Zipfian {
	return newZipfian(rng, items, theta, zeta(0, items, theta, 0))
}

func newZipfian(rng *rand.Rand, items int64, theta, zetan float64) *Zipfian {
	if items < 1 || theta <= 0 || theta >= 1 {
		panic("BUG: zipfian over no items or with a skew outside (0, 1)")
	}
	z := &Zipfian{rng: rng, items: items, theta: theta, alpha: 1 / (1 - theta), zeta2: zeta(0, 2, theta, 0), zetan: zetan}
	z.setEta()
	return z
}

func (z *Zipfian) setEta() {
	z.eta = (1 - math.Pow(2/float64(z.items), 1-z.theta)) / (1 - z.zeta2/z.zetan)
}

// zeta continues the sum of 1/i^theta, which stands at sum after from terms, to the first to terms.
func zeta(from, to int64, theta, sum float64) float64 {
	for i := from; i < to; i++ {
		sum += 1 / math.Pow(float64(i+1), theta)
	}
	return sum
}

// Grow raises the number of items to n; the cost is one term per new item. A smaller n is ignored.
func (z *Zipfian) Grow(n int64) {
	if n <= z.items {
		return
	}
	z.zetan = zeta(z.items, n, z.theta, z.zetan)
	z.items = n
	z.setEta()
}

// Next draws an item: 0 is the most popular one.
func (z *Zipfian) Next() int64 {
	u := z.rng.Float64()
	uz := u * z.zetan
	switch {
	case uz < 1 || z.items == 1:
		return 0
	case uz < 1+math.Pow(0.5, z.theta):
		return 1
	}
	n := int64(float64(z.items) * math.Pow(z.eta*u-z.eta+1, z.alpha))
	return min(n, z.items-1)
}

// chooser draws the number of an existing key. Owned by one worker.
type chooser interface {
	// next returns a number in [0, last], where last is the newest key that exists.
	next(last int64) int64
}

type uniformChooser struct{ rng *rand.Rand }

func (c uniformChooser) next(last int64) int64 { return c.rng.Int64N(last + 1) }

// hotChooser draws from the first HotKeys keys alone.
type hotChooser struct{ rng *rand.Rand }

func (c hotChooser) next(last int64) int64 { return c.rng.Int64N(min(last+1, HotKeys)) }

// scrambledChooser is YCSB's ScrambledZipfianGenerator over a key space that includes the keys which the
// run is expected to insert; numbers that do not exist yet are drawn again.
type scrambledChooser struct {
	zipf  *Zipfian
	space uint64
}

func newScrambledChooser(rng *rand.Rand, space int64) scrambledChooser {
	return scrambledChooser{newZipfian(rng, scrambledItems, ZipfianTheta, scrambledZeta), uint64(space)}
}

func (c scrambledChooser) next(last int64) int64 {
	for {
		n := int64(fnvHash64(uint64(c.zipf.Next())) % c.space)
		if n <= last {
			return n
		}
	}
}

// latestChooser is YCSB's SkewedLatestGenerator: the newest keys are the most popular.
type latestChooser struct{ zipf *Zipfian }

func (c latestChooser) next(last int64) int64 {
	c.zipf.Grow(last + 1)
	return max(0, last-c.zipf.Next())
}

// fnvHash64 is the hash that YCSB scatters key numbers with: FNV-1a over the eight bytes of n, low byte
// first, made non-negative as Java's Math.abs does.
func fnvHash64(n uint64) uint64 {
	h := uint64(0xcbf29ce484222325)
	for range 8 {
		h = (h ^ n&0xff) * 1099511628211
		n >>= 8
	}
	if int64(h) < 0 {
		h = -h
	}
	return h
}
