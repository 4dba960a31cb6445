package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// linearFault is one fault that the leader meets.
type linearFault struct {
	name   string
	strike func(c *testcluster.Cluster, leader int) error
	// struck tells whether the fault took hold; it is asked before mend.
	struck func(c *testcluster.Cluster, leader int) error
	mend   func(c *testcluster.Cluster, leader int) error
	silent bool // the node lives but answers nobody, or is believed by nobody: it must be asked meanwhile
}

func linearFaults(rng *rand.Rand) []linearFault {
	isHeld := func(c *testcluster.Cluster, leader int) error {
		if c.Net().HeldAround(c.ID(leader)) == 0 {
			return errors.New("the cut has held nothing")
		}
		return nil
	}
	heal := func(c *testcluster.Cluster, _ int) error {
		// What was sent into the cut arrives late, or never.
		if rng.IntN(2) == 0 {
			c.Net().Heal()
		} else {
			c.Net().HealLosing()
		}
		return nil
	}
	each := func(c *testcluster.Cluster, leader int, f func(other string)) {
		for i := range c.Size() {
			if i != leader {
				f(c.ID(i))
			}
		}
	}
	return []linearFault{
		{name: "kill -9",
			strike: func(c *testcluster.Cluster, leader int) error { c.Kill(leader); return nil },
			struck: func(c *testcluster.Cluster, leader int) error {
				if c.Node(leader).Running() {
					return errors.New("it runs")
				}
				return nil
			},
			mend: func(c *testcluster.Cluster, leader int) error {
				c.Node(leader).Launch()
				return c.Node(leader).WaitReady()
			}},
		{name: "SIGSTOP", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error { return c.Node(leader).Freeze() },
			struck: func(c *testcluster.Cluster, leader int) error { return c.Ended() },
			mend:   func(c *testcluster.Cluster, leader int) error { c.Node(leader).Thaw(); return nil }},
		{name: "partition", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error { c.Net().Isolate(c.ID(leader)); return nil },
			struck: isHeld, mend: heal},
		{name: "leader not heard", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error {
				each(c, leader, func(id string) { c.Net().Cut(c.ID(leader), id) })
				return nil
			}, struck: isHeld, mend: heal},
		{name: "answers come late, then leader not heard", silent: true,
			// The leader counts on answers that are old already when they come: only one that counts from when it
			// has asked knows how little they are worth.
			strike: func(c *testcluster.Cluster, leader int) error {
				each(c, leader, func(id string) { c.Net().Delay(id, c.ID(leader), 500*time.Millisecond) })
				time.Sleep(250 * time.Millisecond) // two heartbeats, whose answers are on their way then
				each(c, leader, func(id string) { c.Net().Cut(c.ID(leader), id) })
				return nil
			}, struck: isHeld, mend: heal},
		{name: "leader hears nothing", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error {
				each(c, leader, func(id string) { c.Net().Cut(id, c.ID(leader)) })
				return nil
			}, struck: isHeld, mend: heal},
	}
}

// TestLinearizable_LeaderFaultsUnderLoad_EveryAnswerFitsOneOrder lets callers read and write through every node,
// by the binary protocol and by REST, while the leader is killed, frozen for longer than any lease, and cut
// off, in both directions and in one. Meanwhile the old leader is asked on, and a new one takes writes: an
// answer of the old one that knows nothing of them is what the checker looks for. TestRegisterChecker… shows
// that it finds such answers.
func TestLinearizable_LeaderFaultsUnderLoad_EveryAnswerFitsOneOrder(t *testing.T) {
	for _, mode := range []string{"lease", "readindex"} {
		if testing.Short() && mode != "lease" {
			continue
		}
		t.Run(mode, func(t *testing.T) { linearizable(t, mode) })
	}
}

func linearizable(t *testing.T, mode string) {
	s := seed(t)
	rng := random(s, 0)
	faults := linearFaults(rng)
	if mode != "lease" {
		faults = faults[1:3] // where a wrong read would show: those that leave the old leader alive
	} else if testing.Short() {
		faults = faults[:3]
	}
	l := runLinear(t, s, testcluster.ClusterOptions{Settings: map[string]string{"read-mode": mode}}, faults, count(t, "LINEAR_ROUNDS", 1, 1))
	for _, err := range l.check() {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("LINEAR_ROUNDS=… %s=%d go test ./test -run TestLinearizable_Leader -count=1", seedEnv, s)
	}
}

