package test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// A fault run puts one cluster of real processes under several workloads at once and lets it meet faults, one after
// the other and at times two at once. Then all faults are mended, the nodes converge, and each workload judges what
// its callers were told. A run is bad when a promise was broken (an anomaly), and when it proves nothing: a kind of
// fault that never struck, a workload that hardly did anything.

// needs is what a cluster must be made with so that a fault can be made.
type needs int

const (
	needDisks      needs = 1 << iota // each node on a disk of its own (testcluster.Disk)
	needClocks                       // the build whose clocks the test sets
	needFailpoints                   // the build with the tag failpoints
	needProxies                      // the network of proxies: it can delay, slow down and hold
)

// nemesis makes faults of one kind.
type nemesis struct {
	name  string // as it is counted
	needs needs
	// alone: no second fault meanwhile. It takes long and a majority needs all the others for as long.
	alone bool
	// strike makes a fault at once. nil without an error: it can't be made at this moment, such as one of the leader
	// where none is found within a few seconds. An error ends the run: the test failed, not the product.
	// It takes r.control for whatever it does to processes, and holds it no longer than that takes.
	strike func(r *faultRun, rng *rand.Rand) (*fault, error)
}

// fault is one fault that is in force.
type fault struct {
	what  string        // for people, such as "SIGSTOP of node-2, the leader"
	lasts time.Duration // how long it stays in force
	// count tells how many faults this was, asked after mend; nil: one.
	count func() int
	// struck tells, just before mend, that the fault took hold; nil: it surely did.
	struck func() error
	// mend ends it; nil: it has ended by itself. It must work whatever other faults have done meanwhile.
	mend func() error
}

// workload is a load with promises that are checked.
type workload interface {
	name() string
	// drive begins to work and returns. What it starts is counted by r.work and ends soon after r.ctx.
	drive(r *faultRun)
	// verify judges the whole load, through r.anomaly. It is called once, after the load has ended, every fault is
	// mended and all nodes have converged.
	verify(r *faultRun)
	// figures tells what it did.
	figures() figures
}

// figures of a workload.
type figures struct {
	done    int64 // operations whose outcome is known
	unknown int64 // writes whose outcome never became known
	checked int64 // operations that a checker judged
	unique  int64 // acknowledged unique writes that were read back
	least   int64 // with fewer done the run proves nothing
}

// scene is one kind of run: which faults may happen in it.
type scene struct {
	name  string
	nodes []int // sizes to draw from
	needs needs
	// namespaces: each node in a network namespace of its own, where that is possible.
	namespaces bool
	main       []nemesis // one after the other, each at least once
	beside     []nemesis // meanwhile, each on and on
	settings   map[string]string
	loads      []string // names of workloads; nil: all of them
}

// faultRun is one run. Its methods may be used by any goroutine, unless they say otherwise.
type faultRun struct {
	// Immutable after newFaultRun.
	t      *testing.T
	seed   uint64
	scene  *scene
	length time.Duration
	c      *testcluster.Cluster
	disks  []*testcluster.Disk // by number of node; nil without needDisks
	began  time.Time
	ctx    context.Context // of the loads; ends when the last fault is mended
	end    context.CancelFunc
	work   sync.WaitGroup // of the loads
	loads  []workload
	acked  atomic.Int64 // writes acknowledged so far, see tick

	// control is held by whoever starts, ends, stops or continues processes, or asks whether one runs. The workloads
	// never do.
	control sync.Mutex

	mu sync.Mutex
	// Guarded by mu.
	out       map[int]removal // nodes that are no members, or are about to be none: nobody starts them
	anomalies []string
	struck    map[string]int // faults by kind
	missed    map[string]int // faults that were made and never took hold, by kind
	excused   map[int]bool   // nodes that may end by themselves
	tally     map[string]int // what became of damaged nodes
	lastAck   time.Time
	gap       time.Duration // longest time without an acknowledged write
	gapAt     time.Time     // when it ended
	recovery  time.Duration // longest time from the end of a fault to an acknowledged write
	said      string        // the line of the run and its first anomaly, if it failed
}

// stream gives an independent source of the run's seed.
func (r *faultRun) stream(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(r.seed, h.Sum64()))
}

// since tells the seconds since the begin of the run, as all notes do.
func (r *faultRun) since() float64 { return time.Since(r.began).Seconds() }

// note says what happens.
func (r *faultRun) note(format string, a ...any) {
	r.t.Logf("%7.3f  %s", r.since(), fmt.Sprintf(format, a...))
}

// anomaliesMax bounds how many are kept: one says enough.
const anomaliesMax = 20

