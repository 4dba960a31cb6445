package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kvstore/client"
	"kvstore/consensus"
	"kvstore/engine"
	"kvstore/internal/record"
	"kvstore/wire"
)

// ErrUnconfirmed says that Recover has changed nothing because nobody confirmed it; the report says what it would do.
var ErrUnconfirmed = errors.New("the recovery is not confirmed")

// probeTimeout bounds the question to one lost node whether it is really gone: a dead machine answers nothing, and a
// living one within milliseconds.
const probeTimeout = 2 * time.Second

// RecoverOptions configures Recover.
type RecoverOptions struct {
	// NodeID is the survivor's name. Empty: that of the data directory.
	NodeID string
	// DataDir is the survivor's data directory. No process may use it.
	DataDir string
	// Address is where the other nodes are to reach the survivor's log, for one whose own record is missing.
	Address string
	// Version names the build, for the report.
	Version string
	// Lost names the voters that are given up: exactly all but the survivor.
	Lost []string
	// Confirm is the cluster's id, by which the operator says that he means this cluster. Empty: only look.
	Confirm string
	// Engine configures the store, as for the node.
	Engine engine.Options
	// Consensus configures the log, as for the node.
	Consensus consensus.Options
}

// Recover makes a node that has lost the majority of its cluster for good the only voter of it, so that the cluster
// goes on with what this one node holds. What the lost majority acknowledged and this node never received is lost;
// what this node received and never learnt to be committed counts from now on. The cluster keeps its id and begins a
// new history: no node that was given up is ever let in again with its directory. What is acknowledged from then on has
// revisions above all that were acknowledged before, by whomever: the recovery raises them by 2^32 entries, and nothing
// is served before it. Within the old history one revision may stand for two different entries: one of the survivor's
// own that was never committed and counts now, and one that the lost majority committed in its place; clients may have
// seen the latter, and the history's id tells them apart. The next start of the node writes the report into the log.
//
// It refuses, and changes nothing, unless o.Lost names exactly the other voters and none of them answers. Without
// o.Confirm it returns the report of what it would do with ErrUnconfirmed. It may be run again after any failure or
// crash.
func Recover(ctx context.Context, o RecoverOptions) (r *RecoveryReport, err error) {
	lock, err := lockDir(ctx, o.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	id, err := survivor(&o)
	if err != nil {
		return nil, err
	}
	before, err := readRecovery(o.DataDir)
	if err != nil {
		return nil, err
	}
	if before != nil && before.Stage == recoveryDone {
		return before, errors.New("the recovery is done already: start the node, which writes it into the log when it leads")
	}
	if q, err := readQuarantine(o.DataDir); err != nil || q.Pending || q.Stopped {
		return nil, errors.Join(err, fmt.Errorf("the state of this node was found wrong and is to be built anew from the others (%s): recover from another node, and from this one only if no other is left: remove %s then", cmp.Or(q.Reason, "the reason is not known"), filepath.Join(o.DataDir, quarantineName)))
	}
	eo := o.Engine
	eo.Dir, eo.Group = o.DataDir, recoverGroup
	e, err := engine.Open(eo)
	if err != nil {
		return nil, fmt.Errorf("cannot recover from this node: %w", err)
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	self, _ := e.Member(id.NodeID)
	co := consensus.RecoverOptions{
		NodeID: id.NodeID, Address: cmp.Or(self.RaftAddress, o.Address), SegmentBytes: o.Consensus.SegmentBytes,
		Durable: stateMachine{e}.Durable, DryRun: true,
	}
	found, err := consensus.Recover(o.logDir(), co)
	if err != nil {
		return nil, fmt.Errorf("cannot recover from this node: %w", err)
	}
	if r, err = plan(&o, &id, e, &found); err != nil {
		return nil, err
	}
	if before != nil {
		r.NewHistoryID, r.At = before.NewHistoryID, before.At
		if !found.Changed {
			// The log was changed and the crash came after that.
			return before, before.done(&o, &id)
		}
	}
	if err := r.checkLost(&o, found.Changed); err != nil {
		return nil, takeBack(&o, before, err)
	}
	if err := r.checkSilence(ctx); err != nil {
		return nil, takeBack(&o, before, err)
	}
	switch o.Confirm {
	case "":
		return r, ErrUnconfirmed
	case r.ClusterID:
	default:
		return r, fmt.Errorf("%w: %q is not the id of this cluster, which is %s; nothing was changed", ErrUnconfirmed, o.Confirm, r.ClusterID)
	}
	// From here on a start refuses until the rest is done. A node that joined holds itself to the history that it
	// joined; that one ends.
	r.Stage = recoveryBegun
	if err := r.write(o.DataDir); err != nil {
		return nil, err
	}
	if id.Joined != nil {
		id.Joined = nil
		if err := id.write(o.DataDir); err != nil {
			return nil, err
		}
	}
	co.DryRun = false
	if _, err := consensus.Recover(o.logDir(), co); err != nil {
		return nil, fmt.Errorf("cannot make this node the only voter: %w: run the same command again", err)
	}
	return r, r.done(&o, &id)
}

// done notes that the log names the survivor as the only voter. From here on its directory belongs to the new history.
func (r *RecoveryReport) done(o *RecoverOptions, id *identity) error {
	id.Joined, id.ClusterID, id.HistoryID = nil, r.ClusterID, r.NewHistoryID
	id.Refused = "" // those who refused it are given up
	if err := id.write(o.DataDir); err != nil {
		return err
	}
	r.Stage = recoveryDone
	return r.write(o.DataDir)
}

// recoverGroup is the group that a node has.
const recoverGroup = 1

// logDir is the directory of the group's log.
func (o *RecoverOptions) logDir() string {
	return filepath.Join(o.DataDir, "groups", strconv.Itoa(recoverGroup), "log")
}

// survivor reads the identity of the directory that is to be recovered. It creates nothing.
func survivor(o *RecoverOptions) (id identity, err error) {
	id, err = readIdentity(o.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return id, fmt.Errorf("data directory %s is not one of a node: give the directory of the node that survived with --data-dir", o.DataDir)
	}
	if err != nil {
		return id, err
	}
	if id, _, err = loadIdentity(o.DataDir, cmp.Or(o.NodeID, id.NodeID)); err != nil {
		return id, err
	}
	if !id.Served {
		return id, fmt.Errorf("data directory %s never took part in a cluster: there is nothing to recover", o.DataDir)
	}
	return id, id.checkNotEmptied(o.DataDir)
}

// plan describes what is to be done with what was found.
func plan(o *RecoverOptions, id *identity, e *engine.Engine, found *consensus.RecoverReport) (*RecoveryReport, error) {
	cluster, history, ok := e.Identity()
	if !ok {
		return nil, errors.New("this node does not know the cluster's id yet: its store is empty, and there is nothing to recover from it")
	}
	var fresh [16]byte
	rand.Read(fresh[:]) // never fails: it ends the process if the system has no randomness
	r := &RecoveryReport{
		Format: 1, At: time.Now().UTC().Truncate(time.Microsecond), Version: clipVersion(o.Version),
		ClusterID: hex.EncodeToString(cluster[:]), HistoryID: hex.EncodeToString(history[:]), NewHistoryID: hex.EncodeToString(fresh[:]),
		NodeID: id.NodeID, Incarnation: id.Incarnation, Lost: []RecoveryMember{}, Dropped: []RecoveryMember{},
		CheckpointIndex: found.CheckpointIndex, LastIndex: found.LastIndex, LastTerm: found.LastTerm, Term: found.NewTerm, WasVoter: found.WasVoter,
	}
	for _, m := range byID(found.OldConfiguration) {
		if m.ID == id.NodeID {
			continue
		}
		out := RecoveryMember{ID: m.ID, RaftAddress: m.Address}
		if known, ok := e.Member(m.ID); ok {
			out.Incarnation, out.Address = hex.EncodeToString(known.Incarnation[:]), known.Address
		}
		if m.Voter {
			r.Lost = append(r.Lost, out)
		} else {
			r.Dropped = append(r.Dropped, out)
		}
	}
	return r, nil
}

// checkLost refuses unless the operator names exactly the voters that are given up.
func (r *RecoveryReport) checkLost(o *RecoverOptions, changes bool) error {
	var voters []string
	for _, m := range r.Lost {
		voters = append(voters, m.ID)
	}
	named := slices.Sorted(slices.Values(o.Lost))
	switch {
	case !changes:
		return fmt.Errorf("%s is the only voter of its cluster already: there is nothing to recover; just start it", r.NodeID)
	case !slices.Equal(named, voters):
		return fmt.Errorf("--lost must name exactly the other voters, which are %s, and names %s: while one of them is not lost, start that one instead, or recover from the one that has most", strings.Join(voters, ", "), cmp.Or(strings.Join(named, ", "), "none"))
	}
	return nil
}

// takeBack removes the file of a recovery that was begun, when err is why it can't go on and the log was not changed.
func takeBack(o *RecoverOptions, before *RecoveryReport, err error) error {
	if before == nil {
		return err
	}
	if rerr := os.Remove(filepath.Join(o.DataDir, recoveryFile)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return errors.Join(err, rerr)
	}
	return errors.Join(fmt.Errorf("%w. The recovery that was begun had changed nothing and is taken back: the node can be started as before", err), record.SyncDir(o.DataDir))
}

// checkSilence refuses while one of the voters that are to be given up is there.
func (r *RecoveryReport) checkSilence(ctx context.Context) error {
	f := client.NewForwarder(client.ForwarderOptions{Name: "recovery of " + r.NodeID})
	answers := make(chan error, len(r.Lost))
	for _, m := range r.Lost {
		go func() { answers <- r.probe(ctx, f, &m) }() // owned by this call, which takes its answer
	}
	var errs []error
	for range r.Lost {
		errs = append(errs, <-answers)
	}
	errs = append(errs, f.Close())
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w. Nothing was changed: a cluster of which a majority can be brought up again loses nothing, and two that go on beside each other can't be brought together", err)
	}
	return nil
}

// probe returns an error if the member m is there: it answers for the same cluster, or at its address somebody
// listens who keeps a connection open, as a node does whose process hangs.
func (r *RecoveryReport) probe(ctx context.Context, f *client.Forwarder, m *RecoveryMember) error {
	if m.Address != "" {
		ask, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		payload := []byte{wire.StatusLocal}
		a := f.Do(ask, m.Address, &wire.Request{Op: wire.OpStatus, Group: wire.GroupDefault, ID: 1, Body: payload, Payload: payload, TimeoutMs: uint32(probeTimeout.Milliseconds())})
		var d statusDocument
		if a.Status == wire.StatusOK && json.Unmarshal(a.Payload, &d) == nil {
			if d.ClusterID == r.ClusterID && d.NodeID == m.ID {
				return fmt.Errorf("%s is not lost: it answers at %s for this cluster", m.ID, m.Address)
			}
			return nil // another cluster or node has its address now
		}
	}
	for _, address := range []string{m.RaftAddress, m.Address} {
		if address != "" && holdsOpen(ctx, address) {
			return fmt.Errorf("something listens at %s, an address of %s: if the node hangs, end its process; if that is something else, stop it while the recovery runs", address, m.ID)
		}
	}
	return nil
}

// holdsOpen reports whether somebody takes connections at address and keeps them: a node waits for the other side to
// begin, also while its process hangs. Nobody listens at a machine that is gone, and a proxy before it hangs up.
func holdsOpen(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	deadline, _ := ctx.Deadline()
	if err = c.SetDeadline(deadline); err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	_ = c.Close() // nothing was written to it that could be lost
	timeout := net.Error(nil)
	return err == nil || errors.As(err, &timeout) && timeout.Timeout()
}

// Text says for people what a recovery does, and what that may lose.
func (r *RecoveryReport) Text() string {
	var b strings.Builder
	names := func(all []RecoveryMember) string {
		var ids []string
		for _, m := range all {
			ids = append(ids, m.ID)
		}
		return strings.Join(ids, ", ")
	}
	fmt.Fprintf(&b, "cluster       %s\n", r.ClusterID)
	fmt.Fprintf(&b, "survivor      %s, log up to entry %d of term %d, checkpoint at %d\n", r.NodeID, r.LastIndex, r.LastTerm, r.CheckpointIndex)
	if !r.WasVoter {
		fmt.Fprintf(&b, "              a learner: it may be far behind what the voters acknowledged\n")
	}
	fmt.Fprintf(&b, "given up      %s\n", names(r.Lost))
	if len(r.Dropped) != 0 {
		fmt.Fprintf(&b, "dropped       %s (learners)\n", names(r.Dropped))
	}
	fmt.Fprintf(&b, `
The cluster goes on with what %s holds, as its only voter.
  - Writes that a majority without %s acknowledged are lost. How many is not known here: compare the last entries of
    all disks that can still be read, and recover from the node with the highest term, then the highest entry.
  - Writes that %s had received and that were never acknowledged count from now on.
  - A new history begins (%s): listings and watches that were under way start anew.
    Revisions go on above all that were ever acknowledged. One that the lost majority gave after the end of this log
    may stand for another entry here.
  - The directories of %s are refused for ever. Bring these nodes back with an empty
    --data-dir and --join, once %s runs.
`, r.NodeID, r.NodeID, r.NodeID, r.NewHistoryID, names(slices.Concat(r.Lost, r.Dropped)), r.NodeID)
	return b.String()
}
