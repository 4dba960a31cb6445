package node

import (
	"context"
	"sync/atomic"

	"kvstore/wire"
)

// lateService answers for the service before there is one: while the node waits for other founders, or reads
// its log, a caller is told so at once instead of being left on an open connection.
type lateService struct {
	service atomic.Pointer[Service]
	// awaits tells what the node waits for.
	awaits func() string
}

// lateRetryMs is the pause that is suggested to callers of a node that is still starting.
const lateRetryMs = 1000

// Do implements the gateway's Service.
func (l *lateService) Do(ctx context.Context, principal any, r *wire.Request) wire.Response {
	if s := l.service.Load(); s != nil {
		return s.Do(ctx, principal, r)
	}
	return l.notReady()
}

// Stream implements the gateway's Service.
func (l *lateService) Stream(ctx context.Context, principal any, r *wire.Request, each func(*wire.Response) error) wire.Response {
	if s := l.service.Load(); s != nil {
		return s.Stream(ctx, principal, r, each)
	}
	return l.notReady()
}

func (l *lateService) notReady() wire.Response {
	return wire.ErrorResponse(&wire.Refusal{
		Status: wire.StatusNotReady, RetryAfterMs: lateRetryMs,
		Text: "the node is still starting (" + l.awaits() + "); nothing was changed: try again shortly, or ask another node",
	}, nil)
}
