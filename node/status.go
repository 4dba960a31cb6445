package node

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"time"

	"kvstore/consensus"
)

// statusDocument is what STATUS and GET /api/v1/admin/status answer. Revisions are decimal strings, as
// everywhere in JSON: they exceed what a double holds.
type statusDocument struct {
	ClusterID     string         `json:"cluster_id"`
	HistoryID     string         `json:"history_id"`
	NodeID        string         `json:"node_id"`
	Incarnation   string         `json:"incarnation"`
	Version       string         `json:"version"`
	Commit        string         `json:"commit"`
	Pid           int            `json:"pid"`
	DataDir       string         `json:"data_dir"`
	UptimeSeconds float64        `json:"uptime_seconds"`
	Ready         bool           `json:"ready"`
	Stopping      bool           `json:"stopping"`
	IsLeader      bool           `json:"is_leader"`
	LeaderID      string         `json:"leader_id"`
	Term          uint64         `json:"term"`
	CommitIndex   uint64         `json:"commit_index"`
	AppliedIndex  uint64         `json:"applied_index"`
	DurableIndex  uint64         `json:"checkpoint_index"`
	FirstIndex    uint64         `json:"log_first_index"`
	LastIndex     uint64         `json:"log_last_index"`
	Revision      string         `json:"revision"`
	StateDigest   string         `json:"state_digest"`
	Lease         leaseStatus    `json:"lease"`
	Nodes         []nodeStatus   `json:"nodes"`
	CurrentConfig []memberStatus `json:"current_config"`
	PendingConfig *pendingStatus `json:"pending_config"`
	Durability    string         `json:"durability"`
	ReadMode      string         `json:"read_mode"`
	Level         uint16         `json:"behaviour_level"`
	Records       uint64         `json:"records"`
	Bytes         uint64         `json:"bytes"`
	Sessions      int            `json:"sessions"`
	Disk          diskStatus     `json:"disk"`
}

type leaseStatus struct {
	Held bool   `json:"held"`
	Mode string `json:"mode"`
}

// pendingStatus is a configuration that is not committed yet.
type pendingStatus struct {
	Members []memberStatus `json:"members"`
}

// nodeStatus is what this node knows of one node of the cluster, itself included.
type nodeStatus struct {
	ID string `json:"id"`
	// Role is leader, follower or learner.
	Role string `json:"role"`
	// State is ok, starting, stopping, or unreachable.
	State        string `json:"state"`
	RaftAddress  string `json:"raft_address"`
	Address      string `json:"address"`
	AppliedIndex uint64 `json:"applied_index"`
	// Lag is how many entries of the log it has applied less than the most advanced node that answered.
	Lag     uint64 `json:"lag"`
	Version string `json:"version"`
	// Pid is that of its process, 0 while it does not answer.
	Pid int `json:"pid"`
}

type memberStatus struct {
	NodeID  string `json:"node_id"`
	Address string `json:"address"`
	Role    string `json:"role"`
}

type diskStatus struct {
	State     string `json:"state"`
	FreeBytes uint64 `json:"free_bytes"`
}

// States of a node beside those of a member.
const (
	stateStarting = "starting"
	stateStopping = "stopping"
)

// statusJSON describes the node as it is now and, unless local is set, the cluster as far as the other nodes
// have answered.
func (s *Service) statusJSON(local bool) []byte {
	d := s.status()
	if !local {
		s.addPeers(d, s.board.answers())
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic("BUG: cannot encode the status: " + err.Error())
	}
	return b
}

