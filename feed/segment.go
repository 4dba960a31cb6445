package feed

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"kvstore/internal/record"
	"kvstore/wire"
)

const segmentSuffix = ".seg"

// markBytes is the distance of the marks by which a revision is looked up within a segment.
const markBytes = 64 << 10

// segment is a piece of the stream in a file.
type segment struct {
	// Immutable.
	header segmentHeader
	start  int64 // offset of its first byte in the stream
	path   string

	// Guarded by Feed.mu.
	end  int64
	file *os.File // nil until its first byte is written
	refs int      // readers of the file; the last one closes it if it is removed
	gone bool     // it was removed
	// marks are places where an entry begins, in order; what is known of a segment that an earlier process wrote is its
	// start alone.
	marks []mark

	// Guarded by Feed.io.
	dirty bool // written since the last sync
}

// mark is a place in the stream: all events before it have revisions up to revision, all behind it higher ones.
type mark struct {
	revision wire.Revision
	offset   int64
}

func segmentName(start int64) string { return fmt.Sprintf("%016x", start) + segmentSuffix }

// parseSegmentName is the reverse of segmentName.
func parseSegmentName(name string) (start int64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	start, err := strconv.ParseInt(digits, 16, 64)
	return start, err == nil && segmentName(start) == name
}

// note remembers a place where an entry begins, if the last one that is known is far enough.
func (s *segment) note(revision wire.Revision, offset int64) {
	last := s.start
	if n := len(s.marks); n > 0 {
		last = s.marks[n-1].offset
	}
	if offset-last >= markBytes {
		s.marks = append(s.marks, mark{revision, offset})
	}
}

// seek gives a place at or before the first event behind revision. REQUIRES: the segment's header is not above it.
func (s *segment) seek(revision wire.Revision) int64 {
	if i := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].revision > revision }); i > 0 {
		return s.marks[i-1].offset
	}
	return s.start
}

// gap reports whether revision was never given, or belongs to a history that a recovery gave up.
func (s *segment) gap(revision wire.Revision) bool {
	return s.header.follows != s.header.base() && revision > s.header.revision &&
		revision < wire.MakeRevision(s.header.follows+s.header.index+1, 0)
}

// found is a segment file as Open finds it.
type found struct {
	*segment
	whole bool // its header can be read
}

// findSegments lists the segments in dir in order, open.
func findSegments(dir string) (all []found, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range files {
		start, ok := parseSegmentName(entry.Name())
		if !ok {
			continue
		}
		s := &segment{start: start, path: filepath.Join(dir, entry.Name())}
		if s.file, err = os.OpenFile(s.path, os.O_RDWR, 0); err != nil {
			return all, err
		}
		f := found{segment: s}
		all = append(all, f)
		st, err := s.file.Stat()
		if err != nil {
			return all, err
		}
		s.end = start + st.Size()
		b := make([]byte, min(st.Size(), record.HeaderSize+headerBytes))
		if _, err := s.file.ReadAt(b, 0); err != nil {
			return all, err
		}
		payload, _, err := record.Decode(b)
		if err == nil {
			s.header, err = decodeHeader(payload)
		}
		all[len(all)-1].whole = err == nil && s.header.offset == start
	}
	return all, nil // ReadDir sorts, and names have one length
}

// scanned is what a scan of a segment found.
type scanned struct {
	// cut is the offset behind the last record that stays.
	cut int64
	// at is what that record says, at first the header.
	at state
	// reached: a record says that the feed is complete through the index asked for.
	reached bool
	// err is why the scan ended before the end of the file, other than that.
	err error
}

// scan reads the segment up to the entry index; what is above does not stay. An error is that of the disk.
func (s *segment) scan(index uint64) (r scanned, err error) {
	r = scanned{cut: s.start, at: s.header.state, reached: s.header.index >= index}
	in := record.NewReader(bufio.NewReaderSize(io.NewSectionReader(s.file, 0, s.end-s.start), 1<<20), recordBytesMax)
	at, previous, open := s.start, s.header.state, false
	for {
		payload, err := in.Next()
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		var h head
		if err == nil {
			_, err = decodeHead(payload, &h)
		}
		if err != nil {
			if !damage(err) {
				return r, err
			}
			r.err = err
			return r, nil
		}
		if h.index < previous.index || h.revision < previous.revision || open && (h.kind != kindEntry || h.index != previous.index) {
			r.err = fmt.Errorf("%w: a record of entry %d behind one of %d", errMalformed, h.index, previous.index)
			return r, nil
		}
		if h.index > index {
			r.reached = true
			return r, nil
		}
		if h.kind == kindEntry && r.at.index != h.index {
			s.note(r.at.revision, r.cut)
		}
		previous, open = h.state, h.more
		at += int64(record.HeaderSize + len(payload))
		if !h.more { // an entry that ends nowhere does not stay
			r.cut, r.at = at, h.state
			r.reached = r.reached || h.index >= index
		}
	}
}

// damage tells what stands in a file from a disk that can't be read.
func damage(err error) bool {
	for _, kind := range [...]error{record.ErrTorn, record.ErrCorrupt, record.ErrTooLarge, record.ErrKey, errMalformed} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
