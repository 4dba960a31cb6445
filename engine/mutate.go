package engine

import (
	"fmt"
	"math"
	"strconv"

	"kvstore/wire"
)

// change is one mutation, or member of a batch or transaction, decoded.
type change struct {
	op    wire.Opcode
	key   []byte // record key, in the arena
	ext   []byte
	value []byte
	m     wire.Mutation
}

// single evaluates a mutation that stands alone.
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
	d := a.perform(&ch, true)
	if d.status == wire.StatusOK && op.Op == wire.OpIncrement {
		d.text = wire.AppendCounter(nil, d.rev, d.counter)
	}
	return wire.Result{Status: d.status, Rev: d.rev, Payload: d.text}
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
	case op == wire.OpIncrement:
		if len(value) != wire.IncrementBytes {
			return wire.StatusBadRequest
		}
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
	case wire.ConditionTag:
		name, want, err := wire.SplitTag(c.Operand)
		if err != nil {
			panic("BUG: a checked condition can't be decoded: " + err.Error())
		}
		if !live {
			return false
		}
		value, ok := tag(st.now.Ext, name)
		return ok && string(value) == string(want)
	case wire.ConditionTagPresent, wire.ConditionTagAbsent:
		if !live {
			return false
		}
		_, ok := tag(st.now.Ext, c.Operand)
		return ok == (c.Kind == wire.ConditionTagPresent)
	}
	panic(fmt.Sprintf("BUG: condition %d passed its decoder", c.Kind))
}

// done is what a mutation whose conditions hold came to.
type done struct {
	status  wire.Status
	rev     wire.Revision // 0: nothing was changed
	counter int64         // what an increment has made
	text    []byte        // for people, where there is more to say than the status does
}

// tag gives the value of a record's tag.
func tag(kept, name []byte) (value []byte, ok bool) {
	for len(kept) > 0 {
		t, v, rest, err := wire.NextExt(kept)
		if err == nil && t == wire.ExtTag {
			var n []byte
			if n, value, err = wire.SplitTag(v); err == nil && string(n) == string(name) {
				return value, true
			}
		}
		if err != nil {
			panic("BUG: a record keeps elements that can't be decoded: " + err.Error())
		}
		kept = rest
	}
	return nil, false
}

// perform executes a mutation whose conditions hold. alone: it is not a part of what happens as a whole or not at all, so
// that the quotas are for it to keep.
func (a *applier) perform(ch *change, alone bool) done {
	st := a.stage(ch.key)
	r := storedRecord{codec: a.codecOf(ch)}
	var d done
	switch ch.op {
	case wire.OpDelete:
		if !st.live(a.now) {
			return done{status: wire.StatusNotFound}
		}
		return done{rev: a.remove(st)}
	case wire.OpTouch:
		if !st.live(a.now) {
			return done{status: wire.StatusNotFound}
		}
		if status := a.mayRewrite(int(st.now.valueLen), alone); status != wire.StatusOK {
			return done{status: status}
		}
		a.value(st)
		r = st.now.again()
		r.Meta.ExpiresAt = deadline(a.now, ch.m.TTLMs)
	case wire.OpIncrement:
		var ok bool
		if d.counter, ok = a.sum(st, ch); !ok {
			return done{status: wire.StatusNotANumber}
		}
		if st.live(a.now) {
			r = st.now.again()
		}
		if ch.m.TTLMs != 0 {
			r.Meta.ExpiresAt = deadline(a.now, ch.m.TTLMs)
		}
		r.Value = strconv.AppendInt(a.mem.alloc(counterDigitsMax), d.counter, 10)
		r.valueLen = uint32(len(r.Value))
		r.Meta.Checksum = wire.Checksum(r.Value)
	default:
		a.fill(&r, ch)
	}
	if !alone || !a.space.limited() {
		d.rev = a.write(st, &r)
		return d
	}
	after := a.space.used
	if st.exists {
		after.sub(st.key, &st.now)
	}
	after.add(st.key, &r)
	if text := a.space.exceeds(a.space.used, after); text != nil {
		return done{status: wire.StatusQuota, text: text}
	}
	d.rev = a.write(st, &r)
	return d
}

// fill makes r the record that a put asks for.
func (a *applier) fill(r *storedRecord, ch *change) {
	r.Value, r.valueLen = ch.value, uint32(len(ch.value))
	r.Meta.ExpiresAt, r.Meta.Checksum = deadline(a.now, ch.m.TTLMs), ch.m.Checksum
	if ch.m.Kept > 0 {
		r.Ext = wire.AppendKept(a.mem.alloc(ch.m.Kept), ch.ext)
	}
}

// again gives r as it is to be written once more.
func (r *storedRecord) again() storedRecord {
	return storedRecord{Record: r.Record, valueLen: r.valueLen, codec: r.codec}
}

// write stages a record: its Meta has the deadline and the checksum, the rest of it is made here. An expired one that it
// meets ends first, with an effect of its own.
func (a *applier) write(st *staged, r *storedRecord) wire.Revision {
	created := a.now
	if st.live(a.now) {
		created = st.now.Meta.CreatedAt
	} else if st.exists {
		a.removeExpired(st)
	}
	r.Meta.Version, r.Meta.CreatedAt, r.Meta.UpdatedAt = a.nextRevision(), created, a.now
	a.become(st, r)
	a.effect(st, EffectPut, r.Meta.Version)
	return r.Meta.Version
}

// rewriteBytesMax bounds the bytes of values that one entry reads to write them again: a touch of some bytes can name a
// value of wire.ValueBytesMax. It belongs to the behaviour level.
const rewriteBytesMax = 64 << 20

// One value fits: a negative difference does not compile.
const _ = uint(rewriteBytesMax - wire.ValueBytesMax)

// mayRewrite counts n bytes of a value against rewriteBytesMax. Where they don't fit, another entry has room for them,
// unless the operation at hand takes all by itself.
func (a *applier) mayRewrite(n int, alone bool) wire.Status {
	switch {
	case a.rewritten+n <= rewriteBytesMax:
		a.rewritten += n
		return wire.StatusOK
	case !alone && a.rewritten-a.rewrittenBefore+n > rewriteBytesMax:
		return wire.StatusTooLarge
	}
	return wire.StatusRetryLater
}

// counterDigitsMax is the longest value that an increment takes for a number: a sign and 19 digits.
const counterDigitsMax = 20

// sum gives what the increment ch makes of the record; ok is false when that isn't a number, or takes more than 64 bits.
func (a *applier) sum(st *staged, ch *change) (sum int64, ok bool) {
	delta, ok := wire.DecodeIncrement(ch.value)
	if !ok {
		panic("BUG: a checked increment can't be decoded")
	}
	var old int64
	if st.live(a.now) {
		if st.now.valueLen > counterDigitsMax {
			return 0, false
		}
		if old, ok = parseCounter(a.value(st)); !ok {
			return 0, false
		}
	}
	sum = old + delta
	return sum, (sum > old) == (delta > 0)
}

// parseCounter reads a number: decimal digits, with a minus sign in front where it is negative.
func parseCounter(value []byte) (n int64, ok bool) {
	if len(value) > 0 && value[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	return n, err == nil
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
	a.become(st, nil)
	a.effect(st, EffectDelete, rev)
	return rev
}

func (a *applier) removeExpired(st *staged) wire.Revision {
	rev := a.nextRevision()
	a.become(st, nil)
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
		Previous:  kind != EffectPut || st.over,
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
