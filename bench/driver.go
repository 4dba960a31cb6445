package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// failurePause is how long a closed-loop worker waits after a failure: a server that refuses at once must
// not be hammered by a loop that measures nothing.
const failurePause = time.Millisecond

// Run loads the keys that o needs, drives t, and returns what was measured. It fails on invalid options,
// when the load phase fails, and when ctx ends first (then with the report of what was measured so far).
// Failures of single operations are in the report.
func Run(ctx context.Context, t Target, o Options) (*Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cannot run workload: %w", err)
	}
	p := newPlan(o)
	if !p.load.noLoad && !o.SkipLoad {
		if err := loadKeys(ctx, t, p); err != nil {
			return nil, fmt.Errorf("cannot load %d keys: %w", o.Keys, err)
		}
	}
	r := &run{
		target: t, plan: p, opts: o, epoch: time.Now(),
		rec: newRecorder(o.Concurrency, o.Warmup, o.Warmup+o.Duration),
	}
	return r.do(ctx)
}

// run is one measurement under way.
type run struct {
	// Immutable after Run made it.
	target Target
	plan   *plan
	opts   Options
	epoch  time.Time
	rec    *recorder
	pacer  *pacer
}

func (r *run) do(ctx context.Context) (*Report, error) {
	var wg sync.WaitGroup
	if r.opts.Rate > 0 {
		r.pacer = &pacer{
			rate: r.opts.Rate, until: r.rec.until, measureFrom: r.rec.from, epoch: r.epoch,
			sleep: r.opts.sleep, due: make(chan time.Duration, r.opts.Backlog), lateness: newHistogram(),
		}
		// The pacer's goroutine: owned by do; ends at the end of the run or with ctx.
		wg.Go(func() {
			runtime.LockOSThread() // not unlocked: the thread's timer slack dies with it
			// A refusal only costs precision, which the report's lateness shows.
			_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
			r.pacer.run(ctx)
		})
	}
	for i := range r.opts.Concurrency {
		// Workers: owned by do; each ends at the end of the window, once its operations are answered.
		wg.Go(func() {
			if r.opts.Pipeline > 1 {
				newPipeline(ctx, r, i).run(ctx)
			} else {
				r.worker(ctx, i)
			}
		})
	}
	var allocs allocations
	before, ready := cpuTimes{}, false
	select {
	case <-ctx.Done():
	case <-time.After(r.rec.from - time.Since(r.epoch)):
		allocs = allocationsAtStart(ctx, r.opts.ServerMetrics)
		before, ready = readCPU(r.opts.ServerPIDs), true
	}
	wg.Wait()
	after := readCPU(r.opts.ServerPIDs)
	rep := r.report()
	if ready {
		rep.setCPU(before, after)
		rep.setAllocations(allocs, allocationsAtEnd(ctx, r.opts.ServerMetrics))
	}
	rep.ServerRSSAnonBytes = readRSSAnon(r.opts.ServerPIDs)
	if err := ctx.Err(); err != nil {
		return rep, fmt.Errorf("run ended early: %w", err)
	}
	return rep, nil
}

// now is the offset from the run's start.
func (r *run) now() time.Duration { return time.Since(r.epoch) }

// begin is the start of a closed loop's operation: drawing it was not the target's time. What was begun
// inside the window counts as inside.
func (r *run) begin() time.Duration { return min(r.now(), r.rec.until-1) }

// nextDue returns when the next operation is due; false ends the worker. last is when the one before has ended: to read the clock
// once more for each would be 2 % of what a get of 256 callers costs the client.
func (r *run) nextDue(ctx context.Context, last time.Duration) (time.Duration, bool) {
	if r.pacer != nil {
		due, ok := <-r.pacer.due
		return due, ok && ctx.Err() == nil
	}
	return last, last < r.rec.until && ctx.Err() == nil
}

// worker keeps one synchronous operation in flight.
func (r *run) worker(ctx context.Context, id int) {
	g := newGenerator(r.plan, id)
	var req request
	buf := make([]byte, 0, r.opts.ValueBytes)
	for last := r.now(); ; {
		due, ok := r.nextDue(ctx, last)
		if !ok {
			return
		}
		g.next(&req)
		if r.pacer == nil {
			due = r.begin()
		}
		var miss bool
		var err error
		buf, miss, err = r.execute(ctx, &req, buf)
		last = r.finish(ctx, id, due, &req, miss, err)
	}
}

// finish records an outcome, pauses a closed loop after a failure, and gives the time.
func (r *run) finish(ctx context.Context, id int, due time.Duration, req *request, miss bool, err error) time.Duration {
	end := r.now()
	r.ended(ctx, id, due, end, req, miss, err)
	if err != nil && r.pacer == nil && !(ctx.Err() != nil && errors.Is(err, ctx.Err())) {
		time.Sleep(failurePause)
		return r.now()
	}
	return end
}

// ended records the outcome of an operation that has ended at end.
func (r *run) ended(ctx context.Context, id int, due, end time.Duration, req *request, miss bool, err error) {
	if req.op == OpInsert {
		r.plan.inserts.finish(req.number)
	}
	o := outcome{op: req.op, miss: miss, err: err}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return // cut off by the end of the run itself: says nothing about the target
		}
		o.kind = r.target.Kind(err)
	}
	r.rec.add(id, due, end, o)
}

// execute does one operation and waits for it.
func (r *run) execute(ctx context.Context, req *request, buf []byte) (_ []byte, miss bool, err error) {
	t := r.target
	switch req.op {
	case OpGet, OpRead:
		v, found, err := t.Get(ctx, req.key, buf[:0])
		if v != nil {
			buf = v
		}
		return buf, !found, err
	case OpPut, OpUpdate, OpInsert:
		return buf, false, t.Put(ctx, req.key, req.value)
	case OpReadModifyWrite:
		v, found, err := t.Get(ctx, req.key, buf[:0])
		if v != nil {
			buf = v
		}
		if err != nil {
			return buf, false, err
		}
		return buf, !found, t.Put(ctx, req.key, req.value)
	case OpScan:
		n, err := t.Scan(ctx, req.key, req.items)
		return buf, n == 0, err
	case OpBatchGet:
		n, err := t.GetMany(ctx, req.keys)
		return buf, n < len(req.keys), err
	case OpBatchPut:
		return buf, false, t.PutMany(ctx, req.keys, req.values)
	case OpTxn:
		return buf, false, t.Transact(ctx, req.keys, req.values)
	}
	panic("BUG: no such operation: " + req.op.String())
}
