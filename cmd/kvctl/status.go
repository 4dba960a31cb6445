package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

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
	Nodes         []nodeStatus    `json:"nodes"`
	PendingConfig json.RawMessage `json:"pending_config"`
	Durability    jsonText        `json:"durability"`
	ReadMode      jsonText        `json:"read_mode"`
	Damage        jsonText        `json:"damage"`
	LogDamage     jsonText        `json:"log_damage"`
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
	Disk         struct {
		State jsonText `json:"state"`
	} `json:"disk"`
}

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the cluster: leader, members, lag", Args: exactArgs(),
		Long: `Show the cluster as one of its nodes sees it. The endpoints are asked one after the other until one answers that knows
a leader; a node that hangs does not hold up the others. LAG is the number of log entries that a node is behind. The last
line speaks of the node that answered: the state digest is equal on all nodes that have applied the same index.

Exits 0 when the cluster is healthy, and 7 when it has no leader, when no majority of its voters is up, or when a voter is
in another state than ok; what was known is printed all the same.`,
		Example: `  kvctl status
  kvctl status --endpoints 10.0.1.10:7001,10.0.1.11:7001,10.0.1.12:7001
  kvctl status -o json | jq -r .leader_id
  until kvctl status > /dev/null 2>&1; do sleep 1; done`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := a.askStatus(cmd.Context())
			if err != nil {
				return err
			}
			return a.showStatus(raw)
		},
	}
}

// statusHeadStart is the time that an endpoint has before the next one is asked too. A node that asks the
// others about themselves, some of which are down, may take as long.
const statusHeadStart = time.Second

// askStatus asks the endpoints for the cluster's status, each once the one before has failed or its head
// start is over. It gives the first answer that names a leader: a node that is cut off from the others knows
// none. Where there is none such it gives the first answer, and where there is no answer an error.
func (a *app) askStatus(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	var asking sync.WaitGroup
	defer asking.Wait() // after cancel
	defer cancel()
	type answer struct {
		from int
		raw  []byte
		err  error
	}
	n := len(a.endpoints)
	headStart := min(cmp.Or(a.headStart, statusHeadStart), a.timeout/time.Duration(2*n))
	answers, turns := make(chan answer, n), make([]chan struct{}, n+1)
	for i := range turns {
		turns[i] = make(chan struct{})
	}
	for i, e := range a.endpoints {
		// Owned by askStatus; ends with its answer, or when ctx does.
		asking.Go(func() {
			t := time.NewTimer(time.Duration(i) * headStart)
			defer t.Stop()
			select {
			case <-t.C:
			case <-turns[i]:
			case <-ctx.Done():
			}
			raw, err := a.statusOf(ctx, e)
			answers <- answer{i, raw, err}
		})
	}
	var leaderless []byte
	errs := make([]error, n)
	for range n {
		r := <-answers
		var st clusterStatus
		switch {
		case r.err != nil:
			errs[r.from] = r.err
		case json.Unmarshal(r.raw, &st) != nil || st.LeaderID != "":
			return r.raw, nil
		case leaderless == nil:
			leaderless = r.raw
		}
		close(turns[r.from+1])
	}
	if leaderless != nil {
		return leaderless, nil
	}
	return nil, a.noStatus(errs)
}

// statusOf asks one endpoint.
func (a *app) statusOf(ctx context.Context, endpoint string) ([]byte, error) {
	s, err := a.open(ctx, openOptions{Endpoints: []string{endpoint}, Timeout: a.timeout})
	if err != nil {
		return nil, err
	}
	raw, err := s.Status(ctx)
	if cerr := s.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("cannot close the connection: %w", cerr)
	}
	return raw, err
}

// noStatus makes one error of those of all endpoints. What a node answered tells more than that another
// could not be reached.
func (a *app) noStatus(errs []error) error {
	var silent []string
	for i, err := range errs {
		var se *storeError
		if len(errs) == 1 || !errors.As(err, &se) || se.kind != kindConnect {
			return err
		}
		silent = append(silent, fmt.Sprintf("%s (%s)", a.endpoints[i], cmp.Or(se.why, err.Error())))
	}
	return &storeError{kind: kindConnect, err: noAnswer(strings.Join(silent, ", "))}
}

