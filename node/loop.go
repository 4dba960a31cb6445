package node

import "context"

// loop is a goroutine of the shard's that runs until it is stopped.
type loop struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// begin runs f until stop ends ctx, or f returns.
func (l *loop) begin(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.done = cancel, make(chan struct{})
	go func() { // owned by whoever owns the loop; ends when stop cancels ctx
		defer close(l.done)
		f(ctx)
	}()
}

// stop ends the loop and waits until f has returned; it may be called when begin was not.
func (l *loop) stop() {
	if l.cancel != nil {
		l.cancel()
		<-l.done
	}
}