// anomaly enters a broken promise of the product.
func (r *faultRun) anomaly(format string, a ...any) {
	text := fmt.Sprintf("%.3f: %s", r.since(), fmt.Sprintf(format, a...))
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.anomalies) < anomaliesMax {
		r.anomalies = append(r.anomalies, text)
		// At once, too: a run that hangs later does not come to its judgement.
		first, _, _ := strings.Cut(text, "\n")
		r.t.Logf("ANOMALY %s", first)
	}
}

// tick enters the acknowledgement of a write: the store is available.
func (r *faultRun) tick() {
	r.acked.Add(1)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := now.Sub(r.lastAck); d > r.gap {
		r.gap, r.gapAt = d, now
	}
	r.lastAck = now
}

// trafficLeast is how many writes are acknowledged before the next fault: one that meets no load proves nothing.
const trafficLeast = 100

// waitWrites waits until n more writes are acknowledged; an error after patience, or when the run ends.
func (r *faultRun) waitWrites(n int64) error {
	limit := patience
	if os.Getenv(stopEnv) != "" {
		limit = 20 * time.Second // a mutant may never come back
	}
	want, deadline := r.acked.Load()+n, time.Now().Add(limit)
	for r.acked.Load() < want && !r.enough() {
		if time.Now().After(deadline) {
			return fmt.Errorf("no %d writes were acknowledged within %v, with every fault mended", n, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// leader gives the number of the leader, -1 if none is found within a few seconds.
func (r *faultRun) leader() int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	i, err := r.c.Leader(ctx)
	if err != nil {
		return -1
	}
	return i
}

// anyNode draws a node: the leader as often as all others together. REQUIRES: r.control is not held.
func (r *faultRun) anyNode(rng *rand.Rand) int {
	if rng.IntN(2) == 0 {
		if i := r.leader(); i >= 0 {
			return i
		}
	}
	in := r.members()
	return in[rng.IntN(len(in))]
}

// describe names a node and what it is.
func (r *faultRun) describe(i int) string {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if s, err := r.c.Node(i).StatusContext(ctx); err == nil && s.IsLeader {
		return r.c.ID(i) + ", the leader"
	}
	return r.c.ID(i)
}

// up starts node i unless it runs or is none of the members, and lets it go on if it is stopped.
func (r *faultRun) up(i int) error {
	r.control.Lock()
	defer r.control.Unlock()
	return r.upLocked(i)
}

// upLocked is up. REQUIRES: r.control is held.
func (r *faultRun) upLocked(i int) error {
	n := r.c.Node(i)
	if n.Running() {
		n.Thaw()
		return nil
	}
	if r.isOut(i) {
		return nil
	}
	r.ended(i)
	n.Launch()
	return nil
}

// runs tells whether node i runs and can be ended, which it can't while its disk hangs. REQUIRES: r.control is held.
func (r *faultRun) runs(i int) bool {
	return r.c.Node(i).Running() && (r.disks == nil || !r.disks[i].Hangs())
}

// mayEnd tells that node i has a good reason to end by itself now, such as an fsync that failed; the reason counts for
// one end.
func (r *faultRun) mayEnd(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.excused[i] = true
}

// ended looks how node i has ended: by itself it must not, unless it has a reason. REQUIRES: r.control is held, it has
// ended.
func (r *faultRun) ended(i int) {
	n := r.c.Node(i)
	r.mu.Lock()
	excused := r.excused[i]
	r.excused[i] = false
	r.mu.Unlock()
	code := n.WaitExit()
	// A process that ends at a failpoint kills itself; of others none sends that signal but the test.
	killed := code < 0 && n.ByItself() && r.scene.needs&needFailpoints == 0
	if (code >= 0 || killed) && !excused {
		r.anomaly("%s has ended by itself with exit code %d:\n%s", r.c.ID(i), code, lastLines(n.LastOutput(), 60))
	}
}

// lastLines gives the end of a text.
func lastLines(text string, most int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "")
}

// between draws a duration.
func between(rng *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(rng.Int64N(int64(to-from)+1))
}

// sleepRun waits for d or the end of the loads; false: they have ended.
func (r *faultRun) sleepRun(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.ctx.Done():
		return false
	}
}

// inForce makes one fault, lets it last and mends it. The inner function is called while it is in force.
func (r *faultRun) inForce(n *nemesis, rng *rand.Rand, inner func()) (bool, error) {
	f, err := n.strike(r, rng)
	if err != nil {
		return false, fmt.Errorf("%s: %w", n.name, err)
	}
	if f == nil {
		return false, nil
	}
	r.note("%s: %s, for %v", n.name, f.what, f.lasts.Round(time.Millisecond))
	end := time.Now().Add(f.lasts)
	if inner != nil {
		inner()
	}
	time.Sleep(time.Until(end))
	hold := error(nil)
	if f.struck != nil {
		hold = f.struck()
	}
	if f.mend != nil {
		if err := f.mend(); err != nil {
			return false, fmt.Errorf("%s: %s: cannot mend it: %w", n.name, f.what, err)
		}
	}
	k := 1
	if f.count != nil {
		k = f.count()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if hold != nil {
		r.missed[n.name]++
		r.t.Logf("%7.3f  %s: %s: never took hold: %v", r.since(), n.name, f.what, hold)
		return true, nil
	}
	r.struck[n.name] += k
	return true, nil
}

// strikeAll lets the cluster meet its faults until the time is up and each kind has been made.
func (r *faultRun) strikeAll() error {
	rng := r.stream("faults")
	var queue []nemesis
	for deadline := r.began.Add(r.length); ; {
		if r.enough() {
			return nil
		}
		if len(queue) == 0 {
			if late := time.Since(deadline); late > 0 && r.allStruck() || late > overtimeMax {
				return nil
			}
			queue = slices.Clone(r.scene.main)
			if time.Now().After(deadline) {
				queue = slices.DeleteFunc(queue, func(n nemesis) bool { return r.hasStruck(n.name) })
			}
			if len(queue) == 0 { // only those are missing that are made beside
				queue = slices.Clone(r.scene.main)
			}
			rng.Shuffle(len(queue), func(i, k int) { queue[i], queue[k] = queue[k], queue[i] })
		}
		if err := r.waitWrites(trafficLeast); err != nil {
			return err
		}
		first := queue[0]
		queue = queue[1:]
		var inner func()
		var innerErr error
		if len(queue) > 0 && rng.IntN(4) == 0 && !first.alone && !queue[0].alone {
			second := queue[0]
			inner = func() {
				r.sleepRun(between(rng, 0, 700*time.Millisecond))
				_, innerErr = r.inForce(&second, rng, nil)
			}
		}
		if _, err := r.inForce(&first, rng, inner); err != nil || innerErr != nil {
			return errors.Join(err, innerErr)
		}
		mended := time.Now()
		for i := range r.c.Size() {
			if err := r.up(i); err != nil { // one that has ended by itself is found out here
				return err
			}
		}
		if err := r.waitWrites(1); err != nil {
			return err
		}
		r.mu.Lock()
		r.recovery = max(r.recovery, time.Since(mended))
		r.mu.Unlock()
		if time.Now().After(deadline) && r.allStruck() {
			return nil
		}
	}
}

// overtimeMax bounds how long a run goes on for kinds of faults that have not taken hold yet.
const overtimeMax = 3 * time.Minute

// enough tells whether an anomaly was found already, and one is all that is wanted.
func (r *faultRun) enough() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.anomalies) > 0 && os.Getenv(stopEnv) != ""
}

