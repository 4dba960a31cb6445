package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	vote        vote
	voteExists  bool
	durable     Durable
	hasDurable  bool
	// lone says that the checkpoint's configuration has exactly one voter: what is missing here then
	// exists nowhere.
	lone bool
}

// action is what Open does before it starts raft.
type action int

const (
	actionContinue  action = iota // start from what is there
	actionBootstrap               // first start: write the first configuration
	actionEmptyLog                // delete a log that an installed snapshot has overtaken
)

// inspect collects what is on disk.
func inspect(logs *logStore, stable *stableStore, sm StateMachine) (f found, err error) {
	if f.first, f.last, err = logs.bounds(); err != nil {
		return f, err
	}
	var l raft.Log
	if f.last > 0 {
		if err := logs.GetLog(f.last, &l); err != nil {
			return f, err
		}
		f.lastTerm = l.Term
	}
	f.vote, f.voteExists = stable.state()
	if f.durable, f.hasDurable = sm.Durable(); !f.hasDurable {
		return f, nil
	}
	configuration, err := decodeConfiguration(f.durable.Configuration)
	if err != nil {
		return f, fmt.Errorf("%w: the checkpoint at index %d is unusable: %w", ErrContradiction, f.durable.Index, err)
	}
	voters := 0
	for _, s := range configuration.Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	f.lone = voters == 1
	if i := f.durable.Index; f.first <= i && i <= f.last && f.last > 0 {
		if err := logs.GetLog(i, &l); err != nil {
			return f, err
		}
		f.termAt = l.Term
	}
	return f, nil
}

// decide tells what to do with what was found. It reads nothing and changes nothing.
//
// The log is fsynced before anything is applied, and a checkpoint covers what was applied, so on a lone
// voter the checkpoint never passes the end of the log, and compaction (TrailingLogs ≥ 1, never beyond
// the checkpoint) leaves neither a gap nor an empty log. What breaks these rules was lost or exchanged
// from outside. With more voters one more state is normal: a crash after a snapshot from the leader
// became the checkpoint and before raft emptied the log. The log is then older than the checkpoint, or
// of another history, and raft-wal would refuse every further append as a gap; the checkpoint covers
// all that the log says, so the log may go.
func (f found) decide(dir string) (action, error) {
	refuse := func(format string, args ...any) (action, error) {
		return 0, fmt.Errorf("%w in %q: %s", ErrContradiction, dir, fmt.Sprintf(format, args...))
	}
	const (
		putBack  = "Put back the missing files of this directory, or restore from a backup into a new data directory"
		restore  = "Restore from a backup into a new data directory"
		noUndo   = "It will not be started as if nothing had happened, because acknowledged writes would be missing"
		freshDir = "If this node was meant to be new, give it an empty data directory"
	)
	d := f.durable
	switch {
	case f.hasDurable && (d.Index == 0 || d.Term == 0):
		return refuse("the checkpoint has index %d and term %d, which no entry has. %s.", d.Index, d.Term, restore)

	case !f.hasDurable && f.last == 0 && f.vote.votedTerm == 0 && f.vote.currentTerm <= 1:
		// Term 1 without a vote and without an entry is a first start that a crash cut short.
		return actionBootstrap, nil
	case !f.hasDurable && f.last == 0:
		return refuse("the vote file knows term %d, but there is neither a log nor a checkpoint: both were deleted. %s. %s. %s.",
			max(f.vote.currentTerm, f.vote.votedTerm), noUndo, putBack, freshDir)
	case !f.voteExists:
		return refuse("there is a %s, but the vote file %q is missing: without it this node could vote twice in one term. %s.",
			f.what(), voteFileName, putBack)
	case f.vote.currentTerm < max(f.lastTerm, d.Term):
		return refuse("the vote file is at term %d, but the %s at term %d: the vote file is from an older copy. %s.",
			f.vote.currentTerm, f.what(), max(f.lastTerm, d.Term), putBack)
	case !f.hasDurable && f.first > 1:
		return refuse("the log begins at entry %d and there is no checkpoint that covers entries 1 to %d: the checkpoint was deleted. %s. %s.",
			f.first, f.first-1, noUndo, putBack)
	case !f.hasDurable:
		return actionContinue, nil

	case f.last == 0 && f.lone:
		return refuse("there is a checkpoint at index %d, but the log is empty: the log was deleted, and with it whatever was acknowledged after the checkpoint. %s. %s.",
			d.Index, noUndo, putBack)
	case f.last == 0:
		return actionContinue, nil
	case f.first > d.Index+1:
		return refuse("the log begins at entry %d, but the checkpoint ends at %d: entries %d to %d are missing; the checkpoint is from an older copy. %s. %s.",
			f.first, d.Index, d.Index+1, f.first-1, noUndo, putBack)
	case f.last < d.Index && f.lone:
		return refuse("the log ends at entry %d, but the checkpoint covers %d: the log lost its end or is from an older copy, and whatever was acknowledged after the checkpoint is gone. %s. %s.",
			f.last, d.Index, noUndo, putBack)
	case f.last < d.Index:
		return actionEmptyLog, nil
	case f.termAt != 0 && f.termAt != d.Term && f.lone:
		return refuse("entry %d has term %d in the log, but %d in the checkpoint: they are of different histories. %s.",
			d.Index, f.termAt, d.Term, putBack)
	case f.termAt != 0 && f.termAt != d.Term:
		return actionEmptyLog, nil
	default:
		return actionContinue, nil
	}
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
