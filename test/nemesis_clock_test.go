package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"kvstore/internal/testcluster"
)

func init() {
	for _, n := range []nemesis{
		{name: "clock-rate", needs: needClocks, strike: clockRate},
		{name: "clock-jump", needs: needClocks, strike: clockJump},
		{name: "clock-wall", needs: needClocks, strike: clockWall},
	} {
		nemeses[n.name] = n
	}
}

// What the read lease claims (consensus/DESIGN.md) bounds what these faults may do while it is in use: a clock that is
// measured may be as wrong as it likes, but a rate must not change by more than a fifth before it is measured, which
// takes a heartbeat timeout and two pulses, and no follower's clock may jump forward alone. Where each read is
// confirmed (read-mode readindex) no clock is counted on, and none of this applies.

const (
	// clockMild is by how much a clock may be wrong at once: measured surely (above 1.083 it is not counted on), and
	// harmless until then (below 1.2).
	clockMild = 1.15
	// clockSeenWithin is how long a node may take to see that a clock is mildly wrong. If it does not, as on a machine
	// that is so busy that nothing can be measured, the clock stays mildly wrong.
	clockSeenWithin = 8 * time.Second
	// clockQuiet is the pause after a wrong rate until the next one, so that what the nodes say of a clock then is
	// about the new one: a clock counts again 10 s after it was last found wrong.
	clockQuiet = 15 * time.Second
)

// clockFaults keeps apart faults that each alone keep to what is claimed and together don't. Only one test at a time
// makes such faults.
var clockFaults struct {
	sync.Mutex
	quiet time.Time // no wrong rate before; guarded by the mutex
}

// usesLease tells whether reads count on clocks.
func (r *faultRun) usesLease() bool { return r.c.Node(0).Flag("read-mode") != "readindex" }

// readsSince gives what tells whether the process has read its clock since now.
func readsSince(c *testcluster.Clocks, id testcluster.ClockID) (func() error, error) {
	before, err := c.Reads(id)
	if err != nil {
		return nil, err
	}
	return func() error {
		after, err := c.Reads(id)
		if err == nil && after == before {
			err = errors.New("the node has not read its clock since")
		}
		return err
	}, nil
}

// clockRate lets all clocks of a node run too fast or too slow for a while.
func clockRate(r *faultRun, rng *rand.Rand) (*fault, error) {
	if !clockFaults.TryLock() {
		return nil, nil
	}
	lease := r.usesLease()
	if lease && time.Now().Before(clockFaults.quiet) {
		clockFaults.Unlock()
		return nil, nil
	}
	f, err := r.clockRate(rng, lease)
	if err != nil {
		clockFaults.Unlock()
	}
	return f, err
}

// clockRate does it. REQUIRES: clockFaults is held; it is released by mend, or by the caller on an error.
func (r *faultRun) clockRate(rng *rand.Rand, lease bool) (*fault, error) {
	i := r.anyNode(rng)
	c := r.c.Node(i).Clocks()
	rate := []float64{0.25, 0.5, 0.8, 1.25, 2, 4}[rng.IntN(6)]
	lasts := between(rng, 2*time.Second, 6*time.Second)
	what := r.describe(i)
	struck, err := readsSince(c, testcluster.ClockBoot)
	if err != nil {
		return nil, err
	}
	ahead, err := c.Ahead(testcluster.ClockMonotonic)
	if err != nil {
		return nil, err
	}
	if lease {
		seen := r.watchDistrust(i, rate < 1)
		mild := clockMild
		if rate < 1 {
			mild = 1 / clockMild
		}
		if err := c.SetRate(mild); err != nil {
			return nil, err
		}
		for deadline := time.Now().Add(clockSeenWithin); !seen(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) || r.ctx.Err() != nil {
				rate = mild
				break
			}
		}
	}
	if err := c.SetRate(rate); err != nil {
		return nil, err
	}
	return &fault{
		what: fmt.Sprintf("clocks of %s run at %.3g times their rate", what, rate), lasts: lasts, struck: struck,
		mend: func() error {
			defer clockFaults.Unlock()
			clockFaults.quiet = time.Now().Add(clockQuiet)
			now, err := c.Ahead(testcluster.ClockMonotonic)
			// The wall clock is set right by what this fault has moved it, not to what is right: others move it too.
			return errors.Join(err, c.SetRate(1), c.StepWall(ahead-now))
		}}, nil
}

