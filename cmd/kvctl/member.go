package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"kvstore/wire"
)

// adminRequest asks to list or change the members, or to move leadership.
type adminRequest struct {
	Action      string `json:"action"`
	ID          string `json:"id,omitempty"`
	RaftAddress string `json:"raft_address,omitempty"`
	Address     string `json:"address,omitempty"`
	HTTPAddress string `json:"http_address,omitempty"`
	GRPCAddress string `json:"grpc_address,omitempty"`
	Incarnation string `json:"incarnation,omitempty"`
	With        string `json:"with,omitempty"`
	Priority    *int   `json:"priority,omitempty"`
	// Namespace and Settings belong to the actions that begin with namespace_.
	Namespace string             `json:"namespace,omitempty"`
	Settings  *namespaceSettings `json:"settings,omitempty"`
}

// membership is what kvctl shows of the answer; the server may say more.
type membership struct {
	LeaderID jsonText        `json:"leader_id"`
	Term     jsonText        `json:"term"`
	Members  []member        `json:"members"`
	Current  []place         `json:"current"`
	Pending  json.RawMessage `json:"pending"`
	// Autopilot is null where another node than the leader answers.
	Autopilot *struct {
		Healthy          bool     `json:"healthy"`
		FailureTolerance jsonText `json:"failure_tolerance"`
		Servers          []struct {
			ID      jsonText `json:"id"`
			Healthy bool     `json:"healthy"`
		} `json:"servers"`
	} `json:"autopilot"`
}

// place is a member as a configuration has it.
type place struct {
	ID   jsonText `json:"node_id"`
	Role jsonText `json:"role"`
}

type member struct {
	ID            jsonText `json:"id"`
	Role          jsonText `json:"role"`
	Leader        bool     `json:"leader"`
	RaftAddress   jsonText `json:"raft_address"`
	Address       jsonText `json:"address"`
	HTTPAddress   jsonText `json:"http_address"`
	Version       jsonText `json:"version"`
	MatchIndex    jsonText `json:"match_index"`
	Lag           jsonText `json:"lag"`
	LastContactMs jsonText `json:"last_contact_ms"`
	State         jsonText `json:"state"`
	Priority      jsonText `json:"priority"`
	KeptLearner   bool     `json:"kept_learner"`
}

func (a *app) memberCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "member", Aliases: []string{"members"}, Short: "List and change the members of the cluster",
		Long: `List and change the members of the cluster. Any node may be asked; the leader does it. A change of which it cannot be
known whether it was made exits 1 and says so: see ` + "`kvctl member list`" + ` then.

To add a node, start it with an empty --data-dir and --join: it asks to be taken in by itself, catches up as a learner,
and becomes a voter without a further command.
To replace a node whose disk is lost: ` + "`kvctl member replace ID`" + `, then start it anew with an empty --data-dir and --join.
To move to another machine: start a new node there with --join, then ` + "`kvctl member replace OLD --with NEW`" + `.`,
		Example: `  kvctl member list
  kvstore --node-id node-4 --data-dir ./n4 --join 10.0.1.10:7003,10.0.1.11:7003
  kvctl member replace node-3 --with node-4
  kvctl member remove node-3
  kvctl member priority node-1 50
  kvctl move-leader node-2`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown verb %q: member takes list, add, remove, replace, promote, demote or priority", args[0])
			}
			return usagef("member takes a verb: list, add, remove, replace, promote, demote or priority")
		},
	}
	c.AddCommand(a.memberListCmd(), a.memberAddCmd(), a.memberRemoveCmd(), a.memberReplaceCmd(), a.memberPromoteCmd(), a.memberDemoteCmd(), a.memberPriorityCmd())
	return c
}

