package bench

import (
	"context"
	"errors"
	"time"

	"kvstore/client"
)

// timeoutDefault is that of one operation.
const timeoutDefault = 10 * time.Second

// ClientOptions describes how Connect connects.
type ClientOptions struct {
	// Protocol is one of Protocols. Default ProtocolNative.
	Protocol string
	// Endpoints are addresses of the ports of that protocol. Through gRPC and REST all of them are used in turn.
	Endpoints []string
	// Conns is the number of connections per node. Default 1. REST takes one for each caller instead.
	Conns int
	// Callers is how many operations at most are under way at once, for which REST keeps connections. Default 16.
	Callers int
	// Timeout bounds one operation over all its attempts. Default 10s.
	Timeout time.Duration
	// WithoutSession sends writes without a session: cheaper for the server, and unknown outcomes are not
	// resolved by retries. gRPC and REST have no sessions.
	WithoutSession bool
}

// ClientTarget is a Target through the Go client.
type ClientTarget struct {
	c *client.Client
	// reads are options of each Get.
	reads []client.GetOption
}

// Open connects to the binary ports of a cluster. The error is the client's.
func Open(ctx context.Context, o ClientOptions) (*ClientTarget, error) { return open(ctx, o) }

func open(ctx context.Context, o ClientOptions, more ...client.Option) (*ClientTarget, error) {
	setDefault(&o.Conns, 1)
	setDefault(&o.Timeout, timeoutDefault)
	opts := append([]client.Option{client.WithConns(o.Conns), client.WithTimeout(o.Timeout), client.WithName("kvbench")}, more...)
	if o.WithoutSession {
		opts = append(opts, client.WithoutSession())
	}
	c, err := client.Open(ctx, o.Endpoints, opts...)
	if err != nil {
		return nil, err
	}
	return &ClientTarget{c: c}, nil
}

// Close ends the connections.
func (t *ClientTarget) Close() error { return t.c.Close() }

// Status returns the cluster's status as JSON.
func (t *ClientTarget) Status(ctx context.Context) ([]byte, error) { return t.c.Status(ctx) }

// Get implements Target.
func (t *ClientTarget) Get(ctx context.Context, key string, dst []byte) ([]byte, bool, error) {
	v, _, err := t.c.GetAppend(ctx, dst, key, t.reads...)
	if errors.Is(err, client.ErrNotFound) {
		return v, false, nil
	}
	return v, err == nil, err
}

// Put implements Target.
func (t *ClientTarget) Put(ctx context.Context, key string, value []byte) error {
	_, err := t.c.Put(ctx, key, value)
	return err
}

// Scan implements Target.
func (t *ClientTarget) Scan(ctx context.Context, start string, limit int) (items int, err error) {
	for _, err := range t.c.List(ctx, client.ListOptions{Start: start, Limit: limit}) {
		if err != nil {
			return items, err
		}
		items++
	}
	return items, nil
}

// GetMany implements Target.
func (t *ClientTarget) GetMany(ctx context.Context, keys []string) (found int, err error) {
	res, err := t.c.BatchGet(ctx, keys)
	if err != nil {
		return 0, err
	}
	for i := range res.Items {
		switch err := res.Items[i].Err; {
		case err == nil:
			found++
		case !errors.Is(err, client.ErrNotFound):
			return found, err
		}
	}
	return found, nil
}

// PutMany implements Target.
func (t *ClientTarget) PutMany(ctx context.Context, keys []string, values [][]byte) error {
	items := make([]client.KV, len(keys))
	for i := range keys {
		items[i] = client.KV{Key: keys[i], Value: values[i]}
	}
	_, err := t.c.BatchPut(ctx, items, true)
	return err
}

// Transact implements Target.
func (t *ClientTarget) Transact(ctx context.Context, keys []string, values [][]byte) error {
	x := t.c.Txn()
	writes := (len(keys) + 1) / 2
	for i, key := range keys {
		if i < writes {
			x.Put(key, values[i])
		} else {
			x.Get(key)
		}
	}
	_, err := x.Commit(ctx)
	return err
}

// Pipeline implements Target. The client's own timeout bounds the operations, not ctx.
func (t *ClientTarget) Pipeline(_ context.Context, depth int) Pipeline {
	p := &clientPipeline{p: t.c.NewPipeline(), reads: t.reads, ops: make([]client.Op, depth)}
	for i := range p.ops {
		p.ops[i].Tag = i
	}
	return p
}

// clientPipeline is that of the Go client.
type clientPipeline struct {
	p     *client.Pipeline
	reads []client.GetOption
	ops   []client.Op // by slot
}

// Get implements Pipeline.
func (p *clientPipeline) Get(slot int, key string) { p.p.Get(&p.ops[slot], key, p.reads...) }

// Put implements Pipeline.
func (p *clientPipeline) Put(slot int, key string, value []byte) { p.p.Put(&p.ops[slot], key, value) }

// Flush implements Pipeline.
func (p *clientPipeline) Flush() { p.p.Flush() }

// Ready implements Pipeline.
func (p *clientPipeline) Ready() <-chan struct{} { return p.p.Ready() }

// Take implements Pipeline.
func (p *clientPipeline) Take(ended []Ended) []Ended {
	for _, op := range p.p.Take() {
		e := Ended{Slot: op.Tag.(int), Found: true, Err: op.Err()}
		if e.Err == client.ErrNotFound { // the bare one
			e.Found, e.Err = false, nil
		}
		ended = append(ended, e)
	}
	return ended
}

// Kind implements Target.
func (t *ClientTarget) Kind(err error) Kind {
	is := func(sentinels ...error) bool {
		for _, s := range sentinels {
			if errors.Is(err, s) {
				return true
			}
		}
		return false
	}
	switch {
	case is(client.ErrMaybeApplied): // first: an unknown outcome is nothing else
		return KindUnknown
	case is(client.ErrTimeout, context.DeadlineExceeded):
		return KindTimeout
	case is(client.ErrBusy, client.ErrTooManySessions):
		return KindBusy
	case is(client.ErrUnavailable, client.ErrDiskFull):
		return KindUnavailable
	case is(client.ErrDenied, client.ErrUnauthenticated):
		return KindDenied
	case is(client.ErrBadRequest, client.ErrBadKey, client.ErrTooLarge, client.ErrUnsupported, client.ErrNoNamespace, client.ErrChecksum):
		return KindRefused
	}
	return KindOther
}
