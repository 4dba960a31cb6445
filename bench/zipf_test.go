package bench

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The generator must follow the law that it claims: item i has the probability 1/(i+1)^theta / zeta(n).
// Gray's method is exact for the first two items and an approximation for the others.
func TestZipfian_FixedSeed_FollowsTheLaw(t *testing.T) {
	const items, draws, seed = 1000, 1_000_000, 42
	z := NewZipfian(rand.New(rand.NewPCG(seed, 1)), items, ZipfianTheta)
	counts := make([]int, items)
	for range draws {
		counts[z.Next()]++
	}
	zn := zeta(0, items, ZipfianTheta, 0)
	for _, c := range []struct {
		item      int
		tolerance float64
	}{{0, 0.02}, {1, 0.02}, {2, 0.35}, {9, 0.15}, {99, 0.15}} {
		want := draws / math.Pow(float64(c.item+1), ZipfianTheta) / zn
		if got := float64(counts[c.item]); math.Abs(got-want)/want > c.tolerance {
			t.Errorf("seed %d: item %d was drawn %.0f times, the law says %.0f", seed, c.item, got, want)
		}
	}
	tail := 0
	for _, c := range counts[items/2:] {
		tail += c
	}
	if tail == 0 {
		t.Errorf("seed %d: the unpopular half was never drawn", seed)
	}
}

func TestZipfian_Grow_EqualsFreshGenerator(t *testing.T) {
	rng := func() *rand.Rand { return rand.New(rand.NewPCG(7, 7)) }
	grown, fresh := NewZipfian(rng(), 100, ZipfianTheta), NewZipfian(rng(), 5000, ZipfianTheta)
	grown.Grow(5000)
	grown.Grow(10) // ignored
	for i := range 10_000 {
		a, b := grown.Next(), fresh.Next()
		if a != b {
			t.Fatalf("draw %d: grown gives %d, fresh %d", i, a, b)
		}
	}
}

func TestZipfian_OneItem_AlwaysZero(t *testing.T) {
	z := NewZipfian(rand.New(rand.NewPCG(1, 1)), 1, ZipfianTheta)
	for range 1000 {
		if n := z.Next(); n != 0 {
			t.Fatalf("drew %d of one item", n)
		}
	}
}

// Scrambled: the hottest key has the share 1/zeta of the fixed space (3.8 %), is not simply key 0, and no
// draw passes the newest key.
func TestScrambled_FixedSeed_HotKeySpreadAndInRange(t *testing.T) {
	const keys, draws = 10_000, 500_000
	c := newScrambledChooser(rand.New(rand.NewPCG(3, 3)), keys+1000)
	counts := make([]int, keys)
	for range draws {
		counts[c.next(keys-1)]++
	}
	hot, hits := 0, 0
	for k, n := range counts {
		if n > counts[hot] {
			hot = k
		}
		if n > 0 {
			hits++
		}
	}
	share := float64(counts[hot]) / draws
	if share < 0.036 || share > 0.050 {
		t.Errorf("hottest key has %.2f %% of the draws, expected about 3.8 %% to 4.2 %%", share*100)
	}
	if hot < 10 {
		t.Errorf("the hottest key is number %d: not scattered", hot)
	}
	if hits < keys/2 {
		t.Errorf("only %d of %d keys were drawn", hits, keys)
	}
}

func TestLatest_NewKeys_AreThePopularOnes(t *testing.T) {
	c := latestChooser{NewZipfian(rand.New(rand.NewPCG(5, 5)), 1000, ZipfianTheta)}
	newest := 0
	const draws = 100_000
	for range draws {
		n := c.next(1999)
		if n < 0 || n > 1999 {
			t.Fatalf("drew key %d of 2000", n)
		}
		if n >= 1990 {
			newest++
		}
	}
	if share := float64(newest) / draws; share < 0.25 || share > 0.45 {
		t.Errorf("the ten newest of 2000 keys have %.1f %% of the draws, expected about a third", share*100)
	}
}

// The first records that YCSB loads carry these names, on every database that it has a binding for.
func TestKeyNames_EqualThoseOfYCSB(t *testing.T) {
	s := newKeySpace("", 1)
	for n, want := range []string{"user6284781860667377211", "user8517097267634966620"} {
		if got := s.name(int64(n)); got != want {
			t.Errorf("key %d is %s, YCSB names it %s", n, got, want)
		}
	}
}

func TestInsertSequence_OutOfOrder_LastIsContiguous(t *testing.T) {
	s := newInsertSequence(10)
	a, b, c := s.take(), s.take(), s.take()
	s.finish(c)
	s.finish(b)
	if got := s.last.Load(); got != 9 {
		t.Fatalf("last is %d while insert %d is under way, want 9", got, a)
	}
	s.finish(a)
	if got := s.last.Load(); got != c || len(s.done) != 0 {
		t.Fatalf("last is %d with %d left over, want %d and 0", got, len(s.done), c)
	}
}
