package engine

import (
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"kvstore/internal/failpoint"
)

// tail is the newest part of the state, which Badger hasn't got yet: layers in memory in front of it. It is
// immutable and replaced as a whole, so who has loaded one sees each version exactly once.
//
// What is stored at a ts up to flushed is read from Badger, what is above from the layers; Badger may already have some of
// that too, or have some of it from before a crash, and is therefore never read above flushed.
type tail struct {
	active  *layer // takes what the applier stores
	sealed  *layer // is being moved into Badger; nil: none
	flushed uint64
}

// layersMax is the most layers of a tail.
const layersMax = 2

// layers gives the layers that may hold something, the newest first.
func (t *tail) layers() (all [layersMax]*layer, n int) {
	all[0], n = t.active, 1
	if t.sealed != nil {
		all[1], n = t.sealed, 2
	}
	return all, n
}

// get looks for the newest version of key at or below ts among the layers; see layer.get.
func (t *tail) get(hash uint64, key []byte, ts uint64) (value []byte, known bool) {
	if ts <= t.flushed {
		return nil, false
	}
	if value, known = t.active.get(hash, key, ts); !known && t.sealed != nil {
		value, known = t.sealed.get(hash, key, ts)
	}
	return value, known
}

// bytes is what the layers take.
func (t *tail) bytes() int64 {
	n := t.active.bytes.Load()
	if t.sealed != nil {
		n += t.sealed.bytes.Load()
	}
	return n
}

// hold keeps what an entry has stored, in memory. It waits while too much stands there already: twice
// Options.CheckpointBytes in the layer that is being filled, beside the one that is on its way into Badger. Errors: the
// store's failure, ErrClosed.
//
// REQUIRES: caller is the applier.
func (s *store) hold(ts uint64, writes []stored) error {
	for {
		active := s.tail.Load().active
		if active.bytes.Load() >= 2*s.o.CheckpointBytes {
			if err := s.waitRoom(active); err != nil {
				return err
			}
			continue
		}
		if bytes, ok := active.add(ts, writes); ok {
			if bytes >= s.o.CheckpointBytes {
				s.wantCheckpoint()
			}
			return nil
		}
	}
}

// waitRoom waits until another layer than full takes what is stored.
func (s *store) waitRoom(full *layer) error {
	start := time.Now()
	defer func() { s.metrics.stalls.Observe(time.Since(start)) }()
	for {
		s.mu.Lock()
		advanced := s.advanced
		s.mu.Unlock()
		if err := s.failure(); err != nil || s.tail.Load().active != full {
			return err
		}
		s.wantCheckpoint()
		select {
		case <-advanced:
		case <-s.done:
			if err := s.failure(); err != nil {
				return err
			}
			return ErrClosed
		}
	}
}

// seal ends the layer that is being filled and gives the point that it ends with. ok is false when it is empty, or when
// the applier is between storing an entry and publishing it: then publish asks for the checkpoint once more.
//
// REQUIRES: caller is the checkpointer; no other layer is sealed.
func (s *store) seal() (p *published, ok bool) {
	s.sealing.Store(true)
	t := s.tail.Load()
	l := t.active
	l.mu.Lock()
	defer l.mu.Unlock()
	// Loaded after sealing was set: if it isn't the layer's end yet, the applier sees sealing when it has published.
	if p = s.newest.Load(); l.last != 0 && p.ts != l.last {
		return nil, false
	}
	if s.sealing.Store(false); l.last == 0 {
		return nil, false
	}
	l.sealed = true
	s.tail.Store(&tail{active: l.next(), sealed: l, flushed: t.flushed})
	return p, true
}

// drainKeysMax and drainBytesMax bound what goes into Badger at once. Badger inserts a batch in random order: keys that
// are next to each other find their place in its skip list on the same, warm path.
const (
	drainKeysMax  = 512
	drainBytesMax = 1 << 20
)

// drain moves the sealed layer, which ends at p, into Badger. A version is left out when a newer one stands at or below the
// fence: no read at or above it can see the older one. So of a key that was written a hundred times, one version goes there.
// A crash in between leaves some versions in Badger that are above the checkpoint; nobody reads there before the same entries have
// been replayed, and what they store at those places is the same.
//
// REQUIRES: caller is the checkpointer.
func (s *store) drain(p *published) error {
	start := time.Now()
	t := s.tail.Load()
	l, fence := t.sealed, s.fence.Load()
	d := drainer{db: s.db, bytesMax: min(drainBytesMax, s.txnBytesMax), countMax: min(drainKeysMax, s.txnCountMax)}
	for piece := range l.warmed(l.ordered()) {
		for _, k := range piece {
			for at := k.place; at != 0; {
				v := l.at(at)
				if err := d.put(v.key, v.value, v.ts); err != nil {
					return err
				}
				if at == k.place && s.onDrained != nil {
					s.onDrained(v.hash, v.key, v.ts, v.value)
				}
				if at = v.older; v.ts <= fence {
					break
				}
			}
		}
	}
	if err := d.flush(); err != nil {
		return err
	}
	s.metrics.drained.Add(d.versions)
	s.metrics.collapsed.Add(l.versions.Load() - d.versions)
	s.metrics.drain.Observe(time.Since(start))
	s.tail.Store(&tail{active: s.tail.Load().active, flushed: p.ts})
	return nil
}

// drainer gathers versions for Badger.
type drainer struct {
	db       *badger.DB
	bytesMax int64
	countMax int

	entries  []badger.Entry
	deletes  []bool
	ts       []uint64
	bytes    int64
	versions uint64
}

// put brings one version, a deletion if value is nil. Both slices stay as they are until the next flush.
func (d *drainer) put(key, value []byte, ts uint64) error {
	size := int64(len(key)+len(value)) + entryOverheadBytes
	if len(d.entries) > 0 && (d.bytes+size > d.bytesMax || len(d.entries) >= d.countMax) {
		if err := d.flush(); err != nil {
			return err
		}
	}
	d.entries = append(d.entries, badger.Entry{Key: key, Value: value})
	d.deletes, d.ts = append(d.deletes, value == nil), append(d.ts, ts)
	d.bytes += size
	d.versions++
	return nil
}

// flush hands what was gathered to Badger, and returns when it is in its log and memtable. The versions of a batch don't
// belong together: after a crash any part of them may be there.
func (d *drainer) flush() error {
	if len(d.entries) == 0 {
		return nil
	}
	if err := failpoint.Err(failpoint.CommitBefore); err != nil {
		return err
	}
	b := d.db.NewManagedWriteBatch()
	defer b.Cancel()
	for i := range d.entries {
		e := &d.entries[i]
		var err error
		if d.deletes[i] {
			err = b.DeleteAt(e.Key, d.ts[i])
		} else {
			err = b.SetEntryAt(e, d.ts[i])
		}
		if err != nil {
			return fmt.Errorf("cannot store key %q at ts %d: %w", e.Key, d.ts[i], err)
		}
	}
	if err := b.Flush(); err != nil {
		return err
	}
	clear(d.entries)
	d.entries, d.deletes, d.ts, d.bytes = d.entries[:0], d.deletes[:0], d.ts[:0], 0
	return failpoint.Err(failpoint.CommitAfter)
}