func (a *app) memberListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the members as the leader sees them", Args: exactArgs(),
		Long: `List the members as the leader sees them: LAG is the number of log entries that a node is behind the leader, CONTACT
the time since it last answered, PRIORITY how much it is wished for as the leader. A learner has no vote; it gets one by
itself once it has caught up, unless an operator demoted it ("learner, kept"). -o json prints the leader's document.`,
		Example: `  kvctl member list
  kvctl member list -o json | jq -r '.members[] | select(.role=="learner") | .id'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.admin(cmd.Context(), adminRequest{Action: "list"}, func(m *membership, _ string) error {
				if text := m.pending(); text != "" {
					a.talk("a change of the members is under way and not committed yet%s\n", text)
				}
				if text := m.health(); text != "" {
					a.talk("%s\n", text)
				}
				return a.printf("%s", m.table())
			})
		},
	}
}

func (a *app) memberAddCmd() *cobra.Command {
	q := adminRequest{Action: "add"}
	c := &cobra.Command{
		Use: "add ID", Short: "Take a node in as a learner", Args: exactArgs("ID"),
		Long: `Take a node in as a learner; it becomes a voter by itself once it has caught up. This is what a node that was started
with --join does on its own; by hand it is needed only where the node cannot reach a member's HTTP port.`,
		Example: `  kvctl member add node-4 --raft-address 10.0.1.13:7000 --address 10.0.1.13:7001 \
    --incarnation 6f1c09d2b7e84a1f93c05d7be2a46810`,
		RunE: func(cmd *cobra.Command, args []string) error {
			q.ID = args[0]
			for _, f := range []struct {
				name, value string
				required    bool
			}{
				{"raft-address", q.RaftAddress, true}, {"address", q.Address, true}, {"http-address", q.HTTPAddress, false}, {"grpc-address", q.GRPCAddress, false},
			} {
				if f.value == "" && !f.required {
					continue
				}
				if _, port, err := net.SplitHostPort(f.value); err != nil || port == "" || len(f.value) > wire.AddressBytesMax {
					return usagef("--%s is %q: write it as HOST:PORT", f.name, f.value)
				}
			}
			if b, err := hex.DecodeString(q.Incarnation); err != nil || len(b) != 16 {
				return usagef("--incarnation is %q: it has 32 hexadecimal digits; a node that is started with --join tells it by itself", q.Incarnation)
			}
			return a.admin(cmd.Context(), q, func(m *membership, since string) error {
				role := m.role(q.ID)
				if role == "learner" {
					a.talk("it becomes a voter by itself once it has caught up: see `kvctl member list`\n")
				}
				return a.printf("OK (%s is a %s, %s)\n", cell(q.ID), role, since)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&q.RaftAddress, "raft-address", "", "where the other nodes reach it, HOST:PORT; required")
	f.StringVar(&q.Address, "address", "", "its binary port, HOST:PORT, which clients are told; required")
	f.StringVar(&q.HTTPAddress, "http-address", "", "its HTTP port, HOST:PORT")
	f.StringVar(&q.GRPCAddress, "grpc-address", "", "its gRPC port, HOST:PORT")
	f.StringVar(&q.Incarnation, "incarnation", "", "names its data directory, 32 hexadecimal digits; required")
	return c
}

func (a *app) memberRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "remove ID", Aliases: []string{"rm"}, Short: "Take a node out of the cluster", Args: exactArgs("ID"),
		Long: `Take a node out of the cluster, whether it runs or not. Its data directory is refused from then on; what it holds is
also on the others. To bring the node back, start it with an empty data directory and --join. A node that is only
stopped for a while need not be removed.`,
		Example: `  kvctl member remove node-3
  kvstore --node-id node-3 --data-dir ./n3-new --join 10.0.1.10:7003`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.admin(cmd.Context(), adminRequest{Action: "remove", ID: args[0]}, func(m *membership, since string) error {
				a.talk("Its data directory is refused from now on. To bring the node back: stop it, and start it with the same --node-id,\nan empty --data-dir and --join %s\n", m.join(args[0]))
				return a.printf("OK (%s is removed, voters left: %d, %s)\n", cell(args[0]), m.voters(), since)
			})
		},
	}
}

