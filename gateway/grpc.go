package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // for clients that compress
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

const (
	// grpcMessageBytesMax bounds a message: the largest request, and room for what protobuf frames otherwise.
	grpcMessageBytesMax = wire.FrameBodyBytesMax + 1<<20
	// grpcStreamsMax bounds the calls at once of one connection. Clients queue what is beyond.
	grpcStreamsMax = 1024
	// grpcKeepalive is after which silence a client is asked whether it is there, grpcKeepaliveTimeout how long it may
	// take to answer: a watch whose client is gone ends by it. grpcPingMin is the least time between a client's own questions.
	grpcKeepalive        = 30 * time.Second
	grpcKeepaliveTimeout = 10 * time.Second
	grpcPingMin          = 5 * time.Second
)

// GRPC is the gRPC door: it shares the service, the budgets and the principal of the REST door.
type GRPC struct {
	kvstorev1.UnimplementedKVStoreServer

	// Immutable after NewGRPC.
	s      *Server
	server *grpc.Server
	health *health

	answers budget
	streams streams
	stats   requestStats
}

// NewGRPC builds the gRPC door beside s. ready gives why the node does not serve, or nil: it is what health tells.
func NewGRPC(s *Server, ready func() error) *GRPC {
	g := &GRPC{s: s, answers: newBudget(s.o.AnswerBytesMax)}
	g.streams.ending, g.streams.end = context.WithCancel(context.Background())
	g.health = &health{ready: ready, ending: g.streams.ending}
	g.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(grpcMessageBytesMax),
		grpc.MaxConcurrentStreams(grpcStreamsMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: grpcKeepalive, Timeout: grpcKeepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: grpcPingMin, PermitWithoutStream: true}),
		grpc.StatsHandler(callStats{g}),
		grpc.ForceServerCodecV2(callCodec{encoding.GetCodecV2("proto")}),
	)
	g.server.RegisterService(g.describe(), g)
	grpc_health_v1.RegisterHealthServer(g.server, g.health)
	reflection.Register(g.server)
	return g
}

// Serve takes connections from l until Shutdown or Stop.
func (g *GRPC) Serve(l net.Listener) error { return g.server.Serve(l) }

// Shutdown takes no more calls, ends the watches and waits for the calls under way. When ctx ends first, it cuts them
// off and returns the error of ctx.
func (g *GRPC) Shutdown(ctx context.Context) error {
	g.streams.end()
	done := make(chan struct{})
	go func() { // owned by this call, which waits for it
		g.server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		g.server.Stop()
		<-done
		return ctx.Err()
	}
}

// WriteDurations writes the series of kvstore_request_duration_seconds for this door, as Server.WriteDurations does.
func (g *GRPC) WriteDurations(w io.Writer) error { return g.stats.write(w, "grpc") }

// callOps are the operations that calls are counted as.
var callOps = map[string]wire.Opcode{
	kvstorev1.KVStore_Put_FullMethodName: wire.OpPut, kvstorev1.KVStore_Get_FullMethodName: wire.OpGet, kvstorev1.KVStore_Delete_FullMethodName: wire.OpDelete,
	kvstorev1.KVStore_Touch_FullMethodName: wire.OpTouch, kvstorev1.KVStore_Increment_FullMethodName: wire.OpIncrement,
	kvstorev1.KVStore_BatchPut_FullMethodName: wire.OpBatch, kvstorev1.KVStore_BatchDelete_FullMethodName: wire.OpBatch,
	kvstorev1.KVStore_BatchGet_FullMethodName: wire.OpMultiGet, kvstorev1.KVStore_List_FullMethodName: wire.OpScan,
	kvstorev1.KVStore_Watch_FullMethodName: wire.OpWatch, kvstorev1.KVStore_Transaction_FullMethodName: wire.OpTxn,
	kvstorev1.KVStore_Backup_FullMethodName: wire.OpAdmin, kvstorev1.KVStore_Restore_FullMethodName: wire.OpAdmin, kvstorev1.KVStore_Status_FullMethodName: wire.OpStatus,
}

// callState is what is known of one call from its first byte to its last. It belongs to the call's goroutine, and to
// the transport's once that has returned.
type callState struct {
	op    wire.Opcode
	class wire.Class
	took  time.Duration // when set, what counts: of a watch the time until it began
	held  int64         // bytes of the answer taken from the budget
}

type callKey struct{}

// stateOf gives the state of the call that ctx belongs to.
func stateOf(ctx context.Context) *callState {
	if c, ok := ctx.Value(callKey{}).(*callState); ok {
		return c
	}
	return &callState{} // a call that no server of ours made, as in a test
}

// callStats follows the calls.
type callStats struct{ g *GRPC }

// TagRPC implements stats.Handler.
func (h callStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, callKey{}, &callState{op: callOps[info.FullMethodName]})
}

// HandleRPC implements stats.Handler.
func (h callStats) HandleRPC(ctx context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if !ok {
		return
	}
	c := stateOf(ctx)
	h.g.answers.release(c.held)
	class := c.class
	var failed *callError
	switch {
	case errors.As(end.Error, &failed):
		class = failed.status.Class()
	case end.Error != nil:
		class = wire.ClassRefused // by gRPC itself, before it was a call of ours
	}
	took := end.EndTime.Sub(end.BeginTime)
	if c.took != 0 {
		took = c.took
	}
	h.g.stats.observe(c.op, class, took)
}

// TagConn implements stats.Handler.
func (h callStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (h callStats) HandleConn(context.Context, stats.ConnStats) {}
