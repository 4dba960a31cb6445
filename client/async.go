package client

import (
	"context"
	"time"

	"kvstore/wire"
)

// PutAsync is Put without waiting: done gets the result. The value is copied. It blocks while as many
// operations are under way as WithMaxInflight allows: that is the back-pressure. WithTimeout bounds the
// operation.
//
// done runs on the goroutine that reads from the server, so it must be quick, must not block, and must
// not call the client, Close included. After a retry it runs on another goroutine; when the operation
// fails before it is sent, it runs before PutAsync returns. Operations under way at the same time may be
// applied in any order.
func (c *Client) PutAsync(key string, value []byte, done func(Version, error), opts ...PutOption) {
	cl, e := c.put(key, nil, nil)
	if e == nil && len(value) > c.o.maxValue {
		cl.release()
		e = local(wire.OpPut, key, ErrTooLarge, uint64(c.o.maxValue), "value of %d bytes; at most %d", len(value), c.o.maxValue)
	}
	if e != nil {
		done(0, e)
		return
	}
	if len(opts) > 0 {
		cl.head = cl.head[:len(cl.head)-len(key)]
		var limit uint64
		var err error
		if cl.head, limit, err = appendPutExt(cl.head, value, opts); err != nil {
			cl.release()
			done(0, optionError(wire.OpPut, key, err, limit))
			return
		}
		cl.setKey(key)
	}
	cl.value, cl.owned = append([]byte(nil), value...), true
	cl.onEnd = func(cl *call, err error) {
		v := Version(cl.res.rev)
		cl.release()
		if err != nil {
			v = 0
		}
		done(v, err)
	}
	c.launch(cl)
}

// GetAsync is Get without waiting; what PutAsync says of done holds here.
func (c *Client) GetAsync(key string, done func(Value, error), opts ...GetOption) {
	cl, e := c.get(wire.OpGet, key, wantValue, opts)
	if e != nil {
		done(Value{}, e)
		return
	}
	cl.onEnd = func(cl *call, err error) {
		var v Value
		if err == nil {
			v = valueOf(&cl.res.meta, cl.res.ext, cl.res.data)
		}
		cl.release()
		done(v, err)
	}
	c.launch(cl)
}

// launch makes the first attempts of an asynchronous call, until a connection has taken it.
func (c *Client) launch(cl *call) {
	select {
	case c.async <- struct{}{}:
	case <-c.ctx.Done():
		cl.res = result{stop: ErrClosed}
		c.finish(cl, false)
		return
	}
	c.attempt(cl)
}

// attempt is launch for a call that has its token, or needs none.
func (c *Client) attempt(cl *call) {
	ctx := context.Background()
	for {
		if c.ctx.Err() != nil {
			cl.res = result{stop: ErrClosed}
			break
		}
		// From the moment that the frame is taken, answered may run on another goroutine.
		cl.onDone = c.onAnswer
		if c.submit(ctx, cl) {
			return
		}
		cl.onDone = nil
		again, pause := c.judge(cl)
		if !again || !c.pause(ctx, cl, pause) {
			break
		}
	}
	c.finish(cl, true)
}

// answered ends an attempt of an asynchronous call. It runs on the reader's goroutine, or on that of the
// connection's timer: what needs waiting goes to a goroutine of its own.
func (c *Client) answered(cl *call) {
	if c.settled(cl) {
		c.finish(cl, true)
	}
}

// settled reports whether that attempt was the last; else a goroutine makes the next one.
func (c *Client) settled(cl *call) bool {
	again, pause := c.judge(cl)
	if !again {
		return true
	}
	// resume: owned by the client; ends with the operation. There are at most as many as tokens in c.async and Ops.
	if !c.spawn(func() { c.resume(cl, pause) }) {
		cl.res.stop = ErrClosed
		return true
	}
	return false
}

// resume makes the further attempts of an asynchronous call, waiting as a synchronous one does.
func (c *Client) resume(cl *call, pause time.Duration) {
	ctx := context.Background()
	if c.pause(ctx, cl, pause) {
		c.do(ctx, cl)
	}
	c.finish(cl, true)
}

// finish gives an asynchronous call's result to its callback or pipeline.
func (c *Client) finish(cl *call, token bool) {
	err := c.end(cl)
	if o := cl.pipelined; o != nil {
		o.err = err
		o.p.push(opList{o, o})
		return
	}
	onEnd := cl.onEnd
	if token {
		<-c.async
	}
	onEnd(cl, err)
}
