package consensus

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// simFault is one kind of fault. strike returns when it is over.
type simFault struct {
	name   string
	strike func(c *simCluster)
}

// simFaults are all kinds. Those that follow a script do what random ones do too seldom: they bring a
// cluster into the one situation in which an obligation of the lease matters.
var simFaults = []simFault{
	{"rest", func(c *simCluster) { c.sleep(0, 4) }},
	{"crash", func(c *simCluster) { c.crashOne(c.victim()) }},
	{"crash all", func(c *simCluster) {
		for _, n := range c.all() {
			n.crash()
		}
		c.sleep(0, 2)
		c.startAll()
	}},
	{"cut off", func(c *simCluster) { c.during(c.isolate(c.victim(), true, true), 0, 5) }},
	{"deaf", func(c *simCluster) { c.during(c.isolate(c.victim(), true, false), 0, 5) }},
	{"mute", func(c *simCluster) { c.during(c.isolate(c.victim(), false, true), 0, 5) }},
	{"one link", func(c *simCluster) {
		a, b := c.victim(), c.anyNode()
		if a != b {
			c.during(c.cutLink(a.id, b.id), 0, 5)
		}
	}},
	{"flapping", func(c *simCluster) {
		n := c.victim()
		for range 3 + c.rnd.IntN(6) {
			c.during(c.isolate(n, c.rnd.IntN(2) == 0, true), 0, 1)
			c.sleep(0, 1)
		}
	}},
	{"two halves", func(c *simCluster) {
		nodes := c.all()
		c.rnd.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		var heal []func()
		k := len(nodes)/2 + c.rnd.IntN(2)
		for _, a := range nodes[:k] {
			for _, b := range nodes[k:] {
				heal = append(heal, c.cutLink(a.id, b.id), c.cutLink(b.id, a.id))
			}
		}
		c.during(func() {
			for _, f := range heal {
				f()
			}
		}, 0, 5)
	}},
	{"pause", func(c *simCluster) { c.during(c.pause(c.victim()), 0, 5) }},
	{"bad weather", func(c *simCluster) {
		c.network.weather(time.Millisecond, simHeartbeat/4, 0.1)
		c.sleep(2, 6)
		c.network.weather(100*time.Microsecond, 2*time.Millisecond, 0)
	}},
	{"transfer", func(c *simCluster) { c.transfer() }},
	{"transfer and cut", func(c *simCluster) {
		l := c.leader()
		if l == nil {
			return
		}
		c.transfer()
		// Until the order to take over is on its way, or about.
		time.Sleep(time.Duration(c.rnd.Int64N(int64(simHeartbeat) / 12)))
		c.during(c.isolate(l.node, true, c.rnd.IntN(4) == 0), 1, 4)
	}},
	{"snapshot", func(c *simCluster) {
		for _, l := range c.alive() {
			c.work.Go(func() { // ends with its context
				ctx, cancel := context.WithTimeout(context.Background(), 5*simHeartbeat)
				defer cancel()
				l.disk.promptly(func() {
					if l.g.Snapshot(ctx) == nil {
						c.check.count(func(s *simStats) { s.snapshots++ })
					}
				})
			})
		}
	}},
	{"behind", func(c *simCluster) { // by more than the log that is kept
		n := c.victim()
		n.crash()
		c.sleep(1, 3)
		for _, l := range c.alive() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*simHeartbeat)
			l.disk.promptly(func() {
				if l.g.Snapshot(ctx) == nil {
					c.check.count(func(s *simStats) { s.snapshots++ })
				}
			})
			cancel()
		}
		n.start()
	}},
	{"add", func(c *simCluster) { c.addMember() }},
	{"remove", func(c *simCluster) { c.removeMember() }},

	// A voter forgets its promise in a restart while another one, which the leader does not reach, stands.
	{"amnesia", func(c *simCluster) {
		l, rest := c.cast()
		if l == nil {
			return
		}
		// Nobody writes meanwhile, or the candidate would lack what the others have.
		c.quiet.Store(true)
		time.Sleep(simHeartbeat / 2)
		candidate := rest[0]
		alone := c.isolate(candidate.node, true, true)
		time.Sleep(simHeartbeat*5/4 + time.Duration(c.rnd.Int64N(int64(simHeartbeat))))
		cut := c.isolate(l.node, true, true)
		for _, other := range rest[1:] { // all that acknowledged to the leader
			other.node.crash()
			other.node.start()
		}
		alone()
		c.quiet.Store(false)
		c.check.event("%s is forgotten, %s stands", l.node.id, candidate.node.id)
		c.during(cut, 1, 4)
	}},
	// Answers to heartbeats come late, all at once, and then nothing comes any more.
	{"late answers", func(c *simCluster) {
		l, rest := c.cast()
		if l == nil {
			return
		}
		var late []func()
		for _, o := range rest {
			late = append(late, c.cutLink(o.node.id, l.node.id))
		}
		time.Sleep(simHeartbeat/2 + time.Duration(c.rnd.Int64N(int64(simHeartbeat)*2/5)))
		for _, o := range rest { // what comes now finds nobody who would hear it
			late = append(late, c.cutLink(l.node.id, o.node.id))
		}
		for _, f := range late[:len(rest)] {
			f()
		}
		time.Sleep(3 * time.Millisecond)
		for _, f := range late[len(rest):] {
			f()
		}
		c.during(c.isolate(l.node, true, true), 1, 4)
	}},
	// The leader's disk hangs, so that it cannot step down, and it is cut off.
	{"hang and cut", func(c *simCluster) {
		l := c.leader()
		if l == nil {
			return
		}
		release := l.disk.stall()
		c.sleep(0, 1)
		heal := c.isolate(l.node, true, true)
		c.during(func() { release(); heal() }, 2, 5)
	}},
	// The leader's disk hangs while its followers store what it sends; it loses all that, and at times is deposed before.
	{"lose the tail", func(c *simCluster) {
		l := c.leader()
		if l == nil {
			return
		}
		c.check.event("the disk of %s hangs", l.node.id)
		release := l.disk.stall()
		c.sleep(0, 1)
		if c.rnd.IntN(2) == 0 {
			heal := c.isolate(l.node, true, true)
			c.sleep(1, 3)
			heal()
			c.sleep(0, 2)
		}
		if l.node.running() == l {
			c.check.event("crash %s", l.node.id)
			l.node.crash()
		}
		release()
		c.sleep(0, 3)
		l.node.start()
	}},
	// The one that leads next has just heard of what was acknowledged, but not that it is committed.
	{"crash the leader", func(c *simCluster) {
		if l := c.leader(); l != nil {
			c.crashOne(l.node)
		}
	}},
}

