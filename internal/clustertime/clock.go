package clustertime

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/internal/clock"
)

// All times are in microseconds. A boot time is CLOCK_BOOTTIME of the node that uses the Clock.
const (
	second = int64(time.Second / time.Microsecond)
	// million is what parts in a million are of.
	million = 1_000_000

	// SlewNear and SlewFar are how fast a leader moves the cluster's time towards the median of the wall clocks, in
	// parts in a million: while it is off by less than slewFarFrom, which bears twice the error of a bad quartz, and
	// beyond.
	SlewNear    = 500
	SlewFar     = 10_000
	slewFarFrom = second
	// SlewFollow is how fast a node follows what its leader tells: what the leader's own slewing and honest quartzes
	// take, and little more, so that a leader whose boot clock is wrong does not take the others along.
	SlewFollow = SlewFar + 2*SlewNear
	// slewLasts is for how long a slew goes on without being renewed.
	slewLasts = second

	// apartMax is how far a cluster clock may be from the median of the voters' before it gives in. A leader that slews
	// is ahead of what the others told two seconds ago by a fifth of this.
	apartMax = second / 10
	// OffMax is how much a leader's clock may have given in within offLasts before the leader counts as off, and how far a
	// stamp may be ahead of the median.
	OffMax   = second
	offLasts = 10 * second
	// toldFresh is the age up to which what another node told of its cluster clock is compared with this one's, and
	// toldKept the age up to which it bounds stamps.
	toldFresh = 2 * second
	toldKept  = 10 * second
	// passMax is the most that counts as passed between two calls, which are fractions of a second apart: more may be a
	// boot clock that leapt.
	passMax = 2 * second
	// wallFresh is how long another node's wall clock counts for the median after it was read, and tripMax how long
	// that may have taken.
	wallFresh = 10 * second
	tripMax   = 2 * second
	// beginWait is for how long a node waits for the cluster clocks of a majority before it begins with those that it
	// knows, and a leader to which nobody tells one for the wall clocks of a majority.
	beginWait = 2 * second
	// timeMax is beyond every time that can be meant, the year 11000, and far from where sums overflow.
	timeMax = 1 << 58
	// peersMax bounds the nodes that are remembered: far more than a cluster has.
	peersMax = 64
)

// Source tells what a cluster clock began with.
type Source string

// The sources.
const (
	// SourceNone: it has not begun.
	SourceNone Source = ""
	// SourceLearned: with what other nodes told.
	SourceLearned Source = "learned"
	// SourceMedian: with the median of the voters' wall clocks.
	SourceMedian Source = "median"
	// SourceWall: with this node's own wall clock.
	SourceWall Source = "wall"
)

// Reading is what this node's clocks showed at one moment.
type Reading struct{ Boot, Wall int64 }

// Read reads both clocks.
func Read(c clock.Clock) Reading {
	before := c.Boot()
	wall := c.Now().UnixMicro()
	return Reading{Boot: ((before + c.Boot()) / 2).Microseconds(), Wall: wall}
}

// Sample is what another node told.
type Sample struct {
	// Peer is the node, Incarnation its data directory.
	Peer        string
	Incarnation [16]byte
	// Sent and Received are this node's boot times around the question and the answer.
	Sent, Received int64
	// Wall is its wall clock, Time its cluster clock (0: it has none), both read between Sent and Received.
	Wall, Time int64
	// Term is the term that it leads, 0 if it does not.
	Term uint64
}

// peer is what another node told last.
type peer struct {
	incarnation    [16]byte
	time           int64 // 0: unknown
	sent, received int64
	passed         int64 // Clock.passed when it was received

	wall   int64 // its wall clock less this node's boot time
	wallAt int64 // when; math.MinInt64: never
}

// Clock is one node's view of the cluster's time. Its methods may be called by any goroutine.
type Clock struct {
	// Immutable.
	self string
	// begun is Begun. Written under mu, read by any goroutine.
	begun atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	voters []string
	peers  map[string]*peer
	source Source
	at     int64 // the latest boot time seen
	passed int64 // the sum of what has passed between calls, each at most passMax

	// The cluster's time at boot time b is b + offset, and as much of slew as slewing since slewFrom gives.
	offset   int64
	slew     int64
	slewFrom int64
	slewPPM  int64

	leapAt   int64  // when this node's boot clock, as the leader's, leapt, and nobody has answered since; math.MinInt64: no
	leads    uint64 // the term that this node leads; 0: none
	term     uint64 // the newest term that anybody was heard to lead
	logTime  int64  // of the last entry of the log, as last told
	awaiting int64  // since when this node, as the leader, has waited for wall clocks; math.MinInt64: it does not
	offBy    int64  // by how much this node, as the leader, has given in since offSince
	offSince int64
	offAt    int64 // when that was last too much; math.MinInt64: never
	stamped  int64 // the last stamp
}

