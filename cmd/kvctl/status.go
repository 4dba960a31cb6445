package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// jsonText reads a JSON string or number as text: versions are strings, indexes are numbers.
type jsonText string

// UnmarshalJSON takes a string, a number, true, false or null.
func (t *jsonText) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(t))
	}
	*t = jsonText(b)
	return nil
}

// clusterStatus is what kvctl shows of the server's status; the server may say more.
type clusterStatus struct {
	ClusterID    jsonText `json:"cluster_id"`
	NodeID       jsonText `json:"node_id"`
	LeaderID     jsonText `json:"leader_id"`
	Term         jsonText `json:"term"`
	AppliedIndex jsonText `json:"applied_index"`
	Revision     jsonText `json:"revision"`
	StateDigest  jsonText `json:"state_digest"`
	Lease        struct {
		Held bool     `json:"held"`
		Mode jsonText `json:"mode"`
	} `json:"lease"`
	Nodes      []nodeStatus `json:"nodes"`
	Durability jsonText     `json:"durability"`
	ReadMode   jsonText     `json:"read_mode"`
}

type nodeStatus struct {
	ID           jsonText `json:"id"`
	Role         jsonText `json:"role"`
	State        jsonText `json:"state"`
	RaftAddress  jsonText `json:"raft_address"`
	Address      jsonText `json:"address"`
	AppliedIndex jsonText `json:"applied_index"`
	Lag          jsonText `json:"lag"`
	Version      jsonText `json:"version"`
}

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the cluster: leader, members, lag", Args: exactArgs(),
		Long: "Show the cluster. Exits 7 when it has no leader, or when no majority of its voters is up.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.op(cmd.Context(), func(ctx context.Context, s store, _ func() string) error {
				raw, err := s.Status(ctx)
				if err != nil {
					return err
				}
				return a.showStatus(raw)
			})
		},
	}
}

func (a *app) showStatus(raw []byte) error {
	var st clusterStatus
	if err := json.Unmarshal(raw, &st); err != nil {
		return fmt.Errorf("cannot read the server's status: %w", err)
	}
	switch a.output {
	case "json":
		var b bytes.Buffer
		if !a.outTTY || json.Indent(&b, raw, "", "  ") != nil {
			b.Reset()
			b.Write(raw)
		}
		if err := a.printf("%s\n", bytes.TrimRight(b.Bytes(), "\n")); err != nil {
			return err
		}
	case "jsonl", "raw":
		var b bytes.Buffer
		if err := json.Compact(&b, raw); err != nil {
			return fmt.Errorf("cannot read the server's status: %w", err)
		}
		if err := a.printf("%s\n", b.Bytes()); err != nil {
			return err
		}
	default:
		if err := a.printf("%s", st.table()); err != nil {
			return err
		}
	}
	if why := st.unhealthy(); why != "" {
		a.talk("kvctl: the cluster is unhealthy: %s\n", why)
		return quietError{exitUnhealthy}
	}
	return nil
}

// voters counts the voters, and those among them that are up.
func (st *clusterStatus) voters() (all, up int) {
	for _, n := range st.Nodes {
		switch n.Role {
		case "learner", "nonvoter", "non_voter":
			continue
		}
		all++
		if n.up() {
			up++
		}
	}
	return all, up
}

// up takes any state but the known bad ones as good: a newer server may know more states.
func (n *nodeStatus) up() bool {
	switch n.State {
	case "down", "unreachable", "unknown", "failed", "shutdown":
		return false
	}
	return true
}

// unhealthy says why the cluster cannot serve; empty when it can.
func (st *clusterStatus) unhealthy() string {
	all, up := st.voters()
	switch {
	case st.LeaderID == "":
		return "it has no leader"
	case all > 0 && up <= all/2:
		return fmt.Sprintf("%d of %d voters are up, a majority is needed", up, all)
	}
	return ""
}

// table shows st for people.
func (st *clusterStatus) table() string {
	var b strings.Builder
	all, up := st.voters()
	leader := "none"
	if st.LeaderID != "" {
		leader = fmt.Sprintf("%s (term %s)", st.LeaderID, dash(st.Term))
	}
	lease := ""
	if st.ReadMode == "lease" || st.Lease.Mode == "lease" {
		lease = " (not held here)"
		if st.Lease.Held {
			lease = " (held)"
		}
	}
	fmt.Fprintf(&b, "CLUSTER  %s   quorum %d/%d   leader %s   durability %s   reads %s%s\n",
		dash(st.ClusterID), up, all, leader, dash(st.Durability), dash(st.ReadMode), lease)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tROLE\tADDRESS\tRAFT\tSTATE\tAPPLIED\tLAG\tVERSION")
	for _, n := range st.Nodes {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(n.ID), dash(n.Role), dash(n.Address), dash(n.RaftAddress),
			dash(n.State), grouped(n.AppliedIndex), dash(n.Lag), dash(n.Version))
	}
	// Flush fails only when its writer does, and a Builder never does.
	if err := tw.Flush(); err != nil {
		panic("BUG: " + err.Error())
	}
	fmt.Fprintf(&b, "ANSWERED BY  %s   applied %s   revision %s   state digest %s\n", dash(st.NodeID), grouped(st.AppliedIndex), dash(st.Revision), dash(st.StateDigest))
	return b.String()
}

func dash(t jsonText) string {
	if t == "" {
		return "-"
	}
	return cell(string(t))
}

// grouped prints a number with thin groups of three digits.
func grouped(t jsonText) string {
	if _, err := strconv.ParseUint(string(t), 10, 64); err != nil {
		return dash(t)
	}
	s := string(t)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
