package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kvstore/wire"
)

// What clients, clocks and restarts do to the session table, as a program of two bytes per action: a kind and its
// argument. Actions gather operations into an entry until one needs the entry to be applied.
const (
	playOpen      = iota
	playWrite     // the next number
	playGap       // a number further on
	playDuplicate // a write as it was sent before
	playFloor     // a write that says which answers have arrived
	playBeyond    // a number at the window's end, or beyond
	playBelow     // a number that is not above its own floor
	playUnknown   // a session that there never was
	playClose
	playMany  // many numbers at once
	playAll   // a write of each session, the last first
	playKind  // what the writes that follow are answered with
	playEntry // apply
	playTime  // apply; time goes on by a little
	playBack  // apply; another leader's clock is behind
	playIdle  // apply; time goes on until sessions end, or nearly
	playRestart
	plays // how many there are
)

// sessionMachine is what a program drives.
type sessionMachine interface {
	// apply applies an entry with the time stamp at.
	apply(at int64, ops []testOp) []wire.Result
	// restart comes back with what is stored. how says in which way.
	restart(how byte)
}

// player runs a program on a machine.
type player struct {
	m        sessionMachine
	now      int64
	kind     byte
	sessions []*playerSession
	ops      []testOp
	seen     map[string]int // answers, if they are to be counted
}

type playerSession struct {
	id, next, floor uint64
	sent            []testOp
}

// playerOpsMax bounds the operations of an entry, playerActionsMax the actions of a program.
const (
	playerOpsMax     = 2000
	playerActionsMax = 200
)

func (p *player) play(program []byte) {
	for n := 0; len(program) >= 2 && n < playerActionsMax; n++ {
		p.act(program[0]%plays, program[1])
		program = program[2:]
	}
	p.entry()
	p.m.restart(0)
}

func (p *player) act(action, arg byte) {
	if len(p.ops) >= playerOpsMax {
		p.entry()
	}
	s := p.session(arg >> 4)
	n := uint64(arg & 15)
	switch action {
	case playOpen:
		p.ops = append(p.ops, sessionOpenOp())
	case playWrite:
		p.write(s, s.next, s.floor)
	case playGap:
		p.write(s, s.next+n, s.floor)
	case playDuplicate:
		if k := len(s.sent); k > 0 {
			p.ops = append(p.ops, s.sent[k-1-int(n)%k])
		}
	case playFloor:
		if s.next > n {
			s.floor = max(s.floor, s.next-1-n)
		}
		p.write(s, s.next, s.floor)
	case playBeyond:
		p.write(s, s.floor+wire.SessionWindow+n%3-1, s.floor)
	case playBelow:
		p.write(s, s.next, s.next+n)
	case playUnknown:
		p.ops = append(p.ops, p.operation().session(1+n, 1, 0))
	case playClose:
		p.ops = append(p.ops, sessionCloseOp(s.id))
	case playMany:
		for range 10 * n {
			p.write(s, s.next, s.floor)
		}
	case playAll:
		for _, s := range slices.Backward(p.sessions) {
			p.write(s, s.next, s.floor)
		}
	case playKind:
		p.kind = arg
	case playEntry:
		p.entry()
	case playTime:
		p.entry()
		p.now += int64(arg) * 100_000
	case playBack:
		p.entry()
		p.now -= int64(arg) * 1_000_000
	case playIdle:
		p.entry()
		p.now += sessionTTL + int64(n%3) - 1
	case playRestart:
		p.entry()
		p.m.restart(arg)
	}
}

// session gives one of the newest sessions, one that nobody knows if there is none.
func (p *player) session(n byte) *playerSession {
	if k := len(p.sessions); k > 0 {
		return p.sessions[k-1-int(n)%k]
	}
	return &playerSession{id: 77, next: 1}
}

