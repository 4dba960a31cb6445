package batcher

import (
	"errors"
	"fmt"
	"time"

	"kvstore/wire"
)

// Proposer puts entries into the replicated log.
type Proposer interface {
	// Propose hands over a sealed entry and its bytes. StatusOK: taken, and done will be called exactly
	// once, with StatusOK and one result for each operation in order, or with a status of ClassRetry
	// (surely not applied) or ClassUnknown. Any other status, always of ClassRetry: surely not proposed,
	// and done is not called. It may wait for room in the log, but never without a bound.
	Propose(entry []byte, done func(results []wire.Result, st wire.Status)) wire.Status
}

// Options configures a Batcher. Zero values mean the defaults.
type Options struct {
	// Proposer is the log. Required.
	Proposer Proposer

	// Stamp fills the header of an entry that is about to be proposed: level, group, incarnation and
	// time. Count and Proposal are the batcher's. Required.
	Stamp func(h *wire.EntryHeader)

	// Now is a monotonic clock in nanoseconds, the one that deadlines are measured on. Required.
	Now func() int64

	// Bracket, if set, is called before the operations of an entry are answered, and the function that
	// it returns after them, so that the doors can send many answers with one wake-up.
	Bracket func() (end func())

	// OverQuota, if set, is told the namespace of each operation that the state machine refused with StatusQuota. It
	// must not block.
	OverQuota func(ns uint32)

	// EntryBytesTarget is the size at which an entry is closed and the next begun. Default 256 KiB: an
	// entry of that size costs one fsync about the same as a small one, while larger ones delay
	// heartbeats and everyone's p99. An operation larger than this travels alone.
	EntryBytesTarget int

	// EntryOpsMax is the most operations of one entry. Default 4096.
	EntryOpsMax int

	// InFlightMax is how many entries may be proposed and unanswered. Default 4: one in the disk's
	// queue, one on the wire, one applying, one filling.
	InFlightMax int

	// LargeBytes is the size from which an entry counts as large; one large entry is in flight at most,
	// so that big values cannot crowd out the log. Default 1 MiB.
	LargeBytes int

	// QueueBytesMax bounds the bytes that wait to be proposed; beyond it Submit answers StatusBusy.
	// Default 64 MiB, at least one largest operation. One namespace gets eight ninths of it while no other has
	// anything waiting, and less the more others have: who has little waiting always finds room.
	QueueBytesMax int

	// QueueAgeMax bounds how long operations wait to be proposed: while the oldest of more than one entry
	// of its namespace has waited longer, Submit answers StatusBusy, and from half of it on to those senders that have more
	// waiting than the average. Default 500 ms: what waits longer is mostly given up by its sender before it
	// is done, and a queue that is bounded by bytes alone would hold many seconds of small writes.
	QueueAgeMax time.Duration
}

const (
	entryBytesTargetDefault = 256 << 10
	entryOpsMaxDefault      = 4096
	inFlightMaxDefault      = 4
	largeBytesDefault       = 1 << 20
	queueBytesMaxDefault    = 64 << 20
	queueAgeMaxDefault      = 500 * time.Millisecond
)

// validate fills in defaults and lists every fault at once.
func (o *Options) validate() error {
	def := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	def(&o.EntryBytesTarget, entryBytesTargetDefault)
	def(&o.EntryOpsMax, entryOpsMaxDefault)
	def(&o.InFlightMax, inFlightMaxDefault)
	def(&o.LargeBytes, largeBytesDefault)
	def(&o.QueueBytesMax, queueBytesMaxDefault)
	if o.QueueAgeMax == 0 {
		o.QueueAgeMax = queueAgeMaxDefault
	}
	var errs []error
	if o.Bracket == nil {
		o.Bracket = func() func() { return func() {} }
	}
	if o.OverQuota == nil {
		o.OverQuota = func(uint32) {}
	}
	if o.Proposer == nil || o.Stamp == nil || o.Now == nil {
		errs = append(errs, errors.New("Proposer, Stamp and Now are required"))
	}
	if o.EntryBytesTarget < 1<<10 || o.EntryBytesTarget > 4<<20 {
		errs = append(errs, fmt.Errorf("EntryBytesTarget is %d; it must lie between 1 KiB and 4 MiB", o.EntryBytesTarget))
	}
	if o.EntryOpsMax < 1 || o.EntryOpsMax > 1<<14 {
		errs = append(errs, fmt.Errorf("EntryOpsMax is %d; it must lie between 1 and 16384", o.EntryOpsMax))
	}
	if o.InFlightMax < 1 || o.InFlightMax > 64 {
		errs = append(errs, fmt.Errorf("InFlightMax is %d; it must lie between 1 and 64", o.InFlightMax))
	}
	if o.LargeBytes < o.EntryBytesTarget {
		errs = append(errs, fmt.Errorf("LargeBytes is %d, below EntryBytesTarget %d", o.LargeBytes, o.EntryBytesTarget))
	}
	if o.QueueBytesMax < wire.EntryBytesMax {
		errs = append(errs, fmt.Errorf("QueueBytesMax is %d; one largest operation needs %d", o.QueueBytesMax, wire.EntryBytesMax))
	}
	if o.QueueAgeMax < time.Millisecond {
		errs = append(errs, fmt.Errorf("QueueAgeMax is %v; it must be at least 1ms", o.QueueAgeMax))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot start batcher: %w", err)
	}
	return nil
}
