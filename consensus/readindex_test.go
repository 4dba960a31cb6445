package consensus

import (
	"errors"
	"testing"
	"time"

	"kvstore/internal/clock"
)

// testRounds drives a readIndex by hand: what is confirmed and who leads is set by the test.
type testRounds struct {
	clock     *clock.Manual
	confirmed int64
	term      uint64
	metrics   Metrics
	r         *readIndex
}

func newTestRounds() *testRounds {
	x := &testRounds{clock: clock.NewManual(time.Time{}), confirmed: neverConfirmed, term: 1}
	x.clock.Advance(time.Second)
	x.r = newReadIndex(x.clock, time.Second, &x.metrics,
		func(uint64) int64 { return x.confirmed }, func(term uint64) bool { return term == x.term })
	return x
}

// ask asks and returns where the answer will be.
func (x *testRounds) ask(t *testing.T, term uint64) chan error {
	t.Helper()
	c := make(chan error, 2)
	if err := x.r.ask(term, func(err error) { c <- err }); err != nil {
		t.Fatal(err)
	}
	return c
}

func (x *testRounds) provoked() bool {
	select {
	case <-x.r.provoke:
		return true
	default:
		return false
	}
}

func TestReadIndex_AnswersSentBeforeTheCall_DoNotCount(t *testing.T) {
	x := newTestRounds()
	x.confirmed = int64(x.clock.Boot()) - 1 // a majority answered, but to something sent earlier
	a := x.ask(t, 1)
	if !x.r.step() || len(a) != 0 {
		t.Fatal("answered by an older confirmation")
	}
	if !x.provoked() {
		t.Error("no heartbeats were asked for")
	}
	x.clock.Advance(time.Millisecond)
	b := x.ask(t, 1)
	if !x.r.step() || x.provoked() {
		t.Error("a second round while the first is on its way")
	}
	x.confirmed = int64(time.Second) // exactly when a asked
	if !x.r.step() || len(a) != 1 || <-a != nil || len(b) != 0 {
		t.Error("the round must serve who asked before it, and nobody else")
	}
	if !x.provoked() {
		t.Error("no round for who came meanwhile")
	}
	x.confirmed = int64(x.clock.Boot())
	if x.r.step() || len(b) != 1 || <-b != nil {
		t.Error("the second reader was not answered")
	}
	if n := x.metrics.ReadIndexRounds.Load(); n != 2 {
		t.Errorf("%d rounds", n)
	}
}

func TestReadIndex_LeadershipLost_NobodyMayRead(t *testing.T) {
	x := newTestRounds()
	a := x.ask(t, 1)
	x.term, x.confirmed = 2, int64(time.Hour) // confirmed, but not as the leader that was asked
	if x.r.step() || !errors.Is(<-a, ErrNotLeader) {
		t.Error("a reader of an earlier term was let through")
	}
}

func TestReadIndex_NoAnswer_TimesOutAndAsksAgainMeanwhile(t *testing.T) {
	x := newTestRounds()
	a := x.ask(t, 1)
	x.r.step()
	x.provoked()
	x.clock.Advance(time.Second)
	b := x.ask(t, 1)
	if !x.r.step() || len(a) != 0 {
		t.Error("gave up at the limit")
	}
	if !x.provoked() {
		t.Error("a round that got lost blocks all others")
	}
	x.clock.Advance(1)
	if !x.r.step() || !errors.Is(<-a, ErrTimeout) || len(b) != 0 {
		t.Error("beyond the limit only the first must be given up")
	}
	if n := x.metrics.ReadIndexFailed.Load(); n != 1 {
		t.Errorf("%d failed", n)
	}
}

func TestReadIndex_FullAndClosed_EveryoneIsAnsweredOnce(t *testing.T) {
	x := newTestRounds()
	answers := 0
	for range readersMax {
		if err := x.r.ask(1, func(err error) {
			if !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
			answers++
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.r.ask(1, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("beyond the limit: %v", err)
	}
	stop := make(chan struct{})
	close(stop)
	x.r.run(stop)
	if answers != readersMax {
		t.Errorf("%d of %d were answered", answers, readersMax)
	}
	if err := x.r.ask(1, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
