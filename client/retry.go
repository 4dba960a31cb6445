package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// backoff draws a pause for the n-th failure in a row (from 0), with full jitter, of less than most.
func backoff(n int, most time.Duration) time.Duration {
	bound := most
	if n < 9 { // 2 ms << 9 is beyond a second
		bound = min(bound, backoffMin<<n)
	}
	return rand.N(bound)
}

// budget is the token bucket of retries; a retry takes ten parts, a success gives one back.
type budget struct {
	parts atomic.Int64
	max   int64
}

func (b *budget) init(tokens int) {
	b.max = int64(tokens) * 10
	b.parts.Store(b.max)
}

// success refills; a full bucket is only read, so that callers do not contend for it.
func (b *budget) success() {
	if b.parts.Load() < b.max {
		b.parts.Add(1)
	}
}

// take reports whether a token was left.
func (b *budget) take() bool {
	if b.parts.Add(-10) >= 0 {
		return true
	}
	b.parts.Add(10)
	return false
}

// do makes attempts until the call has a result or nothing more may be tried; errorOf tells which. It
// returns with no connection referring to cl.
func (c *Client) do(ctx context.Context, cl *call) {
	cl.ctx, cl.done = ctx, ctx.Done()
	for {
		if c.submit(ctx, cl) {
			c.await(ctx, cl)
		}
		again, pause := c.judge(cl)
		if !again || !c.pause(ctx, cl, pause) {
			return
		}
	}
}

// submit begins an attempt: it finds session and connection and hands over the frame, waiting as long as
// bounds ask for. It reports false when the frame was not taken; nothing was sent then.
func (c *Client) submit(ctx context.Context, cl *call) bool {
	cl.res = result{}
	if cl.write && cl.sess == nil && c.o.session && !cl.single && !c.sessions.acquire(ctx, cl) {
		return false
	}
	if cl.spread || cl.at != nil {
		if cn := c.elsewhere(cl); cn != nil {
			return c.send(ctx, cl, cn)
		}
	}
	l, cn := c.route.ready()
	if cn == nil {
		if cn = c.route.connect(ctx, cl, l); cn == nil {
			return false
		}
	}
	return c.send(ctx, cl, cn)
}

// elsewhere gives the connection for a read that another node than the leader may answer; nil: there is none.
func (c *Client) elsewhere(cl *call) *conn {
	if cl.at != nil {
		if cn := cl.at.pick().cn.Load(); cn != nil && !cn.gone.Load() {
			return cn
		}
	}
	if cl.spread {
		return c.route.share()
	}
	return nil
}

// toLeader turns a read to the leader after another node could not answer it. It reports whether the read was not
// there already, so that it needs no pause.
func (cl *call) toLeader() bool {
	was := cl.anyNode && cl.leaderCan
	cl.at = nil
	if was {
		cl.anyNode, cl.spread = false, false
	}
	return was
}

// send hands the frame to a connection; false: nothing was sent, and cl.res says why.
func (c *Client) send(ctx context.Context, cl *call, cn *conn) bool {
	cl.cn = cn
	if cn.enqueueSmall(cl, cl.time(c)) {
		return true
	}
	if err := cn.prepare(cl); err != nil {
		cl.res.stop = err
		return false
	}
	if !cn.admit(ctx, cl) {
		return false
	}
	now := cl.time(c)
	cl.attempts++
	cn.seal(cl, timeoutMs(cl.deadline-now))
	return cn.enqueue(cl)
}

// timeoutMs gives the header's relative deadline.
func timeoutMs(left time.Duration) uint32 {
	switch {
	case left >= forever/2:
		return 0
	case left > wire.TimeoutMax:
		left = wire.TimeoutMax
	}
	return uint32(max(1, (left+time.Millisecond-1)/time.Millisecond))
}

// await waits for what becomes of the attempt.
func (c *Client) await(ctx context.Context, cl *call) {
	if done := ctx.Done(); done == nil || cl.watched {
		<-cl.ch
	} else {
		select {
		case <-cl.ch:
		case <-done:
			if cl.cn.abandon(cl) {
				cl.res = result{stop: ctx.Err(), sent: true}
			} else {
				// The answer is being delivered: it counts.
				<-cl.ch
			}
		}
	}
	if cl.ref != nil {
		cl.cn.letGo(cl)
	}
}

