package test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

func init() {
	nemeses["members"] = nemesis{name: "members", strike: changeMembers}
	nemeses["transfer"] = nemesis{name: "transfer", strike: transferStorm}
}

const (
	// nodesMost bounds the nodes of a run, votersLeast the voters that are left to it: one may always fail.
	nodesMost, votersLeast = 5, 3
	// changeWithin bounds one change: other faults may well keep it from being made.
	changeWithin = 20 * time.Second
	// downWithin bounds the removal of a node that is down.
	downWithin = 5 * time.Second
	// straysWithin is longer than an admin request that nobody waits for any more can still be under way: its
	// deadline is 10 s.
	straysWithin = 15 * time.Second
	// stormWithin bounds the transfers in a row: other faults that are in force meanwhile should not last for ever.
	stormWithin = 6 * time.Second
)

// removal of a node from the cluster, from before it is asked for until the node is taken in anew.
type removal struct {
	done  bool      // it took effect, else it is not known yet whether it will
	again time.Time // until then requests of old may still take effect, also on the node when it is taken in anew
}

// isOut tells whether node i is no member, or may be none.
func (r *faultRun) isOut(i int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, out := r.out[i]
	return out
}

// setOut notes how far the removal of node i is; nil: it is a member.
func (r *faultRun) setOut(i int, x *removal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out == nil {
		r.out = make(map[int]removal)
	}
	if x == nil {
		delete(r.out, i)
		return
	}
	r.out[i] = *x
}

// removals gives the nodes that are out; nil: the membership was never changed.
func (r *faultRun) removals() map[int]removal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.out)
}

// members are the numbers of the nodes that are members.
func (r *faultRun) members() (in []int) {
	for i := range r.c.Size() {
		if !r.isOut(i) {
			in = append(in, i)
		}
	}
	return in
}

// oneShot asks nodes that come and go: it keeps no connection.
var oneShot = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 4 * time.Second}

// askAny asks one of the members, whichever it is.
func (r *faultRun) askAny(ctx context.Context, rng *rand.Rand, method, target, body string) (*restReply, error) {
	in := r.members()
	c := &restClient{node: r.c.Node(in[rng.IntN(len(in))]), http: oneShot}
	return c.do(ctx, method, "/api/v1/admin/"+target, nil, []byte(body))
}

// list asks the cluster for its members until it answers.
func (r *faultRun) list(ctx context.Context, rng *rand.Rand) (*members, error) {
	for {
		reply, err := r.askAny(ctx, rng, http.MethodGet, "members", "")
		if err == nil && reply.status == http.StatusOK {
			return readMembers(reply)
		}
		if err == nil {
			err = errors.New(reply.String())
		}
		if !pause(ctx, between(rng, 20*time.Millisecond, 200*time.Millisecond)) {
			return nil, fmt.Errorf("the members can't be listed: %w", err)
		}
	}
}

// pause waits for d; false: ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// memberChange is one change of the membership.
type memberChange struct {
	what         string
	method       string // empty: a node that was started asks by itself
	target, body string
	shows        func(m *members) bool // tells that it took effect
}

// errByRule is a change that the cluster refused, whoever is asked and however often: nothing was changed.
var errByRule = errors.New("refused by rule")

// change asks for a change until it is made or refused by rule. Where an answer leaves open what became of it, the list
// of members tells. unsure: some answer did, and what was asked may still take effect.
func (r *faultRun) change(ctx context.Context, rng *rand.Rand, c *memberChange) (unsure bool, err error) {
	for {
		if c.method == "" {
			m, err := r.list(ctx, rng)
			if err == nil && c.shows(m) {
				return false, nil
			}
			err = errors.Join(err, errors.New("the list of members does not show it"))
			if !pause(ctx, between(rng, 50*time.Millisecond, 300*time.Millisecond)) {
				return false, err
			}
			continue
		}
		reply, err := r.askAny(ctx, rng, c.method, c.target, c.body)
		o, _ := reply.writeOutcome(err)
		switch {
		case o == acked:
			return unsure, nil
		case err == nil && reply.status >= 400 && reply.status < 500 && reply.status != http.StatusTooManyRequests:
			return unsure, fmt.Errorf("%w: %v", errByRule, reply)
		case o == unknown:
			unsure = true
			if m, err := r.list(ctx, rng); err == nil && c.shows(m) {
				return unsure, nil
			}
		}
		if err == nil {
			err = errors.New(reply.String())
		}
		if !pause(ctx, between(rng, 50*time.Millisecond, 300*time.Millisecond)) {
			return unsure, fmt.Errorf("neither done nor refused within %v: %w", changeWithin, err)
		}
	}
}

