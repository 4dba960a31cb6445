package node

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"

	"kvstore/consensus"
	"kvstore/gateway"
	"kvstore/internal/diskguard"
	"kvstore/internal/hist"
	"kvstore/netloop"
)

// opsView is what the operator's port sees of the node.
type opsView struct{ n *Node }

// Checks implements gateway.Operations.
func (v opsView) Checks() []gateway.Check {
	n := v.n
	checks := []gateway.Check{{Name: "serving"}, {Name: "leader"}, {Name: "disk"}, {Name: "data"}}
	if !n.opened.Load() {
		starting := errors.New(*n.awaits.Load())
		checks[0].Err, checks[1].Err = starting, starting
		return checks
	}
	if !n.ready.Load() {
		checks[0].Err = errors.New("the node is starting or stopping")
	}
	checks[1].Err = n.service.readiness()
	// At Low the node still serves reads, and the deletes that make room: it stays in service.
	if st := n.guard.State(); st == diskguard.Critical {
		checks[2].Err = fmt.Errorf("free space is %s (%d bytes): nothing can be written", st, n.guard.Free())
	}
	if damage := n.shard.damage.Load(); damage != nil {
		checks[3].Err = errors.New(*damage)
	} else if f := n.shard.readFailures.Load(); f != 0 {
		checks[3].Err = fmt.Errorf("%d reads met damaged data: see the log", f)
	}
	return checks
}

// ready gives the first check that fails, or nil.
func (v opsView) ready() error {
	for _, c := range v.Checks() {
		if c.Err != nil {
			return fmt.Errorf("%s: %w", c.Name, c.Err)
		}
	}
	return nil
}

const readyHelp = "1 while every door is open, a leader is known, and the node has caught up with it once."

// sample is one counter or gauge of a scrape.
type sample struct {
	name, kind, help string
	value            float64
}

func writeSamples(w io.Writer, samples []sample) error {
	for _, s := range samples {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %s\n", s.name, s.help, s.name, s.kind, s.name, strconv.FormatFloat(s.value, 'g', -1, 64)); err != nil {
			return err
		}
	}
	return nil
}

// timing is one histogram of a scrape.
type timing struct {
	name, help string
	snapshot   *hist.Snapshot
}

func writeTimings(w io.Writer, timings []timing) error {
	for _, t := range timings {
		if err := hist.WriteHeader(w, t.name, t.help); err != nil {
			return err
		}
		if err := t.snapshot.WritePrometheus(w, t.name, ""); err != nil {
			return err
		}
	}
	return nil
}

// WriteMetrics implements gateway.Operations.
func (v opsView) WriteMetrics(w io.Writer) error {
	n := v.n
	if _, err := fmt.Fprintf(w, "# HELP kvstore_build_info The build; the value is always 1.\n# TYPE kvstore_build_info gauge\nkvstore_build_info{version=%q,commit=%q,node=%q} 1\n", n.info.Version, n.info.Commit, n.info.NodeID); err != nil {
		return err
	}
	if !n.opened.Load() {
		// There is nothing to count yet.
		if err := writeSamples(w, []sample{{"kvstore_ready", "gauge", readyHelp, 0}}); err != nil {
			return err
		}
		metrics.WriteProcessMetrics(w)
		return nil
	}
	// One family for all doors, so its header is written here.
	if err := hist.WriteHeader(w, netloop.DurationMetric, netloop.DurationHelp); err != nil {
		return err
	}
	if s := n.doors.open.Load(); s != nil {
		if err := s.WriteDurations(w); err != nil {
			return err
		}
	}
	if err := n.rest.WriteDurations(w); err != nil {
		return err
	}
	if n.grpc != nil {
		if err := n.grpc.WriteDurations(w); err != nil {
			return err
		}
	}
	if s := n.doors.open.Load(); s != nil {
		if err := s.WriteMetrics(w); err != nil {
			return err
		}
	}
	if err := n.door.WriteMetrics(w); err != nil {
		return err
	}
	if err := n.shard.writeMetrics(w); err != nil {
		return err
	}
	if err := n.service.writeMetrics(w); err != nil {
		return err
	}
	up := 0.0
	if n.ready.Load() && n.service.readiness() == nil {
		up = 1
	}
	if err := writeSamples(w, []sample{
		{"kvstore_ready", "gauge", readyHelp, up},
		{"kvstore_disk_free_bytes", "gauge", "Free space of the data directory's file system.", float64(n.guard.Free())},
		{"kvstore_disk_state", "gauge", "0 ok, 1 low (writes refused), 2 critical (deletes refused too).", float64(n.guard.State())},
		{"kvstore_read_queue_bytes", "gauge", "Bytes of reads that wait for a worker.", float64(n.service.reads.bytes.Load())},
	}); err != nil {
		return err
	}
	metrics.WriteProcessMetrics(w)
	return nil
}

