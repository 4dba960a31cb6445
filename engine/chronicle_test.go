package engine

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"kvstore/wire"
)

// chronicle is a log with all that is known of it: what the reference makes of each entry, what an engine of
// the default options made of it, and a few snapshots of that engine's state. Everything follows from the seed.
type chronicle struct {
	seed  uint64
	steps []step
	// bytesMax bounds the kept answers of all sessions, like wire.SessionsBytesMax but low enough to be reached.
	bytesMax int64
	// onceBytesMax does the same for the answers to writes with an idempotency key.
	onceBytesMax int64
	model        *reference
	snapshots    []streamAt
	dump         []string // of the whole state, at the end
	// poison can't be applied. It stands behind the last step; nil: none.
	poison []byte
}

// step is one entry of the log. Indices may be missing between steps: those of entries that Raft keeps to itself.
type step struct {
	index, term   uint64
	configuration bool // body is one; else it is an entry
	body          []byte
	ops           []testOp
	done          outcome
}

// outcome is what an engine made of an entry: all that its callers can see of it.
type outcome struct {
	results []wire.Result
	effects uint64 // sum over them
	point   Point
	digest  [16]byte
}

// streamAt is a snapshot.
type streamAt struct {
	meta   SnapshotMeta
	stream []byte
}

// bubbleEpoch is what the clock of a synctest bubble shows at its beginning, Unix µs.
const bubbleEpoch = int64(946_684_800_000_000)

// author makes the entries of a chronicle: those of a workload, and what a workload of clients doesn't make.
type author struct {
	*workload
	rng  *rand.Rand
	term uint64
}

// newChronicle makes a log of about n entries.
func newChronicle(t testing.TB, seed uint64, n int) *chronicle {
	t.Helper()
	c := &chronicle{seed: seed, bytesMax: wire.SessionsBytesMax, onceBytesMax: wire.IdempotencyBytesMax, model: newReference()}
	a := &author{workload: newWorkload(seed), rng: rand.New(rand.NewPCG(seed, 20)), term: 1}
	switch a.rng.IntN(4) {
	case 0:
		a.now = 0
	case 1:
		a.now = -7e6
	case 2:
		a.now = bubbleEpoch - 30e6 // the clock of those that run in a bubble passes through the log's deadlines
	}
	if a.rng.IntN(2) == 0 {
		c.bytesMax = int64(2+a.rng.IntN(60)) * keptResultOverheadBytes
	}
	if a.rng.IntN(3) == 0 {
		c.onceBytesMax = wire.IdempotencyAnswerBytesMax + int64(1+a.rng.IntN(20))*wire.IdempotencyOverheadBytes
	}
	c.model.bytesMax, c.model.onceBytesMax = c.bytesMax, c.onceBytesMax

	r := &replica{t: t, c: c, rng: a.rng, o: engineOptions(t, memoryDir(t))}
	r.open()
	defer r.close()
	for len(c.steps) < n {
		s := a.step()
		if a.rng.IntN(60) == 0 && len(c.steps) > n*3/4 {
			a.now = math.MaxInt64 - 5e6 // the end of time
		}
		var want []wire.Result
		var effects []Effect
		if s.configuration {
			c.model.configuration(s.index)
		} else {
			if b := encodedAgain(t, s.body); !bytes.Equal(b, s.body) {
				t.Fatalf("seed %d (replay with -seed=%[1]d -chronicles=1): decoded and encoded again, the entry is %x, before %x\n%s", seed, b, s.body, s)
			}
			want = c.model.apply(s.index, s.body)
			effects = c.model.effects
		}
		s.done = r.apply(&s)
		if fault := differentResults(s.done.results, want); fault != "" {
			t.Fatalf("seed %d (replay with -seed=%[1]d -chronicles=1): the reference disagrees: %s\n%s", seed, fault, s)
		}
		if s.done.effects != sumEffects(effects) {
			t.Fatalf("seed %d (replay with -seed=%[1]d -chronicles=1): the reference has other effects: %+v\n%s", seed, effects, s)
		}
		a.learn(s.done.results)
		c.steps = append(c.steps, s)
		if a.rng.IntN(30) == 0 && len(c.snapshots) < 3 {
			c.snapshots = append(c.snapshots, r.snapshot())
		}
	}
	wantModelState(t, r.e, c.model)
	c.dump = r.dump()
	if a.rng.IntN(4) == 0 {
		c.poison = a.poisonous(c.steps[len(c.steps)-1].body)
	}
	return c
}

