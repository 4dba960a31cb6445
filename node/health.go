package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/consensus"
	"kvstore/internal/clock"
	"kvstore/internal/diskguard"
)

const (
	// healthInterval is how often a node looks at itself and at what it heard, when nothing comes in.
	healthInterval = 200 * time.Millisecond
	// vitalsKept is for how many heartbeat timeouts what a node said of itself counts as what it is. Pulses come
	// twice in each.
	vitalsKept = 3
	// vitalsPeersMax bounds the nodes that are remembered: far more than a cluster has.
	vitalsPeersMax = 64
	// A node is stalled when the log has gone on by stalledLag entries and it has applied none for stalledAfter.
	stalledAfter = 2 * time.Second
	stalledLag   = 128
)

// vitals is what a node says of itself in its answer to each pulse.
type vitals struct {
	// Disk is ok, low or critical, Free the free bytes.
	Disk string `json:"disk"`
	Free uint64 `json:"free"`
	// Applied is the index of the last entry applied.
	Applied uint64 `json:"applied"`
	// Digests are the newest digests of its state, in the order of their indices.
	Digests []digestPoint `json:"digests"`
	// Ready: it has caught up since its start, and serves.
	Ready bool `json:"ready"`
	// Stalled: it does not apply what the log has.
	Stalled bool `json:"stalled"`
	// Damaged: it has met damage in its state, which it will make anew in its turn.
	Damaged bool `json:"damaged"`
	// Time is the cluster's time as it knows it, Unix µs, 0 if it does not. Term is the term that it leads, 0 if none.
	Time int64  `json:"time"`
	Term uint64 `json:"term"`
}

// diskState reads the state of the disk. What a later build may add counts as critical.
func (v *vitals) diskState() diskguard.State {
	for _, st := range []diskguard.State{diskguard.OK, diskguard.Low} {
		if v.Disk == st.String() {
			return st
		}
	}
	return diskguard.Critical
}

// peerHealth is what another node said last.
type peerHealth struct {
	incarnation [16]byte
	at          int64 // boot time of the answer, ns
	vitals      vitals
	digests     []digestPoint // those of its vitals and earlier ones
}

// health keeps the newest vitals of each node, and draws the conclusions: what the disks allow, and whose state
// differs.
type health struct {
	loop

	// Immutable after newHealth.
	s     *Shard
	disks *disks
	clock clock.Clock
	kept  time.Duration // how long vitals count
	wake  chan struct{} // at most one token: something was heard
	// mismatches counts the indices at which another node's digest was found to differ.
	mismatches atomic.Uint64

	// Written by look, read by any goroutine.
	ready, stalled atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	peers map[string]*peerHealth
	found mismatch

	// Owned by run.
	applied, committed uint64    // when an entry was applied last
	movedAt            time.Time // when that was
	alarmed            uint64    // the index of the last alarm
	damagedAt          time.Time // since when the others are told of damage; zero: there is none
}

func newHealth(s *Shard, heartbeat time.Duration) *health {
	if heartbeat == 0 {
		heartbeat = consensus.HeartbeatTimeoutDefault
	}
	return &health{
		s: s, disks: newDisks(s.guard), clock: clock.System{}, kept: vitalsKept * heartbeat,
		wake: make(chan struct{}, 1), peers: make(map[string]*peerHealth),
	}
}

// start begins the loop. REQUIRES: the shard is open.
func (h *health) start() {
	h.begin(h.run)
}

func (h *health) run(ctx context.Context) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		h.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-tick.C:
		}
	}
}

// tell encodes this node's vitals. Called on goroutines of the transport, from before the shard is open on.
func (h *health) tell() []byte {
	v := vitals{
		Disk: h.disks.told().String(), Free: h.disks.guard.Free(), Applied: h.s.engine.Applied().Index,
		Ready: h.ready.Load(), Stalled: h.stalled.Load(), Damaged: h.s.damage.Load() != nil, Digests: h.s.digests(),
	}
	v.Digests = v.Digests[max(0, len(v.Digests)-digestsToldMax):]
	v.Time, v.Term = h.s.time.Tell(h.clock.Boot().Microseconds())
	b, err := json.Marshal(&v)
	if err != nil {
		panic("BUG: cannot encode the vitals: " + err.Error())
	}
	return b
}

// hear takes what another node said of itself, and returns it; nothing if it can't be understood. Called on goroutines
// of the transport.
func (h *health) hear(id string, incarnation [16]byte, at int64, b []byte) (v vitals) {
	if json.Unmarshal(b, &v) != nil {
		return vitals{} // of a build that says it differently: it counts as silent
	}
	v.Digests = slices.DeleteFunc(v.Digests, func(p digestPoint) bool { return p.index == 0 })
	if !slices.IsSortedFunc(v.Digests, func(a, b digestPoint) int { return cmp.Compare(a.index, b.index) }) {
		return vitals{}
	}
	h.mu.Lock()
	p := h.peers[id]
	if p == nil && len(h.peers) >= vitalsPeersMax {
		h.mu.Unlock()
		return v
	}
	next := &peerHealth{incarnation: incarnation, at: at, vitals: v}
	if p != nil && p.incarnation == incarnation {
		next.digests = p.digests
	}
	next.digests = mergeDigests(next.digests, v.Digests[max(0, len(v.Digests)-digestsKeptMax):])
	h.peers[id] = next
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return v
}