// sleep waits for from to to heartbeat timeouts.
func (c *simCluster) sleep(from, to int) {
	time.Sleep(time.Duration(from)*simHeartbeat + time.Duration(c.rnd.Int64N(int64(to-from)*int64(simHeartbeat))))
}

// during leaves a fault in place for a while. Others may strike meanwhile.
func (c *simCluster) during(heal func(), from, to int) {
	d := time.Duration(from)*simHeartbeat + time.Duration(c.rnd.Int64N(int64(to-from)*int64(simHeartbeat)))
	if c.rnd.IntN(3) == 0 {
		c.work.Go(func() { // ends with the fault
			time.Sleep(d)
			heal()
		})
		return
	}
	time.Sleep(d)
	heal()
}

// anyNode draws a node that is, or is to become, a member.
func (c *simCluster) anyNode() *simNode {
	var there []*simNode
	for _, n := range c.all() {
		if !n.isGone() {
			there = append(there, n)
		}
	}
	return there[c.rnd.IntN(len(there))]
}

func (n *simNode) isGone() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.gone
}

// victim draws a node, half of the time the leader.
func (c *simCluster) victim() *simNode {
	if l := c.leader(); l != nil && c.rnd.IntN(2) == 0 {
		return l.node
	}
	return c.anyNode()
}

// cast returns the leader and the other voters that run, at least two, shuffled.
func (c *simCluster) cast() (leader *simLife, rest []*simLife) {
	if leader = c.leader(); leader == nil {
		return nil, nil
	}
	voters := map[string]bool{}
	for _, m := range leader.g.members() {
		voters[m.ID] = m.Voter
	}
	for _, l := range c.alive() {
		if l != leader && voters[l.node.id] {
			rest = append(rest, l)
		}
	}
	if len(rest) < 2 {
		return nil, nil
	}
	c.rnd.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return leader, rest
}