func (a *app) showStatus(raw []byte) error {
	var st clusterStatus
	if err := json.Unmarshal(raw, &st); err != nil {
		return fmt.Errorf("cannot read the server's status: %w", err)
	}
	var err error
	if a.output == "table" {
		err = a.printf("%s", st.table())
	} else {
		err = a.document(raw)
	}
	if err != nil {
		return err
	}
	if why := st.unhealthy(); why != "" {
		a.talk("kvctl: the cluster is unhealthy: %s\n", why)
		return quietError{exitUnhealthy}
	}
	return nil
}

// voter: the node counts for a majority.
func (n *nodeStatus) voter() bool {
	switch n.Role {
	case "learner", "nonvoter", "non_voter":
		return false
	}
	return true
}

// up takes any state but the known bad ones as good: a newer server may know more states.
func (n *nodeStatus) up() bool {
	state, _, _ := strings.Cut(string(n.State), ":")
	switch state {
	case "", "down", "unreachable", "refused", "unknown", "failed", "shutdown", "other-history":
		return false
	}
	return true
}

// voters counts the voters, and those among them that are up.
func (st *clusterStatus) voters() (all, up int) {
	for i := range st.Nodes {
		if n := &st.Nodes[i]; n.voter() {
			all++
			if n.up() {
				up++
			}
		}
	}
	return all, up
}

// unhealthy says what is wrong with the cluster, the worst first; empty when all is well.
func (st *clusterStatus) unhealthy() string {
	all, up := st.voters()
	var bad []string
	if st.LeaderID == "" {
		bad = append(bad, "it has no leader")
	}
	if all > 0 && up <= all/2 {
		bad = append(bad, fmt.Sprintf("%d of %d voters are up, a majority is needed", up, all))
	}
	for i := range st.Nodes {
		if n := &st.Nodes[i]; n.voter() && n.State != "ok" {
			bad = append(bad, fmt.Sprintf("voter %s is %s", dash(n.ID), cmp.Or(cell(string(n.State)), "in no known state")))
		}
	}
	for i := range st.Nodes {
		if n := &st.Nodes[i]; n.Disk.State != "" && n.Disk.State != "ok" {
			bad = append(bad, fmt.Sprintf("the disk of %s is %s", dash(n.ID), cell(string(n.Disk.State))))
		}
	}
	if what := cmp.Or(st.Damage, st.LogDamage); what != "" {
		bad = append(bad, fmt.Sprintf("data of %s is damaged: %s", dash(st.NodeID), cell(string(what))))
	}
	return strings.Join(bad, "; ")
}

// table shows st for people.
func (st *clusterStatus) table() string {
	var b strings.Builder
	all, up := st.voters()
	leader := "none"
	if st.LeaderID != "" {
		leader = fmt.Sprintf("%s (term %s)", dash(st.LeaderID), dash(st.Term))
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
	if len(st.PendingConfig) != 0 && !bytes.Equal(st.PendingConfig, []byte("null")) {
		b.WriteString("PENDING  a change of the members is under way and not committed yet\n")
	}
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tROLE\tADDRESS\tRAFT\tSTATE\tAPPLIED\tLAG\tVERSION")
	for i := range st.Nodes {
		n := &st.Nodes[i]
		role, applied, lag := dash(n.Role), grouped(n.AppliedIndex), grouped(n.Lag)
		if !n.up() && n.AppliedIndex == "0" {
			applied, lag = "-", "-" // it did not tell
		}
		if n.ID == st.LeaderID && n.ID != "" {
			role, lag = "leader", "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(n.ID), role, dash(n.Address), dash(n.RaftAddress),
			dash(n.State), applied, lag, dash(n.Version))
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
