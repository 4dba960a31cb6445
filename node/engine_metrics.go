package node

import (
	"fmt"
	"io"
	"strconv"

	"kvstore/engine"
	"kvstore/wire"
)

// writeEngineMetrics writes what the engine counts.
func (s *Shard) writeEngineMetrics(w io.Writer) error {
	st, err := s.engine.Stats()
	if err != nil {
		return fmt.Errorf("cannot read the engine's statistics: %w", err)
	}
	t := &st.Store
	if err := writeSamples(w, []sample{
		{"kvstore_engine_records", "gauge", "Live records of all namespaces.", float64(st.Records)},
		{"kvstore_engine_record_bytes", "gauge", "Bytes of their keys, kept elements and values.", float64(st.RecordBytes)},
		{"kvstore_engine_sessions", "gauge", "Open sessions.", float64(st.Sessions)},
		{"kvstore_engine_idempotency_keys", "gauge", "Idempotency keys whose answers are kept.", float64(st.IdempotencyKeys)},
		{"kvstore_engine_idempotency_bytes", "gauge", "Bytes that these answers count.", float64(st.IdempotencyBytes)},
		{"kvstore_engine_idempotency_bytes_max", "gauge", "Bytes that they may count; beyond it writes with a new key are refused.", wire.IdempotencyBytesMax},
		{"kvstore_engine_page_pins", "gauge", "Listings whose revision is held for their next page.", float64(st.PagePins)},
		{"kvstore_cache_hits_total", "counter", "Look-ups that the hot-record cache answered.", float64(st.CacheHits)},
		{"kvstore_cache_misses_total", "counter", "Look-ups that it could not answer.", float64(st.CacheMisses)},
		{"kvstore_cache_fills_total", "counter", "Records that reads brought in.", float64(st.CacheFills)},
		{"kvstore_cache_evicted_total", "counter", "Records that made room.", float64(st.CacheEvicted)},
		{"kvstore_cache_entries", "gauge", "Records held.", float64(st.CacheEntries)},
		{"kvstore_cache_bytes", "gauge", "Bytes held.", float64(st.CacheBytes)},
		{"kvstore_checkpoint_index", "gauge", "Index up to which the store is durable without the log.", float64(t.DurableIndex)},
		{"kvstore_checkpoint_lag_bytes", "gauge", "Bytes stored since.", float64(t.CheckpointLagBytes)},
		{"kvstore_checkpoint_lag_seconds", "gauge", "Log time since.", t.CheckpointLagTime.Seconds()},
		{"kvstore_read_fence", "gauge", "Engine timestamp below which past states are no longer complete.", float64(t.FenceTS)},
		{"kvstore_read_fence_retries_total", "counter", "Reads that were repeated because the fence had passed them.", float64(t.FenceRetries)},
		{"kvstore_pins", "gauge", "Revisions held for readers.", float64(t.Pins)},
		{"kvstore_pins_dropped_total", "counter", "Pins that lost their hold by age or bytes.", float64(t.PinsDropped)},
		{"kvstore_tail_bytes", "gauge", "Bytes of the newest part of the state, which stands in memory and not in Badger yet.", float64(t.TailBytes)},
		{"kvstore_tail_drained_total", "counter", "Versions of keys that went from there to Badger.", float64(t.Drained)},
		{"kvstore_tail_collapsed_total", "counter", "Versions that did not have to, because newer ones had taken their place.", float64(t.Collapsed)},
		{"kvstore_badger_written_bytes_total", "counter", "Bytes of keys and values that entries have stored.", float64(t.BytesWritten)},
		{"kvstore_badger_warnings_total", "counter", "Warnings that Badger logged; none is normal.", float64(t.BadgerWarnings)},
		{"kvstore_badger_errors_total", "counter", "Errors that Badger logged; none is normal.", float64(t.BadgerErrors)},
	}); err != nil {
		return err
	}
	if err := writeTimings(w, []timing{
		{"kvstore_apply_seconds", "Applying one entry.", st.Applies},
		{"kvstore_engine_commit_seconds", "Storing one entry's writes, part of applying.", t.Commits},
		{"kvstore_checkpoint_seconds", "Making one durable checkpoint.", t.Checkpoints},
		{"kvstore_tail_drain_seconds", "Moving one part of the tail into Badger, part of a checkpoint.", t.Drains},
		{"kvstore_tail_stall_seconds", "Waiting for room in the tail, part of applying.", t.Stalls},
		{"kvstore_checkpoint_fdatasync_seconds", "Syncing one memtable log.", t.Fdatasyncs},
	}); err != nil {
		return err
	}
	if err := writeCompressed(w, t); err != nil {
		return err
	}
	return writeLevels(w, t)
}