// write sends a write; the number that comes next lies behind it, if it is one that a client would choose.
func (p *player) write(s *playerSession, seq, floor uint64) {
	op := p.operation().session(s.id, seq, floor)
	p.ops = append(p.ops, op)
	s.sent = append(s.sent, op)
	if seq >= s.next && seq-s.next < 16 {
		s.next = seq + 1
	}
}

// operation makes a write whose answer is one of all sorts.
func (p *player) operation() testOp {
	switch p.kind % 5 {
	case 1: // a failed condition: an answer with a payload
		return putOp("none", nil, wire.AppendExtCondition(nil, wire.ConditionExists, nil))
	case 2: // an answer that is too long to be kept
		var items []wire.Item
		for i := range 40 {
			items = append(items, putItem(fmt.Sprint(i), "", nil))
		}
		return groupOp(wire.OpBatch, wire.GroupAtomic, items...)
	case 3:
		return deleteOp("none", nil)
	case 4: // refused for its bytes
		return putOp("", nil, nil)
	}
	return putOp("k", []byte{p.kind}, nil)
}

func (p *player) entry() {
	results := p.m.apply(p.now, p.ops)
	for i, res := range results {
		if p.seen != nil {
			p.seen[fmt.Sprintf("%v, replayed %v", res.Status, res.Replayed)]++
		}
		if p.ops[i].Op.Op != wire.OpSessionOpen {
			continue
		}
		if g, ok := wire.DecodeSessionGrant(res.Payload); ok {
			p.sessions = append(p.sessions, &playerSession{id: g.Session, next: 1})
		}
	}
	p.ops = p.ops[:0]
}

// tableMachine is the session table with a store of a map, beside the reference. It answers writes by their bytes
// alone, so that nothing but sessions is looked at.
type tableMachine struct {
	t      testing.TB
	model  *reference
	index  uint64
	now    int64
	table  *sessions
	digest digest
	mem    arena
	stored mapStorer
	revs   int
}

// mapStorer is a storer that keeps what it is given.
type mapStorer map[string][]byte

func (m mapStorer) set(key, value []byte) { m[string(key)] = bytes.Clone(value) }
func (m mapStorer) del(key []byte)        { delete(m, string(key)) }

func newTableMachine(t testing.TB, bytesMax int64) *tableMachine {
	m := &tableMachine{t: t, model: newReference(), table: newSessions(), stored: make(mapStorer)}
	m.model.apply(1, sealEntry(testEpoch, initOp()))
	m.index, m.now = 1, testEpoch
	m.model.bytesMax, m.table.bytesMax = bytesMax, bytesMax
	m.model.answer = func(model *reference, op *wire.Op) wire.Result { return answerTo(op, model.rev) }
	return m
}

// answerTo answers a write.
func answerTo(op *wire.Op, rev func() wire.Revision) wire.Result {
	switch {
	case op.Op == wire.OpDelete:
		return wire.Result{Status: wire.StatusNotFound}
	case op.Op == wire.OpBatch:
		return wire.Result{Rev: rev(), Payload: bytes.Repeat([]byte{7}, wire.SessionReplayBytesMax+1)}
	case len(op.Ext) > 0:
		return wire.Result{Status: wire.StatusConditionFailed, Payload: op.Ext}
	case len(op.Key) == 0:
		return wire.Result{Status: wire.StatusRetryLater} // not an answer: to be asked again
	}
	return wire.Result{Rev: rev()}
}

// apply does with the table what the applier does.
func (m *tableMachine) apply(at int64, ops []testOp) []wire.Result {
	m.t.Helper()
	m.index++
	m.now = max(m.now, at)
	m.revs = 0
	m.table.expire(m.now)
	var results []wire.Result
	for i := range ops {
		results = append(results, m.execute(&ops[i].Op))
	}
	m.table.flush(m.stored, &m.mem, &m.digest)
	m.mem.reset()
	if fault := differentResults(results, m.model.apply(m.index, sealEntry(at, ops...))); fault != "" {
		m.t.Fatalf("entry %d: the model disagrees: %s\n%s", m.index, fault, step{index: m.index, ops: ops})
	}
	m.verify()
	return results
}

