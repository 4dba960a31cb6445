package gateway

import (
	"context"
	"sync"

	"kvstore/wire"
)

// feed is a fake of what answers watches: frames that a test pushes.
type feed struct {
	mu     sync.Mutex
	asked  []wire.WatchRequest
	exts   [][]byte
	refuse *wire.Response

	frames chan wire.Response
	// end answers the watch when frames is closed.
	end wire.Response
	// ended is sent what became of each watch: the error of each, or ctx's.
	ended chan error
}

func newFeed() *feed {
	return &feed{frames: make(chan wire.Response, 1024), ended: make(chan error, 1024)}
}

// Stream serves a watch as node does: one frame after the other until something ends it.
func (f *feed) Stream(ctx context.Context, _ any, r *wire.Request, each func(*wire.Response) error) wire.Response {
	var q wire.WatchRequest
	if ref := wire.DecodeWatchRequest(r.Payload, &q); ref != nil {
		return wire.ErrorResponse(ref, nil)
	}
	f.mu.Lock()
	q.Prefix, q.Start, q.End = []byte(string(q.Prefix)), []byte(string(q.Start)), []byte(string(q.End))
	f.asked, f.exts = append(f.asked, q), append(f.exts, []byte(string(r.Ext)))
	refused := f.refuse
	f.mu.Unlock()
	if refused != nil {
		return *refused
	}
	for {
		select {
		case <-ctx.Done():
			f.ended <- ctx.Err()
			return wire.Response{Status: wire.StatusCancelled}
		case frame, more := <-f.frames:
			if !more {
				f.ended <- nil
				return f.end
			}
			if err := each(&frame); err != nil {
				f.ended <- err
				return wire.Response{Status: wire.StatusCancelled}
			}
		}
	}
}

// refuseWith answers the watches that follow before their first frame; nil: it does not.
func (f *feed) refuseWith(r *wire.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = r
}

// lastAsked gives the watch that was asked for last.
func (f *feed) lastAsked() (wire.WatchRequest, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[len(f.asked)-1], f.exts[len(f.exts)-1]
}

// frame makes a frame of events.
func frame(rev wire.Revision, events ...wire.Event) wire.Response {
	b := wire.AppendEventBatchHeader(nil, rev, len(events))
	for i := range events {
		b = wire.AppendEvent(b, &events[i])
	}
	return wire.Response{More: true, Payload: b}
}
