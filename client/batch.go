package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"kvstore/wire"
)

// KV is one item of BatchPut.
type KV struct {
	Key   string
	Value []byte
	// Options are those of Put, conditions included.
	Options []PutOption
}

// ItemResult is what became of one item of a batch or one operation of a transaction.
type ItemResult struct {
	// Version of the item's write; 0 for a read, for a delete that found nothing, when Truncated, or when a
	// very long answer had no room for it.
	Version Version
	// Deleted is true for a delete that found something.
	Deleted bool
	// Counter is the sum that an increment made, if the answer had room for it.
	Counter int64
	// Value is what a read found; nil otherwise.
	Value *Value
	// Err is nil for what succeeded. A read of an absent key gives ErrNotFound; one in a transaction whose
	// answer had no room for the value, ErrTooLarge.
	Err error
}

// BatchResult is what became of a batch.
type BatchResult struct {
	// Revision is that of the (last) request that the batch was sent as.
	Revision Version
	// Items stand in the order of the request.
	Items []ItemResult
	// Truncated: the batch is applied, but its answer was lost and the servers kept only that it was. Items
	// without conditions have succeeded, with unknown versions; those with conditions carry
	// ErrMaybeApplied.
	Truncated bool
	// Age tells how old a stale answer to BatchGet may be, as Value.Age does, the absence of keys included.
	Age time.Duration
}

// requestBytesMax is what one request of a split batch may hold: half of the largest frame keeps a server's
// queues even, and a batch of small items below its size in any case.
const requestBytesMax = wire.FrameBodyBytesMax / 2

// BatchPut stores many items in few requests. With atomic, all are stored or none, and a failed condition
// fails the batch with ErrConditionFailed; the batch must fit one request, else ErrTooLarge. Without it each
// item stands alone, results[i].Err tells of item i, and a long batch is sent as several requests, one
// after the other; err is then that of the first request that failed as a whole, whose items and those
// after it carry it.
func (c *Client) BatchPut(ctx context.Context, items []KV, atomic bool) (BatchResult, error) {
	b := batch{c: c, op: wire.OpBatch, atomic: atomic}
	for i := range items {
		it := &items[i]
		if e := checkKey(wire.OpPut, it.Key); e != nil {
			return BatchResult{}, b.itemError(i, e)
		}
		if len(it.Value) > c.o.maxValue {
			return BatchResult{}, b.itemError(i, local(wire.OpPut, it.Key, ErrTooLarge, uint64(c.o.maxValue), "value of %d bytes; at most %d", len(it.Value), c.o.maxValue))
		}
		ext, limit, err := appendPutExt(nil, it.Value, it.Options)
		if err != nil {
			return BatchResult{}, b.itemError(i, optionError(wire.OpPut, it.Key, err, limit))
		}
		b.add(wire.OpPut, ext, it.Key, it.Value)
	}
	return b.run(ctx)
}

// BatchDelete removes many keys; each stands alone, as in BatchPut without atomic.
func (c *Client) BatchDelete(ctx context.Context, keys []string) (BatchResult, error) {
	b := batch{c: c, op: wire.OpBatch}
	for i, key := range keys {
		if e := checkKey(wire.OpDelete, key); e != nil {
			return BatchResult{}, b.itemError(i, e)
		}
		b.add(wire.OpDelete, nil, key, nil)
	}
	return b.run(ctx)
}

// BatchGet reads many keys. results[i] tells of keys[i]: a Value, or ErrNotFound. What did not fit the
// first answer is asked for again, so that the values of a very large batch may stem from different
// moments; pass AtRevision for one moment. err is that of a request that failed as a whole.
func (c *Client) BatchGet(ctx context.Context, keys []string, opts ...GetOption) (BatchResult, error) {
	out := BatchResult{Items: make([]ItemResult, len(keys))}
	todo := make([]int, len(keys))
	for i, key := range keys {
		if e := checkKey(wire.OpGet, key); e != nil {
			return BatchResult{}, (&batch{op: wire.OpMultiGet}).itemError(i, e)
		}
		todo[i] = i
	}
	for len(todo) > 0 {
		b := batch{c: c, op: wire.OpMultiGet, opts: opts}
		n := 0
		for n < len(todo) && n < wire.BatchOpsMax && len(b.payload) < requestBytesMax {
			b.add(wire.OpGet, nil, keys[todo[n]], nil)
			n++
		}
		res, err := b.send(ctx, b.payload, 0, n)
		if err != nil {
			for _, i := range todo {
				out.Items[i].Err = err
			}
			return out, err
		}
		out.Revision, out.Age = res.Revision, max(out.Age, res.Age)
		// Indices of what has to be asked again; they are never ahead of what was read.
		rest := todo[:0]
		full := 0
		for j, i := range todo[:n] {
			if b.full[j] {
				full++
				rest = append(rest, i)
				continue
			}
			out.Items[i] = res.Items[j]
		}
		rest = append(rest, todo[n:]...)
		todo = rest
		if full == n {
			// Not even one value fits beside the others' headers: a request of its own has room.
			i := todo[0]
			v, err := c.Get(ctx, keys[i], opts...)
			if err != nil {
				out.Items[i].Err = err
			} else {
				out.Items[i].Value, out.Age = &v, max(out.Age, v.age)
			}
			todo = todo[1:]
		}
	}
	return out, nil
}

