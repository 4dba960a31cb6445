package engine

import "kvstore/wire"

// The applier reads the state before the entry through the cache. Damage stops it (failRead): to take a
// damaged record for an absent one would make this replica differ from the others.

// load reads the record as it was before the entry, without its value.
func (a *applier) load(st *staged) {
	a.loading, a.loadsValue = st, false
	a.read()
}

// loadValue reads the value of the record as it was before the entry. REQUIRES: st is loaded and existed.
func (a *applier) loadValue(st *staged) {
	if st.old.chunks == 0 {
		a.loading, a.loadsValue = st, true
		if a.read(); st.old.inline() {
			return
		}
	}
	value, err := appendValue(nil, storeAt{a.in.store, a.last.ts}, st.key, &st.old)
	if err != nil {
		a.failRead(err)
	}
	st.old.Value = value
}

// read looks for a.loading among what was fetched, in the tail and the cache, then in Badger.
func (a *applier) read() {
	st, ts := a.loading, a.last.ts
	if stored, found, known := a.fetcher.get(st.hash, st.key); known {
		a.fetcher.missed++
		if st.oldExists = found; found {
			if err := a.loadedStored(stored); err != nil {
				a.failRead(err)
			}
		}
		return
	}
	p := point{ts: ts}
	switch a.in.hot(st.hash, st.key, &p, a.onCached) {
	case cacheHit:
		st.oldExists = true
		return
	case cacheAbsent:
		return
	}
	a.fetcher.missed++
	found, err := a.in.store.getAt(ts, st.key, a.onStored)
	if err != nil {
		a.failRead(err)
	}
	st.oldExists = found
}

// loaded takes a record out of the hands of cache or store.
func (a *applier) loaded(r *storedRecord) {
	old := &a.loading.old
	*old = storedRecord{Record: wire.Record{Meta: r.Meta}, valueLen: r.valueLen, chunks: r.chunks, codec: r.codec, packedLen: r.packedLen}
	if len(r.Ext) > 0 {
		old.Ext = a.mem.copy(r.Ext)
	}
	if a.loadsValue {
		old.Value, old.packed = a.mem.copy(r.Value), a.mem.copy(r.packed)
	}
}

// loadedStored is loaded for the bytes that the store holds.
func (a *applier) loadedStored(stored []byte) error {
	var r storedRecord
	if err := decodeRecord(a.loading.key, stored, &r); err != nil {
		return err
	}
	a.loaded(&r)
	return nil
}

// storeAt reads the state at a ts for the applier.
type storeAt struct {
	s  *store
	ts uint64
}

func (g storeAt) get(key []byte, fn func(value []byte) error) (found bool, err error) {
	return g.s.getAt(g.ts, key, fn)
}
