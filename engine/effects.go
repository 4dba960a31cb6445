package engine

import "kvstore/wire"

// EffectKind says what a mutation did to its key.
type EffectKind uint8

// The kinds.
const (
	// EffectPut: the key has a new record.
	EffectPut EffectKind = 1
	// EffectDelete: an operation removed the key.
	EffectDelete EffectKind = 2
	// EffectExpire: the record's deadline passed and it was removed, or it was written over after that.
	EffectExpire EffectKind = 3
)

// String gives the name that events carry.
func (k EffectKind) String() string {
	switch k {
	case EffectPut:
		return "put"
	case EffectDelete:
		return "delete"
	case EffectExpire:
		return "expire"
	}
	return "unknown"
}

// Effect is one mutation of one key. Slices are views; see EffectSink.
type Effect struct {
	// Rev is the mutation's revision: above that of every effect before it.
	Rev       wire.Revision
	Kind      EffectKind
	Namespace uint32
	Key       []byte
	// Record is the new record of EffectPut, else zero.
	Record wire.Record
	// Last marks the last effect of its operation or transaction: a reader that stops behind it has never
	// seen half of one.
	Last bool
}

// EffectSink takes the effects of each entry that has any, in log order, after the entry is published and
// before Apply returns. It is called by the applier alone. The slice and all that it points to are valid
// during the call. After a restart the effects of entries above the checkpoint come again, the same.
type EffectSink interface {
	// Effects takes the effects of the entry that made p.
	Effects(p Point, effects []Effect)
}
