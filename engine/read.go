package engine

import (
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"
)

var (
	// ErrCompacted says that a past revision is no longer kept: restart the listing or read the present.
	ErrCompacted = errors.New("revision is no longer kept")
	// ErrFuture says that a revision asked for is above everything that is applied here.
	ErrFuture = errors.New("revision is not applied yet")
	// ErrClosed says that the engine is closed or closing.
	ErrClosed = errors.New("engine is closed")
)

// fenceRetriesMax is how often a read repeats because the fence passed it before it takes a pin. The fence
// moves once per checkpoint, so a second repetition means a read as slow as a checkpoint interval.
const fenceRetriesMax = 2

// reader is what a function under store.read reads with: one published state. It is valid until that
// function returns, for one goroutine.
type reader struct {
	s    *store
	txn  *badger.Txn // at the newest that Badger may be asked for, at most at
	tail *tail
	at   point
	buf  []byte
}

// readerPool holds readers; get and put are both in store.readAt.
var readerPool = sync.Pool{New: func() any { return new(reader) }}

// read runs fn at the newest published point, or at the past ts at when at != 0. When the read fence
// passed that point meanwhile, what fn saw may be wrong: fn is run again at the newest point (at == 0), or
// ErrCompacted is returned (at != 0). So fn may run more than once and must start afresh each time. Errors
// of fn are returned as they are, but only when the fence did not pass: they too may come from a wrong
// read. ErrFuture: at is above the newest point. ErrClosed.
func (s *store) read(at uint64, fn func(r *reader) error) error {
	if !s.gate.enter() {
		return ErrClosed
	}
	defer s.gate.leave()
	if at != 0 {
		return s.readPast(at, fn)
	}
	for range fenceRetriesMax {
		p := s.current()
		err := s.readAt(p, fn)
		if s.fence.Load() <= p.ts {
			return err
		}
		s.metrics.fenceRetries.Add(1)
	}
	p, release, err := s.pinCurrent()
	if err != nil {
		return err
	}
	defer release()
	err = s.readAt(p, fn)
	if s.fence.Load() > p.ts {
		// Only a pin that was held for longer than PinAgeMax loses its hold.
		return fmt.Errorf("cannot read at ts %d: the read outlived its pin: %w", p.ts, ErrCompacted)
	}
	return err
}

// readPast is read at a past ts.
func (s *store) readPast(at uint64, fn func(r *reader) error) error {
	newest := s.current()
	if at > newest.ts {
		return fmt.Errorf("cannot read at ts %d, newest is %d: %w", at, newest.ts, ErrFuture)
	}
	compacted := func() error {
		return fmt.Errorf("cannot read at ts %d, kept are %d and later: %w", at, s.fence.Load(), ErrCompacted)
	}
	if at < s.fence.Load() {
		return compacted()
	}
	p := newest
	if at != newest.ts {
		var err error
		p, err = s.pointAt(at)
		if at < s.fence.Load() {
			return compacted()
		}
		if err != nil {
			return err
		}
	}
	err := s.readAt(p, fn)
	if at < s.fence.Load() {
		return compacted()
	}
	return err
}

// pointAt returns the point of a past ts from the marker that is stored under it.
func (s *store) pointAt(at uint64) (point, error) {
	var p point
	found, err := s.getAt(at, markerKey, func(value []byte) (err error) {
		p, err = s.o.hooks.markerPoint(value)
		return err
	})
	if err != nil {
		return point{}, fmt.Errorf("cannot read the marker at ts %d: %w", at, err)
	}
	if !found {
		// Below the first entry there is the empty state.
		return point{ts: at}, nil
	}
	p.ts = at
	return p, nil
}

// readAt runs fn at p, without a look at the fence.
func (s *store) readAt(p point, fn func(r *reader) error) (err error) {
	defer caught(&err)
	r := readerPool.Get().(*reader)
	// Loaded after p was published, so everything up to p is in the layers, or in Badger up to flushed.
	r.s, r.at, r.tail = s, p, s.tail.Load()
	r.txn = s.db.NewTransactionAt(min(p.ts, r.tail.flushed), false)
	defer func() {
		r.txn.Discard()
		r.s, r.txn, r.tail = nil, nil, nil
		if cap(r.buf) > readerBufBytesMax {
			r.buf = nil
		}
		readerPool.Put(r)
	}()
	err = fn(r)
	if s.o.hooks.duringRead != nil {
		s.o.hooks.duringRead()
	}
	return err
}

// readerBufBytesMax is the largest buffer that a pooled reader keeps: one chunk of the default size and
// its overhead.
const readerBufBytesMax = 512 << 10

// getAt reads key at ts for the applier: it alone advances the published state, and the fence never
// passes that, so it needs no fence check at the ts of the entry before the one that it applies. fn gets a
// view that is valid until it returns; its error is returned as it is.
func (s *store) getAt(ts uint64, key []byte, fn func(value []byte) error) (found bool, err error) {
	defer caught(&err)
	t := s.tail.Load()
	if value, known := t.get(hashKey(key), key, ts); known {
		return held(value, fn)
	}
	txn := s.db.NewTransactionAt(min(ts, t.flushed), false)
	defer txn.Discard()
	return getIn(txn, key, fn)
}

// held answers with what a layer holds.
func held(value []byte, fn func(value []byte) error) (found bool, err error) {
	if value == nil {
		return false, nil
	}
	return true, fn(value)
}

// getIn reads key in txn.
func getIn(txn *badger.Txn, key []byte, fn func(value []byte) error) (found bool, err error) {
	item, err := txn.Get(key)
	if err != nil {
		if errors.Is(err, badger.ErrKeyNotFound) {
			return false, nil
		}
		return false, fmt.Errorf("cannot read key %q: %w", key, err)
	}
	return true, item.Value(fn)
}

// point returns the state that r reads. For a past ts its index, term and time are those of the last entry
// at or below it.
func (r *reader) point() point { return r.at }

// get reads key. fn gets a view that is valid until it returns; its error is returned as it is. Badger
// tells damage as absence or as an empty value: the caller's record format must tell the latter, and
// nothing here can tell the former.
func (r *reader) get(key []byte, fn func(value []byte) error) (found bool, err error) {
	if value, known := r.tail.get(hashKey(key), key, r.at.ts); known {
		return held(value, fn)
	}
	return getIn(r.txn, key, fn)
}

// iterate calls fn for each key in [lower, upper), in key order or in reverse; an empty lower or upper is
// no bound. fn ends the iteration by more == false or an error, which is returned as it is. key is valid
// until fn returns; value reads the value, valid until the next call of value or until fn returns; it is
// nil when keysOnly. fn may call r.get and r.iterate; the latter reuses the buffer behind value.
func (r *reader) iterate(lower, upper []byte, reverse, keysOnly bool, fn func(key []byte, value func() ([]byte, error)) (more bool, err error)) error {
	w := r.walk(lower, upper, reverse)
	defer w.close()
	var value func() ([]byte, error)
	if !keysOnly {
		value = func() ([]byte, error) {
			err := w.value(func(b []byte) error {
				r.buf = append(r.buf[:0], b...)
				return nil
			})
			return r.buf, err
		}
	}
	for ; w.valid(); w.next() {
		more, err := fn(w.key(), value)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// commonPrefix returns the longest common prefix of a and b, a view of a.
func commonPrefix(a, b []byte) []byte {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}
