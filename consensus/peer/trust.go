package peer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// code names the reason of a refusal to programs; the text is for people.
type code string

const (
	codeMalformed     code = "malformed"
	codeWrongTarget   code = "wrong-target"
	codeWrongGroup    code = "wrong-group"
	codeSameID        code = "same-id"
	codeStarting      code = "starting"
	codeBusy          code = "busy"
	codeOtherCluster  code = "other-cluster"
	codeOtherFounders code = "other-founders"
	codeNotMember     code = "not-member"
	codeRemoved       code = "removed"
	codeOtherData     code = "other-incarnation"
	codeLevel         code = "level"
	codeHeartbeat     code = "heartbeat"
	codeOlderCopy     code = "older-copy"
	codeCloned        code = "cloned"
	codeForgotten     code = "forgotten"
	codeGivenUp       code = "given-up"
)

// refusal says why one node will not talk to another, and how to get out of it.
type refusal struct {
	code code
	text string
	// passing tells that it may be over soon, although the code says otherwise.
	passing bool
	// told is what the other side said about being final; nil if the refusal is this node's own.
	told *bool
}

// final tells that trying again cannot help before somebody changed something.
func (r *refusal) final() bool {
	if r.told != nil {
		return *r.told
	}
	return !r.passing && r.code != codeStarting && r.code != codeBusy
}

// copied tells that the refusal is of one process of a node, because others ran or run with copies of its data
// directory.
func (r *refusal) copied() bool {
	return r.code == codeOlderCopy || r.code == codeCloned || r.code == codeForgotten
}

func refuse(c code, format string, args ...any) *refusal {
	return &refusal{code: c, text: fmt.Sprintf(format, args...)}
}

// trust is what a node judges others by. It is a value: judge is a function of it and the hello alone.
type trust struct {
	id          string
	incarnation [16]byte
	nonce       uint64
	group       uint32
	level       uint16
	heartbeat   time.Duration // the heartbeat timeout

	cluster, history [16]byte // zero cluster: none known yet
	founders         [32]byte // zero: none known
	founded          bool     // all founders had been met once
	named            bool     // the founders were named by this start

	// About the node that is judged.
	record        [16]byte   // incarnation in its member record
	recordThere   bool       // there is a record
	recordRemoved bool       // which says removed
	bound         process    // the last one that was let in; incarnation zero: none
	mark          uint64     // the nonce of the process that was let in with bound.starts; 0: not known
	past          [][16]byte // incarnations that the peers file knows as replaced or removed
	// alive tells whether the process that was let in last still speaks; nil: no.
	alive func(process) bool
	// An earlier process of the same directory surely held committed entries up to index held, which is of term
	// heldTerm; 0: nothing is known.
	held, heldTerm uint64
}

// known returns the incarnation that the judged node must have; zero if any new one may come.
//
// The member record is the cluster's word and wins over what this node saw by itself. But after a
// restart the record may for a while be older than what this node had already acted upon: then the file
// lists it as replaced.
func (t *trust) known() [16]byte {
	if t.recordThere && !t.recordRemoved && !slices.Contains(t.past, t.record) {
		return t.record
	}
	if t.recordThere && t.bound.incarnation == t.record { // removed
		return [16]byte{}
	}
	return t.bound.incarnation
}

// removed tells whether the incarnation was once this node's and must never come back.
func (t *trust) removed(incarnation [16]byte) bool {
	if t.recordThere && t.record == incarnation && !slices.Contains(t.past, incarnation) {
		return t.recordRemoved
	}
	return slices.Contains(t.past, incarnation)
}