// writeMetrics writes what the shard's parts count.
func (s *Shard) writeMetrics(w io.Writer) error {
	if err := s.batcher.WritePrometheus(w); err != nil {
		return err
	}
	raft, m := s.group.Status(), s.group.Metrics()
	var leader, lease, known float64
	if s.leading() {
		leader = 1
	}
	if s.serves() && s.group.Lease() {
		lease = 1
	}
	if id, _, _ := s.group.Leader(); id != "" {
		known = 1
	}
	if err := writeSamples(w, []sample{
		{"kvstore_leader_elections_total", "counter", "How often this node became leader.", float64(m.Elections.Load())},
		{"kvstore_raft_is_leader", "gauge", "1 while this node leads and serves.", leader},
		{"kvstore_raft_leader_known", "gauge", "1 while this node knows who leads.", known},
		{"kvstore_raft_lease_held", "gauge", "1 while this node may serve linearizable reads without asking.", lease},
		{"kvstore_raft_term", "gauge", "Current term.", float64(raft.Term)},
		{"kvstore_raft_members", "gauge", "Nodes of the cluster, learners included.", float64(len(raft.Configuration))},
		{"kvstore_raft_voters", "gauge", "Nodes of the cluster that vote.", float64(raft.Voters)},
		{"kvstore_raft_promotions_total", "counter", "Learners that this node made voters by itself.", float64(m.Promotions.Load())},
		{"kvstore_raft_demotions_total", "counter", "Dead voters that this node made learners by itself.", float64(m.Demotions.Load())},
		{"kvstore_raft_last_index", "gauge", "Last index in the log.", float64(raft.LastIndex)},
		{"kvstore_raft_first_index", "gauge", "First index in the log.", float64(raft.FirstIndex)},
		{"kvstore_raft_commit_index", "gauge", "Commit index.", float64(raft.CommitIndex)},
		{"kvstore_raft_applied_index", "gauge", "Index of the last entry applied.", float64(raft.AppliedIndex)},
		{"kvstore_raft_appended_entries_total", "counter", "Entries written to the log.", float64(m.AppendedEntries.Load())},
		{"kvstore_raft_appended_bytes_total", "counter", "Bytes of commands written to the log.", float64(m.AppendedBytes.Load())},
		{"kvstore_raft_snapshots_total", "counter", "Compactions of the log.", float64(m.Snapshots.Load())},
		{"kvstore_raft_proposals_refused_total", "counter", "Proposals surely not applied.", float64(m.Refused.Load() + m.Failed.Load())},
		{"kvstore_raft_proposals_unknown_total", "counter", "Proposals whose outcome is unknown.", float64(m.Unknown.Load())},
		{"kvstore_raft_snapshots_sent_total", "counter", "Copies of the state whose sending to another node began.", float64(m.SnapshotsSent.Load())},
		{"kvstore_raft_snapshots_received_total", "counter", "Copies of the state received whole and verified.", float64(m.SnapshotsReceived.Load())},
		{"kvstore_raft_snapshots_installed_total", "counter", "Copies of the state that became this node's.", float64(m.SnapshotsInstalled.Load())},
		{"kvstore_raft_snapshots_fetched_total", "counter", "Copies of the state that this node asked for because its own could not be used.", float64(m.SnapshotsFetched.Load())},
		{"kvstore_raft_snapshots_refused_total", "counter", "Copies of the state that found no room on this node's disk.", float64(m.SnapshotsRefused.Load())},
		{"kvstore_raft_snapshot_sent_bytes_total", "counter", "Bytes of copies of the state sent, those that came to nothing included.", float64(m.SnapshotBytesSent.Load())},
		{"kvstore_raft_snapshot_received_bytes_total", "counter", "Bytes of copies of the state received, likewise.", float64(m.SnapshotBytesReceived.Load())},
		{"kvstore_raft_leases_revoked_total", "counter", "Terms whose read lease was given up for a transfer of leadership.", float64(m.LeasesRevoked.Load())},
		{"kvstore_raft_log_cache_hits_total", "counter", "Reads of the log that memory answered.", float64(m.CacheHits.Load())},
		{"kvstore_raft_log_cache_misses_total", "counter", "Reads of the log that went to the disk.", float64(m.CacheMisses.Load())},
		{"kvstore_read_index_rounds_total", "counter", "Rounds in which a majority was asked to confirm the leadership; each serves all reads that wait.", float64(m.ReadIndexRounds.Load())},
		{"kvstore_read_index_failed_total", "counter", "Bunches of reads for which the leadership was not confirmed.", float64(m.ReadIndexFailed.Load())},
		{"kvstore_read_failures_total", "counter", "Reads that met damaged data.", float64(s.readFailures.Load())},
		{"kvstore_raft_log_damaged", "gauge", "1 while the last scrub of the log found damage.", isSet(s.logDamage.Load())},
	}); err != nil {
		return err
	}
	if err := s.writeHealth(w); err != nil {
		return err
	}
	if err := writeTimings(w, []timing{
		{"kvstore_raft_append_seconds", "Writing one batch of entries to the log, its fsync included.", m.Append.Snapshot()},
		{"kvstore_raft_commit_seconds", "From proposing an entry until it is committed and applied here.", m.Commit.Snapshot()},
		{"kvstore_read_index_seconds", "From the arrival of a bunch of reads until a majority had confirmed the leadership.", m.ReadIndex.Snapshot()},
	}); err != nil {
		return err
	}
	if err := s.writePeerMetrics(w); err != nil {
		return err
	}
	if err := s.writeBreakerMetrics(w); err != nil {
		return err
	}
	if err := s.writeNamespaceMetrics(w); err != nil {
		return err
	}
	if err := s.writeFeedMetrics(w); err != nil {
		return err
	}
	return s.writeEngineMetrics(w)
}

