package gateway

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"kvstore/api/kvstorev1"
)

// healthPeriod is how often a watch of the health looks.
const healthPeriod = time.Second

// health answers grpc.health.v1 for the server ("") and for the service kvstore.v1.KVStore: it serves when /readyz
// would answer 200.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	ready  func() error
	ending context.Context // ends when the door is to close
}

// of gives the health of a service; ok is false if there is no such one.
func (h *health) of(service string) (grpc_health_v1.HealthCheckResponse_ServingStatus, bool) {
	switch {
	case service != "" && service != kvstorev1.KVStore_ServiceDesc.ServiceName:
		return grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN, false
	case h.ending.Err() != nil || h.ready() != nil:
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING, true
	}
	return grpc_health_v1.HealthCheckResponse_SERVING, true
}

// Check implements grpc_health_v1.HealthServer.
func (h *health) Check(_ context.Context, in *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	st, ok := h.of(in.GetService())
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no service %.100q here: there are \"\" and %s", in.GetService(), kvstorev1.KVStore_ServiceDesc.ServiceName)
	}
	return &grpc_health_v1.HealthCheckResponse{Status: st}, nil
}

// List implements grpc_health_v1.HealthServer.
func (h *health) List(context.Context, *grpc_health_v1.HealthListRequest) (*grpc_health_v1.HealthListResponse, error) {
	out := &grpc_health_v1.HealthListResponse{Statuses: make(map[string]*grpc_health_v1.HealthCheckResponse)}
	for _, service := range []string{"", kvstorev1.KVStore_ServiceDesc.ServiceName} {
		st, _ := h.of(service)
		out.Statuses[service] = &grpc_health_v1.HealthCheckResponse{Status: st}
	}
	return out, nil
}

// Watch implements grpc_health_v1.HealthServer.
func (h *health) Watch(in *grpc_health_v1.HealthCheckRequest, stream grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	tick := time.NewTicker(healthPeriod)
	defer tick.Stop()
	last := grpc_health_v1.HealthCheckResponse_UNKNOWN
	for {
		st, _ := h.of(in.GetService())
		if st != last {
			if err := stream.Send(&grpc_health_v1.HealthCheckResponse{Status: st}); err != nil {
				return err
			}
			last = st
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-h.ending.Done():
			return status.Error(codes.Unavailable, "the node is stopping")
		}
	}
}
