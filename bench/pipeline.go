package bench

import (
	"context"
	"time"
)

// pipeline is a worker that keeps Options.Pipeline operations in flight. What it finds answered it replaces in one go: it draws
// all that is next, reads the clock once, and starts it.
type pipeline struct {
	r     *run
	id    int
	gen   *generator
	under Pipeline

	slots  []slot
	free   []int // slots without an operation
	over   bool  // nothing more is started
	failed bool  // one of the operations that ended last has failed
	ended  []Ended
}

// slot is one operation in flight.
type slot struct {
	req  request
	due  time.Duration
	miss bool
	put  bool // what is under way is the second half of a read-modify-write
}

func newPipeline(ctx context.Context, r *run, id int) *pipeline {
	n := r.opts.Pipeline
	p := &pipeline{r: r, id: id, gen: newGenerator(r.plan, id), under: r.target.Pipeline(ctx, n), slots: make([]slot, n)}
	for i := range n {
		p.free = append(p.free, i)
	}
	return p
}

// run issues operations until the window ends, then waits for all of them.
func (p *pipeline) run(ctx context.Context) {
	var due <-chan time.Duration // nil in a closed loop
	if p.r.pacer != nil {
		due = p.r.pacer.due
	}
	for {
		if due == nil {
			p.refill(ctx)
		}
		p.under.Flush()
		if p.over && len(p.free) == len(p.slots) {
			return
		}
		waiting := due
		if p.over || len(p.free) == 0 {
			waiting = nil
		}
		select {
		case at, ok := <-waiting:
			p.schedule(ctx, due, at, ok)
		case <-p.under.Ready():
			p.take(ctx)
		}
	}
}

// refill begins an operation in each free slot of a closed loop.
func (p *pipeline) refill(ctx context.Context) {
	if p.over || len(p.free) == 0 {
		return
	}
	if p.failed {
		time.Sleep(failurePause)
		p.failed = false
	}
	if _, ok := p.r.nextDue(ctx, p.r.now()); !ok {
		p.over = true
		return
	}
	for _, i := range p.free {
		p.gen.next(&p.slots[i].req)
	}
	due := p.r.begin()
	for _, i := range p.free {
		p.start(i, due)
	}
	p.free = p.free[:0]
}

// schedule begins the operation that is due at, and those behind it that are due too. ok is false at the end of the schedule.
func (p *pipeline) schedule(ctx context.Context, due <-chan time.Duration, at time.Duration, ok bool) {
	for {
		if !ok || ctx.Err() != nil {
			p.over = true
			return
		}
		i := p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
		p.gen.next(&p.slots[i].req)
		p.start(i, at)
		if len(p.free) == 0 {
			return
		}
		select {
		case at, ok = <-due:
		default:
			return
		}
	}
}

// start starts the operation that was drawn into a slot.
func (p *pipeline) start(i int, due time.Duration) {
	s := &p.slots[i]
	s.due, s.miss, s.put = due, false, false
	switch s.req.op {
	case OpGet, OpRead, OpReadModifyWrite:
		p.under.Get(i, s.req.key)
	default:
		p.under.Put(i, s.req.key, s.req.value)
	}
}

// take records what has ended, and goes on with second halves.
func (p *pipeline) take(ctx context.Context) {
	p.ended = p.under.Take(p.ended[:0])
	end := p.r.now()
	for _, e := range p.ended {
		s := &p.slots[e.Slot]
		switch {
		case s.put:
		case s.req.op == OpReadModifyWrite:
			s.miss = !e.Found
			if e.Err == nil {
				s.put = true
				p.under.Put(e.Slot, s.req.key, s.req.value)
				continue
			}
		case s.req.op == OpGet, s.req.op == OpRead:
			s.miss = !e.Found
		}
		p.failed = p.failed || e.Err != nil
		p.r.ended(ctx, p.id, s.due, end, &s.req, s.miss, e.Err)
		p.free = append(p.free, e.Slot)
	}
}
