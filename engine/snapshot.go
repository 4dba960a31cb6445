package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// SnapshotMeta tells which state a snapshot holds, in the terms of the log.
type SnapshotMeta struct {
	// Index and Term are those of the last entry in it.
	Index, Term uint64
	// Configuration is the newest cluster configuration at or below Index, as the log brought it, and
	// ConfigurationIndex the index that brought it.
	Configuration      []byte
	ConfigurationIndex uint64
}

// Snapshot is the state of a durable checkpoint as a stream that ReceiveSnapshot reads. Each Read goes on in
// the store from where the one before stopped: nothing is kept open between them, so a snapshot blocks
// neither Apply, nor checkpoints, nor Close of the engine. What it costs while it is open is space: past
// versions of what is overwritten or deleted meanwhile are kept.
//
// Read and Close may be called from different goroutines; Meta and Progress from any.
type Snapshot struct {
	// Immutable after OpenSnapshot.
	metrics *transferMetrics
	store   *store
	pin     *snapshotPin
	header  snapshotHeader
	records uint64
	bytes   uint64

	// Written by Read, read by anyone.
	items, rawBytes, sentBytes, sentRecords atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	out     []byte // what is left of the frame at hand
	frame   []byte // the payload before compression, behind room for a header
	scratch []byte // the same, compressed
	begun   bool   // the header was made
	next    []byte // where the next frame begins: the smallest key that it may hold
	ended   bool   // the end frame was made
	err     error  // what every further Read returns
}

// SnapshotProgress tells how far a snapshot has been read.
type SnapshotProgress struct {
	// Items counts stored keys: records, pieces of large values, index entries, sessions and kept answers.
	// Bytes counts what they hold, Sent what the stream has for it, compressed and framed.
	Items, Bytes, Sent uint64
	// RecordsDone are the records among Items.
	RecordsDone uint64
	// Records and RecordBytes are all that the state holds, as Stats counts them. Bytes ends a little above
	// RecordBytes, by headers and indexes.
	Records, RecordBytes uint64
}

