package client

import (
	"context"

	"kvstore/wire"
)

// GetOption changes what a read reflects.
type GetOption struct {
	ext wire.ExtType
	rev Version
}

// AtLeast makes the read reflect at least revision rev, such as a version that another client told.
func AtLeast(rev Version) GetOption { return GetOption{ext: wire.ExtMinRevision, rev: rev} }

// AtRevision reads the past at rev, while it is kept; then the read fails with ErrCompacted.
func AtRevision(rev Version) GetOption { return GetOption{ext: wire.ExtAtRevision, rev: rev} }

// Stale reads what the asked node has, without making sure that it is the newest.
func Stale() GetOption { return GetOption{ext: wire.ExtConsistency} }

func appendGetExt(dst []byte, opts []GetOption) []byte {
	for _, o := range opts {
		switch o.ext {
		case wire.ExtConsistency:
			dst = wire.AppendExtU8(dst, o.ext, 1)
		case wire.ExtMinRevision, wire.ExtAtRevision:
			dst = wire.AppendExtU64(dst, o.ext, uint64(o.rev))
		}
	}
	return dst
}

// stale reports whether any node may answer.
func stale(opts []GetOption) bool {
	for _, o := range opts {
		if o.ext == wire.ExtConsistency {
			return true
		}
	}
	return false
}

// get encodes a read of one key.
func (c *Client) get(op wire.Opcode, key string, w want, opts []GetOption) (*call, *Error) {
	if e := checkKey(op, key); e != nil {
		return nil, e
	}
	cl := newCall(op, key, w)
	c.steer(cl)
	cl.head = appendGetExt(cl.head, opts)
	cl.anyNode = stale(opts)
	cl.setKey(key)
	return cl, nil
}

// Get reads a record. It is linearizable unless an option says otherwise; an absent key gives ErrNotFound.
func (c *Client) Get(ctx context.Context, key string, opts ...GetOption) (Value, error) {
	cl, e := c.get(wire.OpGet, key, wantValue, opts)
	if e != nil {
		return Value{}, e
	}
	err := c.run(ctx, cl)
	if err != nil {
		cl.release()
		return Value{}, err
	}
	v := valueOf(&cl.res.meta, cl.res.ext, cl.res.data)
	cl.release()
	return v, nil
}

// GetAppend appends the value of key to dst and gives the longer slice; it allocates only when dst has too
// little room. On any error dst comes back as it was. An absent key gives the bare ErrNotFound. Until
// GetAppend returns, the room behind dst belongs to the client.
func (c *Client) GetAppend(ctx context.Context, dst []byte, key string, opts ...GetOption) ([]byte, Meta, error) {
	cl, e := c.get(wire.OpGet, key, wantAppend, opts)
	if e != nil {
		return dst, Meta{}, e
	}
	cl.dst = dst
	err := c.run(ctx, cl)
	if err != nil {
		cl.release()
		return dst, Meta{}, err
	}
	out, m := cl.res.data, metaOf(&cl.res.meta)
	cl.release()
	return out, m, nil
}

// Exists gives a record's metadata without its value; ok is false when the key does not exist.
func (c *Client) Exists(ctx context.Context, key string, opts ...GetOption) (m Meta, ok bool, err error) {
	cl, e := c.get(wire.OpExists, key, wantMeta, opts)
	if e != nil {
		return Meta{}, false, e
	}
	defer cl.release()
	if err := c.run(ctx, cl); err != nil {
		return Meta{}, false, err
	}
	if cl.res.status == wire.StatusNotFound {
		return Meta{}, false, nil
	}
	return metaOf(&cl.res.meta), true, nil
}
