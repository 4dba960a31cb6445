package engine

import (
	"encoding/binary"
	"fmt"

	"kvstore/wire"
)

// Usage is what a namespace holds: the number of its records and the sum of their liveBytes. Apply carries it along from
// behaviour level 2 on and stores it under U|ns, in each entry that has changed it; nothing is stored for a namespace
// that holds nothing. It follows from the records, so it doesn't count in the digest; VerifyDigest compares it with them.
//
// Quotas bind it: an operation that makes it grow beyond one is refused. What shrinks or stays is always allowed.

// usage counts records and their bytes.
type usage struct{ records, bytes uint64 }

func (u *usage) add(recordKey []byte, r *storedRecord) {
	u.records++
	u.bytes += liveBytes(recordKey, r)
}

func (u *usage) sub(recordKey []byte, r *storedRecord) {
	u.records--
	u.bytes -= liveBytes(recordKey, r)
}

const (
	usageFormat = 1
	usageBytes  = 8 + 2*8 + 4

	usageKeyBytes = 1 + 4
)

// appendUsage appends the stored form to dst, which must be empty:
//
//	0 u8 format | 1 7×0 | 8 u64 records | 16 u64 bytes | 24 u32 crc32c over key and bytes
func appendUsage(dst, key []byte, u usage) []byte {
	dst = append(dst, usageFormat, 0, 0, 0, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, u.records)
	dst = binary.LittleEndian.AppendUint64(dst, u.bytes)
	return appendSeal(dst, 0, key)
}

// decodeUsage reads what appendUsage wrote. It fails with ErrRecordDamaged only.
func decodeUsage(key, b []byte) (ns uint32, u usage, err error) {
	ns, ok := splitUsageKey(key)
	if !ok {
		return 0, usage{}, fmt.Errorf("%w: key %x among the usage of namespaces", ErrRecordDamaged, key)
	}
	body, err := openSealed(key, b)
	if err != nil {
		return 0, usage{}, fmt.Errorf("usage of namespace %d: %w", ns, err)
	}
	if len(body) != usageBytes-4 || binary.LittleEndian.Uint64(body) != usageFormat {
		return 0, usage{}, fmt.Errorf("%w: usage of namespace %d of %d bytes; this build reads format %d", ErrRecordDamaged, ns, len(b), usageFormat)
	}
	u = usage{binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint64(body[16:])}
	if u.records == 0 {
		return 0, usage{}, fmt.Errorf("%w: usage of namespace %d without a record", ErrRecordDamaged, ns)
	}
	return ns, u, nil
}

// loadUsage reads the usage of all namespaces, which must be that of the whole state in sum.
func (t *namespaces) loadUsage(r *reader, m *marker) error {
	var sum usage
	lower, upper := familyRange(familyUsage)
	err := r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
		b, err := value()
		if err != nil {
			return false, err
		}
		ns, u, err := decodeUsage(key, b)
		if err != nil {
			return false, err
		}
		n := t.byID[ns]
		if n == nil {
			return false, fmt.Errorf("%w: namespace %d is used and has no record", ErrRecordDamaged, ns)
		}
		n.used, n.stored = u, u
		n.shown.records.Store(u.records)
		n.shown.bytes.Store(u.bytes)
		sum.records += u.records
		sum.bytes += u.bytes
		return true, nil
	})
	if err == nil && (sum.records != m.records || sum.bytes != m.bytes) {
		err = fmt.Errorf("%w: the namespaces hold %d records of %d bytes, the state %d of %d", ErrRecordDamaged, sum.records, sum.bytes, m.records, m.bytes)
	}
	return err
}

// namespace gives the namespace of a record that is there or is about to be.
func (a *applier) namespace(recordKey []byte) *namespaceState {
	id := namespaceOf(recordKey)
	if n := a.space; n != nil && n.ID == id {
		return n
	}
	n := a.namespaces.byID[id]
	if n == nil {
		a.failApply(damaged(fmt.Sprintf("key %q lies in namespace %d, which is not there", userKey(recordKey), id), nil))
	}
	return n
}

// touch notes that the usage of n changes.
func (t *namespaces) touch(n *namespaceState) {
	if !n.touched {
		n.touched = true
		t.touched = append(t.touched, n)
	}
}

