package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// forever is the deadline of a call without one.
const forever = time.Duration(math.MaxInt64)

// Client is a connection to a KVStore, safe for any number of goroutines, which share its connections.
// Open makes one; Close ends it.
type Client struct {
	// Immutable after Open.
	o        options
	base     time.Time
	route    *route
	sessions sessions
	budget   budget
	async    chan struct{} // one token per asynchronous operation under way that has a callback
	lanes    atomic.Uint32 // of pipelines
	onAnswer func(*call)   // answered, bound once
	ctx      context.Context
	cancel   context.CancelFunc

	// Guarded by mu.
	mu     sync.Mutex
	closed bool

	// wg.Add under mu while closed is false.
	wg sync.WaitGroup
}

// Open connects to the first address ("host:port" of a binary port) that answers. Each is tried once, in
// order; when none answers, the error matches ErrUnavailable, or tells why a server refused. One address of a
// cluster is enough: servers name the others and the leader. But it must answer now, so give more than one.
// ctx bounds Open alone.
func Open(ctx context.Context, addrs []string, opts ...Option) (*Client, error) {
	o := defaultOptions()
	for _, f := range opts {
		f(&o)
	}
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("cannot open client: %w", errors.Join(ErrBadRequest, err))
	}
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a string) bool { return a == "" })
	if len(addrs) == 0 || len(addrs) > nodesMax {
		return nil, fmt.Errorf("cannot open client: %w: %d addresses; 1 to %d", ErrBadRequest, len(addrs), nodesMax)
	}
	c := newClient(o, addrs)
	if err := c.first(ctx); err != nil {
		// Nothing is open yet: Close only ends what Open began.
		_ = c.Close()
		return nil, fmt.Errorf("cannot open client: %w", err)
	}
	return c, nil
}

// newClient makes a client that has no connection yet.
func newClient(o options, addrs []string) *Client {
	c := &Client{o: o, base: time.Now()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.onAnswer = c.answered
	c.sessions.client = c
	c.budget.init(o.budget)
	c.async = make(chan struct{}, o.maxInflight*o.conns)
	c.route = newRoute(c, addrs)
	return c
}

// first connects to the first node that answers. The next one is tried as soon as an attempt fails, or has
// gone on for a while; it goes on beside the next one then.
func (c *Client) first(ctx context.Context) error {
	c.route.mu.Lock()
	nodes := slices.Clone(c.route.nodes)
	c.route.mu.Unlock()
	results := make(chan error, len(nodes))
	var errs []error
	for started, ended := 0, 0; ended < len(nodes); {
		if started < len(nodes) {
			_, f := nodes[started].links[0].board()
			// Owned by the client; ends with the flight.
			if f == nil || !c.spawn(func() { <-f.done; results <- f.err }) {
				return ErrClosed
			}
			started++
		}
		var slow <-chan time.Time
		if started < len(nodes) {
			slow = time.After(c.o.patience)
		}
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			errs = append(errs, err)
			ended++
		case <-slow:
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
			ended = len(nodes)
		}
	}
	err := errors.Join(errs...)
	e := &Error{Op: "open", Message: err.Error(), kind: ErrUnavailable, cause: foreign(err)}
	var refusal *Error
	if errors.As(err, &refusal) {
		e.Status, e.kind, e.RetryAfter = refusal.Status, refusal.kind, refusal.RetryAfter
	}
	return e
}

// now is the time since the client began: one monotonic clock reading, half the price of time.Now.
func (c *Client) now() time.Duration { return time.Since(c.base) }

