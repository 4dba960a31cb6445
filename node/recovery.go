package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"kvstore/internal/record"
	"kvstore/wire"
)

// recoveryFile stands in the data directory from the moment at which Recover begins to change anything until the
// node has led for the first time and the log holds the recovery. It is kept as recovery-TIME.json.
const recoveryFile = "RECOVERY.json"

// recoveryBytesMax bounds the file: nine members of a few hundred bytes each.
const recoveryBytesMax = 64 << 10

// Stages of a recovery.
const (
	recoveryBegun = "begun" // the log may or may not have been changed: Recover must be run again
	recoveryDone  = "done"  // the log names this node as the only voter
)

// RecoveryReport says what Recover does, or would do, and what that may lose. It is written down in the data
// directory and in the log.
type RecoveryReport struct {
	// Format is 1.
	Format int `json:"format"`
	// Stage is begun or done; empty in a plan.
	Stage string `json:"stage,omitempty"`
	// At is when the operator asked for it.
	At time.Time `json:"at"`
	// Version is the build that did it.
	Version string `json:"version"`
	// ClusterID is the cluster's, which stays; HistoryID is the history that ends and NewHistoryID the one that
	// begins: nodes of different histories refuse each other.
	ClusterID    string `json:"cluster_id"`
	HistoryID    string `json:"history_id"`
	NewHistoryID string `json:"new_history_id"`
	// NodeID and Incarnation name the survivor and its data directory.
	NodeID      string `json:"node_id"`
	Incarnation string `json:"incarnation"`
	// WasVoter: the survivor had a vote. A learner may have been far behind.
	WasVoter bool `json:"was_voter"`
	// Lost are the voters that are given up, Dropped the learners: both come back with empty directories.
	Lost    []RecoveryMember `json:"lost"`
	Dropped []RecoveryMember `json:"dropped"`
	// CheckpointIndex and LastIndex bound the entries of the log that count from now on although it is not known
	// that a majority had them; LastTerm is that of the last one. Term is the one that begins.
	CheckpointIndex uint64 `json:"checkpoint_index"`
	LastIndex       uint64 `json:"log_last_index"`
	LastTerm        uint64 `json:"log_last_term"`
	Term            uint64 `json:"term"`
}

// RecoveryMember is a member that a recovery gives up.
type RecoveryMember struct {
	// ID is its name, Incarnation its data directory, which is refused for ever; empty where it was not known.
	ID          string `json:"id"`
	Incarnation string `json:"incarnation,omitempty"`
	// RaftAddress and Address are where it was reached.
	RaftAddress string `json:"raft_address"`
	Address     string `json:"address,omitempty"`
}

// readRecovery reads a directory's recovery file; nil: there is none.
func readRecovery(dir string) (*RecoveryReport, error) {
	path := filepath.Join(dir, recoveryFile)
	fail := func(err error) (*RecoveryReport, error) {
		return nil, fmt.Errorf("cannot read %s, which tells of a recovery under way: %w", path, err)
	}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return fail(err)
	case len(b) > recoveryBytesMax:
		return fail(fmt.Errorf("it has %d bytes; at most %d", len(b), recoveryBytesMax))
	}
	var r RecoveryReport
	if err := json.Unmarshal(b, &r); err != nil {
		return fail(err)
	}
	_, errNew := parseBits(r.NewHistoryID)
	_, errCluster := parseBits(r.ClusterID)
	switch {
	case errNew != nil || errCluster != nil:
		return fail(errors.Join(errNew, errCluster))
	case r.Format != 1 || r.Stage != recoveryBegun && r.Stage != recoveryDone:
		return fail(fmt.Errorf("it has format %d and stage %q", r.Format, r.Stage))
	}
	return &r, nil
}

// write makes r durable in dir: after a crash the old file is there, or the new one.
func (r *RecoveryReport) write(dir string) (err error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("BUG: cannot encode a recovery: " + err.Error())
	}
	path := filepath.Join(dir, recoveryFile)
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot write %s: %w", path, err)
		}
	}()
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return record.SyncDir(dir)
}

// recovery is a recovery that this node finishes when it leads; nil: there is none.
type recovery struct {
	// Immutable after openRecovery.
	dir     string
	history [16]byte // the one that begins
	at      int64    // Unix µs
	// Owned by whoever calls finish.
	report *RecoveryReport

	finished atomic.Bool
}

// over reports whether there is nothing left to finish.
func (r *recovery) over() bool { return r == nil || r.finished.Load() }