// become stages what becomes of a record: r, or its end if that is nil. Every change of a record passes here.
func (a *applier) become(st *staged, r *storedRecord) {
	if a.undoing {
		a.undo = append(a.undo, undone{st.place, st.exists, st.dirty, st.now})
	}
	if a.identity.level >= levelNamespaces {
		n := a.namespace(st.key)
		a.namespaces.touch(n)
		if st.exists {
			n.used.sub(st.key, &st.now)
		}
		if r != nil {
			n.used.add(st.key, r)
		}
	}
	if r != nil {
		st.put(r)
	} else {
		st.remove()
	}
}

// flushUsage stores the usage that the entry has changed.
func (a *applier) flushUsage(w storer) {
	for _, n := range a.namespaces.touched {
		if n.used == n.stored {
			continue
		}
		key := appendUsageKey(a.mem.alloc(usageKeyBytes), n.ID)
		if n.used.records == 0 {
			w.del(key)
		} else {
			w.set(key, appendUsage(a.mem.alloc(usageBytes), key, n.used))
		}
		n.stored = n.used
	}
}

// countUsage finds the usage of a state that has carried none along so far, where the entry at hand stands: that of the
// system keyspace by reading it, which is short, and that of the default namespace as the rest.
// REQUIRES: behaviour level 1, which has no other namespace.
func (a *applier) countUsage() {
	system, rest := a.namespaces.byID[wire.NamespaceSystem], a.namespaces.byID[wire.NamespaceDefault]
	system.used, rest.used = usage{}, usage{a.last.records, a.last.bytes}
	lower := appendRecordKey(nil, wire.NamespaceSystem, nil)
	upper := appendRecordKey(nil, wire.NamespaceSystem+1, nil)
	err := a.in.store.read(0, func(r *reader) error {
		system.used = usage{}
		return r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
			stored, err := value()
			if err != nil {
				return false, err
			}
			var rec storedRecord
			if err := decodeRecord(key, stored, &rec); err != nil {
				return false, err
			}
			system.used.add(key, &rec)
			return true, nil
		})
	})
	if err != nil {
		a.failRead(fmt.Errorf("the system records: %w", err))
	}
	rest.used.records -= system.used.records
	rest.used.bytes -= system.used.bytes
	for i := range a.overlay.all {
		st := &a.overlay.all[i]
		if !st.dirty {
			continue
		}
		n := a.namespace(st.key)
		if st.oldExists {
			n.used.sub(st.key, &st.old)
		}
		if st.exists {
			n.used.add(st.key, &st.now)
		}
	}
	a.namespaces.touch(system)
	a.namespaces.touch(rest)
}

// exceeds says which quota the namespace would exceed by growing from before to after; nil: none.
func (n *namespaceState) exceeds(before, after usage) []byte {
	switch s := &n.Settings; {
	case s.KeysMax > 0 && after.records > s.KeysMax && after.records > before.records:
		return fmt.Appendf(nil, "quota of keys: namespace %q holds %d and may hold %d, this write needs %d more; nothing was changed: delete some, or raise the quota",
			n.Name, before.records, s.KeysMax, after.records-before.records)
	case s.BytesMax > 0 && after.bytes > s.BytesMax && after.bytes > before.bytes:
		return fmt.Appendf(nil, "quota of bytes: namespace %q holds %d and may hold %d, this write needs %d more; nothing was changed: delete some, or raise the quota",
			n.Name, before.bytes, s.BytesMax, after.bytes-before.bytes)
	}
	return nil
}

// undone is what a record was before a change that may have to be undone.
type undone struct {
	place         int32
	exists, dirty bool
	now           storedRecord
}

// savepoint is where an operation began that happens as a whole or not at all.
type savepoint struct {
	positions, effects int
	used               usage
}

// save remembers the state of the operation at hand, until commit or rollBack. REQUIRES: it changes only records of the
// namespace at hand.
func (a *applier) save() savepoint {
	a.undoing = true
	return savepoint{a.positions, len(a.effects), a.space.used}
}

// commit keeps what was done since save.
func (a *applier) commit() {
	a.undoing = false
	clear(a.undo)
	if a.undo = a.undo[:0]; cap(a.undo) > overlayKeptMax {
		a.undo = nil
	}
}

// rollBack undoes what was done since save.
func (a *applier) rollBack(s savepoint) {
	for i := len(a.undo) - 1; i >= 0; i-- {
		u := &a.undo[i]
		st := &a.overlay.all[u.place]
		st.exists, st.dirty, st.now = u.exists, u.dirty, u.now
	}
	a.positions, a.space.used = s.positions, s.used
	clear(a.effects[s.effects:])
	a.effects = a.effects[:s.effects]
	a.commit()
}
