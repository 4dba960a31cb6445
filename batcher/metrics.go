package batcher

import (
	"fmt"
	"io"

	"kvstore/internal/hist"
)

// Stats is a reading of the batcher's counters and gauges.
type Stats struct {
	// Operations and Entries count what was proposed; their quotient is the mean batch.
	Operations, Entries uint64
	// Late counts operations dropped because their deadline passed in the queue, Busy those refused
	// because the queue was full or too old.
	Late, Busy uint64
	// QueuedBytes and InFlight are the present queue and the entries proposed and unanswered.
	QueuedBytes, InFlight int
}

// Stats reads the counters.
func (b *Batcher) Stats() Stats {
	b.mu.Lock()
	queued, flying := b.queuedBytes, b.inFlight
	b.mu.Unlock()
	return Stats{
		Operations: b.stats.ops.Load(), Entries: b.stats.entries.Load(),
		Late: b.stats.late.Load(), Busy: b.stats.busy.Load(),
		QueuedBytes: queued, InFlight: flying,
	}
}

// WritePrometheus writes the batcher's metrics as Prometheus text.
func (b *Batcher) WritePrometheus(w io.Writer) error {
	s := b.Stats()
	for _, c := range [...]struct {
		name, kind, help string
		value            uint64
	}{
		{"kvstore_batch_operations_total", "counter", "Operations put into log entries.", s.Operations},
		{"kvstore_batch_entries_total", "counter", "Log entries proposed.", s.Entries},
		{"kvstore_batch_late_total", "counter", "Operations dropped in the queue because their deadline passed.", s.Late},
		{"kvstore_batch_busy_total", "counter", "Operations refused because the queue was full or too old.", s.Busy},
		{"kvstore_batch_queue_bytes", "gauge", "Bytes that wait to be proposed.", uint64(s.QueuedBytes)},
		{"kvstore_batch_inflight_entries", "gauge", "Entries proposed and not yet answered.", uint64(s.InFlight)},
	} {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", c.name, c.help, c.name, c.kind, c.name, c.value); err != nil {
			return err
		}
	}
	if err := hist.WriteHeader(w, "kvstore_batch_entry_operations", "Operations of one log entry."); err != nil {
		return err
	}
	if err := b.stats.entryOps.WritePrometheus(w, "kvstore_batch_entry_operations", ""); err != nil {
		return err
	}
	if err := hist.WriteHeader(w, "kvstore_batch_entry_bytes", "Bytes of one log entry."); err != nil {
		return err
	}
	if err := b.stats.entryBytes.WritePrometheus(w, "kvstore_batch_entry_bytes", ""); err != nil {
		return err
	}
	if err := hist.WriteHeader(w, "kvstore_batch_wait_seconds", "Time from the first operation of an entry until it is proposed."); err != nil {
		return err
	}
	if err := b.stats.wait.WritePrometheus(w, "kvstore_batch_wait_seconds", ""); err != nil {
		return err
	}
	if err := hist.WriteHeader(w, "kvstore_batch_commit_seconds", "Time from proposing an entry until it is applied here."); err != nil {
		return err
	}
	return b.stats.commit.WritePrometheus(w, "kvstore_batch_commit_seconds", "")
}
