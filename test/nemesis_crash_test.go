package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"kvstore/internal/failpoint"
)

func init() {
	for _, n := range []nemesis{
		{name: "crash-install", alone: true, strike: crashInstall},
		{name: "crash-truncate", strike: crashAt(placesOf("log.truncate."))},
		{name: "crash-checkpoint", strike: crashAt(placesOf("checkpoint."))},
		{name: "crash-anywhere", strike: crashAt(runningPlaces())},
		{name: "fsync-error", strike: failingWrite},
	} {
		n.needs = needFailpoints
		nemeses[n.name] = n
	}
}

// placesOf gives the places of a running cluster whose names begin so.
func placesOf(prefix string) (places []runningPlace) {
	for _, p := range runningPlaces() {
		if strings.HasPrefix(p.name, prefix) {
			places = append(places, p)
		}
	}
	return places
}

const (
	// comesBy bounds the wait until a process comes by a place. Where none does, nothing was struck.
	comesBy = 8 * time.Second
	// getsSnapshot bounds the wait until a node that needs a snapshot gets it.
	getsSnapshot = 15 * time.Second
	// installsWithin bounds the rounds of one such node, but for the last one.
	installsWithin = 20 * time.Second
)

// crashes is a fault that goes on by itself: processes end at named places, are started again, and end again.
type crashes struct {
	// Immutable.
	r    *faultRun
	rng  *rand.Rand // its own
	done chan struct{}

	// Owned by the goroutine of start, and by others once done is closed.
	placed  int // ends at a place
	plain   int // ends by kill -9 at a random instant
	armed   map[int]bool
	changed bool // a role was changed
	err     error
}

// startCrashes runs rounds, and gives the fault that this is.
func startCrashes(r *faultRun, rng *rand.Rand, what string, rounds func(c *crashes) error) *fault {
	c := &crashes{r: r, rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())), done: make(chan struct{}), armed: make(map[int]bool)}
	go func() { // ends after the rounds, each of which is bounded
		defer close(c.done)
		c.err = rounds(c)
	}()
	return &fault{what: what,
		count: func() int { return c.placed + c.plain },
		struck: func() error {
			<-c.done
			r.note("%s: %d ends at places, %d between (%v)", what, c.placed, c.plain, c.err)
			if c.placed == 0 {
				return errors.Join(errors.New("nobody came by"), c.err)
			}
			return nil
		},
		mend: func() error {
			<-c.done
			return c.disarm()
		}}
}

// arm sets a term on a running node; false: it does not answer.
func (c *crashes) arm(i int, place, action string) bool {
	c.armed[i] = true
	return c.r.c.Node(i).SetFailpoints(place+"="+action) == nil
}

// disarm takes all terms back: from processes that run, and from what they are started with. All run in the end.
func (c *crashes) disarm() error {
	var off []string
	for _, name := range failpoint.Names() {
		off = append(off, name+"=off")
	}
	for i := range c.armed {
		c.r.control.Lock()
		n := c.r.c.Node(i)
		n.SetEnv()
		if c.r.runs(i) && n.SetFailpoints(strings.Join(off, ";")) != nil {
			c.r.c.Kill(i) // it is not so far yet that it can be told
			c.plain++
		}
		err := c.r.upLocked(i)
		c.r.control.Unlock()
		if err != nil {
			return err
		}
	}
	if !c.changed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.promoteAll(ctx)
}

// again starts node i, with these terms from its start on if there are any. It is ended first where another fault has
// started it meanwhile.
func (c *crashes) again(i int, terms string) error {
	c.r.control.Lock()
	defer c.r.control.Unlock()
	if c.r.runs(i) {
		c.r.c.Kill(i)
		c.plain++
	}
	n := c.r.c.Node(i)
	n.SetEnv()
	if terms != "" {
		c.armed[i] = true
		n.SetEnv("KVSTORE_FAILPOINTS=" + terms)
	}
	return c.r.upLocked(i)
}

// fell tells whether node i has ended at a place: by SIGKILL, and not by the test.
func (c *crashes) fell(i int) bool {
	c.r.control.Lock()
	defer c.r.control.Unlock()
	n := c.r.c.Node(i)
	return n.ByItself() && n.WaitExit() == -1
}

// waitFell waits until one of the nodes has ended at a place and gives all that have then.
func (c *crashes) waitFell(nodes []int, within time.Duration) (fallen []int) {
	for deadline := time.Now().Add(within); ; time.Sleep(2 * time.Millisecond) {
		for _, i := range nodes {
			if c.fell(i) {
				fallen = append(fallen, i)
			}
		}
		if len(fallen) > 0 || !time.Now().Before(deadline) {
			return fallen
		}
	}
}

