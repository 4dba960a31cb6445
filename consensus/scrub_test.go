package consensus

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestScrubLog_FlippedByteInASealedAndInTheNewestSegment_BothFoundAndTheGroupGoesOn(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 64 << 10
	o.LogCacheBytes = -1
	g := openGroup(t, o, openMachine(t, dir))
	defer closeGroup(t, g)
	for range 40 {
		mustPropose(t, g, string(make([]byte, 4000)))
	}
	whole, err := g.ScrubLog(testContext(t), -1)
	s := g.Status()
	if err != nil || whole.DamagedEntries != 0 || whole.First != 1 || whole.Last != s.LastIndex || whole.Entries != s.LastIndex || whole.Bytes < 40*4000 {
		t.Fatalf("a whole log: %+v, %v", whole, err)
	}
	files, err := filepath.Glob(filepath.Join(o.Dir, "*.wal"))
	if err != nil || len(files) < 3 {
		t.Fatal(len(files), err)
	}
	newest := files[len(files)-1]
	used := usedBytes(t, newest)
	if used < 1000 {
		mustPropose(t, g, string(make([]byte, 4000)))
		used = usedBytes(t, newest)
	}
	for _, flip := range []struct {
		file string
		at   int
	}{{files[1], 3000}, {newest, used / 2}} {
		edit(t, flip.file, func(b []byte) { b[flip.at] ^= 4 })
		r, err := g.ScrubLog(testContext(t), -1)
		if err != nil || r.DamagedEntries != 1 || len(r.Damaged) != 1 {
			t.Fatalf("%s: %+v, %v", flip.file, r, err)
		}
		if d := r.Damaged[0]; !errors.Is(d.Err, errDamaged) || d.File != flip.file || d.Index == 0 {
			t.Errorf("damage %+v, want it in %s", d, flip.file)
		}
		if r.Entries != g.Status().LastIndex-1 {
			t.Errorf("%d of %d entries were found whole", r.Entries, g.Status().LastIndex)
		}
		mustPropose(t, g, "the group goes on")
		edit(t, flip.file, func(b []byte) { b[flip.at] ^= 4 })
	}
	if r, err := g.ScrubLog(testContext(t), -1); err != nil || r.DamagedEntries != 0 {
		t.Errorf("after the repair: %+v, %v", r, err)
	}
}

func TestScrubLog_WritesAndDeletionsMeanwhile_NothingIsTakenForDamage(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 64 << 10
	o.TrailingLogs = 1
	g := openGroup(t, o, openMachine(t, dir))
	defer closeGroup(t, g)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { // ends with ctx
		for ctx.Err() == nil {
			r, err := g.ScrubLog(ctx, -1)
			if err != nil && ctx.Err() == nil || r.DamagedEntries != 0 {
				t.Errorf("%+v, %v", r, err)
				return
			}
		}
	})
	for i := range 120 {
		mustPropose(t, g, string(make([]byte, 4000)))
		if i%20 == 19 {
			if err := g.Snapshot(testContext(t)); err != nil {
				t.Error(err)
			}
		}
	}
	cancel()
	wg.Wait()
}

func TestScrubLog_Rate_IsKept(t *testing.T) {
	s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) { o.segmentBytes = 1 << 20 })
	defer s.mustClose(t)
	appendEntries(t, s, 20, 50_000) // a million bytes
	start := time.Now()
	r, err := s.scrub(testContext(t), nil, 4<<20)
	took := time.Since(start)
	if err != nil || r.Entries != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	// The last slice, of at most 256 KiB and an entry, is not waited for.
	if least := time.Duration(float64(r.Bytes-scrubSlice-60_000) / (4 << 20) * float64(time.Second)); took < least {
		t.Errorf("%d bytes took %v, want at least %v", r.Bytes, took, least)
	}
}

func TestScrubLog_GivesWayToWrites_ForABoundedTime(t *testing.T) {
	s := mustOpenLog(t, t.TempDir())
	defer s.mustClose(t)
	appendEntries(t, s, 3, 100)
	s.writing.Add(1) // a write that does not end
	defer s.writing.Add(-1)
	start := time.Now()
	r, err := s.scrub(testContext(t), nil, -1)
	if err != nil || r.Entries != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	if took := time.Since(start); took < scrubYield {
		t.Errorf("gave way for %v", took)
	}
}

func TestScrubLog_CanceledOrClosed_EndsEarly(t *testing.T) {
	s := mustOpenLog(t, t.TempDir())
	appendEntries(t, s, 3, 100)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r, err := s.scrub(ctx, nil, 0); !errors.Is(err, context.Canceled) || r.Last != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	stop := make(chan struct{})
	close(stop)
	if _, err := s.scrub(t.Context(), stop, 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	s.mustClose(t)
	if _, err := s.scrub(t.Context(), nil, 0); !errors.Is(err, errStoreClosed) {
		t.Error(err)
	}
}
