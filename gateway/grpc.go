package gateway

import (
	"context"
	"io"
	"net"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // for clients that compress
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

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

// GRPC is the gRPC door.
type GRPC struct {
	kvstorev1.UnimplementedKVStoreServer
	*Door

	// Immutable after NewGRPC.
	server *grpc.Server
	health *health
	// sending bounds answers until they are sent, as Options.AnswerBytesMax does those of REST: apart from them, since
	// here nothing cuts off who asks for much and takes it slowly.
	sending *semaphore.Weighted

	stats requestStats
}

// NewGRPC builds the gRPC door, which shares d with other doors. ready gives why the node does not serve, or nil: it is
// what health tells.
func NewGRPC(d *Door, ready func() error) *GRPC {
	g := &GRPC{Door: d, sending: semaphore.NewWeighted(d.o.AnswerBytesMax), health: &health{ready: ready, ending: d.streams.ending}}
	g.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(grpcMessageBytesMax),
		grpc.MaxConcurrentStreams(grpcStreamsMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: grpcKeepalive, Timeout: grpcKeepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: grpcPingMin, PermitWithoutStream: true}),
		grpc.StatsHandler(callStats{g}),
		grpc.StreamInterceptor(g.stream),
		grpc.ForceServerCodecV2(callCodec{encoding.GetCodecV2("proto")}),
	)
	g.server.RegisterService(g.describe(), g)
	grpc_health_v1.RegisterHealthServer(g.server, g.health)
	reflection.Register(g.server)
	return g
}

// Serve takes connections from l until Shutdown or Stop.
func (g *GRPC) Serve(l net.Listener) error { return g.server.Serve(l) }

// Shutdown takes no more calls, ends the streams of all doors and waits for the calls under way. When ctx ends first, it cuts them
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
func (g *GRPC) WriteDurations(w io.Writer) error { return g.stats.write(w, protocolGRPC) }

// callOps are the operations that calls are counted as.
var callOps = map[string]wire.Opcode{
	kvstorev1.KVStore_Put_FullMethodName: wire.OpPut, kvstorev1.KVStore_Get_FullMethodName: wire.OpGet, kvstorev1.KVStore_Delete_FullMethodName: wire.OpDelete,
	kvstorev1.KVStore_Touch_FullMethodName: wire.OpTouch, kvstorev1.KVStore_Increment_FullMethodName: wire.OpIncrement,
	kvstorev1.KVStore_BatchPut_FullMethodName: wire.OpBatch, kvstorev1.KVStore_BatchDelete_FullMethodName: wire.OpBatch,
	kvstorev1.KVStore_BatchGet_FullMethodName: wire.OpMultiGet, kvstorev1.KVStore_List_FullMethodName: wire.OpScan,
	kvstorev1.KVStore_Watch_FullMethodName: wire.OpWatch, kvstorev1.KVStore_Transaction_FullMethodName: wire.OpTxn,
	kvstorev1.KVStore_Backup_FullMethodName: wire.OpAdmin, kvstorev1.KVStore_Restore_FullMethodName: wire.OpAdmin, kvstorev1.KVStore_Status_FullMethodName: wire.OpStatus,
}
