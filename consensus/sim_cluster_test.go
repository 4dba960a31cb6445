package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft-wal/types"
)

// simHeartbeat is the heartbeat timeout of simulations. In false time no processor is ever late, so it may be
// short; raft's own ticks of 10 to 20 ms, which nobody can set, are then not most of the work.
const simHeartbeat = 120 * time.Millisecond

// simPlan is what a seed does not decide.
type simPlan struct {
	// broken are the obligations that all nodes neglect.
	broken obligations
	// drift is by how much clocks may differ in rate from the true one, in either direction; wild is the
	// same for one node of the cluster, 0: none.
	drift, wild float64
	// rates are those of the first nodes' clocks, if set.
	rates []float64
	// suspended says that the nodes' clocks stand still while they are paused, as CLOCK_MONOTONIC does.
	suspended bool
	// lateCheck has readers ask for the lease after they have read, earlyCheck before the request arrives.
	lateCheck, earlyCheck bool
	// length is how long faults go on.
	length time.Duration
	// faults names those that strike; nil: all.
	faults []string
}

// simCluster is one simulation.
type simCluster struct {
	// Immutable.
	seed    uint64
	plan    simPlan
	root    string
	network *simNetwork
	check   *simCheck
	rnd     *rand.Rand // of the schedule alone
	began   time.Time
	fsync   time.Duration // how long one takes at most
	queue   int64         // Options.logQueueBytes
	log     io.Writer     // nil: nothing is logged

	known atomic.Bool // the nodes know the cluster's id
	quiet atomic.Bool // the writers rest
	work  sync.WaitGroup
	lives sync.WaitGroup // crashed lives that are being cleared away

	mu sync.Mutex
	// Guarded by mu.
	nodes map[string]*simNode
	count int
}

// simClock is a node's clock: it runs at a rate of its own, began at some other time, and may stand still.
type simClock struct {
	// Immutable.
	began  time.Time
	offset time.Duration
	rate   float64
	wall   time.Duration

	mu sync.Mutex
	// Guarded by mu.
	lost    time.Duration // how long it has stood still
	stopped time.Time     // since when it stands still; zero: it runs
}

func (c *simClock) Now() time.Time { return time.Now().Add(c.wall) }

func (c *simClock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.stopped.IsZero() {
		now = c.stopped
	}
	return c.offset + time.Duration(float64(now.Sub(c.began)-c.lost)*c.rate)
}

func (c *simClock) stand(still bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if still {
		c.stopped = time.Now()
	} else {
		c.lost += time.Since(c.stopped)
		c.stopped = time.Time{}
	}
}

// timers is how long a duration by this clock takes.
func (c *simClock) timers(d time.Duration) time.Duration { return time.Duration(float64(d) / c.rate) }

// simNode is a member, or one that was; it has one life after the other.
type simNode struct {
	// Immutable.
	c           *simCluster
	id, address string
	incarnation [16]byte
	clock       *simClock
	founders    []Member
	joined      *Joined

	// Guarded by c.mu.
	life  *simLife
	disk  *simDisk // of the next life, while there is none
	lived int
	gone  bool // was removed from the group
	// leaving says that its removal was asked for, with whatever outcome.
	leaving bool
}

// simLife is a process. Immutable but for dead; g is set before up is closed.
type simLife struct {
	node *simNode
	disk *simDisk
	m    *simMachine
	g    *Group
	up   chan struct{} // closed when Open has returned
	dead atomic.Bool   // it was killed: what its goroutines still do, nobody sees
}

// group returns the group once it runs.
func (l *simLife) group() *Group {
	if l == nil {
		return nil
	}
	select {
	case <-l.up:
		return l.g
	default:
		return nil
	}
}

// add makes a node that was never started.
func (c *simCluster) add() *simNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	n := &simNode{c: c, id: fmt.Sprintf("node-%d", c.count)}
	n.address = simAddress(n.id)
	n.incarnation = [16]byte{1, byte(c.count)}
	rate := 1 + c.plan.drift*(2*c.rnd.Float64()-1)
	if c.plan.wild != 0 && c.count == 1 {
		rate = 1 + c.plan.wild
	}
	if c.count <= len(c.plan.rates) {
		rate = c.plan.rates[c.count-1]
	}
	n.clock = &simClock{began: c.began, offset: time.Duration(c.rnd.Int64N(int64(1000 * time.Hour))), rate: rate, wall: time.Duration(c.rnd.Int64N(int64(time.Second)))}
	c.nodes[n.id] = n
	return n
}

// all returns the nodes in the order of their ids.
func (c *simCluster) all() (out []*simNode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
		out = append(out, c.nodes[id])
	}
	return out
}

// alive returns the lives whose groups run.
func (c *simCluster) alive() (out []*simLife) {
	for _, n := range c.all() {
		if l := n.running(); l.group() != nil {
			out = append(out, l)
		}
	}
	return out
}

func (n *simNode) running() *simLife {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.life
}

