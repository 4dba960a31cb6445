package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

// adminCallsMax bounds the administrators' calls under way: changes run one at a time anyway.
const adminCallsMax = 16

// adminRequest is what OpAdmin asks.
type adminRequest struct {
	// Action is list, scrub, or one of adminActions. (Those of namespaces are a namespaceRequest.)
	Action string `json:"action"`
	// ID is the member that is meant; empty for list, and for transfer to the most advanced voter.
	ID string `json:"id"`
	// With, of replace, is the member that takes its place; empty: the same node comes back with an empty directory.
	With string `json:"with"`
	// Priority belongs to priority, and must be there.
	Priority *int `json:"priority"`
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
	ClusterID string `json:"cluster_id"`
	HistoryID string `json:"history_id"`
	LeaderID  string `json:"leader_id"`
	Term      uint64 `json:"term"`
	// Members are those of the newest configuration, committed or not, and those that it takes out.
	Members []memberDocument `json:"members"`
	// Current is the configuration that is committed.
	Current []memberStatus `json:"current"`
	// Pending is the configuration that is not committed yet, null when there is none.
	Pending []memberStatus `json:"pending"`
	// Autopilot is what the leader thinks of the members' health, null where another node answers.
	Autopilot *autopilotStatus `json:"autopilot"`
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
	// Priority is how much the member is wished for as the leader, 0 to 100.
	Priority uint8 `json:"priority"`
	// KeptLearner: an operator demoted it, and nothing makes it a voter by itself.
	KeptLearner bool `json:"kept_learner"`
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
	call := a.call
	if asksForScrub(r.Payload) {
		call = a.scrub // of any node, whoever leads
	} else if !shard.leading() {
		refuse(c, r.Token(), shard.notLeading())
		return
	} else if asksForNamespaces(r.Payload) {
		call = a.namespaces
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
		answer := call(ctx, payload)
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
	if do, ok := adminActions[q.Action]; ok {
		a.heard(ctx)
		return do(a, ctx, &q)
	}
	return refusef(wire.StatusBadRequest, "unknown action %q: list, scrub, %s", q.Action, strings.Join(slices.Sorted(maps.Keys(adminActions)), ", "))
}

// adminActions are the changes that can be asked for.
var adminActions = map[string]func(a *admin, ctx context.Context, q *adminRequest) error{
	"add":      (*admin).add,
	"remove":   func(a *admin, ctx context.Context, q *adminRequest) error { return a.remove(ctx, q.ID) },
	"promote":  func(a *admin, ctx context.Context, q *adminRequest) error { return a.promote(ctx, q.ID) },
	"demote":   func(a *admin, ctx context.Context, q *adminRequest) error { return a.demote(ctx, q.ID) },
	"replace":  func(a *admin, ctx context.Context, q *adminRequest) error { return a.replace(ctx, q.ID, q.With) },
	"transfer": func(a *admin, ctx context.Context, q *adminRequest) error { return a.transfer(ctx, q.ID) },
	"priority": (*admin).prioritise,
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
		LeaderID: leader, Term: term, Members: []memberDocument{},
		Current: append([]memberStatus{}, pendingMembers(st.Committed)...), Pending: pendingMembers(st.Pending), Autopilot: shard.autopilotStatus(),
	}
	leads := leader == shard.roster.self.ID
	peers := make(map[string]consensus.PeerStatus)
	for _, p := range shard.group.Peers() {
		peers[p.ID] = p
	}
	all := slices.Clone(st.Configuration)
	for _, m := range st.Committed {
		if !slices.ContainsFunc(all, func(n consensus.Member) bool { return n.ID == m.ID }) {
			all = append(all, m) // its removal is not committed yet
		}
	}
	for _, m := range byID(all) {
		known, _ := shard.roster.member(m.ID)
		out := memberDocument{
			ID: m.ID, Role: roleOf(m.Voter), Leader: m.ID == leader, RaftAddress: m.Address,
			Address: known.Address, HTTPAddress: known.HTTPAddress, GRPCAddress: known.GRPCAddress, Version: known.Version,
			Incarnation: hex.EncodeToString(known.Incarnation[:]), LastContactMs: -1, State: stateUnreachable,
			Priority: known.Priority, KeptLearner: known.NoPromote,
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

// pendingMembers gives a configuration as documents have it, nil for none.
func pendingMembers(all []consensus.Member) []memberStatus {
	var out []memberStatus
	for _, m := range byID(all) {
		out = append(out, memberStatus{NodeID: m.ID, Address: m.Address, Role: roleOf(m.Voter)})
	}
	return out
}
