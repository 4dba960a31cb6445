package engine

import (
	"encoding/binary"
	"fmt"

	"kvstore/wire"
)

// Behaviour levels. A level is state: OpInit sets the first, and OpLevel raises it by one, so that all
// replicas change their behaviour at the same index whatever build they run. execute is the one place
// that chooses by it what an operation does; below it, usage is carried along from levelNamespaces on.
const (
	// levelNone is the state before OpInit.
	levelNone = 0
	// levelNamespaces brings namespaces with quotas, touch, increment, conditions on tags, compression by the store, and
	// the raising of the level itself.
	levelNamespaces = 2
	// levelIdempotency brings writes with an idempotency key.
	levelIdempotency = 3
	// LevelNewest is the newest behaviour level that this build knows.
	LevelNewest = levelIdempotency
)

// execute evaluates one operation at the behaviour level that the state has.
func (a *applier) execute(op *wire.Op) wire.Result {
	if need := positionsOf(op, a.identity.level); need > 1<<wire.PositionBits-a.positions {
		// The batcher's bound on entries keeps them far below this. Surely not applied; another entry has room.
		return wire.Result{Status: wire.StatusRetryLater}
	}
	first := len(a.effects)
	var res wire.Result
	switch a.identity.level {
	case levelNone:
		res = a.executeNone(op)
	case 1:
		res = a.execute1(op)
	case 2:
		res = a.execute2(op)
	case 3:
		res = a.execute3(op)
	default:
		panic(fmt.Sprintf("BUG: behaviour level %d is unknown; newest is %d", a.identity.level, LevelNewest))
	}
	a.endTransaction(first)
	return res
}

// executeNone is the behaviour before OpInit: there is nothing yet that an operation could act on.
func (a *applier) executeNone(op *wire.Op) wire.Result {
	if op.Op != wire.OpInit {
		return wire.Result{Status: wire.StatusNotReady}
	}
	return a.initialise(op)
}

// execute1 is behaviour level 1. All that later levels have brought is refused as by the builds that knew no other level.
func (a *applier) execute1(op *wire.Op) wire.Result {
	switch op.Op {
	case wire.OpPut, wire.OpDelete, wire.OpBatch, wire.OpTxn:
		if op.Namespace != wire.NamespaceDefault {
			return wire.Result{Status: wire.StatusNoNamespace}
		}
		return a.inSession(a.oldOp(op, 1))
	case wire.OpTouch, wire.OpIncrement, wire.OpNamespace:
		return wire.Result{Status: wire.StatusUnknownOp}
	case wire.OpLevel:
		return a.raise(op)
	}
	return a.executeAny(op)
}

// execute2 is behaviour level 2. What level 3 has brought is refused as by the builds that knew no later level. Whether
// there is the namespace of a write is looked at behind its session: a write that was done before its namespace was
// dropped is told so when it is sent again.
func (a *applier) execute2(op *wire.Op) wire.Result {
	switch op.Op {
	case wire.OpPut, wire.OpDelete, wire.OpTouch, wire.OpIncrement, wire.OpBatch, wire.OpTxn:
		return a.inSession(a.oldOp(op, 2))
	case wire.OpNamespace:
		return a.changeNamespace(op)
	case wire.OpLevel:
		return a.raise(op)
	}
	return a.executeAny(op)
}

// execute3 is behaviour level 3: level 2, and writes with an idempotency key, which is looked at like a session.
func (a *applier) execute3(op *wire.Op) wire.Result {
	switch op.Op {
	case wire.OpPut, wire.OpDelete, wire.OpTouch, wire.OpIncrement, wire.OpBatch, wire.OpTxn:
		if v, namespace, keyed := wire.FindIdempotency(op.Ext); keyed {
			return a.onceByKey(op, v, namespace)
		}
		return a.inSession(op)
	}
	return a.execute2(op)
}

// executeAny evaluates what is the same at every level.
func (a *applier) executeAny(op *wire.Op) wire.Result {
	switch op.Op {
	case wire.OpSessionOpen:
		return a.openSession()
	case wire.OpSessionClose:
		return a.closeSession(op)
	case wire.OpExpire:
		n, err := wire.DecodeExpire(op.Payload)
		if err != nil {
			return wire.Result{Status: wire.StatusBadRequest}
		}
		return a.expire(n)
	case wire.OpInit:
		return wire.Result{Status: wire.StatusBadRequest} // there is a cluster already
	case wire.OpMember:
		return a.member(op)
	case wire.OpRecover:
		return a.recover(op)
	default:
		return wire.Result{Status: wire.StatusUnknownOp}
	}
}

