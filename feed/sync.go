package feed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"kvstore/internal/failpoint"
	"kvstore/internal/record"
	"kvstore/wire"
)

// segmentHeaderBytes is the length of the first record of a segment.
const segmentHeaderBytes = record.HeaderSize + headerBytes

func (f *Feed) path(start int64) string { return filepath.Join(f.o.Dir, segmentName(start)) }

// Sync makes everything up to index durable, with a mark that says so where the newest entries had no events; then it
// removes the oldest segments that are too many. An error is for good: nobody knows what is on disk after it. It may
// run beside the applier. REQUIRES: index was appended.
func (f *Feed) Sync(index uint64) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	return f.sync(index)
}

// sync is Sync. REQUIRES: syncing held.
func (f *Feed) sync(index uint64) error {
	if err := f.failure(); err != nil {
		return err
	}
	if err := failpoint.Err(failpoint.FeedSyncBefore); err != nil {
		return f.fail(err)
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	if index > f.at.index {
		f.mu.Unlock()
		panic(fmt.Sprintf("BUG: entry %d is to be synced, entry %d is the newest", index, f.at.index))
	}
	if f.recorded < f.at.index {
		f.put(f.at.revision, appendHead(nil, &head{kind: kindMark, state: f.at}))
		f.recorded = f.at.index
	}
	end := f.end
	f.mu.Unlock()

	f.io.Lock()
	err := f.flush(end)
	var dirty []*os.File
	f.mu.Lock()
	for _, s := range f.segments {
		if s.dirty {
			s.dirty = false
			dirty = append(dirty, s.file)
		}
	}
	synced := f.flushed
	f.mu.Unlock()
	created := f.created
	f.created = false
	f.io.Unlock()
	if err != nil {
		return err
	}
	// Only who holds syncing removes segments: their files stay open.
	for _, file := range dirty {
		if err := file.Sync(); err != nil {
			return f.fail(fmt.Errorf("cannot sync the feed: %w", err))
		}
	}
	if created {
		if err := record.SyncDir(f.o.Dir); err != nil {
			return f.fail(fmt.Errorf("cannot sync the feed: %w", err))
		}
	}
	if err := failpoint.Err(failpoint.FeedSyncAfter); err != nil {
		return f.fail(err)
	}
	return f.retain(synced)
}

func (f *Feed) failure() error {
	if err := f.failed.Load(); err != nil {
		return fmt.Errorf("the feed has failed: %w", *err)
	}
	return nil
}

// flushSome has what waits up to end written, beside the applier. While another one writes, it leaves it to that one;
// when too much of the ring waits, the applier writes it itself. An error is kept for Sync.
func (f *Feed) flushSome(end, waiting int64) {
	if f.failed.Load() != nil {
		return
	}
	if f.io.TryLock() {
		go func() { // owned by Feed; Close waits for io
			defer f.io.Unlock()
			_ = f.flush(end) // kept by fail; Sync returns it
		}()
		return
	}
	if waiting < f.ring.bytesMax/2 {
		return
	}
	f.io.Lock()
	defer f.io.Unlock()
	_ = f.flush(end)
}

// flush writes what the segments don't have yet, up to end at least. REQUIRES: io held.
func (f *Feed) flush(end int64) error {
	if err := f.failure(); err != nil {
		return err
	}
	for {
		f.mu.Lock()
		at := f.flushed
		if at >= end {
			f.mu.Unlock()
			return nil
		}
		i := len(f.segments) - 1
		for f.segments[i].start > at {
			i--
		}
		s, b := f.segments[i], f.ring.find(at)
		data := b.data[at-b.start:]
		data = data[:min(int64(len(data)), s.end-at)]
		file := s.file
		f.mu.Unlock()

		if file == nil {
			var err error
			if file, err = os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
				return f.fail(fmt.Errorf("cannot begin a segment of the feed: %w", err))
			}
			f.created = true
		}
		err := f.bulk.write(s, file, data, at-s.start)
		f.mu.Lock()
		s.file = file
		if err == nil {
			s.dirty = true
			f.flushed = at + int64(len(data))
			f.evict()
		}
		f.mu.Unlock()
		if err != nil {
			return f.fail(fmt.Errorf("cannot write to the feed: %w", err))
		}
	}
}

