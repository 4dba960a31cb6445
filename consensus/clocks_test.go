package consensus

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/internal/clock"
)

// rawClock is a clock with an oscillator below it that may run differently.
type rawClock struct {
	*clock.Manual
	raw time.Duration
}

func (c *rawClock) Raw() time.Duration { return c.raw }

// testClocks plays the clocks of two nodes and the pulses between them.
type testClocks struct {
	c     *rawClock
	w     *clockWatch
	boot  time.Duration // of the other node
	wall  time.Time
	pulse Pulse
}

const testClockHeartbeat = 600 * time.Millisecond

func newTestClocks() *testClocks {
	x := &testClocks{c: &rawClock{Manual: clock.NewManual(time.Unix(1000, 0))}, boot: 1000 * time.Hour, wall: time.Unix(1000, 0)}
	x.c.Advance(time.Second)
	x.w = newClockWatch(x.c, testClockHeartbeat, testClockHeartbeat*5/6)
	x.pulse = Pulse{Peer: "b", Incarnation: [16]byte{1}}
	return x
}

// pass lets time pass by both clocks, the other's running at rate.
func (x *testClocks) pass(d time.Duration, rate float64) {
	x.c.Advance(d)
	x.c.raw += d
	x.boot += time.Duration(float64(d) * rate)
	x.wall = x.wall.Add(d)
}

// ask sends one pulse that takes there on its way there, and back on its way back.
func (x *testClocks) ask(there, back time.Duration, rate float64) (found bool) {
	p := x.pulse
	p.SentAt = int64(x.c.Boot())
	x.pass(there, rate)
	p.Boot, p.Raw, p.Wall = int64(x.boot), int64(x.boot), x.wall.UnixMicro()
	x.pass(back, rate)
	p.ReceivedAt = int64(x.c.Boot())
	return x.w.note(&p)
}

// run sends pulses for a while.
func (x *testClocks) run(d time.Duration, rate float64) (found int) {
	for end := x.c.Boot() + d; x.c.Boot() < end; x.pass(299*time.Millisecond, rate) {
		if x.ask(time.Millisecond/2, time.Millisecond/2, rate) {
			found++
		}
	}
	return found
}

func TestClockWatch_AnyRateAndNetwork_NoneTooFastCountsAndNoneWithinTheBudgetIsBlamed(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	counted, blamed, neither := 0, 0, 0
	for range 400 {
		x := newTestClocks()
		rate := 0.5 + rnd.Float64()
		worst := time.Duration(rnd.Int64N(int64(time.Second)))
		if rnd.IntN(2) == 0 {
			worst /= 100
		}
		for range 200 {
			x.ask(time.Duration(rnd.Int64N(int64(worst)+1)), time.Duration(rnd.Int64N(int64(worst)+1)), rate)
			x.pass(time.Duration(rnd.Int64N(int64(testClockHeartbeat))), rate)
			r := x.w.peers["b"]
			if counts := x.w.counts("b"); counts && rate >= 1.2 {
				t.Fatalf("a clock of rate %.3f counts, with trips of up to %v", rate, 2*worst)
			} else if counts {
				counted++
			}
			if bad := r.tooFast(int64(x.c.Boot())); bad && rate <= 1+1./12 {
				t.Fatalf("a clock of rate %.3f is called too fast, with trips of up to %v", rate, 2*worst)
			} else if bad {
				blamed++
			} else if !x.w.counts("b") {
				neither++
			}
		}
	}
	t.Logf("%d times it counted, %d times it was too fast, %d times neither was sure", counted, blamed, neither)
	if counted == 0 || blamed == 0 || neither == 0 {
		t.Error("the case did not arise")
	}
}

