package engine

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// TestDigestsAt_SameLogOtherPace_SamePoints feeds one log to an engine that runs through, and to one that is
// restarted, makes checkpoints, and holds its data in other pieces.
func TestDigestsAt_SameLogOtherPace_SamePoints(t *testing.T) {
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 5))
	w := newWorkload(seed)
	w.bigValue = 200
	plain := mustOpen(t, engineOptions(t, t.TempDir()))
	o := engineOptions(t, t.TempDir())
	o.CacheBytes, o.CheckpointInterval, o.ChunkThresholdBytes, o.ChunkBytes = -1, 20*time.Millisecond, 1<<10, 1<<10
	other := mustOpen(t, o)
	const entries = 5*digestEvery + 10
	var log [][]byte
	behind := 0
	catchUp := func() {
		for ; behind < len(log); behind++ {
			other.Apply(uint64(behind+1), 1, log[behind])
		}
	}
	for range entries {
		index, entry := w.next()
		log = append(log, entry)
		w.learn(plain.Apply(index, 1, entry))
		if rng.IntN(200) == 0 {
			catchUp()
		}
	}
	catchUp()
	want, got := plain.DigestsAt(), other.DigestsAt()
	if len(want) != 5 || len(got) != 5 {
		t.Fatalf("%d and %d digests, want 5", len(want), len(got))
	}
	for i := range want {
		if want[i] != got[i] || want[i].Index != uint64(i+1)*digestEvery {
			t.Fatalf("digest %d: %+v, %+v", i, want[i], got[i])
		}
		if d, ok := other.DigestAt(want[i].Index); !ok || d != want[i].Digest {
			t.Fatalf("digest at %d: %x, %v", want[i].Index, d, ok)
		}
		if i > 0 && want[i].Digest == want[i-1].Digest {
			t.Fatal("the state did not change: the test shows nothing")
		}
	}
	for _, index := range []uint64{0, 1, digestEvery + 1, 6 * digestEvery} {
		if _, ok := plain.DigestAt(index); ok {
			t.Fatalf("a digest at %d", index)
		}
	}
	// After a restart those from the checkpoint on are there, the same.
	if err := other.CheckpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	other = crash(t, other, o, log)
	for range digestEvery {
		index, entry := w.next()
		log = append(log, entry)
		w.learn(plain.Apply(index, 1, entry))
		other.Apply(index, 1, entry)
	}
	if got := other.DigestsAt(); len(got) != 1 || got[0] != plain.DigestsAt()[5] {
		t.Fatalf("after a restart %+v, want the last of %+v", got, plain.DigestsAt())
	}
}

func TestDigestsAt_MoreThanAreKept_NewestStay(t *testing.T) {
	var in instance
	for i := range uint64(digestsKept + 3) {
		in.note(&marker{index: (i + 1) * digestEvery, digest: digest{i}}, tableSizes{})
		in.note(&marker{index: (i+1)*digestEvery + 1, digest: digest{99}}, tableSizes{})
	}
	e := new(Engine)
	e.live.Store(&in)
	points := e.DigestsAt()
	if len(points) != digestsKept || points[0].Index != 4*digestEvery || points[digestsKept-1].Index != (digestsKept+3)*digestEvery {
		t.Fatalf("%d points: %+v", len(points), points)
	}
	if _, ok := e.DigestAt(3 * digestEvery); ok {
		t.Fatal("one that had to make room is still there")
	}
}
