package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"kvstore/wire"
)

// requestIDKey is the metadata entry by which a caller names a call.
const requestIDKey = "x-request-id" // requestIDHeader, as HTTP/2 spells it

// callState is what is known of one call from its first byte to its last. It belongs to the call's goroutine, and to
// the transport's once that has returned.
type callState struct {
	method string
	op     wire.Opcode
	// id is what the call is called, once somebody asked.
	id        string
	namespace string
	class     wire.Class
	took      time.Duration // when set, what counts: of a watch the time until it began
	held      int64         // bytes of the answer taken from the budget
	in, out   int64         // bytes of messages
	revision  wire.Revision
}

type callKey struct{}

// stateOf gives the state of the call that ctx belongs to.
func stateOf(ctx context.Context) *callState {
	if c, ok := ctx.Value(callKey{}).(*callState); ok {
		return c
	}
	return &callState{} // a call that no server of ours made, as in a test
}

// requestID gives what the call is called: what the caller says, or a new name.
func (c *callState) requestID(ctx context.Context) string {
	if c.id == "" {
		c.id = requestID(metadata.ValueFromIncomingContext(ctx, requestIDKey))
	}
	return c.id
}

// remoteOf gives the address of the caller; the zero one stands for all that are not reached by TCP.
func remoteOf(ctx context.Context) netip.AddrPort {
	if p, ok := peer.FromContext(ctx); ok {
		if tcp, ok := p.Addr.(*net.TCPAddr); ok {
			return tcp.AddrPort()
		}
	}
	return netip.AddrPort{}
}

// enter takes a call off the rates, or refuses it.
func (g *GRPC) enter(ctx context.Context, write bool) error {
	if ref := g.admit(remoteOf(ctx).Addr()); ref != nil {
		return grpcRefuse(write, ref)
	}
	return nil
}

// named adds the call's id to an error of ours, by which its line in the log of requests is found.
func named(ctx context.Context, err error) error {
	var failed *callError
	if !errors.As(err, &failed) {
		return err
	}
	info := &errdetails.RequestInfo{RequestId: stateOf(ctx).requestID(ctx)}
	st, detailErr := failed.st.WithDetails(protoadapt.MessageV1Of(info))
	if detailErr != nil { // only OK takes none
		return err
	}
	return &callError{failed.status, st}
}

// stream serves a streaming call: it asks the rates first and names what failed.
func (g *GRPC) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	op, ours := callOps[info.FullMethod]
	if !ours { // reflection, health
		return handler(srv, ss)
	}
	if err := g.enter(ss.Context(), changes(op)); err != nil {
		return named(ss.Context(), err)
	}
	return named(ss.Context(), handler(srv, ss))
}

// changes reports whether calls with this operation may change something. Those of administration count: what fails of
// them is told with its outcome.
func changes(op wire.Opcode) bool { return op.IsWrite() || op == wire.OpAdmin }

// callStats follows the calls.
type callStats struct{ g *GRPC }

// TagRPC implements stats.Handler.
func (h callStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, callKey{}, &callState{method: info.FullMethodName, op: callOps[info.FullMethodName]})
}

// HandleRPC implements stats.Handler.
func (h callStats) HandleRPC(ctx context.Context, s stats.RPCStats) {
	c := stateOf(ctx)
	switch s := s.(type) {
	case *stats.InPayload:
		c.in += int64(s.Length)
	case *stats.OutPayload:
		c.out += int64(s.Length)
	case *stats.End:
		h.end(ctx, c, s)
	}
}

// end notes what came of a call.
func (h callStats) end(ctx context.Context, c *callState, s *stats.End) {
	h.g.sending.Release(c.held)
	class, code, failedHere := c.class, "", false
	var failed *callError
	switch {
	case errors.As(s.Error, &failed):
		class, code, failedHere = failed.status.Class(), failed.status.Info().Code, failure(failed.status)
	case s.Error != nil:
		class = wire.ClassRefused // by gRPC itself, before it was a call of ours, or given up by the caller
	}
	took := s.EndTime.Sub(s.BeginTime)
	counted := took
	if c.took != 0 {
		counted = c.took
	}
	h.g.stats.observe(c.op, class, counted)
	if _, ours := callOps[c.method]; !ours || !h.g.log.wants(failedHere) {
		return
	}
	e := &requestEntry{
		Time: s.BeginTime.UTC(), ID: c.requestID(ctx), Protocol: protocolGRPC, Operation: c.op.String(), Route: c.method, Remote: remoteOf(ctx).String(),
		Status: int(status.Code(s.Error)), Code: code, Microseconds: took.Microseconds(), RequestBytes: c.in, ResponseBytes: c.out,
		Revision: c.revision, Failed: failedHere,
	}
	if wire.ValidNamespaceName(c.namespace) {
		e.Namespace = c.namespace
	}
	h.g.log.note(e)
}

// TagConn implements stats.Handler.
func (h callStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (h callStats) HandleConn(context.Context, stats.ConnStats) {}
