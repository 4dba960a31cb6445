package node

import (
	"math/rand/v2"
	"sync"
	"time"

	"kvstore/client"
)

const (
	// breakerFailures in a row open a breaker.
	breakerFailures = 3
	// breakerSilence is the least time without an answer that counts as a failure: a request whose sender gave it less
	// tells nothing of the server.
	breakerSilence = time.Second
	// breakerPauseMin and breakerPauseMax bound how long a breaker stays open, with jitter down to a half of it. The
	// first is far below what an election takes, so that a leader that is only started anew loses no time by it; the
	// last is what a server that is back may be left out for.
	breakerPauseMin = 100 * time.Millisecond
	breakerPauseMax = time.Second
	// breakerProbe is how long one probe keeps others out: a request that takes its time is no reason to let none
	// through.
	breakerProbe = time.Second
	// breakerHopeless is for how long a server must have failed all probes before nobody waits for it any more.
	breakerHopeless = pursueMax
)

// The states of a breaker, as the metric has them.
const (
	breakerClosed = iota
	breakerHalfOpen
	breakerOpen
)

// breaker keeps requests from a server that cannot be reached. Closed, it lets everything through. After
// breakerFailures failures in a row it is open for a pause that doubles each time; then one request is let through
// as a probe, whose answer, of whatever kind, closes it.
//
// It only ever refuses what has not been sent, and never touches an answer: an unknown outcome stays one.
type breaker struct {
	mu sync.Mutex
	// Guarded by mu. Times are of Shard.now.
	state    int
	failures int           // in a row, while closed
	failedAt int64         // the last failure that counted; one of a request that began before is the same event
	pause    time.Duration // the bound of the next time that it is open
	until    int64         // open: when a probe is due; half-open: when another one is
	probed   int64         // half-open: when the probe began
	downAt   int64         // when it opened first since it was closed
	opened   uint64        // how often it has opened
}

// denial is why a request is not sent.
type denial struct {
	wait     time.Duration // until a probe is due
	hopeless bool          // all probes have failed for so long that nobody should wait for the next
}

// admit lets a request through (nil), which must be told of by done, or says why not.
func (b *breaker) admit(now int64) *denial {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == breakerClosed {
		return nil
	}
	if now >= b.until {
		b.state, b.probed, b.until = breakerHalfOpen, now, now+int64(breakerProbe)
		return nil
	}
	return &denial{wait: time.Duration(b.until - now), hopeless: b.state == breakerOpen && b.failedAt-b.downAt >= int64(breakerHopeless)}
}

// done takes what a request met that admit let through at began.
func (b *breaker) done(began, now int64, contact client.Contact) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case contact == client.ContactAnswered:
		// Whatever it has answered, and whenever it was asked: it is there.
		b.state, b.failures, b.pause = breakerClosed, 0, 0
	case contact == client.ContactNone || contact == client.ContactSilent && now-began < int64(breakerSilence):
		if b.state == breakerHalfOpen && began >= b.probed {
			b.until = now // it was no probe: the next one is
		}
	case b.state == breakerClosed:
		if b.failures > 0 && began < b.failedAt {
			return
		}
		b.failedAt = now
		if b.failures++; b.failures >= breakerFailures {
			b.downAt = now
			b.open(now)
		}
	case b.state == breakerHalfOpen && began >= b.probed:
		b.failedAt = now
		b.open(now)
	}
}

// open opens it. REQUIRES: mu held.
func (b *breaker) open(now int64) {
	b.state = breakerOpen
	b.opened++
	b.pause = min(max(2*b.pause, breakerPauseMin), breakerPauseMax)
	b.until = now + int64(b.pause/2+rand.N(b.pause/2+1))
}

// idle reports that nothing would be lost with it.
func (b *breaker) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == breakerClosed && b.failures == 0
}

// look tells its state, and how often it has opened.
func (b *breaker) look(now int64) (state int, opened uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == breakerOpen && now >= b.until {
		return breakerHalfOpen, b.opened // whoever comes next is the probe
	}
	return b.state, b.opened
}
