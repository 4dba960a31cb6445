package test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"kvstore/client"
)

func init() { nemeses["lag"] = nemesis{name: "lag", alone: true, strike: lag} }

// hastyLog is shortLog with a log that is not kept for long for those who were just sent a snapshot either. No disk of
// these scenes hangs, but processes stand still, in the midst of a write too.
func hastyLog() map[string]string {
	s := maps.Clone(shortLog())
	s["snapshot-grace"], s["write-stall-timeout"] = "500ms", "60s"
	return s
}

// fillStuck is how long a fill goes on although nothing is acknowledged.
const fillStuck = 5 * time.Second

// outrunWithin bounds how long writes go on until a node that is away is left behind.
const outrunWithin = 40 * time.Second

// lagSlack is how many entries a node may have got between the question how far it is and its end.
const lagSlack = 500

// fill writes unique values through any member until done says so or ctx ends, into a few keys, so that the log
// grows and the state does not.
func (r *faultRun) fill(ctx context.Context, done func() (bool, error)) error {
	var addrs []string
	for _, i := range r.members() {
		addrs = append(addrs, r.c.Node(i).Addr())
	}
	cl, err := client.Open(ctx, addrs, client.WithTimeout(3*time.Second), client.WithoutSession())
	if err != nil {
		return fmt.Errorf("cannot write: %w", err)
	}
	acked := time.Now()
	for k := 0; ; k++ {
		key := fmt.Sprintf("lag/%02d", k%8)
		// An error is one of the faults that go on, and the next one may succeed.
		_, werr := cl.Put(ctx, key, content(key, int(time.Since(r.began)), blobBytes))
		if werr == nil {
			acked = time.Now()
			if k%4 != 3 {
				continue
			}
		} else if time.Since(acked) > fillStuck {
			return errors.Join(werr, cl.Close()) // other faults leave no majority
		}
		ok, err := done()
		if ok {
			return cl.Close()
		}
		if err == nil && !pause(ctx, 5*time.Millisecond) {
			err = errors.Join(ctx.Err(), werr)
		}
		if err != nil {
			return errors.Join(err, cl.Close())
		}
	}
}

// followerAway draws a node that does not lead; -1 unless all members run.
func (r *faultRun) followerAway(rng *rand.Rand) int {
	leader := r.leader()
	r.control.Lock()
	defer r.control.Unlock()
	var of []int
	for _, i := range r.members() {
		if !r.runs(i) {
			return -1
		}
		if i != leader {
			of = append(of, i)
		}
	}
	if leader < 0 || len(of) == 0 {
		return -1
	}
	return of[rng.IntN(len(of))]
}

// outrun writes until the log of every other member that answers begins behind what node i has, which is away: it can't
// be brought up by entries any more. back tells that it is away no more.
func (r *faultRun) outrun(i int, last uint64, back func() bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), outrunWithin)
	defer cancel()
	at := ""
	err := r.fill(ctx, func() (bool, error) {
		if back() {
			return false, fmt.Errorf("%s was brought back by another fault's end", r.c.ID(i))
		}
		all, errs := r.c.Statuses(context.Background())
		leads, behind := false, true
		at = ""
		for k := range all {
			at += fmt.Sprintf("; %s has %d to %d (%v)", r.c.ID(k), all[k].FirstIndex, all[k].LastIndex, errs[k])
			if k == i || errs[k] != nil || r.isOut(k) {
				continue
			}
			leads = leads || all[k].IsLeader
			behind = behind && all[k].FirstIndex > last+lagSlack
		}
		return leads && behind, nil
	})
	if err != nil {
		return fmt.Errorf("%s had %d%s: %w", r.c.ID(i), last, at, err)
	}
	return nil
}

// installed tells whether node i, which had entries up to last and was outrun, has got the state by a snapshot.
func (r *faultRun) installed(i int, last uint64) (bool, error) {
	n := r.c.Node(i)
	if v, err := readMetric(n, "kvstore_raft_snapshots_installed_total"); err != nil || v > 0 {
		return v > 0, err
	}
	// It may have been started again since: then its log, which begins behind what it had, tells.
	s, err := n.Status()
	return err == nil && s.AppliedIndex > last && (s.FirstIndex == 0 || s.FirstIndex > last+1), err
}

// lag keeps a follower away until the log of the others does not reach back to it, so that it comes back by a
// snapshot. At times it, or whoever sends it that, is killed meanwhile.
func lag(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.followerAway(rng)
	if i < 0 {
		return nil, nil
	}
	n := r.c.Node(i)
	s, err := n.Status()
	if err != nil {
		return nil, nil // another fault has it
	}
	before, err := readMetric(n, "kvstore_raft_snapshots_installed_total")
	if err != nil {
		return nil, nil
	}
	id, last := r.c.ID(i), s.LastIndex
	// Installs are counted from the start of the process: one that had some already is killed.
	killed := before > 0 || rng.IntN(2) == 0
	f := &fault{what: "lag of " + id, lasts: between(rng, 0, time.Second), mend: func() error { return r.up(i) }}
	var back func() bool
	if killed {
		r.control.Lock()
		r.c.Kill(i)
		r.control.Unlock()
		back = func() bool {
			r.control.Lock()
			defer r.control.Unlock()
			return r.runs(i)
		}
	} else {
		r.c.Net().Isolate(id)
		back = func() bool {
			s, err := n.Status()
			return err == nil && s.LastIndex > last+lagSlack
		}
		f.what += ", cut off"
	}
	if err := r.outrun(i, last, back); err != nil {
		f.struck = func() error { return err }
		if !killed {
			f.mend = func() error { r.c.Net().Heal(); return r.up(i) }
		}
		return f, nil
	}
	if !killed {
		r.c.Net().Heal()
	}
	if err := r.up(i); err != nil {
		return nil, err
	}
	victim, when := -1, ""
	switch rng.IntN(4) {
	case 0:
		victim, when = i, ", killed while it gets its snapshot"
	case 1:
		victim, when = r.leader(), ", the leader killed while it sends the snapshot"
	}
	f.what += when
	receiving := func() (bool, error) {
		v, err := readMetric(n, "kvstore_raft_snapshot_received_bytes_total")
		return v > 0, err
	}
	if victim >= 0 {
		if err := r.until(5*time.Second, receiving); err == nil {
			time.Sleep(between(rng, 0, 50*time.Millisecond))
			r.control.Lock()
			r.c.Kill(victim)
			r.control.Unlock()
			time.Sleep(between(rng, 0, 300*time.Millisecond))
			if err := r.up(victim); err != nil {
				return nil, err
			}
		}
	}
	f.struck = func() error {
		if err := r.until(outrunWithin, func() (bool, error) { return r.installed(i, last) }); err != nil {
			return fmt.Errorf("%s got no snapshot: %w", id, err)
		}
		return nil
	}
	return f, nil
}

// until asks until ok, for that long.
func (r *faultRun) until(long time.Duration, ok func() (bool, error)) error {
	for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
		done, err := ok()
		if done {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("not within %v", long), err)
		}
	}
}
