package engine

import "kvstore/wire"

// A batch without GroupAtomic is many operations in one: each stands alone and has its own status. An
// atomic batch and a transaction happen as a whole or not at all: first all conditions of all members are
// evaluated, against the state before the first of them; only if all hold are the members executed, in
// order. So a condition never sees what the same transaction writes, and a GET within it does.

// group evaluates a batch or a transaction.
func (a *applier) group(op *wire.Op) wire.Result {
	if ref := wire.CheckGroup(op.Op, op.Payload); ref != nil {
		return wire.Result{Status: ref.Status}
	}
	flags, n, items, err := wire.DecodeGroup(op.Payload)
	if err != nil {
		panic("BUG: a checked group can't be decoded: " + err.Error())
	}
	g := group{a: a, ns: op.Namespace, items: items, count: n}
	if op.Op == wire.OpBatch && flags&wire.GroupAtomic == 0 {
		g.executeEach()
	} else {
		if failed := g.failedConditions(); len(failed) > 0 {
			return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
		}
		g.executeAll()
	}
	wire.AppendResultHeader(g.reply[:0], g.rev, g.count) // in place: the revision is known only now
	return wire.Result{Status: wire.StatusOK, Rev: g.rev, Payload: g.reply}
}

// group is a batch or transaction under evaluation.
type group struct {
	a     *applier
	ns    uint32
	items []byte
	count int

	rev   wire.Revision // of the first mutation
	reply []byte        // see wire.AppendResultHeader
	left  int           // members whose answer is still to come
}

// each decodes the members in order. The slices of ch are views and arena memory.
func (g *group) each(fn func(i int, ch *change)) {
	items := g.items
	var it wire.Item
	var ch change
	for i := range g.count {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			panic("BUG: a checked member can't be decoded: " + err.Error())
		}
		if st := g.a.decode(&ch, it.Op, g.ns, it.Ext, it.Key, it.Value); st != wire.StatusOK {
			panic("BUG: a checked member is refused: " + st.String())
		}
		fn(i, &ch)
	}
}

// failedConditions lists the conditions that don't hold, in order.
func (g *group) failedConditions() (failed []wire.FailedCondition) {
	g.each(func(i int, ch *change) {
		if ch.m.Conditions > 0 {
			failed = g.a.failedConditions(failed, i, ch)
		}
	})
	return failed
}

// executeAll executes the members of an atomic group.
func (g *group) executeAll() {
	g.begin()
	g.each(func(_ int, ch *change) { g.execute(ch) })
}

// executeEach executes the members of a batch whose members stand alone.
func (g *group) executeEach() {
	g.begin()
	g.each(func(_ int, ch *change) {
		first := len(g.a.effects)
		if ch.m.Conditions > 0 {
			if failed := g.a.failedConditions(nil, 0, ch); len(failed) > 0 {
				g.refuse(ch.op, failed)
				return
			}
		}
		g.execute(ch)
		g.a.endTransaction(first)
	})
}

func (g *group) begin() {
	g.left = g.count
	g.reply = make([]byte, 0, wire.ResultHeaderBytes+g.count*memberAnswerBytes)
	g.reply = wire.AppendResultHeader(g.reply, 0, g.count)
}

// execute executes one member whose conditions hold and appends its answer.
func (g *group) execute(ch *change) {
	switch ch.op {
	case wire.OpGet:
		g.get(ch)
	case wire.OpCheck:
		g.header(wire.OpCheck, wire.StatusOK, 0, 0)
	default:
		status, rev := g.a.perform(ch)
		if g.rev == 0 {
			g.rev = rev
		}
		g.header(ch.op, status, 0, wire.VersionBytes)
		g.reply = wire.AppendVersion(g.reply, rev)
	}
}

// get appends the answer to a GET within a transaction.
func (g *group) get(ch *change) {
	st := g.a.stage(ch.key)
	switch ext := itemExtBytes(&st.now); {
	case !st.live(g.a.now):
		g.header(wire.OpGet, wire.StatusNotFound, 0, 0)
	case ext+int(st.now.valueLen) > g.room():
		g.header(wire.OpGet, wire.StatusReplyFull, 0, 0)
	default:
		value := g.a.value(st)
		g.header(wire.OpGet, wire.StatusOK, ext, len(value))
		g.reply = appendItemExt(g.reply, &st.now)
		g.reply = append(g.reply, value...)
	}
}

// refuse appends the answer to a member that stands alone and whose conditions don't hold. The list of them
// is left out when the answer is full.
func (g *group) refuse(op wire.Opcode, failed []wire.FailedCondition) {
	list := wire.AppendFailed(nil, failed)
	if len(list) > g.room() {
		list = nil
	}
	g.header(op, wire.StatusConditionFailed, 0, len(list))
	g.reply = append(g.reply, list...)
}

// memberAnswerBytes is what each member's answer takes at least, or room for a version in it.
const memberAnswerBytes = wire.ItemHeaderBytes + wire.VersionBytes

// room is how many bytes the answer at hand may take besides its header, with enough left for the others.
func (g *group) room() int {
	return wire.FrameBodyBytesMax - len(g.reply) - g.left*memberAnswerBytes
}

// header begins the answer of the next member.
func (g *group) header(op wire.Opcode, st wire.Status, ext, value int) {
	g.left--
	g.reply = wire.AppendItemHeader(g.reply, op, st, ext, 0, value)
}

// itemExtBytes is the length of what appendItemExt appends.
func itemExtBytes(r *storedRecord) int { return 2 + wire.MetaBytes + len(r.Ext) }

// appendItemExt appends the extension block of a record in an answer: its Meta, then the kept elements.
func appendItemExt(dst []byte, r *storedRecord) []byte {
	return append(wire.AppendExtMeta(dst, &r.Meta), r.Ext...)
}
