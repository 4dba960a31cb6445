package clustertime

import (
	"testing"
	"time"

	"kvstore/internal/clock"
)

// bench is one node's Clock with clocks that the test moves; what other nodes tell is made up.
type bench struct {
	t      *testing.T
	c      *Clock
	r      Reading
	voters []string
	leads  uint64
}

const benchStart = 1_800_000_000 * second

func newBench(t *testing.T, voters ...string) *bench {
	return &bench{t: t, c: New("a"), r: Reading{Boot: 1000 * second, Wall: benchStart}, voters: voters}
}

// pass lets time pass, with a tick every 200 ms.
func (x *bench) pass(d int64) {
	for ; d > 0; d -= simTick {
		x.r.Boot += min(d, simTick)
		x.r.Wall += min(d, simTick)
		x.tick(0)
	}
}

func (x *bench) tick(logTime int64) { x.c.Tick(x.r, x.voters, x.leads, logTime) }

// hear has a node tell its wall clock and its cluster clock, by how much they are ahead of benchStart at this node's
// boot time 1000 s; now 0: none. The trip takes no time.
func (x *bench) hear(id string, wall, now time.Duration, term uint64) {
	base := benchStart + x.r.Boot - 1000*second
	s := Sample{Peer: id, Sent: x.r.Boot, Received: x.r.Boot, Wall: base + wall.Microseconds(), Term: term}
	if now != 0 {
		s.Time = base + now.Microseconds()
	}
	x.c.Hear(s)
}

// want checks by how much a stamp is ahead of what the wall clock would show had nobody set it.
func (x *bench) want(what string, ahead, tolerance time.Duration) {
	x.t.Helper()
	got := time.Duration(x.c.Stamp(x.r)-benchStart-(x.r.Boot-1000*second)) * time.Microsecond
	if d := got - ahead; max(d, -d) > tolerance {
		x.t.Errorf("%s: the stamp is %v ahead, want %v", what, got, ahead)
	}
}

func TestClock_LoneNode_BeginsAtItsWallAndNeverFollowsAStep(t *testing.T) {
	x := newBench(t, "a")
	x.leads = 1
	if x.c.Begun() {
		t.Fatal("it has begun with nothing")
	}
	x.tick(0)
	x.want("begun", 0, 0)
	if st := x.c.Status(x.r); st.Source != SourceWall || !st.SkewKnown || st.Skew != 0 || st.Offset != 0 {
		t.Errorf("status: %+v", st)
	}
	x.r.Wall += 600 * second
	x.tick(0)
	x.want("its wall has stepped", 0, 0)
	x.pass(100 * second)
	x.want("it slews, by 1 %", time.Second, 50*time.Millisecond)
	x.r.Wall -= 1200 * second
	x.tick(0)
	x.pass(100 * second)
	x.want("and back", 0, 50*time.Millisecond)
	x.r.Wall += 600*second + second/2
	x.tick(0)
	x.pass(100 * second)
	x.want("half a second, by 500 parts in a million", 50*time.Millisecond, 5*time.Millisecond)
	if st := x.c.Status(x.r); st.Offset < -second/2 || st.Offset > -4*second/10 {
		t.Errorf("status: %+v", st)
	}
}

func TestClock_LogTimeAheadOfAllClocks_BeginsThereAndGoesOnALittleSlower(t *testing.T) {
	x := newBench(t, "a")
	x.leads = 1
	x.tick(benchStart + 600*second)
	x.want("begun", 600*time.Second, 0)
	x.pass(100 * second)
	x.want("later", 599*time.Second, 50*time.Millisecond)
}

