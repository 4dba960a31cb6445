package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"kvstore/internal/record"
)

// ErrContradiction marks a directory whose parts (log, vote, checkpoint) cannot belong together. Open
// refuses it: going on could lose acknowledged writes or vote twice. The text says what, why and what
// to do.
var ErrContradiction = errors.New("the parts of this node's state contradict each other")

// found is what Open finds on disk.
type found struct {
	first, last uint64 // bounds of the log, zeros when it is empty
	lastTerm    uint64 // term of its last entry
	termAt      uint64 // term of the log's entry at durable.Index, 0 if the log does not hold it
	logSeed     uint32
	vote        vote
	voteExists  bool
	durable     Durable
	hasDurable  bool
	// lone says that the checkpoint's configuration has this node as its only voter: what is missing here
	// then exists nowhere.
	lone bool
	// joining says that the caller knows this node as one that joined a running cluster.
	joining bool
	// rebuild says that the caller has emptied the state machine, see Options.Rebuild.
	rebuild bool
	// reach is the entry that the state reached which was given up, as far as the log doesn't tell; 0: it does, or
	// nobody knows.
	reach uint64
}

// action is what Open does before it starts raft.
type action int

const (
	actionContinue  action = iota // start from what is there
	actionBootstrap               // first start: write the first configuration
	actionJoin                    // start with an empty log and wait for the leader
	actionEmptyLog                // delete a log that an installed snapshot has overtaken
	actionRebuild                 // fetch the state from another node, and decide again
)

// inspect collects what is on disk.
func (g *Group) inspect() (f found, err error) {
	if f.first, f.last, err = g.logs.bounds(); err != nil {
		return f, err
	}
	var l raft.Log
	if f.last > 0 {
		if err := g.logs.get(f.last, &l); err != nil {
			return f, err
		}
		f.lastTerm = l.Term
	}
	f.logSeed = g.logs.seed
	f.joining, f.rebuild, f.reach = g.o.Joined != nil, g.o.Rebuild, g.o.RebuildReach
	f.vote, f.voteExists = g.stable.state()
	if f.durable, f.hasDurable = g.sm.Durable(); !f.hasDurable {
		return f, nil
	}
	configuration, err := decodeConfiguration(f.durable.Configuration)
	if err != nil {
		return f, fmt.Errorf("%w: the checkpoint at index %d is unusable: %w", ErrContradiction, f.durable.Index, err)
	}
	voters := voterIDs(configuration, nil)
	f.lone = len(voters) == 1 && voters[0] == raft.ServerID(g.o.NodeID)
	if i := f.durable.Index; f.first <= i && i <= f.last && f.last > 0 {
		if err := g.logs.get(i, &l); err != nil {
			return f, err
		}
		f.termAt = l.Term
	}
	return f, nil
}

