package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// watchRequest gives the request of a watch.
func watchRequest(in *kvstorev1.WatchRequest) (*wire.Request, *wire.Refusal) {
	var b callBuilder
	b.namespace(in.GetNamespace())
	b.consistency(in.GetConsistency())
	w := wire.WatchRequest{Prefix: []byte(in.GetPrefix()), Start: []byte(in.GetStart()), End: []byte(in.GetEnd()), Credit: streamCredit}
	if in.GetKey() != "" {
		if in.GetPrefix()+in.GetStart()+in.GetEnd() != "" {
			b.refuse(wire.StatusBadRequest, "a watch of one key has neither prefix, start nor end")
		}
		w.Flags |= wire.WatchKey
		w.Start = []byte(in.GetKey())
	}
	if in.AfterRevision != nil {
		w.After = in.GetAfterRevision()
	} else {
		w.Flags |= wire.WatchFromNow
	}
	if in.GetKeysOnly() {
		w.Flags |= wire.WatchKeysOnly
	}
	if in.GetPrevious() {
		w.Flags |= wire.WatchPrevious
	}
	w.Flags |= b.kinds(in.GetTypes())
	if d := in.GetProgressInterval(); d != nil {
		// What lies outside of the bounds is moved to them by DecodeWatchRequest.
		w.ProgressMs = uint32(min(b.millis("a progress_interval", d), wire.ProgressMsMax))
	}
	if h := in.GetHistory(); len(h) != 0 {
		if len(h) != 16 {
			b.refuse(wire.StatusBadRequest, "history of %d bytes; 16", len(h))
		}
		b.ext = wire.AppendExt(b.ext, wire.ExtHistory, h)
	}
	if in.NamespaceId != nil {
		b.ext = wire.AppendExtU32(b.ext, wire.ExtNamespaceID, in.GetNamespaceId())
	}
	b.fits("key, prefix, start and end", wire.KeyBytesMax, w.Prefix, w.Start, w.End)
	var payload []byte
	if b.ref == nil {
		payload = wire.AppendWatchRequest(nil, &w)
	}
	return b.single(wire.OpWatch, "", payload)
}

// kinds gives the flags that leave out all kinds of events but these.
func (b *callBuilder) kinds(types []kvstorev1.EventType) uint8 {
	if len(types) == 0 {
		return 0
	}
	skip := map[kvstorev1.EventType]uint8{
		kvstorev1.EventType_EVENT_TYPE_PUT: wire.WatchNoPut, kvstorev1.EventType_EVENT_TYPE_DELETE: wire.WatchNoDelete, kvstorev1.EventType_EVENT_TYPE_EXPIRE: wire.WatchNoExpire,
	}
	for _, t := range types {
		if _, ok := skip[t]; !ok {
			b.refuse(wire.StatusBadRequest, "types: EVENT_TYPE_PUT, EVENT_TYPE_DELETE and EVENT_TYPE_EXPIRE are known, each once")
		}
		delete(skip, t)
	}
	flags := uint8(0)
	for _, bit := range skip {
		flags |= bit
	}
	return flags
}

// Watch implements kvstorev1.KVStoreServer.
func (g *GRPC) Watch(in *kvstorev1.WatchRequest, stream grpc.ServerStreamingServer[kvstorev1.WatchResponse]) error {
	stateOf(stream.Context()).namespace = in.GetNamespace()
	req, ref := watchRequest(in)
	if ref != nil {
		return grpcRefuse(false, ref)
	}
	if g.streams.open.Add(1) > int64(g.o.StreamsMax) {
		g.streams.open.Add(-1)
		return grpcRefuse(false, &wire.Refusal{
			Status: wire.StatusBusy, RetryAfterMs: streamsRetrySeconds * 1000,
			Text: fmt.Sprintf("this node serves as many event streams (%d) as it may: try again after a pause, or another node", g.o.StreamsMax),
		})
	}
	defer g.streams.open.Add(-1)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(g.streams.ending, cancel)
	defer stop()
	w := &watchCall{g: g, stream: stream, values: !in.GetKeysOnly(), start: time.Now(), call: stateOf(ctx)}
	return supervise(&w.sending, g.o.StallTimeout, func() error {
		resp := g.o.Service.Stream(ctx, g.o.Principal, req, w.frame)
		return w.finish(&resp)
	}, func() error {
		return grpcRefuse(false, &wire.Refusal{Status: wire.StatusRetryLater, Text: fmt.Sprintf("the client took nothing for %s: watch again behind what was seen last", g.o.StallTimeout)})
	})
}