func TestClock_WholeClusterStarts_LeaderBeginsAtTheMedian(t *testing.T) {
	for name, k := range map[string]struct {
		own, b, c, want time.Duration
	}{
		"all agree":                      {b: 20 * time.Millisecond, c: -20 * time.Millisecond},
		"the leader is ahead":            {own: 10 * time.Minute},
		"the leader is behind":           {own: -10 * time.Minute},
		"a follower is ahead":            {b: 10 * time.Minute, c: 30 * time.Millisecond, want: 30 * time.Millisecond},
		"the majority is ahead together": {b: 10 * time.Minute, c: 10 * time.Minute, want: 10 * time.Minute},
	} {
		x := newBench(t, "a", "b", "c")
		x.r.Wall += k.own.Microseconds()
		x.leads = 1
		x.tick(0)
		if x.c.Begun() {
			t.Errorf("%s: begun although nobody was heard", name)
		}
		x.hear("b", k.b, 0, 0)
		x.hear("c", k.c, 0, 0)
		x.tick(0)
		x.want(name, k.want, 0)
		if st := x.c.Status(x.r); st.Source != SourceMedian {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

func TestClock_NobodyIsHeard_LeaderBeginsAtItsWallAfterAWhile(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.leads = 1
	x.pass(beginWait - second/10)
	if x.c.Begun() {
		t.Error("it did not wait")
	}
	x.pass(second)
	x.want("after a while", 0, 0)
	if st := x.c.Status(x.r); st.Source != SourceWall || st.SkewKnown {
		t.Errorf("status: %+v", st)
	}
}

func TestClock_OthersKnowTheTime_TheirWallsDoNotMatter(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.tick(0)
	x.hear("b", time.Hour, 5*time.Second, 7)
	if x.c.Begun() {
		t.Error("it believes one, be it the leader, at once")
	}
	x.hear("c", time.Hour, 6*time.Second, 0)
	x.want("the lower of two", 5*time.Second, 0)
	x.leads = 8
	x.tick(0)
	x.want("leading", 5*time.Second, time.Millisecond)
	x.hear("c", time.Hour, 5*time.Second, 0)
	x.pass(second)
	x.want("and towards the median of the walls", 5*time.Second+10*time.Millisecond, 3*time.Millisecond)
}

func TestClock_OneWhoFollows_GoesWithItsLeaderAndNoFasterThanHonestClocksGo(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.tick(0)
	x.hear("b", 0, time.Second, 1)
	x.hear("c", 0, time.Second, 0)
	x.want("learned", time.Second, 0)
	for range 100 {
		x.pass(second / 10)
		x.hear("b", 0, 1900*time.Millisecond, 1)
		x.hear("c", 0, time.Second, 0)
	}
	x.want("10 s behind a leader that is ahead", 1100*time.Millisecond, 20*time.Millisecond)
	for range 100 {
		x.pass(second / 10)
		x.hear("b", 0, 20*time.Second, 1)
		x.hear("c", 0, time.Second, 0)
	}
	x.want("its leader has jumped, alone", 1210*time.Millisecond, 30*time.Millisecond)
	x.hear("c", 0, 20*time.Second, 0)
	x.want("all others are there", 20*time.Second, 0)
	x.hear("b", 0, 5*time.Second, 0) // of an earlier term, or none
	x.pass(second / 10)
	x.want("of who leads no more it learns nothing", 20*time.Second, 0)
}

func TestClock_LeadersBootClockJumps_StampsStayByTheMedianAndItGivesIn(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.leads = 1
	x.hear("b", 0, 0, 0)
	x.hear("c", 0, 0, 0)
	x.tick(0)
	tell := func(d time.Duration) {
		x.hear("b", d, d, 0)
		x.hear("c", d, d, 0)
	}
	tell(time.Microsecond)
	x.r.Boot += 30 * second
	x.want("at once, counted by the boot clock that has jumped", -29*time.Second, time.Millisecond)
	if x.c.Off() {
		t.Error("off before anybody could tell")
	}
	if x.c.Begun() {
		t.Error("it takes writes although its clock has leapt")
	}
	tell(-30 * time.Second)
	if !x.c.Off() {
		t.Error("it does not see that it is off")
	}
	if !x.c.Begun() {
		t.Error("it takes no writes although it knows the time again")
	}
	if d := x.c.now(x.r.Boot) - (benchStart + x.r.Boot - 1000*second); d != -30*second {
		t.Errorf("the clock is %d µs ahead", d)
	}
	for range 40 {
		x.pass(second / 4)
		tell(-30 * time.Second)
	}
	x.want("it stands by the others", -30*time.Second, time.Millisecond)
	if x.pass(second); x.c.Off() {
		t.Error("off for ever")
	}
}

func TestClock_LeaderWasStopped_TakesNoWritesUntilOthersAnswerOrDoNot(t *testing.T) {
	for _, answers := range []bool{true, false} {
		x := newBench(t, "a", "b", "c")
		x.leads = 1
		x.hear("b", 0, 0, 0)
		x.hear("c", 0, 0, 0)
		x.tick(0)
		x.hear("b", 0, time.Microsecond, 0)
		x.r.Boot += 10 * second
		x.r.Wall += 10 * second
		x.tick(0)
		if x.c.Begun() {
			t.Error("it takes writes at once")
		}
		if answers {
			x.hear("b", 0, time.Microsecond, 0)
			x.want("the stop was true", 0, time.Millisecond)
		} else if x.pass(beginWait); !x.c.Begun() {
			t.Error("it waits for ever")
		}
		if !x.c.Begun() {
			t.Error("it takes no writes after an answer")
		}
	}
}

func TestClock_OneOfTwoIsWrong_TheSlowerCounts(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.leads = 1
	x.hear("b", 0, 0, 0)
	x.hear("c", 0, 0, 0)
	x.tick(0)
	x.pass(12 * second) // c is gone
	x.hear("b", 0, 5*time.Second, 0)
	x.want("the other is ahead", 0, time.Millisecond)
	x.hear("b", 0, -5*time.Second, 0)
	x.pass(second / 5)
	if d := x.c.now(x.r.Boot) - (benchStart + x.r.Boot - 1000*second); d > -5*second+second/100 {
		t.Errorf("the other is behind: %d µs ahead", d)
	}
}

func TestWallSkew_MedianOfTheVoters_TellsWhoIsOff(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.tick(0)
	skew := func() string {
		us, ok := x.c.WallSkew(x.r)
		if !ok {
			return "unknown"
		}
		return (time.Duration(us) * time.Microsecond).String()
	}
	want := func(what, want string) {
		t.Helper()
		if got := skew(); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	want("alone", "unknown")
	x.hear("b", 3*time.Second, 0, 0)
	want("two of three", "-1.5s")
	x.hear("c", -time.Second, 0, 0)
	want("in the middle", "0s")
	x.hear("c", 4*time.Second, 0, 0)
	want("behind both", "-3s")
	x.r.Wall += 10 * second
	want("after a step of its own", "6s")
	x.c.Hear(Sample{Peer: "c", Sent: x.r.Boot - tripMax, Received: x.r.Boot, Wall: benchStart})
	want("what took long to come says nothing", "6s")
	x.c.Hear(Sample{Peer: "c", Incarnation: [16]byte{1}, Sent: x.r.Boot - tripMax, Received: x.r.Boot, Wall: benchStart})
	want("another data directory", "3.5s")
	x.pass(11 * second)
	want("long unheard", "unknown")
}

func TestClock_WhateverOthersTell_IsBounded(t *testing.T) {
	x := newBench(t, "a", "b")
	for i := range 10 * peersMax {
		x.c.Hear(Sample{Peer: string(rune('b' + i)), Time: 1 << 62, Wall: 1 << 62, Sent: x.r.Boot, Received: x.r.Boot})
	}
	if n := len(x.c.peers); n > peersMax {
		t.Errorf("%d nodes are remembered", n)
	}
	x.c.Hear(Sample{Peer: "b", Time: -1, Term: 1, Sent: x.r.Boot, Received: x.r.Boot})
	if x.c.Begun() {
		t.Error("nonsense is believed")
	}
}

func TestStamp_NothingChanges_AllocatesNothing(t *testing.T) {
	x := newBench(t, "a", "b", "c")
	x.leads = 1
	x.tick(0)
	x.hear("b", 0, time.Microsecond, 0)
	x.hear("c", 0, time.Microsecond, 0)
	if n := testing.AllocsPerRun(100, func() { x.c.Stamp(Read(clock.System{})) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkStamp(b *testing.B) {
	c := New("a")
	c.Tick(Read(clock.System{}), []string{"a"}, 1, 0)
	for b.Loop() {
		c.Stamp(Read(clock.System{}))
	}
}