// spawn runs f in a goroutine that Close waits for; false once the client is closed.
func (c *Client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// steer appends the elements that every operation on keys carries, and sets the call's times.
func (c *Client) steer(cl *call) {
	c.address(cl)
	cl.begun(c, c.now())
}

// address appends the elements that every operation on keys carries.
func (c *Client) address(cl *call) {
	if ns := c.o.namespace; ns != "" {
		switch cl.op {
		case wire.OpStatus, wire.OpAdmin, wire.OpPing, wire.OpSessionOpen:
		default:
			cl.head = wire.AppendExtString(cl.head, wire.ExtNamespace, ns)
		}
	}
}

// begun sets the times of a call that begins now.
func (cl *call) begun(c *Client, now time.Duration) {
	cl.started, cl.deadline = now, forever
	if c.o.timeout > 0 {
		cl.deadline = now + c.o.timeout
	}
}

// bound sets the call's deadline from ctx, and reports an end that has come already.
func (c *Client) bound(ctx context.Context, cl *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d, ok := ctx.Deadline(); ok {
		cl.deadline = cl.started + time.Until(d)
	}
	return nil
}

// run is a synchronous operation: all attempts, and the error. The result is in cl.res.
func (c *Client) run(ctx context.Context, cl *call) error {
	if err := c.bound(ctx, cl); err != nil {
		cl.res = result{stop: err}
	} else if c.ctx.Err() != nil {
		cl.res = result{stop: ErrClosed}
	} else {
		c.do(ctx, cl)
	}
	return c.end(cl)
}

// end gives a finished call's error, and its sequence number back.
func (c *Client) end(cl *call) error {
	err := c.errorOf(cl)
	c.sessions.finish(cl)
	c.route.resign(cl)
	if f := c.o.hooks.OnOp; f != nil {
		f(cl.op, c.now()-cl.started, cl.attempts, err)
	}
	return err
}

// ServerInfo gives what the server said last when a connection was made.
func (c *Client) ServerInfo() wire.HelloAck {
	if a := c.route.ack.Load(); a != nil {
		b := *a
		b.Members = slices.Clone(a.Members)
		return b
	}
	return wire.HelloAck{}
}

// Status gives the status of the cluster as a server that can be reached sees it, a JSON document as of
// GET /api/v1/admin/status.
func (c *Client) Status(ctx context.Context) ([]byte, error) {
	cl := newCall(wire.OpStatus, "", wantPayload)
	defer cl.release()
	cl.anyNode = true
	c.steer(cl)
	if err := c.run(ctx, cl); err != nil {
		return nil, err
	}
	return cl.res.data, nil
}

// Admin has the leader execute an administrative request, a JSON document of at most wire.AdminBytesMax
// bytes as of POST /api/v1/admin/members, and gives its answer, a JSON document too. Such requests belong to
// no session: one that may have been executed is never sent again, and fails with ErrMaybeApplied; ask for the
// list of members before deciding anew. Every other failure matches ErrNotApplied.
func (c *Client) Admin(ctx context.Context, request []byte) ([]byte, error) {
	if n := len(request); n == 0 || n > wire.AdminBytesMax {
		kind := ErrBadRequest
		if n > 0 {
			kind = ErrTooLarge
		}
		e := local(wire.OpAdmin, "", kind, wire.AdminBytesMax, "administrative request of %d bytes; 1 to %d", n, wire.AdminBytesMax)
		e.outcome = outcomeNot
		return nil, e
	}
	cl := newCall(wire.OpAdmin, "", wantPayload)
	defer cl.release()
	cl.write, cl.single = true, true
	c.steer(cl)
	cl.value = request
	if err := c.run(ctx, cl); err != nil {
		return nil, err
	}
	return cl.res.data, nil
}

// Ping asks for a sign of life and gives the time until it came, over all attempts.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	cl := newCall(wire.OpPing, "", wantNothing)
	defer cl.release()
	cl.anyNode = true
	c.steer(cl)
	if err := c.run(ctx, cl); err != nil {
		return 0, err
	}
	return c.now() - cl.started, nil
}

// closeSessionWait bounds what Close spends on telling the server that the session is over.
const closeSessionWait = 500 * time.Millisecond

// Close ends the session, as far as the server answers within half a second, and the connections.
// Operations under way fail at once: reads with ErrClosed, writes with ErrNotApplied or ErrMaybeApplied.
// It must not be called from a callback. Closing twice does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	cl := c.sessions.closing()
	if _, cn := c.route.ready(); cl != nil && cn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeSessionWait)
		cl.started = c.now()
		cl.deadline = cl.started + closeSessionWait
		// Best effort: a session that is not closed expires.
		c.do(ctx, cl)
		cancel()
		cl.release()
	}
	// Ends every connection too, see link.fly.
	c.cancel()
	c.wg.Wait()
	return nil
}
