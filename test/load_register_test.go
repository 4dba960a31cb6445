package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
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
	registerOps     = 300
	// unknownsMax bounds the writes of one key whose outcome is unknown: each is an interval without an end, and the
	// search grows with those.
	unknownsMax = 8
	// linearTimeout bounds one operation. It is longer than any fault, so that what a frozen or cut-off node
	// was asked is answered after the fault: that answer is what the test is about.
	linearTimeout = 8 * time.Second
	// readsAtOnce bounds the unanswered reads of one channel, which asks on while a node is silent.
	readsAtOnce = 300
	// anomalyLines bounds what is shown of a history that is wrong.
	anomalyLines = 60
)

// register is one key and what its callers were told. Guarded by linear.mu, but for the key.
type register struct {
	key     string // immutable
	ops     []porcupine.Operation
	last    uint64 // the newest version that anybody was told
	calls   int    // operations begun
	open    int    // of these not ended yet
	unknown int    // of these ended with an unknown outcome
	retired bool   // no more operations begin
	judged  bool   // ops belongs to the checker, or is gone
}

// pace is how much each channel is asked.
type pace struct {
	callers   int           // each does one operation after the other
	pause     time.Duration // the least between two operations of one caller; the most is three times that
	readEvery time.Duration // between two reads that do not wait for each other
}

// linear is a load on registers, through several channels, and the judgement of what was told.
type linear struct {
	// Immutable once the load is driven.
	t      *testing.T
	began  time.Time
	seed   uint64
	pace   pace
	broken func(format string, a ...any) // enters a broken promise
	acked  func()                        // hears of each acknowledged write
	ctx    context.Context               // of the load
	end    context.CancelFunc
	work   sync.WaitGroup

	values             atomic.Int64
	good, bad, unknown atomic.Int64
	streams            atomic.Int64

	// Of the judgement.
	judged, unchecked atomic.Int64 // operations, keys
	most              atomic.Int64 // operations of one key

	mu sync.Mutex
	// Guarded by mu.
	slots    []*register
	all      []*register
	finished []*register // retired, with all their operations ended
	wrong    []error
	late     []lateRegister
}

// lateRegister is a history that the checker could not judge in time. One that is wrong takes the longest.
type lateRegister struct {
	key string
	ops []porcupine.Operation
}

const (
	// lateTimeout is how long the checker may take for such a one in the end, and lateMost how many get that.
	lateTimeout = 2 * time.Minute
	lateMost    = 2
)

// channel is one way to the store.
type channel struct {
	name string
	// apply does one operation. It reports false when the operation surely had no effect and told nothing.
	apply func(key string, in registerInput) (registerOutput, bool)

	asked, answered, good atomic.Int64
}

func newLinear(t *testing.T, seed uint64) *linear {
	l := &linear{
		t: t, began: time.Now(), seed: seed, slots: make([]*register, registersAtOnce),
		pace: pace{callers: 1, pause: 5 * time.Millisecond, readEvery: 35 * time.Millisecond}, broken: t.Errorf, acked: func() {},
	}
	l.ctx, l.end = context.WithCancel(context.Background())
	for i := range l.slots {
		l.renewLocked(i)
	}
	t.Cleanup(func() {
		l.end()
		l.work.Wait()
	})
	return l
}

// renewLocked puts a fresh key into a slot. REQUIRES: mu held, or nobody else knows l.
func (l *linear) renewLocked(i int) {
	if old := l.slots[i]; old != nil {
		old.retired = true
		if old.open == 0 {
			l.finished = append(l.finished, old)
		}
	}
	r := &register{key: fmt.Sprintf("register/%04d", len(l.all))}
	l.slots[i] = r
	l.all = append(l.all, r)
}

// pick begins an operation on one of the registers; keep ends it.
func (l *linear) pick(rng *rand.Rand) *register {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := rng.IntN(len(l.slots))
	if r := l.slots[i]; r.calls >= registerOps || r.unknown >= unknownsMax {
		l.renewLocked(i)
	}
	r := l.slots[i]
	r.calls++
	r.open++
	return r
}

// keep ends an operation; a nil op told nothing.
func (l *linear) keep(r *register, op *porcupine.Operation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.open--
	if op != nil {
		out := op.Output.(registerOutput)
		r.last = max(r.last, out.version)
		if out.unknown {
			r.unknown++
		}
		r.ops = append(r.ops, *op)
	}
	if r.retired && r.open == 0 {
		l.finished = append(l.finished, r)
	}
}

