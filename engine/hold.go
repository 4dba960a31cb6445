package engine

import "kvstore/wire"

// Hold keeps the state at a revision readable, beyond the history window, until release is called, Options.PinAgeMax has
// passed, or Options.PinBytesMax were stored since; then reads of it get StatusCompacted again. st is StatusOK,
// StatusCompacted (it is no longer kept), StatusFutureRevision (not applied here yet), or as for Get; release is nil
// unless it is StatusOK, and may be called more than once.
func (e *Engine) Hold(at wire.Revision) (release func(), st wire.Status, err error) {
	for {
		in := e.live.Load()
		release, err := in.store.pin(wire.RevisionTS(at))
		if err == nil {
			return release, wire.StatusOK, nil
		}
		if st, err := in.refused(err); st != wire.StatusDraining || !e.replaced(in) {
			return nil, st, err
		}
	}
}
