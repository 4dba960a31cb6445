package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/bench"
)

// target is a bench.Target over one or more etcd clients, taken in turn. Reads are linearizable, as etcd's
// are by default.
type target struct {
	// Immutable.
	clients []*clientv3.Client
	timeout time.Duration

	turn atomic.Uint32
}

// open makes n clients, each with a connection of its own to each endpoint.
func open(endpoints []string, n int, timeout time.Duration) (*target, error) {
	t := &target{timeout: timeout}
	for range n {
		c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: timeout})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot open etcd client: %w", err), t.close())
		}
		t.clients = append(t.clients, c)
	}
	return t, nil
}

func (t *target) close() error {
	var errs []error
	for _, c := range t.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// with gives a client, and ctx bounded by the timeout of one operation.
func (t *target) with(ctx context.Context) (*clientv3.Client, context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	return t.clients[int(t.turn.Add(1)-1)%len(t.clients)], ctx, cancel
}

// Get implements bench.Target.
func (t *target) Get(ctx context.Context, key string, dst []byte) (value []byte, found bool, err error) {
	c, ctx, cancel := t.with(ctx)
	defer cancel()
	r, err := c.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return dst, false, err
	}
	return append(dst[:0], r.Kvs[0].Value...), true, nil
}

// Put implements bench.Target.
func (t *target) Put(ctx context.Context, key string, value []byte) error {
	c, ctx, cancel := t.with(ctx)
	defer cancel()
	_, err := c.Put(ctx, key, string(value))
	return err
}

// Scan implements bench.Target.
func (t *target) Scan(ctx context.Context, start string, limit int) (int, error) {
	c, ctx, cancel := t.with(ctx)
	defer cancel()
	r, err := c.Get(ctx, start, clientv3.WithFromKey(), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return 0, err
	}
	return len(r.Kvs), nil
}

// GetMany implements bench.Target.
func (t *target) GetMany(ctx context.Context, keys []string) (found int, err error) {
	ops := make([]clientv3.Op, len(keys))
	for i, k := range keys {
		ops[i] = clientv3.OpGet(k)
	}
	r, err := t.commit(ctx, ops)
	if err != nil {
		return 0, err
	}
	for _, x := range r.Responses {
		found += len(x.GetResponseRange().Kvs)
	}
	return found, nil
}

// PutMany implements bench.Target. etcd refuses a key that stands twice in a transaction: the last counts.
func (t *target) PutMany(ctx context.Context, keys []string, values [][]byte) error {
	last := make(map[string]int, len(keys))
	for i, k := range keys {
		last[k] = i
	}
	ops := make([]clientv3.Op, 0, len(keys))
	for i, k := range keys {
		if last[k] == i {
			ops = append(ops, clientv3.OpPut(k, string(values[i])))
		}
	}
	_, err := t.commit(ctx, ops)
	return err
}

// Transact implements bench.Target.
func (t *target) Transact(ctx context.Context, keys []string, values [][]byte) error {
	writes := (len(keys) + 1) / 2
	seen := make(map[string]bool, writes)
	ops := make([]clientv3.Op, 0, len(keys))
	for i, k := range keys {
		switch {
		case i >= writes:
			ops = append(ops, clientv3.OpGet(k))
		case !seen[k]:
			seen[k] = true
			ops = append(ops, clientv3.OpPut(k, string(values[i])))
		}
	}
	_, err := t.commit(ctx, ops)
	return err
}

func (t *target) commit(ctx context.Context, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	c, ctx, cancel := t.with(ctx)
	defer cancel()
	return c.Txn(ctx).Then(ops...).Commit()
}

// GoGet implements bench.Target; etcd's client has no asynchronous form.
func (t *target) GoGet(ctx context.Context, key string, done func(found bool, err error)) {
	// One operation: owned by its caller through done; ends with the answer or the timeout.
	go func() {
		_, found, err := t.Get(ctx, key, nil)
		done(found, err)
	}()
}

// GoPut implements bench.Target.
func (t *target) GoPut(ctx context.Context, key string, value []byte, done func(err error)) {
	// One operation: owned by its caller through done; ends with the answer or the timeout.
	go func() { done(t.Put(ctx, key, value)) }()
}

// Kind implements bench.Target. etcd's client does not tell whether a write that failed on the way was
// applied: such a one is unknown.
func (t *target) Kind(err error) bench.Kind {
	var e rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &e) {
		code = e.Code()
	}
	switch code {
	case codes.ResourceExhausted:
		return bench.KindBusy
	case codes.PermissionDenied, codes.Unauthenticated:
		return bench.KindDenied
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		return bench.KindRefused
	}
	return bench.KindUnknown
}
