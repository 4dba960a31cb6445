package engine

import (
	"encoding/binary"
	"fmt"

	"kvstore/wire"
)

// changeNamespace executes OpNamespace.
func (a *applier) changeNamespace(op *wire.Op) wire.Result {
	var c wire.NamespaceChange
	if err := wire.DecodeNamespaceChange(op.Payload, &c); err != nil {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	t := a.namespaces
	n := t.byName[c.Name]
	switch c.Action {
	case wire.NamespaceCreate:
		switch {
		case n != nil:
			return wire.Result{Status: wire.StatusNamespaceExists}
		case t.count() >= wire.NamespacesMax || t.next == wire.NamespaceNone:
			return wire.Result{Status: wire.StatusTooMany}
		}
		return a.createNamespace(c.Name, c.Settings)
	case wire.NamespaceSet:
		if n == nil {
			return wire.Result{Status: wire.StatusNoNamespace}
		}
		n.Settings = c.Settings
	case wire.NamespaceDrop:
		switch {
		case n == nil:
			return wire.Result{Status: wire.StatusNoNamespace}
		case n.ID == wire.NamespaceDefault:
			return wire.Result{Status: wire.StatusBadRequest}
		}
		n.Dropping, n.droppedAt = true, a.index
		delete(t.byName, n.Name)
	case wire.NamespacePurge:
		return a.purge(&c)
	}
	t.changed = true
	return wire.Result{Status: wire.StatusOK, Rev: a.putNamespace(n)}
}

// createNamespace gives a name an id.
func (a *applier) createNamespace(name string, settings wire.NamespaceSettings) wire.Result {
	t := a.namespaces
	n := &namespaceState{Namespace: Namespace{ID: t.next, Name: name, Settings: settings, CreatedAt: a.now}}
	t.add(n)
	t.next, t.changed = t.next+1, true
	rev := a.putNamespace(n)
	a.putNamespaceNext()
	return wire.Result{Status: wire.StatusOK, Rev: rev}
}

// beginNamespaces writes the first records of the table, when the state has come to the behaviour level that has one.
func (a *applier) beginNamespaces() {
	n := a.namespaces.byID[wire.NamespaceDefault]
	n.CreatedAt = a.now
	a.namespaces.changed = true
	a.putNamespace(n)
	a.putNamespaceNext()
}

func (a *applier) putNamespace(n *namespaceState) wire.Revision {
	return a.putSystem(namespaceKey(n.ID), appendNamespace(nil, n))
}

func (a *applier) putNamespaceNext() {
	a.putSystem(systemNamespaceNext, binary.LittleEndian.AppendUint32(nil, a.namespaces.next))
}

// purge removes up to c.Max records of a dropped namespace in the order of their keys, and its id with the last. Where it
// has come to stands in the namespace's record: the next one needn't pass the tombstones again.
func (a *applier) purge(c *wire.NamespaceChange) wire.Result {
	n := a.namespaces.byID[c.ID]
	if n == nil || !n.Dropping {
		return wire.Result{Status: wire.StatusNoNamespace}
	}
	if n.droppedAt == a.index {
		// What this entry has written before it dropped the namespace isn't in the store yet.
		return wire.Result{Status: wire.StatusRetryLater}
	}
	most := int(min(c.Max, wire.PurgeMax))
	keys := a.purgeable(n, most)
	res := wire.Result{Status: wire.StatusOK}
	for _, recordKey := range keys {
		st := a.stage(recordKey)
		if !st.exists {
			a.failApply(damaged(fmt.Sprintf("key %q of namespace %d can be listed and not be read", userKey(recordKey), n.ID), nil))
		}
		var rev wire.Revision
		before := len(a.effects)
		if st.live(a.now) {
			rev = a.remove(st)
		} else {
			rev = a.removeExpired(st)
		}
		a.endTransaction(before) // the purge is no transaction of its user's
		if res.Rev == 0 {
			res.Rev = rev
		}
	}
	var rev wire.Revision
	switch {
	case n.used.records == 0:
		rev = a.remove(a.stage(a.systemKey(namespaceKey(n.ID))))
		delete(a.namespaces.byID, n.ID)
		a.namespaces.changed = true
	case len(keys) < most:
		a.failApply(damaged(fmt.Sprintf("namespace %d counts %d records that can't be found", n.ID, n.used.records), nil))
	default:
		n.cursor = append(n.cursor[:0], userKey(keys[len(keys)-1])...)
		rev = a.putNamespace(n)
	}
	if res.Rev == 0 {
		res.Rev = rev
	}
	return res
}

// purgeable reads the first n record keys of a dropped namespace as this entry has left it so far. Nothing was written
// into it by this entry: it was dropped before.
func (a *applier) purgeable(n *namespaceState, most int) (keys [][]byte) {
	lower := appendRecordKey(nil, n.ID, n.cursor)
	if len(n.cursor) > 0 {
		lower = append(lower, 0) // the first key above the cursor
	}
	upper := appendRecordKey(nil, n.ID+1, nil)
	err := a.in.store.read(0, func(r *reader) error {
		keys = keys[:0]
		return r.iterate(lower, upper, false, true, func(key []byte, _ func() ([]byte, error)) (bool, error) {
			if len(keys) == most {
				return false, nil
			}
			if st := a.overlay.find(hashKey(key), key); st == nil || st.exists {
				keys = append(keys, a.mem.copy(key))
			}
			return true, nil
		})
	})
	if err != nil {
		a.failRead(fmt.Errorf("the records of namespace %d: %w", n.ID, err))
	}
	return keys
}