// cutLink cuts one direction of a link; the function mends it. After a long cut connections may break.
func (c *simCluster) cutLink(source, target string) (heal func()) {
	c.network.cut(source, target, true)
	c.check.event("cut %s to %s", source, target)
	began, breaks := time.Now(), c.rnd.IntN(2) == 0
	return func() {
		if breaks && time.Since(began) > simHeartbeat/2 {
			c.network.broken(source, target)
		}
		c.network.cut(source, target, false)
		c.check.event("mended %s to %s", source, target)
	}
}

// isolate cuts a node off in one or both directions.
func (c *simCluster) isolate(n *simNode, in, out bool) (heal func()) {
	var heals []func()
	for _, o := range c.all() {
		if o == n {
			continue
		}
		if in {
			heals = append(heals, c.cutLink(o.id, n.id))
		}
		if out {
			heals = append(heals, c.cutLink(n.id, o.id))
		}
	}
	return func() {
		for _, f := range heals {
			f()
		}
	}
}

// pause stops a node as SIGSTOP does, as far as that can be played: nothing gets in or out of it, and its
// disk hangs, which holds raft's main goroutine up at the next write, on a leader at the one for which the queue has no room.
func (c *simCluster) pause(n *simNode) (resume func()) {
	c.check.event("pause %s", n.id)
	heal := c.isolate(n, true, true)
	l := n.running()
	release := func() {}
	if l.group() != nil {
		release = l.disk.stall()
		for i := range 2 { // something to hang at, in two appends
			c.work.Go(func() { // ends with the proposal
				time.Sleep(time.Duration(i) * time.Millisecond)
				c.write(l, fmt.Sprintf("pause-%s-%d", n.id, time.Since(c.began)))
			})
		}
	}
	if c.plan.suspended {
		n.clock.stand(true)
	}
	return func() {
		if c.plan.suspended {
			n.clock.stand(false)
		}
		// What is read now was asked for before.
		time.Sleep(time.Millisecond)
		release()
		heal()
		c.check.event("resume %s", n.id)
	}
}

func (c *simCluster) crashOne(n *simNode) {
	c.check.event("crash %s", n.id)
	n.crash()
	c.sleep(0, 5)
	n.start()
	c.check.event("start %s", n.id)
}

func (c *simCluster) startAll() {
	for _, n := range c.all() {
		if !n.isGone() {
			n.start()
		}
	}
}

// transfer asks for a transfer of leadership and does not wait for it.
func (c *simCluster) transfer() {
	l, rest := c.cast()
	if l == nil {
		return
	}
	id := rest[0].node.id
	c.check.event("transfer from %s to %s", l.node.id, id)
	c.work.Go(func() { // ends with its context
		ctx, cancel := context.WithTimeout(context.Background(), 4*simHeartbeat)
		defer cancel()
		if err := l.g.Transfer(ctx, id); err != nil {
			c.check.event("transfer from %s to %s: %v", l.node.id, id, err)
		}
	})
}

// addMember lets a new node join and makes it a voter.
func (c *simCluster) addMember() {
	l := c.leader()
	if l == nil || len(l.g.members()) >= 5 {
		return
	}
	n := c.add()
	n.joined = &Joined{Cluster: testClusterID, History: testHistoryID}
	for _, o := range c.all() {
		if o != n && !o.isGone() {
			n.joined.Peers = append(n.joined.Peers, Peer{ID: o.id, Address: o.address, Incarnation: o.incarnation})
		}
	}
	c.check.event("add %s", n.id)
	c.work.Go(func() { // ends with its context
		ctx, cancel := context.WithTimeout(context.Background(), 20*simHeartbeat)
		defer cancel()
		if err := l.g.AddLearner(ctx, n.id, n.address); err != nil {
			c.check.event("add %s: %v", n.id, err)
		}
		n.start()
		for ctx.Err() == nil {
			time.Sleep(simHeartbeat / 2)
			if l := c.leader(); l != nil {
				err := l.g.Promote(ctx, n.id)
				c.check.event("promote %s: %v", n.id, err)
				if err == nil {
					return
				}
			}
		}
	})
}