func TestClockWatch_RateChanges_FoundWithinTwoHeartbeatTimeoutsAndForgivenAfterTenSeconds(t *testing.T) {
	x := newTestClocks()
	if x.w.counts("b") || !strings.Contains(x.w.doubt("b"), "not been measured") {
		t.Errorf("before any pulse: %q", x.w.doubt("b"))
	}
	x.ask(0, 0, 1)
	if x.w.counts("b") {
		t.Error("one pulse tells no rate")
	}
	x.pass(testClockHeartbeat, 1)
	if x.ask(0, 0, 1); !x.w.counts("b") || x.w.doubt("b") != "" {
		t.Errorf("two pulses tell it: %q", x.w.doubt("b"))
	}
	if n := x.run(30*time.Second, 1.02); n != 0 || !x.w.counts("b") {
		t.Errorf("a clock within the budget: found %d times, %q", n, x.w.doubt("b"))
	}
	if n := x.run(2*testClockHeartbeat, 1.25); n != 1 || x.w.counts("b") || !strings.Contains(x.w.doubt("b"), "the clock of b runs at least") {
		t.Errorf("a clock that runs a quarter too fast was found %d times: %q", n, x.w.doubt("b"))
	}
	if n := x.run(30*time.Second, 1.25); n != 0 || x.w.counts("b") {
		t.Errorf("it goes on: found %d times more", n)
	}
	if x.run(9*time.Second, 1); x.w.counts("b") {
		t.Error("forgiven early")
	}
	if x.run(2*time.Second, 1); !x.w.counts("b") {
		t.Errorf("never forgiven: %q", x.w.doubt("b"))
	}
	// Slow is no danger: the promise lasts the longer.
	if n := x.run(30*time.Second, 0.5); n != 0 || !x.w.counts("b") {
		t.Errorf("a slow clock: found %d times, %q", n, x.w.doubt("b"))
	}
	// No pulses for long: what was measured counts no more.
	if x.pass(clockWindow+time.Second, 1); x.w.counts("b") {
		t.Error("what was measured counts for ever")
	}
	x.run(time.Second, 1)
	if !x.w.counts("b") {
		t.Error("not measured again")
	}
	// Another machine, or the same one booted anew.
	x.boot = time.Second
	if x.ask(0, 0, 1); x.w.counts("b") {
		t.Error("the clock of before the boot counts for the one of now")
	}
	x.run(time.Second, 1)
	x.pulse.Incarnation = [16]byte{2}
	if x.ask(0, 0, 1); x.w.counts("b") {
		t.Error("the clock of another node of that name counts")
	}
	x.w.forget("b")
	if len(x.w.peers) != 0 {
		t.Error("not forgotten")
	}
}

func TestClockWatch_OwnClockSlowedDown_NobodyCounts(t *testing.T) {
	x := newTestClocks()
	x.run(2*time.Second, 1)
	if !x.w.counts("b") {
		t.Fatal(x.w.doubt("b"))
	}
	// Slewed by a fifth; the other node's clock is slewed alike.
	found := 0
	for range 10 {
		if x.ask(0, 0, 1) {
			found++
		}
		x.pass(300*time.Millisecond, 1)
		x.c.raw += 75 * time.Millisecond
	}
	if found != 1 || x.w.counts("b") || !strings.Contains(x.w.doubt("b"), "slowed down") {
		t.Errorf("found %d times: %q", found, x.w.doubt("b"))
	}
	x.run(clockMend+2*time.Second, 1)
	if !x.w.counts("b") {
		t.Errorf("never forgiven: %q", x.w.doubt("b"))
	}
	// Suspended: boot time goes on, the oscillator stands still.
	x.c.Advance(time.Hour)
	x.boot += time.Hour
	if x.run(2*time.Second, 1) != 0 || !x.w.counts("b") {
		t.Errorf("after a suspension: %q", x.w.doubt("b"))
	}
}

func TestClockWatch_OneSampleTooMany_OldestGoes(t *testing.T) {
	x := newTestClocks()
	for range 3 * clockSamplesMax {
		x.ask(0, 0, 1)
		x.pass(10*time.Millisecond, 1)
	}
	if n := len(x.w.peers["b"].samples); n != clockSamplesMax {
		t.Errorf("%d samples are kept", n)
	}
	for i := range 10 * membersMax {
		x.pulse.Peer = fmt.Sprint("n", i)
		x.ask(0, 0, 1)
	}
	if n := len(x.w.peers); n > 4*membersMax {
		t.Errorf("%d nodes are kept", n)
	}
}