// New returns the Clock of a node that knows nothing yet.
func New(self string) *Clock {
	return &Clock{self: self, peers: make(map[string]*peer), at: math.MinInt64, leapAt: math.MinInt64, awaiting: math.MinInt64, offAt: math.MinInt64}
}

// pass notes that it is boot time b, or later, and returns the latest. REQUIRES: mu held.
func (c *Clock) pass(b int64) int64 {
	if c.at == math.MinInt64 {
		c.at = b
	}
	if b > c.at {
		if b-c.at > passMax && c.leads != 0 && len(c.voters) > 1 && c.source != SourceNone {
			c.leapAt = b
			c.begun.Store(false)
		} else {
			c.passed += min(b-c.at, passMax)
		}
		c.at = b
	}
	return c.at
}

// reassure ends the doubt of a leader whose boot clock has leapt: it was stopped for a while, and the clock is right, or
// it was not, which others can tell, if they answer soon. REQUIRES: mu held.
func (c *Clock) reassure(b int64) {
	if c.leapAt == math.MinInt64 {
		return
	}
	asked := 0
	for _, id := range c.voters {
		if p := c.peers[id]; id == c.self || p != nil && p.sent >= c.leapAt {
			asked++
		}
	}
	if asked > len(c.voters)/2 || c.leads == 0 || b-c.leapAt >= beginWait {
		c.leapAt = math.MinInt64
		c.begun.Store(true)
	}
}

// slewed is how much of the slew is done at boot time b. REQUIRES: mu held.
func (c *Clock) slewed(b int64) int64 {
	done := min(max(b-c.slewFrom, 0), slewLasts) * c.slewPPM / million
	return max(-done, min(done, c.slew))
}

// now is the cluster's time at boot time b. REQUIRES: mu held; it has begun.
func (c *Clock) now(b int64) int64 { return b + c.offset + c.slewed(b) }

// aim begins to move the cluster's time by d. REQUIRES: mu held; it has begun.
func (c *Clock) aim(b, d, ppm int64) {
	c.offset += c.slewed(b)
	c.slew, c.slewFrom, c.slewPPM = d, b, ppm
}

// set makes the cluster's time now at boot time b. REQUIRES: mu held.
func (c *Clock) set(b, now int64) {
	c.offset, c.slew = now-b, 0
}

// start is set for a clock that has not begun. REQUIRES: mu held.
func (c *Clock) start(b, now int64, from Source) {
	c.set(b, now)
	c.source = from
	c.begun.Store(true)
}

// Hear takes what another node told.
func (c *Clock) Hear(s Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.pass(s.Received)
	if s.Time < 0 || s.Time > timeMax {
		s.Time = 0
	}
	p := c.peers[s.Peer]
	if p == nil || p.incarnation != s.Incarnation {
		if p == nil && len(c.peers) >= peersMax {
			clear(c.peers) // ids that came and went; those that are there are heard again soon
		}
		p = &peer{incarnation: s.Incarnation, wallAt: math.MinInt64}
		c.peers[s.Peer] = p
	}
	p.time, p.sent, p.received, p.passed = s.Time, s.Sent, s.Received, c.passed
	if s.Received-s.Sent < tripMax {
		p.wall, p.wallAt = s.Wall-(s.Sent+s.Received)/2, s.Received
	}
	c.term = max(c.term, s.Term)
	switch {
	case c.leads != 0 && c.leads == c.term:
	case c.source == SourceNone:
		c.learn(b)
	case s.Term != 0 && s.Term == c.term && s.Time != 0:
		// The leader showed s.Time somewhen between s.Sent and s.Received; so now it shows what is between these two.
		// Every question narrows the place down: what is within its bounds is not moved.
		now := c.now(b)
		c.aim(b, max(s.Time+b-s.Received, min(now, s.Time+b-s.Sent))-now, SlewFollow)
	}
	c.judge(b)
	c.reassure(b)
}

// learn begins with what other voters have told: with the median where a majority has told, since one of them, even the
// leader, may be wrong; after a while with what there is, if a majority was heard. One that leads can't wait. REQUIRES:
// mu held; it has not begun.
func (c *Clock) learn(b int64) {
	low, high, n := c.between(b)
	if n == 0 || high-low >= tripMax {
		return
	}
	if c.awaiting == math.MinInt64 {
		c.awaiting = c.passed
	}
	if n > len(c.voters)/2 || c.leads != 0 || c.passed-c.awaiting >= beginWait && c.heard(b) {
		c.start(b, (low+high)/2, SourceLearned)
	}
}

