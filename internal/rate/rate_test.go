package rate

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Over any stretch of time no more is allowed than the rate gives, plus one second's worth, or one request that is
// larger than that; and what waits as long as it is told to is allowed then.
func TestBucket_AnyLoad_KeepsTheRateAndItsPromise(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for run := range 50 {
		rng := rand.New(rand.NewPCG(seed, uint64(run)))
		rate := uint64(1 + rng.IntN(5000))
		var m Bucket
		m.Set(rate)
		type grant struct {
			at    int64
			items int
		}
		var grants []grant
		now := rng.Int64N(1e12)
		largest := 0
		for range 300 {
			now += rng.Int64N(int64(time.Second) / 4)
			items := 1 + rng.IntN(int(rate))
			if rng.IntN(20) == 0 {
				items = int(rate) * (2 + rng.IntN(3))
			}
			wait := m.Take(items, now)
			if wait > 0 && rng.IntN(2) == 0 {
				if m.Take(items, now+wait-2) == 0 {
					t.Fatalf("run %d: %d items are allowed 2 ns before they may be", run, items)
				}
				now += wait
				if wait = m.Take(items, now); wait != 0 {
					t.Fatalf("run %d: after the pause that was named, %d items are to wait for %d ns more", run, items, wait)
				}
			}
			if wait == 0 {
				grants = append(grants, grant{now, items})
				largest = max(largest, items)
			}
		}
		for i := range grants {
			sum := 0
			for j := i; j < len(grants); j++ {
				sum += grants[j].items
				span := float64(grants[j].at-grants[i].at) / 1e9
				if most := float64(rate)*span + float64(max(int(rate), grants[j].items)) + 1; float64(sum) > most {
					t.Fatalf("run %d: %d items within %.3f s at %d a second; at most %.0f", run, sum, span, rate, most)
				}
			}
		}
		if largest <= int(rate) {
			t.Errorf("run %d: no request of more than a second's worth was ever allowed", run)
		}
	}
}

func TestBucket_WithoutARate_AllowsEverything(t *testing.T) {
	var b Bucket
	for range 1000 {
		if b.Limited() || b.Take(1<<30, 0) != 0 {
			t.Fatal("a bucket without a rate refuses")
		}
	}
}

// A bucket that tells that it is full may be thrown away: a new one allows as much, and no more.
func TestBucket_Full_IsAsGoodAsNew(t *testing.T) {
	var b Bucket
	b.Set(10)
	if !b.Full(5) {
		t.Error("nothing is spent yet")
	}
	b.Take(1, 5)
	if b.Full(5) || b.Full(int64(time.Second)/10+4) {
		t.Error("what was taken a moment ago is said to be paid for")
	}
	if !b.Full(int64(time.Second)/10 + 5) {
		t.Error("after a tenth of a second one of ten is paid for")
	}
	var next Bucket
	next.Set(20)
	b.Take(10, int64(time.Second))
	next.Inherit(&b)
	if wait := next.Take(1, int64(time.Second)); wait != int64(time.Second)/20 {
		t.Errorf("with a second spent before, one more has to wait for %d ns", wait)
	}
}
