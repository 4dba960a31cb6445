package consensus

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"kvstore/internal/clock"
)

// A lease counts on two clocks: this node's, by which it ends, and a follower's, by which the promise not to
// vote ends. Only their rates matter. Each pulse tells when, by this node's clock, another node's clock showed
// what; two pulses bound the rate between them from both sides, whatever the network did.

const (
	// clockWindow is how far back two pulses may lie apart, and how long a rate that was measured counts.
	clockWindow = time.Minute
	// clockMend is for how long a clock that was found too fast must run well before it counts again.
	clockMend = 10 * time.Second
	// clockSamplesMax bounds the pulses that are kept of one node; the oldest go first. A minute of pulses every
	// 300 ms, the default, is 200.
	clockSamplesMax = 256
)

// clockSample says that another clock showed theirs at an instant between before and after by this node's.
type clockSample struct{ before, after, theirs int64 }

// clockRate is what is known of another clock's rate. All times are this node's boot time in nanoseconds.
type clockRate struct {
	incarnation [16]byte
	samples     []clockSample // oldest first
	fast        float64       // by how much it was surely too fast at badAt, at least
	badAt       int64         // when it last was; math.MinInt64: never
	goodAt      int64         // when it last was surely slow enough; math.MinInt64: never
}

func newClockRate(incarnation [16]byte) *clockRate {
	return &clockRate{incarnation: incarnation, badAt: math.MinInt64, goodAt: math.MinInt64}
}

// clockLimits says how fast another clock may be.
type clockLimits struct {
	// span is the least time over which a rate is judged: that of the promise itself. Over less than that a
	// clock may be ahead by any factor and yet shorten the promise by little.
	span int64
	// budget is how much faster than this node's clock, surely, is too fast. bound is how much faster the
	// lease can bear; between them lies room for the error of measurement.
	budget, bound float64
}

// add takes a sample and judges the rate by all pairs that it makes with older ones.
func (r *clockRate) add(s clockSample, l clockLimits) {
	if n := len(r.samples); n > 0 && s.theirs < r.samples[n-1].theirs {
		// That machine was booted anew: another clock, for all that is known.
		r.samples, r.goodAt = nil, math.MinInt64
	}
	r.samples = slices.DeleteFunc(r.samples, func(o clockSample) bool { return s.after-o.before > int64(clockWindow) })
	low, high := 0.0, math.Inf(1)
	for _, o := range r.samples {
		atLeast := s.before - o.after
		if atLeast < l.span {
			continue
		}
		theirs := float64(s.theirs - o.theirs)
		low = max(low, theirs/float64(s.after-o.before))
		high = min(high, theirs/float64(atLeast))
	}
	switch {
	case low > 1+l.budget:
		r.fast, r.badAt = low-1, s.after
		// What is found next is to be the clock's doing from now on.
		r.samples = r.samples[:0]
	case high < 1+l.bound:
		r.goodAt = s.after
	}
	if len(r.samples) == clockSamplesMax {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
	r.samples = append(r.samples, s)
}

// tooFast tells whether the clock was found too fast and has not run well for long enough since.
func (r *clockRate) tooFast(now int64) bool {
	return r.badAt != math.MinInt64 && (now-r.badAt < int64(clockMend) || r.goodAt < r.badAt)
}

// measured tells whether the clock was lately found slow enough.
func (r *clockRate) measured(now int64) bool {
	return r.goodAt != math.MinInt64 && now-r.goodAt <= int64(clockWindow)
}

// trusted tells whether a lease may count on the clock.
func (r *clockRate) trusted(now int64) bool { return !r.tooFast(now) && r.measured(now) }

// clockWatch compares the clocks of the other nodes with this one's, and this one's with the oscillator below
// it. Wall clocks are no reason to doubt a lease.
type clockWatch struct {
	// Immutable.
	clock  clock.Clock
	limits clockLimits
	blind  bool // every clock is trusted; tests

	mu sync.Mutex
	// Guarded by mu.
	peers map[string]*clockRate
	own   *clockRate // the oscillator
}

// newClockWatch allows a follower's clock to be faster by half of what the lease leaves of the heartbeat
// timeout.
func newClockWatch(c clock.Clock, heartbeat, lease time.Duration) *clockWatch {
	w := &clockWatch{clock: c, peers: make(map[string]*clockRate), own: newClockRate([16]byte{})}
	if lease > 0 {
		w.limits = clockLimits{
			span:   int64(heartbeat),
			budget: (1 - float64(lease)/float64(heartbeat)) / 2,
			bound:  float64(heartbeat)/float64(lease) - 1,
		}
	}
	return w
}

// note takes a pulse. It returns true if it shows that a clock cannot be counted on that was not known for it.
func (w *clockWatch) note(p *Pulse) (found bool) {
	var own clockSample
	own.before = int64(w.clock.Boot())
	own.theirs = int64(clock.Raw(w.clock))
	own.after = int64(w.clock.Boot())

	w.mu.Lock()
	defer w.mu.Unlock()
	ownBefore := w.own.tooFast(own.after)
	w.own.add(own, w.limits)
	r := w.peers[p.Peer]
	if r == nil || r.incarnation != p.Incarnation {
		if r == nil && len(w.peers) >= 4*membersMax {
			clear(w.peers) // ids that came and went; those that are there are heard again soon
		}
		r = newClockRate(p.Incarnation)
		w.peers[p.Peer] = r
	}
	before := r.tooFast(own.after)
	r.add(clockSample{before: p.SentAt, after: p.ReceivedAt, theirs: p.Boot}, w.limits)
	return !before && r.tooFast(own.after) || !ownBefore && w.own.tooFast(own.after)
}

// counts tells whether a lease may count on what a node acknowledges: its clock is known not to run too fast by
// this one's, and this one is not slowed down.
func (w *clockWatch) counts(id string) bool {
	if w.blind {
		return true
	}
	now := int64(w.clock.Boot())
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.peers[id]
	return r != nil && r.trusted(now) && !w.own.tooFast(now)
}

// doubt says for people why a node does not count; empty if it does.
func (w *clockWatch) doubt(id string) string {
	if w.counts(id) {
		return ""
	}
	now := int64(w.clock.Boot())
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.peers[id]
	switch {
	case w.own.tooFast(now):
		return fmt.Sprintf("this node's clock is slowed down to at most %.1f %% of its oscillator's rate", 100/(1+w.own.fast))
	case r != nil && r.tooFast(now):
		return fmt.Sprintf("the clock of %s runs at least %.1f %% faster than this node's", id, 100*r.fast)
	}
	return fmt.Sprintf("the clock of %s has not been measured", id)
}

// forget drops what is known of a node that is no longer a member.
func (w *clockWatch) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.peers, id)
}