// of gives what a node said of itself; ok is false when that is too long ago.
func (h *health) of(id string) (v vitals, ok bool) {
	h.mu.Lock()
	p := h.peers[id]
	h.mu.Unlock()
	if p == nil || int64(h.clock.Boot())-p.at > int64(h.kept) {
		return v, false
	}
	return p.vitals, true
}

// unfit reports whether a node's state differs from that of a majority of those that this node, which has none itself,
// has heard of, itself included.
func (h *health) unfit(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	told := make(map[string][]digestPoint, len(h.peers))
	for id, p := range h.peers {
		told[id] = p.digests
	}
	return oddOneOut(id, told, len(told)+1)
}

// disk gives the state of a member's disk, this node's included; ok is false while that is not known.
func (h *health) disk(id string) (st diskguard.State, ok bool) {
	if id == h.s.roster.self.ID {
		return h.disks.own(), true
	}
	v, ok := h.of(id)
	if !ok {
		return 0, false
	}
	return v.diskState(), true
}

// mismatch gives what the last comparison of digests found.
func (h *health) mismatch() mismatch {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.found
}

// look draws the conclusions.
func (h *health) look(now time.Time) {
	s := h.s
	st := s.group.Status()
	h.ready.Store(s.keeper.isSettled() && s.serves())
	h.watchApply(now, &st)
	self := s.roster.self.ID
	var voters []string
	var disks []voterDisk
	for _, m := range st.Configuration {
		if !m.Voter {
			continue
		}
		voters = append(voters, m.ID)
		d := voterDisk{id: m.ID}
		d.state, d.known = h.disk(m.ID)
		disks = append(disks, d)
	}
	s.tickTime(voters)
	h.disks.look(self, disks)
	h.compare(&st, voters)
	h.repair(now, voters)
}

// repair has a node that has met damage make its state anew, as soon as another voter is well, and one at a time:
// were all to do it at once, none would be left to copy from. Those that wait have told the others, and
// the one whose id comes first begins. One that is being rebuilt is silent, and is not well when it comes back
// before it has caught up.
func (h *health) repair(now time.Time, voters []string) {
	damage := h.s.damage.Load()
	if damage == nil {
		h.damagedAt = time.Time{}
		return
	}
	if h.s.quarantined.Load() {
		return
	}
	if h.damagedAt.IsZero() {
		h.damagedAt = now
	}
	if now.Sub(h.damagedAt) < 2*h.kept {
		return // others may find damage at this moment: all must have heard of it
	}
	if mayRepair(h.s.roster.self.ID, voters, h.of) {
		h.s.quarantine(errors.New(*damage))
	}
}

// mayRepair reports whether it is self's turn to make its state anew: nobody before it in the order of ids waits to do
// so, and the others are a majority without it, as far as that is possible. What is whole of the state is served
// meanwhile; a cluster that stands still for the length of a copy would serve nothing.
func mayRepair(self string, voters []string, of func(id string) (vitals, bool)) bool {
	ready := 0
	for _, id := range voters {
		v, ok := of(id)
		if !ok || id == self {
			continue
		}
		if v.Damaged && id < self {
			return false
		}
		if v.Ready {
			ready++
		}
	}
	return ready > 0 && ready >= min(len(voters)/2+1, len(voters)-1)
}

// watchApply notices when nothing is applied any more.
func (h *health) watchApply(now time.Time, st *consensus.Status) {
	if st.AppliedIndex != h.applied || h.movedAt.IsZero() {
		h.applied, h.committed, h.movedAt = st.AppliedIndex, st.CommitIndex, now
	}
	// raft's own entries are committed and never applied: a few say nothing.
	h.stalled.Store(st.CommitIndex > h.committed+stalledLag && now.Sub(h.movedAt) > stalledAfter)
}

// compare compares this node's digests with those of the other members.
func (h *health) compare(st *consensus.Status, voters []string) {
	self := h.s.roster.self.ID
	own := h.s.digests()
	h.mu.Lock()
	others := make(map[string][]digestPoint)
	for _, m := range st.Configuration {
		if p := h.peers[m.ID]; p != nil && m.ID != self {
			others[m.ID] = p.digests
		}
	}
	found := compareDigests(self, own, others, voters)
	h.found = found
	h.mu.Unlock()
	if found.Index != 0 && found.Index != h.alarmed {
		h.alarmed = found.Index
		h.mismatches.Add(1)
		h.s.log.Error("the state of this node differs from that of others at the same index: one of them is wrong",
			"index", found.Index, "differs_from", found.With, "majority_against_this_node", found.Odd)
	}
	if found.Odd {
		h.s.quarantine(fmt.Errorf("the digest of its state at index %d is not that of a majority of the voters", found.Index))
	}
}
