package consensus

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// logBase tells what lies before the log, and what raft takes to be in it, since a snapshot took the
// place of its entries. It is replaced as a whole by raft's main goroutine (and before raft runs), and
// read by any. Immutable.
type logBase struct {
	// index and term are those of the last entry that the snapshot covers; 0 if there was none.
	index, term uint64
	// next is the only index that may be appended while the log is empty: raft-wal would begin anywhere,
	// and leave a gap. 0 once the log has an entry.
	next uint64
	// overrated is the end of the log as raft still believes it, if that is beyond index though the log
	// is empty; else 0. hashicorp/raft #697: an installed snapshot does not take back the last index that
	// raft keeps in memory. Before this was mended, the follower looked for the entry at index (each
	// append follows it), did not find it, and was sent the snapshot again, for ever.
	overrated uint64
}

// entry answers for an entry that is not in the log. The snapshot's own has its true term, so that raft
// accepts what follows it. Those beyond, up to what raft believes, have term 0, which no leader's entry
// has: raft takes that for a conflict, deletes up to its belief, and appends the leader's entries. They
// are never applied: a commit index never passes what the leader's message has verified.
func (b *logBase) entry(index uint64) (raft.Log, bool) {
	switch {
	case b == nil || index < 2:
		// Entry 1 alone may be asked for without the one before it: what answers here could be sent.
		return raft.Log{}, false
	case index == b.index:
		return raft.Log{Index: index, Term: b.term, Type: raft.LogNoop}, true
	case index > b.index && index <= b.overrated:
		return raft.Log{Index: index, Type: raft.LogNoop}, true
	}
	return raft.Log{}, false
}

// adopt tells the log what the state machine's checkpoint is when the group starts. REQUIRES: raft does
// not run.
func (s *logStore) adopt(d Durable, ok bool) error {
	first, last, err := s.bounds()
	if err != nil {
		return err
	}
	switch {
	case !ok && last == 0:
		s.base.Store(&logBase{next: 1})
	case ok && last == 0:
		s.base.Store(&logBase{index: d.Index, term: d.Term, next: d.Index + 1})
	case ok && first == d.Index+1:
		s.base.Store(&logBase{index: d.Index, term: d.Term})
	default:
		s.base.Store(&logBase{})
	}
	s.emptying.Store(nil)
	s.sizes.estimate(first, last, func(index uint64, l *raft.Log) error {
		return s.use(func() error { return s.wal.GetLog(index, l) })
	})
	return nil
}

// installed tells the log that a snapshot has become the state: raft is about to empty the log. REQUIRES:
// raft's main goroutine waits for the caller, or raft does not run.
func (s *logStore) installed(index, term uint64) error {
	_, last, err := s.bounds()
	if err != nil {
		return err
	}
	b := &logBase{index: index, term: term, next: index + 1}
	if last > 0 {
		s.emptying.Store(b) // until DeleteRange
		return nil
	}
	if old := s.base.Load(); old != nil && old.overrated > index {
		b.overrated = old.overrated
	}
	s.base.Store(b)
	return nil
}

// covers tells whether index and term are those of the last entry that the snapshot covers, while the log is
// empty. The transport then has raft compare nothing: should the old log have ended at just this index, with
// another term, raft goes by that term, which it remembers, and refuses what follows the snapshot for ever.
func (s *logStore) covers(index, term uint64) bool {
	b := s.base.Load()
	return b != nil && b.next != 0 && b.index == index && b.term == term
}

// overrated reports whether raft believes in entries that are gone: it would ask for votes with them.
func (s *logStore) overrated() bool {
	b := s.base.Load()
	return b != nil && b.overrated > 0
}

// checkNext refuses to begin an empty log anywhere but behind what the checkpoint covers.
func (s *logStore) checkNext(index uint64) error {
	if b := s.emptying.Load(); b != nil {
		return fmt.Errorf("BUG: entry %d is appended before the log was emptied for the snapshot of entry %d", index, b.index)
	}
	if b := s.base.Load(); b != nil && b.next != 0 && index != b.next {
		return fmt.Errorf("BUG: entry %d is appended to an empty log whose next entry is %d", index, b.next)
	}
	return nil
}

// begun notes that the log has entries again.
func (s *logStore) begun() {
	if b := s.base.Load(); b != nil && b.next != 0 {
		s.base.Store(&logBase{index: b.index, term: b.term})
	}
}

// termOf returns the term of an entry of the log, or of the last entry before it; false if neither knows
// the index.
func (s *logStore) termOf(index uint64) (uint64, bool) {
	var l raft.Log
	if err := s.get(index, &l); err != nil || l.Term == 0 {
		return 0, false
	}
	return l.Term, true
}
