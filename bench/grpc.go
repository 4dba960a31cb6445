package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// errorDomain is that of the ErrorInfo in errors which the server itself gives.
const errorDomain = "kvstore"

// GRPCTarget is a Target through gRPC: the generated client, over connections that all callers share.
type GRPCTarget struct {
	keysOnly

	// Immutable.
	conns   []*grpc.ClientConn
	stubs   []kvstorev1.KVStoreClient
	timeout time.Duration

	turn turns
}

// OpenGRPC connects to the gRPC ports of o.Endpoints, which are used in turn.
func OpenGRPC(ctx context.Context, o ClientOptions) (_ *GRPCTarget, err error) {
	setDefault(&o.Conns, 1)
	setDefault(&o.Timeout, timeoutDefault)
	if err := reach(ctx, o.Endpoints); err != nil {
		return nil, err
	}
	t := &GRPCTarget{timeout: o.Timeout}
	for range o.Conns {
		for _, e := range o.Endpoints {
			c, err := grpc.NewClient("passthrough:///"+e, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kvbench"))
			if err != nil {
				return nil, errors.Join(fmt.Errorf("cannot make a gRPC client for %s: %w", e, err), t.Close())
			}
			t.conns = append(t.conns, c)
			t.stubs = append(t.stubs, kvstorev1.NewKVStoreClient(c))
		}
	}
	return t, nil
}

// Close ends the connections.
func (t *GRPCTarget) Close() error {
	var errs []error
	for _, c := range t.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (t *GRPCTarget) stub() kvstorev1.KVStoreClient { return t.stubs[t.turn.next(len(t.stubs))] }

// Status returns the cluster's status as JSON.
func (t *GRPCTarget) Status(ctx context.Context) ([]byte, error) {
	r, err := t.stub().Status(ctx, &kvstorev1.StatusRequest{})
	if err != nil {
		return nil, grpcError(ctx, err, false)
	}
	return r.GetDocument().MarshalJSON()
}

// Get implements Target.
func (t *GRPCTarget) Get(ctx context.Context, key string, dst []byte) ([]byte, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	r, err := t.stub().Get(ctx, &kvstorev1.GetRequest{Key: key})
	if err != nil {
		if info := infoOf(err); info != nil && info.GetReason() == wire.StatusNotFound.Info().Name {
			return dst, false, nil
		}
		return dst, false, grpcError(ctx, err, false)
	}
	return append(dst, r.GetRecord().GetValue()...), true, nil
}

// Put implements Target.
func (t *GRPCTarget) Put(ctx context.Context, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	_, err := t.stub().Put(ctx, &kvstorev1.PutRequest{Key: key, Value: value})
	return grpcError(ctx, err, true)
}

// PutMany implements Target.
func (t *GRPCTarget) PutMany(ctx context.Context, keys []string, values [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	r := &kvstorev1.BatchPutRequest{Items: make([]*kvstorev1.BatchPutItem, len(keys))}
	for i := range keys {
		r.Items[i] = &kvstorev1.BatchPutItem{Key: keys[i], Value: values[i]}
	}
	_, err := t.stub().BatchPut(ctx, r)
	return grpcError(ctx, err, true)
}

// infoOf gives what the server itself says of an error, nil for an error that grew on the way.
func infoOf(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			return info
		}
	}
	return nil
}

// grpcError sorts an error, nil if it is none. A write's error that the server did not give itself says nothing of the
// outcome.
func grpcError(ctx context.Context, err error, write bool) error {
	if err == nil {
		return nil
	}
	kind, code := KindOther, status.Code(err)
	switch code {
	case codes.Unavailable:
		kind = KindUnavailable
	case codes.ResourceExhausted:
		kind = KindBusy
	case codes.DeadlineExceeded:
		kind = KindTimeout
	case codes.PermissionDenied, codes.Unauthenticated:
		kind = KindDenied
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.NotFound, codes.AlreadyExists, codes.Unimplemented:
		kind = KindRefused
	}
	if write && code != codes.Unimplemented {
		if info := infoOf(err); info == nil || info.GetMetadata()["applied"] == wire.StatusTimeout.Applied() {
			kind = KindUnknown
		}
	}
	// gRPC's own errors don't wrap that of the context.
	return &doorError{kind, errors.Join(err, ctx.Err())}
}

// Pipeline implements Target.
func (t *GRPCTarget) Pipeline(ctx context.Context, depth int) Pipeline { return Spawn(ctx, t, depth) }