// judge decides after an attempt whether another one may be made, and after which pause. These are the
// rules; for a write "sent" means that bytes of the frame may have reached a socket.
//
//	no answer, not sent                  again
//	no answer, sent: read                again
//	no answer, sent: write, in session   again, with the same session and sequence number
//	no answer, sent: write, no session   unknown
//	class retry                          again, after the pause that the server asks for
//	any of these, spread read            again at once, at the leader (unless any node will do)
//	COMPACTED, spread read               the same
//	class unknown: read                  again
//	class unknown: write                 as "no answer, sent"
//	session expired, never sent before   again in a new session
//	session expired, sent before         unknown
//	class refused, sent before           unknown: this attempt was not applied, an earlier one may be
//	everything else                      final
func (c *Client) judge(cl *call) (again bool, pause time.Duration) {
	r := &cl.res
	if !r.answered {
		if r.sent && cl.write {
			cl.uncertain = true
			if cl.sess == nil {
				return false, 0
			}
		}
		if r.stop != nil || cl.once {
			return false, 0
		}
		if cl.toLeader() {
			return c.again(cl, 0)
		}
		if !cl.anyNode {
			return c.seek(cl, 0)
		}
		// Most often a connection that ended: the first retry finds another one.
		if cl.backoffs++; cl.backoffs > 1 {
			pause = backoff(cl.backoffs-2, backoffMax)
		}
		return c.again(cl, pause)
	}
	switch r.status.Class() {
	case wire.ClassRetry:
		cl.said = r.status
	case wire.ClassResult:
		c.budget.success()
		if c.route.hunting.Load() && !cl.anyNode {
			c.route.met()
		}
		return false, 0
	case wire.ClassRefused:
		if r.status == wire.StatusSessionExpired && cl.sess != nil {
			ss := cl.sess
			c.sessions.finish(cl)
			c.sessions.discard(ss)
			if cl.uncertain {
				return false, 0
			}
			if cl.expired++; cl.expired > 1 {
				pause = backoff(cl.expired, backoffMax)
			}
			return c.again(cl, pause)
		}
		if r.status == wire.StatusSessionStale && cl.sess != nil {
			// The server's window is not ours: begin anew rather than go on with a session in doubt.
			c.sessions.discard(cl.sess)
		}
		if r.status == wire.StatusCompacted && !cl.once && cl.toLeader() {
			// Each node keeps a past of its own.
			return c.again(cl, 0)
		}
		return false, 0
	case wire.ClassUnknown:
		if cl.write {
			cl.uncertain = true
			if cl.sess == nil {
				return false, 0
			}
		}
	}
	if cl.once {
		return false, 0
	}
	is, moved := c.leaderless(cl)
	if cl.toLeader() {
		return c.again(cl, 0)
	}
	if is && !cl.anyNode {
		if moved {
			if cl.redirects++; cl.redirects <= redirectsMax {
				return c.fit(cl, 0)
			}
		}
		asked := r.fail.retryAfter
		if c.route.cur.Load() != cl.cn.link.node {
			// The pause was meant for the node that was asked.
			asked = 0
		}
		return c.seek(cl, asked)
	}
	pause = max(backoff(cl.backoffs, backoffMax), r.fail.retryAfter)
	cl.backoffs++
	return c.again(cl, pause)
}

// again pays for a retry from the budget and fits its pause into the deadline.
func (c *Client) again(cl *call, pause time.Duration) (bool, time.Duration) {
	if !c.budget.take() {
		pause = max(pause, backoffMax/2+rand.N(backoffMax/2))
	}
	return c.fit(cl, pause)
}

// fit fits the pause before a retry into the deadline.
func (c *Client) fit(cl *call, pause time.Duration) (bool, time.Duration) {
	left := cl.deadline - c.now()
	if pause >= left {
		var asked time.Duration
		if f := cl.res.fail; f != nil {
			asked = f.retryAfter
		}
		if cl.last || left < backoffMin || asked >= left {
			cl.res.stop = context.DeadlineExceeded
			return false, 0
		}
		cl.last = true
		pause = max(asked, left/2)
	}
	if f := c.o.hooks.OnRetry; f != nil {
		f(cl.op, cl.attempts, pause, cl.res.status, cl.res.err)
	}
	return true, pause
}

