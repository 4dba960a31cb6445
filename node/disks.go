package node

import (
	"fmt"
	"strings"
	"sync/atomic"

	"kvstore/consensus"
	"kvstore/internal/diskguard"
)

// storedWhileLowMax bounds what a follower takes in while its disk is low: as much as a leader may have had
// under way (consensus.Options.ProposalBytesMax), and at most an eighth of the floor, whose remainder is for
// what the store makes of it.
const storedWhileLowMax = 64 << 20

// disks decides what may be written, from this node's own disk and from what the other voters say of theirs.
//
// A leader writes into its own log whatever it takes, and a write is done when a majority has stored it. So
// what it takes is bounded by the worse of its own disk and the disk that completes the best majority.
//
// A follower refuses what it would have to store. While a majority can do without it, it does so as soon as its
// disk is low. Where it is needed, it takes what was under way when the leader learnt of the lack, and deletes
// after that, up to a bound in bytes; beyond it, and on a critical disk, it stores nothing but raft's own
// entries, which always pass: without them no leader could begin to serve.
type disks struct {
	// Immutable.
	guard    *diskguard.Guard
	whileLow uint64

	// log counts what was written to it; set once, when it is open.
	log atomic.Pointer[consensus.Metrics]
	// before is that count as of when the disk was seen to be OK last.
	before atomic.Uint64
	// Written by look, read by any goroutine.
	others atomic.Int32           // diskguard.State that the other voters leave a leader
	needed atomic.Bool            // without this node no majority can store
	why    atomic.Pointer[string] // the voters that are short of space, for people; nil: none
}

func newDisks(g *diskguard.Guard) *disks {
	return &disks{guard: g, whileLow: min(g.FloorBytes()/8, storedWhileLowMax)}
}

// own gives the state of this node's disk.
func (d *disks) own() diskguard.State { return d.guard.State() }

// told gives the state that others should count with: that of a follower that has taken in what it takes at most
// while its disk is low, is critical.
func (d *disks) told() diskguard.State {
	if st := d.own(); st != diskguard.Low || d.spent() <= d.whileLow {
		return st
	}
	return diskguard.Critical
}

// spent gives the bytes written to the log since the disk was OK.
func (d *disks) spent() uint64 {
	m := d.log.Load()
	if m == nil {
		return 0
	}
	return m.AppendedBytes.Load() - d.before.Load()
}

// writable gives what this node, as the leader, may let into the log.
func (d *disks) writable() diskguard.State {
	return max(d.own(), diskguard.State(d.others.Load()))
}

// storing returns an error when this node, as a follower, stores no commands, however many bytes these have: what was
// stored already is what counts.
func (d *disks) storing(int64) error {
	st := d.told()
	if st == diskguard.OK || st == diskguard.Low && d.needed.Load() {
		return nil
	}
	return fmt.Errorf("the disk is %s, with %d bytes free", d.own(), d.guard.Free())
}

// room returns an error when size bytes of a snapshot find no space above the floor.
func (d *disks) room(size int64) error { return d.guard.Room(uint64(max(size, 0))) }

// voterDisk is what is known of one voter's disk.
type voterDisk struct {
	id    string
	state diskguard.State
	known bool
}

// look works out what the others' disks allow. all are the voters, self among them if it is one.
func (d *disks) look(self string, all []voterDisk) {
	if m := d.log.Load(); m != nil && d.own() == diskguard.OK {
		d.before.Store(m.AppendedBytes.Load())
	}
	level, needed, short := judgeDisks(self, all)
	d.others.Store(int32(level))
	d.needed.Store(needed)
	if len(short) == 0 {
		d.why.Store(nil)
		return
	}
	text := strings.Join(short, ", ")
	if old := d.why.Load(); old == nil || *old != text {
		d.why.Store(&text)
	}
}

// judgeDisks gives the best state that a majority of the voters has, whether they need self for a majority that
// has space, and the voters that are short of it. A voter that is silent can't be counted on, but it alone is no
// reason to speak of disks: what becomes of a write then is for the log to say.
func judgeDisks(self string, all []voterDisk) (level diskguard.State, needed bool, short []string) {
	majority := len(all)/2 + 1
	var at [diskguard.Critical + 1]int // voters by known state
	others := 0                        // voters with space beside self
	member := false
	for _, v := range all {
		member = member || v.id == self
		if !v.known {
			continue
		}
		at[v.state]++
		if v.state == diskguard.OK && v.id != self {
			others++
		}
		if v.state != diskguard.OK {
			short = append(short, fmt.Sprintf("%s is %s", v.id, v.state))
		}
	}
	needed = member && others < majority
	switch {
	case at[diskguard.OK] >= majority || len(short) == 0:
		return diskguard.OK, needed, short
	case at[diskguard.OK]+at[diskguard.Low] >= majority || at[diskguard.Critical] == 0:
		return diskguard.Low, needed, short
	}
	return diskguard.Critical, needed, short
}

// fullText says why a write is refused.
func (d *disks) fullText() string {
	if own := d.own(); own != diskguard.OK {
		return fmt.Sprintf("the disk of this node is %s, with %d bytes free; deletes make room, if not at once", own, d.guard.Free())
	}
	if why := d.why.Load(); why != nil {
		return "too few nodes have space to store it: the disk of " + *why + "; deletes make room, if not at once"
	}
	return "too few nodes have space to store it"
}