// one does one operation of a kind on any register.
func (l *linear) one(c *channel, rng *rand.Rand, kind registerKind) bool {
	return l.operate(c, l.pick(rng), kind)
}

// operate does one operation that has begun on r, and keeps what came of it. False: it told nothing.
func (l *linear) operate(c *channel, r *register, kind registerKind) bool {
	in := registerInput{kind: kind, where: c.name}
	if kind == writeRegister || kind == swapRegister {
		in.value = "v" + strconv.FormatInt(l.values.Add(1), 10)
	}
	if kind == swapRegister {
		l.mu.Lock()
		in.if_ = max(r.last, 1) // 1 is a version that no key of a register ever has
		l.mu.Unlock()
	}
	c.asked.Add(1)
	call := time.Since(l.began)
	out, ok := c.apply(r.key, in)
	back := time.Since(l.began)
	c.answered.Add(1)
	switch {
	case !ok:
		l.bad.Add(1)
		l.keep(r, nil)
		return false
	case out.unknown:
		l.unknown.Add(1)
	default:
		l.good.Add(1)
		c.good.Add(1)
		if kind != readRegister && !out.failed {
			l.acked()
		}
	}
	l.keep(r, &porcupine.Operation{Input: in, Output: out, Call: int64(call), Return: int64(back)})
	return true
}

// drive puts a channel under load until stop: callers that write, swap, delete and read, each one operation after
// the other, and reads beside them that do not wait for each other.
func (l *linear) drive(c *channel, stop <-chan struct{}) {
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
	for range l.pace.callers {
		rng := random(l.seed, int(l.streams.Add(1)))
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
				ok := l.one(c, rng, kind)
				pause := between(rng, l.pace.pause, 3*l.pace.pause)
				if !ok {
					pause *= 5 // a node that is down is not asked in a tight loop
				}
				time.Sleep(pause)
			}
		})
	}
	l.work.Go(func() { // ends with stop, and with its reads
		var open sync.WaitGroup
		defer open.Wait()
		tick := time.NewTicker(l.pace.readEvery)
		defer tick.Stop()
		for !stopped() {
			<-tick.C
			if c.asked.Load()-c.answered.Load() < readsAtOnce {
				mine := rand.New(rand.NewPCG(reads.Uint64(), 0))
				open.Go(func() { l.one(c, mine, readRegister) }) // ends with its answer or its timeout
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

// binaryChannel goes through the Go client, which is told of some nodes alone and follows the leader.
func (l *linear) binaryChannel(addrs []string, name string, timeout time.Duration) *channel {
	l.t.Helper()
	c := openAt(l.t, addrs, client.WithTimeout(timeout), client.WithName(name))
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
		l.broken("%s: an error of a write that is neither ErrNotApplied nor ErrMaybeApplied: %v", name, err)
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
func (l *linear) restChannel(n *testcluster.Node, name string, timeout time.Duration) *channel {
	l.t.Helper()
	c := openREST(l.t, n, timeout)
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
				l.broken("%s: the answer to a DELETE is no JSON: %v: %s", name, err, r)
				return registerOutput{unknown: true}, true
			}
			if out.found, out.version = body.Deleted, 0; body.Deleted {
				v, err := strconv.ParseUint(body.Version, 10, 64)
				if err != nil {
					l.broken("%s: the answer to a DELETE has no version: %s", name, r)
				}
				out.version = v
			}
			return out, true
		}
	}}
}

// judge checks one register, whose operations have all ended.
func (l *linear) judge(r *register) {
	l.mu.Lock()
	ops := r.ops
	r.ops, r.judged = nil, true
	l.mu.Unlock()
	for most := l.most.Load(); int64(len(ops)) > most && !l.most.CompareAndSwap(most, int64(len(ops))); most = l.most.Load() {
	}
	if !l.enter(r.key, ops, checkRegister(ops)) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.late = append(l.late, lateRegister{r.key, ops})
	}
}

// enter keeps what the checker says of one key; false: it has not said anything.
func (l *linear) enter(key string, ops []porcupine.Operation, err error) bool {
	if errors.Is(err, errCheckTooLong) {
		return false
	}
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.wrong = append(l.wrong, fmt.Errorf("%s: %w", key, err))
	}
	l.judged.Add(int64(len(ops)))
	return true
}

// judgeFinished checks registers while the load goes on, so that little is left for its end.
func (l *linear) judgeFinished() {
	for l.ctx.Err() == nil {
		l.mu.Lock()
		ready := l.finished
		l.finished = nil
		l.mu.Unlock()
		for _, r := range ready {
			l.judge(r)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-l.ctx.Done():
		}
	}
}