// batch encodes items and decodes their results.
type batch struct {
	c      *Client
	op     wire.Opcode
	atomic bool
	opts   []GetOption

	payload []byte // group header, then items
	ends    []int  // ends[i] is where item i ends in payload
	ops     []wire.Opcode
	guarded []bool // item has conditions
	full    []bool // set by send: REPLY_FULL
}

func (b *batch) itemError(i int, e *Error) error {
	e.Op = b.op.String()
	e.Message = fmt.Sprintf("item %d: %s", i, e.Message)
	if b.op.IsWrite() {
		e.outcome = outcomeNot
	} else {
		e.outcome = outcomeNone
	}
	return e
}

func (b *batch) add(op wire.Opcode, ext []byte, key string, value []byte) {
	if b.payload == nil {
		b.payload = wire.AppendGroupHeader(b.payload, 0, 0)
	}
	b.payload = wire.AppendItemHeader(b.payload, op, 0, len(ext), len(key), len(value))
	b.payload = append(b.payload, ext...)
	b.payload = append(b.payload, key...)
	b.payload = append(b.payload, value...)
	b.ends = append(b.ends, len(b.payload))
	b.ops = append(b.ops, op)
	b.guarded = append(b.guarded, hasCondition(ext))
}

func hasCondition(ext []byte) bool {
	for len(ext) > 0 {
		t, _, rest, err := wire.NextExt(ext)
		if err != nil {
			return false
		}
		if t == wire.ExtCondition {
			return true
		}
		ext = rest
	}
	return false
}

// run sends the batch in as many requests as it takes.
func (b *batch) run(ctx context.Context) (BatchResult, error) {
	n := len(b.ends)
	if n == 0 {
		return BatchResult{}, nil
	}
	if b.atomic {
		if n > wire.BatchOpsMax {
			return BatchResult{}, local(b.op, "", ErrTooLarge, wire.BatchOpsMax, "batch of %d items; at most %d", n, wire.BatchOpsMax)
		}
		return b.send(ctx, b.payload, 0, n)
	}
	out := BatchResult{Items: make([]ItemResult, 0, n)}
	for from := 0; from < n; {
		start := wire.GroupHeaderBytes
		if from > 0 {
			start = b.ends[from-1]
		}
		to := from + 1
		for to < n && to-from < wire.BatchOpsMax && b.ends[to]-start <= requestBytesMax {
			to++
		}
		payload := b.payload[:b.ends[to-1]]
		if from > 0 {
			payload = append(wire.AppendGroupHeader(make([]byte, 0, wire.GroupHeaderBytes+b.ends[to-1]-start), 0, 0), b.payload[start:b.ends[to-1]]...)
		}
		res, err := b.send(ctx, payload, from, to)
		if err != nil {
			for range to - from {
				out.Items = append(out.Items, ItemResult{Err: err})
			}
			if to < n {
				rest := local(b.op, "", ErrUnavailable, 0, "not sent, since an earlier part of the batch failed")
				for range n - to {
					out.Items = append(out.Items, ItemResult{Err: rest})
				}
			}
			return out, err
		}
		out.Items = append(out.Items, res.Items...)
		out.Revision = res.Revision
		out.Truncated = out.Truncated || res.Truncated
		from = to
	}
	return out, nil
}

