package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"kvstore/bench"
)

// statusTimeout bounds one node's answer to the question for its status.
const statusTimeout = 3 * time.Second

// lagMax is how many entries a node may lie behind in a cluster that counts as whole: far less than an
// election takes to be decided.
const lagMax = 1000

// status is what a node tells of itself and its cluster.
type status struct {
	NodeID   string `json:"node_id"`
	PID      int    `json:"pid"`
	DataDir  string `json:"data_dir"`
	Ready    bool   `json:"ready"`
	IsLeader bool   `json:"is_leader"`
	Term     uint64 `json:"term"`
	Nodes    []struct {
		ID      string `json:"id"`
		Role    string `json:"role"`
		Address string `json:"address"`
		PID     int    `json:"pid"`
		State   string `json:"state"`
		Lag     uint64 `json:"lag"`
	} `json:"nodes"`
}

// servers is what is known of the servers' processes on this machine.
type servers struct {
	// nodes is the size of the cluster, 0 when no status told it.
	nodes   int
	pids    []int
	dataDir string
	// remark says why pids is empty, where a caller may wonder.
	remark string
}

// findServers names the servers' processes. A pid that a node tells counts only when this machine has a
// kvstore under that number, and only when that is so of all nodes: part of a cluster's CPU time would
// look like all of it.
func (a *app) findServers(ctx context.Context, t target) (servers, error) {
	var s servers
	first, known, err := readStatus(ctx, t)
	if err != nil {
		return s, err
	}
	if known {
		s.nodes = max(len(first.Nodes), 1)
		if bench.IsServerProcess(first.PID) {
			s.dataDir = first.DataDir
		}
	}
	if len(a.serverPIDs) > 0 {
		s.pids = a.serverPIDs
		for _, pid := range s.pids {
			if _, err := bench.ProcessCPU(pid); err != nil {
				return s, usageError{fmt.Errorf("--server-pid: %w", err)}
			}
		}
		return s, nil
	}
	told := []int{first.PID}
	if s.nodes > 1 {
		told = told[:0]
		for _, n := range first.Nodes {
			told = append(told, n.PID)
		}
	}
	if slices.ContainsFunc(told, func(pid int) bool { return !bench.IsServerProcess(pid) }) {
		if s.nodes > 1 && s.dataDir != "" {
			s.remark = "the servers' CPU time is not measured: not all nodes told a process of this machine; --server-pid names them"
		}
		return s, nil
	}
	s.pids = told
	return s, nil
}

// readStatus asks one target. A status in another form than ours is no error: it tells nothing.
func readStatus(ctx context.Context, t target) (s status, known bool, err error) {
	raw, err := t.Status(ctx)
	if err != nil {
		return s, false, fmt.Errorf("cannot ask the server for its status: %w", err)
	}
	if json.Unmarshal(raw, &s) != nil {
		return status{}, false, nil
	}
	return s, true, nil
}

// endpointStatus is what became of asking one endpoint.
type endpointStatus struct {
	endpoint string
	status   status
	err      error
}

// eachStatus asks every endpoint through a connection of its own. A node may pass the question on to the
// leader, so that two answers may be the same.
func (a *app) eachStatus(ctx context.Context) []endpointStatus {
	all := make([]endpointStatus, 0, len(a.endpoints))
	for _, e := range a.endpoints {
		s, err := a.statusOf(ctx, e)
		all = append(all, endpointStatus{e, s, err})
	}
	return all
}

func (a *app) statusOf(ctx context.Context, endpoint string) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	t, err := a.open(ctx, bench.ClientOptions{Endpoints: []string{endpoint}, Timeout: statusTimeout, WithoutSession: true})
	if err != nil {
		return s, err
	}
	s, known, err := readStatus(ctx, t)
	if cerr := t.Close(); err == nil {
		err = cerr
	}
	if err == nil && !known {
		err = fmt.Errorf("%s answers with a status that names no process", endpoint)
	}
	return s, err
}

// findLeader tells who leads, if all endpoints answer, one node leads, and it sees all nodes well and near.
func (a *app) findLeader(ctx context.Context) (bench.Leader, error) {
	var leader status
	for _, n := range a.eachStatus(ctx) {
		switch {
		case n.err != nil:
			return bench.Leader{}, fmt.Errorf("%s does not answer: %w", n.endpoint, n.err)
		case !n.status.Ready:
			return bench.Leader{}, fmt.Errorf("%s (%s) is not ready", n.status.NodeID, n.endpoint)
		case n.status.IsLeader && n.status.Term >= leader.Term:
			leader = n.status
		}
	}
	if leader.NodeID == "" {
		return bench.Leader{}, fmt.Errorf("none of %d endpoints leads", len(a.endpoints))
	}
	for _, n := range leader.Nodes {
		if n.State != "ok" || n.Lag > lagMax {
			return bench.Leader{}, fmt.Errorf("leader %s sees %s as %q, %d entries behind", leader.NodeID, n.ID, n.State, n.Lag)
		}
	}
	return bench.Leader{ID: leader.NodeID, PID: leader.PID, Term: leader.Term, Nodes: len(leader.Nodes)}, nil
}
