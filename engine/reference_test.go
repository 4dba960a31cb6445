package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"kvstore/wire"
)

// reference is the state machine once more, as plainly as it can be written: maps and no store. It decodes by
// wire, as the engine does, and shares nothing else with it.
type reference struct {
	index, ts uint64
	base      uint64
	histories [][16]byte
	now       int64
	positions int
	begun     bool
	first     bool // the operation at hand is the first of its entry
	records   map[string]*modelRecord
	sessions  map[uint64]*modelSession
	effects   []Effect
	bytesMax  int64 // of all kept answers

	// answer stands in for the evaluation of a write, if it is set.
	answer func(m *reference, op *wire.Op) wire.Result
}

type modelRecord struct {
	meta  wire.Meta
	ext   []byte
	value []byte
}

type modelSession struct {
	last    int64
	floor   uint64
	results map[uint64]wire.Result
}

func newReference() *reference {
	return &reference{records: make(map[string]*modelRecord), sessions: make(map[uint64]*modelSession), bytesMax: wire.SessionsBytesMax}
}

// configuration takes an entry that says nothing to the state.
func (m *reference) configuration(index uint64) {
	m.index, m.ts, m.effects = index, m.base+index, nil
}

func (m *reference) apply(index uint64, entry []byte) []wire.Result {
	var h wire.EntryHeader
	ops, err := wire.DecodeEntry(entry, &h)
	if err != nil {
		panic(err)
	}
	m.index, m.ts, m.positions = index, m.base+index, 0
	m.now = max(m.now, h.Time)
	m.effects = nil
	for _, id := range sortedKeys(m.sessions) {
		if m.now-m.sessions[id].last > int64(wire.SessionTTL.Microseconds()) {
			delete(m.sessions, id)
		}
	}
	var results []wire.Result
	for i := range h.Count {
		var op wire.Op
		if ops, err = wire.NextOp(ops, &op); err != nil {
			panic(err)
		}
		first := len(m.effects)
		m.first = i == 0
		results = append(results, m.execute(&op))
		m.endTransaction(first)
	}
	return results
}

func (m *reference) endTransaction(first int) {
	if n := len(m.effects); n > first {
		m.effects[n-1].Last = true
	}
}

