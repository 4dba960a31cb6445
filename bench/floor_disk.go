package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// floorBlock is what one flush makes durable: a small group commit.
	floorBlock = 4 << 10
	// floorFile is the preallocated length: a log segment's order of size.
	floorFile = 16 << 20
	// floorAppendMax bounds what appending writes; then the file is cut and the test goes on.
	floorAppendMax = 256 << 20
)

// floorOverwrite is the cheapest durable write there is: no block is allocated and no length changes, so
// that the flush needs no journal commit.
func floorOverwrite(ctx context.Context, o FloorOptions) (FloorTest, error) {
	return withFile(o.Dir, func(f *os.File) (FloorTest, error) {
		if err := preallocate(f); err != nil {
			return FloorTest{}, err
		}
		return flushLoop(ctx, o, f, unix.Fdatasync, floorFile, nil)
	})
}

// preallocate gives f its full length in blocks that count as written.
func preallocate(f *os.File) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, floorFile); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("cannot allocate %d bytes: %w", floorFile, err)
	}
	// Allocated blocks still count as unwritten: writing zeros once turns them into plain ones.
	zero := make([]byte, 1<<20)
	for off := int64(0); off < floorFile; off += int64(len(zero)) {
		if _, err := f.WriteAt(zero, off); err != nil {
			return fmt.Errorf("cannot fill a file: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot fill a file: %w", err)
	}
	return nil
}

func floorAppend(ctx context.Context, o FloorOptions) (FloorTest, error) {
	return withFile(o.Dir, func(f *os.File) (FloorTest, error) {
		return flushLoop(ctx, o, f, unix.Fdatasync, floorAppendMax, f.Truncate)
	})
}

func floorFsync(ctx context.Context, o FloorOptions) (FloorTest, error) {
	return withFile(o.Dir, func(f *os.File) (FloorTest, error) {
		return flushLoop(ctx, o, f, unix.Fsync, floorAppendMax, f.Truncate)
	})
}

// flushLoop writes one block after the other and flushes each; at limit it starts anew, after cut(0).
func flushLoop(ctx context.Context, o FloorOptions, f *os.File, flush func(int) error, limit int64, cut func(int64) error) (FloorTest, error) {
	block := make([]byte, floorBlock)
	for i := range block {
		block[i] = byte(i * 7)
	}
	fd := int(f.Fd())
	return repeat(ctx, o.Duration, func(i int) error {
		off := int64(i) * floorBlock % limit
		if off == 0 && cut != nil {
			if err := cut(0); err != nil {
				return err
			}
		}
		block[0] = byte(i)
		if _, err := unix.Pwrite(fd, block, off); err != nil {
			return fmt.Errorf("cannot write: %w", err)
		}
		return flush(fd)
	})
}

// withFile gives f a file of its own in dir and removes it.
func withFile(dir string, f func(*os.File) (FloorTest, error)) (r FloorTest, err error) {
	file, err := os.CreateTemp(dir, ".kvbench-floor-*")
	if err != nil {
		return FloorTest{}, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	return f(file)
}