// raise executes OpLevel.
func (a *applier) raise(op *wire.Op) wire.Result {
	level, err := wire.DecodeLevel(op.Payload)
	switch {
	case err != nil:
		return wire.Result{Status: wire.StatusBadRequest}
	case level == a.identity.level:
		return wire.Result{Status: wire.StatusOK}
	case level != a.identity.level+1:
		return wire.Result{Status: wire.StatusBadRequest}
	case level > LevelNewest:
		a.failApply(fmt.Errorf("it raises the behaviour level to %d, this build knows up to %d: use a newer build", level, LevelNewest))
	}
	if level == levelNamespaces {
		a.countUsage()
	}
	a.identity.level = level
	rev := a.putSystem(systemLevel, binary.LittleEndian.AppendUint16(nil, level))
	if level == levelNamespaces {
		a.beginNamespaces()
	}
	a.in.setIdentity(a.identity)
	return wire.Result{Status: wire.StatusOK, Rev: rev}
}

// positionsOf bounds the positions that an operation may take at a level: each write may meet an expired record, which
// takes one of its own.
func positionsOf(op *wire.Op, level uint16) int {
	switch {
	case op.Op == wire.OpBatch || op.Op == wire.OpTxn:
		_, n, _, err := wire.DecodeGroup(op.Payload)
		if err != nil || n > wire.BatchOpsMax {
			return 0 // refused later
		}
		return 2 * n
	case op.Op == wire.OpExpire:
		n, err := wire.DecodeExpire(op.Payload)
		if err != nil {
			return 0 // refused later
		}
		return int(min(n, expireMax))
	case op.Op == wire.OpNamespace && level >= levelNamespaces:
		var n wire.NamespaceChange
		if wire.DecodeNamespaceChange(op.Payload, &n) == nil && n.Action == wire.NamespacePurge {
			return int(min(n.Max, wire.PurgeMax)) + 1 // the namespace's own record
		}
	}
	return systemRecords
}

// What a later level has brought into extension blocks and groups is, at an earlier one, what builds that know no later one
// take it for: an unknown critical element, an unknown condition, and an unknown operation. Such an operation is not in the
// log of a cluster whose doors do their work; but if it were, builds of all kinds would have to refuse it alike.
const (
	unknownElement   = 63
	unknownCondition = 255
	unknownOpcode    = 255
)

// newTo reports whether a level doesn't know an element with this value.
func newTo(level uint16, t wire.ExtType, v []byte) bool {
	switch t {
	case wire.ExtCompress, wire.ExtHistory:
		return level < levelNamespaces
	case wire.ExtCondition:
		return level < levelNamespaces && len(v) > 0 && v[0] >= byte(wire.ConditionTag) && v[0] <= byte(wire.ConditionTagAbsent)
	case wire.ExtIdempotency:
		return level < levelIdempotency
	}
	return false
}

// oldOp gives a write as a level understands it: op itself, nearly always.
func (a *applier) oldOp(op *wire.Op, level uint16) *wire.Op {
	old := *op
	old.Ext = a.oldExt(op.Ext, level)
	if op.Op == wire.OpBatch || op.Op == wire.OpTxn {
		old.Payload = a.oldGroup(op.Payload, level)
	}
	return &old
}

// oldExt gives ext as a level understands it: ext itself, nearly always.
func (a *applier) oldExt(ext []byte, level uint16) []byte {
	for rest := ext; len(rest) > 0; {
		t, v, next, err := wire.NextExt(rest)
		if err != nil {
			return ext // refused there at the latest
		}
		if newTo(level, t, v) {
			masked := a.mem.copy(ext)
			if at := len(ext) - len(rest); t == wire.ExtCondition {
				masked[len(ext)-len(next)-len(v)] = unknownCondition
			} else {
				masked[at] = unknownElement
			}
			return masked // refused there at the latest
		}
		rest = next
	}
	return ext
}

// oldGroup is oldExt for a batch or transaction.
func (a *applier) oldGroup(payload []byte, level uint16) []byte {
	_, n, rest, err := wire.DecodeGroup(payload)
	if err != nil {
		return payload
	}
	for range n {
		var it wire.Item
		next, err := wire.NextItem(rest, &it)
		if err != nil {
			return payload
		}
		at := len(payload) - len(rest)
		if level < levelNamespaces && (it.Op == wire.OpTouch || it.Op == wire.OpIncrement) {
			masked := a.mem.copy(payload)
			masked[at] = unknownOpcode
			return masked
		}
		if ext := a.oldExt(it.Ext, level); len(ext) > 0 && &ext[0] != &it.Ext[0] {
			masked := a.mem.copy(payload)
			copy(masked[at+wire.ItemHeaderBytes:], ext)
			return masked
		}
		rest = next
	}
	return payload
}