// changeMembers makes one change of the membership, while other faults go on.
func changeMembers(r *faultRun, rng *rand.Rand) (*fault, error) {
	ctx, cancel := context.WithTimeout(context.Background(), changeWithin)
	defer cancel()
	for i, x := range r.removals() {
		if !x.done { // what was begun is finished first
			return r.removeMember(ctx, rng, i, "once more")
		}
	}
	m, err := r.list(ctx, rng)
	if err != nil {
		return nil, nil // the other faults leave no majority for so long
	}
	var voters, learners, all []int
	for _, x := range m.Members {
		i := r.c.Index(x.ID)
		all = append(all, i)
		if x.Role == "voter" {
			voters = append(voters, i)
		} else {
			learners = append(learners, i)
		}
	}
	one := func(of []int) int { return of[rng.IntN(len(of))] }
	// The leader is meant more often than others.
	voter := func() int {
		if i := r.c.Index(m.LeaderID); i >= 0 && rng.IntN(3) == 0 {
			return i
		}
		return one(voters)
	}
	var can []func() (*fault, error)
	may := func(weight int, f func() (*fault, error)) {
		for range weight {
			can = append(can, f)
		}
	}
	spare := len(voters) > votersLeast
	if len(all) < nodesMost {
		weight := 1
		if !spare {
			weight = 4
		}
		if back := r.mayComeBack(); len(back) > 0 {
			may(weight, func() (*fault, error) { return r.addMember(ctx, rng, one(back)) })
		}
		if r.c.Size() < nodesMost && r.disks == nil {
			may(weight, func() (*fault, error) { return r.addMember(ctx, rng, r.c.Size()) })
		}
	}
	if len(learners) > 0 {
		may(2, func() (*fault, error) {
			id := r.c.ID(one(learners))
			return r.changeRole(ctx, rng, id, "promote", "voter")
		})
		may(1, func() (*fault, error) { return r.removeMember(ctx, rng, one(learners), "a learner") })
		may(2, func() (*fault, error) { return r.replaceMember(ctx, rng, voter(), one(learners)) })
	}
	if spare {
		may(2, func() (*fault, error) { return r.changeRole(ctx, rng, r.c.ID(voter()), "demote", "learner") })
		may(2, func() (*fault, error) { return r.removeMember(ctx, rng, voter(), "a voter") })
		may(1, func() (*fault, error) {
			i := one(voters)
			r.setOut(i, &removal{}) // before it is gone: nobody shall start it
			r.control.Lock()
			r.c.Kill(i)
			r.control.Unlock()
			// Not for long: with another fault the majority may hang on it.
			short, cancel := context.WithTimeout(ctx, downWithin)
			defer cancel()
			f, err := r.removeMember(short, rng, i, "which is down")
			r.control.Lock()
			defer r.control.Unlock()
			if x, out := r.removals()[i]; out && !x.done && !r.runs(i) {
				r.c.Node(i).Launch() // it may still be removed, and ends then
			}
			return f, err
		})
		may(1, func() (*fault, error) {
			pair := rng.Perm(len(voters))
			return r.replaceMember(ctx, rng, voters[pair[0]], voters[pair[1]])
		})
	}
	may(1, func() (*fault, error) { return r.prioritise(ctx, rng, r.c.ID(one(all)), rng.IntN(101)) })
	return can[rng.IntN(len(can))]()
}

// made is the fault that a change was, or was to be.
func made(c *memberChange, err error) *fault {
	return &fault{what: c.what, struck: func() error { return err }}
}

func memberPath(id, action string) string {
	if action == "" {
		return "members/" + url.PathEscape(id)
	}
	return "members/" + url.PathEscape(id) + "/" + action
}

// changeRole promotes or demotes a member.
func (r *faultRun) changeRole(ctx context.Context, rng *rand.Rand, id, action, role string) (*fault, error) {
	c := &memberChange{what: action + " " + id, method: http.MethodPost, target: memberPath(id, action),
		shows: func(m *members) bool { return m.role(id) == role }}
	_, err := r.change(ctx, rng, c)
	return made(c, err), nil
}