// retain removes the oldest segments while there is too much, none that holds what is not durable: after a crash the
// feed must still reach to the checkpoint. REQUIRES: syncing held.
func (f *Feed) retain(synced int64) error {
	for {
		f.mu.Lock()
		s := f.segments[0]
		if len(f.segments) == 1 || f.end-s.start <= f.o.RetainBytes || s.end > synced {
			f.mu.Unlock()
			return nil
		}
		f.segments[0] = nil
		f.segments = f.segments[1:]
		next := f.segments[0]
		f.raise(mark{next.header.revision, next.start})
		file := s.remove()
		f.mu.Unlock()
		if err := removeSegment(s, file); err != nil {
			return f.fail(fmt.Errorf("cannot remove a segment of the feed: %w", err))
		}
	}
}

// raise moves the beginning of the feed up. REQUIRES: mu held.
func (f *Feed) raise(first mark) {
	if first.offset > f.first.offset {
		f.first = first
	}
}

// remove marks the segment as gone and gives the file if nobody reads it: it is to be closed. The last reader closes it
// otherwise. REQUIRES: Feed.mu held.
func (s *segment) remove() (file *os.File) {
	s.gone = true
	if s.refs == 0 {
		file, s.file = s.file, nil
	}
	return file
}

func removeSegment(s *segment, file *os.File) error {
	err := os.Remove(s.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil // it was never written
	}
	if file != nil {
		err = errors.Join(err, file.Close())
	}
	return err
}

// Reset begins anew behind a state that has replaced the one so far: every watcher ends with ErrCompacted. When it
// returns nil that is durable. An error is for good. Applier only.
func (f *Feed) Reset(index, ts uint64, rev wire.Revision) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	if err := f.failure(); err != nil {
		return err
	}
	f.io.Lock()
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		f.io.Unlock()
		return ErrClosed
	}
	if err := f.bulk.close(); err != nil {
		f.mu.Unlock()
		f.io.Unlock()
		return f.fail(fmt.Errorf("cannot close a segment of the feed: %w", err))
	}
	ready := f.endAll(ErrCompacted)
	old := f.segments
	files := make([]*os.File, len(old))
	for i, s := range old {
		files[i] = s.remove()
	}
	f.begin(state{index: index, ts: ts, revision: rev}, f.end)
	f.mu.Unlock()
	f.io.Unlock()
	callAll(ready)

	var err error
	for i, s := range old {
		err = errors.Join(err, removeSegment(s, files[i]))
	}
	if err != nil {
		return f.fail(fmt.Errorf("cannot begin the feed anew: %w", err))
	}
	return f.sync(index)
}

// begin makes the feed empty behind the state at, with its first segment at offset. REQUIRES: mu held, or f is not shared
// yet; what was there before is gone.
func (f *Feed) begin(at state, offset int64) {
	f.at, f.shown = at, at
	f.end, f.flushed = offset, offset
	f.segments, f.ring = nil, newRing(f.o.RingBytes)
	f.roll(at.base())
	f.published, f.fresh, f.freshEnd = f.end, f.end, f.end
	f.first = mark{at.revision, offset}
}

// Close ends the watchers with ErrClosed, makes what was appended durable, unless the feed has failed, and closes the
// files. The applier must have stopped.
func (f *Feed) Close() error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	ready, index := f.endAll(ErrClosed), f.at.index
	f.mu.Unlock()
	callAll(ready)
	var err error
	if f.failed.Load() == nil { // else everybody knows
		err = f.sync(index)
	}
	f.io.Lock()
	defer f.io.Unlock()
	err = errors.Join(err, f.bulk.close())
	f.mu.Lock()
	f.closed = true
	ready = f.endAll(ErrClosed)
	var files []*os.File
	for _, s := range f.segments {
		if file := s.remove(); file != nil {
			files = append(files, file)
		}
	}
	f.mu.Unlock()
	callAll(ready)
	for _, file := range files {
		err = errors.Join(err, file.Close())
	}
	return err
}