func (a *app) memberPromoteCmd() *cobra.Command {
	return &cobra.Command{
		Use: "promote ID", Short: "Make a learner a voter now", Args: exactArgs("ID"),
		Long: `Make a learner a voter now. The leader does so by itself a little after a learner has caught up; one that has not is
refused, since the cluster would have to wait for it.`,
		Example: `  kvctl member promote node-4`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.admin(cmd.Context(), adminRequest{Action: "promote", ID: args[0]}, func(m *membership, since string) error {
				return a.printf("OK (%s is a %s, %s)\n", cell(args[0]), m.role(args[0]), since)
			})
		},
	}
}

func (a *app) memberDemoteCmd() *cobra.Command {
	return &cobra.Command{
		Use: "demote ID", Short: "Make a voter a learner", Args: exactArgs("ID"),
		Long: `Make a voter a learner: it goes on to hold all data, and counts for no majority. It stays one until it is promoted. A
leader hands its leadership over first. Refused where the voters that are left and can be reached would be no majority.`,
		Example: `  kvctl member demote node-3
  kvctl member promote node-3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.admin(cmd.Context(), adminRequest{Action: "demote", ID: args[0]}, func(m *membership, since string) error {
				return a.printf("OK (%s is a %s, voters left: %d, %s)\n", cell(args[0]), m.role(args[0]), m.voters(), since)
			})
		},
	}
}

func (a *app) memberReplaceCmd() *cobra.Command {
	q := adminRequest{Action: "replace"}
	c := &cobra.Command{
		Use: "replace ID", Short: "Put a node in the place of another", Args: exactArgs("ID"),
		Long: `Take a node out of the cluster for ever and put another in its place: the node of --with, which has joined and caught
up, becomes a voter, then the old one is removed. With a learner there are never fewer voters than before; with a node
that is a voter already there is one fewer. If it has not caught up, nothing is changed.

Without --with the node itself comes back: its data directory is lost or refused. That directory is taken out for ever;
then start the node with the same --node-id, an empty --data-dir and --join.`,
		Example: `  kvctl member replace node-3 --with node-4
  kvctl member replace node-3
  kvstore --node-id node-3 --data-dir ./n3-new --join 10.0.1.10:7003`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.ID = args[0]; cmd.Flags().Changed("with") && !validID(q.With) {
				return usagef("--with is %q, which is no node id: that is text of 1 to %d bytes", q.With, wire.NodeIDBytesMax)
			}
			return a.admin(cmd.Context(), q, func(m *membership, since string) error {
				if q.With == "" {
					a.talk("Its old data directory is refused from now on. Next: start the node with the same --node-id %s, an empty --data-dir\nand --join %s\n", cell(q.ID), m.join(q.ID))
					return a.printf("OK (%s may come back with an empty data directory, voters now: %d, %s)\n", cell(q.ID), m.voters(), since)
				}
				a.talk("The data directory of %s is refused from now on: stop the node if it still runs.\n", cell(q.ID))
				return a.printf("OK (%s is a %s in the place of %s, voters: %d, %s)\n", cell(q.With), m.role(q.With), cell(q.ID), m.voters(), since)
			})
		},
	}
	c.Flags().StringVar(&q.With, "with", "", "the member that takes its place; without it the node itself comes back with an empty data directory")
	return c
}

func (a *app) memberPriorityCmd() *cobra.Command {
	return &cobra.Command{
		Use: "priority ID N", Short: "Say how much a node is wished for as the leader", Args: exactArgs("ID", "N"),
		Long: `Say how much a node is wished for as the leader: 0 (no wish, the default) to 100. A leader hands over to a voter of higher
priority once that one has been well for a minute (--priority-after of the server), and not while the members change or a
copy of the state is under way. A node that was started with --leader-priority says so by itself, and that stands.`,
		Example: `  kvctl member priority node-1 50
  kvctl member priority node-1 0`,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil || n < 0 || n > wire.MemberPriorityMax {
				return usagef("%q is no priority: a whole number from 0 to %d", args[1], wire.MemberPriorityMax)
			}
			return a.admin(cmd.Context(), adminRequest{Action: "priority", ID: args[0], Priority: &n}, func(m *membership, since string) error {
				return a.printf("OK (%s has priority %d, %s leads, %s)\n", cell(args[0]), n, dash(m.LeaderID), since)
			})
		},
	}
}

func (a *app) moveLeaderCmd() *cobra.Command {
	return &cobra.Command{
		Use: "move-leader [ID]", Aliases: []string{"transfer-leader"}, Short: "Move leadership to another voter", Args: cobra.MaximumNArgs(1),
		Long: `Move leadership to the voter that is named, or to the one that is most advanced. Clients follow by themselves; requests
wait for the moment that it takes.`,
		Example: `  kvctl move-leader
  kvctl move-leader node-2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := adminRequest{Action: "transfer"}
			if len(args) == 1 {
				if q.ID = args[0]; q.ID == "" {
					return usagef("the node's id is empty: leave it out to take the most advanced voter")
				}
			}
			return a.admin(cmd.Context(), q, func(m *membership, since string) error {
				return a.printf("OK (%s leads, term %s, %s)\n", dash(m.LeaderID), dash(m.Term), since)
			})
		},
	}
}