// allStruck tells whether each kind of fault of the scene has been made.
func (r *faultRun) allStruck() bool {
	return !slices.ContainsFunc(slices.Concat(r.scene.main, r.scene.beside), func(n nemesis) bool { return !r.hasStruck(n.name) })
}

// hasStruck tells whether a fault of a kind has taken hold.
func (r *faultRun) hasStruck(kind string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.struck[kind] > 0
}

// execute is the whole run.
func (r *faultRun) execute() {
	for _, w := range r.loads {
		w.drive(r)
	}
	defer r.judge() // whatever ends the run
	besides, stop := context.WithCancel(context.Background())
	var beside sync.WaitGroup
	var mu sync.Mutex
	var failed []error // guarded by mu
	for _, n := range r.scene.beside {
		rng := r.stream("beside " + n.name)
		beside.Go(func() { // ends with besides
			for besides.Err() == nil {
				if _, err := r.inForce(&n, rng, nil); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
					return
				}
				select {
				case <-time.After(between(rng, 100*time.Millisecond, 1500*time.Millisecond)):
				case <-besides.Done():
				}
			}
		})
	}
	err := r.strikeAll()
	stop()
	beside.Wait()
	r.failed(append(failed, err)...)
	if !r.enough() {
		err := r.restore()
		if err == nil {
			err = r.waitWrites(trafficLeast)
		}
		r.failed(err)
	}
	r.end()
	r.work.Wait()
	if r.enough() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, _, err := r.c.WaitConverged(ctx); err != nil {
		r.anomaly("%v", err)
	}
	for _, w := range r.loads {
		w.verify(r)
	}
	for i, n := range r.c.Nodes() {
		if !n.Running() {
			r.anomaly("%s runs no more in the end, with exit code %d:\n%s", r.c.ID(i), n.WaitExit(), lastLines(n.LastOutput(), 60))
		}
		for _, word := range []string{"\npanic: ", "\nfatal error: ", "BUG: "} {
			if r.damagedStore(i) && word != "BUG: " {
				continue // Badger's, on a table that was damaged: the starts after it told what became of it
			}
			if out := n.Output(); strings.Contains(out, word) {
				r.anomaly("%s said %q:\n%s", r.c.ID(i), strings.TrimSpace(word), lastLines(out[strings.Index(out, word):][:min(4000, len(out)-strings.Index(out, word))], 60))
				break
			}
		}
	}
}

