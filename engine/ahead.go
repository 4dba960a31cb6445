package engine

import "kvstore/wire"

const (
	// aheadLeast is from how many keys on an entry is read ahead; aheadMost how many of them, and aheadBytesMax how many bytes of
	// keys about, at most.
	aheadLeast    = 4
	aheadMost     = 4096
	aheadBytesMax = 256 << 10
)

// aheadFull reports whether no more keys are taken.
func (a *applier) aheadFull() bool {
	return a.ahead.Len() >= aheadMost || len(a.ahead.keys) >= aheadBytesMax
}

// readAhead reads what the operations of an entry are about to look up in the layers, for all of them at once, so that the processor
// waits for many places in memory at the same time (see CachedGets.warm). Every write looks up the record that it replaces, on
// each node. Nothing depends on what it reads: what cannot be decoded is left to those who execute it.
func (a *applier) readAhead(ops []byte, count uint32) {
	a.ahead.Reset()
	var op wire.Op
	var err error
	for i := uint32(0); i < count && !a.aheadFull(); i++ {
		if ops, err = wire.NextOp(ops, &op); err != nil {
			break
		}
		switch op.Op {
		case wire.OpPut, wire.OpDelete, wire.OpTouch, wire.OpIncrement:
			a.ahead.Add(op.Namespace, op.Key)
		case wire.OpBatch, wire.OpTxn:
			a.readAheadGroup(&op)
		}
	}
	t := a.in.store.tail.Load()
	if a.ahead.Len() >= aheadLeast {
		a.ahead.warm(t)
	}
	a.fetch(t)
}

// readAheadGroup adds the keys of a batch or transaction.
func (a *applier) readAheadGroup(op *wire.Op) {
	_, n, items, err := wire.DecodeGroup(op.Payload)
	var it wire.Item
	for i := 0; err == nil && i < n && !a.aheadFull(); i++ {
		if items, err = wire.NextItem(items, &it); err == nil {
			a.ahead.Add(op.Namespace, it.Key)
		}
	}
}
