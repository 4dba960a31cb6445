package node

import (
	"context"
	"io"
	"sync/atomic"

	"kvstore/wire"
)

// lateService answers for the service before there is one: while the node waits for other founders, or reads
// its log, a caller is told so at once instead of being left on an open connection.
type lateService struct {
	service atomic.Pointer[Service]
	backups atomic.Pointer[backups]
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

// Backup implements the gateway's Backups.
func (l *lateService) Backup(ctx context.Context, principal any, namespace string, begin func(revision wire.Revision, name string) io.Writer) wire.Response {
	if b := l.backups.Load(); b != nil {
		return b.Backup(ctx, principal, namespace, begin)
	}
	return l.notReady()
}

// Restore implements the gateway's Backups.
func (l *lateService) Restore(ctx context.Context, principal any, namespace string, merge bool, body io.Reader) wire.Response {
	if b := l.backups.Load(); b != nil {
		return b.Restore(ctx, principal, namespace, merge, body)
	}
	return l.notReady()
}

func (l *lateService) notReady() wire.Response {
	return wire.ErrorResponse(&wire.Refusal{
		Status: wire.StatusNotReady, RetryAfterMs: lateRetryMs,
		Text: "the node is still starting (" + l.awaits() + "); nothing was changed: try again shortly, or ask another node",
	}, nil)
}