// leader returns the life that leads the newest term, or nil.
func (c *simCluster) leader() (leader *simLife) {
	var newest uint64
	for _, l := range c.alive() {
		if term, ok := l.g.LeaderTerm(); ok && term > newest {
			leader, newest = l, term
		}
	}
	return leader
}

// start begins a life. It does not wait for it.
func (n *simNode) start() {
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.life != nil {
		return
	}
	if n.disk == nil {
		var err error
		if n.disk, err = newSimDisk(n.dirLocked(), rand.New(rand.NewPCG(c.seed, uint64(n.incarnation[1]))), c.fsync); err != nil {
			c.check.fail("%v", err)
			return
		}
	}
	l := &simLife{node: n, disk: n.disk, up: make(chan struct{})}
	n.life, n.disk = l, nil
	l.m = newSimMachine(n.id, l.disk, c.check)
	o := Options{
		Dir: l.disk.logDir(), NodeID: n.id, Address: n.address, Incarnation: n.incarnation,
		Listener: c.network.listen(l), Founders: n.founders, Joined: n.joined,
		HeartbeatTimeout: simHeartbeat, SegmentBytes: 64 << 10, SnapshotInterval: time.Hour,
		TrailingLogs: 4, LogKeepBytes: -1, LogCacheBytes: 16 << 10, ProposalTimeout: 4 * simHeartbeat,
		WriteStallTimeout: time.Hour, logQueueBytes: c.queue,
		Cluster: func() ([16]byte, [16]byte, bool) {
			if c.known.Load() {
				return testClusterID, testHistoryID, true
			}
			return [16]byte{}, [16]byte{}, false
		},
		Fatal: func(err error) {
			if !l.dead.Load() {
				c.check.fail("%s stops: %v", n.id, err)
			}
		},
		Logger: slog.New(slog.DiscardHandler),
		clock:  n.clock, timers: n.clock.timers, rpcTimeout: 3 * simHeartbeat, broken: c.plan.broken,
		dial: func(ctx context.Context, address string) (net.Conn, error) { return c.network.dial(ctx, l, address) },
		vfs:  newSimFS(l.disk), meta: func(types.MetaStore) types.MetaStore { return simMeta{l.disk} },
	}
	if c.plan.broken.bound {
		o.LeaseDuration = 2 * simHeartbeat
	}
	if c.log != nil {
		o.Logger = slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.id)
	}
	c.lives.Go(func() { // owned by the cluster; ends with Open
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		g, err := Open(ctx, o, l.m)
		if errors.Is(err, ErrContradiction) && n.mayRefuse() {
			c.check.event("%s does not start: %v", n.id, err)
			return
		}
		if err != nil {
			if !l.dead.Load() {
				c.check.fail("%s does not start: %v", n.id, err)
			}
			return
		}
		l.g = g
		close(l.up)
	})
}

// mayRefuse tells whether the node has a reason not to start again: by its checkpoint it is no member any more.
func (n *simNode) mayRefuse() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.leaving
}

// dirLocked is a new directory for the node.
func (n *simNode) dirLocked() string {
	n.lived++
	return filepath.Join(n.c.root, fmt.Sprintf("%s.%d", n.id, n.lived))
}

// crash ends a life as a power cut does. First the network falls silent; then the disk is what it is; last,
// when nobody can notice any more, its goroutines are ended.
func (n *simNode) crash() {
	c := n.c
	c.mu.Lock()
	l := n.life
	if l.group() == nil {
		c.mu.Unlock()
		return // not there, or not started yet
	}
	l.dead.Store(true)
	c.check.count(func(s *simStats) {
		s.crashes++
		if l.g.logs.queue.first.Load() > 0 {
			s.tails++
		}
	})
	c.network.silence(l)
	disk, err := l.disk.image(n.dirLocked())
	n.life, n.disk = nil, disk
	c.mu.Unlock()
	if err != nil {
		c.check.fail("cannot take an image of %s: %v", n.id, err)
		return
	}
	c.clear(l)
}

// clear ends the goroutines of a life that is over.
func (c *simCluster) clear(l *simLife) {
	c.lives.Go(func() { // owned by the cluster; ends with Close
		m := l.g.Metrics()
		c.check.count(func(s *simStats) {
			s.elections += int(m.Elections.Load())
			s.installed += int(m.SnapshotsInstalled.Load())
			s.revoked += int(m.LeasesRevoked.Load())
			s.distrusted += int(m.ClocksDistrusted.Load())
		})
		l.g.leaderTerm.Store(0) // what Close goes by: there is nobody to hand over to
		l.disk.mu.Lock()
		hang := l.disk.hang
		l.disk.mu.Unlock()
		if hang != nil {
			<-hang // whoever stalled the disk lets it go
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*simHeartbeat)
		defer cancel()
		if err := l.g.Close(ctx); err != nil {
			c.check.fail("%s does not close: %v", l.node.id, err)
		}
	})
}

