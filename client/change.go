package client

import (
	"context"
	"time"

	"kvstore/wire"
)

// Touch gives the record under key a new time to live, counted from when the touch is applied, or takes it away (ttl 0).
// Value, tags and content type stay; the version is a new one. ErrNotFound when there is no record.
func (c *Client) Touch(ctx context.Context, key string, ttl time.Duration, opts ...DeleteOption) (Version, error) {
	if e := checkKey(wire.OpTouch, key); e != nil {
		return 0, e
	}
	cl := newCall(wire.OpTouch, key, wantVersion)
	defer cl.release()
	c.steer(cl)
	var limit uint64
	var err error
	if cl.head, limit, err = appendTouchExt(cl.head, ttl, opts); err != nil {
		return 0, optionError(wire.OpTouch, key, err, limit)
	}
	cl.setKey(key)
	if err := c.run(ctx, cl); err != nil {
		return 0, err
	}
	if cl.res.status == wire.StatusNotFound || cl.res.rev == 0 {
		return 0, &Error{Op: cl.op.String(), Key: key, Status: wire.StatusNotFound, Attempts: cl.attempts, kind: ErrNotFound, outcome: outcomeNot}
	}
	return Version(cl.res.rev), nil
}

// Increment adds delta to the whole number that key holds in decimal digits and gives the sum. A key that there is not
// counts as 0, and gets the time to live of WithTTL; one that is there keeps its own unless WithTTL is given, its tags and
// its content type. ErrNotANumber: nothing was changed. With a session, which is the default, an increment is done
// exactly once whatever breaks; without one an unknown outcome is ErrMaybeApplied.
func (c *Client) Increment(ctx context.Context, key string, delta int64, opts ...IncrementOption) (value int64, v Version, err error) {
	if e := checkKey(wire.OpIncrement, key); e != nil {
		return 0, 0, e
	}
	cl := newCall(wire.OpIncrement, key, wantCounter)
	defer cl.release()
	c.steer(cl)
	var limit uint64
	if cl.head, limit, err = appendIncrementExt(cl.head, opts); err != nil {
		return 0, 0, optionError(wire.OpIncrement, key, err, limit)
	}
	cl.setKey(key)
	cl.value, cl.owned = wire.AppendIncrement(nil, delta), true
	if err := c.run(ctx, cl); err != nil {
		return 0, 0, err
	}
	return cl.res.counter, Version(cl.res.rev), nil
}
