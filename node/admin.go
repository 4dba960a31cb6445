package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

// adminCallsMax bounds the administrators' calls under way: changes run one at a time anyway.
const adminCallsMax = 16

// adminRequest is what OpAdmin asks.
type adminRequest struct {
	// Action is list, add, remove, promote or transfer.
	Action string `json:"action"`
	// ID is the member that is meant; empty for list, and for transfer to the most advanced voter.
	ID string `json:"id"`
	// The rest belongs to add. Incarnation is 32 hex digits.
	RaftAddress string `json:"raft_address"`
	Address     string `json:"address"`
	HTTPAddress string `json:"http_address"`
	GRPCAddress string `json:"grpc_address"`
	Incarnation string `json:"incarnation"`
	Version     string `json:"version"`
}

// clusterDocument is the answer to every action, as things stand after it.
type clusterDocument struct {
	ClusterID string           `json:"cluster_id"`
	HistoryID string           `json:"history_id"`
	LeaderID  string           `json:"leader_id"`
	Term      uint64           `json:"term"`
	Members   []memberDocument `json:"members"`
	// Pending is the configuration that is not committed yet, null when there is none.
	Pending []memberStatus `json:"pending"`
}

// memberDocument describes a member as its leader sees it.
type memberDocument struct {
	ID          string `json:"id"`
	Role        string `json:"role"`
	Leader      bool   `json:"leader"`
	RaftAddress string `json:"raft_address"`
	Address     string `json:"address"`
	HTTPAddress string `json:"http_address"`
	GRPCAddress string `json:"grpc_address"`
	Incarnation string `json:"incarnation"`
	Version     string `json:"version"`
	MatchIndex  uint64 `json:"match_index"`
	Lag         uint64 `json:"lag"`
	// LastContactMs is how long ago the member last answered; -1 where that is not known.
	LastContactMs int64 `json:"last_contact_ms"`
	// State is ok, unreachable, or refused: and why.
	State string `json:"state"`
}

// admin executes what administrators ask. Its calls wait for the log, so each has a goroutine of its own.
type admin struct {
	// Immutable after newAdmin.
	s      *Service
	ctx    context.Context // ends when close begins
	cancel context.CancelFunc

	calls chan struct{} // one token per call under way
}