// decide tells what to do with what was found. It reads nothing and changes nothing.
//
// The log is fsynced before anything is applied, and a checkpoint covers what was applied, so the
// checkpoint never passes the end of the log, and compaction (TrailingLogs ≥ 1, never beyond the
// checkpoint) leaves neither a gap nor an empty log. What breaks these rules was lost or exchanged from
// outside, with one exception: a snapshot from the leader becomes the checkpoint first, and only then
// raft empties the log. Such a checkpoint says so (Durable.Installed). Until entries follow it, the log
// may be empty; after a crash between the two steps it is older than the checkpoint or of another
// history, and raft-wal would refuse every further append as a gap; the checkpoint covers all that the
// log says, so the log may go.
//
// In a cluster a lost log is no less serious than on a lone node: this node has acknowledged entries,
// and majorities were counted with it. It must not come back as if it had them.
func (f found) decide(dir string) (action, error) {
	const (
		putBack  = "Put back the missing files of this directory"
		restore  = "Restore from a backup into a new data directory"
		rejoin   = "In a cluster: remove this member (kvctl member remove), then let it join again with an empty data directory; the others have what it is missing"
		noUndo   = "It will not be started as if nothing had happened, because acknowledged writes would be missing"
		freshDir = "If this node was meant to be new, give it an empty data directory"
	)
	refuse := func(format string, args ...any) (action, error) {
		way := rejoin
		if f.lone {
			way = restore
		} else if !f.hasDurable {
			way = rejoin + ". On a lone node: " + restore
		}
		return 0, fmt.Errorf("%w in %q: %s. %s. %s, if you have a copy. %s. %s",
			ErrContradiction, dir, fmt.Sprintf(format, args...), noUndo, putBack, way, freshDir)
	}
	d := f.durable
	switch {
	case f.hasDurable && (d.Index == 0 || d.Term == 0):
		return refuse("the checkpoint has index %d and term %d, which no entry has", d.Index, d.Term)
	case f.voteExists && f.vote.logSeed != f.logSeed:
		return refuse("the vote file belongs to another log (%08x) than the one here (%08x): the log was deleted or exchanged", f.vote.logSeed, f.logSeed)

	case f.rebuilds():
		return actionRebuild, nil
	case !f.hasDurable && f.last == 0 && (f.joining || f.vote.joined):
		// The vote file may know a term: terms reach a new member before entries do.
		return actionJoin, nil
	case !f.hasDurable && f.last == 0 && f.vote.votedTerm == 0 && f.vote.currentTerm <= 1:
		// Term 1 without a vote and without an entry is a first start that a crash cut short.
		return actionBootstrap, nil
	case !f.hasDurable && f.last == 0:
		return refuse("the vote file knows term %d, but there is neither a log nor a checkpoint: both were deleted",
			max(f.vote.currentTerm, f.vote.votedTerm))
	case !f.voteExists:
		return refuse("there is a %s, but the vote file %q is missing: without it this node could vote twice in one term",
			f.what(), voteFileName)
	case f.vote.currentTerm < max(f.lastTerm, d.Term):
		return refuse("the vote file is at term %d, but the %s at term %d: the vote file is from an older copy",
			f.vote.currentTerm, f.what(), max(f.lastTerm, d.Term))
	case !f.hasDurable && f.first > 1:
		return refuse("the log begins at entry %d and there is no checkpoint that covers entries 1 to %d: the checkpoint was deleted",
			f.first, f.first-1)
	case !f.hasDurable:
		return actionContinue, nil

	case f.last == 0 && d.Installed:
		return actionContinue, nil
	case f.last == 0:
		return refuse("there is a checkpoint at index %d, but the log is empty: the log was deleted, and with it whatever was acknowledged after the checkpoint",
			d.Index)
	case f.first > d.Index+1:
		return refuse("the log begins at entry %d, but the checkpoint ends at %d: entries %d to %d are missing; the checkpoint is from an older copy",
			f.first, d.Index, d.Index+1, f.first-1)
	case f.last < d.Index && d.Installed:
		return actionEmptyLog, nil
	case f.last < d.Index:
		return refuse("the log ends at entry %d, but the checkpoint covers %d: the log lost its end or is from an older copy, and whatever was acknowledged after the checkpoint is gone",
			f.last, d.Index)
	case f.termAt != 0 && f.termAt != d.Term && d.Installed:
		return actionEmptyLog, nil
	case f.termAt != 0 && f.termAt != d.Term:
		return refuse("entry %d has term %d in the log, but %d in the checkpoint: they are of different histories",
			d.Index, f.termAt, d.Term)
	default:
		return actionContinue, nil
	}
}

// rebuilds tells whether the state is to be fetched: it was given up on purpose, what else there was is there, and
// the log alone can't bring it back. A log that is empty beside a vote of a first start never had an entry; one
// that is empty on a node that joined may have been emptied for a copy of the state.
func (f found) rebuilds() bool {
	if !f.rebuild || f.hasDurable || !f.voteExists || f.vote.currentTerm < f.lastTerm {
		return false
	}
	if f.last == 0 {
		return f.vote.joined || f.vote.votedTerm > 0 || f.vote.currentTerm > 1
	}
	return f.first > 1 || f.reach > f.last
}

// what names the parts that are there.
func (f found) what() string {
	switch {
	case f.last > 0 && f.hasDurable:
		return "log and a checkpoint"
	case f.last > 0:
		return "log"
	default:
		return "checkpoint"
	}
}

// dirLock keeps a second process (or a second Open) out of a directory. raft-wal would wait for the
// first one for ever.
type dirLock struct{ f *os.File }

// lockDir creates dir if need be and locks it.
func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := record.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("directory %q is in use by another process", dir)
		}
		return nil, fmt.Errorf("cannot lock directory %q: %w", dir, err)
	}
	return &dirLock{f}, nil
}

// unlock releases the directory.
func (l *dirLock) unlock() error { return l.f.Close() }

// wasMember tells whether the newest configuration that is surely committed knows this node: that of the checkpoint
// or, while there is none, the one that the log begins with.
func (g *Group) wasMember(f found) (bool, error) {
	var members []Member
	if f.hasDurable {
		c, err := decodeConfiguration(f.durable.Configuration)
		if err != nil {
			return false, fmt.Errorf("%w in %q: the checkpoint at %d: %w", ErrContradiction, g.o.Dir, f.durable.Index, err)
		}
		members = membersOf(c)
	} else {
		c, _, err := g.logs.newestConfigurationIn(f.first, f.first)
		if err != nil {
			return false, err
		}
		members = c.members
	}
	return slices.ContainsFunc(members, func(m Member) bool { return m.ID == g.o.NodeID }), nil
}