// writeCompressed writes what compression of values has saved, with a label for each codec.
func writeCompressed(w io.Writer, t *engine.StoreStats) error {
	for _, f := range []struct {
		name, help string
		value      func(c *engine.CompressStats) uint64
	}{
		{"kvstore_compressed_values_total", "Values that were stored compressed.", func(c *engine.CompressStats) uint64 { return c.Values }},
		{"kvstore_compressed_raw_bytes_total", "Their bytes as they came.", func(c *engine.CompressStats) uint64 { return c.RawBytes }},
		{"kvstore_compressed_stored_bytes_total", "Their bytes as they are stored.", func(c *engine.CompressStats) uint64 { return c.StoredBytes }},
	} {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n", f.name, f.help, f.name); err != nil {
			return err
		}
		for i := range t.Compressed {
			if _, err := fmt.Fprintf(w, "%s{codec=%q} %d\n", f.name, t.Compressed[i].Codec, f.value(&t.Compressed[i])); err != nil {
				return err
			}
		}
	}
	return writeSamples(w, []sample{
		{"kvstore_compress_plain_total", "counter", "Values for which compression was asked for and did not pay.", float64(t.CompressPlain)},
	})
}

// writeLevels writes the families that have a label for each level or kind of file.
func writeLevels(w io.Writer, t *engine.StoreStats) error {
	for _, f := range []struct {
		name, help string
		value      func(l *engine.LevelStats) float64
	}{
		{"kvstore_badger_level_tables", "Tables of a level.", func(l *engine.LevelStats) float64 { return float64(l.Tables) }},
		{"kvstore_badger_level_bytes", "Bytes of a level.", func(l *engine.LevelStats) float64 { return float64(l.Bytes) }},
		{"kvstore_badger_level_stale_bytes", "Bytes of a level that a compaction could drop.", func(l *engine.LevelStats) float64 { return float64(l.StaleBytes) }},
		{"kvstore_badger_level_score", "Wish to compact a level; above 1 it is granted.", func(l *engine.LevelStats) float64 { return l.Score }},
	} {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n", f.name, f.help, f.name); err != nil {
			return err
		}
		for i := range t.Levels {
			if _, err := fmt.Fprintf(w, "%s{level=\"%d\"} %s\n", f.name, t.Levels[i].Level, strconv.FormatFloat(f.value(&t.Levels[i]), 'g', -1, 64)); err != nil {
				return err
			}
		}
	}
	if _, err := io.WriteString(w, "# HELP kvstore_engine_file_bytes Space that the engine's files occupy, by kind.\n# TYPE kvstore_engine_file_bytes gauge\n"); err != nil {
		return err
	}
	for _, f := range []struct {
		kind  string
		files engine.FileStats
	}{{"memtable_log", t.MemtableLogs}, {"table", t.Tables}, {"value_log", t.ValueLogs}} {
		if _, err := fmt.Fprintf(w, "kvstore_engine_file_bytes{kind=%q} %d\n", f.kind, f.files.DiskBytes); err != nil {
			return err
		}
	}
	return nil
}
