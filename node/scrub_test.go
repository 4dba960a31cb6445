package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"kvstore/engine"
)

// A scrubber over functions; what Scrub and ScrubLog find is tested where they are, and in test/quarantine_test.go.

// testScrubber runs once for each kick. What it tells comes out of the channel.
func testScrubber(t *testing.T, state func(context.Context, engine.ScrubOptions) (engine.ScrubReport, error), log string) (*scrubber, chan error) {
	t.Helper()
	x := newScrubber(-1, scrubRateMin)
	told := make(chan error, 1)
	x.state, x.told = state, func(err error) { told <- err }
	x.log = func(context.Context, int64) (string, error) { return log, nil }
	x.start()
	t.Cleanup(x.stop)
	return x, told
}

func TestScrub_Damage_IsToldWithItsPlaceAndCounted(t *testing.T) {
	x, told := testScrubber(t, func(_ context.Context, o engine.ScrubOptions) (engine.ScrubReport, error) {
		if o.RateBytes != scrubRateMin {
			t.Errorf("the rate is %d", o.RateBytes)
		}
		r := engine.ScrubReport{Index: 7, Records: 3, Bytes: 100, More: 5}
		for range scrubDamagesMax + 2 {
			r.Damaged = append(r.Damaged, engine.DamagedKey{Kind: "record", Namespace: 1, Key: []byte("some/key"), Cause: "checksum"})
		}
		return r, nil
	}, "entry 5 is damaged")
	if s := x.status(); s.Running || s.StartedAt != nil || s.NextAt != nil || s.DigestMatches != nil {
		t.Errorf("before the first scrub the status is %+v", s)
	}
	x.ask()
	err := <-told
	if !errors.Is(err, engine.ErrRecordDamaged) || !strings.Contains(err.Error(), "some/key") || !strings.Contains(err.Error(), "17 places") {
		t.Errorf("told is %v", err)
	}
	s := x.status()
	if s.Running || s.FinishedAt == nil || s.DamagedCount != scrubDamagesMax+2+5 || len(s.Damaged) != scrubDamagesMax || s.LogError != "entry 5 is damaged" || s.Index != 7 || s.DigestMatches == nil || *s.DigestMatches {
		t.Errorf("the status is %+v", s)
	}
	if x.runs.Load() != 1 || x.damages.Load() != scrubDamagesMax+7 || x.records.Load() != 3 || x.bytes.Load() != 100 {
		t.Errorf("counted are %d runs, %d damages, %d records, %d bytes", x.runs.Load(), x.damages.Load(), x.records.Load(), x.bytes.Load())
	}
}

func TestScrub_DigestOff_IsToldAndSoundIsToldAsSuch(t *testing.T) {
	matches := false
	x, told := testScrubber(t, func(context.Context, engine.ScrubOptions) (engine.ScrubReport, error) {
		return engine.ScrubReport{DigestMatches: matches, DigestCause: "one record too many"}, nil
	}, "")
	x.ask()
	if err := <-told; !errors.Is(err, engine.ErrDigestMismatch) || !strings.Contains(err.Error(), "one record too many") {
		t.Errorf("told is %v", err)
	}
	matches = true
	x.ask()
	if err := <-told; err != nil {
		t.Errorf("told of a sound state is %v", err)
	}
	if s := x.status(); s.DigestMatches == nil || !*s.DigestMatches || len(s.Damaged) != 0 || s.Damaged == nil {
		t.Errorf("the status is %+v", s)
	}
}

func TestScrub_Stopped_EndsAndTellsNothing(t *testing.T) {
	began := make(chan struct{})
	x, told := testScrubber(t, func(ctx context.Context, _ engine.ScrubOptions) (engine.ScrubReport, error) {
		close(began)
		<-ctx.Done()
		return engine.ScrubReport{}, ctx.Err()
	}, "")
	x.ask()
	<-began
	if !x.status().Running {
		t.Error("the status does not say that it runs")
	}
	x.stop()
	select {
	case err := <-told:
		t.Errorf("told is %v", err)
	default:
	}
	if s := x.status(); s.Running || s.Error == "" || x.failures.Load() != 0 || x.runs.Load() != 0 {
		t.Errorf("the status is %+v", s)
	}
}

func TestScrub_Failed_IsNoDamageAndTriedAgainByTheInterval(t *testing.T) {
	calls := make(chan struct{}, 100)
	x := newScrubber(time.Millisecond, scrubRateMin)
	x.state = func(context.Context, engine.ScrubOptions) (engine.ScrubReport, error) {
		calls <- struct{}{}
		return engine.ScrubReport{}, engine.ErrPinsExhausted
	}
	x.log = func(context.Context, int64) (string, error) { return "", nil }
	x.told = func(err error) { t.Errorf("told is %v", err) }
	x.start()
	<-calls
	<-calls
	x.stop()
	if s := x.status(); s.Error == "" || s.NextAt == nil || x.failures.Load() < 1 {
		t.Errorf("the status is %+v", s)
	}
}