// send makes one request of the items from..to, whose encoding is payload, and reads the answer. It writes
// the group header at the start of payload.
func (b *batch) send(ctx context.Context, payload []byte, from, to int) (BatchResult, error) {
	flags := uint8(0)
	if b.atomic && b.op == wire.OpBatch {
		flags = wire.GroupAtomic
	}
	wire.AppendGroupHeader(payload[:0], flags, to-from)
	cl := newCall(b.op, "", wantPayload)
	defer cl.release()
	b.c.steer(cl)
	if e := cl.reads(b.opts); e != nil {
		return BatchResult{}, e
	}
	cl.value, cl.owned = payload, true
	if err := b.c.run(ctx, cl); err != nil {
		return BatchResult{}, err
	}
	res, err := b.decode(cl, from, to)
	if err != nil {
		e := &Error{Op: b.op.String(), Message: err.Error(), Attempts: cl.attempts, kind: ErrProtocol}
		if b.op.IsWrite() {
			e.kind, e.outcome = nil, outcomeMaybe
		}
		return BatchResult{}, e
	}
	res.Age = cl.age()
	for i := range res.Items {
		if v := res.Items[i].Value; v != nil {
			v.age = res.Age
		}
	}
	return res, nil
}

// decode reads the answer to items from..to.
func (b *batch) decode(cl *call, from, to int) (BatchResult, error) {
	n := to - from
	out := BatchResult{Items: make([]ItemResult, n)}
	replayed := cl.res.flags&wire.FlagReplayed != 0
	rev, count, items, err := wire.DecodeResult(cl.res.data)
	if replayed && (err != nil || count != n) {
		// Only status and revision were kept: see wire.SessionReplayBytesMax.
		out.Truncated = true
		if err == nil {
			out.Revision = Version(rev)
		} else if len(cl.res.data) == wire.VersionBytes {
			out.Revision = Version(binary.LittleEndian.Uint64(cl.res.data))
		}
		for i := range n {
			if b.op == wire.OpBatch && !b.atomic && b.guarded[from+i] {
				out.Items[i].Err = &Error{Op: b.ops[from+i].String(), outcome: outcomeMaybe, Attempts: cl.attempts,
					Message: "the batch was executed, but whether this item's condition held got lost"}
			}
		}
		return out, nil
	}
	if err != nil {
		return out, err
	}
	if count != n {
		return out, fmt.Errorf("%w: %d results for %d operations", ErrProtocol, count, n)
	}
	out.Revision = Version(rev)
	b.full = make([]bool, n)
	var it wire.Item
	for i := range n {
		if items, err = wire.NextItem(items, &it); err != nil {
			return out, err
		}
		b.full[i] = it.Status == wire.StatusReplyFull
		if err := decodeItem(b.ops[from+i], &it, &out.Items[i]); err != nil {
			return out, err
		}
	}
	return out, nil
}

// decodeItem reads the result of one operation. Its slices are views over the answer, which belongs to
// the caller.
func decodeItem(op wire.Opcode, it *wire.Item, out *ItemResult) error {
	switch {
	case it.Status == wire.StatusOK:
	case it.Status == wire.StatusNotFound && op == wire.OpDelete:
		return nil
	case it.Status == wire.StatusReplyFull && op.IsWrite():
		// Executed; the answer had no room for its version.
		return nil
	default:
		e := &Error{Op: op.String(), Key: string(it.Key), Status: it.Status, kind: kindOf(it.Status), Message: it.Status.Info().Message}
		if it.Status.Class() != wire.ClassResult && len(it.Value) > 0 {
			e.Message = string(it.Value)
		}
		if it.Status == wire.StatusConditionFailed && len(it.Value) > 0 {
			var err error
			if e.Failed, err = wire.DecodeFailed(it.Value); err != nil {
				return err
			}
		}
		if it.Status == wire.StatusReplyFull {
			e.kind = ErrTooLarge
		}
		if op.IsWrite() {
			e.outcome = outcomeNot
			if it.Status.Class() == wire.ClassUnknown {
				e.outcome, e.kind = outcomeMaybe, nil
			}
		}
		out.Err = e
		return nil
	}
	switch op {
	case wire.OpIncrement:
		rev, n, ok := wire.DecodeCounter(it.Value)
		if !ok {
			return fmt.Errorf("%w: result of a %s of %d bytes", ErrProtocol, op, len(it.Value))
		}
		out.Version, out.Counter = Version(rev), n
	case wire.OpPut, wire.OpDelete, wire.OpTouch:
		if len(it.Value) != wire.VersionBytes {
			return fmt.Errorf("%w: result of a %s of %d bytes", ErrProtocol, op, len(it.Value))
		}
		out.Version = Version(binary.LittleEndian.Uint64(it.Value))
		out.Deleted = op == wire.OpDelete && out.Version != 0
	case wire.OpGet:
		var m wire.Meta
		kept, err := splitMeta(it.Ext, &m)
		if err != nil {
			return err
		}
		v := valueOf(&m, kept, it.Value)
		out.Value = &v
	}
	return nil
}
