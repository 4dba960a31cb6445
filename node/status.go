package node

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"kvstore/consensus"
)

// statusDocument is what STATUS and GET /api/v1/admin/status answer. Revisions are decimal strings, as
// everywhere in JSON: they exceed what a double holds.
type statusDocument struct {
	ClusterID   string `json:"cluster_id"`
	HistoryID   string `json:"history_id"`
	NodeID      string `json:"node_id"`
	Incarnation string `json:"incarnation"`
	Version     string `json:"version"`
	Commit      string `json:"commit"`
	Pid         int    `json:"pid"`
	DataDir     string `json:"data_dir"`
	// HTTPAddress and GRPCAddress are where others reach these doors; "": there is no such door.
	HTTPAddress   string         `json:"http_address"`
	GRPCAddress   string         `json:"grpc_address"`
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
	// ClockSkewMs is how far this node's time of day is off the median of the voters'; null while that is not known.
	ClockSkewMs *int64 `json:"clock_skew_ms"`
	// Clock is the cluster's clock, which entries of the log are stamped by.
	Clock clockStatus `json:"clock"`
	// Writable is what the disks let a leader take: ok, low (deletes only) or critical (nothing).
	Writable string `json:"writable"`
	// Transfers are the copies of the state under way between this node and others.
	Transfers []transferStatus `json:"transfers"`
	// Autopilot is how this node, as the leader, judges the members; null on others.
	Autopilot *autopilotStatus `json:"autopilot"`
	Scrub     scrubStatus      `json:"scrub"`
	// Feed is the change feed of this node.
	Feed feedStatus `json:"feed"`
	// Quarantine tells when the state was found wrong and made anew; null if it never was.
	Quarantine *quarantineStatus `json:"quarantine"`
	// Damage is what a read or a scrub met in the state that can't be read, LogDamage in the log; empty: nothing.
	Damage    string `json:"damage"`
	LogDamage string `json:"log_damage"`
	// DigestMismatch tells of members whose state is another at an index that both have had; null: none is known.
	DigestMismatch *mismatch `json:"digest_mismatch"`
	// Stalled: this node does not apply what its log has.
	Stalled bool `json:"stalled"`
}

type leaseStatus struct {
	Held bool `json:"held"`
	// Mode is lease, readindex or off; Reason says why it is not lease although that was asked for, or not held.
	Mode   string `json:"mode"`
	Reason string `json:"reason"`
}

// transferStatus is one copy of the state under way.
type transferStatus struct {
	ID string `json:"id"`
	// Direction is send, receive, or fetch.
	Direction string `json:"direction"`
	Index     uint64 `json:"index"`
	// Bytes are those of the stream so far, RecordBytes of RecordBytesTotal (about) what was in it.
	Bytes            uint64    `json:"bytes"`
	Records          uint64    `json:"records"`
	RecordsTotal     uint64    `json:"records_total"`
	RecordBytes      uint64    `json:"record_bytes"`
	RecordBytesTotal uint64    `json:"record_bytes_total"`
	StartedAt        time.Time `json:"started_at"`
	RateBytes        uint64    `json:"rate_bytes"`
	// Streamed: what is left is to check and to install.
	Streamed bool `json:"streamed"`
}

type quarantineStatus struct {
	// Reason is that of the last time, At are the last times at which the state was set aside.
	Reason string      `json:"reason"`
	At     []time.Time `json:"at"`
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
	// State is ok, starting, leaderless, stopping, unreachable, or other-history: it answers for another history of the
	// cluster, or for another cluster.
	State        string `json:"state"`
	RaftAddress  string `json:"raft_address"`
	Address      string `json:"address"`
	AppliedIndex uint64 `json:"applied_index"`
	// Lag is how many entries of the log it has applied less than the most advanced node that answered; null while
	// it does not answer.
	Lag     *uint64 `json:"lag"`
	Version string  `json:"version"`
	// Pid is that of its process, 0 while it does not answer.
	Pid int `json:"pid"`
	// Disk is null while it does not tell.
	Disk *diskStatus `json:"disk"`
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
	// stateLeaderless is a node that runs and knows no leader, for longer than an election or a start takes.
	stateLeaderless = "leaderless"
	stateStopping   = "stopping"
	// stateStranger is a node that runs and belongs to another history of the cluster, or to another cluster.
	stateStranger = "other-history"
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
	h := s.shard.health
	disk := diskStatus{State: h.disks.own().String(), FreeBytes: s.shard.guard.Free()}
	d := &statusDocument{
		ClusterID: hex.EncodeToString(cluster[:]), HistoryID: hex.EncodeToString(history[:]),
		NodeID: s.info.NodeID, Incarnation: s.info.Incarnation,
		Version: s.info.Version, Commit: s.info.Commit, Pid: os.Getpid(), DataDir: s.info.DataDir, HTTPAddress: s.info.member.HTTPAddress, GRPCAddress: s.info.GRPCAdvertise,
		UptimeSeconds: time.Since(s.info.StartedAt).Seconds(), Ready: s.readiness() == nil, Stopping: s.draining.Load(),
		IsLeader: s.shard.leading(), LeaderID: leader, Term: term,
		CommitIndex: raft.CommitIndex, AppliedIndex: digestIndex, DurableIndex: durable.Index,
		FirstIndex: raft.FirstIndex, LastIndex: raft.LastIndex,
		Revision:    strconv.FormatUint(applied.Revision, 10),
		StateDigest: hex.EncodeToString(digest[:]),
		Lease:       s.leaseStatus(),
		Durability:  "fsync", ReadMode: s.info.ReadMode,
		Level: e.Level(), Records: stats.Records, Bytes: stats.RecordBytes, Sessions: stats.Sessions,
		Nodes: []nodeStatus{}, CurrentConfig: []memberStatus{}, // arrays even where nothing is known
		Disk: disk, Writable: h.disks.writable().String(), Stalled: h.stalled.Load(),
		Transfers: []transferStatus{}, Scrub: s.shard.scrub.status(), Feed: s.shard.feedStatus(),
	}
	s.addHealth(d)
	for _, m := range byID(raft.Committed) {
		d.CurrentConfig = append(d.CurrentConfig, memberStatus{NodeID: m.ID, Address: m.Address, Role: roleOf(m.Voter)})
	}
	for _, m := range raft.Configuration {
		if m.ID == d.NodeID {
			d.Nodes = append(d.Nodes, nodeStatus{
				ID: m.ID, Role: d.roleOfNode(m), State: d.state(), RaftAddress: m.Address,
				Address: s.info.Advertise, AppliedIndex: digestIndex, Version: s.info.Version, Pid: d.Pid, Lag: new(uint64), Disk: &disk,
			})
		}
	}
	if raft.Pending != nil {
		d.PendingConfig = &pendingStatus{pendingMembers(raft.Pending)}
	}
	return d
}

