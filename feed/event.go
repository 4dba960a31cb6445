package feed

import "kvstore/wire"

// Event is one change of one key. Slices are views; see who gives them.
type Event struct {
	Kind wire.EventKind
	// Last marks the last event of its operation or transaction, of all keys.
	Last bool
	// HadPrevious: there was a live record before.
	HadPrevious bool
	Namespace   uint32
	Revision    wire.Revision
	Key         []byte
	// Record is the new record of a put, else zero.
	Record wire.Record
}
