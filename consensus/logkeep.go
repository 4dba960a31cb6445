package consensus

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// logPins are the places from which on the log must stay because a snapshot that ends there is on its
// way to a follower. Without them a compaction could overtake each snapshot that is sent.
type logPins struct {
	// grace is how long a place stays after its stream has ended: the follower must first install what it got, and
	// only then asks for the entries that follow. Immutable.
	grace time.Duration

	mu sync.Mutex
	// Guarded by mu.
	pins map[*logPin]struct{}
}

// logPin is one such place. Guarded by logPins.mu.
type logPin struct {
	index   uint64
	expires time.Time // zero while the stream is open
}

// pin keeps the log from index on until release and grace longer.
func (p *logPins) pin(index uint64) *logPin {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pins == nil {
		p.pins = make(map[*logPin]struct{})
	}
	pin := &logPin{index: index}
	p.pins[pin] = struct{}{}
	return pin
}

// move changes the place of a pin.
func (p *logPins) move(pin *logPin, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pin.index = index
}

// release lets go of a pin, after grace.
func (p *logPins) release(pin *logPin, grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pin.expires.IsZero() {
		pin.expires = time.Now().Add(grace)
	}
}

// lowest returns the lowest place that is pinned.
func (p *logPins) lowest() (index uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for pin := range p.pins {
		if !pin.expires.IsZero() && now.After(pin.expires) {
			delete(p.pins, pin)
			continue
		}
		if !ok || pin.index < index {
			index, ok = pin.index, true
		}
	}
	return index, ok
}

// logSizes knows roughly how many bytes lie between two places of the log.
type logSizes struct {
	// Immutable.
	step int64 // bytes between two samples

	mu sync.Mutex
	// Guarded by mu.
	samples []sizeSample // ascending
	total   int64        // bytes of all entries since the first sample
	next    uint64       // index behind the last entry
}

// sizeSample says that total bytes lie in the entries from the first sample up to index, exclusive, and that the
// one at index was appended at about the given time, not before.
type sizeSample struct {
	index uint64
	total int64
	at    time.Time
}

// sizeProbes is how many entries are read at a start to estimate the size of all.
const sizeProbes = 16

// estimate replaces what is known by an estimate of a log from first to last. An entry that cannot be
// read counts for nothing here: whoever needs it will say so. When entries were appended is not known after a
// start: they count as new.
func (s *logSizes) estimate(first, last uint64, read func(uint64, *raft.Log) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples, s.total, s.next = nil, 0, 0
	if last == 0 {
		return
	}
	count := last - first + 1
	probes := min(count, sizeProbes)
	var sum int64
	for i := range probes {
		var l raft.Log
		if read(first+i*count/probes, &l) == nil {
			sum += entryBytes(&l)
		}
	}
	mean := max(sum/int64(probes), 1)
	stride := max(uint64(s.step/mean), 1)
	now := time.Now()
	for i := first; i <= last; i += stride {
		s.samples = append(s.samples, sizeSample{i, int64(i-first) * mean, now})
	}
	s.total, s.next = int64(count)*mean, last+1
}

// add counts an entry that was appended.
func (s *logSizes) add(index uint64, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.samples) == 0 || s.total-s.samples[len(s.samples)-1].total >= s.step {
		s.samples = append(s.samples, sizeSample{index, s.total, time.Now()})
	}
	s.total += bytes
	s.next = index + 1
}

// cut forgets the entries outside [first, next).
func (s *logSizes) cut(first, next uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next < s.next {
		// What is left of the sample that next lies in counts for nothing: err to the side of keeping.
		i, _ := slices.BinarySearchFunc(s.samples, next, func(a sizeSample, n uint64) int { return cmp.Compare(a.index, n) })
		if s.samples, s.next = s.samples[:i], next; i > 0 {
			s.total = s.samples[i-1].total
		}
	}
	// The sample below first stays: it tells where first lies, roughly.
	drop := 0
	for drop+1 < len(s.samples) && s.samples[drop+1].index <= first {
		drop++
	}
	s.samples = s.samples[drop:]
	if first >= s.next || len(s.samples) == 0 {
		s.samples, s.total = nil, 0
	}
}

// newest returns the highest index from which on at least the given number of bytes lies; 0 means that
// all there is, is less.
func (s *logSizes) newest(bytes int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes <= 0 {
		return s.next
	}
	i, exact := slices.BinarySearchFunc(s.samples, s.total-bytes, func(a sizeSample, t int64) int { return cmp.Compare(a.total, t) })
	switch {
	case exact:
		return s.samples[i].index
	case i == 0:
		return 0
	}
	return s.samples[i-1].index
}

// since returns an index from which on everything lies that was appended within the given time, and little else;
// 0 means that it may be all there is.
func (s *logSizes) since(d time.Duration) uint64 {
	before := time.Now().Add(-d)
	s.mu.Lock()
	defer s.mu.Unlock()
	// The entries of a sample were appended between its time and that of the next one.
	i := len(s.samples) - 1
	for i >= 0 && !s.samples[i].at.Before(before) {
		i--
	}
	if i < 0 {
		return 0
	}
	return s.samples[i].index
}

// entryBytes is what an entry counts for.
func entryBytes(l *raft.Log) int64 { return int64(len(l.Data) + len(l.Extensions) + entryOverhead) }