func (m *tableMachine) rev() wire.Revision {
	m.revs++
	return wire.MakeRevision(m.index, m.revs-1)
}

func (m *tableMachine) execute(op *wire.Op) wire.Result {
	switch op.Op {
	case wire.OpSessionOpen:
		id := m.rev()
		if !m.table.open(id, m.now) {
			return wire.Result{Status: wire.StatusSessionsTooMany}
		}
		return wire.Result{Payload: wire.AppendSessionGrant(nil, wire.SessionGrant{Session: id, TTLMs: uint64(wire.SessionTTL / time.Millisecond)})}
	case wire.OpSessionClose:
		if !m.table.close(op.Session) {
			return wire.Result{Status: wire.StatusSessionExpired}
		}
		return wire.Result{}
	}
	if op.Seq <= op.Floor {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	s, res, answered := m.table.begin(op.Session, op.Seq, op.Floor, m.now)
	if answered {
		return res
	}
	res = answerTo(op, m.rev)
	m.table.keep(s, op.Seq, m.index, &res)
	return res
}

// verify compares the table with the model, and with what its own invariants say.
func (m *tableMachine) verify() {
	m.t.Helper()
	t := m.table
	if len(t.byID) != len(m.model.sessions) {
		m.t.Fatalf("entry %d: %d sessions, the model has %d", m.index, len(t.byID), len(m.model.sessions))
	}
	var kept int64
	live := make(map[journalPlace]int)
	for id, s := range t.byID {
		want := m.model.sessions[id]
		if want == nil || s.last != want.last || s.floor != want.floor || s.results.len() != len(want.results) {
			m.t.Fatalf("entry %d: session %d is %+v, the model has %+v", m.index, id, s, want)
		}
		all, err := s.results.all()
		if err != nil {
			m.t.Fatalf("entry %d: window of session %d: %v", m.index, id, err)
		}
		for seq, k := range all {
			w, ok := want.results[seq]
			if !ok || k.rev != w.Rev || k.status != w.Status || !bytes.Equal(k.payload, w.Payload) || seq <= s.floor || seq-s.floor > wire.SessionWindow {
				m.t.Fatalf("entry %d: answer %d of session %d is %+v, the model has %+v", m.index, seq, id, k, w)
			}
			kept += k.bytes()
			live[k.journal.place]++
		}
	}
	if kept != t.bytes {
		m.t.Fatalf("entry %d: %d bytes of answers are counted, %d are kept", m.index, t.bytes, kept)
	}
	journals, err := journalsOf(t)
	if err != nil {
		m.t.Fatalf("entry %d: %v", m.index, err)
	}
	for place, n := range live {
		stored, there := m.stored[string(appendJournalKey(nil, place))]
		if j := journals[place]; j.live != n || !j.stored || !there || j.digest != sealedDigest(appendJournalKey(nil, place), stored) {
			m.t.Fatalf("entry %d: journal record %v is %+v, %d answers point to it; stored %x", m.index, place, j, n, stored)
		}
	}
	if t.journal != nil || len(t.touched)+len(t.produced)+len(t.emptied) > 0 {
		m.t.Fatalf("entry %d: something is left of the entry: %+v", m.index, t)
	}
	linked := 0
	for s := t.idle.next; s != &t.idle; s = s.next {
		if linked++; t.byID[s.id] != s || s.prev != &t.idle && s.prev.last > s.last {
			m.t.Fatalf("entry %d: the idle ring is out of order at session %d", m.index, s.id)
		}
	}
	if linked != len(t.byID) {
		m.t.Fatalf("entry %d: %d sessions in the idle ring, %d in the table", m.index, linked, len(t.byID))
	}
	var sum digest
	for key, b := range m.stored {
		sum.add(sealedDigest([]byte(key), b))
	}
	if sum != m.digest || len(m.stored) != len(t.byID)+len(live) {
		m.t.Fatalf("entry %d: digest %x over %d records; carried along %x, %d sessions and %d journal records", m.index, sum, len(m.stored), m.digest, len(t.byID), len(live))
	}
}

// restart builds the table from what is stored, as loadSessions does, and compares it with the one that was there.
func (m *tableMachine) restart(byte) {
	m.t.Helper()
	t := newSessions()
	t.bytesMax = m.table.bytesMax
	keys := sortedKeys(m.stored)
	for _, key := range keys {
		if key[0] == familySession {
			s, err := decodeSession([]byte(key), m.stored[key])
			if err != nil {
				m.t.Fatalf("entry %d: %v", m.index, err)
			}
			t.byID[s.id] = s
		}
	}
	t.linkIdle()
	for _, key := range keys {
		if key[0] == familyJournal {
			if err := t.loadJournal([]byte(key), m.stored[key]); err != nil {
				m.t.Fatalf("entry %d: %v", m.index, err)
			}
		}
	}
	wantEqualSessions(m.t, m.table, t)
	m.table = t
	m.verify()
}

// FuzzSessionTable plays any program on the session table and on the model. The first byte bounds the kept
// answers: 0 not at all.
func FuzzSessionTable(f *testing.F) {
	for _, program := range sessionPrograms {
		f.Add(program)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) == 0 {
			return
		}
		p := player{m: newTableMachine(t, sessionBound(program[0])), now: testEpoch}
		p.play(program[1:])
	})
}