// failed enters what kept the run from going on: whatever it is, the product is not as it should be, or the harness.
func (r *faultRun) failed(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		r.anomaly(cantGoOn+"%v", err)
	}
}

// cantGoOn begins what failed says. It finds no mutant: it may be the harness.
const cantGoOn = "the run can't go on: "

// restore ends whatever may still be in force: all nodes run, and every way between them is open.
func (r *faultRun) restore() error {
	r.c.Net().Heal()
	for i := range r.c.Size() {
		if err := r.up(i); err != nil {
			return err
		}
	}
	for _, i := range r.members() {
		if err := r.c.Node(i).WaitReady(); err != nil {
			return fmt.Errorf("%s: %w", r.c.ID(i), err)
		}
	}
	return r.settleMembers()
}

// judge fails the test for what is wrong, and writes the line of the run.
func (r *faultRun) judge() {
	t := r.t
	r.mu.Lock()
	defer r.mu.Unlock()
	var sum figures
	var parts []string
	for _, w := range r.loads {
		f := w.figures()
		sum.done += f.done
		sum.unknown += f.unknown
		sum.checked += f.checked
		sum.unique += f.unique
		parts = append(parts, fmt.Sprintf("%s:%d", w.name(), f.done))
		if f.done < f.least {
			t.Errorf("%s did %d operations, fewer than %d: it proves nothing", w.name(), f.done, f.least)
		}
	}
	never := 0
	var kinds []string
	faults := 0
	for _, n := range slices.Concat(r.scene.main, r.scene.beside) {
		if r.struck[n.name] == 0 {
			never++
			t.Errorf("no fault of the kind %q ever struck (%d were made)", n.name, r.missed[n.name])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.struck)) {
		kinds = append(kinds, fmt.Sprintf("%s:%d", k, r.struck[k]))
		faults += r.struck[k]
	}
	for _, a := range r.anomalies {
		t.Errorf("ANOMALY %s", a)
	}
	// test/faults.sh reads this line.
	line := fmt.Sprintf("RUN scene=%s seed=%d nodes=%d done=%d unknown=%d linear=%d unique=%d faults=%d never=%d anomalies=%d gap=%.2fs@%.0fs recovery=%.2fs loads=%s kinds=%s",
		r.scene.name, r.seed, r.c.Size(), sum.done, sum.unknown, sum.checked, sum.unique, faults, never, len(r.anomalies),
		r.gap.Seconds(), r.gapAt.Sub(r.began).Seconds(), r.recovery.Seconds(), strings.Join(parts, ","), strings.Join(kinds, ","))
	t.Log(line)
	if t.Failed() {
		r.said = strings.Join(r.anomalies[:min(1, len(r.anomalies))], "") + "\n" + line
		t.Logf("to make the same choices again: FAULT_TIME=%v %s=%d go test ./test -run '^%s$' -count=1 -v", r.length, seedEnv, r.seed, t.Name())
	}
}

const (
	// binaryEnv names the program to run in the place of the one that is built, and stopEnv ends a run at the first
	// anomaly: for the mutants of mutants_test.go.
	binaryEnv = "FAULT_BINARY"
	stopEnv   = "FAULT_STOP"
	// kindsEnv lists the kinds of faults to make, of those that a scene has.
	kindsEnv = "FAULT_KINDS"
	// loadsEnv lists the workloads.
	loadsEnv = "FAULT_LOADS"
)

// faultTime is how long faults are made in one run: FAULT_TIME, or the short part that every build runs.
func faultTime(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("FAULT_TIME")
	if v == "" {
		return 8 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		t.Fatalf("FAULT_TIME=%q is no duration above 0", v)
	}
	return d
}
