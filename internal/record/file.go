package record

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrUnsynced says that WriteFileAtomic has put the new file in place but could not make that durable:
// after a power cut either the old or the new file may be there. The caller must treat the outcome as
// unknown; for most files of ours that means to stop.
var ErrUnsynced = errors.New("file is replaced but not known to be durable")

// tempSuffix is fixed rather than random: what a crash leaves behind is overwritten by the next write
// instead of piling up.
const tempSuffix = ".tmp"

// WriteFileAtomic replaces the file at path by one record that holds payload, with the permission bits
// perm regardless of the umask. When it returns nil, the new file is durable. A crash at any instant
// leaves the old file or the new one (and perhaps path+".tmp", which nothing reads). One writer per path
// at a time.
//
// An error that is not ErrUnsynced means that the old file is still in place.
func WriteFileAtomic(path string, payload []byte, perm os.FileMode) error {
	return writeFileAtomic(osFileSystem, path, payload, perm)
}

// WriteFileAtomicBefore is WriteFileAtomic that calls before when the new file is complete and durable under
// its temporary name and the old one still stands. An error of before ends the replacement and is returned.
func WriteFileAtomicBefore(path string, payload []byte, perm os.FileMode, before func() error) error {
	fs := osFileSystem
	fs.rename = func(source, target string) error {
		if err := before(); err != nil {
			return err
		}
		return os.Rename(source, target)
	}
	return writeFileAtomic(fs, path, payload, perm)
}

// ReadFile returns the payload of the file at path, which must be exactly one record of at most maxBytes
// payload bytes (capped at PayloadMax). Errors: that of opening it (os.ErrNotExist, …), ErrTorn,
// ErrTooLarge, ErrKey, and ErrCorrupt, also for bytes behind the record.
func ReadFile(path string, maxBytes int) (payload []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read record file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()

	maxBytes = min(maxBytes, PayloadMax)
	// One byte more than the largest file shows that there is more, without reading it.
	data, err := io.ReadAll(io.LimitReader(f, int64(HeaderSize+maxBytes+1)))
	if err != nil {
		return nil, fmt.Errorf("cannot read record file %q: %w", path, err)
	}
	payload, rest, err := decode(data, uint64(max(maxBytes, 0)))
	if err != nil {
		return nil, fmt.Errorf("cannot read record file %q: %w", path, err)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("cannot read record file %q: more bytes behind the record: %w", path, ErrCorrupt)
	}
	return payload, nil
}

// fileSystem is the seam at which tests inject failures and record the order of calls.
type fileSystem struct {
	create  func(path string, perm os.FileMode) (syncFile, error)
	rename  func(source, target string) error
	remove  func(path string) error
	syncDir func(dir string) error
}

type syncFile interface {
	Write(b []byte) (int, error)
	Sync() error
	Close() error
}

var osFileSystem = fileSystem{
	create: func(path string, perm os.FileMode) (syncFile, error) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
		if err != nil {
			return nil, err
		}
		// Chmod: the umask masks OpenFile's bits, and a leftover keeps those that it had.
		if err := f.Chmod(perm); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	},
	rename:  os.Rename,
	remove:  os.Remove,
	syncDir: SyncDir,
}

func writeFileAtomic(fs fileSystem, path string, payload []byte, perm os.FileMode) error {
	temp := path + tempSuffix
	if err := writeTemp(fs, temp, payload, perm); err != nil {
		return fmt.Errorf("cannot write %q: %w", temp, errors.Join(err, removeTemp(fs, temp)))
	}
	if err := fs.rename(temp, path); err != nil {
		return fmt.Errorf("cannot replace %q: %w", path, errors.Join(err, removeTemp(fs, temp)))
	}
	if err := fs.syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("cannot replace %q: %w: %w", path, ErrUnsynced, err)
	}
	return nil
}

// writeTemp writes and syncs the file. Its sync comes before the rename: file systems may otherwise make
// the new name durable before the bytes.
func writeTemp(fs fileSystem, temp string, payload []byte, perm os.FileMode) error {
	f, err := fs.create(temp, perm)
	if err != nil {
		return err
	}
	if _, err := f.Write(Append(nil, payload)); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// removeTemp removes what a failed write left; that it was never created is no error.
func removeTemp(fs fileSystem, temp string) error {
	if err := fs.remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// SyncDir makes the names in a directory durable: creations, renames and removals.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("cannot sync directory %q: %w", dir, err)
	}
	return nil
}