// provoking does what makes nodes come by a place, until stop is called.
func (c *crashes) provoking(by provocation) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // owned by the caller, who calls stop
		defer close(ended)
		for ctx.Err() == nil {
			switch by {
			case byTransfer:
				// Whatever is answered: whoever answers may die of it.
				_, _ = c.r.askAny(ctx, c.rng, http.MethodPost, "leader", "")
			case byChange:
				c.changeRoles(ctx)
			default:
				// The load writes too; this makes the log grow by what a file of it holds. It fails while nodes are
				// down, and goes on in the next round.
				_ = c.r.fill(ctx, func() (bool, error) { return false, nil })
			}
			pause(ctx, 100*time.Millisecond)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// changeRoles takes the vote from one member and gives it back. Either may fail: whoever makes the change may die of it.
func (c *crashes) changeRoles(ctx context.Context) {
	c.changed = true
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	in := c.r.members()
	id := c.r.c.ID(in[c.rng.IntN(len(in))])
	_, _ = c.r.askAny(ctx, c.rng, http.MethodPost, memberPath(id, "demote"), "")
	pause(ctx, between(c.rng, 0, 300*time.Millisecond))
	_ = c.promoteAll(ctx)
}

// promoteAll makes all members voters.
func (c *crashes) promoteAll(ctx context.Context) error {
	m, err := c.r.list(ctx, c.rng)
	for err == nil {
		learners := 0
		for _, x := range m.Members {
			if x.Role != "voter" {
				learners++
				if _, err := c.r.changeRole(ctx, c.rng, x.ID, "promote", "voter"); err != nil {
					return err
				}
			}
		}
		if learners == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d members are no voters: %w", learners, ctx.Err())
		}
		m, err = c.r.list(ctx, c.rng)
	}
	return err
}

// targets draws the nodes on which a place is armed: those that can come by, one or all.
func (c *crashes) targets(p runningPlace) []int {
	in := c.r.members()
	leader := c.r.leader()
	one := func(of []int) []int { return []int{of[c.rng.IntN(len(of))]} }
	switch {
	case p.who == theLeader:
		return in // whoever it is by then
	case p.who == aFollower || leader >= 0 && c.rng.IntN(2) == 0:
		var followers []int
		for _, i := range in {
			if i != leader {
				followers = append(followers, i)
			}
		}
		return one(followers)
	case leader >= 0 && c.rng.IntN(2) == 0:
		return []int{leader}
	}
	return in
}

// crashAt has processes end at places of their running path, and then again and again while they start.
func crashAt(places []runningPlace) func(r *faultRun, rng *rand.Rand) (*fault, error) {
	return func(r *faultRun, rng *rand.Rand) (*fault, error) {
		p := places[rng.IntN(len(places))]
		return startCrashes(r, rng, "crashes at "+p.name, func(c *crashes) error {
			action := fmt.Sprintf("kill@%d", 1+c.rng.IntN(p.most))
			armed := c.targets(p)
			all := len(armed) > 1 && p.who != theLeader
			for _, i := range armed {
				c.arm(i, p.name, action)
			}
			more := between(c.rng, 0, 300*time.Millisecond)
			stop := c.provoking(p.provoke)
			if len(c.waitFell(armed, comesBy)) > 0 && all {
				time.Sleep(more) // the others are as far soon
			}
			for _, i := range armed {
				c.arm(i, p.name, "off") // it fails on those that have ended, whose term is gone with them
			}
			stop()
			fallen := c.waitFell(armed, 0)
			c.placed += len(fallen)
			for _, i := range fallen {
				if err := c.restarts(i, places); err != nil {
					return err
				}
			}
			return nil
		}), nil
	}
}

// restarts starts node i up to five times; each time it ends at a place of these, or at a random instant of the start.
func (c *crashes) restarts(i int, places []runningPlace) error {
	for range c.rng.IntN(6) {
		if c.rng.IntN(2) == 0 {
			if err := c.randomEnd(i); err != nil {
				return err
			}
			continue
		}
		p := places[c.rng.IntN(len(places))]
		if err := c.again(i, fmt.Sprintf("%s=kill@%d", p.name, 1+c.rng.IntN(min(p.most, 5)))); err != nil {
			return err
		}
		c.placed += len(c.waitFell([]int{i}, 2*time.Second))
	}
	return c.again(i, "")
}

// randomEnd starts node i and ends it by SIGKILL at a random instant of its start.
func (c *crashes) randomEnd(i int) error {
	if err := c.again(i, ""); err != nil {
		return err
	}
	time.Sleep(between(c.rng, 0, 400*time.Millisecond))
	c.r.control.Lock()
	defer c.r.control.Unlock()
	if c.r.runs(i) {
		c.r.c.Kill(i)
		c.plain++
	}
	return nil
}

