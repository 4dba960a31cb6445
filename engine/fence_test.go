package engine

import (
	"context"
	"testing"
	"time"
)

func TestHistory_WindowByTimeAndByBytes_FenceIsTheNewestSampleOutside(t *testing.T) {
	at := func(seconds int64, bytes int64) *published {
		return &published{point: point{ts: uint64(100 + seconds), time: seconds * 1e6}, bytes: bytes}
	}
	var h history
	h.init(10*time.Second, 1000, Checkpoint{TS: 100, Fence: 90})
	for _, c := range []struct {
		seconds, bytes int64
		want           uint64
	}{
		{1, 10, 90},     // Nothing is outside: the fence that was recovered stays.
		{9, 20, 90},     //
		{10, 30, 100},   // The start is 10 s old.
		{11, 40, 101},   //
		{18, 50, 101},   // 9 is inside: 18-10 = 8.
		{19, 60, 109},   //
		{19, 2000, 119}, // More than 1000 bytes since all samples: the newest of those.
		{40, 2100, 119},
		{39, 2100, 119}, // Never back, whatever comes.
	} {
		p := at(c.seconds, c.bytes)
		h.note(p)
		if got := h.advance(p); got != c.want {
			t.Fatalf("at %d s, %d bytes: fence %d, want %d (samples %v)", c.seconds, c.bytes, got, c.want, h.samples)
		}
	}
}

func TestHistory_ManyCheckpoints_SamplesAreBounded(t *testing.T) {
	var h history
	h.init(time.Minute, 1<<30, Checkpoint{})
	for i := range int64(100_000) {
		p := &published{point: point{ts: uint64(i), time: i * 1000}, bytes: i * (1 << 20)}
		h.note(p)
		fence := h.advance(p)
		if len(h.samples) > 2*historySamplesMax+2 {
			t.Fatalf("%d samples after %d checkpoints", len(h.samples), i)
		}
		// 1 GiB is 1024 entries here, a minute 60,000: bytes decide, within one sample's distance.
		if i > 2000 && (fence > uint64(i-1024) || fence < uint64(i-1024-2*1024/historySamplesMax-1)) {
			t.Fatalf("at %d the fence is %d", i, fence)
		}
	}
}

// The applier is ahead of the checkpoint that is being made: the fence doesn't pass what that one covers.
func TestHistory_CheckpointBehindTheApplier_FenceStaysBelowIt(t *testing.T) {
	var h history
	h.init(time.Second, 100, Checkpoint{})
	var sealed *published
	for i := range int64(50) {
		p := &published{point: point{ts: uint64(1 + i), time: i * 1e6}, bytes: i * 1000}
		if h.note(p); i == 10 {
			sealed = p
		}
	}
	if fence := h.advance(sealed); fence != sealed.ts {
		t.Fatalf("fence %d, want %d", fence, sealed.ts)
	}
}

func TestHistory_Restart_FenceIsKeptAndPastStaysReadable(t *testing.T) {
	const seed = 4
	o := storeOptions(t, t.TempDir())
	o.HistoryWindow = 30 * 1000 * time.Microsecond // 30 entries
	s := mustOpenStore(t, o)
	for i := uint64(1); i <= 100; i++ {
		mustApply(t, s, seed, i, i)
		if err := s.checkpointNow(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	waitFence(t, s)
	fence := s.fence.Load()
	if fence != testPoint(70).ts {
		t.Fatalf("fence at %d, want %d", fence, testPoint(70).ts)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpenStore(t, o)
	if got := s.fence.Load(); got != fence {
		t.Fatalf("fence at %d after a restart, was %d", got, fence)
	}
	got, _, err := contents(s, testPoint(75).ts)
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(got, modelAt(seed, 75)); d != "" {
		t.Fatal(d)
	}
}
