package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

const (
	// registersAtOnce and registerOps: with some 600 operations a second a key is in use for about as long as
	// a fault lasts, and has few enough operations for the checker.
	registersAtOnce = 16
	registerOps     = 250
	// linearTimeout bounds one operation. It is longer than any fault, so that what a frozen or cut-off node
	// was asked is answered after the fault: that answer is what the test is about.
	linearTimeout = 8 * time.Second
	// readsAtOnce bounds the unanswered reads of one channel, which asks on while a node is silent.
	readsAtOnce = 300
	readEvery   = 35 * time.Millisecond
)

// register is one key and what its callers were told.
type register struct {
	// Immutable.
	key string

	mu sync.Mutex
	// Guarded by mu.
	ops  []porcupine.Operation
	last uint64 // the newest version that anybody was told
}

// linear is a load on registers, through several channels.
type linear struct {
	// Immutable.
	t     *testing.T
	began time.Time
	seed  uint64
	ctx   context.Context // of the load
	end   context.CancelFunc
	work  sync.WaitGroup

	values             atomic.Int64
	good, bad, unknown atomic.Int64
	streams            atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	slots []*register
	calls []int // operations begun on each slot's register
	all   []*register
}

// channel is one way to the store.
type channel struct {
	name string
	// apply does one operation. It reports false when the operation surely had no effect and told nothing.
	apply func(key string, in registerInput) (registerOutput, bool)

	asked, answered, good atomic.Int64
}

func newLinear(t *testing.T, seed uint64) *linear {
	l := &linear{t: t, began: time.Now(), seed: seed, slots: make([]*register, registersAtOnce), calls: make([]int, registersAtOnce)}
	l.ctx, l.end = context.WithCancel(context.Background())
	for i := range l.slots {
		l.renew(i)
	}
	t.Cleanup(func() {
		l.end()
		l.work.Wait()
	})
	return l
}

// renew puts a fresh key into a slot. REQUIRES: mu held, or nobody else knows l.
func (l *linear) renew(i int) {
	r := &register{key: fmt.Sprintf("register/%04d", len(l.all))}
	l.slots[i], l.calls[i] = r, 0
	l.all = append(l.all, r)
}

func (l *linear) pick(rng *rand.Rand) *register {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := rng.IntN(len(l.slots))
	if l.calls[i]++; l.calls[i] > registerOps {
		l.renew(i)
		l.calls[i] = 1
	}
	return l.slots[i]
}

