package client

import (
	"context"
	"fmt"
	"time"

	"kvstore/wire"
)

// Txn gathers a transaction: all its conditions hold and all its operations happen, in order, or nothing
// does. Conditions look at the state before the transaction, reads see its own earlier writes. A Txn is
// for one goroutine and one Commit. What is wrong with it is told by Commit.
type Txn struct {
	b    batch
	err  error
	sent bool
}

// Txn begins a transaction; nothing is sent before Commit.
func (c *Client) Txn() *Txn { return &Txn{b: batch{c: c, op: wire.OpTxn, atomic: true}} }

// TxnResult is what a transaction did.
type TxnResult struct {
	// Committed: all operations happened.
	Committed bool
	// Revision is that of the transaction.
	Revision Version
	// Results stand in the order of the operations, conditions (If, Check) included.
	Results []ItemResult
	// Truncated: it is committed, but its answer was lost and the servers kept only that it was: Results
	// hold neither versions nor values.
	Truncated bool
}

func (t *Txn) add(op wire.Opcode, key string, value []byte, ext []byte, limit uint64, err error) *Txn {
	i := len(t.b.ends)
	if t.err != nil {
		return t
	}
	if e := checkKey(op, key); e != nil {
		t.err = t.b.itemError(i, e)
		return t
	}
	if err != nil {
		t.err = t.b.itemError(i, optionError(op, key, err, limit))
		return t
	}
	if len(value) > t.b.c.o.maxValue {
		t.err = t.b.itemError(i, local(op, key, ErrTooLarge, uint64(t.b.c.o.maxValue), "value of %d bytes; at most %d", len(value), t.b.c.o.maxValue))
		return t
	}
	t.b.add(op, ext, key, value)
	return t
}

// If demands that the conditions, one or more, hold for key. It takes a place among the results.
func (t *Txn) If(key string, conds ...Condition) *Txn {
	ext, limit, err := appendConditions(conds)
	if len(conds) == 0 {
		err = fmt.Errorf("%w: If without a condition", ErrBadRequest)
	}
	return t.add(wire.OpCheck, key, nil, ext, limit, err)
}

// Check is If: it names the operation as the other interfaces do.
func (t *Txn) Check(key string, conds ...Condition) *Txn { return t.If(key, conds...) }

// Put stores value, which is copied.
func (t *Txn) Put(key string, value []byte, opts ...PutOption) *Txn {
	ext, limit, err := appendPutExt(nil, value, opts)
	return t.add(wire.OpPut, key, value, ext, limit, err)
}

// Delete removes key.
func (t *Txn) Delete(key string, opts ...DeleteOption) *Txn {
	ext, limit, err := appendDeleteExt(nil, opts)
	return t.add(wire.OpDelete, key, nil, ext, limit, err)
}

// Touch gives key a new time to live, or takes it away (0). A key that there is not stops nothing: its result is
// ErrNotFound.
func (t *Txn) Touch(key string, ttl time.Duration, opts ...DeleteOption) *Txn {
	ext, limit, err := appendTouchExt(nil, ttl, opts)
	return t.add(wire.OpTouch, key, nil, ext, limit, err)
}

// Increment adds delta to the number that key holds; see Client.Increment. What is no number fails the transaction with
// ErrNotANumber.
func (t *Txn) Increment(key string, delta int64, opts ...IncrementOption) *Txn {
	ext, limit, err := appendIncrementExt(nil, opts)
	return t.add(wire.OpIncrement, key, wire.AppendIncrement(nil, delta), ext, limit, err)
}

// Get reads key, on the conditions given.
func (t *Txn) Get(key string, conds ...Condition) *Txn {
	ext, limit, err := appendConditions(conds)
	return t.add(wire.OpGet, key, nil, ext, limit, err)
}

func appendConditions(conds []Condition) (ext []byte, limit uint64, err error) {
	opts := make([]DeleteOption, len(conds))
	for i := range conds {
		opts[i] = conds[i]
	}
	return appendDeleteExt(nil, opts)
}

// Commit sends the transaction. When a condition does not hold the error matches ErrConditionFailed, and
// Error.Failed lists operation and condition by their places.
func (t *Txn) Commit(ctx context.Context) (TxnResult, error) {
	if t.err != nil {
		return TxnResult{}, t.err
	}
	n := len(t.b.ends)
	switch {
	case t.sent:
		return TxnResult{}, local(wire.OpTxn, "", ErrBadRequest, 0, "the transaction was committed before")
	case n == 0:
		return TxnResult{}, local(wire.OpTxn, "", ErrBadRequest, 0, "transaction without operations")
	case n > wire.BatchOpsMax:
		return TxnResult{}, local(wire.OpTxn, "", ErrTooLarge, wire.BatchOpsMax, "transaction of %d operations; at most %d", n, wire.BatchOpsMax)
	}
	t.sent = true
	res, err := t.b.send(ctx, t.b.payload, 0, n)
	if err != nil {
		return TxnResult{}, err
	}
	return TxnResult{Committed: true, Revision: res.Revision, Results: res.Items, Truncated: res.Truncated}, nil
}