// onPulse takes what another node told about its clocks.
func (g *Group) onPulse(p Pulse) {
	if g.clocks.note(&p) {
		g.metrics.ClocksDistrusted.Add(1)
		g.log.Warn("a clock cannot be counted on for read leases", "reason", g.clocks.doubt(p.Peer))
		select {
		case <-g.started:
			g.lease.shorten(g.book.leased)
		default: // no lease yet
		}
	}
	if g.o.OnPulse != nil {
		g.o.OnPulse(p)
	}
}

// LeaseMode is how linearizable reads are served here.
type LeaseMode string

// The modes.
const (
	// LeaseModeLease: from the applied state, by the read lease.
	LeaseModeLease LeaseMode = "lease"
	// LeaseModeReadIndex: each bunch of reads is confirmed by a majority first.
	LeaseModeReadIndex LeaseMode = "readindex"
	// LeaseModeOff: not at all, because this node does not lead, or not yet.
	LeaseModeOff LeaseMode = "off"
)

// LeaseState describes the read lease at a moment.
type LeaseState struct {
	// Held tells whether it is held.
	Held bool
	// Mode is how reads are served.
	Mode LeaseMode
	// Reason is why there is no lease or, where there is one, which voters' words it does without. Empty if all
	// is as it should be.
	Reason string
}

// LeaseState returns the state of the read lease. It is for people; what may be read, Lease tells.
func (g *Group) LeaseState() LeaseState {
	term, ok := g.LeaderTerm()
	if !ok {
		return LeaseState{Mode: LeaseModeOff, Reason: "this node does not lead, or its term has only just begun"}
	}
	held := g.Lease()
	switch {
	case held && g.lone.Load():
		return LeaseState{Held: true, Mode: LeaseModeLease}
	case held:
		return LeaseState{Held: true, Mode: LeaseModeLease, Reason: g.doubts()}
	case g.o.LeaseDuration < 0:
		return LeaseState{Mode: LeaseModeReadIndex, Reason: "leases are switched off"}
	case g.lease.revoked.Load() >= term:
		return LeaseState{Mode: LeaseModeReadIndex, Reason: "it was given up for this term: leadership was to go to another node"}
	}
	if why := g.doubts(); why != "" {
		return LeaseState{Mode: LeaseModeReadIndex, Reason: why}
	}
	return LeaseState{Mode: LeaseModeReadIndex, Reason: "no majority of the voters has answered lately"}
}

// doubts lists why voters do not count for the lease.
func (g *Group) doubts() string {
	var reasons []string
	for _, m := range g.members() {
		if !m.Voter || m.ID == g.o.NodeID {
			continue
		}
		if why := g.clocks.doubt(m.ID); why != "" && !slices.Contains(reasons, why) {
			reasons = append(reasons, why)
		}
	}
	return strings.Join(reasons, "; ")
}
