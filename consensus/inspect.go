package consensus

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"kvstore/consensus/peer"
)

// Inspection is what a directory holds while no Group has it open.
type Inspection struct {
	// First and Last bound the log; zeros when it is empty. With First at 1 and without Reach the log alone makes the
	// whole state.
	First, Last uint64
	// Others are the other nodes that may have the state: the members of the newest configuration, committed or
	// not, or the nodes that this one ever knew where no configuration can be found. Empty: this node is alone.
	Others []string
	// Reach is the entry up to which the state surely reached that is to be made anew, where the log does not reach as
	// far: the copy must. 0: the log tells enough, or the checkpoint can't be read.
	Reach uint64
}

// Inspect looks at the directory o.Dir for who must decide how to start a node whose state machine is damaged.
// checkpoint is the newest checkpoint of the state machine if that can be read, else nil. It reads o.Dir, NodeID,
// Incarnation, Group and Logger, and completes what a crash left unfinished in the log, as Open would. Errors: a
// directory that is open, a log that can't be read, and, matching ErrContradiction, one that has lost entries which
// the checkpoint covers.
func Inspect(o Options, checkpoint *Durable) (in Inspection, err error) {
	o = o.withDefaults()
	lock, err := lockDir(o.Dir)
	if err != nil {
		return in, fmt.Errorf("cannot look at the log: %w", err)
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	fault := newFailStop(func(error) {}) // raft does not run: every failure is returned
	logs, err := openLogStore(logStoreOptions{
		dir: o.Dir, log: o.Logger, fault: fault, metrics: new(Metrics),
		segmentBytes: o.SegmentBytes, entryMax: o.EntryBytesMax, bytesMax: o.LogBytesMax, cache: -1, keep: -1,
		stall: o.WriteStallTimeout, vfs: o.vfs, meta: o.meta, crash: o.crash,
		durable: func() (Durable, bool) { return Durable{}, false },
	})
	if err != nil {
		return in, err
	}
	defer func() { err = errors.Join(err, logs.close()) }()
	if in.First, in.Last, err = logs.bounds(); err != nil {
		return in, err
	}
	if checkpoint != nil {
		if in.Reach, err = logs.owes(in, checkpoint, o.Dir); err != nil {
			return in, err
		}
	}
	members, err := logs.newestConfiguration(in.First, in.Last, checkpoint)
	if err != nil {
		return in, err
	}
	if members == nil {
		in.Others, err = peer.Known(o.Dir, o.NodeID, o.Incarnation, o.Group)
		return in, err
	}
	for _, m := range members {
		if m.ID != o.NodeID {
			in.Others = append(in.Others, m.ID)
		}
	}
	slices.Sort(in.Others)
	return in, nil
}

// owes returns Inspection.Reach, or an error if the log has lost entries that the checkpoint covers. The checkpoint is
// about to be given up with its state, and is the only thing that says so: majorities were counted with those entries,
// and without them this node would vote for who lacks them too. Only of one that was installed, nothing is acknowledged
// before the log was emptied for it.
func (s *logStore) owes(in Inspection, checkpoint *Durable, dir string) (reach uint64, err error) {
	var l raft.Log
	if i := checkpoint.Index; in.First <= i && i <= in.Last && in.Last > 0 {
		if err := s.get(i, &l); err != nil {
			return 0, err
		}
	}
	if in.Last >= checkpoint.Index && (l.Term == 0 || checkpoint.Term == 0 || l.Term == checkpoint.Term) {
		return 0, nil
	}
	if checkpoint.Installed {
		return checkpoint.Index, nil
	}
	return 0, fmt.Errorf("%w in %q: the checkpoint of the state that is to be made anew covers entry %d of term %d, but the log ends at %d, or is of another history: it has lost entries that this node acknowledged, or is from an older copy. Nothing is made anew from it. In a cluster: remove this member (kvctl member remove), then let it join again with an empty data directory; the others have what it is missing",
		ErrContradiction, dir, checkpoint.Index, checkpoint.Term, in.Last)
}

// newestConfiguration gives the members of the newest configuration in the log from first to last or, where it holds
// none, in the checkpoint; nil if neither has one.
func (s *logStore) newestConfiguration(first, last uint64, checkpoint *Durable) ([]Member, error) {
	low := max(first, 1)
	if checkpoint != nil {
		low = max(low, checkpoint.ConfigurationIndex+1)
	}
	if c, ok, err := s.newestConfigurationIn(low, last); ok || err != nil {
		return c.members, err
	}
	if checkpoint == nil {
		return nil, nil
	}
	c, err := decodeConfiguration(checkpoint.Configuration)
	if err != nil {
		return nil, nil //nolint:nilerr // a damaged checkpoint knows nothing
	}
	return membersOf(c), nil
}