// OpenSnapshot opens the newest durable checkpoint for sending; it waits for one when there is none yet. At
// most four snapshots are open at a time, and one that isn't read for a minute loses its hold: its next
// Read fails with ErrCompacted. Close it. Errors: ErrPinsExhausted, ErrClosed, ctx's, or the failure that
// has stopped the engine.
func (e *Engine) OpenSnapshot(ctx context.Context) (*Snapshot, error) {
	var s *Snapshot
	err := e.waiting(func(st *store) error {
		if err := st.waitDurable(ctx, 1); err != nil {
			return err
		}
		pin, cp, err := st.pinSnapshot()
		if err != nil {
			return err
		}
		s = &Snapshot{metrics: &e.transferred, store: st, pin: pin}
		if err := s.open(cp); err != nil {
			st.unpinSnapshot(pin)
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open a snapshot: %w", err)
	}
	e.transferred.opened.Add(1)
	return s, nil
}

// open gathers what the header tells of cp.
func (s *Snapshot) open(cp *Checkpoint) error {
	m, err := decodeMarker(cp.Marker)
	if err != nil {
		return err
	}
	var id identity
	if err := s.store.read(cp.TS, func(r *reader) (err error) {
		id, err = loadIdentity(r)
		return err
	}); err != nil {
		return err
	}
	s.records, s.bytes = m.records, m.bytes
	s.header = snapshotHeader{
		group: s.store.o.Group, level: id.level, clusterID: id.clusterID, historyID: id.historyID,
		index: cp.Index, term: cp.Term, ts: cp.TS, time: cp.Time,
		configuration: cp.Configuration, configurationIndex: cp.ConfigurationIndex, marker: cp.Marker,
	}
	if n := len(cp.Configuration); n > framePayloadBytesMax/2 {
		return fmt.Errorf("the configuration of %d bytes is too long for a snapshot", n)
	}
	return nil
}

// Meta tells which state the snapshot holds. The slice in it is immutable.
func (s *Snapshot) Meta() SnapshotMeta {
	return SnapshotMeta{
		Index: s.header.index, Term: s.header.term,
		Configuration: s.header.configuration, ConfigurationIndex: s.header.configurationIndex,
	}
}

// Progress tells how far the snapshot has been read.
func (s *Snapshot) Progress() SnapshotProgress {
	return SnapshotProgress{
		Items: s.items.Load(), Bytes: s.rawBytes.Load(), Sent: s.sentBytes.Load(), RecordsDone: s.sentRecords.Load(),
		Records: s.records, RecordBytes: s.bytes,
	}
}

// Read implements io.Reader. It reads from the disk. Errors besides io.EOF: ErrCompacted when the snapshot
// has lost its hold, ErrClosed when it, or the engine, was closed, or the engine's state was replaced; those
// of the store. An error is final.
func (s *Snapshot) Read(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	s.store.renew(s.pin)
	if len(s.out) == 0 && s.err == nil {
		if s.err = s.produce(); s.err != nil {
			s.release()
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	n = copy(b, s.out)
	s.out = s.out[n:]
	s.sentBytes.Add(uint64(n))
	s.metrics.bytesSent.Add(uint64(n))
	return n, nil
}

// Close ends the hold of the state. It may be called more than once. It never fails.
func (s *Snapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("cannot read the snapshot: %w", ErrClosed)
	}
	s.release()
	return nil
}

// release lets go of the hold and the memory. REQUIRES: mu held.
func (s *Snapshot) release() {
	s.store.unpinSnapshot(s.pin)
	s.out, s.frame, s.scratch = nil, nil, nil
}

// produce makes the next frame, io.EOF after the last. REQUIRES: mu held.
func (s *Snapshot) produce() error {
	kind := byte(frameItems)
	s.frame = beginFrame(s.frame)
	switch {
	case s.ended:
		return io.EOF
	case !s.begun:
		kind, s.begun = frameStart, true
		s.frame = appendSnapshotHeader(s.frame, &s.header)
	default:
		if err := s.gather(); err != nil {
			return fmt.Errorf("cannot read the snapshot of index %d: %w", s.header.index, err)
		}
		if len(s.frame) == frameHeaderBytes {
			kind, s.ended = frameEnd, true
			s.frame = appendSnapshotEnd(s.frame, snapshotEnd{s.items.Load(), s.rawBytes.Load()})
		}
	}
	s.out, s.scratch = sealFrame(kind, s.frame, s.scratch)
	return nil
}

// gather fills the frame with the next items; with none at the end of the state.
//
// It opens an iterator of its own: one that lived as long as a transfer would keep every memtable log and
// table of its beginning on disk, and after a crash such a log comes back below tombstones that are gone.
// REQUIRES: mu held.
func (s *Snapshot) gather() error {
	var items, bytes, records uint64
	next := s.next
	err := s.store.read(s.header.ts, func(r *reader) error {
		s.frame, items, bytes, records, next = s.frame[:frameHeaderBytes], 0, 0, 0, s.next
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false // as in reader.iterate
		it := r.txn.NewIterator(o)
		defer it.Close()
		for it.Seek(s.next); it.Valid(); it.Next() {
			item := it.Item()
			key := item.Key()
			size := len(key) + int(item.ValueSize())
			if items > 0 && len(s.frame)-frameHeaderBytes+itemOverheadBytesMax+size > frameItemsBytesMax {
				next = append([]byte(nil), key...)
				return nil
			}
			if err := item.Value(func(value []byte) error {
				if len(value) == 0 {
					return fmt.Errorf("%w: key %x has no value", ErrRecordDamaged, key)
				}
				s.frame = appendItem(s.frame, key, value, s.header.ts-item.Version())
				items++
				bytes += uint64(len(key) + len(value))
				if key[0] == familyRecord {
					records++
				}
				return nil
			}); err != nil {
				return err
			}
		}
		next = nil
		return nil
	})
	if err != nil {
		if errors.Is(err, ErrRecordDamaged) {
			err = fmt.Errorf("the sender's state: %w", err)
		}
		return err
	}
	if next == nil {
		next = pastAllKeys
	}
	s.next = next
	s.items.Add(items)
	s.rawBytes.Add(bytes)
	s.sentRecords.Add(records)
	return nil
}

// pastAllKeys lies above every key: families are letters.
var pastAllKeys = []byte{0xff}