// pause waits before the next attempt; false: the time is up, and cl.res.stop says so. A call that waits for
// a leader goes on as soon as there is one, or as it becomes the pilot.
func (c *Client) pause(ctx context.Context, cl *call, d time.Duration) bool {
	found := cl.found
	cl.found = nil
	if d <= 0 {
		if err := ctx.Err(); err != nil {
			cl.res.stop = err
			return false
		}
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	var baton <-chan struct{}
	if found != nil {
		baton = c.route.baton
	}
	select {
	case <-t.C:
		return true
	case <-found:
		cl.last = false
		return true
	case <-baton:
		cl.pilot, cl.last = true, false
		return true
	case <-ctx.Done():
		cl.res.stop = ctx.Err()
	case <-c.ctx.Done():
		cl.res.stop = ErrClosed
	}
	return false
}

// wait waits for ch within the call's time, and no longer than patience. The error is the context's,
// context.DeadlineExceeded, errSlow when patience is over, or ErrClosed.
func (c *Client) wait(ctx context.Context, cl *call, ch <-chan struct{}, patience time.Duration) error {
	cl.waited = true
	var up <-chan time.Time
	over := error(context.DeadlineExceeded)
	left := forever
	if cl.deadline < forever {
		left = cl.deadline - c.now()
	}
	if patience < left {
		left, over = patience, errSlow
	}
	if left < forever {
		t := time.NewTimer(left)
		defer t.Stop()
		up = t.C
	}
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-up:
		return over
	case <-c.ctx.Done():
		return ErrClosed
	}
}

// errorOf gives the error of a finished call; nil for StatusOK, and where absence is a result.
func (c *Client) errorOf(cl *call) error {
	r := &cl.res
	if r.answered && r.status == wire.StatusOK && r.stop == nil {
		return nil
	}
	if r.answered && r.status == wire.StatusNotFound {
		switch cl.want {
		case wantMeta:
			return nil
		case wantVersion:
			if cl.op == wire.OpDelete {
				return nil
			}
		case wantAppend, wantInto:
			return ErrNotFound
		}
	}
	e := &Error{Op: cl.op.String(), Key: cl.key, Attempts: cl.attempts, Failed: r.failed}
	if r.answered {
		e.Status, e.kind = r.status, kindOf(r.status)
		if f := r.fail; f != nil {
			e.Message, e.RetryAfter, e.Leader, e.Limit = f.message, f.retryAfter, f.leader, f.limit
		}
		if e.Message == "" {
			e.Message = r.status.Info().Message
		}
	} else if r.err != nil {
		e.kind, e.Message = ErrUnavailable, r.err.Error()
		var inner *Error
		if errors.As(r.err, &inner) {
			// The server refused the connection or the session, and with it this operation.
			e.Status, e.Message, e.RetryAfter, e.kind = inner.Status, inner.Message, inner.RetryAfter, inner.kind
		} else if r.sent && (errors.Is(r.err, ErrProtocol) || errors.Is(r.err, wire.ErrCorrupt) || errors.Is(r.err, wire.ErrFrameTooLarge)) {
			e.kind = ErrProtocol
		} else if !r.sent && cl.said != wire.StatusOK {
			// Some server did answer, if not the one that was tried last: that is worth more than its silence.
			e.Status, e.kind = cl.said, kindOf(cl.said)
			e.Message = e.Status.Info().Message + "; then " + r.err.Error()
		}
		e.cause = foreign(r.err)
	}
	var refusal *Error
	switch {
	case r.stop == nil:
	case errors.Is(r.stop, ErrClosed):
		e.kind, e.cause = ErrClosed, nil
		e.Message = "the client is closed"
	case errors.As(r.stop, &refusal):
		e.Status, e.Message, e.Limit, e.RetryAfter, e.kind = refusal.Status, refusal.Message, refusal.Limit, refusal.RetryAfter, refusal.kind
	default:
		e.cause = contextCause(r.stop)
		if e.kind == nil {
			e.Message = "the time was up while the request was under way"
			if !r.sent {
				e.Message = "the time was up before the request was sent"
			}
			if errors.Is(r.stop, context.DeadlineExceeded) {
				e.kind = ErrTimeout
			}
		}
	}
	if !cl.write {
		return e
	}
	e.outcome = outcomeNot
	final := r.answered && r.status.Class() == wire.ClassResult && r.stop == nil
	if final && e.kind == ErrProtocol {
		// A result that this version does not know: executed, but how it ended can't be told.
		cl.uncertain, final = true, false
	}
	if cl.uncertain && !final {
		e.outcome, e.kind, e.cause = outcomeMaybe, nil, contextCause(r.stop)
	}
	return e
}

// foreign keeps a cause only if no sentinel of this package hides in it.
func foreign(err error) error {
	var e *Error
	if errors.As(err, &e) || errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
		return nil
	}
	return err
}