// write proposes one command to a node and waits for the outcome.
func (c *simCluster) write(l *simLife, data string) (acked bool) {
	type outcome struct {
		index uint64
		err   error
	}
	answered := make(chan outcome, 1)
	err := l.g.Propose([]byte(data), func(r any, err error) {
		o := outcome{err: err}
		if err == nil {
			o.index = r.(uint64)
			if !l.dead.Load() {
				c.check.acknowledged(o.index, data)
			}
		}
		answered <- o
	})
	if err == nil {
		o := <-answered
		if err = o.err; err == nil {
			return !l.dead.Load()
		}
	}
	switch {
	case l.dead.Load():
	case errors.Is(err, ErrNotProposed) == errors.Is(err, ErrUnknown):
		c.check.fail("the outcome of %q is neither or both: %v", data, err)
	case errors.Is(err, ErrNotProposed):
		c.check.notDone(data)
	default:
		c.check.count(func(s *simStats) { s.unknown++ })
	}
	return false
}

// read reads from a node, under its lease or confirmed, and checks what it sees.
func (c *simCluster) read(l *simLife, rnd *rand.Rand, byLease bool) {
	pause := func() {
		if rnd.IntN(4) == 0 { // a goroutine may be held up between the question and the read
			time.Sleep(time.Duration(rnd.Int64N(int64(simHeartbeat))))
		}
	}
	before := c.check.newestAcked()
	if byLease {
		var got uint64
		if c.plan.lateCheck {
			got = l.m.Applied()
			pause()
		}
		if !l.g.Lease() {
			return
		}
		if c.plan.earlyCheck {
			time.Sleep(time.Duration(rnd.Int64N(int64(2 * simHeartbeat))))
			before = c.check.newestAcked()
		}
		if !c.plan.lateCheck {
			pause()
			got = l.m.Applied()
		}
		if got < before && !l.dead.Load() {
			c.check.fail("%s holds a lease and reads the state of %d: %d was acknowledged before", l.node.id, got, before)
		}
		c.check.count(func(s *simStats) { s.leaseReads++ })
		return
	}
	answered := make(chan error, 1)
	l.g.ReadIndex(func(err error) { answered <- err })
	if err := <-answered; err != nil {
		c.check.count(func(s *simStats) { s.indexFailed++ })
		return
	}
	pause()
	if got := l.m.Applied(); got < before && !l.dead.Load() {
		c.check.fail("%s was confirmed and reads the state of %d: %d was acknowledged before", l.node.id, got, before)
	}
	c.check.count(func(s *simStats) { s.indexReads++ })
}

// clients write, read and watch the leases until stop is closed.
func (c *simCluster) clients(stop <-chan struct{}) {
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	pick := func(rnd *rand.Rand) *simLife {
		lives := c.alive()
		if len(lives) == 0 {
			return nil
		}
		if rnd.IntN(3) > 0 {
			var leaders []*simLife // there may be several that think so
			for _, l := range lives {
				if _, ok := l.g.LeaderTerm(); ok {
					leaders = append(leaders, l)
				}
			}
			if len(leaders) > 0 {
				return leaders[rnd.IntN(len(leaders))]
			}
		}
		return lives[rnd.IntN(len(lives))]
	}
	for w := range 3 {
		rnd := rand.New(rand.NewPCG(c.seed, 100+uint64(w)))
		c.work.Go(func() { // a writer; ends with stop
			for i := 0; !stopped(); i++ {
				if l := pick(rnd); l != nil && !c.quiet.Load() {
					c.write(l, fmt.Sprintf("w%d-%d", w, i))
				}
				time.Sleep(time.Duration(rnd.Int64N(int64(simHeartbeat) / 12)))
			}
		})
	}
	for r := range 4 {
		rnd := rand.New(rand.NewPCG(c.seed, 200+uint64(r)))
		c.work.Go(func() { // a reader; ends with stop
			for !stopped() {
				if l := pick(rnd); l != nil {
					c.read(l, rnd, r < 2)
				}
				time.Sleep(time.Duration(rnd.Int64N(int64(simHeartbeat) / 20)))
			}
		})
	}
	rnd := rand.New(rand.NewPCG(c.seed, 300))
	c.work.Go(func() { // the watcher; ends with stop
		for !stopped() {
			var holders []string
			for _, l := range c.alive() {
				// A lone voter needs no lease, and its word is not one.
				if l.g.Lease() && !l.dead.Load() {
					holders = append(holders, l.node.id)
				}
			}
			if len(holders) > 1 {
				c.check.fail("%v hold leases at once", holders)
			} else if len(holders) == 1 {
				c.check.count(func(s *simStats) { s.holds++ })
			}
			time.Sleep(time.Duration(rnd.Int64N(int64(simHeartbeat) / 20)))
		}
	})
}

// simRoot is where simulated disks lie: in memory if possible.
func simRoot() string {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		return memory
	}
	return os.TempDir()
}