// Tick goes on with what is done in time, and is called several times a second. voters are those of the newest
// configuration, leads is the term that this node leads (0: none), logTime the time of the last entry of the log.
func (c *Clock) Tick(r Reading, voters []string, leads uint64, logTime int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.pass(r.Boot)
	c.voters, c.leads, c.term, c.logTime = voters, leads, max(c.term, leads), logTime
	if c.source == SourceNone {
		c.learn(b)
	}
	if leads != 0 && c.source == SourceNone {
		if c.awaiting == math.MinInt64 {
			c.awaiting = c.passed
		}
		c.begin(b, r, c.passed-c.awaiting >= beginWait)
	}
	c.judge(b)
	c.reassure(b)
	if leads == 0 || c.source == SourceNone {
		return
	}
	if m, sure, _ := c.walls(b, r); sure {
		d := b + m - c.now(b)
		if max(d, -d) < slewFarFrom {
			c.aim(b, d, SlewNear)
		} else {
			c.aim(b, d, SlewFar)
		}
	}
}

// begin lets a leader to which nobody has told anything begin with wall clocks. Last: it waits no longer. REQUIRES: mu
// held; it has not begun.
func (c *Clock) begin(b int64, r Reading, last bool) {
	now, from := r.Wall, SourceWall
	m, sure, n := c.walls(b, r)
	if !sure && !last {
		return
	}
	if n > len(c.voters)/2 && n > 1 {
		now, from = b+m, SourceMedian
	}
	// Log time never goes back. Were the clock to begin below it, log time would stand still until the clock has come
	// there, which may be hours, instead of going on a little slower.
	c.start(b, max(now, c.logTime), from)
}

// judge compares this node's clock with the median of the voters', and gives in if it is apart. A node steps to the median
// and never to its leader: a leader that runs too fast would take the others along, one step each in turn. REQUIRES: mu
// held.
func (c *Clock) judge(b int64) {
	if c.source == SourceNone {
		return
	}
	now := c.now(b)
	low, high, ok := c.median(b)
	if !ok || now <= high+apartMax && now >= low-apartMax {
		return
	}
	to := max(low, min(now, high))
	c.set(b, to)
	if c.leads == 0 {
		return
	}
	if c.passed-c.offSince > offLasts {
		c.offBy, c.offSince = 0, c.passed
	}
	if c.offBy += max(now-to, to-now); c.offBy > OffMax {
		c.offAt = c.passed
	}
}

// Begun tells whether this node knows the cluster's time, and that its own clock has not just leapt. A leader takes no
// writes before. It costs one atomic load.
func (c *Clock) Begun() bool { return c.begun.Load() }

// Tell returns what others are told: this node's view of the cluster's time, 0 while it has none, and the term that it
// leads.
func (c *Clock) Tell(boot int64) (now int64, leads uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.source == SourceNone {
		return 0, 0
	}
	return c.now(c.pass(boot)), c.leads
}

// Stamp returns the time for an entry of the log that this node is about to propose. It never goes back, and is not
// further ahead of the median of the voters' cluster clocks than OffMax if a majority of them is known. A clock that has
// not begun does so with what there is.
func (c *Clock) Stamp(r Reading) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.pass(r.Boot)
	if c.source == SourceNone {
		if c.learn(b); c.source == SourceNone {
			c.begin(b, r, true)
		}
	}
	now := c.now(b)
	if most, ok := c.ceiling(b); ok {
		now = min(now, most)
	}
	c.stamped = max(c.stamped, now)
	return c.stamped
}

// Off tells whether this node led and was found off the median of the voters' cluster clocks a short while ago: its boot
// clock does not run as those of the others.
func (c *Clock) Off() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offAt != math.MinInt64 && c.passed-c.offAt < offLasts
}

// Status is for people.
type Status struct {
	Source Source
	// Offset is by how much the cluster's time is ahead of this node's wall clock.
	Offset int64
	// Skew is by how much this node's view of the cluster's time is ahead of the median of the voters'; it means
	// nothing unless SkewKnown.
	Skew      int64
	SkewKnown bool
}

// Status describes the clock.
func (c *Clock) Status(r Reading) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Status{Source: c.source}
	if c.source == SourceNone {
		return st
	}
	b := c.pass(r.Boot)
	now := c.now(b)
	st.Offset = now - b - (r.Wall - r.Boot)
	low, high, ok := c.median(b)
	st.Skew, st.SkewKnown = now-max(low, min(now, high)), ok
	return st
}

// WallSkew returns by how much this node's wall clock is ahead of the median of the voters' (its own included if it is
// one); negative: behind. It is not ok while fewer than a majority of them were heard in the last 10 s. The error is at
// most half of the time that a message takes there and back.
func (c *Clock) WallSkew(r Reading) (skew int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.wallOffsets(c.pass(r.Boot), r)
	n := len(all)
	if n <= len(c.voters)/2 {
		return 0, false
	}
	return r.Wall - r.Boot - (all[(n-1)/2]+all[n/2])/2, true
}
