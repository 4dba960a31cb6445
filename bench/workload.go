package bench

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// Op is a kind of operation as reports name it.
type Op uint8

// The operations. Read, update and insert are YCSB's names for get and put.
const (
	OpGet Op = iota
	OpPut
	OpRead
	OpUpdate
	OpInsert
	OpScan
	OpReadModifyWrite
	OpBatchPut
	OpBatchGet
	OpTxn

	opCount
)

var opNames = [opCount]string{"get", "put", "read", "update", "insert", "scan", "rmw", "batch_put", "batch_get", "txn"}

// String gives the name used in reports and assertions.
func (o Op) String() string { return opNames[o] }

// distribution says how a workload draws the keys of its reads and updates.
type distribution uint8

const (
	byOption distribution = iota
	zipfian
	latest
)

type share struct {
	op Op
	// part is the operation's share of all; negative means Options.Reads, or the rest after it.
	part float64
}

const (
	partReads = -1
	partRest  = -2
)

type workload struct {
	shares []share
	keys   distribution
	// noLoad: the workload needs no key to exist.
	noLoad bool
}

// ScanItemsMax is the longest scan of YCSB E; lengths are uniform from 1.
const ScanItemsMax = 100

// workloads: A to F are the core workloads of YCSB with their parameters (workloads/workloada to f).
var workloads = map[string]workload{
	"put":       {shares: []share{{OpPut, 1}}, noLoad: true},
	"get":       {shares: []share{{OpGet, 1}}},
	"mixed":     {shares: []share{{OpGet, partReads}, {OpPut, partRest}}},
	"batch-put": {shares: []share{{OpBatchPut, 1}}, noLoad: true},
	"batch-get": {shares: []share{{OpBatchGet, 1}}},
	"txn":       {shares: []share{{OpTxn, 1}}},
	"ycsb-a":    {shares: []share{{OpRead, 0.5}, {OpUpdate, 0.5}}, keys: zipfian},
	"ycsb-b":    {shares: []share{{OpRead, 0.95}, {OpUpdate, 0.05}}, keys: zipfian},
	"ycsb-c":    {shares: []share{{OpRead, 1}}, keys: zipfian},
	"ycsb-d":    {shares: []share{{OpRead, 0.95}, {OpInsert, 0.05}}, keys: latest},
	"ycsb-e":    {shares: []share{{OpScan, 0.95}, {OpInsert, 0.05}}, keys: zipfian},
	"ycsb-f":    {shares: []share{{OpRead, 0.5}, {OpReadModifyWrite, 0.5}}, keys: zipfian},
}

// HotKeys is how many keys the hot distribution draws from: few enough to stay in any cache, and more than the callers, so
// that they seldom meet.
const HotKeys = 1000

// Distributions lists the names that Options.Distribution takes.
func Distributions() []string { return []string{"uniform", "zipfian", "hot"} }

// Workloads lists the names that Options.Workload takes.
func Workloads() []string { return slices.Sorted(maps.Keys(workloads)) }

// async reports whether all operations of w can be kept in flight from one goroutine.
func (w workload) async() bool {
	for _, s := range w.shares {
		if s.op >= OpScan && s.op != OpReadModifyWrite {
			return false
		}
	}
	return true
}

func (w workload) insertShare() float64 {
	for _, s := range w.shares {
		if s.op == OpInsert {
			return s.part
		}
	}
	return 0
}

// plan is what all workers of a run share. Immutable, except for the insert sequence's own state.
type plan struct {
	opts    Options
	load    workload
	shares  []share
	keys    *keySpace
	fill    *filler
	inserts *insertSequence
	// space is the key space of scrambled draws: the loaded keys and twice the expected inserts, as in
	// YCSB. A closed loop does not know its number of operations: one per key is assumed. Keys beyond the
	// space are inserted all the same, only never drawn.
	space int64
	// zeta is the sum that latest starts from, made once for all workers; 0 where nobody needs it.
	zeta float64
}

func newPlan(o Options) *plan {
	w := workloads[o.Workload]
	p := &plan{opts: o, load: w, keys: newKeySpace(o.KeyPrefix, o.Keys), fill: newFiller(o.Seed, o.ValueBytes), inserts: newInsertSequence(int64(o.Keys))}
	for _, s := range w.shares {
		switch s.part {
		case partReads:
			s.part = o.Reads
		case partRest:
			s.part = 1 - o.Reads
		}
		p.shares = append(p.shares, s)
	}
	expected := float64(o.Keys)
	if o.Rate > 0 {
		expected = o.Rate * (o.Duration + o.Warmup).Seconds()
	}
	if w.keys == latest {
		p.zeta = zeta(0, int64(o.Keys), ZipfianTheta, 0)
	}
	p.space = int64(o.Keys) + int64(2*expected*w.insertShare())
	return p
}

// request is one drawn operation. Its slices belong to the generator until its next draw, but values
// point into the filler and stay.
type request struct {
	op     Op
	number int64
	key    string
	value  []byte
	items  int
	keys   []string
	values [][]byte
}

// generator draws the operations of one worker. Owned by it.
type generator struct {
	plan *plan
	rng  *rand.Rand
	pick chooser
}

func newGenerator(p *plan, worker int) *generator {
	rng := rand.New(rand.NewPCG(p.opts.Seed, uint64(worker)+1))
	g := &generator{plan: p, rng: rng}
	switch {
	case p.load.keys == latest:
		g.pick = latestChooser{newZipfian(rng, int64(p.opts.Keys), ZipfianTheta, p.zeta)}
	case p.load.keys == zipfian || p.opts.Distribution == "zipfian":
		g.pick = newScrambledChooser(rng, p.space)
	case p.opts.Distribution == "hot":
		g.pick = hotChooser{rng}
	default:
		g.pick = uniformChooser{rng}
	}
	return g
}

// next draws into r.
func (g *generator) next(r *request) {
	r.op = g.op()
	switch r.op {
	case OpInsert:
		r.number = g.plan.inserts.take()
		r.key = g.plan.keys.name(r.number)
		r.value = g.plan.fill.value(g.rng)
	case OpBatchGet, OpBatchPut, OpTxn:
		r.keys, r.values = r.keys[:0], r.values[:0]
		for range g.plan.opts.Batch {
			r.keys = append(r.keys, g.key())
			r.values = append(r.values, g.plan.fill.value(g.rng))
		}
	default:
		r.key = g.key()
		switch r.op {
		case OpScan:
			r.items = 1 + g.rng.IntN(ScanItemsMax)
		case OpPut, OpUpdate, OpReadModifyWrite:
			r.value = g.plan.fill.value(g.rng)
		}
	}
}

func (g *generator) key() string {
	return g.plan.keys.name(g.pick.next(g.plan.inserts.last.Load()))
}

func (g *generator) op() Op {
	shares := g.plan.shares
	if len(shares) == 1 {
		return shares[0].op
	}
	u := g.rng.Float64()
	for _, s := range shares[:len(shares)-1] {
		if u < s.part {
			return s.op
		}
		u -= s.part
	}
	return shares[len(shares)-1].op
}
