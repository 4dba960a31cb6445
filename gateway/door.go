package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"kvstore/wire"
)

// Door is what the doors of this package share: the Service, the bounds on memory and streams, the limits of rates, and
// the log of requests. A client that uses both doors so has one share of them, not two.
type Door struct {
	// Immutable after NewDoor.
	o       Options
	bodies  *semaphore.Weighted
	answers *semaphore.Weighted
	// now is the clock of the limits, in nanoseconds; only differences mean anything.
	now func() int64

	limits  doorLimits
	log     requestLog
	streams streams
}

// streams bounds the streams of events and ends them when the doors close: a server that drains would wait for them.
type streams struct {
	ending context.Context // ends when the doors are to stop
	end    context.CancelFunc
	open   atomic.Int64
}

// NewDoor builds what the doors share.
func NewDoor(o Options) *Door {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Backups == nil {
		o.Backups = noBackups{}
	}
	o.BodyBytesMax = cmp.Or(o.BodyBytesMax, bodyBytesMaxDefault)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, bodyTimeoutDefault)
	o.AnswerBytesMax = cmp.Or(o.AnswerBytesMax, answerBytesMaxDefault)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, answerTimeoutDefault)
	o.RequestTimeout = cmp.Or(o.RequestTimeout, wire.TimeoutDefault)
	o.StreamsMax = cmp.Or(o.StreamsMax, streamsMaxDefault)
	o.StallTimeout = cmp.Or(o.StallTimeout, stallTimeoutDefault)
	d := &Door{o: o, bodies: semaphore.NewWeighted(o.BodyBytesMax), answers: semaphore.NewWeighted(o.AnswerBytesMax), now: o.now}
	if d.now == nil {
		began := time.Now()
		d.now = func() int64 { return int64(time.Since(began)) }
	}
	d.limits.init(&o)
	d.log.init(&o, d.now)
	d.streams.ending, d.streams.end = context.WithCancel(context.Background())
	return d
}

// Check reports the faults of the options that concern the limits of rates and the log of requests.
func (o *Options) Check() error {
	var errs []error
	if o.RequestLogSample < 0 || o.RequestLogRate < 0 {
		errs = append(errs, fmt.Errorf("request log: sample %d and rate %d may not be negative", o.RequestLogSample, o.RequestLogRate))
	}
	if !slices.Contains([]string{"", RequestLogOff, RequestLogErrors, RequestLogSampled, RequestLogAll}, o.RequestLog) {
		errs = append(errs, fmt.Errorf("request log %q is none of off, errors, sampled and all", o.RequestLog))
	}
	return errors.Join(errs...)
}

// Close writes what the log of requests still holds, for a moment at most: a disk that hangs does not hold up a stop.
// REQUIRES: the doors are closed.
func (d *Door) Close() {
	d.streams.end()
	d.log.close()
}

// do executes req within the request's deadline.
func (d *Door) do(ctx context.Context, req *wire.Request) wire.Response {
	return d.doWithin(ctx, req, d.o.RequestTimeout)
}

// doWithin executes req within most.
func (d *Door) doWithin(ctx context.Context, req *wire.Request, most time.Duration) wire.Response {
	until := newDeadline(ctx, most)
	defer until.release()
	return d.o.Service.Do(until, d.o.Principal, req)
}

// admit takes one request of a client off the rates, or refuses it. Each door calls it once for each request, before
// anything of it is read or executed; a stream is one request.
func (d *Door) admit(remote netip.Addr) *wire.Refusal { return d.limits.allow(remote, d.now()) }

// WriteMetrics writes what the doors count together as Prometheus text.
func (d *Door) WriteMetrics(w io.Writer) error {
	return errors.Join(d.limits.writeMetrics(w), d.log.writeMetrics(w))
}