func newAdmin(s *Service) *admin {
	a := &admin{s: s, calls: make(chan struct{}, adminCallsMax)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// begin starts a call, or refuses it. It never blocks.
func (a *admin) begin(c wire.Completer, r *wire.Request, deadline int64) {
	shard := a.s.shard
	if !shard.leading() {
		refuse(c, r.Token(), shard.notLeading())
		return
	}
	select {
	case a.calls <- struct{}{}:
	default:
		refuse(c, r.Token(), &wire.Refusal{Status: wire.StatusBusy, RetryAfterMs: 100})
		return
	}
	payload, token := bytes.Clone(r.Payload), r.Token()
	ctx, cancel := context.WithTimeout(a.ctx, time.Duration(deadline-shard.now()))
	go func() { // owned by the admin, whose close waits for it; ends with ctx at the latest
		defer cancel()
		answer := a.call(ctx, payload)
		c.Complete(token, &answer)
		<-a.calls
	}()
}

// close gives the calls up and returns when all are answered; later ones are refused.
func (a *admin) close() {
	a.cancel()
	for range adminCallsMax {
		a.calls <- struct{}{}
	}
}

// call executes one request.
func (a *admin) call(ctx context.Context, payload []byte) wire.Response {
	if err := a.execute(ctx, payload); err != nil {
		var e *statusError
		if errors.As(err, &e) {
			ref := &wire.Refusal{Status: e.status, Text: e.text}
			if e.status == wire.StatusNotLeader {
				ref = a.s.shard.notLeading()
			}
			return wire.ErrorResponse(ref, nil)
		}
		return wire.ErrorResponse(&wire.Refusal{Status: a.statusOf(ctx, err), Text: err.Error()}, nil)
	}
	b, err := json.Marshal(a.document())
	if err != nil {
		panic("BUG: cannot encode the members: " + err.Error())
	}
	return wire.Response{Payload: b}
}

// statusOf gives an error of the log a status of the same certainty.
func (a *admin) statusOf(ctx context.Context, err error) wire.Status {
	switch {
	case errors.Is(err, consensus.ErrNotProposed):
		return outcome(err)
	case ctx.Err() != nil:
		return wire.StatusTimeout
	}
	return outcome(err)
}

// refusef makes a refusal: surely nothing was changed.
func refusef(st wire.Status, format string, args ...any) error {
	return &statusError{st, fmt.Sprintf(format, args...)}
}

// execute does what payload asks; nil means that it took effect.
func (a *admin) execute(ctx context.Context, payload []byte) error {
	var q adminRequest
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return refusef(wire.StatusBadRequest, "the admin request is not the JSON that it should be: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refusef(wire.StatusBadRequest, "the admin request has something behind its document")
	}
	if q.Action == "list" {
		return nil
	}
	shard := a.s.shard
	if err := shard.beginChange(ctx); err != nil {
		return refusef(wire.StatusBusy, "another change of the membership is under way; nothing was changed: try again")
	}
	defer shard.endChange()
	switch q.Action {
	case "add":
		return a.add(ctx, &q)
	case "remove":
		return a.remove(ctx, q.ID)
	case "promote":
		return a.promote(ctx, q.ID)
	case "transfer":
		return a.transfer(ctx, q.ID)
	}
	return refusef(wire.StatusBadRequest, "unknown action %q: list, add, remove, promote or transfer", q.Action)
}

// configured gives a member of the configuration.
func (a *admin) configured(id string) (m consensus.Member, all []consensus.Member, ok bool) {
	all = a.s.shard.group.Status().Configuration
	i := slices.IndexFunc(all, func(m consensus.Member) bool { return m.ID == id })
	if i < 0 {
		return m, all, false
	}
	return all[i], all, true
}

// add takes a node in as a learner: first its record, so that every node knows which data directory the id
// stands for before it talks to it, then the configuration. Asking again changes nothing.
func (a *admin) add(ctx context.Context, q *adminRequest) error {
	incarnation, err := parseBits(q.Incarnation)
	if err != nil {
		return refusef(wire.StatusBadRequest, "incarnation %v: a node is added by starting it with --join, which tells all of this by itself", err)
	}
	want := wire.Member{
		ID: q.ID, Incarnation: incarnation, RaftAddress: q.RaftAddress, Address: q.Address,
		HTTPAddress: q.HTTPAddress, GRPCAddress: q.GRPCAddress, Version: q.Version,
	}
	if err := checkMember(&want); err != nil {
		return refusef(wire.StatusBadRequest, "%v", err)
	}
	shard := a.s.shard
	configured, all, isMember := a.configured(want.ID)
	known, isKnown := shard.engine.Member(want.ID)
	if !isKnown && isMember {
		if known, isKnown = shard.roster.member(want.ID); !isKnown {
			return refusef(wire.StatusRetryLater, "%s is a member whose data directory is not known yet; nothing was changed: try again", want.ID)
		}
	}
	switch {
	case isKnown && known.Removed && known.Incarnation == want.Incarnation:
		return refusef(wire.StatusDenied, "node %s was removed with this data directory, which is refused for ever: start it with --join and an empty --data-dir", want.ID)
	case isMember && known.Removed:
		return refusef(wire.StatusRetryLater, "the removal of the old %s is not finished; nothing was changed: try again", want.ID)
	case isKnown && isMember && known.Incarnation != want.Incarnation:
		return refusef(wire.StatusDenied, "node %s is a member with another data directory (incarnation %x). If that one is lost, take it out first (kvctl member remove %s), then start this node with --join again; "+
			"if this is another node, give it another --node-id", want.ID, known.Incarnation, want.ID)
	}
	for _, m := range all {
		if err := checkAddress(m.Address); err != nil {
			return refusef(wire.StatusDenied, "%s could not be reached by a further node: raft address %v: restart it with --raft-advertise, --advertise and --http-advertise", m.ID, err)
		}
		if m.ID != want.ID && m.Address == want.RaftAddress {
			return refusef(wire.StatusDenied, "%s has the raft address %s already: give the new node another --raft-listen or --raft-advertise", m.ID, m.Address)
		}
	}
	if !isMember && len(all) >= clusterNodesMax {
		return refusef(wire.StatusDenied, "the cluster has %d nodes, the most there may be", len(all))
	}
	// What a renewed card told besides is kept.
	want.Level = known.Level
	if !isKnown || known != want {
		if err := shard.proposeMember(ctx, &want); err != nil {
			return err
		}
	}
	if isMember && configured.Address == want.RaftAddress {
		return nil
	}
	return shard.group.AddLearner(ctx, want.ID, want.RaftAddress)
}

// remove takes a member out for ever: first its record is marked, so that a crash in between leaves no doubt
// about what is to be finished, and the keeper of whoever leads finishes it; then the configuration.
func (a *admin) remove(ctx context.Context, id string) error {
	shard := a.s.shard
	m, all, isMember := a.configured(id)
	record, isKnown := shard.roster.member(id)
	switch {
	case !isMember && isKnown && record.Removed:
		return nil
	case !isMember && !isKnown:
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	case id == shard.roster.self.ID:
		if len(all) == 1 {
			return refusef(wire.StatusDenied, "%s is the only member; nothing was changed", id)
		}
		return refusef(wire.StatusDenied, "%s leads the cluster; nothing was changed: hand the leadership over first (kvctl move-leader), then remove it", id)
	}
	if m.Voter {
		if err := a.enoughWithout(id, all); err != nil {
			return err
		}
	}
	if !isKnown {
		// A founder that never connected since this node started: nothing is known but its place.
		record = wire.Member{ID: id, RaftAddress: m.Address}
	}
	if record.Removed = true; isMember || isKnown {
		if err := shard.proposeMember(ctx, &record); err != nil {
			return err
		}
	}
	if !isMember {
		return nil
	}
	return begun(id, shard.group.Remove(ctx, id))
}

// begun says of a removal whose record is written that it is under way, however certain err is about the change
// of the configuration: the keeper of whoever leads will make it.
func begun(id string, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{wire.StatusLeadershipLost, fmt.Sprintf("the removal of %s has begun, and whoever leads will finish it by itself; it is not finished yet: %v", id, err)}
}

// enoughWithout refuses a removal after which the voters that can be reached would be no majority: the
// cluster would stand still.
func (a *admin) enoughWithout(id string, all []consensus.Member) error {
	voters, alive := 0, 0
	for _, m := range all {
		if m.Voter && m.ID != id {
			voters++
		}
	}
	for _, d := range a.document().Members {
		if d.Role == "voter" && d.ID != id && d.State == stateOK {
			alive++
		}
	}
	if alive < voters/2+1 {
		return refusef(wire.StatusDenied, "without %s, %d of %d voters could be reached, which is no majority; nothing was changed: bring the others back first", id, alive, voters)
	}
	return nil
}

// promote makes a learner a voter without waiting for the time that the keeper would.
func (a *admin) promote(ctx context.Context, id string) error {
	m, _, isMember := a.configured(id)
	switch {
	case !isMember:
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	case m.Voter:
		return nil
	}
	for _, d := range a.document().Members {
		if d.ID == id && (d.State != stateOK || d.Lag > promoteLagMax) {
			return refusef(wire.StatusRetryLater, "%s has not caught up (%s, %d entries behind); nothing was changed: it is promoted by itself as soon as it has", id, d.State, d.Lag)
		}
	}
	return a.s.shard.group.Promote(ctx, id)
}

// transfer hands the leadership over and returns when the new leader is known.
func (a *admin) transfer(ctx context.Context, id string) error {
	shard := a.s.shard
	self := shard.roster.self.ID
	if id == self {
		return nil
	}
	if m, all, isMember := a.configured(id); id != "" && !isMember {
		return refusef(wire.StatusNotFound, "the cluster has no member %q; nothing was changed", id)
	} else if id != "" && !m.Voter {
		return refusef(wire.StatusDenied, "%s is a learner, which cannot lead; nothing was changed", id)
	} else if id == "" && len(all) == 1 {
		return refusef(wire.StatusDenied, "%s is the only member; nothing was changed", self)
	}
	switch err := shard.group.Transfer(ctx, id); {
	case errors.Is(err, consensus.ErrNotProposed), err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return refusef(wire.StatusRetryLater, "%v; this node still leads: try again", err)
	}
	for {
		if leader, _, _ := shard.group.Leader(); leader != "" && leader != self {
			if id != "" && leader != id {
				return refusef(wire.StatusRetryLater, "%s leads now, not %s: try again", leader, id)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new leader is not known yet: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// States of a member.
const (
	stateOK          = "ok"
	stateUnreachable = "unreachable"
)

// contactMax is how long a member may be silent and still count as reachable: a leader hears of each several
// times in this.
const contactMax = 2 * time.Second

// document lists the members as this node sees them.
func (a *admin) document() *clusterDocument {
	shard := a.s.shard
	st := shard.group.Status()
	leader, _, term := shard.group.Leader()
	cluster, history, _ := shard.engine.Identity()
	d := &clusterDocument{
		ClusterID: hex.EncodeToString(cluster[:]), HistoryID: hex.EncodeToString(history[:]),
		LeaderID: leader, Term: term, Members: []memberDocument{}, Pending: pendingMembers(st.Pending),
	}
	leads := leader == shard.roster.self.ID
	peers := make(map[string]consensus.PeerStatus)
	for _, p := range shard.group.Peers() {
		peers[p.ID] = p
	}
	for _, m := range byID(st.Configuration) {
		known, _ := shard.roster.member(m.ID)
		out := memberDocument{
			ID: m.ID, Role: roleOf(m.Voter), Leader: m.ID == leader, RaftAddress: m.Address,
			Address: known.Address, HTTPAddress: known.HTTPAddress, GRPCAddress: known.GRPCAddress, Version: known.Version,
			Incarnation: hex.EncodeToString(known.Incarnation[:]), LastContactMs: -1, State: stateUnreachable,
		}
		if m.ID == shard.roster.self.ID {
			out.MatchIndex, out.LastContactMs, out.State = st.LastIndex, 0, stateOK
		} else if p, ok := peers[m.ID]; ok {
			out.MatchIndex = p.Match
			out.Lag = st.LastIndex - min(p.Match, st.LastIndex)
			if p.Acked {
				out.LastContactMs = p.LastAck.Milliseconds()
			}
			out.State = stateOf(&p, leads)
		}
		d.Members = append(d.Members, out)
	}
	return d
}

// stateOf gives the state of another member. A leader hears from everyone who is well: to it a connection says no
// more than that a machine is there, while its process may hang. To others it is all that there is.
func stateOf(p *consensus.PeerStatus, leads bool) string {
	switch {
	case p.Acked && p.LastAck < contactMax, !leads && p.Connected:
		return stateOK // whoever was refused then came under its name: an empty data directory, say
	case p.Refused != "":
		return "refused: " + p.Refused
	}
	return stateUnreachable
}

func roleOf(voter bool) string {
	if voter {
		return "voter"
	}
	return "learner"
}

// pendingMembers gives a configuration that is not committed, nil for none.
func pendingMembers(all []consensus.Member) []memberStatus {
	var out []memberStatus
	for _, m := range byID(all) {
		out = append(out, memberStatus{NodeID: m.ID, Address: m.Address, Role: roleOf(m.Voter)})
	}
	return out
}