// encodedAgain decodes an entry and encodes what it says.
func encodedAgain(t testing.TB, entry []byte) []byte {
	t.Helper()
	var h wire.EntryHeader
	rest, err := wire.DecodeEntry(entry, &h)
	if err != nil {
		t.Fatal(err)
	}
	b := wire.AppendEntryHeader(nil)
	for range h.Count {
		var op wire.Op
		if rest, err = wire.NextOp(rest, &op); err != nil {
			t.Fatal(err)
		}
		b = wire.AppendOp(b, &op, slices.Concat(op.Ext, op.Key, op.Payload), len(op.Ext), len(op.Key))
	}
	wire.SealEntry(b, &h)
	return b
}

// step makes the next step.
func (a *author) step() step {
	if a.index > 0 && a.rng.IntN(12) == 0 {
		a.index += uint64(1 + a.rng.IntN(3)) // entries that never get here
	}
	if a.rng.IntN(12) == 0 {
		a.term += uint64(1 + a.rng.IntN(2))
	}
	s := step{term: a.term}
	if a.index > 0 && a.rng.IntN(15) == 0 {
		a.index++
		a.sent = a.sent[:0]
		s.index, s.configuration, s.body = a.index, true, fmt.Appendf(nil, "configuration %d", a.index)
		return s
	}
	s.index, s.body = a.next()
	if s.index > 1 && a.rng.IntN(4) == 0 {
		a.sent = append(a.sent[:0], a.special()...)
		s.body = sealEntry(a.now, a.sent...)
	}
	s.ops = append([]testOp(nil), a.sent...)
	switch a.rng.IntN(10) {
	case 0, 1:
		a.now -= int64(a.rng.IntN(8e6)) // the next entry may be of the same time, or of another leader's clock
	case 2:
		a.now += 400e6
	}
	return s
}

// special makes an entry that clients with good manners don't make.
func (a *author) special() (ops []testOp) {
	switch a.rng.IntN(9) {
	case 0: // nothing
	case 1: // many clients at once
		for range 20 {
			ops = append(ops, sessionOpenOp())
		}
	case 2: // many answers of one session: several J records
		s := a.session()
		for range 200 + a.rng.IntN(1200) {
			ops = append(ops, putOp("burst", nil, nil).session(s.id, s.next, s.floor))
			if a.rng.IntN(3) > 0 {
				s.next++
			}
		}
	case 3: // every session at the same time, in any order
		for _, i := range a.rng.Perm(len(a.sessions)) {
			s := a.sessions[i]
			ops = append(ops, putOp("same time", []byte{byte(i)}, nil).session(s.id, s.next, s.floor))
			s.next++
		}
	case 4: // more than one transaction of a small memtable holds
		for i := range 900 + a.rng.IntN(1200) {
			ops = append(ops, putOp(fmt.Sprintf("many/%04d", i%1500), []byte{byte(i)}, a.putExt("many")))
		}
	case 5: // larger than a piece
		b := bytes.Repeat([]byte{byte(a.rng.Uint32())}, 100<<10+a.rng.IntN(500<<10))
		ops = append(ops, putOp(a.key(), b, nil), putOp("large", b, nil))
	case 6: // bytes that no door lets through
		for range 1 + a.rng.IntN(8) {
			ops = append(ops, a.malformed())
		}
	case 7: // the same operation many times, and all that is due
		op := a.op()
		for range 1 + a.rng.IntN(20) {
			ops = append(ops, op)
		}
		ops = append(ops, expireOp(math.MaxUint32))
	case 8: // many keys, some of them several times
		for range 5 + a.rng.IntN(40) {
			ops = append(ops, a.onceWrite())
		}
	}
	return ops
}

