package engine

import (
	"encoding/binary"
	"iter"

	"kvstore/wire"
)

const (
	// aheadLeast is from how many keys on an entry is read ahead; aheadMost how many of them, and aheadBytesMax how many bytes of
	// keys about, at most.
	aheadLeast    = 4
	aheadMost     = 4096
	aheadBytesMax = 256 << 10
)

const (
	// warmPlaces is how many places are warmed up together: more than a processor has under way at once, and so few that a step
	// finds what the one before it has brought.
	warmPlaces = 64
	// warmBytesMax bounds what is read ahead of a version. The processor sees by itself where a longer copy goes on.
	warmBytesMax = 1 << 10
	// cacheLineBytes is what the processor reads at once.
	cacheLineBytes = 64
)

// warmAt reads the first bytes of the version at each place, then the rest of it, so that the processor waits for many of them at
// the same time. What it returns says nothing. REQUIRES: at most warmPlaces of them.
func (l *layer) warmAt(places []layerPlace) (touched byte) {
	for _, place := range places {
		touched += l.bytesAt(place)[0]
	}
	for _, place := range places {
		b := l.bytesAt(place)
		size := layerHeaderBytes + int(binary.LittleEndian.Uint32(b[24:])) + int(binary.LittleEndian.Uint32(b[28:]))
		for at := cacheLineBytes; at < min(size, warmBytesMax); at += cacheLineBytes {
			touched += b[at]
		}
	}
	return touched
}

// warmed gives keys piece by piece, each when warmAt has read its versions. Whoever goes through all keys of a layer, one after the
// other, otherwise waits for memory twice at each.
func (l *layer) warmed(keys []sortedKey) iter.Seq[[]sortedKey] {
	return func(yield func(piece []sortedKey) bool) {
		var places [warmPlaces]layerPlace
		for from := 0; from < len(keys); from += warmPlaces {
			piece := keys[from:min(from+warmPlaces, len(keys))]
			for i := range piece {
				places[i] = piece[i].place
			}
			l.touched.Store(uint32(l.warmAt(places[:len(piece)])))
			if !yield(piece) {
				return
			}
		}
	}
}

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
