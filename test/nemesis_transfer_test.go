package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"
)

func init() {
	nemeses["transfer-deaf"] = nemesis{name: "transfer-deaf", alone: true, strike: transferDeaf}
	nemeses["late-answers"] = nemesis{name: "late-answers", needs: needProxies, alone: true, strike: lateAnswers}
}

// transferDeaf has a leader that hears nobody hand its leadership over: the successor is elected at once, by a vote
// that no lease holds back, and the old leader learns of it only when it hears again. From the moment at which it tells
// its successor it must not answer a read on its own.
func transferDeaf(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.leader()
	if i < 0 {
		return nil, nil
	}
	id, net := r.c.ID(i), r.c.Net()
	before, err := r.c.Node(i).Status()
	if err != nil {
		return nil, nil // another fault has it
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	door := openREST(r.t, r.c.Node(i), 5*time.Second)
	if _, err := door.do(ctx, http.MethodGet, "/api/v1/admin/status", nil, nil); err != nil { // connects
		cancel()
		return nil, nil
	}
	done := make(chan struct{})
	go func() { // ends with the answer, or with ctx
		defer close(done)
		// What is answered does not count: a leader that hears nothing does not learn that it has succeeded.
		_, _ = door.do(ctx, http.MethodPost, "/api/v1/admin/leader", nil, nil)
	}()
	// The transfer is asked for first: a leader that has heard nothing for a while does not begin one.
	time.Sleep(between(rng, 0, 6*time.Millisecond))
	for k := range r.c.Size() {
		if k != i {
			net.Cut(r.c.ID(k), id)
		}
	}
	return &fault{what: "transfer from " + id + ", which hears nothing meanwhile", lasts: between(rng, 400*time.Millisecond, 2*time.Second),
		struck: func() error {
			wait, stop := context.WithTimeout(context.Background(), 15*time.Second)
			defer stop()
			k, err := r.c.LeaderOtherThan(wait, i)
			if err != nil {
				return err
			}
			if now, err := r.c.Node(k).Status(); err != nil || now.Term <= before.Term {
				return errors.New("nobody else was elected")
			}
			return nil
		},
		mend: func() error {
			net.Heal()
			cancel()
			<-done
			return nil
		}}, nil
}

// lateAnswers lets what the others answer come to the leader late, and then nothing of the leader reaches them any
// more: it counts on answers that are old when they come.
func lateAnswers(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.leader()
	if i < 0 {
		return nil, nil
	}
	id, net := r.c.ID(i), r.c.Net()
	heartbeat, err := time.ParseDuration(r.c.Node(i).Flag("heartbeat-timeout"))
	if err != nil {
		return nil, fmt.Errorf("the run does not set a heartbeat timeout: %w", err)
	}
	// Later than the timeout the leader would step down; earlier they are worth about what new ones are.
	by := between(rng, heartbeat*6/10, heartbeat*9/10)
	held := net.HeldAround(id)
	for k := range r.c.Size() {
		if k != i {
			net.Delay(r.c.ID(k), id, by)
		}
	}
	time.Sleep(by + between(rng, heartbeat/4, heartbeat)) // late answers come by then, and more are on their way
	for k := range r.c.Size() {
		if k != i {
			net.Cut(id, r.c.ID(k))
		}
	}
	return &fault{what: "answers to " + id + " come " + by.String() + " late, then it is not heard", lasts: between(rng, time.Second, 3*time.Second),
		struck: func() error {
			if net.HeldAround(id) == held {
				return errors.New("the cut has held nothing")
			}
			return nil
		},
		mend: func() error { net.Heal(); return nil }}, nil
}
