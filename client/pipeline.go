package client

import (
	"bytes"
	"context"
	"sync"
	"time"

	"kvstore/wire"
)

// Pipeline keeps many operations of one goroutine under way. What it starts is sent together, and what has ended comes back
// together, in the order in which it ended; an operation allocates nothing.
//
//	p := c.NewPipeline()
//	ops := make([]client.Op, 128)
//	for i := range ops {
//		p.Get(&ops[i], next())
//	}
//	for p.Len() > 0 {
//		done, err := p.Wait(ctx)
//		if err != nil { … }
//		for _, op := range done {
//			use(op.Data(), op.Err())
//			p.Get(op, next()) // or leave it
//		}
//	}
//
// Operations under way at the same time may be done in any order, also on the same key. Each is bounded by WithTimeout, not by a
// context, and every one that was started ends: with its answer, its deadline, or the client.
//
// A Pipeline is used by one goroutine at a time, and so are its Ops; for several goroutines make several. It needs no Close. It
// keeps to one of the client's connections to a node (see WithConns), and pipelines take these in turn.
type Pipeline struct {
	// Immutable.
	client *Client
	lane   uint32
	ready  chan struct{} // has room for one: ended is no longer empty

	// Owned by the user's goroutine.
	staged      []*call
	stagedBytes int
	n           int // started and not given back
	done        []*Op

	// Guarded by mu.
	mu    sync.Mutex
	ended opList
}

// Op is one operation of a Pipeline and, once that gave it back, its result. It may be used again and again, and keeps its
// memory. The zero value is ready. An Op must not be copied.
//
// From the start of the operation until Wait or Take has given it back, the Op belongs to the Pipeline: starting it again, or
// asking it for a result, panics.
type Op struct {
	// Tag is the user's own, such as what the operation is for. The client leaves it alone.
	Tag any

	// Owned by the user's goroutine.
	started bool

	// Owned by the pipeline from the start on until it gives the Op back.
	p     *Pipeline
	cl    call
	err   error
	buf   []byte // of the result
	value []byte // the copy of what is written
	next  *Op    // in an opList
}

// opList is Ops that have ended, in that order.
type opList struct{ head, tail *Op }

func (l *opList) add(o *Op) { l.join(opList{o, o}) }

// join appends what stands in more.
func (l *opList) join(more opList) {
	if l.head == nil {
		l.head = more.head
	} else {
		l.tail.next = more.head
	}
	l.tail = more.tail
}

// stagedBytesMax is the size of the requests that are sent without waiting for Flush: what a server reads at once.
const stagedBytesMax = 64 << 10

// NewPipeline makes a Pipeline without operations.
func (c *Client) NewPipeline() *Pipeline {
	return &Pipeline{client: c, lane: c.lanes.Add(1), ready: make(chan struct{}, 1)}
}

// Get starts a read, see Client.Get. It is sent by the next Flush or Wait, or before, when 64 KiB have gathered.
func (p *Pipeline) Get(o *Op, key string, opts ...GetOption) {
	cl := p.begin(o, wire.OpGet, key, wantInto)
	cl.dst = o.buf[:0]
	p.stage(o, p.client.fillGet(cl, opts))
}

// Put starts a write, see Client.Put, and is sent as Get is. The value is copied.
func (p *Pipeline) Put(o *Op, key string, value []byte, opts ...PutOption) {
	cl := p.begin(o, wire.OpPut, key, wantVersion)
	e := p.client.fillPut(cl, value, opts)
	if len(value) < largeBytesMin {
		o.value = append(o.value[:0], value...)
		cl.value = o.value
	} else {
		// It is written from where it lies, maybe after the operation has ended: its bytes are never used again.
		cl.value = bytes.Clone(value)
	}
	cl.owned = true
	p.stage(o, e)
}

// Flush sends what was started. It blocks while a connection takes no more, or there is none: that is the back-pressure.
func (p *Pipeline) Flush() {
	if len(p.staged) == 0 {
		return
	}
	c := p.client
	now := c.now()
	for _, cl := range p.staged {
		cl.begun(c, now)
	}
	for calls := p.staged; len(calls) > 0; {
		n := p.enqueue(calls, now)
		if calls = calls[n:]; n == 0 {
			// Not as simple as that: with a session, options, compression, a connection to be made, or to be waited for.
			c.attempt(calls[0])
			calls, now = calls[1:], c.now()
		}
	}
	clear(p.staged)
	p.staged, p.stagedBytes = p.staged[:0], 0
}