// watchDistrust gives what tells whether the rate of node i's clock was, since now, found wrong by all who would count
// on it: it looks slow to itself, to whom all others are fast, and fast to the others. A node that does not run now
// measures all others anew when it is started.
func (r *faultRun) watchDistrust(i int, slow bool) func() bool {
	var sought []func() bool
	watch := func(observer, subject int) {
		n := r.c.Node(observer)
		text := "the clock of " + r.c.ID(subject) + " runs at least"
		before := strings.Count(n.Output(), text)
		sought = append(sought, func() bool { return strings.Count(n.Output(), text) > before })
	}
	for k := range r.c.Size() {
		switch {
		case k == i:
		case slow:
			watch(i, k)
		default:
			watch(k, i)
		}
	}
	return func() bool {
		sought = slices.DeleteFunc(sought, func(seen func() bool) bool { return seen() })
		return len(sought) == 0
	}
}

// clockJump lets the clocks of a node jump forward; or those that stand still while a machine is suspended miss the time
// that the node is frozen for.
func clockJump(r *faultRun, rng *rand.Rand) (*fault, error) {
	if !clockFaults.TryLock() {
		return nil, nil
	}
	f, err := r.clockJump(rng)
	if f == nil {
		clockFaults.Unlock()
	}
	return f, err
}

// clockJump does it. REQUIRES: clockFaults is held; it is released by mend, or by the caller where there is none.
func (r *faultRun) clockJump(rng *rand.Rand) (*fault, error) {
	i, suspended := r.anyNode(rng), rng.IntN(3) == 0
	if r.usesLease() && !suspended {
		i = r.leader()
	}
	if i < 0 {
		return nil, nil
	}
	n := r.c.Node(i)
	c, what := n.Clocks(), r.describe(i)
	struck, err := readsSince(c, testcluster.ClockBoot)
	if err != nil {
		return nil, err
	}
	if suspended {
		f := &fault{what: "the machine of " + what + " was suspended", struck: struck, lasts: 500 * time.Millisecond,
			mend: func() error { clockFaults.Unlock(); return nil }}
		// Nobody may let it go on meanwhile: its clocks would be seen to go back.
		r.control.Lock()
		defer r.control.Unlock()
		if !n.Running() {
			return nil, nil
		}
		if err := n.Freeze(); err != nil {
			return nil, err
		}
		began := time.Now()
		time.Sleep(between(rng, 300*time.Millisecond, 2*time.Second))
		err := c.Suspended(time.Since(began))
		n.Thaw()
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	d := between(rng, 300*time.Millisecond, 30*time.Second)
	if err := c.Jump(d); err != nil {
		return nil, err
	}
	return &fault{
		what: fmt.Sprintf("clocks of %s jump forward by %v", what, d.Round(time.Millisecond)), struck: struck,
		lasts: between(rng, 500*time.Millisecond, 3*time.Second),
		mend: func() error {
			defer clockFaults.Unlock()
			return c.StepWall(-d) // the others never go back
		}}, nil
}

// clockWall steps the time of day of one node, or of all, and later back.
func clockWall(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.anyNode(rng)
	what, nodes := r.describe(i), []int{i}
	if rng.IntN(4) == 0 {
		what, nodes = "all nodes", nil
		for k := range r.c.Size() {
			nodes = append(nodes, k)
		}
	}
	var d time.Duration
	switch rng.IntN(3) {
	case 0:
		d = time.Second
	case 1:
		d = between(rng, time.Second, time.Minute)
	default:
		d = between(rng, time.Minute, 10*time.Minute)
	}
	if rng.IntN(2) == 0 {
		d = -d
	}
	var read []func() error
	step := func(d time.Duration) (err error) {
		for _, k := range nodes {
			err = errors.Join(err, r.c.Node(k).Clocks().StepWall(d))
		}
		return err
	}
	if err := step(d); err != nil {
		return nil, err
	}
	for _, k := range nodes {
		f, err := readsSince(r.c.Node(k).Clocks(), testcluster.ClockWall)
		if err != nil {
			return nil, err
		}
		read = append(read, f)
	}
	return &fault{
		what: fmt.Sprintf("time of day of %s steps by %v", what, d.Round(time.Millisecond)), lasts: between(rng, time.Second, 4*time.Second),
		struck: func() (err error) {
			for _, f := range read {
				if err = f(); err == nil {
					return nil // one has read it
				}
			}
			return err
		},
		mend: func() error { return step(-d) }}, nil
}
