package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"kvstore/consensus"
	"kvstore/engine"
	"kvstore/wire"
)

// openEngine opens the state. Where that is in quarantine or damaged it is set aside, and rebuild says that it must
// be made anew by the log: from its first entry, or behind a copy of another node's state. A node that can do neither
// is told what it has lost, and nothing of it is touched.
//
// The log, the vote and the identity stay: what this node promised to others it still knows.
func (s *Shard) openEngine(o *Options, eo engine.Options, so *shardOptions) (rebuild bool, err error) {
	held := s.hold.state()
	cause := errors.New(held.Reason)
	if !held.Pending || held.Moved {
		if s.engine, err = engine.Open(eo); !errors.Is(err, engine.ErrDamaged) {
			return held.Pending, err
		}
		cause = err
		s.log.Error("the stored state cannot be used", "error", err)
	}
	in, read, err := s.inspect(o, so)
	if err != nil {
		return false, fmt.Errorf("the state of this node is damaged (%w), and its log can't be used to make it anew: %w", cause, err)
	}
	whole := in.First == 1 && in.Reach == 0
	if len(in.Others) == 0 && !whole {
		// The next start looks again at what is there by then.
		return false, errors.Join(s.lost(eo, cause), s.hold.giveUp(), engine.ForgetFailures(o.DataDir, so.id))
	}
	if !held.Pending {
		if err := s.hold.begin(time.Now(), cause); err != nil {
			return false, err
		}
	}
	if err := s.hold.reach(in.Reach, read); err != nil { // while the checkpoint is there to tell
		return false, err
	}
	if whole {
		so.progress("making the state anew from the log")
	} else {
		so.progress("making the state anew from that of " + strings.Join(in.Others, " or "))
	}
	to, err := engine.Quarantine(o.DataDir, so.id)
	if err != nil {
		return false, err
	}
	s.log.Warn("the stored state was set aside and is made anew", "reason", cause, "moved_to", to, "others", in.Others)
	if err := s.hold.moved(); err != nil {
		return false, err
	}
	s.engine, err = engine.Open(eo)
	return true, err
}

// inspect looks at the log, beside the state's checkpoint if that can be read.
func (s *Shard) inspect(o *Options, so *shardOptions) (in consensus.Inspection, read bool, err error) {
	co := o.Consensus
	co.Dir, co.NodeID, co.Group, co.Incarnation, co.Logger = so.logDir, o.NodeID, so.id, so.roster.self.Incarnation, o.Logger
	co.EntryBytesMax = wire.EntryBytesMax
	var checkpoint *consensus.Durable
	cp, ok, unreadable := engine.ReadCheckpoint(o.DataDir, so.id)
	if read = ok && unreadable == nil; read { // one that can't be read tells nothing
		checkpoint = &consensus.Durable{Index: cp.Index, Term: cp.Term, Configuration: cp.Configuration, ConfigurationIndex: cp.ConfigurationIndex, Installed: cp.Installed}
	}
	in, err = consensus.Inspect(co, checkpoint)
	return in, read, err
}

// rebuilt ends the quarantine once the state has been made anew, or the log will do so by itself: from here on a
// start needs no help of others.
func (s *Shard) rebuilt() error {
	done, err := s.hold.end()
	if err != nil || !done {
		return err
	}
	s.log.Warn("the state of this node was made anew", "index", s.engine.Applied().Index, "reason", s.hold.state().Reason)
	if len(s.group.Status().Configuration) < 2 {
		return nil // what was set aside is all that there is beside the log: somebody may want to look at it
	}
	if err := engine.RemoveQuarantined(s.dataDir, s.id); err != nil {
		s.log.Warn("cannot remove the state that was set aside: it takes up space and is of no use any more", "error", err)
	}
	return nil
}

// failed takes the failures of engine and log after which the node may not go on.
func (s *Shard) failed(err error) {
	switch {
	case errors.Is(err, engine.ErrDamaged):
		s.quarantine(err)
	case errors.Is(err, consensus.ErrRestart):
		s.fatal(fmt.Errorf("%w: %w", ErrRestart, err))
	default:
		s.fatal(err)
	}
}

// damaged takes news of damage that a read or a scrub has met. It never blocks.
//
// Where other nodes have the data this node makes its state anew from theirs, in its turn; see health.repair. One
// that is alone goes on with what is whole: what is damaged is refused by its checksum, and to stop would take
// the rest from its users too.
func (s *Shard) damaged(cause error) {
	s.log.Error("stored data is damaged", "error", cause)
	text := cause.Error()
	s.damage.CompareAndSwap(nil, &text)
}

// scrubbed takes what a scrub of the state found, nil if all is well: what was seen before is mended then, by a
// compaction or by writing over it.
func (s *Shard) scrubbed(damage error) {
	if damage == nil {
		s.damage.Store(nil)
		return
	}
	s.damaged(damage)
}

// quarantine takes the state out of service, for good, and asks for a restart that makes it anew. It never blocks.
func (s *Shard) quarantine(cause error) {
	if s.quarantined.Swap(true) {
		return
	}
	s.served.Store(false)
	s.log.Error("the state of this node may not be served any more", "reason", cause)
	go func() { // ends with its work, which ends the node
		err := s.hold.begin(time.Now(), cause)
		if err == nil {
			err = fmt.Errorf("%w: its state may not be served and is made anew: %w", ErrRestart, cause)
		}
		s.fatal(err)
	}()
}

// digests gives the newest digests of the state.
func (s *Shard) digests() []digestPoint {
	all := s.engine.DigestsAt()
	points := make([]digestPoint, len(all))
	for i, p := range all {
		points[i] = digestPoint{p.Index, p.Digest}
	}
	return points
}

// scrubLog checks the log. Damage there is no damage of the state: what the log still holds behind the checkpoint is
// for other nodes, and what lies above it has been applied. This node can't mend it by itself, since it was counted on
// when these entries were committed.
func (s *Shard) scrubLog(ctx context.Context, rate int64) (damage string, err error) {
	r, err := s.group.ScrubLog(ctx, rate)
	if r.DamagedEntries == 0 {
		s.logDamage.Store(nil)
		return "", err
	}
	d := r.Damaged[0]
	damage = fmt.Sprintf("%d entries of the log are damaged, the first is %d in %s: %v", r.DamagedEntries, d.Index, filepath.Base(d.File), d.Err)
	s.log.Error("the log is damaged", "entries", r.DamagedEntries, "index", d.Index, "file", d.File, "error", d.Err)
	s.logDamage.Store(&damage)
	return damage, err
}

// lost says what a node has lost that can't make its state anew, as far as that can be told.
func (s *Shard) lost(eo engine.Options, cause error) error {
	const text = "the state of this node is damaged, no other node has it, and the log does not reach back to its first entry, so that it can't be made anew: %w\n%s" +
		"Nothing was changed. Put the damaged files back from a copy of the data directory if there is one, or restore from a backup into a new data directory"
	missing, err := engine.Missing(eo.Dir, eo.Group)
	if err != nil {
		return fmt.Errorf(text, cause, fmt.Sprintf("What exactly is lost can't be told: %v.\n", err))
	}
	return fmt.Errorf(text, cause, missing)
}