// openRecovery finds out whether a recovery is to be finished, and refuses a start in the middle of one.
func openRecovery(dir string) (*recovery, error) {
	r, err := readRecovery(dir)
	if r == nil || err != nil {
		return nil, err
	}
	if r.Stage != recoveryDone {
		return nil, fmt.Errorf("a recovery of data directory %s was begun and cut short: run `kvstore recover` with the same options again, which finishes it, or takes it back where the lost nodes have turned up before anything was changed", dir)
	}
	history, err := parseBits(r.NewHistoryID)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, recoveryFile), err)
	}
	return &recovery{dir: dir, report: r, history: history, at: r.At.UnixMicro()}, nil
}

// pending reports whether the log does not hold the recovery yet, as far as is applied: the state is of a history
// that has ended. Until then nobody is served.
func (r *recovery) pending(s *Shard) bool {
	if r == nil {
		return false
	}
	_, history, _ := s.engine.Identity()
	return history != r.history
}

// finish writes the recovery into the log, marks the records of the members that were given up as removed, and
// puts the file away. Each step may be done again. REQUIRES: this node leads; the caller is keeper.run.
func (r *recovery) finish(ctx context.Context, s *Shard) error {
	if r.over() {
		return nil
	}
	if r.pending(s) {
		if err := r.complete(s); err != nil {
			return err
		}
		text, err := json.Marshal(r.report)
		if err != nil {
			panic("BUG: cannot encode a recovery: " + err.Error())
		}
		if len(text) > wire.RecoverTextBytesMax {
			short := *r.report // who was lost stands in the member records
			short.Lost, short.Dropped = nil, nil
			if text, err = json.Marshal(&short); err != nil {
				panic("BUG: cannot encode a recovery: " + err.Error())
			}
		}
		in := wire.Recover{HistoryID: r.history, BaseRaise: wire.RecoverBaseRaise, At: r.at, Text: string(text)}
		a := s.propose(ctx, &wire.Op{Op: wire.OpRecover}, wire.AppendRecover(nil, &in))
		if r.pending(s) {
			return fmt.Errorf("cannot write the recovery into the log: %s", a.Status)
		}
		s.log.Warn("recovered: a new history has begun with what this node had", "history", r.report.NewHistoryID, "lost", len(r.report.Lost), "last_index", r.report.LastIndex)
	}
	for _, m := range slices.Concat(r.report.Lost, r.report.Dropped) {
		known, ok := s.engine.Member(m.ID)
		if !ok || known.Removed || hex.EncodeToString(known.Incarnation[:]) != m.Incarnation {
			continue // not known, marked already, or come back with an empty directory
		}
		known.Removed = true
		if err := s.proposeMember(ctx, &known); err != nil {
			return err
		}
	}
	kept := filepath.Join(r.dir, "recovery-"+r.report.At.UTC().Format("20060102T150405.000000Z")+".json")
	if err := os.Rename(filepath.Join(r.dir, recoveryFile), kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot put the recovery's file away: %w", err)
	}
	if err := record.SyncDir(r.dir); err != nil {
		return fmt.Errorf("cannot put the recovery's file away: %w", err)
	}
	r.finished.Store(true)
	return nil
}

// complete adds the data directories of the members given up that the log told of only behind the checkpoint, so that
// the plan could not know them. REQUIRES: pending, so that nobody can have joined anew under one of these names, and all
// of the log is applied.
func (r *recovery) complete(s *Shard) error {
	next := *r.report
	changed := false
	for _, all := range []*[]RecoveryMember{&next.Lost, &next.Dropped} {
		*all = slices.Clone(*all)
		for i := range *all {
			m := &(*all)[i]
			known, ok := s.engine.Member(m.ID)
			if now := hex.EncodeToString(known.Incarnation[:]); ok && now != m.Incarnation {
				m.Incarnation, m.Address, changed = now, known.Address, true
			}
		}
	}
	if !changed {
		return nil
	}
	if err := next.write(r.dir); err != nil { // before the entry: afterwards nobody could tell
		return err
	}
	r.report = &next
	return nil
}

// identity gives the ids of the cluster and of the history that this node is to be known by. Until its state says the
// same, a survivor holds itself to the history that its recovery begins, and a node that joined to that of the cluster
// which took it in: replaying a log from its beginning leads through histories that have ended, and a node that
// showed one of those to the others would be refused.
func (s *Shard) identity() (cluster, history [16]byte, ok bool) {
	cluster, history, ok = s.engine.Identity()
	switch {
	case s.claimed == [16]byte{} || s.reached.Load():
		return cluster, history, ok
	case !ok: // the state is lost, or new
		return s.claimedCluster, s.claimed, true
	}
	if history == s.claimed {
		s.reached.Store(true)
		return cluster, history, true
	}
	for _, r := range s.engine.Recoveries() {
		if r.HistoryID == s.claimed {
			s.reached.Store(true) // and gone on to a later one
			return cluster, history, true
		}
	}
	return cluster, s.claimed, true
}