func TestLease_AFollowerCountsNoMore_EndsWhereTheOthersSay(t *testing.T) {
	c := clock.NewManual(time.Time{})
	c.Advance(10 * time.Second)
	l := lease{clock: c, duration: int64(time.Second)}
	distrusted := ""
	b := newAckBook("me", fixedVoters("me", "a", "b"))
	b.counts = func(id string) bool { return id != distrusted }
	now := int64(c.Boot())
	b.record(ack{peer: "a", term: 1, sentAt: now})
	b.record(ack{peer: "b", term: 1, sentAt: now - int64(700*time.Millisecond)})
	l.extend(1, b.leased)
	c.Advance(500 * time.Millisecond)
	if !l.holds(1) {
		t.Fatal("no lease")
	}
	distrusted = "a"
	l.shorten(b.leased)
	if l.holds(1) {
		t.Error("the lease still counts on a")
	}
	if b.confirmed(1) != now {
		t.Error("a confirmation counts on no clock")
	}
	b.record(ack{peer: "a", term: 1, sentAt: int64(c.Boot())})
	l.extend(1, b.leased)
	if l.holds(1) {
		t.Error("a still counts")
	}
	b.record(ack{peer: "b", term: 1, sentAt: int64(c.Boot())})
	l.extend(1, b.leased)
	if !l.holds(1) {
		t.Error("b does not count")
	}
	b.counts = func(string) bool { return false }
	l.shorten(b.leased)
	if l.holds(1) {
		t.Error("a lease that counts on nobody")
	}
}

// A follower whose clock runs too fast does without a word in the lease, and does no more harm than that.
func TestLeaseState_FastFollowers_SayWhyAndReadsGoOn(t *testing.T) {
	oneProcessor(t)
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, 1, simPlan{rates: []float64{1, 1.4, 1.4}})
		c.found(3)
		nodes := c.all()
		lead := func(n *simNode) *simLife {
			for range 200 {
				l := c.leader()
				if l != nil && l.node == n {
					time.Sleep(6 * simHeartbeat) // long enough for its clock to be compared
					return l
				}
				if l != nil {
					if err := l.g.Transfer(testContext(t), n.id); err != nil {
						t.Log(err)
					}
				}
				time.Sleep(simHeartbeat)
			}
			t.Fatalf("%s does not come to lead", n.id)
			return nil
		}
		l := lead(nodes[0])
		s := l.g.LeaseState()
		if s.Held || l.g.Lease() || s.Mode != LeaseModeReadIndex || strings.Count(s.Reason, "faster than this node's") != 2 {
			t.Errorf("with two fast followers of two: %+v", s)
		}
		if !c.write(l, "a") {
			t.Error("no write")
		}
		answered := make(chan error, 1)
		l.g.ReadIndex(func(err error) { answered <- err })
		if err := <-answered; err != nil {
			t.Errorf("ReadIndex: %v", err)
		}
		f := nodes[1].running()
		if s := f.g.LeaseState(); s.Held || s.Mode != LeaseModeOff {
			t.Errorf("a follower: %+v", s)
		}
		l = lead(nodes[1]) // by whose clock one follower runs as it should, the other slowly
		if s := l.g.LeaseState(); !s.Held || s.Mode != LeaseModeLease || s.Reason != "" {
			t.Errorf("led by a fast one: %+v", s)
		}
		l.g.revokeLease()
		if s := l.g.LeaseState(); s.Held || s.Mode != LeaseModeReadIndex || !strings.Contains(s.Reason, "given up") {
			t.Errorf("after it was given up: %+v", s)
		}
		for _, v := range c.check.violations {
			t.Error(v)
		}
		c.end()
	})
}