// crashInstall leaves a follower behind, and has it, and whoever sends it a snapshot, end at the places of that, again
// and again.
func crashInstall(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.followerAway(rng)
	if i < 0 {
		return nil, nil
	}
	n := r.c.Node(i)
	s, err := n.Status()
	if err != nil {
		return nil, nil // another fault has it
	}
	r.control.Lock()
	r.c.Kill(i)
	r.control.Unlock()
	f := startCrashes(r, rng, "crashes of "+r.c.ID(i)+" and its leader at the install of a snapshot", func(c *crashes) error {
		c.armed[i] = true // it comes back in any case
		back := func() bool {
			r.control.Lock()
			defer r.control.Unlock()
			return r.runs(i)
		}
		if err := r.outrun(i, s.LastIndex, back); err != nil {
			return err
		}
		for k, end := 1+c.rng.IntN(6), time.Now().Add(installsWithin); k > 0 && time.Now().Before(end); k-- {
			if err := c.installRound(i, s.LastIndex); err != nil {
				return err
			}
		}
		return c.again(i, "")
	})
	return f, nil
}

// installRound starts node i, which needs a snapshot unless it has got it by now, and has it end at a place of the
// install, or the leader at one of the sending. last is the entry that it had when it was left behind.
func (c *crashes) installRound(i int, last uint64) error {
	switch c.rng.IntN(5) {
	case 0:
		return c.randomEnd(i)
	case 1:
		place := []string{failpoint.SnapshotCreateBefore, failpoint.SnapshotCreateAfter}[c.rng.IntN(2)]
		var senders []int
		for _, k := range c.r.members() {
			if k != i && c.arm(k, place, "kill@1") {
				senders = append(senders, k)
			}
		}
		if err := c.again(i, ""); err != nil {
			return err
		}
		fallen := c.waitInstall(senders, i, last)
		for _, k := range senders {
			c.arm(k, place, "off") // it fails on those that have ended
		}
		c.placed += len(fallen)
		for _, k := range fallen {
			if err := c.again(k, ""); err != nil {
				return err
			}
		}
		return nil
	}
	at := installSteps[c.rng.IntN(len(installSteps))]
	if err := c.again(i, fmt.Sprintf("%s=kill@%d", at.point, 1+c.rng.IntN(at.after+1))); err != nil {
		return err
	}
	c.placed += len(c.waitInstall([]int{i}, i, last))
	return nil
}

// waitInstall is waitFell for as long as node i may take to get its snapshot.
func (c *crashes) waitInstall(nodes []int, i int, last uint64) []int {
	for deadline := time.Now().Add(getsSnapshot); time.Now().Before(deadline); {
		if fallen := c.waitFell(nodes, 100*time.Millisecond); len(fallen) > 0 {
			return fallen
		}
		// Whoever has it passes the places that are left soon, if ever.
		if s, err := c.r.c.Node(i).Status(); err == nil && s.AppliedIndex > last {
			return c.waitFell(nodes, time.Second)
		}
	}
	return nil
}

// failingWrite has a write, an fsync, a rename or a commit of one node fail: it must end by itself, with the reason.
func failingWrite(r *faultRun, rng *rand.Rand) (*fault, error) {
	const reason = "the disk says no"
	places := failingPlaces()
	p := places[rng.IntN(len(places))]
	i := r.anyNode(rng)
	hit := 1 + rng.IntN(p.most)
	what := fmt.Sprintf("error at hit %d of %s on %s", hit, p.name, r.describe(i))
	return startCrashes(r, rng, what, func(c *crashes) error {
		r.mayEnd(i)
		n := r.c.Node(i)
		if !c.arm(i, p.name, fmt.Sprintf("error(%s)@%d", reason, hit)) {
			return errors.New("the node does not answer")
		}
		stop := c.provoking(p.provoke)
		defer stop()
		defer func() {
			if c.placed == 0 {
				r.mu.Lock()
				r.excused[i] = false
				r.mu.Unlock()
			}
		}()
		return r.until(comesBy, func() (bool, error) {
			r.control.Lock()
			defer r.control.Unlock()
			if !n.ByItself() {
				return false, nil
			}
			c.placed++
			if code, out := n.WaitExit(), n.LastOutput(); code != 1 || !strings.Contains(out, reason) || !strings.Contains(out, "the node may not go on") {
				r.anomaly("after an %s it has ended with %d, want 1 and the reason:\n%s", what, code, lastLines(out, 60))
			}
			return true, nil
		})
	}), nil
}