// TestLinearizable_LeaseThatNeverEnds_IsFoundOut is the control: a store in which a node that has led serves reads
// until it hears of a newer term, instead of for the length of its lease. The same load, the same fault and
// the same checker must see it.
func TestLinearizable_LeaseThatNeverEnds_IsFoundOut(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	s := seed(t)
	binary := buildChanged(t, change{
		"consensus/lease.go", "	if term == 0 {\n		return false\n",
		"	if term == 0 {\n		s := g.lease.span.Load()\n		return s != nil && s.term == g.raft.CurrentTerm()\n",
	})
	l := runLinear(t, s, testcluster.ClusterOptions{Binary: binary, Quiet: true}, linearFaults(random(s, 0))[2:3], 1)
	wrong := l.check()
	if len(wrong) == 0 {
		t.Error("stale reads were not found out: the load, the fault or the checker proves nothing")
	}
	t.Logf("%d keys with a wrong answer, as it must be", len(wrong))
}

// runLinear puts a cluster under load and lets its leader meet the faults, one after the other.
func runLinear(t *testing.T, s uint64, o testcluster.ClusterOptions, faults []linearFault, rounds int) *linear {
	c := testcluster.StartCluster(t, o)
	l := newLinear(t, s)
	t.Logf("second 0 of all times is %s", l.began.Format("15:04:05.000000"))
	never := make(chan struct{})
	var channels []*channel
	for i, n := range c.Nodes() {
		channels = append(channels, l.binaryChannel([]string{n.Addr()}, c.ID(i)+" binary", linearTimeout), l.restChannel(n, c.ID(i)+" rest", linearTimeout))
	}
	for _, ch := range channels {
		l.drive(ch, never)
	}
	for round := range rounds {
		for i, f := range faults {
			l.strike(c, f, channels, fmt.Sprintf("%d.%d", round, i))
		}
	}
	l.end()
	l.work.Wait()
	c.MustConverge()
	return l
}

// strike lets the leader meet one fault, with writes through a new leader meanwhile.
func (l *linear) strike(c *testcluster.Cluster, f linearFault, channels []*channel, n string) {
	t := l.t
	l.waitGood(200)
	old := c.MustLead()
	began := time.Now()
	if err := f.strike(c, old); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	leader, err := c.LeaderOtherThan(ctx, old)
	if err != nil {
		t.Fatalf("%s of %s: %v", f.name, c.ID(old), err)
	}
	elected := time.Since(began)

	// Callers who know the new leader alone.
	stop := make(chan struct{})
	fresh := []*channel{
		l.binaryChannel([]string{c.Node(leader).Addr()}, n+" fresh binary", linearTimeout),
		l.restChannel(c.Node(leader), n+" fresh rest", linearTimeout),
	}
	for _, ch := range fresh {
		l.drive(ch, stop)
	}
	before := askedOf(channels, c.ID(old))
	l.waitGood(20)
	first := time.Since(began)
	// Long enough for many questions to the old leader after the new one has taken writes.
	eventually(t, "the new leader works", func() (bool, error) {
		return fresh[0].good.Load() >= 60 && fresh[1].good.Load() >= 30 && time.Since(began) > first+time.Second, nil
	})
	if err := f.struck(c, old); err != nil {
		t.Errorf("%s of %s never struck: %v", f.name, c.ID(old), err)
	}
	asked := askedOf(channels, c.ID(old)) - before
	if f.silent && asked < 10 {
		t.Errorf("%s of %s proves nothing: the node was asked only %d times meanwhile", f.name, c.ID(old), asked)
	}
	lasted := time.Since(began)
	if err := f.mend(c, old); err != nil {
		t.Fatalf("%s of %s: %v", f.name, c.ID(old), err)
	}
	l.waitGood(200)
	close(stop)
	t.Logf("%.3f to %.3f: %s of %s: new leader %s after %v, 20 more good operations after %v; old leader asked %d times meanwhile", began.Sub(l.began).Seconds(), (began.Sub(l.began) + lasted).Seconds(),
		f.name, c.ID(old), c.ID(leader), elected.Round(time.Millisecond), first.Round(time.Millisecond), asked)
}

// askedOf counts the operations that the channels to one node have begun.
func askedOf(channels []*channel, id string) (n int64) {
	for _, ch := range channels {
		if strings.HasPrefix(ch.name, id+" ") {
			n += ch.asked.Load()
		}
	}
	return n
}
