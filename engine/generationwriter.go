package engine

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/ristretto/v2/z"

	"kvstore/internal/record"
)

const (
	// writerBatchBytes is how much goes to Badger's stream writer at a time. It holds up to five batches.
	writerBatchBytes = 1 << 20

	// writerTableBytes is the size of the tables that a snapshot is written into, at the last level, by our own
	// count. Badger's compactions make tables of 2 to 16 MiB.
	writerTableBytes = 8 << 20
	// writerItemBytes is what our count adds for an item: more than a table does, by its block's offsets,
	// its filter and its index.
	writerItemBytes = 40
	// writerCapacityBytes is the size at which Badger would end a table by itself, which it never gets to: what
	// it can't report then ends the process. It makes room in memory for twice as much per table, which is what
	// pieces of large values take.
	writerCapacityBytes = 16 << 20
	// writerTablesMax bounds the tables that wait for the disk. Badger's bound is 16. With the one that is being
	// filled they take 160 MiB.
	writerTablesMax = 4
	// writerPatience bounds the wait for one of them. Whoever is slower than that has Badger's bound.
	writerPatience = 10 * time.Second

	// writerMemtableBytes lets values up to the threshold stay in the tables, whatever Options.MemtableBytes
	// say: the sender's may be larger. The memtable itself stays empty.
	writerMemtableBytes = 8 << 20
)

// generationWriter fills a fresh generation by Badger's stream writer: keys ascending, each with its version.
//
// Each table is a stream of its own to that writer. A stream that grows beyond one table has its tables
// created behind our back: up to sixteen at a time, and one that can't be created is a panic in Badger's
// goroutine. The end of a stream is ours: we see the error, and how many tables wait.
type generationWriter struct {
	s      *store // its directory and options; no database of it is open
	db     *badger.DB
	writer *badger.StreamWriter
	batch  *z.Buffer
	kv     pb.KV
	table  int // bytes in the table at hand, by our count
	ended  int // tables that were ended
}

// newGenerationWriter makes the directory of s's generation and opens it. On error nothing is left.
func newGenerationWriter(s *store) (w *generationWriter, err error) {
	if err := os.Mkdir(s.genDir, 0o700); err != nil {
		return nil, err
	}
	w = &generationWriter{s: s}
	o := s.badgerOptions()
	capacity := int64(writerCapacityBytes)
	for range o.MaxLevels - 2 { // what the stream writer multiplies it by
		capacity /= int64(o.TableSizeMultiplier)
	}
	o = o.WithMemTableSize(writerMemtableBytes).WithValueThreshold(valueThresholdMax).WithBaseTableSize(capacity)
	if w.db, err = badger.OpenManaged(o); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open Badger in %q: %w", s.genDir, err), os.RemoveAll(s.genDir))
	}
	w.writer = w.db.NewStreamWriter()
	if err := w.writer.Prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot prepare Badger in %q: %w", s.genDir, err), w.abort())
	}
	w.batch = z.NewBuffer(writerBatchBytes+writerBatchBytes/4, "snapshot")
	return w, nil
}

// set writes one key. It keeps nothing of the slices. REQUIRES: key lies above the one before; value isn't
// empty and is shorter than valueThresholdMax; both were checked by snapshotReader.
func (w *generationWriter) set(key, value []byte, version uint64) error {
	w.kv.Key, w.kv.Value, w.kv.Version, w.kv.StreamId = key, value, version, uint32(w.ended)
	badger.KVToBuffer(&w.kv, w.batch)
	w.table += len(key) + len(value) + writerItemBytes
	switch {
	case w.table >= writerTableBytes:
		return w.endTable()
	case w.batch.LenNoPadding() >= writerBatchBytes:
		return w.flush()
	}
	return nil
}

// endTable ends the table at hand and waits until not too many are on their way to the disk.
func (w *generationWriter) endTable() error {
	badger.KVToBuffer(&pb.KV{StreamId: uint32(w.ended), StreamDone: true}, w.batch)
	if err := w.flush(); err != nil {
		return err
	}
	w.ended++
	w.table = 0
	// Badger tells nobody that a table is done; one that failed never is, and shows in a later flush.
	for deadline := time.Now().Add(writerPatience); w.ended-w.created() > writerTablesMax && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// created is how many tables are on disk.
func (w *generationWriter) created() (n int) {
	for _, level := range w.db.Levels() {
		n += level.NumTables
	}
	return n
}

// flush hands the batch to Badger, which copies it.
func (w *generationWriter) flush() error {
	if err := w.writer.Write(w.batch); err != nil {
		return fmt.Errorf("cannot write to Badger in %q: %w", w.s.genDir, err)
	}
	w.batch.Reset()
	return nil
}

// finish makes everything durable, the directory's name included, and closes the database. After an error
// abort is still to be called.
func (w *generationWriter) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.writer.Flush(); err != nil {
		return fmt.Errorf("cannot finish writing to Badger in %q: %w", w.s.genDir, err)
	}
	w.writer = nil
	db := w.db
	w.db = nil
	if err := db.Close(); err != nil {
		return fmt.Errorf("cannot close Badger in %q: %w", w.s.genDir, err)
	}
	w.s.o.hooks.step(stepWritten)
	if err := syncTree(w.s.genDir); err != nil {
		return err
	}
	if err := record.SyncDir(w.s.dir); err != nil {
		return err
	}
	w.s.o.hooks.step(stepSynced)
	return w.releaseBatch()
}

// abort closes what is open and removes the directory.
func (w *generationWriter) abort() error {
	if w.writer != nil {
		w.writer.Cancel()
		w.writer = nil
	}
	var err error
	if w.db != nil {
		err = w.db.Close()
		w.db = nil
	}
	return errors.Join(err, w.releaseBatch(), os.RemoveAll(w.s.genDir))
}

func (w *generationWriter) releaseBatch() error {
	if w.batch == nil {
		return nil
	}
	b := w.batch
	w.batch = nil
	return b.Release()
}