// writePeerMetrics writes, on the leader, how far each other node is.
func (s *Shard) writePeerMetrics(w io.Writer) error {
	if !s.leading() {
		return nil
	}
	peers, last := s.group.Peers(), s.group.Status().LastIndex
	for _, f := range []struct {
		name, help string
		value      func(p *consensus.PeerStatus) float64
	}{
		{"kvstore_raft_peer_lag_entries", "Entries of the leader's log that a node is not known to hold.", func(p *consensus.PeerStatus) float64 { return float64(last - min(p.Match, last)) }},
		{"kvstore_raft_peer_last_contact_seconds", "Time since a node last answered the leader.", func(p *consensus.PeerStatus) float64 { return p.LastAck.Seconds() }},
	} {
		if len(peers) == 0 {
			break
		}
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n", f.name, f.help, f.name); err != nil {
			return err
		}
		for i := range peers {
			if _, err := fmt.Fprintf(w, "%s{peer=%q} %s\n", f.name, peers[i].ID, strconv.FormatFloat(f.value(&peers[i]), 'g', -1, 64)); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeMetrics writes what the service counts.
func (s *Service) writeMetrics(w io.Writer) error {
	const name = "kvstore_forwarded_requests_total"
	if _, err := fmt.Fprintf(w, "# HELP %s Requests passed on to the leader, by what came of them.\n# TYPE %s counter\n", name, name); err != nil {
		return err
	}
	f := &s.forwarded
	for _, o := range []struct {
		outcome string
		n       *atomic.Uint64
	}{{"done", &f.done}, {"retry", &f.retry}, {"refused", &f.refused}, {"unknown", &f.unknown}} {
		if _, err := fmt.Fprintf(w, "%s{outcome=%q} %d\n", name, o.outcome, o.n.Load()); err != nil {
			return err
		}
	}
	if err := s.streams.writeMetrics(w); err != nil {
		return err
	}
	return writeSamples(w, append(s.follower.samples(), []sample{
		{"kvstore_peer_status_rounds_total", "counter", "Rounds in which the other nodes were asked for their status.", float64(s.board.rounds.Load())},
		{"kvstore_reads_confirmed_total", "counter", "Reads that waited until a majority had confirmed the leadership.", float64(s.reads.confirmed.Load())},
	}...))
}