// leaseStatus describes the read lease.
func (s *Service) leaseStatus() leaseStatus {
	st := s.shard.group.LeaseState()
	l := leaseStatus{Held: s.shard.serves() && st.Held, Mode: string(st.Mode), Reason: st.Reason}
	if s.shard.readIndex && l.Mode == readModeLease {
		l.Mode, l.Reason = readModeReadIndex, "--read-mode readindex"
	}
	return l
}

// addHealth adds what this node knows of its own state and of the others'.
func (s *Service) addHealth(d *statusDocument) {
	shard := s.shard
	d.Clock = shard.clockStatus()
	if ms, ok := shard.wallSkew(); ok {
		d.ClockSkewMs = &ms
	}
	for _, t := range shard.group.Transfers() {
		d.Transfers = append(d.Transfers, transferStatus{
			ID: t.ID, Direction: string(t.Direction), Index: t.Index, Bytes: t.Bytes, Records: t.Records, RecordsTotal: t.TotalRecords,
			RecordBytes: t.RecordBytes, RecordBytesTotal: t.TotalBytes, StartedAt: t.StartedAt.UTC(), RateBytes: t.RateBytes, Streamed: t.Streamed,
		})
	}
	d.Autopilot = shard.autopilotStatus()
	if q := shard.hold.state(); len(q.At) != 0 {
		d.Quarantine = &quarantineStatus{Reason: q.Reason, At: q.At}
	}
	for _, t := range []struct {
		from *atomic.Pointer[string]
		to   *string
	}{{&shard.damage, &d.Damage}, {&shard.logDamage, &d.LogDamage}} {
		if text := t.from.Load(); text != nil {
			*t.to = *text
		}
	}
	if m := shard.health.mismatch(); m.Index != 0 {
		d.DigestMismatch = &m
	}
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

// leaderlessAfter is the age in seconds from which a node without a leader is no longer called starting.
const leaderlessAfter = 10

// state gives the state of the node that d describes.
func (d *statusDocument) state() string {
	switch {
	case d.Stopping:
		return stateStopping
	case !d.Ready && d.LeaderID == "" && d.UptimeSeconds > leaderlessAfter:
		return stateLeaderless
	case !d.Ready:
		return stateStarting
	}
	return stateOK
}

// stranger tells that d and other are of two histories of a cluster, or of two clusters. One that knows none yet is
// none.
func (d *statusDocument) stranger(other *statusDocument) bool {
	if strings.Trim(d.HistoryID, "0") == "" || strings.Trim(other.HistoryID, "0") == "" {
		return false
	}
	return d.ClusterID != other.ClusterID || d.HistoryID != other.HistoryID
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
			n.State, n.AppliedIndex, n.Version, n.Pid, n.Disk = a.state(), a.AppliedIndex, a.Version, a.Pid, &a.Disk
			if (n.State == stateOK || n.State == stateLeaderless) && a.stranger(d) {
				n.State = stateStranger
			}
		} else if v, ok := s.shard.health.of(m.ID); ok {
			n.Disk = &diskStatus{State: v.Disk, FreeBytes: v.Free}
		}
		d.Nodes = append(d.Nodes, n)
	}
	var most uint64
	for i := range d.Nodes {
		most = max(most, d.Nodes[i].AppliedIndex)
	}
	for i := range d.Nodes {
		if n := &d.Nodes[i]; n.State != stateUnreachable {
			lag := most - n.AppliedIndex
			n.Lag = &lag
		}
	}
}
