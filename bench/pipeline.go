package bench

import (
	"context"
	"time"
)

// pipeline is a worker that keeps Options.Pipeline asynchronous operations in flight.
type pipeline struct {
	r   *run
	id  int
	gen *generator

	// free holds slots without an operation, again those whose operation goes on with its second half.
	// Each has room for all slots, so that a callback never blocks.
	free  chan *slot
	again chan *slot
}

// slot is one operation in flight. Owned by the worker between free and the start, then by the callback.
type slot struct {
	p      *pipeline
	ctx    context.Context
	req    request
	due    time.Duration
	miss   bool
	failed bool

	// Bound once: an operation allocates nothing here.
	onGet func(found bool, err error)
	onPut func(err error)
}

func newPipeline(r *run, id int) *pipeline {
	n := r.opts.Pipeline
	return &pipeline{r: r, id: id, gen: newGenerator(r.plan, id), free: make(chan *slot, n), again: make(chan *slot, n)}
}

// run issues operations until the window ends, then waits for all of them.
func (p *pipeline) run(ctx context.Context) {
	for range p.r.opts.Pipeline {
		s := &slot{p: p, ctx: ctx}
		s.onGet, s.onPut = s.got, s.put
		p.free <- s
	}
	for {
		s := p.takeFree()
		if s.failed && p.r.pacer == nil {
			time.Sleep(failurePause)
		}
		due, ok := p.nextDue(ctx)
		if !ok {
			break
		}
		p.start(s, due)
	}
	// One slot is in hand; the others come back as their operations end.
	for range p.r.opts.Pipeline - 1 {
		p.takeFree()
	}
}

// takeFree waits for a free slot, and starts second halves while it waits.
func (p *pipeline) takeFree() *slot {
	for {
		select {
		case s := <-p.again:
			s.startPut()
		case s := <-p.free:
			return s
		}
	}
}

// nextDue is run.nextDue that starts second halves while it waits for the schedule.
func (p *pipeline) nextDue(ctx context.Context) (time.Duration, bool) {
	if p.r.pacer == nil {
		return p.r.nextDue(ctx)
	}
	for {
		select {
		case s := <-p.again:
			s.startPut()
		case due, ok := <-p.r.pacer.due:
			return due, ok && ctx.Err() == nil
		}
	}
}

func (p *pipeline) start(s *slot, due time.Duration) {
	p.gen.next(&s.req)
	s.due, s.miss, s.failed = due, false, false
	if p.r.pacer == nil {
		s.due = p.r.begin()
	}
	switch s.req.op {
	case OpGet, OpRead, OpReadModifyWrite:
		p.r.target.GoGet(s.ctx, s.req.key, s.onGet)
	default:
		s.startPut()
	}
}

func (s *slot) startPut() { s.p.r.target.GoPut(s.ctx, s.req.key, s.req.value, s.onPut) }

// got runs on the target's goroutine and does not block: again has room for every slot.
func (s *slot) got(found bool, err error) {
	s.miss = !found
	if err == nil && s.req.op == OpReadModifyWrite {
		s.p.again <- s
		return
	}
	s.end(err)
}

func (s *slot) put(err error) { s.end(err) }

func (s *slot) end(err error) {
	s.failed = err != nil
	s.p.r.finish(s.ctx, s.p.id, s.due, &s.req, s.miss, err)
	s.p.free <- s
}