// admin executes q. show prints what it did where the document itself is not wanted.
func (a *app) admin(ctx context.Context, q adminRequest, show func(m *membership, since string) error) error {
	if !validID(q.ID) && (q.ID != "" || q.Action != "list" && q.Action != "transfer") {
		return usagef("%q is no node id: that is text of 1 to %d bytes", q.ID, wire.NodeIDBytesMax)
	}
	return a.op(ctx, func(ctx context.Context, s store, since func() string) error {
		raw, err := s.Admin(ctx, q)
		if err != nil {
			return a.explainAdmin(&q, err)
		}
		if a.output != "table" {
			return a.document(raw)
		}
		var m membership
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("the server has done it, but its answer cannot be read: %w", err)
		}
		return show(&m, since())
	})
}

// validID reports whether id can be that of a node.
func validID(id string) bool {
	return id != "" && len(id) <= wire.NodeIDBytesMax && utf8.ValidString(id)
}

// explainAdmin says what a failure means for the members; what is the same for all verbs stays as it is.
func (a *app) explainAdmin(q *adminRequest, err error) error {
	switch {
	case isKind(err, kindUnknown) && q.Action == "list":
		// The client takes every such request for a change.
		return &storeError{kind: kindTimeout, err: err}
	case isKind(err, kindUnknown):
		a.talk("kvctl: unknown: the change may or may not have been made, or may still be (%v): see `kvctl member list` before you repeat it\n", err)
		return quietError{exitFailed}
	case isKind(err, kindNotFound):
		a.talk("kvctl: the cluster has no member %q; nothing was changed: see `kvctl member list`\n", q.ID)
		return quietError{exitNotFound}
	case isKind(err, kindCondition):
		a.talk("kvctl: %v\n", err)
		return quietError{exitNotFound}
	case isKind(err, kindDenied):
		// Most often not the caller is refused but the change: that of the only member, say.
		a.talk("kvctl: refused: %v\n", err)
		return quietError{exitDenied}
	}
	return err
}

// document prints a JSON document of the server: on a terminal indented, with -o jsonl and raw on one line,
// else as it came.
func (a *app) document(raw []byte) error {
	var b bytes.Buffer
	var err error
	switch {
	case a.output != "json":
		err = json.Compact(&b, raw)
	case a.outTTY:
		err = json.Indent(&b, raw, "", "  ")
	default:
		err = json.Unmarshal(raw, new(json.RawMessage)) // checked as in the other forms
		b.Write(raw)
	}
	if err != nil {
		return fmt.Errorf("the server's answer is not JSON: %w", err)
	}
	return a.printf("%s\n", bytes.TrimRight(b.Bytes(), "\n"))
}