// check judges all registers that are not judged yet and gives what is wrong with any. REQUIRES: the load has ended.
func (l *linear) check() (wrong []error) {
	began := time.Now()
	left := make(chan *register)
	var judges sync.WaitGroup
	for range 2 {
		judges.Go(func() { // ends when left is closed
			for r := range left {
				l.judge(r)
			}
		})
	}
	for _, r := range l.all {
		if !r.judged {
			left <- r
		}
	}
	close(left)
	judges.Wait()
	for i, late := range l.late {
		if i >= lateMost || !l.enter(late.key, late.ops, searchRegister(late.ops, true, lateTimeout)) {
			l.unchecked.Add(1)
		}
	}
	l.t.Logf("%d operations done, %d surely not done or unanswered reads, %d unknown, over %d keys with at most %d operations each; %d keys unchecked; the last ones checked in %v",
		l.good.Load(), l.bad.Load(), l.unknown.Load(), len(l.all), l.most.Load(), l.unchecked.Load(), time.Since(began).Round(time.Millisecond))
	if good := l.good.Load(); good < 100 {
		l.t.Errorf("only %d operations succeeded: the test proves nothing", good)
	}
	if k := l.unchecked.Load(); k*50 > int64(len(l.all)) {
		l.t.Errorf("%d of %d keys could not be checked in time", k, len(l.all))
	}
	return l.wrong
}

// registerLoad is the workload "register": one key, read, written, swapped and deleted through every node and every
// protocol, must behave as if there were one copy of it and one order of its operations.
type registerLoad struct{ l *linear }

func init() { workloads["register"] = func() workload { return new(registerLoad) } }

func (*registerLoad) name() string { return "register" }

// registerLeast is what a run of any length does at the least.
const registerLeast = 300

func (w *registerLoad) drive(r *faultRun) {
	l := newLinear(r.t, r.seed)
	w.l = l
	l.began, l.broken, l.acked = r.began, r.anomaly, r.tick
	// Four channels to each of three nodes do some 1,300 operations a second, and those to more nodes not more.
	n := time.Duration(r.c.Size())
	l.pace = pace{callers: 2, pause: n * 3 * time.Millisecond, readEvery: n * 12 * time.Millisecond}
	const hasty = 500 * time.Millisecond // gives up within a fault
	for i, node := range r.c.Nodes() {
		at, id := []string{node.Addr()}, r.c.ID(i)
		for _, c := range []*channel{
			l.binaryChannel(at, id+" binary", linearTimeout),
			l.binaryChannel(at, id+" hasty", hasty),
			l.followerChannel(node, id+" follower", linearTimeout),
			l.restChannel(node, id+" rest", 2*hasty),
		} {
			l.drive(c, r.ctx.Done())
		}
	}
	l.work.Go(l.judgeFinished) // ends with l.ctx
	r.work.Go(func() {         // ends with the load, soon after r.ctx
		<-r.ctx.Done()
		l.end()
		l.work.Wait()
	})
}

func (w *registerLoad) verify(r *faultRun) {
	l := w.l
	// What is there in the end belongs to each history that is not judged yet.
	last := l.binaryChannel(r.c.Addrs(), "in the end", patience)
	for i, reg := range l.slots {
		reg.open++
		if !l.operate(last, reg, readRegister) {
			r.anomaly("%s can't be read in the end", l.slots[i].key)
		}
	}
	for _, err := range l.check() {
		var bad *badHistory
		if !errors.As(err, &bad) {
			r.anomaly("%v", err)
			continue
		}
		key, _, _ := strings.Cut(err.Error(), ":")
		if err := os.MkdirAll("out", 0o755); err != nil {
			r.t.Errorf("cannot keep a history: %v", err)
		}
		file := filepath.Join("out", fmt.Sprintf("register-%s-%d-%s.txt", r.scene.name, r.seed, strings.ReplaceAll(key, "/", "-")))
		if err := os.WriteFile(file, []byte(err.Error()), 0o644); err != nil {
			r.t.Errorf("cannot keep a history: %v", err)
		}
		r.anomaly("%s: %s, see %s; where it begins:\n%s", key, bad.why, file, bad.excerpt(anomalyLines))
	}
}

func (w *registerLoad) figures() figures {
	return figures{done: w.l.good.Load(), unknown: w.l.unknown.Load(), checked: w.l.judged.Load(), least: registerLeast}
}
