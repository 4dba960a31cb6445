package consensus

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
)

// errStoreClosed is what log and vote answer once Close has begun to shut them.
var errStoreClosed = errors.New("consensus: store is closed")

// failStop is the switch that log and vote share: the first failure of either stops both for good.
//
// After a failed write or fsync nobody knows what is on the disk, and a later fsync may "succeed" over
// pages that the kernel has already dropped. So the first failure is recorded, Fatal is called, and the
// goroutine that met it is held until Close: raft can neither acknowledge the write nor, as a follower
// or candidate, go on with a log or vote that it believes in.
type failStop struct {
	// Immutable.
	fatal func(error)
	// closing is closed when Close begins to shut the stores.
	closing chan struct{}
	// failed is closed with the first failure.
	failed chan struct{}

	// first is the failure; nil while all is well.
	first atomic.Pointer[error]
	// armed is set when raft runs. Before that Open itself returns the error.
	armed     atomic.Bool
	closeOnce sync.Once
}

func newFailStop(fatal func(error)) *failStop {
	return &failStop{fatal: fatal, closing: make(chan struct{}), failed: make(chan struct{})}
}

// err returns the recorded failure, or nil.
func (f *failStop) err() error {
	if p := f.first.Load(); p != nil {
		return *p
	}
	return nil
}

// report records the failure and calls Fatal if it is the first. It does not hold the caller.
func (f *failStop) report(err error) {
	if !f.first.CompareAndSwap(nil, &err) {
		return
	}
	close(f.failed)
	if f.armed.Load() {
		f.fatal(err)
	}
}

// fail reports err and, once raft runs, holds the caller until Close. It returns the first failure.
func (f *failStop) fail(err error) error {
	if f.isClosing() {
		return errStoreClosed
	}
	f.report(err)
	return f.hold()
}

// check is called at the start and at the end of each operation: it returns nil while all is well.
func (f *failStop) check() error {
	if f.first.Load() == nil {
		return nil
	}
	return f.hold()
}

// hold blocks until Close once raft runs, then returns the first failure.
func (f *failStop) hold() error {
	if f.armed.Load() {
		<-f.closing
	}
	return f.err()
}

// leave returns err, unless raft runs: then it ends the calling goroutine, which must be one of raft's, so that
// raft does not see err, which it would answer with a panic. This late that only disturbs Close: who met a failure
// while raft runs was held until Close has begun. The goroutine's deferred calls run, and raft counts it as ended.
func (f *failStop) leave(err error) error {
	if err != nil && f.armed.Load() {
		runtime.Goexit()
	}
	return err
}

func (f *failStop) isClosing() bool {
	select {
	case <-f.closing:
		return true
	default:
		return false
	}
}

// close releases whoever is held and makes later failures harmless.
func (f *failStop) close() { f.closeOnce.Do(func() { close(f.closing) }) }
