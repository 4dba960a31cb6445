package consensus

import (
	"errors"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/raft-wal/types"

	"kvstore/internal/directio"
	"kvstore/internal/failpoint"
)

// dataSyncFS is a file system for the log that writes segments past the page cache (directTail), and syncs a file's
// data, and of its metadata only what reading the data back needs (fdatasync). raft-wal syncs everything (fsync), and so
// pays for a commit of the file system's journal at each append, to keep the time of the last change; a segment's size
// does not change after its creation. A segment's first sync is left as it is: it makes size and name durable.
type dataSyncFS struct{ types.VFS }

// Create implements types.VFS.
func (v dataSyncFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := v.VFS.Create(dir, name, size)
	if err != nil {
		return nil, err
	}
	return newDataSyncFile(f, filepath.Join(dir, name))
}

// OpenWriter implements types.VFS.
func (v dataSyncFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return newDataSyncFile(f, filepath.Join(dir, name))
}

// descriptor is what a file must have so that its data alone can be synced.
type descriptor interface{ Fd() uintptr }

func newDataSyncFile(f types.WritableFile, path string) (types.WritableFile, error) {
	d, ok := f.(descriptor)
	if !ok {
		return f, nil
	}
	tail, err := openDirectTail(path, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &dataSyncFile{WritableFile: f, file: d, tail: tail}, nil
}

// dataSyncFile is a segment that is written to. One goroutine writes and syncs it at a time; others may read.
type dataSyncFile struct {
	types.WritableFile
	file   descriptor
	synced bool        // as a whole, by this process
	tail   *directTail // nil: the file system has no direct writes
}

// WriteAt implements types.WritableFile.
func (f *dataSyncFile) WriteAt(p []byte, off int64) (int, error) {
	if f.tail != nil {
		err := f.tail.write(p, off)
		if err == nil {
			return len(p), nil
		}
		if !errors.Is(err, directio.ErrUnsupported) {
			return 0, err
		}
		tail := f.tail
		f.tail = nil
		if err := tail.close(); err != nil {
			return 0, err
		}
	}
	return f.WritableFile.WriteAt(p, off)
}

// Close implements types.WritableFile.
func (f *dataSyncFile) Close() error {
	if f.tail == nil {
		return f.WritableFile.Close()
	}
	return errors.Join(f.tail.close(), f.WritableFile.Close())
}

// Sync implements types.WritableFile.
func (f *dataSyncFile) Sync() error {
	if err := failpoint.Err(failpoint.LogFsyncBefore); err != nil {
		return err
	}
	if err := f.sync(); err != nil {
		return err
	}
	return failpoint.Err(failpoint.LogFsyncAfter)
}

func (f *dataSyncFile) sync() error {
	if !f.synced {
		if err := f.WritableFile.Sync(); err != nil {
			return err
		}
		f.synced = true
		return nil
	}
	return fdatasync(f.file)
}

func fdatasync(d descriptor) error {
	for {
		if err := syscall.Fdatasync(int(d.Fd())); err != syscall.EINTR {
			return err
		}
	}
}
