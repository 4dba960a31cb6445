package engine

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrPinsExhausted says that Options.PinsMax past revisions are being held: try again later.
var ErrPinsExhausted = errors.New("too many pinned revisions")

// pin holds one past state readable. Its fields are immutable; membership in store.pins is guarded by
// store.mu.
type pin struct {
	ts    uint64
	taken time.Time
	bytes int64 // store.bytesWritten when it was taken.
}

// pin keeps ts readable until release is called, or until the pin is older than PinAgeMax or more than
// PinBytesMax have been stored since; then reads at ts end with ErrCompacted. ErrCompacted: ts is below
// the fence already. ErrFuture: ts is above the newest point. ErrPinsExhausted. release may be called
// more than once.
func (s *store) pin(ts uint64) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pinLocked(ts)
}

// pinCurrent pins the newest point.
func (s *store) pinCurrent() (p point, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p = s.current()
	release, err = s.pinLocked(p.ts)
	return p, release, err
}

// pinLocked is pin. The fence only moves under mu, so a pin is either counted by the next move or sees
// that the fence has passed it.
//
// REQUIRES: mu held.
func (s *store) pinLocked(ts uint64) (release func(), err error) {
	if newest := s.current().ts; ts > newest {
		return nil, fmt.Errorf("cannot pin ts %d, newest is %d: %w", ts, newest, ErrFuture)
	}
	if fence := s.fence.Load(); ts < fence {
		return nil, fmt.Errorf("cannot pin ts %d, kept are %d and later: %w", ts, fence, ErrCompacted)
	}
	if len(s.pins) >= s.o.PinsMax {
		s.dropStalePinsLocked()
		if len(s.pins) >= s.o.PinsMax {
			return nil, fmt.Errorf("cannot pin ts %d: %w (%d)", ts, ErrPinsExhausted, len(s.pins))
		}
	}
	p := &pin{ts: ts, taken: s.o.hooks.now(), bytes: s.bytesWritten.Load()}
	s.pins[p] = struct{}{}
	return func() {
		s.mu.Lock()
		delete(s.pins, p)
		s.mu.Unlock()
	}, nil
}

// dropStalePinsLocked ends the hold of pins that are too old or hold too much.
//
// REQUIRES: mu held.
func (s *store) dropStalePinsLocked() {
	now, bytes := s.o.hooks.now(), s.bytesWritten.Load()
	for p := range s.pins {
		if now.Sub(p.taken) > s.o.PinAgeMax || bytes-p.bytes > s.o.PinBytesMax {
			delete(s.pins, p)
			s.metrics.pinsDropped.Add(1)
		}
	}
	for p := range s.snapshots {
		if now.Sub(p.used) > snapshotIdleMax {
			delete(s.snapshots, p)
			s.metrics.pinsDropped.Add(1)
		}
	}
}

const (
	// snapshotsMax bounds the snapshots that are sent at once: a leader has a few followers, and one that
	// reads slowly holds back what compactions may drop.
	snapshotsMax = 4

	// snapshotIdleMax is how long a snapshot may go unread before it loses its hold: its receiver is gone.
	snapshotIdleMax = time.Minute
)

// snapshotPin holds the state that a snapshot shows. The bounds of other pins would break a long
// transfer; this one holds for as long as its snapshot is read. Membership in store.snapshots and used are
// guarded by store.mu.
type snapshotPin struct {
	ts   uint64 // immutable
	used time.Time
}

// pinSnapshot pins the newest checkpoint, after the one that is under way: that may have moved the fence beyond the
// one before. ErrPinsExhausted: snapshotsMax are open.
func (s *store) pinSnapshot() (p *snapshotPin, cp *Checkpoint, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.snapshots) >= snapshotsMax {
		s.dropStalePinsLocked()
		if len(s.snapshots) >= snapshotsMax {
			return nil, nil, fmt.Errorf("cannot open a snapshot: %w (%d snapshots)", ErrPinsExhausted, len(s.snapshots))
		}
	}
	// Between two checkpoints the fence is at most the Fence of the newest: it can't have passed this one.
	cp = s.last.Load()
	p = &snapshotPin{ts: cp.TS, used: s.o.hooks.now()}
	s.snapshots[p] = struct{}{}
	return p, cp, nil
}

