package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// recoverMark is what the entry of a recovery carries in its extensions, so that a second Recover knows it for
// what it is. raft and the state machine do not look there.
var recoverMark = []byte("kvstore: recovered without a majority")

// RecoverOptions configures Recover.
type RecoverOptions struct {
	// NodeID is the name of the node that the directory belongs to, and Address where its transport is going
	// to listen.
	NodeID, Address string
	// Durable is StateMachine.Durable of the state machine that belongs to the directory.
	Durable func() (Durable, bool)
	// DryRun tells what would be done and changes nothing, but what every start repairs: the torn end of a log.
	DryRun bool
	// SegmentBytes is Options.SegmentBytes.
	SegmentBytes int
	// Logger receives log lines. Default slog.Default().
	Logger *slog.Logger

	// crash is called at the named steps: "voted", "appended". Tests stop there.
	crash func(step string)
}

// RecoverReport says what Recover found and did.
type RecoverReport struct {
	// Changed says that this call changed the directory (or would have, with DryRun). It is false when this
	// node was the only voter already; then, if an earlier call made it so, the rest describes what that did.
	Changed bool `json:"changed"`
	// OldConfiguration are the members before, committed or not, and OldConfigurationIndex the entry that
	// made them so. Where it is not known that this was committed, the voters of the configuration before it are
	// among them, as voters: they may be a majority that never heard of it.
	OldConfiguration      []Member `json:"old_configuration"`
	OldConfigurationIndex uint64   `json:"old_configuration_index"`
	// WasVoter says whether this node had a vote among them. A learner may lack more than a voter.
	WasVoter bool `json:"was_voter"`
	// FirstIndex and LastIndex bound the log before, and LastTerm is the term of its last entry. An empty log
	// has FirstIndex 0, and the index and term of the checkpoint as its last.
	FirstIndex uint64 `json:"first_index"`
	LastIndex  uint64 `json:"last_index"`
	LastTerm   uint64 `json:"last_term"`
	// CheckpointIndex is the last entry of the durable checkpoint, 0 if there is none. The entries above it, up
	// to LastIndex, are applied at the next start, whether a majority had them or not.
	CheckpointIndex uint64 `json:"checkpoint_index"`
	// OldTerm and NewTerm are this node's terms before and after.
	OldTerm uint64 `json:"old_term"`
	NewTerm uint64 `json:"new_term"`
	// Index is the entry that makes this node the only member.
	Index uint64 `json:"index"`
}

