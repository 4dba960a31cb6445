package engine

import (
	"fmt"
	"math"

	"kvstore/wire"
)

// change is one put, delete, or member of a batch or transaction, decoded.
type change struct {
	op    wire.Opcode
	key   []byte // record key, in the arena
	ext   []byte
	value []byte
	m     wire.Mutation
}

// single evaluates a put or delete that stands alone.
func (a *applier) single(op *wire.Op) wire.Result {
	var ch change
	if st := a.decode(&ch, op.Op, op.Namespace, op.Ext, op.Key, op.Payload); st != wire.StatusOK {
		return wire.Result{Status: st}
	}
	if ch.m.Conditions > 0 {
		if failed := a.failedConditions(nil, 0, &ch); len(failed) > 0 {
			return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
		}
	}
	status, rev := a.perform(&ch)
	return wire.Result{Status: status, Rev: rev}
}

// decode checks a mutation; what is refused depends on its bytes alone. The door checks the same: this is
// the second half of a pair, and the one that all replicas share.
func (a *applier) decode(ch *change, op wire.Opcode, ns uint32, ext, key, value []byte) wire.Status {
	if !wire.ValidKey(key) {
		return wire.StatusBadKey
	}
	*ch = change{op: op, ext: ext, value: value}
	if ref := wire.DecodeMutation(op, ext, &ch.m); ref != nil {
		return ref.Status
	}
	switch {
	case op != wire.OpPut && len(value) != 0:
		return wire.StatusBadRequest
	case len(value) > wire.ValueBytesMax:
		return wire.StatusTooLarge
	}
	if op == wire.OpPut {
		sum := wire.Checksum(value)
		if ch.m.HasChecksum && ch.m.Checksum != sum {
			return wire.StatusChecksum
		}
		ch.m.Checksum = sum
	}
	ch.key = appendRecordKey(a.mem.alloc(recordKeyPrefixBytes+len(key)), ns, key)
	return wire.StatusOK
}

// failedConditions appends the conditions of ch that don't hold now, as those of operation i, up to
// wire.FailedConditionsMax in all.
func (a *applier) failedConditions(failed []wire.FailedCondition, i int, ch *change) []wire.FailedCondition {
	st := a.stage(ch.key)
	ext := ch.ext
	for n := range ch.m.Conditions {
		c, rest, ok := wire.NextCondition(ext)
		if !ok {
			panic("BUG: fewer conditions than were counted")
		}
		ext = rest
		if !a.holds(st, &c) && len(failed) < wire.FailedConditionsMax {
			failed = append(failed, wire.FailedCondition{Operation: uint32(i), Condition: uint32(n)})
		}
	}
	return failed
}

// holds evaluates one condition. What has expired is absent.
func (a *applier) holds(st *staged, c *wire.Condition) bool {
	live := st.live(a.now)
	switch c.Kind {
	case wire.ConditionVersion:
		return live && c.HasVersion(st.now.Meta.Version)
	case wire.ConditionExists:
		return live
	case wire.ConditionAbsent:
		return !live
	case wire.ConditionValue:
		// Unequal lengths spare the read of the value; equal ones are short.
		return live && int(st.now.valueLen) == len(c.Operand) && string(a.value(st)) == string(c.Operand)
	}
	panic(fmt.Sprintf("BUG: condition %d passed its decoder", c.Kind))
}

// perform executes a put or delete whose conditions hold. rev is 0 when nothing was changed.
func (a *applier) perform(ch *change) (wire.Status, wire.Revision) {
	st := a.stage(ch.key)
	if ch.op == wire.OpDelete {
		if !st.live(a.now) {
			return wire.StatusNotFound, 0
		}
		return wire.StatusOK, a.remove(st)
	}
	return wire.StatusOK, a.put(st, ch)
}

// put stages a new record. An expired one that it meets ends first, with an effect of its own.
func (a *applier) put(st *staged, ch *change) wire.Revision {
	created := a.now
	if st.live(a.now) {
		created = st.now.Meta.CreatedAt
	} else if st.exists {
		a.removeExpired(st)
	}
	r := storedRecord{valueLen: uint32(len(ch.value))}
	r.Value = ch.value
	r.Meta = wire.Meta{
		Version:   a.nextRevision(),
		CreatedAt: created,
		UpdatedAt: a.now,
		ExpiresAt: deadline(a.now, ch.m.TTLMs),
		Checksum:  ch.m.Checksum,
	}
	if ch.m.Kept > 0 {
		r.Ext = wire.AppendKept(a.mem.alloc(ch.m.Kept), ch.ext)
	}
	st.put(&r)
	a.effect(st, EffectPut, r.Meta.Version)
	return r.Meta.Version
}

// deadline is when a record written at log time now expires: 0 for never. Log time may stand anywhere, so
// the sum stops at the end of time.
func deadline(now int64, ttlMs uint64) int64 {
	if ttlMs == 0 {
		return 0
	}
	ttl := int64(ttlMs) * 1000
	if now > math.MaxInt64-1-ttl {
		return math.MaxInt64 - 1
	}
	return now + ttl
}

func (a *applier) remove(st *staged) wire.Revision {
	rev := a.nextRevision()
	st.remove()
	a.effect(st, EffectDelete, rev)
	return rev
}

func (a *applier) removeExpired(st *staged) wire.Revision {
	rev := a.nextRevision()
	st.remove()
	a.effect(st, EffectExpire, rev)
	return rev
}

// effect notes a mutation for the sink.
func (a *applier) effect(st *staged, kind EffectKind, rev wire.Revision) {
	if a.in.sink == nil {
		return
	}
	a.effects = append(a.effects, Effect{
		Rev:       rev,
		Kind:      kind,
		Namespace: namespaceOf(st.key),
		Key:       userKey(st.key),
		Record:    st.now.Record,
	})
}

// endTransaction marks the last effect of an operation whose first one is at first.
func (a *applier) endTransaction(first int) {
	if n := len(a.effects); n > first {
		a.effects[n-1].Last = true
	}
}

// stage gives the record under recordKey as it is now, read from the state before the entry at its first
// use. The pointer is good until the next call. It keeps recordKey.
func (a *applier) stage(recordKey []byte) *staged {
	hash := hashKey(recordKey)
	if st := a.overlay.find(hash, recordKey); st != nil {
		return st
	}
	st := a.overlay.add(hash, recordKey)
	a.load(st)
	st.now, st.exists = st.old, st.oldExists
	return st
}

// value gives the value of a record that is there now, read at its first use. A view.
func (a *applier) value(st *staged) []byte {
	if len(st.now.Value) < int(st.now.valueLen) {
		a.loadValue(st)
		st.now.Value = st.old.Value
	}
	return st.now.Value
}
