package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// Layout of a raft-wal segment, as far as recovery must know it: a 32-byte header, then frames of 8
// bytes plus a payload padded to 8. A batch (one StoreLogs, one fsync) is some entry frames, perhaps
// the index frame that seals the file, and a commit frame with the CRC-32C of all bytes since the last
// commit frame (for the first batch: since the start of the file).
const (
	segmentHeaderBytes = 32
	frameHeaderBytes   = 8
	segmentMagic       = 0x58eb6b0d

	frameEntry  = 1
	frameIndex  = 2
	frameCommit = 3

	// framePayloadMax is raft-wal's own bound on what it can read back.
	framePayloadMax = 64 << 20
)

// errLogDamaged marks a log that has lost entries which were acknowledged.
var errLogDamaged = errors.New("the log is damaged in its acknowledged part")

// tailReport says what recoverTail found and did.
type tailReport struct {
	file     string // the newest segment; empty if there is none yet
	batches  int    // whole batches in it
	torn     int64  // bytes of a torn, never acknowledged write that were wiped
	finished bool   // a rotation cut short by a crash was completed
}

// recoverTail examines the newest segment before raft-wal opens it and repairs what a crash may leave,
// because raft-wal v0.4.1 by itself
//   - drops everything behind the first frame it cannot read, silently, acknowledged or not;
//   - refuses all appends ("segment is sealed") after a crash between the write that fills a segment
//     and the metadata commit of the rotation, and equally if that last write was torn.
//
// A crash can tear the last batch only: each batch is fsynced before the next is written. So whatever
// follows the last whole batch must not contain another whole batch of this log; if it does, the bytes
// between are damaged and entries that were acknowledged would vanish: errLogDamaged. Otherwise they
// are wiped, so that no later recovery can meet them.
func recoverTail(dir string, meta types.MetaStore, codec *entryCodec, log *slog.Logger) (tailReport, error) {
	state, err := meta.Load(dir)
	if err != nil {
		return tailReport{}, fmt.Errorf("cannot read the log's metadata: %w", err)
	}
	if len(state.Segments) == 0 {
		return tailReport{}, nil
	}
	tail := state.Segments[len(state.Segments)-1]
	if !tail.SealTime.IsZero() {
		return tailReport{}, nil
	}
	path := filepath.Join(dir, segment.FileName(tail))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		// The crash came between the metadata commit and the creation of the file: raft-wal creates it.
		return tailReport{}, nil
	}
	if err != nil {
		return tailReport{}, err
	}
	defer f.Close() //nolint:errcheck // what was written is fsynced below
	report := tailReport{file: path}
	r := &segmentReader{f: f}

	// Pass 1: whole batches from the start.
	var end int64
	last := tail.BaseIndex - 1
	var indexStart int64
	for indexStart == 0 {
		b, ok, err := r.batch(end, tail)
		if err != nil {
			return report, err
		}
		if !ok {
			break
		}
		end, last, indexStart = b.end, last+b.entries, b.indexStart
		report.batches++
	}

	// What was cut off the front was in a checkpoint, and at least one entry behind it stayed.
	if last < tail.MinIndex && tail.MinIndex > tail.BaseIndex {
		return report, fmt.Errorf("%w: %s holds entries up to %d, but the log begins at %d: entries behind %d are missing",
			errLogDamaged, path, last, tail.MinIndex, last)
	}

	info, err := f.Stat()
	if err != nil {
		return report, err
	}
	// The file has its full size before its second batch: raft-wal allocates it on creation, and below
	// what a crash cut short there is made up for. So from then on a short file lost its end.
	if info.Size() < int64(tail.SizeLimit) {
		if report.batches >= 2 {
			return report, fmt.Errorf("%w: %s was cut from %d to %d bytes; entries behind %d are missing",
				errLogDamaged, path, tail.SizeLimit, info.Size(), last)
		}
		if err := allocate(f, int64(tail.SizeLimit)); err != nil {
			return report, fmt.Errorf("cannot allocate %d bytes for %s: %w", tail.SizeLimit, path, err)
		}
	}

	if indexStart != 0 {
		return report, finishRotation(meta, state, last, indexStart, &report, log)
	}

	// Pass 2: what lies behind.
	dirtyEnd, err := r.examineRest(end, last, tail, codec)
	if err != nil {
		return report, err
	}
	if dirtyEnd > end {
		report.torn = dirtyEnd - end
		if err := wipe(f, end, dirtyEnd); err != nil {
			return report, fmt.Errorf("cannot wipe the torn write at %s offset %d: %w", path, end, err)
		}
		log.Warn("wiped a torn write that was never acknowledged", "file", path, "offset", end, "bytes", report.torn, "last_index", last)
	}
	return report, nil
}

// finishRotation writes the metadata that a rotation would have committed: the full segment as sealed
// and an empty one behind it. raft-wal creates the file of the new segment when it opens.
func finishRotation(meta types.MetaStore, state types.PersistentState, last uint64, indexStart int64, report *tailReport, log *slog.Logger) error {
	now := time.Now()
	tail := &state.Segments[len(state.Segments)-1]
	tail.SealTime, tail.MaxIndex, tail.IndexStart = now, last, uint64(indexStart)
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID:         state.NextSegmentID,
		BaseIndex:  last + 1,
		MinIndex:   last + 1,
		SizeLimit:  tail.SizeLimit,
		Codec:      tail.Codec,
		CreateTime: now,
	})
	state.NextSegmentID++
	if err := meta.CommitState(state); err != nil {
		return fmt.Errorf("cannot complete the rotation of %s: %w", report.file, err)
	}
	report.finished = true
	log.Info("completed a segment rotation that a crash had cut short", "file", report.file, "last_index", last)
	return nil
}

