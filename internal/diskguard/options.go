package diskguard

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Default values of Options.
const (
	DefaultFloorBytes   = 1 << 30
	DefaultBallastBytes = 64 << 20
	DefaultInterval     = 500 * time.Millisecond
)

// StatFunc returns the bytes that an unprivileged process may still take on the file system of dir.
type StatFunc func(dir string) (freeBytes uint64, err error)

// Options of a Guard. Immutable after Open. Only Dir is required.
type Options struct {
	// Dir is an existing directory on the file system to be watched; the ballast lies in it.
	Dir string

	// FloorBytes is the free space below which writes are refused. Default 1 GiB: twice the memtables
	// (2 × 64 MiB × 4 = 512 MiB) and as much again for the output of a large compaction. Too small, and
	// the work of flushing what has been accepted fills the disk.
	FloorBytes uint64

	// CriticalBytes is the free space below which the ballast is released and, with that gone, deletes
	// are refused. Default a quarter of FloorBytes. Must be below FloorBytes.
	CriticalBytes uint64

	// BallastBytes is the size of the ballast. Default 64 MiB: the flush of one memtable. Negative: no
	// ballast.
	BallastBytes int64

	// Interval is the time between two polls. Default 500 ms, at least 1 ms. A poll is one system call.
	Interval time.Duration

	// Stat measures free space. Default Free. Tests inject their own.
	Stat StatFunc

	// Logger gets one line per change of state. Default: none.
	Logger *slog.Logger
}

// withDefaults returns o with zero fields set, or an error that lists every fault at once.
func (o Options) withDefaults() (Options, error) {
	if o.FloorBytes == 0 {
		o.FloorBytes = DefaultFloorBytes
	}
	if o.CriticalBytes == 0 {
		o.CriticalBytes = o.FloorBytes / 4
	}
	if o.BallastBytes == 0 {
		o.BallastBytes = DefaultBallastBytes
	}
	if o.Interval == 0 {
		o.Interval = DefaultInterval
	}
	if o.Stat == nil {
		o.Stat = Free
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var faults []error
	if o.Dir == "" {
		faults = append(faults, errors.New("option Dir is empty"))
	}
	if o.CriticalBytes >= o.FloorBytes {
		faults = append(faults, fmt.Errorf("option CriticalBytes %d is not below FloorBytes %d", o.CriticalBytes, o.FloorBytes))
	}
	if o.Interval < time.Millisecond {
		faults = append(faults, fmt.Errorf("option Interval %v is below 1ms", o.Interval))
	}
	if len(faults) > 0 {
		return o, fmt.Errorf("cannot use disk guard options: %w", errors.Join(faults...))
	}
	return o, nil
}

// resumeLevel returns the free space at which a state entered below level is left: a quarter above it.
// Without the gap the state would flap, since each compaction takes and returns space; a flush writes one
// memtable, 64 MiB, and the gap at the default floor, 256 MiB, holds four of those.
func resumeLevel(level uint64) uint64 {
	return level + level/4
}

// Free is the StatFunc of the operating system (statfs). It leaves out the blocks reserved for root: a
// server that runs as root could take them, but they are the operator's last room for rescue.
func Free(dir string) (uint64, error) {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("cannot measure free space of %q: %w", dir, err)
		}
		// Blocks are counted in fragments; only some file systems make the two sizes differ.
		unit := s.Frsize
		if unit <= 0 {
			unit = s.Bsize
		}
		return s.Bavail * uint64(unit), nil
	}
}
