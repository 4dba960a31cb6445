package hist

import (
	"io"
	"math"
	"math/bits"
	"strconv"
	"sync/atomic"
)

// Bucket layout, shared by durations and sizes. A value is first turned into "steps", x = number of
// whole steps strictly below it, so that a value equal to a bound still falls under that bound: a
// Prometheus `le` bucket includes its bound. A step is 125 ns for durations and 1 for sizes.
//
//	x in [0, 8)           one bucket per step                     index = x
//	x in [8·2^s, 16·2^s)  8 buckets of 2^s steps, s = 0, 1, …     index = 8·s + (x >> s)
//	x ≥ 2^27              one overflow bucket                     index = 200
//
// 8 buckets per octave bound the relative error of a quantile by one bucket width, 12.5 %. The text
// format shows only the octave bounds: they are exact sums of whole buckets, so nothing is rounded.
// One `le` per octave keeps a family of 50 label sets at 1,400 lines per scrape; two per octave would
// double that and still be coarser than the quantiles that this process can tell by itself.
const (
	subBits     = 3
	subBuckets  = 1 << subBits
	octaveMax   = 27 // 2^27 steps = 16.777216 s, or 134,217,728
	bucketCount = subBuckets*(octaveMax-subBits+1) + 1
	overflow    = bucketCount - 1

	// stepsNs makes 2^3 steps one microsecond, so that every octave bound from there on is a power of
	// two in microseconds.
	stepsNs = 125
)

// bucketIndex returns the bucket of a value that has x whole steps strictly below it.
func bucketIndex(x uint64) int {
	if x < subBuckets {
		return int(x)
	}
	s := bits.Len64(x) - (subBits + 1)
	if s > octaveMax-subBits-1 {
		return overflow
	}
	return s<<subBits + int(x>>(uint(s)&63))
}

// bucketBounds returns the bounds (low, high] of bucket i in steps. REQUIRES: i < overflow.
func bucketBounds(i int) (low, high uint64) {
	if i < subBuckets {
		return uint64(i), uint64(i) + 1
	}
	s := uint(i>>subBits - 1)
	m := uint64(i&(subBuckets-1) + subBuckets)
	return m << s, (m + 1) << s
}

// core is the part that Histogram and Sizes share. The sum leads: it is written by every observation,
// and the padding behind the buckets keeps the next shard's sum off this one's last cache lines (128
// bytes: processors fetch lines in pairs).
type core struct {
	sum    atomic.Uint64
	counts [bucketCount]atomic.Uint64
	_      [128]byte
}

func (c *core) observe(bucket int, value uint64) { c.observeN(bucket, value, 1) }

func (c *core) observeN(bucket int, value, n uint64) {
	c.counts[bucket].Add(n)
	c.sum.Add(n * value)
}

func (c *core) addTo(d *data) {
	for i := range c.counts {
		n := c.counts[i].Load()
		d.counts[i] += n
		d.count += n
	}
	d.sum += c.sum.Load()
}

func (c *core) add(other *core) {
	for i := range other.counts {
		if n := other.counts[i].Load(); n > 0 {
			c.counts[i].Add(n)
		}
	}
	c.sum.Add(other.sum.Load())
}

// data is a plain copy of one or several cores.
// Invariant: count equals the sum of counts, so _count and the +Inf bucket agree in every scrape.
type data struct {
	count  uint64
	sum    uint64
	counts [bucketCount]uint64
}

func (d *data) merge(other *data) {
	for i, n := range other.counts {
		d.counts[i] += n
	}
	d.count += other.count
	d.sum += other.sum
}

// quantile returns the estimated q-quantile in steps: linear between the bounds of the bucket that
// holds it, and the last bound when it lies in the overflow bucket.
func (d *data) quantile(q float64) float64 {
	if d.count == 0 || math.IsNaN(q) {
		return 0
	}
	rank := min(max(q, 0), 1) * float64(d.count)
	var below float64
	for i, n := range d.counts[:overflow] {
		if n == 0 {
			continue
		}
		if below+float64(n) >= rank {
			low, high := bucketBounds(i)
			return float64(low) + float64(high-low)*max(rank-below, 0)/float64(n)
		}
		below += float64(n)
	}
	return 1 << octaveMax
}

// appendPrometheus appends the cumulative buckets, _sum and _count. The first `le` is at octave
// firstOctave; a bound of 2^k steps is written as 2^(k-firstOctave)/divisor
// (dividing rounds once, so bounds print short: 1.6e-05).
func (d *data) appendPrometheus(dst []byte, name, labels string, firstOctave int, divisor, sum float64) []byte {
	var cumulative uint64
	next := 0
	for octave := firstOctave; octave <= octaveMax; octave++ {
		end := subBuckets * (octave - subBits + 1)
		if octave < subBits {
			end = 1 << octave
		}
		for ; next < end; next++ {
			cumulative += d.counts[next]
		}
		dst = appendName(dst, name, "_bucket", labels, float64(uint64(1)<<(octave-firstOctave))/divisor)
		dst = strconv.AppendUint(dst, cumulative, 10)
		dst = append(dst, '\n')
	}
	dst = appendName(dst, name, "_bucket", labels, math.Inf(1))
	dst = strconv.AppendUint(dst, d.count, 10)
	dst = append(dst, '\n')
	dst = appendName(dst, name, "_sum", labels, math.NaN())
	dst = strconv.AppendFloat(dst, sum, 'g', -1, 64)
	dst = append(dst, '\n')
	dst = appendName(dst, name, "_count", labels, math.NaN())
	dst = strconv.AppendUint(dst, d.count, 10)
	return append(dst, '\n')
}

// appendName appends `name+suffix{labels,le="bound"} `; a NaN bound means no le label.
func appendName(dst []byte, name, suffix, labels string, bound float64) []byte {
	dst = append(dst, name...)
	dst = append(dst, suffix...)
	hasBound := !math.IsNaN(bound)
	if labels != "" || hasBound {
		dst = append(dst, '{')
		dst = append(dst, labels...)
		if hasBound {
			if labels != "" {
				dst = append(dst, ',')
			}
			dst = append(dst, `le="`...)
			dst = strconv.AppendFloat(dst, bound, 'g', -1, 64)
			dst = append(dst, '"')
		}
		dst = append(dst, '}')
	}
	return append(dst, ' ')
}

// WriteHeader writes the `# HELP` and `# TYPE … histogram` lines of a family. Write it once per scrape,
// before the family's first label set. help must be one line without backslashes.
func WriteHeader(w io.Writer, name, help string) error {
	_, err := io.WriteString(w, "# HELP "+name+" "+help+"\n# TYPE "+name+" histogram\n")
	return err
}
