package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const (
	// scrubRate is the default of ScrubLog, in bytes per second: 1 GiB of log in about a minute.
	scrubRate = 16 << 20
	// scrubSlice is how many bytes are read before the rate is looked at.
	scrubSlice = 256 << 10
	// scrubDamageMax bounds the damage that is listed.
	scrubDamageMax = 100
	// scrubYield is how long a scrub gives way to a write at most, in steps of scrubYieldStep.
	scrubYield     = 10 * time.Millisecond
	scrubYieldStep = 200 * time.Microsecond
)

// LogScrub is what a scrub of the log found.
type LogScrub struct {
	// First and Last bound the log as it was when the scrub began; zeros: it was empty.
	First, Last uint64
	// Entries and Bytes count what was read and found whole. Entries that were deleted meanwhile, behind a
	// checkpoint or by the leader, count for nothing.
	Entries, Bytes uint64
	// Damaged lists the first 100 entries that cannot be read or are not what was written, and DamagedEntries
	// counts all.
	Damaged        []LogDamage
	DamagedEntries uint64
}

// LogDamage is one damaged entry.
type LogDamage struct {
	// Index is the entry's, File the segment that holds it.
	Index uint64
	File  string
	// Err says what is wrong.
	Err error
}

// ScrubLog reads every entry of the log from the disk and checks it: damage that no reader has met yet would
// else come to light when a follower, or the next start, needs the entry. It reads about rate bytes per second
// (0: 16 MiB; negative: as fast as it can) and gives way to writes. Damage is reported, not acted upon: the
// group goes on, and stops only if it needs a damaged entry itself. It ends early, with what it has found
// so far, when ctx ends or the group is closed.
func (g *Group) ScrubLog(ctx context.Context, rate int64) (LogScrub, error) {
	return g.logs.scrub(ctx, g.stop, rate)
}

func (s *logStore) scrub(ctx context.Context, stop <-chan struct{}, rate int64) (r LogScrub, err error) {
	if rate == 0 {
		rate = scrubRate
	}
	if r.First, r.Last, err = s.bounds(); err != nil || r.Last == 0 {
		return r, err
	}
	s.dropPageCache()
	began := time.Now()
	var slice uint64
	for i := r.First; i <= r.Last; i++ {
		if slice >= scrubSlice || i == r.First {
			if err := s.pace(ctx, stop, began, slice, rate); err != nil {
				return r, err
			}
			began, slice = time.Now(), 0
		}
		n, err := s.verify(i)
		switch {
		case err == nil:
			r.Entries++
			r.Bytes += n
		case errors.Is(err, errStoreClosed):
			return r, ErrClosed
		case errors.Is(err, raft.ErrLogNotFound):
			continue // deleted meanwhile
		default:
			r.DamagedEntries++
			if len(r.Damaged) < scrubDamageMax {
				r.Damaged = append(r.Damaged, LogDamage{Index: i, File: s.segmentOf(i), Err: err})
			}
			n = scrubSlice // its true size is not known
		}
		slice += n
	}
	return r, nil
}

// verify reads one entry from the disk, past the cache, and returns its size in bytes.
func (s *logStore) verify(index uint64) (uint64, error) {
	var l raft.Log
	err := s.use(func() error { return s.wal.GetLog(index, &l) })
	if err == nil && l.Index != index {
		err = fmt.Errorf("%w: its place holds entry %d", errDamaged, l.Index)
	}
	if err == nil || errors.Is(err, errStoreClosed) || errors.Is(err, raft.ErrLogNotFound) {
		return uint64(entryBytes(&l)), err
	}
	// What is gone by now may have been read while it went.
	first, last, boundsErr := s.bounds()
	if boundsErr != nil {
		return 0, boundsErr
	}
	if index < first || index > last {
		return 0, raft.ErrLogNotFound
	}
	// The second look decides: an entry whose place another one took in between is whole now.
	err = s.use(func() error { return s.wal.GetLog(index, &l) })
	if err == nil && l.Index != index {
		err = fmt.Errorf("%w: its place holds entry %d", errDamaged, l.Index)
	}
	return uint64(entryBytes(&l)), err
}

// pace waits until the bytes read since began are no more than rate allows, and while entries are written.
func (s *logStore) pace(ctx context.Context, stop <-chan struct{}, began time.Time, bytes uint64, rate int64) error {
	var due time.Duration
	if rate > 0 {
		due = time.Duration(float64(bytes)/float64(rate)*float64(time.Second)) - time.Since(began)
	}
	gaveWay := time.Duration(0)
	for {
		pause := due
		if pause <= 0 {
			if s.writing.Load() == 0 || gaveWay >= scrubYield {
				return errors.Join(ctx.Err(), closedErr(stop))
			}
			pause = scrubYieldStep
			gaveWay += pause
		}
		due = 0
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-stop:
			timer.Stop()
			return ErrClosed
		}
	}
}

// closedErr returns ErrClosed once stop is closed.
func closedErr(stop <-chan struct{}) error {
	select {
	case <-stop:
		return ErrClosed
	default:
		return nil
	}
}

// dropPageCache asks the kernel to forget what it holds of the log's files, so that they are read from the
// disk. It is advice: where it is not taken the scrub sees what the kernel remembers.
func (s *logStore) dropPageCache() {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, file := range files {
		if filepath.Ext(file.Name()) != ".wal" {
			continue
		}
		f, err := os.Open(filepath.Join(s.dir, file.Name()))
		if err != nil {
			continue // deleted meanwhile; and what cannot be opened the reading below complains of
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = f.Close()
	}
}
