package node

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/VictoriaMetrics/metrics"

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
	if !n.ready.Load() {
		checks[0].Err = errors.New("the node is starting or stopping")
	}
	if !n.shard.leading() {
		checks[1].Err = errors.New("no leader is known, or its barrier is not applied yet")
	}
	// At Low the node still serves reads, and the deletes that make room: it stays in service.
	if st := n.guard.State(); st == diskguard.Critical {
		checks[2].Err = fmt.Errorf("free space is %s (%d bytes): nothing can be written", st, n.guard.Free())
	}
	if f := n.shard.readFailures.Load(); f != 0 {
		checks[3].Err = fmt.Errorf("%d reads met damaged data: see the log", f)
	}
	return checks
}

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
	if s := n.doors.open.Load(); s != nil {
		if err := s.WriteMetrics(w); err != nil {
			return err
		}
	}
	if err := n.shard.writeMetrics(w); err != nil {
		return err
	}
	up := 0.0
	if n.ready.Load() {
		up = 1
	}
	if err := writeSamples(w, []sample{
		{"kvstore_ready", "gauge", "1 while every door is open.", up},
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
	leader := 0.0
	if s.leading() {
		leader = 1
	}
	if err := writeSamples(w, []sample{
		{"kvstore_leader_elections_total", "counter", "How often this node became leader.", float64(m.Elections.Load())},
		{"kvstore_raft_is_leader", "gauge", "1 while this node leads and serves.", leader},
		{"kvstore_raft_term", "gauge", "Current term.", float64(raft.Term)},
		{"kvstore_raft_last_index", "gauge", "Last index in the log.", float64(raft.LastIndex)},
		{"kvstore_raft_first_index", "gauge", "First index in the log.", float64(raft.FirstIndex)},
		{"kvstore_raft_commit_index", "gauge", "Commit index.", float64(raft.CommitIndex)},
		{"kvstore_raft_applied_index", "gauge", "Index of the last entry applied.", float64(raft.AppliedIndex)},
		{"kvstore_raft_appended_entries_total", "counter", "Entries written to the log.", float64(m.AppendedEntries.Load())},
		{"kvstore_raft_appended_bytes_total", "counter", "Bytes of commands written to the log.", float64(m.AppendedBytes.Load())},
		{"kvstore_raft_snapshots_total", "counter", "Compactions of the log.", float64(m.Snapshots.Load())},
		{"kvstore_raft_proposals_refused_total", "counter", "Proposals surely not applied.", float64(m.Refused.Load() + m.Failed.Load())},
		{"kvstore_raft_proposals_unknown_total", "counter", "Proposals whose outcome is unknown.", float64(m.Unknown.Load())},
		{"kvstore_read_failures_total", "counter", "Reads that met damaged data.", float64(s.readFailures.Load())},
	}); err != nil {
		return err
	}
	if err := writeTimings(w, []timing{
		{"kvstore_raft_append_seconds", "Writing one batch of entries to the log, its fsync included.", m.Append.Snapshot()},
		{"kvstore_raft_commit_seconds", "From proposing an entry until it is committed and applied here.", m.Commit.Snapshot()},
	}); err != nil {
		return err
	}
	return s.writeEngineMetrics(w)
}