// prioritise sets how much a member is wished for as the leader.
func (r *faultRun) prioritise(ctx context.Context, rng *rand.Rand, id string, priority int) (*fault, error) {
	c := &memberChange{what: fmt.Sprintf("priority %d of %s", priority, id), method: http.MethodPut, target: memberPath(id, "priority"),
		body: fmt.Sprintf(`{"priority":%d}`, priority),
		shows: func(m *members) bool {
			for _, x := range m.Members {
				if x.ID == id {
					return x.Priority == priority
				}
			}
			return false
		}}
	_, err := r.change(ctx, rng, c)
	return made(c, err), nil
}

// removeMember takes node i out for ever. It ends by itself once it learns that; see settleMembers.
func (r *faultRun) removeMember(ctx context.Context, rng *rand.Rand, i int, which string) (*fault, error) {
	id := r.c.ID(i)
	c := &memberChange{what: fmt.Sprintf("removal of %s, %s", id, which), method: http.MethodDelete, target: memberPath(id, ""),
		shows: func(m *members) bool { return m.role(id) == "" }}
	return made(c, r.removing(ctx, rng, i, c)), nil
}

// replaceMember has another member take the place of node i.
func (r *faultRun) replaceMember(ctx context.Context, rng *rand.Rand, i, with int) (*fault, error) {
	if i == with {
		return nil, nil
	}
	id, successor := r.c.ID(i), r.c.ID(with)
	c := &memberChange{what: "replacement of " + id + " with " + successor, method: http.MethodPost, target: memberPath(id, "replace"),
		body: fmt.Sprintf(`{"with":%q}`, successor), shows: func(m *members) bool { return m.role(id) == "" && m.role(successor) == "voter" }}
	return made(c, r.removing(ctx, rng, i, c)), nil
}

// removing makes a change that takes node i out.
func (r *faultRun) removing(ctx context.Context, rng *rand.Rand, i int, c *memberChange) error {
	x := r.removals()[i]
	// From here on it may end by itself, and must not be started again.
	r.setOut(i, &x)
	unsure, err := r.change(ctx, rng, c)
	if unsure {
		x.again = time.Now().Add(straysWithin)
	}
	if errors.Is(err, errByRule) && time.Now().After(x.again) {
		r.setOut(i, nil)
		return errors.Join(err, r.up(i))
	}
	x.done = err == nil
	r.setOut(i, &x)
	return err
}

// mayComeBack gives the nodes that were removed, have ended, and can be taken in anew.
func (r *faultRun) mayComeBack() (back []int) {
	r.control.Lock()
	defer r.control.Unlock()
	for i, x := range r.removals() {
		if x.done && time.Now().After(x.again) && !r.runs(i) {
			back = append(back, i)
		}
	}
	slices.Sort(back)
	return back
}

// addMember starts node i, a new one or one that was removed, with an empty directory: it joins by the members.
func (r *faultRun) addMember(ctx context.Context, rng *rand.Rand, i int) (*fault, error) {
	id := r.c.ID(i)
	c := &memberChange{what: "addition of " + id, shows: func(m *members) bool { return m.role(id) != "" }}
	if err := r.startAnew(i); err != nil {
		return nil, err
	}
	_, err := r.change(ctx, rng, c)
	return made(c, err), nil
}

func (r *faultRun) startAnew(i int) error {
	var addrs []string
	for _, k := range r.members() {
		addrs = append(addrs, r.c.Node(k).HTTPAddr())
	}
	r.control.Lock()
	defer r.control.Unlock()
	if i == r.c.Size() {
		n := r.c.AddJoining()
		n.Set("join", strings.Join(addrs, ","))
		n.Launch()
		r.setOut(i, nil)
		return nil
	}
	n := r.c.Node(i)
	if r.runs(i) {
		return fmt.Errorf("%s runs although it was removed", r.c.ID(i))
	}
	r.saidRemoved(i)
	if err := os.RemoveAll(n.DataDir()); err != nil {
		return err
	}
	n.Unset("initial-cluster")
	n.Set("join", strings.Join(addrs, ","))
	n.SetEnv()
	n.Launch()
	r.setOut(i, nil)
	return nil
}

// saidRemoved checks how a removed node has ended: killed, or by itself with the reason. REQUIRES: r.control is held, it
// has ended.
func (r *faultRun) saidRemoved(i int) {
	n := r.c.Node(i)
	if code := n.WaitExit(); code >= 0 && (code != 1 || !strings.Contains(n.LastOutput(), "was removed")) {
		r.anomaly("%s was removed and has ended with exit code %d:\n%s", r.c.ID(i), code, lastLines(n.LastOutput(), 60))
	}
}

