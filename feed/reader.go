package feed

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"kvstore/internal/record"
)

const (
	// readBytes is how much of a segment is read at a time, unless a record is longer.
	readBytes = 64 << 10
	// readKeptMax bounds the buffers that are kept for the next reader.
	readKeptMax = 1 << 20
)

// readBuffer is lent to a Next for its duration: a watcher between two of them holds none.
type readBuffer struct{ b []byte }

var readBuffers = sync.Pool{New: func() any { return &readBuffer{make([]byte, readBytes)} }}

func (n *next) release() {
	if n.buffer != nil && cap(n.buffer.b) <= readKeptMax {
		readBuffers.Put(n.buffer)
	}
	n.buffer = nil
}

// read fills v.data from the segment, with one whole record at least.
func (n *next) read(v *view) error {
	if n.buffer == nil {
		n.buffer = readBuffers.Get().(*readBuffer)
	}
	left := v.limit - v.at
	if left < record.HeaderSize {
		return fmt.Errorf("%w: %d bytes before the end of a segment", errMalformed, left)
	}
	size := min(left, int64(len(n.buffer.b)))
	for {
		b := n.buffer.b[:size]
		if got, err := v.file.ReadAt(b, v.at-v.segment.start); err != nil && (err != io.EOF || int64(got) < size) {
			return fmt.Errorf("cannot read %d bytes at %d: %w", size, v.at-v.segment.start, err)
		}
		v.data = b
		first := record.HeaderSize + int64(binary.LittleEndian.Uint32(b))
		if first <= size {
			return nil
		}
		if first > left || first > record.HeaderSize+recordBytesMax {
			return fmt.Errorf("%w: a record of %d bytes where %d are left", errMalformed, first, left)
		}
		n.buffer.b, size = make([]byte, first), first
	}
}

// unref gives back the reference that look took.
func (n *next) unref(s *segment) {
	f := n.w.feed
	f.mu.Lock()
	s.refs--
	file := s.file
	last := s.gone && s.refs == 0 && file != nil
	if last {
		s.file = nil
	}
	f.mu.Unlock()
	if last {
		if err := file.Close(); err != nil {
			f.log.Warn("cannot close a segment of the change feed that was removed", "error", err)
		}
	}
}

// damaged takes what could not be read: the feed begins behind it from now on. Whoever had not read past it gets
// ErrCompacted, and everybody else goes on.
func (n *next) damaged(v *view, cause error) {
	f := n.w.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.w.err != nil || v.segment == nil && n.done < f.first.offset {
		return
	}
	if v.segment == nil {
		panic("BUG: a record in the ring: " + cause.Error())
	}
	if v.segment.gone || n.done < f.first.offset {
		return // somebody else met it, or retention took it: look finds that this watcher is too late
	}
	first := mark{f.shown.revision, f.published}
	if len(f.ring.blocks) > 0 {
		b := f.ring.blocks[0]
		first = mark{b.first, b.start}
	}
	for i, s := range f.segments {
		if s == v.segment && i+1 < len(f.segments) && f.segments[i+1].start < first.offset {
			first = mark{f.segments[i+1].header.revision, f.segments[i+1].start}
		}
	}
	f.counters.damaged++
	f.log.Error("the change feed can't be read: watchers of what it had up to there are told that it is compacted",
		"segment", v.segment.path, "offset", n.done-v.segment.start, "cause", cause, "first_revision", first.revision)
	f.raise(first)
}
