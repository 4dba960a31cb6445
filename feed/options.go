package feed

import (
	"errors"
	"fmt"
	"log/slog"

	"kvstore/wire"
)

// Options configures a feed.
type Options struct {
	// Dir is the directory of the segments. Open creates it; its parent must be there.
	Dir string
	// Index is that of the checkpoint that the state starts from: 0 for a state that begins.
	Index uint64
	// TS is the checkpoint's timestamp: base + Index.
	TS uint64
	// Revision is that of the checkpoint's state.
	Revision wire.Revision

	// SegmentBytes is the size from which on a new segment begins. Default 64 MiB.
	SegmentBytes int64
	// RetainBytes bounds the segments together: the oldest goes when they hold more. Default 1 GiB. It is exceeded by
	// up to a segment, and by what is appended between two calls of Sync.
	RetainBytes int64
	// RingBytes bounds the newest part of the feed that is kept in memory. Default 32 MiB. A single entry may exceed it.
	RingBytes int64
	// WatchersMax bounds the watchers at once. Default 66,560: as many as a node has streams, and those that a sender opens
	// beside one to look something up.
	WatchersMax int

	// Logger receives what an operator should know. Default slog.Default().
	Logger *slog.Logger
	// Fatal is called, once, with the failure of a write: the feed takes nothing more, and Sync fails from then on.
	// Any goroutine may call it; it must not block. Default: none, Sync tells.
	Fatal func(error)
}

// Bounds of the options.
const (
	segmentBytesMin = 4 << 10
	ringBytesMin    = 4 << 10
	// segmentsMax bounds the files that are open: one for each segment.
	segmentsMax = 4096
)

func (o Options) withDefaults() Options {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	if o.RetainBytes == 0 {
		o.RetainBytes = 1 << 30
	}
	if o.RingBytes == 0 {
		o.RingBytes = 32 << 20
	}
	if o.WatchersMax == 0 {
		o.WatchersMax = 1<<16 + 1<<10
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Check reports the faults of o that can be seen without opening the feed.
func (o Options) Check() error {
	o = o.withDefaults()
	var errs []error
	if o.SegmentBytes < segmentBytesMin {
		errs = append(errs, fmt.Errorf("segments of %d bytes are below %d", o.SegmentBytes, segmentBytesMin))
	}
	if o.RingBytes < ringBytesMin {
		errs = append(errs, fmt.Errorf("a ring of %d bytes is below %d", o.RingBytes, ringBytesMin))
	}
	if o.RetainBytes < o.SegmentBytes {
		errs = append(errs, fmt.Errorf("%d bytes to retain are below a segment of %d", o.RetainBytes, o.SegmentBytes))
	} else if o.RetainBytes/o.SegmentBytes > segmentsMax {
		errs = append(errs, fmt.Errorf("%d bytes to retain are more than %d segments of %d", o.RetainBytes, segmentsMax, o.SegmentBytes))
	}
	if o.WatchersMax < 0 {
		errs = append(errs, fmt.Errorf("%d watchers", o.WatchersMax))
	}
	return errors.Join(errs...)
}