// Recover makes this node the only member of its group, although no majority of the others agrees, because
// they are lost. dir is Options.Dir of a node that does not run. Everything in its log counts as committed from
// then on. What a majority had acknowledged without this node is lost: that is at most what the others wrote
// after LastIndex. The others must never run again with what they hold; the caller sees to that, and to the
// operator's consent.
//
// It is done by two writes: a new term, then one entry that names this node alone. A crash between them leaves a
// node that needs its majority, and a second call finishes the work; after both it changes nothing more. An
// error that matches ErrContradiction refuses a directory that Open would refuse, or that does not know this
// node.
func Recover(dir string, o RecoverOptions) (report RecoverReport, err error) {
	if o.crash == nil {
		o.crash = func(string) {}
	}
	options := Options{Dir: dir, NodeID: o.NodeID, Address: o.Address, SegmentBytes: o.SegmentBytes, Logger: o.Logger,
		LogCacheBytes: -1, crash: o.crash}.withDefaults()
	if err := options.validate(); err != nil {
		return report, err
	}
	if _, err := os.Stat(filepath.Join(dir, voteFileName)); err != nil { // before anything is created
		return report, fmt.Errorf("%w in %q: there is nothing to recover: no vote file: %w", ErrContradiction, dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return report, fmt.Errorf("cannot recover: %w", err)
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	// The failStop is not armed: failures are returned.
	g := &Group{o: options, log: options.Logger, sm: checkpointOnly{durable: o.Durable}, fault: newFailStop(options.Fatal)}
	if g.stable, err = openStableStore(dir, options.WriteStallTimeout, g.fault); err != nil {
		return report, err
	}
	if g.logs, err = g.openLog(); err != nil {
		return report, err
	}
	defer func() {
		g.fault.close()
		err = errors.Join(err, g.logs.close())
	}()
	return g.recoverAlone(o)
}

// checkpointOnly is a state machine of which no more is asked than its checkpoint.
type checkpointOnly struct {
	StateMachine
	durable func() (Durable, bool)
}

// Durable implements StateMachine.
func (c checkpointOnly) Durable() (Durable, bool) { return c.durable() }

// recoverAlone is Recover with log and vote open.
func (g *Group) recoverAlone(o RecoverOptions) (RecoverReport, error) {
	f, err := g.inspect()
	if err != nil {
		return RecoverReport{}, err
	}
	act, err := f.decide(g.o.Dir)
	if err != nil {
		return RecoverReport{}, err
	}
	switch act {
	case actionBootstrap, actionJoin:
		return RecoverReport{}, fmt.Errorf("%w in %q: there is nothing to recover: this node never had an entry of its group", ErrContradiction, g.o.Dir)
	case actionEmptyLog: // the log is older than the checkpoint, or of another history
		if !o.DryRun {
			if err := g.emptyLog(f); err != nil {
				return RecoverReport{}, err
			}
		}
		f.first, f.last = 0, 0
	}
	if !o.DryRun {
		if err := g.logs.adopt(f.durable, f.hasDurable); err != nil {
			return RecoverReport{}, err
		}
	}
	g.stable.setLog(f.logSeed)

	r := RecoverReport{FirstIndex: f.first, LastIndex: f.last, LastTerm: f.lastTerm,
		CheckpointIndex: f.durable.Index, OldTerm: f.vote.currentTerm}
	if f.last == 0 {
		r.LastIndex, r.LastTerm = f.durable.Index, f.durable.Term
	}
	now, err := g.configurationUpTo(f, f.last)
	if err != nil {
		return RecoverReport{}, err
	}
	self, voters := find(now.members, g.o.NodeID)
	r.OldConfiguration, r.OldConfigurationIndex, r.WasVoter = now.members, now.index, self.Voter
	if self.ID != "" && !(self.Voter && voters == 1) {
		if err := g.addDoubtful(f, &r); err != nil {
			return RecoverReport{}, err
		}
	}
	switch {
	case self.ID == "":
		return RecoverReport{}, fmt.Errorf("%w in %q: its group %v does not know node %q", ErrContradiction, g.o.Dir, now.members, g.o.NodeID)
	case self.Voter && voters == 1:
		return g.recoveredBefore(f, r, now.index)
	}
	r.Changed, r.NewTerm, r.Index = true, r.OldTerm+1, r.LastIndex+1
	if o.DryRun {
		return r, nil
	}
	// The term first: an entry of a term that the vote file does not know is a contradiction.
	if err := g.stable.SetUint64([]byte(keyCurrentTerm), r.NewTerm); err != nil {
		return RecoverReport{}, err
	}
	o.crash("voted")
	entry := &raft.Log{
		Index: r.Index, Term: r.NewTerm, Type: raft.LogConfiguration, AppendedAt: time.Now(), Extensions: recoverMark,
		Data: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
			{Suffrage: raft.Voter, ID: raft.ServerID(g.o.NodeID), Address: raft.ServerAddress(g.o.Address)},
		}}),
	}
	if err := g.logs.StoreLog(entry); err != nil {
		return RecoverReport{}, err
	}
	o.crash("appended")
	g.log.Warn("made this node the only member of its group", "index", r.Index, "term", r.NewTerm, "before", now.members)
	return r, nil
}

