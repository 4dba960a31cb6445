package test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// clockSettings make a leader's lease long: with its clocks at a quarter of their rate it lasts five seconds, and
// others elect one of their own within three.
func clockSettings() map[string]string {
	return map[string]string{"heartbeat-timeout": "1500ms", "election-timeout": "1500ms"}
}

// elapsing are the clocks by which durations are told. A leader whose time of day goes wrong hands its leadership over,
// which is not what tests of rates are about.
var elapsing = []testcluster.ClockID{testcluster.ClockMonotonic, testcluster.ClockBoot, testcluster.ClockRaw}

// setRate sets how fast the clocks of a node run, those that elapse unless others are named.
func setRate(t *testing.T, n *testcluster.Node, rate float64, of ...testcluster.ClockID) {
	t.Helper()
	if of == nil {
		of = elapsing
	}
	if err := n.Clocks().SetRate(rate, of...); err != nil {
		t.Fatal(err)
	}
}

// slowLeader has a leader with slow clocks cut off from the others, under load, and gives the load, which has ended.
// wait is called when its clocks are slow, and tells whether it still leads; nil: its clocks are slow from the moment
// on at which it is cut off.
func slowLeader(t *testing.T, s uint64, o testcluster.ClusterOptions, wait func(c *testcluster.Cluster, leader int) bool) *linear {
	t.Helper()
	const rate = 0.25
	o.Clocks = true
	if o.Settings == nil {
		o.Settings = clockSettings()
	}
	c := testcluster.StartCluster(t, o)
	l := newLinear(t, s)
	never := make(chan struct{})
	var channels []*channel
	for i, n := range c.Nodes() {
		channels = append(channels, l.binaryChannel([]string{n.Addr()}, c.ID(i)+" binary", linearTimeout), l.restChannel(n, c.ID(i)+" rest", linearTimeout))
	}
	for _, ch := range channels {
		l.drive(ch, never)
	}
	// A leader with slow clocks may lose its leadership before it is cut off, and then nothing is shown.
	const attempts = 10
	for attempt := 1; ; attempt++ {
		if attempt > attempts {
			t.Fatalf("a leader with slow clocks lost its leadership %d times before it could be cut off", attempts)
		}
		l.waitGood(200)
		slow, hit := c.MustLead(), -1
		if wait != nil {
			setRate(t, c.Node(slow), rate)
			if !wait(c, slow) {
				setRate(t, c.Node(slow), 1)
				continue
			}
		}
		var reads func() error
		l.strike(c, linearFault{name: "slow clocks and partition", silent: true,
			strike: func(c *testcluster.Cluster, leader int) (err error) {
				hit = leader
				if reads, err = readsSince(c.Node(leader).Clocks(), testcluster.ClockBoot); err != nil {
					return err
				}
				c.Net().Isolate(c.ID(leader))
				return c.Node(leader).Clocks().SetRate(rate, elapsing...)
			},
			struck: func(c *testcluster.Cluster, leader int) error {
				if c.Net().HeldAround(c.ID(leader)) == 0 {
					return errors.New("the cut has held nothing")
				}
				return reads()
			},
			mend: func(c *testcluster.Cluster, leader int) error {
				c.Net().Heal()
				return errors.Join(c.Node(leader).Clocks().SetRate(1, elapsing...), c.Node(slow).Clocks().SetRate(1, elapsing...))
			}}, channels, fmt.Sprint(attempt))
		if hit == slow {
			break
		}
	}
	l.end()
	l.work.Wait()
	c.MustConverge()
	return l
}

// waitDistrust waits until the leader serves reads without its lease because of clocks; false: it leads no longer.
func waitDistrust(t *testing.T, c *testcluster.Cluster, leader int, reason string) (leads bool) {
	t.Helper()
	eventually(t, "the leader does without its lease", func() (bool, error) {
		st, err := c.Node(leader).Status()
		if err != nil {
			return false, err
		}
		leads = st.IsLeader
		return !leads || st.Lease.Mode == "readindex" && strings.Contains(st.Lease.Reason, reason), fmt.Errorf("lease: %+v", st.Lease)
	})
	return leads
}

