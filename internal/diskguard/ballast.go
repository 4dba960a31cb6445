package diskguard

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"kvstore/internal/record"
)

// ballastName is the file's name inside the watched directory.
const ballastName = "ballast"

// ballastFile makes, adopts and releases the ballast. Immutable; its calls are serialised by Guard.mu.
type ballastFile struct {
	path string
	size int64 // <= 0: none is kept

	// preallocate reserves the blocks; tests replace it.
	preallocate func(f *os.File, size int64) error
}

func newBallastFile(dir string, size int64) ballastFile {
	return ballastFile{path: filepath.Join(dir, ballastName), size: size, preallocate: fallocate}
}

// adopt tells whether a ballast of the right size with all its blocks is there from an earlier run. Any
// other one (another size configured, a crash while it was made) is removed.
func (b ballastFile) adopt() (bool, error) {
	info, err := os.Lstat(b.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot inspect the ballast: %w", err)
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("cannot use %q as ballast: it is not a regular file", b.path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	const statBlock = 512 // the unit of st_blocks, whatever the file system's own
	if ok && b.size > 0 && info.Size() == b.size && stat.Blocks*statBlock >= b.size {
		return true, nil
	}
	return false, b.release()
}

// make creates the ballast durably, or leaves nothing behind.
func (b ballastFile) make() error {
	f, err := os.OpenFile(b.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot create the ballast: %w", err)
	}
	err = b.preallocate(f, b.size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fill(f, b.size)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = record.SyncDir(filepath.Dir(b.path))
	}
	if err != nil {
		return fmt.Errorf("cannot create the ballast: %w", errors.Join(err, os.Remove(b.path)))
	}
	return nil
}

// release removes the ballast. The sync of the directory makes a journaling file system commit, and only
// then does it give the blocks back.
func (b ballastFile) release() error {
	if err := os.Remove(b.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return record.SyncDir(filepath.Dir(b.path))
}

// fallocate reserves size bytes without writing them.
func fallocate(f *os.File, size int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// fill writes size bytes that do not compress, for file systems without fallocate: zeros would take no
// room on one that compresses.
func fill(f *os.File, size int64) error {
	noise := rand.NewChaCha8([32]byte{})
	buf := make([]byte, 1<<20)
	for size > 0 {
		n := min(size, int64(len(buf)))
		if _, err := noise.Read(buf[:n]); err != nil {
			return err
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}
