package engine

// overlay is what the entry at hand has read and staged: for each record that it touched, what was there
// before the entry, and what is there now. Every operation reads through it, so each sees the state at the
// previous index plus what stands before it in the same entry.
//
// Owned by the applier; emptied after each entry.
type overlay struct {
	byHash map[uint64]int32 // hash of the record key → place in all of the newest record with that hash
	all    []staged         // in order of first touch
}

// overlayKeptMax bounds what an overlay keeps from entry to entry: clearing a map costs what it once grew
// to.
const overlayKeptMax = 4096

// staged is one record within an entry. Its slices live in the entry or in the applier's arena.
type staged struct {
	key  []byte // record key
	hash uint64
	next int32 // the record before it with the same hash, or -1

	place int32 // in all

	// Before the entry; zero if there was nothing. Its value is read only if it is asked for.
	oldExists bool
	old       storedRecord

	// Now; zero if there is nothing. While it is not dirty, now is old.
	exists bool
	now    storedRecord
	dirty  bool
	over   bool // the put that made now met a record
}

func (o *overlay) find(hash uint64, recordKey []byte) *staged {
	i, ok := o.byHash[hash]
	for ok && i >= 0 {
		st := &o.all[i]
		if string(st.key) == string(recordKey) {
			return st
		}
		i = st.next
	}
	return nil
}

// add stages a record. The pointer is good until the next add. REQUIRES: find has not found it.
func (o *overlay) add(hash uint64, recordKey []byte) *staged {
	if o.byHash == nil {
		o.byHash = make(map[uint64]int32)
	}
	next, ok := o.byHash[hash]
	if !ok {
		next = -1
	}
	o.byHash[hash] = int32(len(o.all))
	o.all = append(o.all, staged{key: recordKey, hash: hash, next: next, place: int32(len(o.all))})
	return &o.all[len(o.all)-1]
}

// reset empties the overlay and lets go of all that it pointed to.
func (o *overlay) reset() {
	if len(o.all) > overlayKeptMax {
		*o = overlay{}
		return
	}
	clear(o.all)
	clear(o.byHash)
	o.all = o.all[:0]
}

// live reports whether the record is there at log time t.
func (st *staged) live(t int64) bool { return st.exists && !st.now.expired(t) }

// put stages r as the record.
func (st *staged) put(r *storedRecord) {
	st.over, st.exists, st.dirty, st.now = st.exists, true, true, *r
}

// remove stages the record's end.
func (st *staged) remove() { st.exists, st.dirty, st.now = false, true, storedRecord{} }
