package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/big"
	"regexp"
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
	level     uint16
	first     bool // the operation at hand is the first of its entry
	records   map[string]*modelRecord
	spaces    map[uint32]*modelSpace
	nextSpace uint32
	sessions  map[uint64]*modelSession
	effects   []Effect
	bytesMax  int64 // of all kept answers

	once         map[string]*modelOnce // by namespace and key
	onceOrder    []string              // the oldest first
	onceBytesMax int64
	answerMax    int // of the write at hand

	// answer stands in for the evaluation of a write, if it is set.
	answer func(m *reference, op *wire.Op) wire.Result
}

type modelRecord struct {
	meta  wire.Meta
	ext   []byte
	value []byte
}

// modelSpace is a namespace; that of the system keyspace is none.
type modelSpace struct {
	name      string
	dropping  bool
	droppedAt uint64
	settings  wire.NamespaceSettings
	created   int64
	cursor    string
}

type modelSession struct {
	last    int64
	floor   uint64
	results map[uint64]wire.Result
}

// modelOnce is the answer to a write with an idempotency key.
type modelOnce struct {
	at          int64
	fingerprint uint64
	res         wire.Result
}

func newReference() *reference {
	return &reference{
		records: make(map[string]*modelRecord), sessions: make(map[uint64]*modelSession), bytesMax: wire.SessionsBytesMax,
		once: make(map[string]*modelOnce), onceBytesMax: wire.IdempotencyBytesMax,
	}
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
	for n := 0; n < 1024 && len(m.onceOrder) > 0 && m.now-m.once[m.onceOrder[0]].at > 600e6; n++ {
		m.forget(m.onceOrder[0])
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
	if m.level == 0 && op.Op != wire.OpInit {
		return wire.Result{Status: wire.StatusNotReady}
	}
	switch op.Op {
	case wire.OpInit:
		if m.level > 0 {
			return wire.Result{Status: wire.StatusBadRequest}
		}
		var in wire.Init
		if err := wire.DecodeInit(op.Payload, &in); err != nil {
			panic(err)
		}
		m.histories = [][16]byte{in.HistoryID}
		m.level = in.Level
		m.spaces, m.nextSpace = map[uint32]*modelSpace{1: {name: "default"}}, 2
		rev := m.put(0, "cluster_id", nil, in.ClusterID[:], 0)
		m.put(0, "history_id", nil, in.HistoryID[:], 0)
		m.put(0, "level", nil, []byte{byte(m.level), 0}, 0)
		m.put(0, "base", nil, make([]byte, 8), 0)
		if m.level >= 2 {
			m.beginSpaces()
		}
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
	case wire.OpLevel:
		return m.raise(op)
	case wire.OpPut, wire.OpDelete, wire.OpBatch, wire.OpTxn:
		if m.level == 1 && op.Namespace != 1 {
			return wire.Result{Status: wire.StatusNoNamespace}
		}
		return m.write(inTheEyesOf(m.level, op))
	case wire.OpTouch, wire.OpIncrement:
		if m.level >= 2 {
			return m.write(inTheEyesOf(m.level, op))
		}
	case wire.OpNamespace:
		if m.level >= 2 {
			return m.changeNamespace(op)
		}
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

// forget drops the answer kept for a key.
func (m *reference) forget(key string) {
	delete(m.once, key)
	m.onceOrder = slices.DeleteFunc(m.onceOrder, func(k string) bool { return k == key })
}

// onceBytes is what the answers kept for keys count.
func (m *reference) onceBytes() (bytes int64) {
	for _, k := range m.once {
		bytes += 256 + int64(len(k.res.Payload))
	}
	return bytes
}

// writeOnce executes a write with an idempotency key, with what its element says.
func (m *reference) writeOnce(op *wire.Op, v []byte, namespace string) wire.Result {
	if len(v) != 24 || op.Session != 0 {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	key, fingerprint := namespace+" "+string(v[:16]), binary.LittleEndian.Uint64(v[16:])
	if k := m.once[key]; k != nil && m.now-k.at > 600e6 {
		m.forget(key)
	} else if k != nil {
		res := k.res
		if res.Replayed = true; k.fingerprint != fingerprint {
			res = wire.Result{Status: wire.StatusKeyReused}
		}
		return res
	}
	if m.onceBytes()+256+65536 > m.onceBytesMax {
		return wire.Result{Status: wire.StatusRetryLater, Payload: []byte("as many answers to writes with an idempotency key are kept as may be; nothing was changed: try again later, or send the write without a key")}
	}
	m.answerMax = 65536
	res := m.mutate(op)
	if res.Status.Class() != wire.ClassRetry {
		m.once[key] = &modelOnce{m.now, fingerprint, res}
		m.onceOrder = append(m.onceOrder, key)
	}
	return res
}

func (m *reference) write(op *wire.Op) wire.Result {
	if m.level >= 3 {
		namespace, keyed, v := "default", false, []byte(nil)
		for ext := op.Ext; len(ext) > 0; {
			t, value, rest, err := wire.NextExt(ext)
			if err != nil {
				break
			}
			switch t {
			case 1:
				namespace = string(value)
			case 33:
				keyed, v = true, value
			}
			ext = rest
		}
		if keyed {
			return m.writeOnce(op, v, namespace)
		}
	}
	m.answerMax = wire.FrameBodyBytesMax
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
	if s := m.spaces[op.Namespace]; s == nil || s.dropping {
		return wire.Result{Status: wire.StatusNoNamespace}
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
	if failed := m.failed(nil, op.Namespace, 0, &it); len(failed) > 0 {
		return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
	}
	return m.guardedIfLimited(op.Namespace, func() wire.Result {
		st, rev, counter := m.perform(op.Namespace, &it)
		res := wire.Result{Status: st, Rev: rev}
		if st == wire.StatusOK && op.Op == wire.OpIncrement {
			res.Payload = wire.AppendCounter(nil, rev, counter)
		}
		return res
	})
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
	if least := leastAnswer(items); least > m.answerMax {
		return wire.Result{Status: wire.StatusTooLarge, Payload: fmt.Appendf(nil,
			"the answer to %d operations takes %d bytes, and with an idempotency key it may have %d; nothing was changed: use smaller groups, or no key", n, least, m.answerMax)}
	}
	ns := op.Namespace
	atomic := op.Op == wire.OpTxn || flags&wire.GroupAtomic != 0
	if atomic {
		var failed []wire.FailedCondition
		for i := range items {
			failed = m.failed(failed, ns, i, &items[i])
		}
		if len(failed) > 0 {
			failed = failed[:min(len(failed), wire.FailedConditionsMax)]
			return wire.Result{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, failed)}
		}
	}
	if !atomic {
		return m.members(ns, items, func(it *wire.Item) (wire.Item, wire.Revision, wire.Result) {
			first := len(m.effects)
			var out wire.Item
			var rev wire.Revision
			res := m.guardedIfLimited(ns, func() (res wire.Result) {
				out, rev = m.member(ns, it, true)
				return wire.Result{Status: out.Status}
			})
			if res.Status == wire.StatusQuota {
				out, rev = wire.Item{Op: it.Op, Status: res.Status, Value: res.Payload}, 0
			}
			m.endTransaction(first)
			return out, rev, wire.Result{}
		})
	}
	return m.guarded(ns, func() wire.Result {
		i := -1
		return m.members(ns, items, func(it *wire.Item) (out wire.Item, rev wire.Revision, refused wire.Result) {
			i++
			if out, rev = m.member(ns, it, false); out.Status == wire.StatusNotANumber {
				refused = wire.Result{Status: out.Status, Payload: fmt.Appendf(nil, "operation %d: %s", i, out.Status.Info().Message)}
			}
			return out, rev, refused
		})
	})
}

// members makes the answer of a group out of what fn makes of each member, or that of the first that fn refuses.
func (m *reference) members(ns uint32, items []wire.Item, fn func(it *wire.Item) (wire.Item, wire.Revision, wire.Result)) wire.Result {
	var first wire.Revision
	var reply []byte
	for i := range items {
		out, rev, refused := fn(&items[i])
		if refused.Status != wire.StatusOK {
			return refused
		}
		if first == 0 {
			first = rev
		}
		// The others keep their room.
		switch room := m.answerMax - len(reply) - leastAnswer(items[i:]); {
		case len(out.Ext)+len(out.Value) <= room:
		case out.Op == wire.OpGet && out.Status == wire.StatusOK:
			out = wire.Item{Op: out.Op, Status: wire.StatusReplyFull}
		case out.Status != wire.StatusOK && out.Status != wire.StatusNotFound:
			out.Value = nil
		}
		reply = wire.AppendItem(reply, &out)
	}
	return wire.Result{Rev: first, Payload: append(wire.AppendResultHeader(nil, first, len(items)), reply...)}
}

// leastAnswer is what the answer to a group of items takes in any case.
func leastAnswer(items []wire.Item) int {
	least := 12
	for i := range items {
		if least += 20; items[i].Op == wire.OpIncrement {
			least += 8
		}
	}
	return least
}

// member executes one member; with conditions, if they are its own affair.
func (m *reference) member(ns uint32, it *wire.Item, conditions bool) (out wire.Item, rev wire.Revision) {
	out.Op = it.Op
	switch {
	case conditions && len(m.failed(nil, ns, 0, it)) > 0:
		out.Status = wire.StatusConditionFailed
		out.Value = wire.AppendFailed(nil, m.failed(nil, ns, 0, it))
	case it.Op == wire.OpGet:
		out.Status = wire.StatusNotFound
		if r := m.live(ns, it.Key); r != nil {
			out.Status = wire.StatusOK
			out.Ext = append(wire.AppendExtMeta(nil, &r.meta), r.ext...)
			out.Value = r.value
		}
	case it.Op == wire.OpCheck:
	default:
		var counter int64
		out.Status, rev, counter = m.perform(ns, it)
		switch {
		case out.Status == wire.StatusNotANumber:
		case it.Op == wire.OpIncrement:
			out.Value = wire.AppendCounter(nil, rev, counter)
		default:
			out.Value = wire.AppendVersion(nil, rev)
		}
	}
	return out, rev
}

// guardedIfLimited is guarded for one mutation, which by itself does nothing when it is refused.
func (m *reference) guardedIfLimited(ns uint32, fn func() wire.Result) wire.Result {
	if s := m.spaces[ns].settings; s.BytesMax|s.KeysMax == 0 {
		return fn()
	}
	return m.guarded(ns, fn)
}

// guarded does what fn does, unless that is refused or exceeds a quota: then nothing happens.
func (m *reference) guarded(ns uint32, fn func() wire.Result) wire.Result {
	records, positions, effects := m.records, m.positions, len(m.effects)
	m.records = maps.Clone(m.records)
	keys, bytes := m.usage(ns)
	res := fn()
	newKeys, newBytes := m.usage(ns)
	s := m.spaces[ns]
	over := func(what string, before, after, most uint64) {
		if most > 0 && after > most && after > before && res.Status.Class() == wire.ClassResult {
			res = wire.Result{Status: wire.StatusQuota, Payload: fmt.Appendf(nil, "quota of %s: namespace %q holds %d and may hold %d, this write needs %d more; nothing was changed: delete some, or raise the quota",
				what, s.name, before, most, after-before)}
		}
	}
	over("keys", keys, newKeys, s.settings.KeysMax)
	over("bytes", bytes, newBytes, s.settings.BytesMax)
	if res.Status.Class() != wire.ClassResult {
		m.records, m.positions, m.effects = records, positions, m.effects[:effects]
	}
	return res
}

// usage counts what a namespace holds.
func (m *reference) usage(ns uint32) (keys, bytes uint64) {
	if ns != 1 && m.spaces[ns] == nil {
		return 0, 0
	}
	for k, r := range m.records {
		if namespaceOf([]byte(k)) == ns {
			keys++
			bytes += uint64(len(userKey([]byte(k))) + len(r.ext) + len(r.value))
		}
	}
	return keys, bytes
}

func (m *reference) raise(op *wire.Op) wire.Result {
	level, err := wire.DecodeLevel(op.Payload)
	switch {
	case err != nil:
		return wire.Result{Status: wire.StatusBadRequest}
	case level == m.level:
		return wire.Result{}
	case level != m.level+1:
		return wire.Result{Status: wire.StatusBadRequest}
	}
	m.level = level
	rev := m.put(0, "level", nil, []byte{byte(level), 0}, 0)
	if level == 2 {
		m.beginSpaces()
	}
	return wire.Result{Rev: rev}
}

func (m *reference) beginSpaces() {
	m.spaces[1].created = m.now
	m.putSpace(1)
	m.putNextSpace()
}

func (m *reference) putNextSpace() {
	m.put(0, "namespace_next", nil, binary.LittleEndian.AppendUint32(nil, m.nextSpace), 0)
}

func (m *reference) putSpace(id uint32) wire.Revision {
	s := m.spaces[id]
	b := []byte{1, 0, byte(s.settings.Compress), byte(len(s.name)), 0, 0, 0, 0}
	if s.dropping {
		b[1] = 1
	}
	for _, v := range []uint64{uint64(s.created), s.settings.BytesMax, s.settings.KeysMax, s.settings.OpsPerSecond, s.settings.WatchesMax} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return m.put(0, fmt.Sprintf("namespace/%08x", id), nil, append(append(b, s.name...), s.cursor...), 0)
}

func (m *reference) changeNamespace(op *wire.Op) wire.Result {
	var c wire.NamespaceChange
	if wire.DecodeNamespaceChange(op.Payload, &c) != nil {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	var id uint32
	for n, s := range m.spaces {
		if s.name == c.Name && !s.dropping {
			id = n
		}
	}
	switch {
	case c.Action == wire.NamespacePurge:
		return m.purge(c.ID, int(min(c.Max, wire.PurgeMax)))
	case c.Action == wire.NamespaceCreate && id != 0:
		return wire.Result{Status: wire.StatusNamespaceExists}
	case c.Action == wire.NamespaceCreate:
		id = m.nextSpace
		m.nextSpace++
		m.spaces[id] = &modelSpace{name: c.Name, settings: c.Settings, created: m.now}
		rev := m.putSpace(id)
		m.putNextSpace()
		return wire.Result{Rev: rev}
	case id == 0:
		return wire.Result{Status: wire.StatusNoNamespace}
	case c.Action == wire.NamespaceSet:
		m.spaces[id].settings = c.Settings
	case id == 1:
		return wire.Result{Status: wire.StatusBadRequest}
	default:
		m.spaces[id].dropping, m.spaces[id].droppedAt = true, m.index
	}
	return wire.Result{Rev: m.putSpace(id)}
}

func (m *reference) purge(id uint32, most int) wire.Result {
	s := m.spaces[id]
	if s == nil || !s.dropping {
		return wire.Result{Status: wire.StatusNoNamespace}
	}
	if s.droppedAt == m.index {
		return wire.Result{Status: wire.StatusRetryLater}
	}
	var first wire.Revision
	for _, k := range sortedKeys(m.records) {
		if namespaceOf([]byte(k)) != id || most == 0 {
			continue
		}
		most--
		kind := EffectDelete
		if s.cursor = string(userKey([]byte(k))); m.live(id, []byte(s.cursor)) == nil {
			kind = EffectExpire
		}
		rev := m.remove(k, kind)
		m.effects[len(m.effects)-1].Last = true // for itself
		if first == 0 {
			first = rev
		}
	}
	var rev wire.Revision
	if keys, _ := m.usage(id); keys > 0 {
		rev = m.putSpace(id)
	} else {
		rev = m.remove(modelKey(0, fmt.Sprintf("namespace/%08x", id)), EffectDelete)
		delete(m.spaces, id)
	}
	if first == 0 {
		first = rev
	}
	return wire.Result{Rev: first}
}

// inTheEyesOf gives a write as a build sees it that knows no later level: other numbers, which no build knows, stand in
// the place of what later levels have brought.
func inTheEyesOf(level uint16, op *wire.Op) *wire.Op {
	out := *op
	out.Ext = extInTheEyesOf(level, op.Ext)
	if op.Op != wire.OpBatch && op.Op != wire.OpTxn {
		return &out
	}
	flags, n, rest, err := wire.DecodeGroup(op.Payload)
	if err != nil {
		return &out
	}
	p := wire.AppendGroupHeader(nil, flags, n)
	for range n {
		var it wire.Item
		next, err := wire.NextItem(rest, &it)
		if err != nil {
			break
		}
		if rest = next; level == 1 && (it.Op == 0x24 || it.Op == 0x25) {
			it.Op = 0xee
		}
		it.Ext = extInTheEyesOf(level, it.Ext)
		p = wire.AppendItem(p, &it)
	}
	out.Payload = append(p, rest...)
	return &out
}

func extInTheEyesOf(level uint16, ext []byte) (out []byte) {
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		element := bytes.Clone(ext[:len(ext)-len(rest)])
		switch {
		case level == 1 && (t == 25 || t == 29) || level <= 2 && t == 33:
			element[0] = 61
		case level == 1 && t == wire.ExtCondition && len(v) > 0 && v[0] > 4:
			element[len(element)-len(v)] = 200
		}
		out, ext = append(out, element...), rest
	}
	return append(out, ext...)
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

func (m *reference) failed(failed []wire.FailedCondition, ns uint32, i int, it *wire.Item) []wire.FailedCondition {
	r := m.live(ns, it.Key)
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
		case wire.ConditionTag:
			holds = r != nil && m.hasTag(r, c.Operand)
		case wire.ConditionTagPresent:
			holds = r != nil && m.hasTagNamed(r, c.Operand)
		case wire.ConditionTagAbsent:
			holds = r != nil && !m.hasTagNamed(r, c.Operand)
		}
		if !holds {
			failed = append(failed, wire.FailedCondition{Operation: uint32(i), Condition: n})
		}
	}
}

// hasTag reports whether r has a tag, encoded as in its element.
func (m *reference) hasTag(r *modelRecord, tag []byte) bool {
	element := wire.AppendExt(nil, wire.ExtTag, tag)
	return bytes.Contains(r.ext, element)
}

func (m *reference) hasTagNamed(r *modelRecord, name []byte) bool {
	for ext := r.ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			panic(err)
		}
		if ext = rest; t == wire.ExtTag && string(v[1:1+v[0]]) == string(name) {
			return true
		}
	}
	return false
}

func (m *reference) perform(ns uint32, it *wire.Item) (st wire.Status, rev wire.Revision, counter int64) {
	r := m.live(ns, it.Key)
	if it.Op == wire.OpDelete {
		if r == nil {
			return wire.StatusNotFound, 0, 0
		}
		return wire.StatusOK, m.remove(modelKey(ns, string(it.Key)), EffectDelete), 0
	}
	var mu wire.Mutation
	if ref := wire.DecodeMutation(it.Op, it.Ext, &mu); ref != nil {
		panic(ref)
	}
	switch it.Op {
	case wire.OpPut:
		return wire.StatusOK, m.put(ns, string(it.Key), wire.AppendKept(nil, it.Ext), it.Value, mu.TTLMs), 0
	case wire.OpTouch:
		if r == nil {
			return wire.StatusNotFound, 0, 0
		}
		return wire.StatusOK, m.put(ns, string(it.Key), r.ext, r.value, mu.TTLMs), 0
	}
	sum, ok := new(big.Int), true
	sum.SetInt64(int64(binary.LittleEndian.Uint64(it.Value)))
	if r == nil {
		counter = sum.Int64()
		return wire.StatusOK, m.put(ns, string(it.Key), nil, fmt.Append(nil, counter), mu.TTLMs), counter
	}
	old := new(big.Int)
	if ok = len(r.value) <= 20 && regexp.MustCompile(`^-?[0-9]+$`).Match(r.value); ok {
		old.SetString(string(r.value), 10)
	}
	if sum.Add(sum, old); !ok || !old.IsInt64() || !sum.IsInt64() {
		return wire.StatusNotANumber, 0, 0
	}
	counter = sum.Int64()
	deadline := r.meta.ExpiresAt
	rev = m.put(ns, string(it.Key), r.ext, fmt.Append(nil, counter), mu.TTLMs)
	if mu.TTLMs == 0 {
		m.records[modelKey(ns, string(it.Key))].meta.ExpiresAt = deadline
		m.effects[len(m.effects)-1].Record.Meta.ExpiresAt = deadline
	}
	return wire.StatusOK, rev, counter
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
	_, over := m.records[k]
	m.records[k] = &modelRecord{meta: meta, ext: bytes.Clone(ext), value: bytes.Clone(value)}
	m.effects = append(m.effects, Effect{Rev: meta.Version, Kind: EffectPut, Namespace: ns, Key: []byte(key), Record: wire.Record{Meta: meta, Ext: ext, Value: value}, Previous: over})
	return meta.Version
}

func (m *reference) remove(k string, kind EffectKind) wire.Revision {
	rev := m.rev()
	delete(m.records, k)
	m.effects = append(m.effects, Effect{Rev: rev, Kind: kind, Namespace: namespaceOf([]byte(k)), Key: userKey([]byte(k)), Previous: true})
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
		m.effects[len(m.effects)-1].Last = true // for itself
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