// recoveredBefore completes the report of a directory whose only voter this node is, since the entry at index.
func (g *Group) recoveredBefore(f found, r RecoverReport, index uint64) (RecoverReport, error) {
	r.NewTerm = r.OldTerm
	if f.last == 0 || index < f.first || index <= f.durable.ConfigurationIndex {
		return r, nil // a checkpoint covers it: the node has run since
	}
	var entry, before raft.Log
	if err := g.logs.get(index, &entry); err != nil {
		return RecoverReport{}, err
	}
	if !bytes.Equal(entry.Extensions, recoverMark) {
		return r, nil
	}
	old, err := g.configurationUpTo(f, index-1)
	if err != nil {
		return RecoverReport{}, err
	}
	was, _ := find(old.members, g.o.NodeID)
	r.OldConfiguration, r.OldConfigurationIndex, r.WasVoter = old.members, old.index, was.Voter
	if err := g.addDoubtful(f, &r); err != nil {
		return RecoverReport{}, err
	}
	r.Index, r.NewTerm, r.OldTerm = index, entry.Term, entry.Term-1
	r.LastIndex, r.LastTerm = index-1, f.durable.Term
	if index > f.first {
		if err := g.logs.get(index-1, &before); err != nil {
			return RecoverReport{}, err
		}
		r.LastTerm = before.Term
	} else {
		r.FirstIndex = 0 // the log was empty
	}
	return r, nil
}

// addDoubtful adds to r.OldConfiguration the voters of the configuration before it, unless the checkpoint shows that it
// was committed. A leader that is cut off appends a change that the others never hear of; they may have a majority
// without one of those whom it leaves out, and the operator is to be asked for him too. raft allows one change at a time.
func (g *Group) addDoubtful(f found, r *RecoverReport) error {
	if r.OldConfigurationIndex <= f.durable.ConfigurationIndex || f.first == 0 {
		return nil
	}
	before, ok, err := g.logs.newestConfigurationIn(max(f.first, f.durable.ConfigurationIndex+1), r.OldConfigurationIndex-1)
	if err != nil {
		return err
	}
	if !ok && f.hasDurable {
		c, err := decodeConfiguration(f.durable.Configuration)
		if err != nil {
			return fmt.Errorf("%w in %q: the checkpoint at %d: %w", ErrContradiction, g.o.Dir, f.durable.Index, err)
		}
		before.members = membersOf(c)
	}
	members := slices.Clone(r.OldConfiguration)
	for _, m := range before.members {
		i := slices.IndexFunc(members, func(n Member) bool { return n.ID == m.ID })
		switch {
		case !m.Voter:
		case i < 0:
			members = append(members, m)
		default:
			members[i].Voter = true
		}
		r.WasVoter = r.WasVoter || m.Voter && m.ID == g.o.NodeID
	}
	r.OldConfiguration = members
	return nil
}

// configurationUpTo returns the configuration that the entries up to last make: that of the newest such entry
// in the log, or of the checkpoint.
func (g *Group) configurationUpTo(f found, last uint64) (committedConfiguration, error) {
	low := max(f.first, f.durable.ConfigurationIndex+1)
	if f.first == 0 {
		low = last + 1 // the log is empty
	}
	c, ok, err := g.logs.newestConfigurationIn(low, last)
	if ok || err != nil {
		return c, err
	}
	if !f.hasDurable || f.durable.ConfigurationIndex > last && last > 0 {
		return c, fmt.Errorf("%w in %q: neither the log nor the checkpoint says who the members were", ErrContradiction, g.o.Dir)
	}
	decoded, err := decodeConfiguration(f.durable.Configuration)
	if err != nil {
		return c, fmt.Errorf("%w in %q: the checkpoint at %d: %w", ErrContradiction, g.o.Dir, f.durable.Index, err)
	}
	return committedConfiguration{f.durable.ConfigurationIndex, membersOf(decoded)}, nil
}

// newestConfigurationIn returns the newest configuration in the entries from low to high, committed or not; ok is
// false if they hold none. REQUIRES: the log has them all.
func (s *logStore) newestConfigurationIn(low, high uint64) (newest committedConfiguration, ok bool, err error) {
	for i := high; i >= max(low, 1); i-- {
		var l raft.Log
		if err := s.get(i, &l); err != nil {
			return newest, false, err
		}
		if l.Type != raft.LogConfiguration {
			continue
		}
		c, err := decodeConfiguration(l.Data)
		if err != nil {
			return newest, false, fmt.Errorf("cannot use entry %d: %w", i, err)
		}
		return committedConfiguration{i, membersOf(c)}, true, nil
	}
	return newest, false, nil
}