// judge returns why the node that said h is to be refused, or nil. Both sides of a connection judge by
// the same rules.
func (t *trust) judge(h *Hello) *refusal {
	switch {
	case h.Target != t.id:
		return refuse(codeWrongTarget, "this is node %q, not %q: an address in the configuration leads to the wrong node", t.id, h.Target)
	case h.Group != t.group:
		return refuse(codeWrongGroup, "node %q serves group %d here, not %d", t.id, t.group, h.Group)
	case h.Source == t.id && h.Incarnation == t.incarnation && h.Nonce != t.nonce:
		return refuse(codeCloned, "two processes run as node %q with copies of one data directory: stop one of them and delete its copy", t.id)
	case h.Source == t.id && h.Incarnation == t.incarnation:
		return refuse(codeSameID, "node %q reached itself: an address in the configuration leads to the wrong node", t.id)
	case h.Source == t.id:
		return refuse(codeSameID, "two nodes call themselves %q: give one of them another --node-id", t.id)
	}
	if r := t.judgeCluster(h); r != nil {
		return r
	}
	known := t.known()
	switch {
	case t.removed(h.Incarnation):
		return refuse(codeRemoved, "node %q with this data directory (incarnation %s) was removed from the cluster; to bring it back, start it with an empty data directory and --join", h.Source, short(h.Incarnation))
	case known == h.Incarnation:
	case known != [16]byte{}:
		return refuse(codeOtherData, "node %q is known to this cluster with another data directory (incarnation %s, not %s); if that directory is lost, run \"kvctl member remove %s\" and start %s with an empty data directory and --join%s",
			h.Source, short(known), short(h.Incarnation), h.Source, h.Source, t.unfounded())
	case t.running() && h.Cluster == [16]byte{}:
		// All founders had been bound before the cluster began to run. One that is not bound any more was
		// removed, or is nobody's founder: it must not begin a second cluster from the same list.
		return refuse(codeNotMember, "the cluster runs already and does not know node %q with this data directory (incarnation %s): start it with an empty data directory and --join", h.Source, short(h.Incarnation))
	}
	if r := t.judgeProcess(h); r != nil {
		return r
	}
	if h.StateLevel > t.level {
		return refuse(codeLevel, "node %q holds data of behaviour level %d, the program of node %q knows only up to %d: upgrade that first", h.Source, h.StateLevel, t.id, t.level)
	}
	if h.Heartbeat != t.heartbeat {
		// A leader may serve reads for as long as a majority has promised not to vote: a voter that waits for
		// a shorter time than the leader believes would break that.
		return refuse(codeHeartbeat, "node %q has a heartbeat timeout of %v, node %q of %v: read leases need the same on all nodes; stop them all and start them with one --heartbeat-timeout", h.Source, h.Heartbeat, t.id, t.heartbeat)
	}
	return nil
}

// judgeProcess tells the processes of one data directory apart: those that run with copies of it, and those
// that lack what an earlier one had acknowledged. Majorities were counted with that.
func (t *trust) judgeProcess(h *Hello) *refusal {
	last := t.bound
	if h.Starts == 0 || h.Incarnation != last.incarnation || h.Nonce == last.nonce && last.nonce != 0 {
		return nil // nobody counts, nothing is known, or it is that very process
	}
	wayBack := fmt.Sprintf(`if there is no other copy, run "kvctl member remove %s" and start %s with an empty data directory and --join`, h.Source, h.Source)
	switch {
	case h.Starts < last.starts:
		return refuse(codeOlderCopy, "node %q runs with an older copy of its data directory (start %d of it, node %q has met start %d): what it acknowledged since is missing there. Start it with the newest copy; %s",
			h.Source, h.Starts, t.id, last.starts, wayBack)
	case h.denies(last.starts, t.mark) && h.Starts > last.starts:
		return refuse(codeOlderCopy, "node %q runs with an older copy of its data directory: it counts start %d, but another process was start %d of it when node %q met it. What that one acknowledged is missing here. Start it with the newest copy; %s",
			h.Source, h.Starts, last.starts, t.id, wayBack)
	case h.Starts == last.starts && last.nonce != 0:
		return refuse(codeCloned, "another process ran or runs as node %q with a copy of this data directory (both call this start %d of it): stop this one and delete its copy; %s",
			h.Source, h.Starts, wayBack)
	case h.Starts > last.starts && t.alive != nil && t.alive(last):
		r := refuse(codeCloned, "another process runs as node %q with a copy of this data directory (start %d of it, this one is start %d): stop one of them and delete its copy",
			h.Source, last.starts, h.Starts)
		r.passing = true // a process that was killed falls silent
		return r
	case h.Purpose != PurposeFetch && h.LogTold && (h.LastIndex < t.held || h.LastTerm < t.heldTerm):
		return refuse(codeForgotten, "node %q held committed entries up to %d (term %d) and now holds them only up to %d (term %d): its data directory was exchanged for an older copy, or lost what it had written. Start it with the newest copy; %s",
			h.Source, t.held, t.heldTerm, h.LastIndex, h.LastTerm, wayBack)
	}
	return nil
}

