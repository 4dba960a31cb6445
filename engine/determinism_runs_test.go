package engine

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
)

var chroniclesFlag = flag.Int("chronicles", 200, "random logs that the test of determinism follows")

// TestDeterminism_SameLogAnyReplica_SameStateAndAnswers makes random logs and lets replicas follow them that differ
// in all that must not matter: options, restarts, crashes, snapshots that come and go, readers, scrubs, compactions,
// processors, and the local clock, which for every second replica shows the year 2000. After each entry that it
// applies a replica must have the same answers, effects, point and digest as the first engine, and at the end the
// same state, read key by key.
func TestDeterminism_SameLogAnyReplica_SameStateAndAnswers(t *testing.T) {
	n := *chroniclesFlag
	if testing.Short() {
		n = min(n, 20)
	}
	first := testSeed(t)
	processors := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(processors) })
	// Two at a time: one computes while the other waits for its files.
	for part := range uint64(2) {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			for seed := first + part; seed < first+uint64(n) && !t.Failed(); seed += 2 {
				followChronicle(t, seed)
			}
		})
	}
}

// memoryDir makes a directory in memory where there is one: these tests cut no power, so they need not wait for a
// disk. On one they take three times as long.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kvstore-engine-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// followChronicle lets two replicas follow the log of a seed.
func followChronicle(t *testing.T, seed uint64) {
	defer func() {
		if t.Failed() {
			t.Logf("it was seed %d: replay with -seed=%d -chronicles=1", seed, seed)
		}
	}()
	c := newChronicle(t, seed, 40)
	replicaOf := func(t testing.TB, n uint64) *replica {
		rng := rand.New(rand.NewPCG(seed, 30+n))
		return &replica{t: t, c: c, rng: rng, o: anyOptions(t, rng, memoryDir(t))}
	}
	replicaOf(t, 0).run(12)
	// Its own clock: 2000-01-01, and it goes on only while everyone sleeps.
	synctest.Test(t, func(t *testing.T) {
		r := replicaOf(t, 1)
		r.bubble = true
		r.run(12)
	})
}