// one does one operation of a kind and keeps what came of it.
func (l *linear) one(c *channel, rng *rand.Rand, kind registerKind) {
	r := l.pick(rng)
	in := registerInput{kind: kind, where: c.name}
	if kind == writeRegister || kind == swapRegister {
		in.value = "v" + strconv.FormatInt(l.values.Add(1), 10)
	}
	if kind == swapRegister {
		r.mu.Lock()
		in.if_ = r.last
		r.mu.Unlock()
		if in.if_ == 0 {
			in.if_ = 1 // a version that no key of this test ever has
		}
	}
	c.asked.Add(1)
	call := time.Since(l.began)
	out, ok := c.apply(r.key, in)
	back := time.Since(l.began)
	c.answered.Add(1)
	switch {
	case !ok:
		l.bad.Add(1)
		return
	case out.unknown:
		l.unknown.Add(1)
	default:
		l.good.Add(1)
		c.good.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = max(r.last, out.version)
	r.ops = append(r.ops, porcupine.Operation{Input: in, Output: out, Call: int64(call), Return: int64(back)})
}

// drive puts a channel under load until stop: one caller that writes, swaps, deletes and reads, one
// operation after the other, and reads beside it that do not wait for each other.
func (l *linear) drive(c *channel, stop <-chan struct{}) {
	rng := random(l.seed, int(l.streams.Add(1)))
	reads := random(l.seed, int(l.streams.Add(1)))
	stopped := func() bool {
		select {
		case <-stop:
			return true
		case <-l.ctx.Done():
			return true
		default:
			return false
		}
	}
	l.work.Go(func() { // ends with stop
		for !stopped() {
			kind := readRegister
			switch p := rng.IntN(100); {
			case p < 35:
				kind = writeRegister
			case p < 65:
				kind = swapRegister
			case p < 72:
				kind = deleteRegister
			}
			bad := l.bad.Load()
			l.one(c, rng, kind)
			pause := time.Duration(5+rng.IntN(10)) * time.Millisecond
			if l.bad.Load() > bad {
				pause *= 5 // a node that is down is not asked in a tight loop
			}
			time.Sleep(pause)
		}
	})
	l.work.Go(func() { // ends with stop, and with its reads
		var open sync.WaitGroup
		defer open.Wait()
		tick := time.NewTicker(readEvery)
		defer tick.Stop()
		for !stopped() {
			<-tick.C
			if c.asked.Load()-c.answered.Load() < readsAtOnce {
				mine := rand.New(rand.NewPCG(reads.Uint64(), 0))
				open.Go(func() { l.one(c, mine, readRegister) }) // ends with its answer or linearTimeout
			}
		}
	})
}

// waitGood waits for n more operations whose outcome is known.
func (l *linear) waitGood(n int64) {
	l.t.Helper()
	want := l.good.Load() + n
	eventually(l.t, fmt.Sprintf("%d more operations succeed", n), func() (bool, error) { return l.good.Load() >= want, nil })
}

// binaryChannel goes through the Go client, which is told of one node alone.
func binaryChannel(t *testing.T, n *testcluster.Node, name string) *channel {
	t.Helper()
	c := openAt(t, []string{n.Addr()}, client.WithTimeout(linearTimeout), client.WithName(name))
	ctx := context.Background()
	written := func(v client.Version, err error) (registerOutput, bool) {
		switch {
		case err == nil:
			return registerOutput{version: uint64(v)}, true
		case errors.Is(err, client.ErrConditionFailed):
			return registerOutput{failed: true}, true
		case errors.Is(err, client.ErrNotApplied):
			return registerOutput{}, false
		case errors.Is(err, client.ErrMaybeApplied):
			return registerOutput{unknown: true}, true
		}
		t.Errorf("%s: an error of a write that is neither ErrNotApplied nor ErrMaybeApplied: %v", name, err)
		return registerOutput{unknown: true}, true
	}
	return &channel{name: name, apply: func(key string, in registerInput) (registerOutput, bool) {
		switch in.kind {
		case readRegister:
			v, err := c.Get(ctx, key)
			if errors.Is(err, client.ErrNotFound) {
				return registerOutput{}, true
			}
			return registerOutput{found: true, value: string(v.Data), version: uint64(v.Version)}, err == nil
		case writeRegister:
			return written(c.Put(ctx, key, []byte(in.value)))
		case swapRegister:
			return written(c.Put(ctx, key, []byte(in.value), client.IfVersion(client.Version(in.if_))))
		default:
			deleted, v, err := c.Delete(ctx, key)
			out, ok := written(v, err)
			if out.found = deleted && err == nil; !out.found {
				out.version = 0
			}
			return out, ok
		}
	}}
}

// restChannel asks one node by REST, whether it leads or not.
func restChannel(t *testing.T, n *testcluster.Node, name string) *channel {
	t.Helper()
	c := openREST(t, n, linearTimeout)
	ctx := context.Background()
	written := func(r *restReply, err error) (registerOutput, bool) {
		switch o, failed := r.writeOutcome(err); {
		case failed:
			return registerOutput{failed: true}, true
		case o == acked:
			return registerOutput{version: r.version()}, true
		case o == refused:
			return registerOutput{}, false
		}
		return registerOutput{unknown: true}, true
	}
	return &channel{name: name, apply: func(key string, in registerInput) (registerOutput, bool) {
		switch in.kind {
		case readRegister:
			r, err := c.do(ctx, http.MethodGet, keyPath(key), nil, nil)
			switch {
			case err != nil:
				return registerOutput{}, false
			case r.status == http.StatusNotFound:
				return registerOutput{}, true
			}
			return registerOutput{found: true, value: string(r.body), version: r.version()}, r.status == http.StatusOK
		case writeRegister:
			return written(c.do(ctx, http.MethodPut, keyPath(key), nil, []byte(in.value)))
		case swapRegister:
			return written(c.do(ctx, http.MethodPut, keyPath(key), map[string]string{"If-Match": fmt.Sprintf("%q", strconv.FormatUint(in.if_, 10))}, []byte(in.value)))
		default:
			r, err := c.do(ctx, http.MethodDelete, keyPath(key), nil, nil)
			out, ok := written(r, err)
			if !ok || out.unknown {
				return out, ok
			}
			var body struct {
				Deleted bool   `json:"deleted"`
				Version string `json:"version"`
			}
			if err := json.Unmarshal(r.body, &body); err != nil {
				t.Errorf("%s: the answer to a DELETE is no JSON: %v: %s", name, err, r)
				return registerOutput{unknown: true}, true
			}
			if out.found, out.version = body.Deleted, 0; body.Deleted {
				v, err := strconv.ParseUint(body.Version, 10, 64)
				if err != nil {
					t.Errorf("%s: the answer to a DELETE has no version: %s", name, r)
				}
				out.version = v
			}
			return out, true
		}
	}}
}

// linearFault is one fault that the leader meets.
type linearFault struct {
	name   string
	strike func(c *testcluster.Cluster, leader int) error
	// struck tells whether the fault took hold; it is asked before mend.
	struck func(c *testcluster.Cluster, leader int) error
	mend   func(c *testcluster.Cluster, leader int) error
	silent bool // the node lives but answers nobody, or is believed by nobody: it must be asked meanwhile
}

func linearFaults(rng *rand.Rand) []linearFault {
	isHeld := func(c *testcluster.Cluster, leader int) error {
		if c.Net().HeldAround(c.ID(leader)) == 0 {
			return errors.New("the cut has held nothing")
		}
		return nil
	}
	heal := func(c *testcluster.Cluster, _ int) error {
		// What was sent into the cut arrives late, or never.
		if rng.IntN(2) == 0 {
			c.Net().Heal()
		} else {
			c.Net().HealLosing()
		}
		return nil
	}
	each := func(c *testcluster.Cluster, leader int, f func(other string)) {
		for i := range c.Size() {
			if i != leader {
				f(c.ID(i))
			}
		}
	}
	return []linearFault{
		{name: "kill -9",
			strike: func(c *testcluster.Cluster, leader int) error { c.Kill(leader); return nil },
			struck: func(c *testcluster.Cluster, leader int) error {
				if c.Node(leader).Running() {
					return errors.New("it runs")
				}
				return nil
			},
			mend: func(c *testcluster.Cluster, leader int) error {
				c.Node(leader).Launch()
				return c.Node(leader).WaitReady()
			}},
		{name: "SIGSTOP", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error { return c.Node(leader).Freeze() },
			struck: func(c *testcluster.Cluster, leader int) error { return c.Ended() },
			mend:   func(c *testcluster.Cluster, leader int) error { c.Node(leader).Thaw(); return nil }},
		{name: "partition", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error { c.Net().Isolate(c.ID(leader)); return nil },
			struck: isHeld, mend: heal},
		{name: "leader not heard", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error {
				each(c, leader, func(id string) { c.Net().Cut(c.ID(leader), id) })
				return nil
			}, struck: isHeld, mend: heal},
		{name: "answers come late, then leader not heard", silent: true,
			// The leader counts on answers that are old already when they come: only one that counts from when it
			// has asked knows how little they are worth.
			strike: func(c *testcluster.Cluster, leader int) error {
				each(c, leader, func(id string) { c.Net().Delay(id, c.ID(leader), 500*time.Millisecond) })
				time.Sleep(250 * time.Millisecond) // two heartbeats, whose answers are on their way then
				each(c, leader, func(id string) { c.Net().Cut(c.ID(leader), id) })
				return nil
			}, struck: isHeld, mend: heal},
		{name: "leader hears nothing", silent: true,
			strike: func(c *testcluster.Cluster, leader int) error {
				each(c, leader, func(id string) { c.Net().Cut(id, c.ID(leader)) })
				return nil
			}, struck: isHeld, mend: heal},
	}
}

// TestLinearizable_LeaderFaultsUnderLoad_EveryAnswerFitsOneOrder lets callers read and write through every node,
// by the binary protocol and by REST, while the leader is killed, frozen for longer than any lease, and cut
// off, in both directions and in one. Meanwhile the old leader is asked on, and a new one takes writes: an
// answer of the old one that knows nothing of them is what the checker looks for. TestRegisterChecker… shows
// that it finds such answers.
func TestLinearizable_LeaderFaultsUnderLoad_EveryAnswerFitsOneOrder(t *testing.T) {
	for _, mode := range []string{"lease", "readindex"} {
		if testing.Short() && mode != "lease" {
			continue
		}
		t.Run(mode, func(t *testing.T) { linearizable(t, mode) })
	}
}

func linearizable(t *testing.T, mode string) {
	s := seed(t)
	rng := random(s, 0)
	faults := linearFaults(rng)
	if mode != "lease" {
		faults = faults[1:3] // where a wrong read would show: those that leave the old leader alive
	} else if testing.Short() {
		faults = faults[:3]
	}
	l := runLinear(t, s, testcluster.ClusterOptions{Settings: map[string]string{"read-mode": mode}}, faults, count(t, "LINEAR_ROUNDS", 1, 1))
	for _, err := range l.check() {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("LINEAR_ROUNDS=… %s=%d go test ./test -run TestLinearizable_Leader -count=1", seedEnv, s)
	}
}

// TestLinearizable_LeaseThatNeverEnds_IsFoundOut is the control: a store in which a node that has led serves reads
// until it hears of a newer term, instead of for the length of its lease. The same load, the same fault and
// the same checker must see it.
func TestLinearizable_LeaseThatNeverEnds_IsFoundOut(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	s := seed(t)
	binary := buildChanged(t, change{
		"consensus/lease.go", "	if term == 0 {\n		return false\n",
		"	if term == 0 {\n		s := g.lease.span.Load()\n		return s != nil && s.term == g.raft.CurrentTerm()\n",
	})
	l := runLinear(t, s, testcluster.ClusterOptions{Binary: binary, Quiet: true}, linearFaults(random(s, 0))[2:3], 1)
	wrong := l.check()
	if len(wrong) == 0 {
		t.Error("stale reads were not found out: the load, the fault or the checker proves nothing")
	}
	t.Logf("%d keys with a wrong answer, as it must be", len(wrong))
}

// runLinear puts a cluster under load and lets its leader meet the faults, one after the other.
func runLinear(t *testing.T, s uint64, o testcluster.ClusterOptions, faults []linearFault, rounds int) *linear {
	c := testcluster.StartCluster(t, o)
	l := newLinear(t, s)
	t.Logf("second 0 of all times is %s", l.began.Format("15:04:05.000000"))
	never := make(chan struct{})
	var channels []*channel
	for i, n := range c.Nodes() {
		channels = append(channels, binaryChannel(t, n, c.ID(i)+" binary"), restChannel(t, n, c.ID(i)+" rest"))
	}
	for _, ch := range channels {
		l.drive(ch, never)
	}
	for round := range rounds {
		for i, f := range faults {
			l.strike(c, f, channels, fmt.Sprintf("%d.%d", round, i))
		}
	}
	l.end()
	l.work.Wait()
	c.MustConverge()
	return l
}

// strike lets the leader meet one fault, with writes through a new leader meanwhile.
func (l *linear) strike(c *testcluster.Cluster, f linearFault, channels []*channel, n string) {
	t := l.t
	l.waitGood(200)
	old := c.MustLead()
	began := time.Now()
	if err := f.strike(c, old); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	leader, err := c.LeaderOtherThan(ctx, old)
	if err != nil {
		t.Fatalf("%s of %s: %v", f.name, c.ID(old), err)
	}
	elected := time.Since(began)

	// Callers who know the new leader alone.
	stop := make(chan struct{})
	fresh := []*channel{binaryChannel(t, c.Node(leader), n+" fresh binary"), restChannel(t, c.Node(leader), n+" fresh rest")}
	for _, ch := range fresh {
		l.drive(ch, stop)
	}
	before := askedOf(channels, c.ID(old))
	l.waitGood(20)
	first := time.Since(began)
	// Long enough for many questions to the old leader after the new one has taken writes.
	eventually(t, "the new leader works", func() (bool, error) {
		return fresh[0].good.Load() >= 60 && fresh[1].good.Load() >= 30 && time.Since(began) > first+time.Second, nil
	})
	if err := f.struck(c, old); err != nil {
		t.Errorf("%s of %s never struck: %v", f.name, c.ID(old), err)
	}
	asked := askedOf(channels, c.ID(old)) - before
	if f.silent && asked < 10 {
		t.Errorf("%s of %s proves nothing: the node was asked only %d times meanwhile", f.name, c.ID(old), asked)
	}
	lasted := time.Since(began)
	if err := f.mend(c, old); err != nil {
		t.Fatalf("%s of %s: %v", f.name, c.ID(old), err)
	}
	l.waitGood(200)
	close(stop)
	t.Logf("%.3f to %.3f: %s of %s: new leader %s after %v, 20 more good operations after %v; old leader asked %d times meanwhile", began.Sub(l.began).Seconds(), (began.Sub(l.began) + lasted).Seconds(),
		f.name, c.ID(old), c.ID(leader), elected.Round(time.Millisecond), first.Round(time.Millisecond), asked)
}

// askedOf counts the operations that the channels to one node have begun.
func askedOf(channels []*channel, id string) (n int64) {
	for _, ch := range channels {
		if strings.HasPrefix(ch.name, id+" ") {
			n += ch.asked.Load()
		}
	}
	return n
}

// check judges all registers and gives what is wrong with them. REQUIRES: the load has ended.
func (l *linear) check() (wrong []error) {
	t := l.t
	began := time.Now()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards wrong
		limit = make(chan struct{}, 2)
		open  atomic.Int64
		most  int
	)
	for _, r := range l.all {
		most = max(most, len(r.ops))
		wg.Go(func() { // ends with the check
			limit <- struct{}{}
			defer func() { <-limit }()
			switch err := checkRegister(r.ops); {
			case errors.Is(err, errCheckTooLong):
				open.Add(1)
			case err != nil:
				mu.Lock()
				wrong = append(wrong, fmt.Errorf("%s: %w", r.key, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	good, unknown := l.good.Load(), l.unknown.Load()
	t.Logf("%d operations done, %d surely not done or unanswered reads, %d unknown, over %d keys with at most %d operations each; %d keys unchecked; checked in %v",
		good, l.bad.Load(), unknown, len(l.all), most, open.Load(), time.Since(began).Round(time.Millisecond))
	if good < 100 {
		t.Errorf("only %d operations succeeded: the test proves nothing", good)
	}
	if k := open.Load(); k > int64(len(l.all)/10) {
		t.Errorf("%d of %d keys could not be checked in time", k, len(l.all))
	}
	return wrong
}