// TestClockRates_LeaderSlowThenCutOff_NoStaleRead has a leader whose clocks run at a quarter of their rate, so that its
// lease lasts four times as long as the others' promise not to elect another one. It must see that before it is cut off,
// and none of its answers may miss what a new leader has taken.
func TestClockRates_LeaderSlowThenCutOff_NoStaleRead(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	o := testcluster.ClusterOptions{Binary: testcluster.ClockBinary(t)}
	l := slowLeader(t, seed(t), o, func(c *testcluster.Cluster, leader int) bool {
		began := time.Now()
		leads := waitDistrust(t, c, leader, "faster than this node's")
		t.Logf("leads: %t; it was seen after %v", leads, time.Since(began).Round(time.Millisecond))
		return leads
	})
	for _, err := range l.check() {
		t.Error(err)
	}
}

// blindClocks has a node count on every clock.
var blindClocks = change{"consensus/clocks.go", "	if w.blind {\n		return true\n	}\n	now", "	if w != nil {\n		return true\n	}\n	now"}

// TestClockRates_NodeThatTrustsEveryClock_IsFoundOut is the control: the same on a build that doubts no clock.
func TestClockRates_NodeThatTrustsEveryClock_IsFoundOut(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	testcluster.ClockBinary(t) // where it can't be had the test is skipped
	o, err := testcluster.ClockOverlay(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	binary := buildOverlay(t, o, nil, blindClocks)
	var wrong []error
	for range 3 { // on a busy machine the old leader may be asked too late
		l := slowLeader(t, seed(t), testcluster.ClusterOptions{Binary: binary, Quiet: true}, func(c *testcluster.Cluster, leader int) bool {
			time.Sleep(8 * time.Second) // for about as long as the sound build takes to see it
			st, err := c.Node(leader).Status()
			return err == nil && st.IsLeader
		})
		if wrong = l.check(); len(wrong) > 0 {
			break
		}
	}
	if len(wrong) == 0 {
		t.Error("stale reads were not found out: the load, the fault or the checker proves nothing")
	}
	t.Logf("%d keys with a wrong answer, as it must be", len(wrong))
}

// TestClockRates_SlowAndCutOffAtOnce_NoStaleReadWhereNoClockCounts changes the rate at the moment from which on no clock
// can be measured. That is beyond what is claimed of the lease: what comes of it is told, and is no failure. Where each
// read is confirmed it must not matter.
func TestClockRates_SlowAndCutOffAtOnce_NoStaleReadWhereNoClockCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	s := seed(t)
	for _, mode := range []string{"lease", "readindex"} {
		t.Run(mode, func(t *testing.T) {
			o := testcluster.ClusterOptions{Binary: testcluster.ClockBinary(t), Quiet: true, Settings: clockSettings()}
			o.Settings["read-mode"] = mode
			wrong := slowLeader(t, s, o, nil).check()
			t.Logf("%d keys with a wrong answer", len(wrong))
			for _, err := range wrong {
				if mode == "readindex" {
					t.Error(err)
				}
			}
		})
	}
}

// TestClockRates_SlowLeaderAndFastFollowers_DoWithoutLeaseAndTakeItAgain follows what the status says while rates are
// wrong in each way and after they are right again.
func TestClockRates_SlowLeaderAndFastFollowers_DoWithoutLeaseAndTakeItAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Binary: testcluster.ClockBinary(t), Clocks: true, Settings: clockSettings()})
	// held waits for a leader with a lease whose status gives the reason.
	held := func(what string, reason func(string) bool) (leader int) {
		t.Helper()
		began := time.Now()
		eventually(t, what, func() (bool, error) {
			leader = c.MustLead()
			st, err := c.Node(leader).Status()
			if err != nil {
				return false, err
			}
			return st.IsLeader && st.Lease.Held && st.Lease.Mode == "lease" && reason(st.Lease.Reason), fmt.Errorf("lease: %+v", st.Lease)
		})
		t.Logf("%s: %s, after %v", what, c.ID(leader), time.Since(began).Round(time.Millisecond))
		return leader
	}
	none := func(reason string) bool { return reason == "" }
	// distrusted sets rates until a leader that keeps its leadership does without its lease.
	distrusted := func(what, reason string, set func(leader int, right bool)) {
		t.Helper()
		for range 10 {
			leader := held("all clocks are right", none)
			set(leader, false)
			began := time.Now()
			leads := waitDistrust(t, c, leader, reason)
			if leads {
				t.Logf("%s: seen after %v", what, time.Since(began).Round(time.Millisecond))
			}
			set(leader, true)
			if leads {
				return
			}
		}
		t.Fatalf("%s: no leader kept its leadership", what)
	}
	rate := func(right bool, r float64) float64 {
		if right {
			return 1
		}
		return r
	}
	distrusted("the leader's clocks are slow", "faster than this node's", func(leader int, right bool) {
		setRate(t, c.Node(leader), rate(right, 0.5))
	})
	distrusted("both followers' clocks are fast", "faster than this node's", func(leader int, right bool) {
		for i, n := range c.Nodes() {
			if i != leader {
				setRate(t, n, rate(right, 2))
			}
		}
	})
	// As if a time daemon slowed down what it can: all nodes agree, but for the oscillators.
	distrusted("all clocks but the oscillators are slow", "slowed down", func(_ int, right bool) {
		for _, n := range c.Nodes() {
			setRate(t, n, rate(right, 0.8), testcluster.ClockMonotonic, testcluster.ClockBoot)
		}
	})
	leader := held("all clocks are right", none)
	fast := (leader + 1) % 3
	setRate(t, c.Node(fast), 2)
	held("the clocks of one follower are fast", func(reason string) bool {
		return strings.Contains(reason, "the clock of "+c.ID(fast)+" runs at least")
	})
}