// settleMembers finishes the removals that were begun, waits until those who are out have ended, compares the list of
// members with those who should be, and takes all in again. REQUIRES: all faults are mended.
func (r *faultRun) settleMembers() error {
	removals := r.removals()
	if removals == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rng := r.stream("settle")
	for i, x := range removals {
		if x.done {
			continue
		}
		f, err := r.removeMember(ctx, rng, i, "once more")
		if err == nil {
			err = f.struck()
		}
		if err != nil {
			return fmt.Errorf("the removal of %s that was begun can't be finished: %w", r.c.ID(i), err)
		}
	}
	for i := range removals {
		n := r.c.Node(i)
		if s, err := n.StatusContext(ctx); err == nil && s.AppliedIndex == 0 {
			// It was removed before anything had reached it: it waits to be taken in until --start-timeout, five minutes.
			r.note("%s was removed before it knew its cluster, and is ended", r.c.ID(i))
			r.control.Lock()
			n.Kill()
			r.control.Unlock()
		}
		select {
		case <-n.Exited():
		case <-ctx.Done():
			return fmt.Errorf("%s was removed and goes on:\n%s", r.c.ID(i), lastLines(n.LastOutput(), 60))
		}
		r.control.Lock()
		r.saidRemoved(i)
		r.control.Unlock()
	}
	m, err := r.list(ctx, rng)
	if err != nil {
		return err
	}
	var listed, want []string
	voters := 0
	for _, x := range m.Members {
		listed = append(listed, x.ID)
		if x.Role == "voter" {
			voters++
		}
	}
	for _, i := range r.members() {
		want = append(want, r.c.ID(i))
	}
	slices.Sort(listed)
	slices.Sort(want)
	if !slices.Equal(listed, want) {
		return fmt.Errorf("the members are %v, they should be %v", listed, want)
	}
	r.note("%d members after all faults, %d of them voters; %d nodes are out and come back", len(want), voters, len(removals))
	return r.comeBack(ctx, rng)
}

// comeBack takes all nodes in again that are out: what the workloads look at in the end, they look at on every node.
func (r *faultRun) comeBack(ctx context.Context, rng *rand.Rand) error {
	for i, x := range r.removals() {
		if !pause(ctx, time.Until(x.again)) {
			return ctx.Err()
		}
		f, err := r.addMember(ctx, rng, i)
		if err == nil {
			err = f.struck()
		}
		if err == nil {
			err = r.c.Node(i).WaitReady()
		}
		if err != nil {
			return fmt.Errorf("%s was removed and is not taken in anew: %w", r.c.ID(i), err)
		}
	}
	return nil
}

// transferStorm has the leadership handed over many times in a row, to anybody.
func transferStorm(r *faultRun, rng *rand.Rand) (*fault, error) {
	times := 3 + rng.IntN(18)
	own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
	ctx, cancel := context.WithTimeout(context.Background(), stormWithin)
	finished := make(chan struct{})
	moved, last := 0, errors.New("none was asked for")
	go func() { // ends with ctx at the latest
		defer close(finished)
		m, err := r.list(ctx, own)
		if err != nil {
			last = err
			return
		}
		term := m.Term
		for range times {
			body := ""
			if k := own.IntN(len(m.Members) + 1); k < len(m.Members) {
				body = fmt.Sprintf(`{"node_id":%q}`, m.Members[k].ID)
			}
			reply, err := r.askAny(ctx, own, http.MethodPost, "leader", body)
			switch {
			case err != nil:
				last = err
			case reply.status != http.StatusOK:
				last = errors.New(reply.String())
			default:
				now, err := readMembers(reply)
				if err != nil {
					last = err
				} else if now.Term > term {
					moved, term = moved+1, now.Term
				}
			}
			if !pause(ctx, between(own, 0, 200*time.Millisecond)) {
				return
			}
		}
	}()
	return &fault{what: fmt.Sprintf("%d transfers in a row", times), lasts: time.Duration(times) * 100 * time.Millisecond,
		count: func() int { return moved },
		struck: func() error {
			<-finished
			if moved == 0 {
				return fmt.Errorf("the leadership never moved: %w", last)
			}
			return nil
		},
		mend: func() error {
			cancel()
			<-finished
			return nil
		}}, nil
}