// wayIn is what to do about a node of another cluster.
const wayIn = `an address leads to the wrong cluster, or a data directory is another cluster's. A node with a foreign directory comes in with an empty one and --join, after "kvctl member remove ID" if it is a member`

func (t *trust) judgeCluster(h *Hello) *refusal {
	none16, none32 := [16]byte{}, [32]byte{}
	switch {
	case t.cluster != none16 && h.Cluster != none16:
		if t.cluster != h.Cluster {
			return refuse(codeOtherCluster, "node %q belongs to cluster %s, node %q to another cluster, %s: %s", h.Source, hex.EncodeToString(h.Cluster[:]), t.id, hex.EncodeToString(t.cluster[:]), wayIn)
		}
		if t.history != h.History && t.recordThere && t.recordRemoved && t.record == h.Incarnation {
			return refuse(codeGivenUp, "node %q was given up by a recovery (kvstore recover) or removed: it and node %q, which goes on without it, belong to different histories of the cluster (%s and %s). With this data directory it must not run again: start it with an empty data directory and --join; if the recovery was a mistake, stop node %q first",
				h.Source, t.id, short(h.History), short(t.history), t.id)
		}
		if t.history != h.History {
			return refuse(codeOtherCluster, "nodes %q and %q belong to different histories of the cluster (%s and %s): one of them was restored from a backup, or the cluster was recovered without it (kvstore recover); start the other with an empty data directory and --join", h.Source, t.id, short(h.History), short(t.history))
		}
	case t.founders != none32 && h.Founders != none32:
		if t.founders != h.Founders && t.founded {
			return refuse(codeOtherCluster, "node %q was started for another cluster than the one that node %q belongs to (their lists of --initial-cluster differ): %s", h.Source, t.id, wayIn)
		}
		if t.founders != h.Founders {
			return refuse(codeOtherFounders, "nodes %q and %q were started with different lists of --initial-cluster: give all nodes the same list", h.Source, t.id)
		}
	default:
		return refuse(codeStarting, "nodes %q and %q can't tell yet whether they belong to the same cluster: one of them has only just been started", h.Source, t.id)
	}
	return nil
}

// running tells that there is a cluster already, not only a list of its founders.
func (t *trust) running() bool { return t.founded || t.cluster != [16]byte{} }

// unfounded adds the way back for a cluster that never came to run.
func (t *trust) unfounded() string {
	if t.running() {
		return ""
	}
	return "; if the cluster never ran, stop all its nodes, empty their data directories and start them again"
}

func short(id [16]byte) string { return hex.EncodeToString(id[:4]) + "…" }

// hashFounders returns the hash by which nodes without a cluster id recognise each other. The order of
// the list does not matter.
func hashFounders(group uint32, members []Founder) [32]byte {
	sorted := slices.Clone(members)
	slices.SortFunc(sorted, func(a, b Founder) int { return strings.Compare(a.ID, b.ID) })
	b := binary.LittleEndian.AppendUint32([]byte("kvstore founders 1\x00"), group)
	for _, m := range sorted {
		for _, s := range []string{m.ID, m.Address} {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
	}
	return sha256.Sum256(b)
}

// checkFounders lists what is wrong with a list of founders.
func checkFounders(members []Founder, id, address string) error {
	var errs []error
	ids, addresses, self := map[string]bool{}, map[string]bool{}, false
	for _, m := range members {
		switch {
		case !validID(m.ID):
			errs = append(errs, fmt.Errorf("%.80q is no node id", m.ID))
		case !validAddress(m.Address):
			errs = append(errs, fmt.Errorf("%.300q is no address", m.Address))
		case ids[m.ID]:
			errs = append(errs, fmt.Errorf("node %q is listed twice", m.ID))
		case addresses[m.Address]:
			errs = append(errs, fmt.Errorf("address %q is listed twice", m.Address))
		case m.ID == id && m.Address != address:
			errs = append(errs, fmt.Errorf("this node is listed at %q, but advertises %q", m.Address, address))
		}
		ids[m.ID], addresses[m.Address] = true, true
		self = self || m.ID == id
	}
	if !self {
		errs = append(errs, fmt.Errorf("this node, %q, is not in it", id))
	}
	if len(members) > foundersMax {
		errs = append(errs, fmt.Errorf("%d members are more than %d", len(members), foundersMax))
	}
	if len(errs) > 0 {
		return fmt.Errorf("cannot found a cluster from this list: %w", errors.Join(errs...))
	}
	return nil
}