// TestClockWall_LeaderOffByMoreThanASecond_HandsOver has the leader's time of day step. It stamps what it takes with
// that, so another node must take over by itself, and the one whose clock is right is left alone.
func TestClockWall_LeaderOffByMoreThanASecond_HandsOver(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	const reason = "its wall clock is more than a second off"
	for _, step := range []time.Duration{3 * time.Second, -10 * time.Minute} {
		t.Run(step.String(), func(t *testing.T) {
			c := testcluster.StartCluster(t, testcluster.ClusterOptions{Binary: testcluster.ClockBinary(t), Clocks: true})
			old := c.MustLead()
			n := c.Node(old)
			if strings.Contains(n.Output(), reason) {
				t.Fatal("a leader whose clock is right speaks of it")
			}
			if err := n.Clocks().StepWall(step); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			resp, err := http.Get("http://" + n.HTTPAddr() + "/api/v1/admin/status")
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			date, err := http.ParseTime(resp.Header.Get("Date"))
			if err != nil {
				t.Fatal(err)
			}
			// The header is in whole seconds.
			if low, high := time.Until(date), date.Sub(began); high < step-time.Second || low > step+time.Second {
				t.Errorf("the node shows a time of day that is %v to %v ahead, want %v", low, high, step)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			leader, err := c.LeaderOtherThan(ctx, old)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s, %v off, was followed by %s after %v", c.ID(old), step, c.ID(leader), time.Since(began).Round(time.Millisecond))
			if !strings.Contains(n.Output(), reason) {
				t.Errorf("the leadership moved, but not for that reason")
			}
			eventually(t, "the node tells its skew", func() (bool, error) {
				st, err := n.Status()
				if err != nil || st.ClockSkewMs == nil {
					return false, err
				}
				d := time.Duration(*st.ClockSkewMs)*time.Millisecond - step
				return max(d, -d) < time.Second, fmt.Errorf("skew %d ms", *st.ClockSkewMs)
			})
			if err := n.Clocks().StepWall(-step); err != nil {
				t.Fatal(err)
			}
			c.MustConverge()
		})
	}
}

// TestClockJump_NodesUnderLoad_GoOn has the clocks of nodes that write jump forward by more than a disk may take for a
// write, as when a virtual machine goes on after a pause: nothing has hung, so no node may end because of it, and no
// answer may be wrong. Each read is confirmed here: a lease does not bear a follower's clock that jumps.
func TestClockJump_NodesUnderLoad_GoOn(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	settings := clockSettings()
	settings["read-mode"] = "readindex"
	s := seed(t)
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Binary: testcluster.ClockBinary(t), Clocks: true, Settings: settings})
	l := newLinear(t, s)
	never := make(chan struct{})
	for i, n := range c.Nodes() {
		l.drive(l.binaryChannel([]string{n.Addr()}, c.ID(i)+" binary", linearTimeout), never)
	}
	rng := random(s, 0)
	for jump := range count(t, "CLOCK_JUMPS", 40, 1) {
		l.waitGood(3)
		i := rng.IntN(c.Size())
		d := between(rng, 6*time.Second, 30*time.Second)
		if err := c.Node(i).Clocks().Jump(d, elapsing...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(between(rng, 0, 5*time.Millisecond))
		if err := c.Ended(); err != nil {
			t.Fatalf("jump %d, of %s by %v: %v", jump, c.ID(i), d, err)
		}
	}
	l.waitGood(30)
	if err := c.Ended(); err != nil {
		t.Fatal(err)
	}
	l.end()
	l.work.Wait()
	c.MustConverge()
	for _, err := range l.check() {
		t.Error(err)
	}
}
