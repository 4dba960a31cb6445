package node

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"time"
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
	PendingConfig *struct{}      `json:"pending_config"`
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

type nodeStatus struct {
	ID           string `json:"id"`
	Role         string `json:"role"`
	State        string `json:"state"`
	RaftAddress  string `json:"raft_address"`
	Address      string `json:"address"`
	AppliedIndex uint64 `json:"applied_index"`
	Lag          uint64 `json:"lag"`
	Version      string `json:"version"`
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

// statusJSON describes the node as it is now.
func (s *Service) statusJSON() []byte {
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
	leading := s.shard.leading()
	d := statusDocument{
		ClusterID: hex.EncodeToString(cluster[:]), HistoryID: hex.EncodeToString(history[:]),
		NodeID: s.info.NodeID, Incarnation: s.info.Incarnation,
		Version: s.info.Version, Commit: s.info.Commit, Pid: os.Getpid(), DataDir: s.info.DataDir,
		UptimeSeconds: time.Since(s.info.StartedAt).Seconds(), Ready: leading && !s.draining.Load(),
		IsLeader: leading, LeaderID: raft.LeaderID, Term: raft.Term,
		CommitIndex: raft.CommitIndex, AppliedIndex: digestIndex, DurableIndex: durable.Index,
		FirstIndex: raft.FirstIndex, LastIndex: raft.LastIndex,
		Revision:    strconv.FormatUint(applied.Revision, 10),
		StateDigest: hex.EncodeToString(digest[:]),
		Lease:       leaseStatus{Held: leading, Mode: s.info.ReadMode},
		Durability:  "fsync", ReadMode: s.info.ReadMode,
		Level: e.Level(), Records: stats.Records, Bytes: stats.RecordBytes, Sessions: stats.Sessions,
		Nodes: []nodeStatus{}, CurrentConfig: []memberStatus{}, // arrays even where nothing is known
		Disk: diskStatus{State: s.shard.guard.State().String(), FreeBytes: s.shard.guard.Free()},
	}
	for _, m := range raft.Configuration {
		role := "voter"
		if !m.Voter {
			role = "learner"
		}
		d.CurrentConfig = append(d.CurrentConfig, memberStatus{NodeID: m.ID, Address: m.Address, Role: role})
		n := nodeStatus{ID: m.ID, Role: "follower", State: "unknown", RaftAddress: m.Address}
		if m.ID == s.info.NodeID {
			n.Address, n.AppliedIndex, n.Version, n.State = s.info.Advertise, digestIndex, s.info.Version, "ok"
		}
		if m.ID == raft.LeaderID {
			n.Role = "leader"
		}
		d.Nodes = append(d.Nodes, n)
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic("BUG: cannot encode the status: " + err.Error())
	}
	return b
}
