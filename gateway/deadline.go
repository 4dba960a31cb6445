package gateway

import (
	"context"
	"sync"
	"time"
)

// deadline is a context that ends at a time or with its parent, and costs next to nothing until somebody waits for it:
// most reads are answered before anybody does. context.WithDeadline would start a timer and enter itself at its parent.
type deadline struct {
	context.Context
	at time.Time

	once   sync.Once
	timed  context.Context // set by once
	cancel context.CancelFunc
}

// ended is what a deadline becomes that was released before anybody waited.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func newDeadline(parent context.Context, d time.Duration) *deadline {
	return &deadline{Context: parent, at: time.Now().Add(d)}
}

// Deadline is its own, or its parent's if that comes first.
func (d *deadline) Deadline() (time.Time, bool) {
	if at, ok := d.Context.Deadline(); ok && at.Before(d.at) {
		return at, true
	}
	return d.at, true
}

// Done begins to wait.
func (d *deadline) Done() <-chan struct{} { return d.wait().Done() }

// Err begins to wait too, so that it never says other than Done does.
func (d *deadline) Err() error { return d.wait().Err() }

func (d *deadline) wait() context.Context {
	d.once.Do(func() { d.timed, d.cancel = context.WithDeadline(d.Context, d.at) })
	return d.timed
}

// release ends it.
func (d *deadline) release() {
	d.once.Do(func() { d.timed, d.cancel = ended, func() {} })
	d.cancel()
}
