package consensus

import (
	"syscall"

	"github.com/hashicorp/raft-wal/types"

	"kvstore/internal/failpoint"
)

// dataSyncFS is a file system for the log that syncs a file's data, and of its metadata only what reading
// the data back needs (fdatasync). raft-wal syncs everything (fsync), and so pays for a commit of the file
// system's journal at each append, to keep the time of the last change; a segment's size does not change
// after its creation. A segment's first sync is left as it is: it makes size and name durable.
type dataSyncFS struct{ types.VFS }

// Create implements types.VFS.
func (v dataSyncFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := v.VFS.Create(dir, name, size)
	if err != nil {
		return nil, err
	}
	return newDataSyncFile(f), nil
}

// OpenWriter implements types.VFS.
func (v dataSyncFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return newDataSyncFile(f), nil
}

// descriptor is what a file must have so that its data alone can be synced.
type descriptor interface{ Fd() uintptr }

func newDataSyncFile(f types.WritableFile) types.WritableFile {
	d, ok := f.(descriptor)
	if !ok {
		return f
	}
	return &dataSyncFile{WritableFile: f, file: d}
}

// dataSyncFile is a segment that is written to. One goroutine syncs it at a time.
type dataSyncFile struct {
	types.WritableFile
	file   descriptor
	synced bool // as a whole, by this process
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
	for {
		if err := syscall.Fdatasync(int(f.file.Fd())); err != syscall.EINTR {
			return err
		}
	}
}
