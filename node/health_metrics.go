package node

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"kvstore/internal/diskguard"
)

// isSet is 1 for something, 0 for nil.
func isSet[T any](p *T) float64 {
	if p != nil {
		return 1
	}
	return 0
}

// oneIf is 1 for true.
func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// writeHealth writes what the node knows of its own state and of the others'.
func (s *Shard) writeHealth(w io.Writer) error {
	h, x := s.health, s.scrub
	scrub, q, m := x.status(), s.hold.state(), h.mismatch()
	samples := []sample{
		{"kvstore_disk_writable_state", "gauge", "What the disks of a majority let a leader take: 0 everything, 1 deletes, 2 nothing.", float64(h.disks.writable())},
		{"kvstore_apply_stalled", "gauge", "1 while this node does not apply what its log has.", oneIf(h.stalled.Load())},
		{"kvstore_state_damaged", "gauge", "1 while a read or a scrub has met damage in the state.", isSet(s.damage.Load())},
		{"kvstore_state_quarantined", "gauge", "1 while the state may not be served.", oneIf(s.quarantined.Load())},
		{"kvstore_state_rebuilds_recent", "gauge", "How often the state was made anew within an hour.", float64(q.recent(time.Now()))},
		{"kvstore_digest_mismatch", "gauge", "Members whose state differs from this node's at the newest index that both have had.", float64(len(m.With))},
		{"kvstore_digest_mismatches_total", "counter", "Indices at which another member's state was found to differ.", float64(h.mismatches.Load())},
		{"kvstore_scrub_running", "gauge", "1 while a scrub reads what is stored.", oneIf(scrub.Running)},
		{"kvstore_scrub_runs_total", "counter", "Scrubs that came to their end.", float64(x.runs.Load())},
		{"kvstore_scrub_failures_total", "counter", "Scrubs that did not.", float64(x.failures.Load())},
		{"kvstore_scrub_records_total", "counter", "Records read by scrubs.", float64(x.records.Load())},
		{"kvstore_scrub_bytes_total", "counter", "Bytes of the state read by scrubs.", float64(x.bytes.Load())},
		{"kvstore_scrub_damages_total", "counter", "Damaged records and ranges found by scrubs.", float64(x.damages.Load())},
	}
	if scrub.FinishedAt != nil {
		samples = append(samples, sample{"kvstore_scrub_finished_timestamp_seconds", "gauge", "When the last scrub ended, in Unix time.", float64(scrub.FinishedAt.UnixMilli()) / 1000})
	}
	if ms, ok := s.wallSkew(); ok {
		samples = append(samples, sample{"kvstore_clock_skew_seconds", "gauge", "How far this node's time of day is off the median of the voters'.", float64(ms) / 1000})
	}
	if err := writeSamples(w, samples); err != nil {
		return err
	}
	if err := s.writePeerDisks(w); err != nil {
		return err
	}
	return s.writeTransfers(w)
}

// labelled is one value of a family with labels.
type labelled struct {
	labels string
	value  float64
}

// writeFamily writes one family; without values nothing.
func writeFamily(w io.Writer, name, kind, help string, values []labelled) error {
	if len(values) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind); err != nil {
		return err
	}
	for _, v := range values {
		if _, err := fmt.Fprintf(w, "%s{%s} %s\n", name, v.labels, strconv.FormatFloat(v.value, 'g', -1, 64)); err != nil {
			return err
		}
	}
	return nil
}

// writePeerDisks writes what the other members said of their disks.
func (s *Shard) writePeerDisks(w io.Writer) error {
	var states, free []labelled
	for _, m := range byID(s.group.Status().Configuration) {
		v, ok := s.health.of(m.ID)
		if !ok || m.ID == s.roster.self.ID {
			continue
		}
		labels := fmt.Sprintf("peer=%q", m.ID)
		states = append(states, labelled{labels, float64(v.diskState())})
		free = append(free, labelled{labels, float64(v.Free)})
	}
	if err := writeFamily(w, "kvstore_peer_disk_state", "gauge", fmt.Sprintf("The disk of another node: %d ok, %d low, %d critical.", diskguard.OK, diskguard.Low, diskguard.Critical), states); err != nil {
		return err
	}
	return writeFamily(w, "kvstore_peer_disk_free_bytes", "gauge", "Free space on the disk of another node.", free)
}

// writeTransfers writes how far the copies of the state under way are.
func (s *Shard) writeTransfers(w io.Writer) error {
	var done, total []labelled
	for _, t := range s.group.Transfers() {
		labels := fmt.Sprintf("peer=%q,direction=%q", t.ID, string(t.Direction))
		done = append(done, labelled{labels, float64(t.RecordBytes)})
		total = append(total, labelled{labels, float64(t.TotalBytes)})
	}
	if err := writeFamily(w, "kvstore_transfer_record_bytes", "gauge", "Bytes of records in a copy of the state under way, so far.", done); err != nil {
		return err
	}
	return writeFamily(w, "kvstore_transfer_record_bytes_expected", "gauge", "About how many there are in all.", total)
}