func sessionBound(b byte) int64 {
	if b == 0 {
		return wire.SessionsBytesMax
	}
	return int64(b) * keptResultOverheadBytes
}

// sessionPrograms are those that a fuzzer would need long to find.
var sessionPrograms = [][]byte{
	{0, playOpen, 0, playEntry, 0, playWrite, 0, playEntry, 0, playDuplicate, 0, playRestart, 0, playDuplicate, 0},
	{0, playOpen, 0, playOpen, 0, playEntry, 0, playMany, 15, playMany, 0x1f, playRestart, 0, playFloor, 3, playFloor, 0x10, playRestart, 0, playDuplicate, 9},
	{2, playOpen, 0, playOpen, 0, playOpen, 0, playEntry, 0, playWrite, 0x10, playWrite, 0x20, playRestart, 0, playWrite, 0, playEntry, 0, playDuplicate, 0x10, playDuplicate, 0x20},
	{5, playOpen, 0, playOpen, 0, playOpen, 0, playOpen, 0, playEntry, 0, playAll, 0, playAll, 0, playRestart, 0, playAll, 0, playTime, 1, playAll, 0},
	{0, playOpen, 0, playEntry, 0, playWrite, 0, playIdle, 1, playDuplicate, 0, playIdle, 2, playDuplicate, 0, playEntry, 0, playUnknown, 1},
	{0, playOpen, 0, playEntry, 0, playBeyond, 0, playBeyond, 1, playBeyond, 2, playBelow, 0, playBelow, 3, playGap, 7, playBack, 200, playWrite, 0, playRestart, 0},
	{0, playOpen, 0, playEntry, 0, playKind, 1, playWrite, 0, playKind, 2, playWrite, 0, playKind, 3, playWrite, 0, playKind, 4, playWrite, 0, playRestart, 0, playDuplicate, 0, playDuplicate, 1, playDuplicate, 2, playDuplicate, 3},
	{9, playOpen, 0, playEntry, 0, playMany, 15, playOpen, 0, playEntry, 0, playWrite, 0, playWrite, 0x10, playClose, 0x10, playClose, 0x10, playWrite, 0x10, playRestart, 0},
}