func sortedKeys[K uint64 | string, V any](in map[K]V) (keys []K) {
	for k := range in {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (m *reference) execute(op *wire.Op) wire.Result {
	if !m.begun && op.Op != wire.OpInit {
		return wire.Result{Status: wire.StatusNotReady}
	}
	switch op.Op {
	case wire.OpInit:
		if m.begun {
			return wire.Result{Status: wire.StatusBadRequest}
		}
		m.begun = true
		var in wire.Init
		if err := wire.DecodeInit(op.Payload, &in); err != nil {
			panic(err)
		}
		m.histories = [][16]byte{in.HistoryID}
		rev := m.put(0, "cluster_id", nil, in.ClusterID[:], 0)
		m.put(0, "history_id", nil, in.HistoryID[:], 0)
		m.put(0, "level", nil, []byte{1, 0}, 0)
		m.put(0, "base", nil, make([]byte, 8), 0)
		return wire.Result{Rev: rev}
	case wire.OpSessionOpen:
		id := m.rev()
		m.sessions[id] = &modelSession{last: m.now, results: make(map[uint64]wire.Result)}
		return wire.Result{Payload: wire.AppendSessionGrant(nil, wire.SessionGrant{Session: id, TTLMs: uint64(wire.SessionTTL.Milliseconds())})}
	case wire.OpSessionClose:
		if m.sessions[op.Session] == nil {
			return wire.Result{Status: wire.StatusSessionExpired}
		}
		delete(m.sessions, op.Session)
		return wire.Result{}
	case wire.OpMember:
		var in wire.Member
		if wire.DecodeMember(op.Payload, &in) != nil {
			return wire.Result{Status: wire.StatusBadRequest}
		}
		return wire.Result{Rev: m.put(0, "member/"+in.ID, nil, op.Payload, 0)}
	case wire.OpRecover:
		return m.recover(op)
	case wire.OpExpire:
		n, err := wire.DecodeExpire(op.Payload)
		if err != nil {
			return wire.Result{Status: wire.StatusBadRequest}
		}
		return m.expire(int(n))
	case wire.OpPut, wire.OpDelete, wire.OpBatch, wire.OpTxn:
		if op.Namespace != 1 {
			return wire.Result{Status: wire.StatusNoNamespace}
		}
		return m.write(op)
	}
	return wire.Result{Status: wire.StatusUnknownOp}
}

func (m *reference) recover(op *wire.Op) wire.Result {
	var in wire.Recover
	n := len(m.histories)
	switch {
	case wire.DecodeRecover(op.Payload, &in) != nil:
		return wire.Result{Status: wire.StatusBadRequest}
	case n > 1 && m.histories[n-1] == in.HistoryID:
		return wire.Result{Replayed: true, Rev: m.records[string(appendRecordKey(nil, 0, fmt.Appendf(nil, "recovery/%04d", n-1)))].meta.Version}
	case !m.first:
		return wire.Result{Status: wire.StatusRetryLater}
	case slices.Contains(m.histories, in.HistoryID):
		return wire.Result{Status: wire.StatusBadRequest}
	}
	m.base += in.BaseRaise
	m.ts += in.BaseRaise
	m.histories = append(m.histories, in.HistoryID)
	rev := m.put(0, fmt.Sprintf("recovery/%04d", n), nil, op.Payload, 0)
	m.put(0, "history_id", nil, in.HistoryID[:], 0)
	m.put(0, "base", nil, binary.LittleEndian.AppendUint64(nil, m.base), 0)
	return wire.Result{Rev: rev}
}

func (m *reference) write(op *wire.Op) wire.Result {
	if op.Session == 0 {
		return m.mutate(op)
	}
	if op.Seq <= op.Floor {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	s := m.sessions[op.Session]
	if s == nil {
		return wire.Result{Status: wire.StatusSessionExpired}
	}
	s.last = m.now
	s.floor = max(s.floor, op.Floor)
	for seq := range s.results {
		if seq <= s.floor {
			delete(s.results, seq)
		}
	}
	if op.Seq <= s.floor || op.Seq-s.floor > wire.SessionWindow {
		return wire.Result{Status: wire.StatusSessionStale}
	}
	if kept, ok := s.results[op.Seq]; ok {
		kept.Replayed = true
		return kept
	}
	res := m.mutate(op)
	if res.Status.Class() != wire.ClassRetry {
		kept := res
		if len(kept.Payload) > wire.SessionReplayBytesMax {
			kept.Payload = nil
		}
		s.results[op.Seq] = kept
		m.makeRoom(s)
	}
	return res
}

// makeRoom ends the sessions but keep that were used longest ago, of several that of the lowest id first, until
// the kept answers fit.
func (m *reference) makeRoom(keep *modelSession) {
	for m.bytesMax < wire.SessionsBytesMax { // nothing here fills that
		var bytes int64
		var idle uint64
		for _, id := range sortedKeys(m.sessions) {
			s := m.sessions[id]
			for _, kept := range s.results {
				bytes += 128 + int64(len(kept.Payload))
			}
			if s != keep && (idle == 0 || s.last < m.sessions[idle].last) {
				idle = id
			}
		}
		if bytes <= m.bytesMax || idle == 0 {
			return
		}
		delete(m.sessions, idle)
	}
}

func (m *reference) mutate(op *wire.Op) wire.Result {
	if m.answer != nil {
		return m.answer(m, op)
	}
	switch op.Op {
	case wire.OpBatch, wire.OpTxn:
		return m.group(op)
	}
	if !wire.ValidKey(op.Key) {
		return wire.Result{Status: wire.StatusBadKey}
	}
	if ref := wire.CheckMutation(op.Op, op.Ext, op.Payload); ref != nil {
		return wire.Result{Status: ref.Status}
	}
	it := wire.Item{Op: op.Op, Ext: op.Ext, Key: op.Key, Value: op.Payload}
	if failed := m.failed(nil, 0, &it); len(failed) > 0 {
		return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
	}
	st, rev := m.perform(&it)
	return wire.Result{Status: st, Rev: rev}
}

func (m *reference) group(op *wire.Op) wire.Result {
	if ref := wire.CheckGroup(op.Op, op.Payload); ref != nil {
		return wire.Result{Status: ref.Status}
	}
	flags, n, rest, err := wire.DecodeGroup(op.Payload)
	if err != nil {
		panic(err)
	}
	items := make([]wire.Item, n)
	for i := range items {
		if rest, err = wire.NextItem(rest, &items[i]); err != nil {
			panic(err)
		}
	}
	atomic := op.Op == wire.OpTxn || flags&wire.GroupAtomic != 0
	if atomic {
		var failed []wire.FailedCondition
		for i := range items {
			failed = m.failed(failed, i, &items[i])
		}
		if len(failed) > 0 {
			failed = failed[:min(len(failed), wire.FailedConditionsMax)]
			return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
		}
	}
	var first wire.Revision
	var reply []byte
	for i := range items {
		it, effects := &items[i], len(m.effects)
		out := wire.Item{Op: it.Op}
		switch {
		case !atomic && len(m.failed(nil, 0, it)) > 0:
			out.Status = wire.StatusConditionFailed
			out.Value = wire.AppendFailed(nil, m.failed(nil, 0, it))
		case it.Op == wire.OpGet:
			out.Status = wire.StatusNotFound
			if r := m.live(1, it.Key); r != nil {
				out.Status = wire.StatusOK
				out.Ext = append(wire.AppendExtMeta(nil, &r.meta), r.ext...)
				out.Value = r.value
			}
		case it.Op == wire.OpCheck:
		default:
			var rev wire.Revision
			out.Status, rev = m.perform(it)
			out.Value = wire.AppendVersion(nil, rev)
			if first == 0 {
				first = rev
			}
		}
		if !atomic {
			m.endTransaction(effects)
		}
		reply = wire.AppendItem(reply, &out)
	}
	return wire.Result{Rev: first, Payload: append(wire.AppendResultHeader(nil, first, n), reply...)}
}

func modelKey(ns uint32, key string) string { return string(appendRecordKey(nil, ns, []byte(key))) }

// live gives what a read sees.
func (m *reference) live(ns uint32, key []byte) *modelRecord {
	r := m.records[modelKey(ns, string(key))]
	if r == nil || r.meta.ExpiresAt != 0 && r.meta.ExpiresAt <= m.now {
		return nil
	}
	return r
}

func (m *reference) failed(failed []wire.FailedCondition, i int, it *wire.Item) []wire.FailedCondition {
	r := m.live(1, it.Key)
	ext := it.Ext
	for n := uint32(0); ; n++ {
		c, rest, ok := wire.NextCondition(ext)
		if !ok {
			return failed
		}
		ext = rest
		var holds bool
		switch c.Kind {
		case wire.ConditionVersion:
			holds = r != nil && c.HasVersion(r.meta.Version)
		case wire.ConditionExists:
			holds = r != nil
		case wire.ConditionAbsent:
			holds = r == nil
		case wire.ConditionValue:
			holds = r != nil && bytes.Equal(r.value, c.Operand)
		}
		if !holds {
			failed = append(failed, wire.FailedCondition{Operation: uint32(i), Condition: n})
		}
	}
}

func (m *reference) perform(it *wire.Item) (wire.Status, wire.Revision) {
	if it.Op == wire.OpDelete {
		if m.live(1, it.Key) == nil {
			return wire.StatusNotFound, 0
		}
		return wire.StatusOK, m.remove(modelKey(1, string(it.Key)), EffectDelete)
	}
	var mu wire.Mutation
	if ref := wire.DecodeMutation(it.Op, it.Ext, &mu); ref != nil {
		panic(ref)
	}
	return wire.StatusOK, m.put(1, string(it.Key), wire.AppendKept(nil, it.Ext), it.Value, mu.TTLMs)
}

func (m *reference) put(ns uint32, key string, ext, value []byte, ttlMs uint64) wire.Revision {
	k := modelKey(ns, key)
	meta := wire.Meta{CreatedAt: m.now, UpdatedAt: m.now, Checksum: wire.Checksum(value)}
	if old := m.live(ns, []byte(key)); old != nil {
		meta.CreatedAt = old.meta.CreatedAt
	} else if m.records[k] != nil {
		m.remove(k, EffectExpire)
	}
	if ttlMs > 0 {
		if meta.ExpiresAt = m.now + int64(ttlMs)*1000; meta.ExpiresAt < 0 || meta.ExpiresAt == math.MaxInt64 {
			meta.ExpiresAt = math.MaxInt64 - 1 // the end of time
		}
	}
	meta.Version = m.rev()
	m.records[k] = &modelRecord{meta: meta, ext: bytes.Clone(ext), value: bytes.Clone(value)}
	m.effects = append(m.effects, Effect{Rev: meta.Version, Kind: EffectPut, Namespace: ns, Key: []byte(key), Record: wire.Record{Meta: meta, Ext: ext, Value: value}})
	return meta.Version
}

func (m *reference) remove(k string, kind EffectKind) wire.Revision {
	rev := m.rev()
	delete(m.records, k)
	m.effects = append(m.effects, Effect{Rev: rev, Kind: kind, Namespace: namespaceOf([]byte(k)), Key: userKey([]byte(k))})
	return rev
}

func (m *reference) expire(n int) wire.Result {
	var due []string
	for k, r := range m.records {
		if r.meta.ExpiresAt != 0 && r.meta.ExpiresAt <= m.now {
			due = append(due, k)
		}
	}
	slices.SortFunc(due, func(a, b string) int {
		return bytes.Compare(
			appendExpiryKey(nil, m.records[a].meta.ExpiresAt, []byte(a)),
			appendExpiryKey(nil, m.records[b].meta.ExpiresAt, []byte(b)))
	})
	var res wire.Result
	for i := 0; i < len(due) && i < n; i++ {
		rev := m.remove(due[i], EffectExpire)
		if i == 0 {
			res.Rev = rev
		}
	}
	return res
}

func (m *reference) rev() wire.Revision {
	m.positions++
	return wire.MakeRevision(m.ts, m.positions-1)
}