// renew notes that the snapshot is being read.
func (s *store) renew(p *snapshotPin) {
	s.mu.Lock()
	p.used = s.o.hooks.now()
	s.mu.Unlock()
}

// unpinSnapshot ends the hold of p, if it has one.
func (s *store) unpinSnapshot(p *snapshotPin) {
	s.mu.Lock()
	delete(s.snapshots, p)
	s.mu.Unlock()
}

// snapshotsOpen is how many snapshots have a hold.
func (s *store) snapshotsOpen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.snapshots)
}

// moveFence moves the fence to min(to, pins). A reader that could have missed a version finds it above its point: it
// stands there before the version is left out or dropped.
//
// REQUIRES: caller is the checkpointer.
func (s *store) moveFence(to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropStalePinsLocked()
	for p := range s.pins {
		to = min(to, p.ts)
	}
	for p := range s.snapshots {
		to = min(to, p.ts)
	}
	s.fence.Store(max(to, s.fence.Load()))
}

// advanceFence moves the fence as far as the last checkpoint and the pins allow, and then lets Badger drop what is below.
//
// REQUIRES: caller is the checkpointer, which holds writing and has no checkpoint under way.
func (s *store) advanceFence() {
	s.moveFence(s.last.Load().Fence)
	if fence := s.fence.Load(); fence > s.discarded {
		s.discarded = fence
		s.db.SetDiscardTs(fence)
	}
}

// historySamplesMax bounds the samples of one window, by time and by bytes each. 256 makes the window at
// most 0.4 % longer than asked for.
const historySamplesMax = 256

// history tells which ts is the oldest inside the history window.
type history struct {
	// Immutable after init.
	window time.Duration
	bytes  int64

	mu sync.Mutex
	// Guarded by mu.
	fence uint64 // Never goes back.
	// samples are published points, oldest first; each at least 1/256 of the window or of the bytes after the
	// one before.
	samples []historySample
}

type historySample struct {
	ts    uint64
	time  int64 // Log time, Unix µs.
	bytes int64
}

// init starts at the checkpoint that the store was opened from. What time the revisions below it had
// isn't known any more, so the fence stays where that checkpoint put it until the window has passed.
func (h *history) init(window time.Duration, bytes int64, cp Checkpoint) {
	h.window, h.bytes, h.fence = window, bytes, cp.Fence
	h.samples = append(h.samples, historySample{ts: cp.TS, time: cp.Time})
}

// note takes a published point. REQUIRES: caller is the applier.
func (h *history) note(p *published) {
	if h.window < 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	newest := h.samples[len(h.samples)-1]
	if p.time-newest.time >= h.window.Microseconds()/historySamplesMax ||
		h.bytes >= 0 && p.bytes-newest.bytes >= h.bytes/historySamplesMax {
		h.samples = append(h.samples, historySample{ts: p.ts, time: p.time, bytes: p.bytes})
		h.forget(p)
	}
}

// advance notes that p is about to become durable and returns the fence that this allows: the newest
// sample that lies outside the window, by log time or by bytes, and not above p. REQUIRES: caller is the checkpointer.
func (h *history) advance(p *published) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.window < 0 {
		h.fence = max(h.fence, p.ts)
	} else {
		h.forget(p)
	}
	return min(h.fence, p.ts)
}

// forget moves the fence to the newest sample that lies outside the window as seen from p, and drops those before.
// REQUIRES: mu held.
func (h *history) forget(p *published) {
	passed := 0
	for passed < len(h.samples) {
		x := &h.samples[passed]
		if x.time > p.time-h.window.Microseconds() && (h.bytes < 0 || x.bytes >= p.bytes-h.bytes) {
			break
		}
		h.fence = max(h.fence, x.ts)
		passed++
	}
	// Keep one sample at least: the distance of the next is measured from it.
	h.samples = append(h.samples[:0], h.samples[min(passed, len(h.samples)-1):]...)
}
