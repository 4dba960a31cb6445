package testcluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Status is what a node says of itself, as far as tests look at it.
type Status struct {
	ClusterID       string `json:"cluster_id"`
	HistoryID       string `json:"history_id"`
	NodeID          string `json:"node_id"`
	Incarnation     string `json:"incarnation"`
	IsLeader        bool   `json:"is_leader"`
	LeaderID        string `json:"leader_id"`
	Term            uint64 `json:"term"`
	CommitIndex     uint64 `json:"commit_index"`
	AppliedIndex    uint64 `json:"applied_index"`
	CheckpointIndex uint64 `json:"checkpoint_index"`
	FirstIndex      uint64 `json:"log_first_index"`
	LastIndex       uint64 `json:"log_last_index"`
	Revision        string `json:"revision"`
	StateDigest     string `json:"state_digest"`
	Records         uint64 `json:"records"`
	Sessions        int    `json:"sessions"`
	Lease           struct {
		Held   bool   `json:"held"`
		Mode   string `json:"mode"`
		Reason string `json:"reason"`
	} `json:"lease"`
	// ClockSkewMs is by how much its time of day is ahead of the voters' median, nil where it is not known.
	ClockSkewMs *int64 `json:"clock_skew_ms"`
	// Clock is the cluster's clock as the node knows it.
	Clock struct {
		OffsetMs int64  `json:"offset_ms"`
		Source   string `json:"source"`
		SkewMs   *int64 `json:"skew_ms"`
	} `json:"clock"`
	Nodes         []NodeStatus   `json:"nodes"`
	CurrentConfig []MemberStatus `json:"current_config"`
	Disk          DiskStatus     `json:"disk"`
	// Writable is what the disks let a leader take.
	Writable string `json:"writable"`
	// Quarantine is nil unless the state was made anew.
	Quarantine *struct {
		Reason string   `json:"reason"`
		At     []string `json:"at"`
	} `json:"quarantine"`
	Damage string `json:"damage"`
	Scrub  struct {
		Running      bool     `json:"running"`
		FinishedAt   string   `json:"finished_at"`
		Records      uint64   `json:"records"`
		Digest       *bool    `json:"digest_matches"`
		Damaged      []string `json:"damaged"`
		DamagedCount int      `json:"damaged_count"`
		LogError     string   `json:"log_error"`
		Error        string   `json:"error"`
	} `json:"scrub"`
	DigestMismatch *struct {
		Index uint64   `json:"index"`
		With  []string `json:"with"`
		Odd   bool     `json:"odd"`
	} `json:"digest_mismatch"`
}

// DiskStatus is what a node says of its disk.
type DiskStatus struct {
	State     string `json:"state"`
	FreeBytes uint64 `json:"free_bytes"`
}

// NodeStatus is what a node says of one node of the cluster.
type NodeStatus struct {
	ID           string `json:"id"`
	Role         string `json:"role"`
	State        string `json:"state"`
	RaftAddress  string `json:"raft_address"`
	Address      string `json:"address"`
	AppliedIndex uint64 `json:"applied_index"`
	Lag          uint64 `json:"lag"` // 0 where it is not known
	// Disk is nil where it is not known.
	Disk *DiskStatus `json:"disk"`
}

// MemberStatus is one member of the configuration that is in force.
type MemberStatus struct {
	NodeID  string `json:"node_id"`
	Address string `json:"address"`
	Role    string `json:"role"`
}

// Status asks the node.
func (n *Node) Status() (Status, error) { return n.StatusContext(context.Background()) }

// StatusContext is Status for as long as ctx allows, and for ten seconds at most.
func (n *Node) StatusContext(ctx context.Context) (Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTPAddr()+"/api/v1/admin/status", nil)
	if err != nil {
		return Status{}, fmt.Errorf("cannot ask for the status: %w", err)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("cannot ask for the status: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return Status{}, fmt.Errorf("cannot read the status: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("cannot get the status: %s: %s", resp.Status, body)
	}
	var s Status
	if err := json.Unmarshal(body, &s); err != nil {
		return Status{}, fmt.Errorf("cannot read the status: %w: %s", err, body)
	}
	return s, nil
}

// MustStatus is Status that ends the test on an error.
func (n *Node) MustStatus() Status {
	n.t.Helper()
	s, err := n.Status()
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// MemoryBytes gives the resident memory of the process, and the most it ever was.
func (n *Node) MemoryBytes() (now, peak int64, err error) {
	f, err := os.Open("/proc/" + strconv.Itoa(n.Pid()) + "/status")
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the memory of the node: %w", err)
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &now
		case "VmHWM":
			to = &peak
		default:
			continue
		}
		kib, perr := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if perr != nil {
			return 0, 0, errors.Join(fmt.Errorf("cannot read the memory of the node: %w", perr), f.Close())
		}
		*to = kib << 10
	}
	if now == 0 || peak == 0 {
		err = errors.New("cannot read the memory of the node: the kernel names none")
	}
	return now, peak, errors.Join(err, f.Close())
}

// ResetMemoryPeak makes the peak that MemoryBytes tells begin anew at what the process uses now.
func (n *Node) ResetMemoryPeak() error {
	if err := os.WriteFile("/proc/"+strconv.Itoa(n.Pid())+"/clear_refs", []byte("5"), 0); err != nil {
		return fmt.Errorf("cannot reset the peak of the node's memory: %w", err)
	}
	return nil
}
