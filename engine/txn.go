package engine

import (
	"fmt"

	"kvstore/wire"
)

// A batch without GroupAtomic is many operations in one: each stands alone and has its own status. An
// atomic batch and a transaction happen as a whole or not at all: first all conditions of all members are
// evaluated, against the state before the first of them; only if all hold are the members executed, in
// order. So a condition never sees what the same transaction writes, and a GET within it does. A member that can't be
// executed, and a quota that all of them together exceed, undo what the members before have done.

// group evaluates a batch or a transaction whose answer has at most answerMax bytes.
func (a *applier) group(op *wire.Op, answerMax int) wire.Result {
	if ref := wire.CheckGroup(op.Op, op.Payload); ref != nil {
		return wire.Result{Status: ref.Status}
	}
	flags, n, items, err := wire.DecodeGroup(op.Payload)
	if err != nil {
		panic("BUG: a checked group can't be decoded: " + err.Error())
	}
	g := group{a: a, ns: op.Namespace, items: items, count: n, answerMax: answerMax}
	g.left, g.counters = n, countIncrements(items, n)
	if least := g.leastBytes(); least > answerMax {
		return wire.Result{Status: wire.StatusTooLarge, Payload: fmt.Appendf(nil,
			"the answer to %d operations takes %d bytes, and with an idempotency key it may have %d; nothing was changed: use smaller groups, or no key", n, least, answerMax)}
	}
	if op.Op == wire.OpBatch && flags&wire.GroupAtomic == 0 {
		g.executeEach()
	} else {
		if failed := g.failedConditions(); len(failed) > 0 {
			return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
		}
		if d := g.executeAll(); d.status != wire.StatusOK {
			return wire.Result{Status: d.status, Payload: d.text}
		}
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
	// answerMax bounds the answer. Without an idempotency key a group that passes the door is far below it.
	answerMax int

	rev      wire.Revision // of the first mutation
	reply    []byte        // see wire.AppendResultHeader
	left     int           // members whose answer is still to come
	counters int           // increments among them
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

// executeAll executes the members of an atomic group, or none of them: then what is returned says why.
func (g *group) executeAll() (refused done) {
	g.begin()
	a := g.a
	start := a.save()
	g.each(func(i int, ch *change) {
		if refused.status != wire.StatusOK {
			return
		}
		if refused = g.execute(ch, false); refused.status == wire.StatusNotFound {
			refused.status = wire.StatusOK // the answer of that member
		} else if refused.status != wire.StatusOK {
			refused.text = fmt.Appendf(nil, "operation %d: %s", i, refusalText(refused.status))
		}
	})
	if refused.status == wire.StatusOK && a.space.limited() {
		if text := a.space.exceeds(start.used, a.space.used); text != nil {
			refused = done{status: wire.StatusQuota, text: text}
		}
	}
	if refused.status != wire.StatusOK {
		a.rollBack(start)
	} else {
		a.commit()
	}
	return refused
}

// refusalText says why a member can't be executed. Sessions keep it with the answer, so it belongs to the behaviour level,
// like the texts of quotas: replicas of two builds must store the same bytes. What package wire tells people of a status
// may change from build to build.
func refusalText(st wire.Status) string {
	switch st {
	case wire.StatusNotANumber:
		return "the value is not a whole number of 64 bits in decimal digits, or the sum is not; nothing was changed"
	case wire.StatusTooLarge:
		return "the request is larger than the limit named in the answer; nothing was changed"
	}
	return "not executed; try again" // StatusRetryLater, which no session keeps
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
		g.execute(ch, true)
		g.a.endTransaction(first)
	})
}

func (g *group) begin() {
	g.reply = make([]byte, 0, g.leastBytes())
	g.reply = wire.AppendResultHeader(g.reply, 0, g.count)
}

// execute executes one member whose conditions hold and appends its answer. alone: see perform.
func (g *group) execute(ch *change, alone bool) (d done) {
	switch ch.op {
	case wire.OpGet:
		g.get(ch)
	case wire.OpCheck:
		g.header(wire.OpCheck, wire.StatusOK, 0, 0)
	default:
		if d = g.a.perform(ch, alone); g.rev == 0 {
			g.rev = d.rev
		}
		switch {
		case d.status == wire.StatusOK && ch.op == wire.OpIncrement:
			g.header(ch.op, d.status, 0, wire.CounterBytes)
			g.reply = wire.AppendCounter(g.reply, d.rev, d.counter)
		case d.status == wire.StatusOK || d.status == wire.StatusNotFound:
			g.header(ch.op, d.status, 0, wire.VersionBytes)
			g.reply = wire.AppendVersion(g.reply, d.rev)
		default:
			g.tell(ch.op, d.status, d.text)
		}
	}
	return d
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

// refuse appends the answer to a member that stands alone and whose conditions don't hold.
func (g *group) refuse(op wire.Opcode, failed []wire.FailedCondition) {
	g.tell(op, wire.StatusConditionFailed, wire.AppendFailed(nil, failed))
}

// tell appends the answer to a member that was not executed. What there is to say is left out when the answer is full.
func (g *group) tell(op wire.Opcode, st wire.Status, value []byte) {
	if len(value) > g.room() {
		value = nil
	}
	g.header(op, st, 0, len(value))
	g.reply = append(g.reply, value...)
}

// memberAnswerBytes is what each member's answer takes at least, or room for a version in it.
const memberAnswerBytes = wire.ItemHeaderBytes + wire.VersionBytes

// counterMoreBytes is what the answer to an increment takes beyond that.
const counterMoreBytes = wire.CounterBytes - wire.VersionBytes

// countIncrements counts the increments among the first n items.
func countIncrements(items []byte, n int) (increments int) {
	var it wire.Item
	for range n {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			panic("BUG: a checked member can't be decoded: " + err.Error())
		}
		if it.Op == wire.OpIncrement {
			increments++
		}
	}
	return increments
}

// leastBytes is what the answer takes without what is left out when it is full. REQUIRES: no member has been answered.
func (g *group) leastBytes() int {
	return wire.ResultHeaderBytes + g.count*memberAnswerBytes + g.counters*counterMoreBytes
}

// room is how many bytes the answer at hand may take besides its header, with enough left for the others.
func (g *group) room() int {
	return g.answerMax - len(g.reply) - g.left*memberAnswerBytes - g.counters*counterMoreBytes
}

// header begins the answer of the next member.
func (g *group) header(op wire.Opcode, st wire.Status, ext, value int) {
	g.left--
	if op == wire.OpIncrement {
		g.counters--
	}
	g.reply = wire.AppendItemHeader(g.reply, op, st, ext, 0, value)
}

// itemExtBytes is the length of what appendItemExt appends.
func itemExtBytes(r *storedRecord) int { return 2 + wire.MetaBytes + len(r.Ext) }

// appendItemExt appends the extension block of a record in an answer: its Meta, then the kept elements.
func appendItemExt(dst []byte, r *storedRecord) []byte {
	return append(wire.AppendExtMeta(dst, &r.Meta), r.Ext...)
}
