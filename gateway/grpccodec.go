package gateway

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"kvstore/api/kvstorev1"
)

// received is the message of a unary call and what is wrong with it. gRPC itself answers INTERNAL where a message can't
// be read, before a method could say anything; a codec that leaves the fault to the method gets around that.
type received struct {
	message any
	err     error
}

// callCodec is the codec of protobuf, but for received.
type callCodec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c callCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*received); ok {
		r.err = c.CodecV2.Unmarshal(data, r.message)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// describe gives the service's description with unary methods that ask the rates first, refuse what they can't read as
// any other bad request, and name what failed.
func (g *GRPC) describe() *grpc.ServiceDesc {
	d := kvstorev1.KVStore_ServiceDesc
	d.Methods = make([]grpc.MethodDesc, len(kvstorev1.KVStore_ServiceDesc.Methods))
	for i, m := range kvstorev1.KVStore_ServiceDesc.Methods {
		write := changes(callOps["/"+d.ServiceName+"/"+m.MethodName])
		d.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			if err := g.enter(ctx, write); err != nil {
				return nil, named(ctx, err)
			}
			out, err := m.Handler(srv, ctx, func(v any) error {
				r := received{message: v}
				if err := dec(&r); err != nil {
					return err
				}
				if r.err != nil {
					return grpcRefuse(write, badRequest("the message can't be read: %v; nothing was changed", r.err))
				}
				if in, ok := v.(interface{ GetNamespace() string }); ok {
					stateOf(ctx).namespace = in.GetNamespace()
				}
				return nil
			}, in)
			return out, named(ctx, err)
		}}
	}
	return &d
}
