package engine

import (
	"bytes"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// walk is a way through the keys of [lower, upper), in key order or in reverse, that can leave keys out. It belongs
// to who has the reader, and ends before that does.
//
// It merges what the layers of the tail hold with what Badger does: of a key that several have, the newest one's version
// counts, which is that of the first cursor, since every version in a layer is above all in those behind it.
type walk struct {
	it           *badger.Iterator
	cursors      []*layerCursor // of the layers, the newest first
	lower, upper []byte
	reverse      bool

	from   *layerCursor // whose version is shown; nil: the iterator's
	at     []byte       // the key
	onKey  bool         // of the range; else the walk has ended
	itDone bool         // the iterator has no further key of the range
}

// walk begins a walk at its first key; an empty lower or upper is no bound. It keeps both slices.
func (r *reader) walk(lower, upper []byte, reverse bool) *walk {
	o := badger.DefaultIteratorOptions
	// Prefetching starts a goroutine per item: 4 to 6 times slower here, where all values are in the tables.
	o.PrefetchValues = false
	o.Reverse = reverse
	if len(upper) > 0 {
		// Every key in the range shares this prefix; Badger skips tables that have none of it.
		o.Prefix = commonPrefix(lower, upper)
	}
	w := &walk{lower: lower, upper: upper, reverse: reverse}
	if r.at.ts > r.tail.flushed {
		layers, n := r.tail.layers()
		for _, l := range layers[:n] {
			w.cursors = append(w.cursors, l.cursor(r.at.ts, reverse))
		}
	}
	w.it = r.txn.NewIterator(o)
	if reverse {
		w.seek(upper)
	} else {
		w.seek(lower)
	}
	return w
}

// seek goes to the first key at or above bound, in reverse to the first below it, or to the last if there is none.
func (w *walk) seek(bound []byte) {
	w.it.Seek(bound)
	if w.reverse && len(bound) > 0 && w.it.Valid() && string(w.it.Item().Key()) >= string(bound) {
		w.it.Next() // Seek stops at bound itself
	}
	for _, c := range w.cursors {
		c.seek(bound)
	}
	w.settle()
}

// settle finds the next key that is there.
func (w *walk) settle() {
	for {
		w.from, w.at, w.onKey = nil, nil, false
		if w.itDone = !w.it.Valid(); !w.itDone {
			w.at, w.onKey = w.it.Item().Key(), true
		}
		for i := len(w.cursors) - 1; i >= 0; i-- {
			if c := w.cursors[i]; c.key != nil && (!w.onKey || w.order(c.key) <= 0) {
				w.from, w.at, w.onKey = c, c.key, true
			}
		}
		switch {
		case !w.onKey:
			return
		case w.reverse:
			w.onKey = string(w.at) >= string(w.lower)
		default:
			w.onKey = len(w.upper) == 0 || string(w.at) < string(w.upper)
		}
		if !w.onKey || w.from == nil || w.from.value != nil {
			return
		}
		w.pass() // deleted
	}
}

// order compares key with the one that is the next so far: below 0, it comes before.
func (w *walk) order(key []byte) int {
	if n := bytes.Compare(key, w.at); !w.reverse {
		return n
	} else {
		return -n
	}
}

// pass leaves the key behind wherever it stands.
func (w *walk) pass() {
	for _, c := range w.cursors {
		if c != w.from && c.key != nil && string(c.key) == string(w.at) {
			c.advance()
		}
	}
	if w.from == nil {
		w.it.Next()
		return
	}
	if !w.itDone && string(w.it.Item().Key()) == string(w.at) {
		w.it.Next()
	}
	w.from.advance()
}

// valid reports whether the walk is at a key.
func (w *walk) valid() bool { return w.onKey }

// key gives the key, good until the walk goes on. REQUIRES: valid.
func (w *walk) key() []byte { return w.at }

// value calls fn with the value, a view that is good until fn returns; fn may read other keys. Its error is returned
// as it is. REQUIRES: valid.
func (w *walk) value(fn func(value []byte) error) error {
	if w.from != nil {
		return fn(w.from.value)
	}
	item := w.it.Item()
	var mine error
	err := item.Value(func(b []byte) error {
		mine = fn(b)
		return mine
	})
	if err != nil && mine == nil {
		return fmt.Errorf("cannot read value of key %q: %w", item.Key(), err)
	}
	return err
}

// next goes on to the next key. REQUIRES: valid.
func (w *walk) next() {
	w.pass()
	w.settle()
}

// skipNextsMax is how many keys skip passes one by one before it seeks, which costs as much as about three of them.
const skipNextsMax = 2

// skip goes on at the first key at or above bound, in reverse at the first below it. REQUIRES: valid; bound isn't
// behind the walk.
func (w *walk) skip(bound []byte) {
	for range skipNextsMax {
		if w.next(); !w.onKey || (string(w.key()) < string(bound)) == w.reverse {
			return
		}
	}
	w.seek(bound)
}

// close ends the walk.
func (w *walk) close() { w.it.Close() }