// status describes the node itself.
func (s *Service) status() *statusDocument {
	e, raft := s.shard.engine, s.shard.group.Status()
	cluster, history, _ := e.Identity()
	// Index, digest and revision of one state: under load the state moves between the two readings.
	digestIndex, digest := e.Digest()
	applied := e.Applied()
	for range 100 {
		if applied.Index == digestIndex {
			break
		}
		digestIndex, digest = e.Digest()
		applied = e.Applied()
	}
	durable, _ := e.Durable()
	stats, err := e.Stats()
	if err != nil {
		s.shard.log.Debug("no statistics", "error", err) // the engine is closing: zeros are shown
	}
	leader, _, term := s.shard.group.Leader()
	d := &statusDocument{
		ClusterID: hex.EncodeToString(cluster[:]), HistoryID: hex.EncodeToString(history[:]),
		NodeID: s.info.NodeID, Incarnation: s.info.Incarnation,
		Version: s.info.Version, Commit: s.info.Commit, Pid: os.Getpid(), DataDir: s.info.DataDir,
		UptimeSeconds: time.Since(s.info.StartedAt).Seconds(), Ready: s.readiness() == nil, Stopping: s.draining.Load(),
		IsLeader: s.shard.leading(), LeaderID: leader, Term: term,
		CommitIndex: raft.CommitIndex, AppliedIndex: digestIndex, DurableIndex: durable.Index,
		FirstIndex: raft.FirstIndex, LastIndex: raft.LastIndex,
		Revision:    strconv.FormatUint(applied.Revision, 10),
		StateDigest: hex.EncodeToString(digest[:]),
		Lease:       leaseStatus{Held: s.shard.serves() && s.shard.group.Lease(), Mode: s.info.ReadMode},
		Durability:  "fsync", ReadMode: s.info.ReadMode,
		Level: e.Level(), Records: stats.Records, Bytes: stats.RecordBytes, Sessions: stats.Sessions,
		Nodes: []nodeStatus{}, CurrentConfig: []memberStatus{}, // arrays even where nothing is known
		Disk: diskStatus{State: s.shard.guard.State().String(), FreeBytes: s.shard.guard.Free()},
	}
	for _, m := range byID(raft.Configuration) {
		d.CurrentConfig = append(d.CurrentConfig, memberStatus{NodeID: m.ID, Address: m.Address, Role: roleOf(m.Voter)})
		if m.ID == d.NodeID {
			d.Nodes = append(d.Nodes, nodeStatus{
				ID: m.ID, Role: d.roleOfNode(m), State: d.state(), RaftAddress: m.Address,
				Address: s.info.Advertise, AppliedIndex: digestIndex, Version: s.info.Version, Pid: d.Pid,
			})
		}
	}
	if raft.Pending != nil {
		d.PendingConfig = &pendingStatus{pendingMembers(raft.Pending)}
	}
	return d
}

// byID gives members in the order of their ids.
func byID(all []consensus.Member) []consensus.Member {
	return slices.SortedFunc(slices.Values(all), func(a, b consensus.Member) int { return cmp.Compare(a.ID, b.ID) })
}

// roleOfNode gives a node's role in the status.
func (d *statusDocument) roleOfNode(m consensus.Member) string {
	switch {
	case m.ID == d.LeaderID:
		return "leader"
	case !m.Voter:
		return "learner"
	}
	return "follower"
}

// state gives the state of the node that d describes.
func (d *statusDocument) state() string {
	switch {
	case d.Stopping:
		return stateStopping
	case !d.Ready:
		return stateStarting
	}
	return stateOK
}

// addPeers makes d's nodes those of the whole configuration.
func (s *Service) addPeers(d *statusDocument, answers map[string]*statusDocument) {
	own := d.Nodes
	d.Nodes = []nodeStatus{}
	for _, m := range byID(s.shard.group.Status().Configuration) {
		if m.ID == d.NodeID {
			d.Nodes = append(d.Nodes, own...)
			continue
		}
		known, _ := s.shard.roster.member(m.ID)
		n := nodeStatus{ID: m.ID, Role: d.roleOfNode(m), State: stateUnreachable, RaftAddress: m.Address, Address: known.Address, Version: known.Version}
		if a := answers[m.ID]; a != nil {
			n.State, n.AppliedIndex, n.Version, n.Pid = a.state(), a.AppliedIndex, a.Version, a.Pid
		}
		d.Nodes = append(d.Nodes, n)
	}
	var most uint64
	for i := range d.Nodes {
		most = max(most, d.Nodes[i].AppliedIndex)
	}
	for i := range d.Nodes {
		if n := &d.Nodes[i]; n.State != stateUnreachable {
			n.Lag = most - n.AppliedIndex
		}
	}
}