// allocate extends f to size and makes that durable.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = f.Truncate(size)
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// wipe overwrites [from, to) with zeros and makes that durable.
func wipe(f *os.File, from, to int64) error {
	zeros := make([]byte, min(1<<20, to-from))
	for off := from; off < to; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return f.Sync()
}

// batchInfo describes one whole batch.
type batchInfo struct {
	end        int64  // offset behind its commit frame
	entries    uint64 // entry frames in it
	firstEntry []byte // payload of the first entry frame; valid until the next read
	indexStart int64  // offset of the index array if the batch seals the segment, else 0
}

// segmentReader reads a segment through a window.
type segmentReader struct {
	f      *os.File
	window []byte // file content at [start, start+len)
	start  int64
}

// at returns n bytes at off, or fewer at the end of the file. The slice is valid until the next call.
func (r *segmentReader) at(off int64, n int) ([]byte, error) {
	if off >= r.start && off+int64(n) <= r.start+int64(len(r.window)) {
		return r.window[off-r.start:][:n], nil
	}
	size := max(n, 1<<20)
	if cap(r.window) < size {
		r.window = make([]byte, size)
	}
	r.window = r.window[:size]
	r.start = off
	got, err := r.f.ReadAt(r.window, off)
	r.window = r.window[:got]
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read %s at %d: %w", r.f.Name(), off, err)
	}
	return r.window[:min(n, got)], nil
}

// batch reads the batch that starts at off. ok is false if there is no whole and valid batch.
func (r *segmentReader) batch(off int64, info types.SegmentInfo) (b batchInfo, ok bool, err error) {
	var crc uint32
	if off == 0 {
		h, err := r.at(0, segmentHeaderBytes)
		if err != nil || len(h) < segmentHeaderBytes {
			return b, false, err
		}
		if binary.LittleEndian.Uint64(h) != segmentMagic || binary.LittleEndian.Uint64(h[8:]) != info.BaseIndex ||
			binary.LittleEndian.Uint64(h[16:]) != info.ID || binary.LittleEndian.Uint64(h[24:]) != info.Codec {
			return b, false, nil
		}
		crc = crc32.Update(0, castagnoli, h)
		off = segmentHeaderBytes
	}
	for {
		h, err := r.at(off, frameHeaderBytes)
		if err != nil || len(h) < frameHeaderBytes || h[1] != 0 || h[2] != 0 || h[3] != 0 {
			return b, false, err
		}
		typ, value := h[0], binary.LittleEndian.Uint32(h[4:])
		switch {
		case typ == frameCommit:
			b.end = off + frameHeaderBytes
			return b, value == crc && (b.entries > 0 || b.indexStart > 0), nil
		case typ == frameEntry && b.indexStart == 0, typ == frameIndex && b.indexStart == 0:
			if value > framePayloadMax {
				return b, false, nil
			}
			n := frameHeaderBytes + (int(value)+7)&^7
			frame, err := r.at(off, n)
			if err != nil || len(frame) < n {
				return b, false, err
			}
			crc = crc32.Update(crc, castagnoli, frame)
			if typ == frameIndex {
				b.indexStart = off + frameHeaderBytes
			} else {
				if b.entries == 0 {
					b.firstEntry = append([]byte(nil), frame[frameHeaderBytes:][:value]...)
				}
				b.entries++
			}
			off += int64(n)
		default:
			return b, false, nil
		}
	}
}

// examineRest looks at everything behind end, the end of the last whole batch. It returns the offset
// behind the last byte that is not zero (or end), and errLogDamaged if a whole batch of this log with
// entries beyond last lies there.
func (r *segmentReader) examineRest(end int64, last uint64, info types.SegmentInfo, codec *entryCodec) (int64, error) {
	dirtyEnd := end
	fd := int(r.f.Fd())
	for off := end; ; {
		// Preallocated and never written extents are holes to SEEK_DATA: without it a fresh segment
		// would be read as half a gigabyte of zeros at each start.
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dirtyEnd, nil
		}
		if err == nil {
			off = max(off, data)
		} else if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return 0, fmt.Errorf("cannot seek in %s: %w", r.f.Name(), err)
		}
		off &^= 7 // frames are aligned to 8 bytes
		chunk, err := r.at(off, 1<<20)
		if err != nil {
			return 0, err
		}
		if len(chunk) == 0 {
			return dirtyEnd, nil
		}
		// A copy: batch moves the window.
		chunk = append([]byte(nil), chunk...)
		for i := 0; i < len(chunk); i += 8 {
			word := chunk[i:min(i+8, len(chunk))]
			if isZero(word) {
				continue
			}
			dirtyEnd = off + int64(i+len(word))
			if len(word) < 8 || binary.LittleEndian.Uint32(word) != frameEntry || off+int64(i) < segmentHeaderBytes {
				continue
			}
			size := binary.LittleEndian.Uint32(word[4:])
			if size < entryOverhead || size > framePayloadMax {
				continue
			}
			b, ok, err := r.batch(off+int64(i), info)
			if err != nil {
				return 0, err
			}
			var first raft.Log
			if !ok || b.entries == 0 || codec.Decode(b.firstEntry, &first) != nil || first.Index <= last {
				continue
			}
			return 0, fmt.Errorf("%w: %s cannot be read at offset %d, yet entries %d to %d are whole at offset %d; entries %d to %d are lost",
				errLogDamaged, r.f.Name(), end, first.Index, first.Index+b.entries-1, off+int64(i), last+1, first.Index-1)
		}
		off += int64(len(chunk))
	}
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
