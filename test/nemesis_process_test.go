package test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"kvstore/internal/testcluster"
)

func init() {
	for _, n := range []nemesis{
		{name: "kill-leader", strike: func(r *faultRun, rng *rand.Rand) (*fault, error) { return r.kill(rng, r.leader()) }},
		{name: "kill-any", strike: func(r *faultRun, rng *rand.Rand) (*fault, error) { return r.kill(rng, r.anyNode(rng)) }},
		{name: "kill-all", alone: true, strike: killAll},
		{name: "kill-again", strike: killAgain},
		{name: "stop-leader", strike: func(r *faultRun, rng *rand.Rand) (*fault, error) { return r.stop(rng, r.leader()) }},
		{name: "stop-any", strike: func(r *faultRun, rng *rand.Rand) (*fault, error) { return r.stop(rng, r.anyNode(rng)) }},
		{name: "stop-all", alone: true, strike: stopAll},
	} {
		nemeses[n.name] = n
	}
}

// kill ends one node by SIGKILL and starts it again later.
func (r *faultRun) kill(rng *rand.Rand, i int) (*fault, error) {
	if i < 0 {
		return nil, nil
	}
	f := &fault{what: "kill -9 of " + r.describe(i), lasts: between(rng, 0, 2500*time.Millisecond), mend: func() error { return r.up(i) }}
	r.control.Lock()
	defer r.control.Unlock()
	if !r.runs(i) {
		return nil, nil
	}
	r.c.Kill(i)
	return f, nil
}

// killAll ends all nodes at the same moment and starts them again in any order, not at once.
func killAll(r *faultRun, rng *rand.Rand) (*fault, error) {
	r.control.Lock()
	defer r.control.Unlock()
	r.c.KillAll()
	return &fault{what: "kill -9 of all nodes", lasts: between(rng, 0, 300*time.Millisecond), mend: r.inAnyOrder(rng)}, nil
}

// killAgain ends a node again and again at random instants after its start: while it opens its files, replays, joins
// the others, catches up.
func killAgain(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.anyNode(rng)
	f := &fault{what: "kill -9 of " + r.describe(i) + ", again and again while it starts", mend: func() error { return r.up(i) }}
	times := 2 + rng.IntN(5)
	kills := 0
	f.count = func() int { return kills }
	for range times {
		r.control.Lock()
		if r.runs(i) {
			r.c.Kill(i)
			kills++
		}
		err := r.upLocked(i)
		r.control.Unlock()
		if err != nil {
			return nil, err
		}
		time.Sleep(between(rng, 0, 700*time.Millisecond))
	}
	return f, nil
}

// stop freezes one node for longer than a lease lasts, at times for longer than anybody waits.
func (r *faultRun) stop(rng *rand.Rand, i int) (*fault, error) {
	if i < 0 {
		return nil, nil
	}
	what := "SIGSTOP of " + r.describe(i)
	r.control.Lock()
	defer r.control.Unlock()
	if !r.runs(i) {
		return nil, nil
	}
	n := r.c.Node(i)
	pid := n.Pid()
	if err := n.Freeze(); err != nil {
		return nil, err
	}
	return &fault{what: what, lasts: between(rng, 700*time.Millisecond, 4*time.Second),
		struck: func() error {
			r.control.Lock()
			defer r.control.Unlock()
			if !n.Running() || n.Pid() != pid {
				return errors.New("it was ended meanwhile")
			}
			return nil
		},
		mend: func() error {
			r.control.Lock()
			defer r.control.Unlock()
			n.Thaw()
			return nil
		}}, nil
}

// stopAll freezes all nodes at the same moment: nobody notices anything while it lasts, and every lease is over after
// it.
func stopAll(r *faultRun, rng *rand.Rand) (*fault, error) {
	r.control.Lock()
	defer r.control.Unlock()
	var frozen []*testcluster.Node
	errs := make([]error, r.c.Size())
	var wg sync.WaitGroup
	for i, n := range r.c.Nodes() {
		if r.runs(i) {
			frozen = append(frozen, n)
			wg.Go(func() { errs[i] = n.Freeze() })
		}
	}
	wg.Wait()
	order := rng.Perm(len(frozen))
	pause := between(rng, 0, 800*time.Millisecond)
	return &fault{what: "SIGSTOP of all nodes", lasts: between(rng, 0, 3*time.Second), mend: func() error {
		for _, k := range order {
			r.control.Lock()
			frozen[k].Thaw()
			r.control.Unlock()
			time.Sleep(pause)
		}
		return nil
	}}, errors.Join(errs...)
}
