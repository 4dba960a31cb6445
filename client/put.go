package client

import (
	"context"
	"errors"
	"unicode/utf8"

	"kvstore/wire"
)

// checkKey refuses what no server would take.
func checkKey(op wire.Opcode, key string) *Error {
	switch {
	case len(key) == 0:
		return local(op, key, ErrBadKey, wire.KeyBytesMax, "empty key; a key has 1 to %d bytes", wire.KeyBytesMax)
	case len(key) > wire.KeyBytesMax:
		return local(op, "", ErrBadKey, wire.KeyBytesMax, "key of %d bytes; at most %d", len(key), wire.KeyBytesMax)
	case !utf8.ValidString(key):
		return local(op, key, ErrBadKey, 0, "key is not valid UTF-8; encode it, for example as base64 or hex")
	}
	return nil
}

// optionError turns what an option found wrong into the operation's error.
func optionError(op wire.Opcode, key string, err error, limit uint64) *Error {
	kind := ErrBadRequest
	if errors.Is(err, ErrTooLarge) {
		kind = ErrTooLarge
	}
	return local(op, key, kind, limit, "%v", err)
}

// put encodes a put; nil and an error when it can't be sent.
func (c *Client) put(key string, value []byte, opts []PutOption) (*call, *Error) {
	cl := newCall(wire.OpPut, key, wantVersion)
	if e := c.fillPut(cl, value, opts); e != nil {
		cl.release()
		return nil, e
	}
	cl.begun(c, c.now())
	cl.value = value
	return cl, nil
}

// fillPut encodes the put that cl has begun, but for its value and its times.
func (c *Client) fillPut(cl *call, value []byte, opts []PutOption) *Error {
	if e := checkKey(wire.OpPut, cl.key); e != nil {
		return e
	}
	if len(value) > c.o.maxValue {
		return local(wire.OpPut, cl.key, ErrTooLarge, uint64(c.o.maxValue), "value of %d bytes; at most %d", len(value), c.o.maxValue)
	}
	c.address(cl)
	var limit uint64
	var err error
	if cl.head, limit, err = appendPutExt(cl.head, value, opts); err != nil {
		return optionError(wire.OpPut, cl.key, err, limit)
	}
	cl.setKey(cl.key)
	return nil
}

// Put stores value under key and gives the version of the write. The value is not read after Put returns.
func (c *Client) Put(ctx context.Context, key string, value []byte, opts ...PutOption) (Version, error) {
	cl, e := c.put(key, value, opts)
	if e != nil {
		return 0, e
	}
	err := c.run(ctx, cl)
	v := Version(cl.res.rev)
	cl.release()
	if err != nil {
		return 0, err
	}
	return v, nil
}

// Delete removes key. deleted is false when there was nothing to remove; v is the version of the deletion.
func (c *Client) Delete(ctx context.Context, key string, opts ...DeleteOption) (deleted bool, v Version, err error) {
	if e := checkKey(wire.OpDelete, key); e != nil {
		return false, 0, e
	}
	cl := newCall(wire.OpDelete, key, wantVersion)
	defer cl.release()
	c.steer(cl)
	var limit uint64
	if cl.head, limit, err = appendDeleteExt(cl.head, opts); err != nil {
		return false, 0, optionError(wire.OpDelete, key, err, limit)
	}
	cl.setKey(key)
	if err := c.run(ctx, cl); err != nil {
		return false, 0, err
	}
	// An absent key: NOT_FOUND, or no revision, since nothing was changed.
	if cl.res.status == wire.StatusNotFound || cl.res.rev == 0 {
		return false, 0, nil
	}
	return true, Version(cl.res.rev), nil
}