// Wait sends what was started, waits until at least one operation has ended, and gives those that have, in a slice that is good
// until the next Wait or Take. It gives none when none was under way. The error is that of ctx, which bounds the waiting alone:
// the operations go on.
func (p *Pipeline) Wait(ctx context.Context) ([]*Op, error) {
	p.Flush()
	for p.n > 0 {
		if done := p.Take(); len(done) > 0 {
			return done, nil
		}
		select {
		case <-p.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, nil
}

// Take gives the operations that have ended, as Wait does, and doesn't wait.
func (p *Pipeline) Take() []*Op {
	p.mu.Lock()
	o := p.ended.head
	p.ended = opList{}
	p.mu.Unlock()
	p.done = p.done[:0]
	for o != nil {
		next := o.next
		o.next, o.started = nil, false
		p.done = append(p.done, o)
		o = next
	}
	p.n -= len(p.done)
	return p.done
}

// Ready receives when operations may have ended since the last Take or Wait, for a select beside other events. Wait, too,
// receives from it.
func (p *Pipeline) Ready() <-chan struct{} { return p.ready }

// Len is the number of operations that were started and not given back.
func (p *Pipeline) Len() int { return p.n }

// begin takes o for an operation.
func (p *Pipeline) begin(o *Op, op wire.Opcode, key string, w want) *call {
	o.idle("was started")
	if o.cl.ch == nil {
		o.cl.ch = make(chan struct{}, 1)
	}
	o.keep()
	o.cl.reset()
	o.p, o.started, o.err = p, true, nil
	o.cl.begin(op, key, w)
	o.cl.pipelined = o
	p.n++
	return &o.cl
}

// stage puts an encoded operation down to be sent, or ends it when it could not be encoded.
func (p *Pipeline) stage(o *Op, e *Error) {
	cl := &o.cl
	if e != nil {
		o.err = e
		p.push(opList{o, o})
		return
	}
	p.staged = append(p.staged, cl)
	if p.stagedBytes += wire.HeaderBytes + len(cl.head) + len(cl.value); p.stagedBytes >= stagedBytesMax {
		p.Flush()
	}
}

// enqueue hands the simple reads at the start of calls to the pipeline's connection, under one lock and with one write, and
// returns how many they are.
func (p *Pipeline) enqueue(calls []*call, now time.Duration) int {
	c := p.client
	if l := c.route.cur.Load().lane(p.lane); c.ctx.Err() == nil {
		if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
			return cn.enqueueReads(calls, now)
		}
	}
	return 0
}

// push takes operations that have ended. Any goroutine.
func (p *Pipeline) push(ended opList) {
	p.mu.Lock()
	first := p.ended.head == nil
	p.ended.join(ended)
	p.mu.Unlock()
	if first {
		select {
		case p.ready <- struct{}{}:
		default: // it stands there from before
		}
	}
}

// idle panics unless the Op is the user's.
func (o *Op) idle(what string) {
	if o.started {
		panic("client: an Op " + what + " while its operation is under way; wait until the Pipeline gives it back")
	}
}

// keep takes back the memory of the last result, unless that is large.
func (o *Op) keep() {
	if b := o.cl.res.data; o.cl.want == wantInto && cap(b) > 0 && cap(b) <= keepBytesMax {
		o.buf = b[:0]
	}
}

// Err tells how the operation ended: nil when it is done. That of an absent key is the bare ErrNotFound; of a write it tells the
// three outcomes apart as that of Client.Put does.
func (o *Op) Err() error {
	o.idle("was asked for its error")
	return o.err
}

// Data is the value that a Get has read. It lies in the Op's memory: it is good until the Op is started again.
func (o *Op) Data() []byte {
	o.idle("was asked for its data")
	if o.err != nil || o.cl.want != wantInto {
		return nil
	}
	d := o.cl.res.data
	return d[:len(d):len(d)] // what is kept with it stands behind
}

// Version is that of the write, or of the record that a Get has read; 0 after a failure.
func (o *Op) Version() Version {
	o.idle("was asked for its version")
	switch {
	case o.err != nil:
		return 0
	case o.cl.want == wantInto:
		return Version(o.cl.res.meta.Version)
	}
	return Version(o.cl.res.rev)
}

// Value is all that a Get has read, in memory of its own: unlike Data it stays. It allocates.
func (o *Op) Value() Value {
	o.idle("was asked for its value")
	if o.err != nil || o.cl.want != wantInto {
		return Value{}
	}
	r := &o.cl.res
	v := valueOf(&r.meta, bytes.Clone(r.ext), bytes.Clone(r.data))
	v.age = o.cl.age()
	return v
}
