package client

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	"kvstore/wire"
)

// GetOption changes what a read reflects, and who may answer it.
type GetOption struct {
	ext wire.ExtType
	rev Version // or the consistency, or milliseconds
}

// AtLeast makes the read reflect at least revision rev, such as a version that another client told.
func AtLeast(rev Version) GetOption { return GetOption{ext: wire.ExtMinRevision, rev: rev} }

// AtRevision reads the past at rev, while it is kept; then the read fails with ErrCompacted. One entry of the log holds
// the writes of many callers at once, and of the states within it only the last is kept: at the version that a write
// told, a record with that version or an older one can be read, and ErrCompacted may be the answer for all else. The
// revision that a listing or a batch of reads told is always the last of its entry.
func AtRevision(rev Version) GetOption { return GetOption{ext: wire.ExtAtRevision, rev: rev} }

// AnyNode lets any node answer, and the answer is as good as the leader's (linearizable): a node that does not lead
// asks the leader how far it must have applied. Reads are spread over the nodes; what one of them can't answer the
// leader is asked. It can't stand beside Stale and MaxAge.
func AnyNode() GetOption { return GetOption{ext: wire.ExtConsistency, rev: wire.ConsistencyAnyNode} }

// Stale reads what the asked node has, without making sure that it is the newest; Value.Age tells how old that may
// be. Reads are spread over the nodes, so that one may show less than the one before it.
func Stale() GetOption { return GetOption{ext: wire.ExtConsistency, rev: wire.ConsistencyStale} }

// MaxAge is Stale with a bound, in whole milliseconds, at least one: everything that was acknowledged d before the
// read began is in the answer. A node whose state may be older asks the leader first.
func MaxAge(d time.Duration) GetOption {
	return GetOption{ext: wire.ExtMaxAge, rev: Version(max(d, 0) / time.Millisecond)}
}

// AgeUnknown is the age of a stale answer of which nothing is known.
const AgeUnknown = time.Duration(math.MaxInt64)

// reads puts the options of a read into a call.
func (cl *call) reads(opts []GetOption) *Error {
	consistency, maxAge := Version(wire.ConsistencyLinearizable), Version(0)
	for _, o := range opts {
		switch o.ext {
		case wire.ExtMinRevision, wire.ExtAtRevision:
			cl.head = wire.AppendExtU64(cl.head, o.ext, uint64(o.rev))
			continue
		case wire.ExtMaxAge:
			if o.rev == 0 {
				return local(cl.op, cl.key, ErrBadRequest, 0, "a max age is at least a millisecond; leave it out, and Stale too, for a read that is linearizable")
			}
			maxAge, o.rev = o.rev, wire.ConsistencyStale
		}
		if consistency != wire.ConsistencyLinearizable && consistency != o.rev {
			return local(cl.op, cl.key, ErrBadRequest, 0, "AnyNode asks for the newest; it can't stand beside Stale or MaxAge")
		}
		consistency = o.rev
	}
	if consistency == wire.ConsistencyLinearizable {
		return nil
	}
	cl.head = wire.AppendExtU8(cl.head, wire.ExtConsistency, uint8(consistency))
	if maxAge != 0 {
		cl.head = wire.AppendExtU64(cl.head, wire.ExtMaxAge, uint64(maxAge))
	}
	cl.anyNode, cl.spread = true, true
	cl.stale = consistency == wire.ConsistencyStale
	cl.leaderCan = !cl.stale || maxAge != 0
	return nil
}

// age gives how old the answer may be; 0 for one that is linearizable.
func (cl *call) age() time.Duration {
	if !cl.stale {
		return 0
	}
	for ext := cl.res.ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		ext = rest
		if t == wire.ExtAge && len(v) == 8 {
			us := binary.LittleEndian.Uint64(v)
			if us >= uint64(AgeUnknown/time.Microsecond) {
				break
			}
			return time.Duration(us) * time.Microsecond
		}
	}
	return AgeUnknown
}

// get encodes a read of one key.
func (c *Client) get(op wire.Opcode, key string, w want, opts []GetOption) (*call, *Error) {
	cl := newCall(op, key, w)
	if e := c.fillGet(cl, opts); e != nil {
		cl.release()
		return nil, e
	}
	cl.begun(c, c.now())
	return cl, nil
}

// fillGet encodes the read that cl has begun, but for its times.
func (c *Client) fillGet(cl *call, opts []GetOption) *Error {
	if e := checkKey(cl.op, cl.key); e != nil {
		return e
	}
	c.address(cl)
	if e := cl.reads(opts); e != nil {
		return e
	}
	cl.setKey(cl.key)
	return nil
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
	v.age = cl.age()
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