// malformed makes an operation whose body says nothing.
func (a *author) malformed() testOp {
	noise := make([]byte, a.rng.IntN(40))
	for i := range noise {
		noise[i] = byte(a.rng.Uint32())
	}
	codes := []wire.Opcode{wire.OpPut, wire.OpDelete, wire.OpBatch, wire.OpTxn, wire.OpSessionOpen, wire.OpSessionClose,
		wire.OpExpire, wire.OpInit, wire.OpMember, wire.OpRecover, wire.OpGet, wire.OpWatch,
		wire.OpTouch, wire.OpIncrement, wire.OpNamespace, wire.OpLevel}
	o := testOp{wire.Op{Op: codes[a.rng.IntN(len(codes))], Namespace: 1, Payload: noise}}
	switch a.rng.IntN(5) {
	case 4:
		o = a.onceWrite().session(a.session().id, 1, 0)
		if a.rng.IntN(2) == 0 {
			o = putOp("k", nil, wire.AppendExt(nil, wire.ExtIdempotency, noise))
		}
	case 0:
		o.Ext, o.Key = noise, []byte(a.key())
	case 1:
		o.Key = noise
	case 2:
		o = o.session(a.session().id, a.rng.Uint64N(4), a.rng.Uint64N(4))
	}
	if level, err := wire.DecodeLevel(o.Payload); o.Op.Op == wire.OpLevel && err == nil && level == LevelNewest+1 {
		o.Payload = nil // an engine stops there: the level is a newer build's
	}
	return o
}

// poisonous makes an entry that no engine can apply.
func (a *author) poisonous(good []byte) []byte {
	b := bytes.Clone(good)
	switch {
	case a.rng.IntN(3) == 0 || len(b) <= wire.EntryHeaderBytes:
		b = sealEntry(a.now, putOp("k", nil, nil))
		wire.SealEntry(b, &wire.EntryHeader{Level: 1, Group: 2, Incarnation: 7, Proposal: 1, Time: a.now, Count: 1}) // another group's
	case a.rng.IntN(2) == 0:
		b = b[:a.rng.IntN(len(b))]
	default:
		b[a.rng.IntN(len(b))] ^= 1 << a.rng.IntN(8)
	}
	return b
}

func (s step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "index %d, term %d, %d bytes", s.index, s.term, len(s.body))
	if s.configuration {
		b.WriteString(", a configuration")
	}
	for i := range s.ops {
		if i == 40 {
			fmt.Fprintf(&b, "\n  … of %d", len(s.ops))
			break
		}
		o := &s.ops[i]
		fmt.Fprintf(&b, "\n  %2d %v key %q, session %d seq %d floor %d, ext %x, payload %d bytes %x", i, o.Op.Op, short(string(o.Key)), o.Session, o.Seq, o.Floor, short(string(o.Ext)), len(o.Payload), short(string(o.Payload)))
		if i < len(s.done.results) {
			fmt.Fprintf(&b, " -> %v rev %d", s.done.results[i].Status, s.done.results[i].Rev)
		}
	}
	return b.String()
}

// differentResults says where two answers to an entry differ; "" if nowhere.
func differentResults(got, want []wire.Result) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d results, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.Status != w.Status || g.Rev != w.Rev || g.Replayed != w.Replayed || !bytes.Equal(g.Payload, w.Payload) {
			return fmt.Sprintf("operation %d: got %+v, want %+v", i, g, w)
		}
	}
	return ""
}

// sumEffects tells effects apart that differ in anything.
func sumEffects(effects []Effect) uint64 {
	h := xxhash.New()
	for i := range effects {
		writeEffect(h, &effects[i])
	}
	return h.Sum64()
}

func writeEffect(w io.Writer, x *Effect) {
	// A hash takes everything.
	_, _ = fmt.Fprintf(w, "%d %d %d %q %+v %x %d %x %v %v\n", x.Rev, x.Kind, x.Namespace, x.Key, x.Record.Meta, x.Record.Ext, len(x.Record.Value), xxhash.Sum64(x.Record.Value), x.Last, x.Previous)
}
