package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// Backup implements kvstorev1.KVStoreServer.
func (g *GRPC) Backup(in *kvstorev1.BackupRequest, stream grpc.ServerStreamingServer[kvstorev1.BackupResponse]) error {
	c := stateOf(stream.Context())
	c.namespace = in.GetNamespace()
	if ns := in.GetNamespace(); ns != "" && !wire.ValidNamespaceName(ns) {
		return grpcRefuse(false, badRequest("%s", textNamespaceName))
	}
	ctx, cancel := g.untilEnd(stream.Context())
	defer cancel()
	out := &backupSender{stream: stream}
	start := time.Now()
	return supervise(&out.sending, g.o.AnswerTimeout, func() error {
		resp := g.o.Backups.Backup(ctx, g.o.Principal, in.GetNamespace(), func(revision wire.Revision, _ string) io.Writer {
			out.revision, c.revision, c.took = revision, revision, time.Since(start)
			return out
		})
		if resp.Status != wire.StatusOK {
			return grpcFail(false, &resp, nil)
		}
		return nil
	}, func() error {
		return grpcRefuse(false, &wire.Refusal{Status: wire.StatusRetryLater, Text: fmt.Sprintf("the client took nothing for %s: what it has is no backup", g.o.AnswerTimeout)})
	})
}

// backupSender sends what is written to it in messages of backupPieceBytes at most.
type backupSender struct {
	stream   grpc.ServerStreamingServer[kvstorev1.BackupResponse]
	revision wire.Revision // of the first message; 0 behind it
	sending  atomic.Int64
}

// Write implements io.Writer.
func (s *backupSender) Write(b []byte) (n int, err error) {
	for n < len(b) {
		// The message is encoded before Send returns: b may be used again.
		m := &kvstorev1.BackupResponse{Data: b[n:min(len(b), n+backupPieceBytes)], Revision: s.revision}
		s.sending.Store(time.Now().UnixNano())
		err = s.stream.Send(m)
		s.sending.Store(0)
		if err != nil {
			return n, err
		}
		n += len(m.GetData())
		s.revision = 0
	}
	return n, nil
}

// Restore implements kvstorev1.KVStoreServer.
func (g *GRPC) Restore(stream grpc.ClientStreamingServer[kvstorev1.RestoreRequest, kvstorev1.RestoreResponse]) error {
	ctx, cancel := g.untilEnd(stream.Context())
	defer cancel()
	body := &restoreReader{ctx: ctx, stream: stream}
	var out *kvstorev1.RestoreResponse
	err := supervise(&body.waiting, g.o.BodyTimeout, func() (err error) {
		out, err = g.restore(ctx, body)
		return err
	}, func() error {
		return grpcRefuse(true, badRequest("nothing came for %s, and the backup is not complete; nothing was changed", g.o.BodyTimeout))
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(out)
}

// restore takes in what body gives.
func (g *GRPC) restore(ctx context.Context, body *restoreReader) (*kvstorev1.RestoreResponse, error) {
	first, err := body.next()
	if err != nil {
		return nil, grpcRefuse(true, badRequest("no message came: the first one says what to do; nothing was changed"))
	}
	ns := first.GetNamespace()
	stateOf(ctx).namespace = ns
	if ns != "" && !wire.ValidNamespaceName(ns) {
		return nil, grpcRefuse(true, badRequest("%s; nothing was changed", textNamespaceName))
	}
	resp := g.o.Backups.Restore(ctx, g.o.Principal, ns, first.GetMerge(), body)
	if resp.Status != wire.StatusOK {
		return nil, grpcFail(true, &resp, nil)
	}
	var d struct {
		Namespaces uint64 `json:"namespaces"`
		Records    uint64 `json:"records"`
		Bytes      uint64 `json:"bytes"`
		Expired    uint64 `json:"expired_skipped"`
		Revision   uint64 `json:"revision,string"`
	}
	if err := json.Unmarshal(resp.Payload, &d); err != nil {
		return nil, g.unreadable(&wire.Request{Op: wire.OpAdmin}, true)
	}
	return &kvstorev1.RestoreResponse{Namespaces: d.Namespaces, Records: d.Records, Bytes: d.Bytes, Expired: d.Expired, Revision: d.Revision}, nil
}

// restoreReader reads the bytes of the messages of a restore.
type restoreReader struct {
	ctx     context.Context // its end is that of the body
	stream  grpc.ClientStreamingServer[kvstorev1.RestoreRequest, kvstorev1.RestoreResponse]
	rest    []byte
	waiting atomic.Int64
}

// next takes the next message.
func (r *restoreReader) next() (*kvstorev1.RestoreRequest, error) {
	r.waiting.Store(time.Now().UnixNano())
	m, err := r.stream.Recv()
	r.waiting.Store(0)
	if err != nil {
		return nil, err
	}
	r.rest = m.GetData()
	return m, nil
}

// Read implements io.Reader.
func (r *restoreReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		if _, err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
