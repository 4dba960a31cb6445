package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

func init() {
	for _, n := range []nemesis{
		{name: "isolate-leader", strike: func(r *faultRun, rng *rand.Rand) (*fault, error) { return r.isolate(rng, r.leader()) }},
		{name: "isolate-any", strike: func(r *faultRun, rng *rand.Rand) (*fault, error) {
			return r.isolate(rng, rng.IntN(r.c.Size()))
		}},
		{name: "one-way", strike: oneWay},
		{name: "bridge", strike: bridge},
		{name: "split", strike: split},
		{name: "flapping", strike: flapping},
		{name: "delay", needs: needProxies, strike: delay},
		{name: "loss", strike: loss},
	} {
		nemeses[n.name] = n
	}
}

// way is one direction between two nodes, by their numbers.
type way struct{ from, to int }

// both gives the ways between each node of some and each of others.
func both(some, others []int) []way {
	var ways []way
	for _, a := range some {
		for _, b := range others {
			ways = append(ways, way{a, b}, way{b, a})
		}
	}
	return ways
}

// except lists all nodes but one.
func (r *faultRun) except(i int) []int {
	var all []int
	for k := range r.c.Size() {
		if k != i {
			all = append(all, k)
		}
	}
	return all
}

// held counts what cuts and losses have stopped on some ways so far.
func (r *faultRun) held(ways []way) (sum int64) {
	for _, w := range ways {
		sum += r.c.Net().Held(r.c.ID(w.from), r.c.ID(w.to))
	}
	return sum
}

func (r *faultRun) cutWays(ways []way) {
	for _, w := range ways {
		r.c.Net().Cut(r.c.ID(w.from), r.c.ID(w.to))
	}
}

// openWays undoes what is done to some ways, and no others: another fault may have those. What connections hold arrives
// late, or is lost.
func (r *faultRun) openWays(ways []way, losing bool) {
	for _, w := range ways {
		if losing {
			r.c.Net().OpenLosing(r.c.ID(w.from), r.c.ID(w.to))
		} else {
			r.c.Net().Open(r.c.ID(w.from), r.c.ID(w.to))
		}
	}
}

// errNothingHeld says that nobody sent anything on the ways that a fault concerned.
var errNothingHeld = errors.New("nothing was held")

// cut cuts ways for longer than it takes to elect another leader.
func (r *faultRun) cut(rng *rand.Rand, what string, ways []way) *fault {
	before := r.held(ways)
	losing := rng.IntN(2) == 0
	f := &fault{what: what, lasts: between(rng, 1200*time.Millisecond, 4*time.Second),
		struck: func() error {
			if r.held(ways) == before {
				return errNothingHeld
			}
			return nil
		},
		mend: func() error { r.openWays(ways, losing); return nil }}
	r.cutWays(ways)
	return f
}

func (r *faultRun) isolate(rng *rand.Rand, i int) (*fault, error) {
	if i < 0 {
		return nil, nil
	}
	return r.cut(rng, "cut off: "+r.describe(i), both([]int{i}, r.except(i))), nil
}

// oneWay has the leader, or at times another node, not be heard or hear nothing, by all others or by one.
func oneWay(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.leader()
	if i < 0 {
		return nil, nil
	}
	others, whom := r.except(i), "anybody"
	switch rng.IntN(4) {
	case 0: // another node: with the leader it talks, with others hardly
		i = others[rng.IntN(len(others))]
		others = r.except(i)
	case 1:
		k := others[rng.IntN(len(others))]
		others, whom = []int{k}, r.c.ID(k)
	}
	deaf := rng.IntN(2) == 0
	var ways []way
	for _, k := range others {
		if deaf {
			ways = append(ways, way{k, i})
		} else {
			ways = append(ways, way{i, k})
		}
	}
	what := r.describe(i) + " is not heard by " + whom
	if deaf {
		what = r.describe(i) + " does not hear " + whom
	}
	return r.cut(rng, what, ways), nil
}

// bridge parts the nodes into two halves that only one node connects. The leader is in one of the halves: followers
// have nothing to say to each other.
func bridge(r *faultRun, rng *rand.Rand) (*fault, error) {
	order := rng.Perm(r.c.Size())
	if order[0] == r.leader() {
		order[0], order[1] = order[1], order[0]
	}
	half := 1 + (len(order)-1)/2
	one, two := order[1:half], order[half:]
	return r.cut(rng, fmt.Sprintf("only %s connects %s and %s", r.c.ID(order[0]), r.idsOf(one), r.idsOf(two)), both(one, two)), nil
}

// idsOf names nodes.
func (r *faultRun) idsOf(nodes []int) []string {
	var ids []string
	for _, i := range nodes {
		ids = append(ids, r.c.ID(i))
	}
	return ids
}

// split parts the nodes into a majority and a minority: of three a follower is alone, of more the leader is mostly in
// the minority. At times no part has a majority.
func split(r *faultRun, rng *rand.Rand) (*fault, error) {
	leader := r.leader()
	if leader < 0 {
		return nil, nil
	}
	order := rng.Perm(r.c.Size())
	at := 0 // where the leader goes: to the end of the minority, or out of it
	minority := (len(order) - 1) / 2
	if minority < 2 || rng.IntN(4) == 0 {
		at = len(order) - 1
	}
	for k := range order {
		if order[k] == leader {
			order[k], order[at] = order[at], order[k]
			break
		}
	}
	if rng.IntN(4) == 0 {
		var ways []way
		parts := (len(order) + minority - 1) / minority
		for a := range parts {
			from := a * minority
			to := min(from+minority, len(order))
			ways = append(ways, both(order[from:to], order[to:])...)
		}
		return r.cut(rng, fmt.Sprintf("no majority: %s in parts of %d", r.idsOf(order), minority), ways), nil
	}
	one, two := order[:minority], order[minority:]
	return r.cut(rng, fmt.Sprintf("%s against %s; %s leads", r.idsOf(one), r.idsOf(two), r.c.ID(leader)), both(one, two)), nil
}