// table shows m for people.
func (m *membership) table() string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tROLE\tSTATE\tLAG\tMATCH\tCONTACT\tPRIORITY\tADDRESS\tRAFT\tHTTP\tVERSION")
	for i := range m.Members {
		n := &m.Members[i]
		role, lag, contact := dash(n.Role), grouped(n.Lag), dash(n.LastContactMs)
		if _, err := strconv.ParseUint(string(n.LastContactMs), 10, 64); err == nil {
			contact += "ms"
		} else {
			contact = "-" // not known, which the server tells as -1
		}
		switch {
		case n.Leader:
			role, lag, contact = "leader", "-", "-"
		case n.KeptLearner && n.Role == "learner":
			role = "learner, kept"
		}
		priority := dash(n.Priority)
		if n.Priority == "0" {
			priority = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(n.ID), role, dash(n.State), lag, grouped(n.MatchIndex), contact, priority,
			dash(n.Address), dash(n.RaftAddress), dash(n.HTTPAddress), dash(n.Version))
	}
	// Flush fails only when its writer does, and a Builder never does.
	if err := tw.Flush(); err != nil {
		panic("BUG: " + err.Error())
	}
	return b.String()
}

// pending says how the configuration that is not committed yet differs from the one that is, "" if there is none.
func (m *membership) pending() string {
	if len(m.Pending) == 0 || bytes.Equal(m.Pending, []byte("null")) {
		return ""
	}
	var next []place
	if json.Unmarshal(m.Pending, &next) != nil {
		return "." // it is there, whatever it is
	}
	roles := func(all []place) map[jsonText]jsonText {
		out := make(map[jsonText]jsonText)
		for _, p := range all {
			out[p.ID] = p.Role
		}
		return out
	}
	was, will := roles(m.Current), roles(next)
	var changes []string
	for id, role := range will {
		switch {
		case id == "":
		case was[id] == "":
			changes = append(changes, fmt.Sprintf("%s comes in as a %s", dash(id), dash(role)))
		case was[id] != role:
			changes = append(changes, fmt.Sprintf("%s, a %s, becomes a %s", dash(id), dash(was[id]), dash(role)))
		}
	}
	for id := range was {
		if will[id] == "" {
			changes = append(changes, dash(id)+" goes")
		}
	}
	if len(changes) == 0 {
		return "."
	}
	slices.Sort(changes)
	return ": " + strings.Join(changes, "; ")
}

// health says what the leader thinks of the members, "" where that is not known.
func (m *membership) health() string {
	if m.Autopilot == nil {
		return ""
	}
	var ill []string
	for _, s := range m.Autopilot.Servers {
		if !s.Healthy {
			ill = append(ill, dash(s.ID))
		}
	}
	text := "all members are well"
	if len(ill) != 0 {
		text = "not well: " + strings.Join(ill, ", ")
	}
	return fmt.Sprintf("%s; voters that may fail now without the cluster standing still: %s", text, dash(m.Autopilot.FailureTolerance))
}

// voters counts the voters.
func (m *membership) voters() (n int) {
	for i := range m.Members {
		if m.Members[i].Role == "voter" {
			n++
		}
	}
	return n
}

// role gives the role of a member.
func (m *membership) role(id string) string {
	for i := range m.Members {
		if string(m.Members[i].ID) == id {
			return dash(m.Members[i].Role)
		}
	}
	return "member"
}

// join gives what --join takes: the HTTP ports of the members but one.
func (m *membership) join(but string) string {
	var to []string
	for i := range m.Members {
		if n := &m.Members[i]; n.HTTPAddress != "" && string(n.ID) != but {
			to = append(to, cell(string(n.HTTPAddress)))
		}
	}
	if len(to) == 0 {
		return "HOST:HTTPPORT of a member"
	}
	return strings.Join(to, ",")
}