// randomProgram makes a program that opens sessions first.
func randomProgram(rng *rand.Rand) []byte {
	program := []byte{byte(rng.IntN(3) * rng.IntN(30)), playOpen, 0, playOpen, 0, playOpen, 0, playEntry, 0}
	for range 20 + rng.IntN(120) {
		action := rng.IntN(plays)
		if action == playMany && rng.IntN(4) > 0 {
			action = playWrite
		}
		program = append(program, byte(action), byte(rng.Uint32()))
	}
	return program
}

func TestSessionTable_RandomPrograms_AgreeWithTheModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 40))
	n := 1000
	if testing.Short() {
		n = 100
	}
	seen := make(map[string]int)
	for range n {
		program := randomProgram(rng)
		p := player{m: newTableMachine(t, sessionBound(program[0])), now: testEpoch, seen: seen}
		p.play(program[1:])
	}
	// What the programs never meet is not tested.
	for _, answer := range []string{
		"OK, replayed false", "OK, replayed true", "CONDITION_FAILED, replayed true", "NOT_FOUND, replayed true",
		"SESSION_STALE, replayed false", "SESSION_EXPIRED, replayed false", "RETRY_LATER, replayed false", "BAD_REQUEST, replayed false",
	} {
		if seen[answer] < n/20 {
			t.Errorf("%q was answered %d times only: %v", answer, seen[answer], seen)
		}
	}
}

// engineMachine is a whole engine beside the reference. Its restarts are closings, crashes with replay, and
// journeys to another directory by a snapshot.
type engineMachine struct {
	*replica
	index uint64
}

func (m *engineMachine) apply(at int64, ops []testOp) []wire.Result {
	m.t.Helper()
	m.index++
	s := step{index: m.index, term: 1, body: sealEntry(at, ops...), ops: slices.Clone(ops)}
	want := m.c.model.apply(s.index, s.body)
	s.done = m.replica.apply(&s)
	if fault := differentResults(s.done.results, want); fault != "" {
		m.fatal("the model disagrees: %s\n%s", fault, s)
	}
	m.c.steps = append(m.c.steps, s)
	return want
}

func (m *engineMachine) restart(how byte) {
	m.t.Helper()
	before := m.dump()
	switch how % 3 {
	case 0:
		m.close()
		m.open()
	case 1:
		m.crash()
		m.open()
		for i := range m.c.steps {
			if s := &m.c.steps[i]; s.index > m.applied() {
				m.follow(s)
			}
		}
	case 2:
		s := m.snapshot()
		m.close()
		m.o.Dir = memoryDir(m.t)
		m.open()
		m.install(s)
	}
	if diff := differentDumps(m.dump(), before); diff != "" {
		m.fatal("restart %d at %d changed the state:\n%s", how%3, m.index, diff)
	}
	m.repeat()
}

// TestSessions_RandomProgramsOnAnEngine_AgreeWithTheModel plays programs on whole engines, with restarts of each sort.
func TestSessions_RandomProgramsOnAnEngine_AgreeWithTheModel(t *testing.T) {
	seed := testSeed(t)
	n := uint64(20)
	if testing.Short() {
		n = 3
	}
	for i := range n {
		rng := rand.New(rand.NewPCG(seed+i, 41))
		program := randomProgram(rng)
		c := &chronicle{seed: seed + i, bytesMax: sessionBound(program[0]), onceBytesMax: wire.IdempotencyBytesMax, model: newReference()}
		c.model.bytesMax = c.bytesMax
		m := &engineMachine{replica: &replica{t: t, c: c, rng: rng, o: anyOptions(t, rng, memoryDir(t))}}
		playOnEngine(m, program)
	}
}

func playOnEngine(m *engineMachine, program []byte) {
	m.open()
	defer m.abandon()
	m.apply(testEpoch, []testOp{initOp()})
	p := player{m: m, now: testEpoch}
	p.play(program[1:])
	wantModelState(m.t, m.e, m.c.model)
	m.check("verify the digest", m.e.VerifyDigest(m.t.Context()))
	m.close()
}
