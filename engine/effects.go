package engine

import (
	"strconv"
	"strings"

	"kvstore/wire"
)

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
	// Previous: there was a record before, one that had expired included if this is its end.
	Previous bool
}

// EffectSink takes what each entry did, in log order. The applier alone calls Effects, Published and Installed. After
// a restart the effects of entries above the checkpoint come again, the same.
type EffectSink interface {
	// Effects takes the effects of the entry that makes p. It is called for every entry, also for one without effects
	// and for configurations, when the entry is stored and before readers see it. The slice and all that it points to
	// are valid during the call.
	Effects(p Point, effects []Effect)
	// Published says that readers see p. It is called once for each call of Effects, before Apply returns.
	Published(p Point)
	// Sync makes what Effects was given durable, up to p at least. The checkpoint of p becomes durable after it
	// returns: what the sink has lost by a crash comes again. An error stops the engine. The checkpointer calls it,
	// beside the applier.
	Sync(p Point) error
	// Installed says that the state was replaced by one at p; nothing is told of the entries between. A crash may come
	// between the replacement and this call: the next Recovered tells.
	Installed(p Point)
}

// NamespaceOfRecord tells an effect in the system keyspace that is about a namespace: ok, and the namespace's id.
func NamespaceOfRecord(key []byte) (id uint32, ok bool) {
	digits, ok := strings.CutPrefix(string(key), systemNamespace)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 32)
	return uint32(n), err == nil && namespaceKey(uint32(n)) == string(key)
}