// supervise does work in a goroutine of its own and gives its error, or stalled's, once work has waited for the client
// for more than most: since says since when, in Unix nanoseconds, 0 while it does not. A client that takes, or sends,
// nothing holds up the calls of gRPC for as long as it likes; what ends them is the end of the call that supervise
// returns to.
func supervise(since *atomic.Int64, most time.Duration, work, stalled func() error) error {
	end := make(chan error, 1)
	go func() { end <- work() }() // ends with the call at the latest, which ends the stream that work waits for
	tick := time.NewTicker(max(most/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case err := <-end:
			return err
		case now := <-tick.C:
			if at := since.Load(); at != 0 && now.UnixNano()-at > int64(most) {
				return stalled()
			}
		}
	}
}

// watchCall is one watch under way. It belongs to the goroutine that sends.
type watchCall struct {
	g      *GRPC
	stream grpc.ServerStreamingServer[kvstorev1.WatchResponse]
	values bool
	start  time.Time
	call   *callState

	begun bool
	err   error // why it was given up from this side
	// sending is when the Send under way began, Unix nanoseconds; 0: there is none.
	sending atomic.Int64
}

// frame sends one frame of the watch. Its error ends the watch.
func (w *watchCall) frame(resp *wire.Response) error {
	size := int64(len(resp.Payload))
	if !w.g.sending.TryAcquire(size) {
		w.err = errStreamBudget
		return w.err
	}
	defer w.g.sending.Release(size)
	var batch wire.EventBatch
	if wire.DecodeEventBatch(resp.Payload, &batch) != nil {
		w.err = errStreamBroken
		return w.err
	}
	out := &kvstorev1.WatchResponse{Revision: batch.Revision, Events: make([]*kvstorev1.Event, 0, batch.Count)}
	rest := batch.Events
	for range batch.Count {
		var e wire.Event
		var err error
		if rest, err = wire.NextEvent(rest, &e); err != nil {
			w.err = errStreamBroken
			return w.err
		}
		out.Events = append(out.Events, eventOf(&e, w.values))
	}
	if !w.begun {
		w.begin(resp.Ext, out)
	}
	w.sending.Store(time.Now().UnixNano())
	w.err = w.stream.Send(out)
	w.sending.Store(0)
	return w.err
}

// begin tells with the first frame what the watch is of.
func (w *watchCall) begin(ext []byte, out *kvstorev1.WatchResponse) {
	w.begun = true
	w.call.took = time.Since(w.start)
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return
		}
		ext = rest
		switch {
		case t == wire.ExtHistory:
			out.History = v
		case t == wire.ExtNamespaceID && len(v) == 4:
			id := binary.LittleEndian.Uint32(v)
			out.NamespaceId = &id
		}
	}
}

// finish tells why the watch ended.
func (w *watchCall) finish(resp *wire.Response) error {
	end := *resp
	switch {
	case errors.Is(w.err, errStreamBudget):
		end = wire.Response{Status: wire.StatusBusy, Payload: []byte(textBusyAnswers)}
	case errors.Is(w.err, errStreamBroken):
		w.g.o.Logger.Error("a watch was answered with what are no events")
		end = wire.Response{Status: wire.StatusInternal, Payload: []byte("the events can't be read: see the server's log")}
	case w.g.streams.ending.Err() != nil:
		end = wire.Response{Status: wire.StatusDraining}
	case w.stream.Context().Err() != nil:
		return w.stream.Context().Err() // the client is gone
	case end.Status == wire.StatusOK:
		// A watch has no end of its own. Whoever comes back goes on where it was.
		end = wire.Response{Status: wire.StatusRetryLater}
	}
	return grpcFail(false, &end, nil)
}