// someWays draws ways: of one node, one or both directions, or any.
func (r *faultRun) someWays(rng *rand.Rand) []way {
	i := rng.IntN(r.c.Size())
	all := both([]int{i}, r.except(i))
	kind := rng.IntN(4)
	if kind == 0 {
		return all
	}
	var ways []way
	switch kind {
	case 1: // one direction
		odd := rng.IntN(2)
		for k, w := range all {
			if k%2 == odd {
				ways = append(ways, w)
			}
		}
	default:
		for a := range r.c.Size() {
			for _, b := range r.except(a) {
				if rng.IntN(3) == 0 {
					ways = append(ways, way{a, b})
				}
			}
		}
	}
	return ways
}

// flapping cuts and heals again and again, each time other ways. Each cut that held something is one fault.
func flapping(r *faultRun, rng *rand.Rand) (*fault, error) {
	own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
	stop, ended := make(chan struct{}), make(chan struct{})
	pause := func() bool {
		select {
		case <-time.After(between(own, 50*time.Millisecond, 500*time.Millisecond)):
			return true
		case <-stop:
			return false
		}
	}
	var cuts atomic.Int64
	go func() { // owned by the fault; ends with mend
		defer close(ended)
		for on := true; on; on = on && pause() {
			ways := r.someWays(own)
			before := r.held(ways)
			r.cutWays(ways)
			on = pause()
			if r.held(ways) > before {
				cuts.Add(1)
			}
			r.openWays(ways, own.IntN(2) == 0)
		}
	}()
	return &fault{what: "ways are cut and healed again and again", lasts: between(rng, 3*time.Second, 6*time.Second),
		count: func() int { return int(cuts.Load()) },
		struck: func() error {
			if cuts.Load() == 0 {
				return errNothingHeld
			}
			return nil
		},
		mend: func() error {
			close(stop)
			<-ended
			return nil
		}}, nil
}

// delay makes what one node, mostly the leader, sends or hears come late, at times by more than a lease lasts, at times
// by a different time for each piece.
func delay(r *faultRun, rng *rand.Rand) (*fault, error) {
	i, net := r.anyNode(rng), r.c.Net()
	if !net.CanDelay() {
		return nil, nil
	}
	what := "what " + r.describe(i) + " says and hears"
	ways := both([]int{i}, r.except(i))
	switch rng.IntN(3) {
	case 0:
		what = "what " + r.describe(i) + " says"
		ways = ways[:0]
		for _, k := range r.except(i) {
			ways = append(ways, way{i, k})
		}
	case 1:
		what = "what " + r.describe(i) + " hears"
		ways = ways[:0]
		for _, k := range r.except(i) {
			ways = append(ways, way{k, i})
		}
	}
	late := func() (sum int64) {
		for _, w := range ways {
			sum += net.Late(r.c.ID(w.from), r.c.ID(w.to))
		}
		return sum
	}
	before := late()
	by := between(rng, 50*time.Millisecond, 700*time.Millisecond)
	set := func(by time.Duration) {
		for _, w := range ways {
			net.Delay(r.c.ID(w.from), r.c.ID(w.to), by)
		}
	}
	set(by)
	stop, ended := make(chan struct{}), make(chan struct{})
	if rng.IntN(2) == 0 {
		what += ", not evenly,"
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		go func() { // owned by the fault; ends with mend
			defer close(ended)
			for {
				select {
				case <-time.After(between(own, 20*time.Millisecond, 200*time.Millisecond)):
					set(between(own, 0, by))
				case <-stop:
					return
				}
			}
		}()
	} else {
		close(ended)
	}
	return &fault{what: fmt.Sprintf("%s comes up to %v late", what, by.Round(time.Millisecond)), lasts: between(rng, 1500*time.Millisecond, 4*time.Second),
		struck: func() error {
			if late() == before {
				return errors.New("nothing was late")
			}
			return nil
		},
		mend: func() error {
			close(stop)
			<-ended
			r.openWays(ways, false)
			return nil
		}}, nil
}

// loss loses a part of all packets, around one node or everywhere.
func loss(r *faultRun, rng *rand.Rand) (*fault, error) {
	i, percent := r.anyNode(rng), 5+rng.IntN(36)
	ways, where := both([]int{i}, r.except(i)), "to and from "+r.describe(i)
	if rng.IntN(3) == 0 {
		where = "everywhere"
		ways = ways[:0]
		for a := range r.c.Size() {
			for _, b := range r.except(a) {
				ways = append(ways, way{a, b})
			}
		}
	}
	before := r.held(ways)
	for _, w := range ways {
		r.c.Net().Loss(r.c.ID(w.from), r.c.ID(w.to), percent)
	}
	return &fault{what: fmt.Sprintf("%d %% are lost %s", percent, where), lasts: between(rng, 2*time.Second, 5*time.Second),
		struck: func() error {
			if r.held(ways) == before {
				return errors.New("nothing was lost")
			}
			return nil
		},
		mend: func() error { r.openWays(ways, false); return nil }}, nil
}
