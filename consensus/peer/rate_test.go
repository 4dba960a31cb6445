package peer

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRate_AnyCallers_NeverMoreThanTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRate(256 << 10)
		start := time.Now()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 16 {
					if err := r.take(t.Context(), r.piece()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		want := time.Duration(64*r.piece()) * time.Second / (256 << 10)
		if got := time.Since(start); got < want-burstTime || got > want+burstTime {
			t.Errorf("%d bytes took %v, want %v", 64*r.piece(), got, want)
		}
		// What was not used for a while is gone, but for a burst.
		time.Sleep(time.Hour)
		start = time.Now()
		if err := r.take(t.Context(), 256<<10); err != nil || time.Since(start) < time.Second-burstTime {
			t.Errorf("after a pause: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := r.take(ctx, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that was cut short: %v", err)
		}
	})
}

func TestRate_NoBound_NobodyWaits(t *testing.T) {
	r := newRate(-1)
	if err := r.take(context.Background(), 1<<40); err != nil || r.piece() != connChunk {
		t.Errorf("%v, pieces of %d", err, r.piece())
	}
	slow := newRate(64 << 10)
	if got := slow.piece(); got != 16<<10 {
		t.Errorf("pieces of %d bytes at 64 KiB/s", got)
	}
}

// Goal: sender and receiver each keep to their bound, whichever is lower, and a slow snapshot is not taken for
// one that stalled.
func TestInstall_RateIsBounded_OnEitherSide(t *testing.T) {
	const size, perSecond = 256 << 10, 256 << 10
	for name, change := range map[string]func(a, b *Options){
		"sender":   func(a, _ *Options) { a.SnapshotRateBytes = perSecond },
		"receiver": func(_, b *Options) { b.SnapshotRateBytes = perSecond },
	} {
		r := &receiver{}
		a, b := pair(t, func(a, b *Options) {
			b.Receive = r.receive
			a.StallTimeout, b.StallTimeout = 700*time.Millisecond, 700*time.Millisecond // less than all of it takes
			change(a, b)
		}, agree)
		b.Bind(newFakeNode(5))
		start := time.Now()
		resp, err := install(a, b, 6, bytes.NewReader(snapshotBytes(size)))
		if err != nil || !resp.Success {
			t.Fatalf("%s: %+v, %v", name, resp, err)
		}
		// The lower bound can't fail on a slow day.
		if took := time.Since(start); took < 900*time.Millisecond {
			t.Errorf("%s: %d bytes took %v at %d a second", name, size, took, perSecond)
		}
	}
}

func TestOptions_SnapshotRateTooLow_IsRefused(t *testing.T) {
	o := testOptions(t, 1)
	o.SnapshotRateBytes = 1000
	if tr, err := New(o); err == nil {
		t.Error("taken")
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}
}