// removeMember takes a voter out, the leader itself at times, if three are left. It waits for the outcome.
func (c *simCluster) removeMember() {
	l, rest := c.cast()
	if l == nil || len(rest) < 3 {
		return
	}
	id := rest[0].node.id
	if c.rnd.IntN(4) == 0 {
		id = l.node.id
	}
	c.check.event("remove %s", id)
	c.mu.Lock()
	c.nodes[id].leaving = true
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*simHeartbeat)
	defer cancel()
	err := l.g.Remove(ctx, id)
	c.check.event("remove %s: %v", id, err)
	if err != nil {
		return
	}
	c.mu.Lock()
	n := c.nodes[id]
	n.gone = true
	c.mu.Unlock()
	n.crash()
}

// faults lets faults strike, as the seed says.
func (c *simCluster) faults() {
	var kinds []simFault
	for _, f := range simFaults {
		if c.plan.faults == nil || slices.Contains(c.plan.faults, f.name) {
			kinds = append(kinds, f)
		}
	}
	for time.Since(c.began) < c.plan.length && !c.check.failed() {
		f := kinds[c.rnd.IntN(len(kinds))]
		c.check.event("-- %s", f.name)
		c.check.count(func(s *simStats) { s.faults++ })
		f.strike(c)
		c.sleep(0, 2)
	}
}

// mend ends what faults left, and checks that the cluster comes back: somebody leads, a write is
// acknowledged, reads are served, and all members come to hold the same.
func (c *simCluster) mend() {
	c.check.event("-- mend")
	c.network.weather(100*time.Microsecond, 2*time.Millisecond, 0)
	c.startAll()
	healed := time.Now()
	const patience = 150 * simHeartbeat
	wait := func(what string, f func() bool) bool {
		for !f() {
			if time.Since(healed) > patience {
				c.check.fail("%v after everything was mended: not yet %s: %s", patience, what, c.describe())
				return false
			}
			if c.check.failed() {
				return false
			}
			time.Sleep(simHeartbeat / 20)
		}
		return true
	}
	n := 0
	if !wait("is a write acknowledged", func() bool {
		l := c.leader()
		n++
		return l != nil && c.write(l, fmt.Sprintf("last-%d", n))
	}) {
		return
	}
	if !wait("does the leader serve reads", func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		answered := make(chan error, 1)
		l.g.ReadIndex(func(err error) { answered <- err })
		return <-answered == nil
	}) {
		return
	}
	want := c.check.newestAcked()
	var members []Member
	if !wait("have all members everything", func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		members = l.g.members()
		for _, m := range members {
			c.mu.Lock()
			life := c.nodes[m.ID].life
			c.mu.Unlock()
			if life.group() == nil || life.m.Applied() < want {
				return false
			}
		}
		return true
	}) {
		return
	}
	c.check.count(func(s *simStats) { s.healed = time.Since(healed) })
	// What was acknowledged is in each state, as it was acknowledged.
	c.check.mu.Lock()
	acked := maps.Clone(c.check.acked)
	c.check.mu.Unlock()
	for _, m := range members {
		c.mu.Lock()
		life := c.nodes[m.ID].life
		c.mu.Unlock()
		have := map[uint64]string{}
		for _, e := range life.m.snapshot().entries {
			have[e.index] = e.data
		}
		for index, data := range acked {
			if index <= want && have[index] != data {
				c.check.fail("%s has %q at %d, where %q was acknowledged", m.ID, have[index], index, data)
			}
		}
	}
}

// describe tells how the nodes stand.
func (c *simCluster) describe() (out string) {
	for _, n := range c.all() {
		l := n.running()
		switch {
		case n.isGone():
			out += fmt.Sprintf("\n  %s: removed", n.id)
		case l == nil:
			out += fmt.Sprintf("\n  %s: down", n.id)
		case l.group() == nil:
			out += fmt.Sprintf("\n  %s: starting", n.id)
		default:
			out += fmt.Sprintf("\n  %s: %+v; overrated %v", n.id, l.g.Status(), l.g.logs.overrated())
		}
	}
	return out
}
