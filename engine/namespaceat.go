package engine

import (
	"errors"

	"kvstore/wire"
)

// NamespaceAt reports whether the id of a namespace was given in the state at a revision, which must be kept here and
// applied. It reads the store, unlike Namespace, which tells of the newest state alone. Names never move from one id to
// another: a namespace that still has its name had it at every revision at which it was there.
func (e *Engine) NamespaceAt(id uint32, at wire.Revision) (there bool, err error) {
	_, st, err := e.Exists(ReadOptions{Namespace: wire.NamespaceSystem, AtRevision: at}, []byte(namespaceKey(id)))
	switch {
	case err != nil:
		return false, err
	case st != wire.StatusOK && st != wire.StatusNotFound:
		return false, errors.New("cannot look a namespace up in the past: " + st.String())
	}
	return st == wire.StatusOK, nil
}
