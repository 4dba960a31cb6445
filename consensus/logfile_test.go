package consensus

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// countingFS counts the whole syncs of its files.
type countingFS struct {
	types.VFS
	whole *int
}

func (v countingFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := v.VFS.Create(dir, name, size)
	return &countingFile{f, v.whole}, err
}

func (v countingFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	return &countingFile{f, v.whole}, err
}

type countingFile struct {
	types.WritableFile
	whole *int
}

func (f *countingFile) Fd() uintptr { return f.WritableFile.(descriptor).Fd() }
func (f *countingFile) Sync() error { *f.whole++; return f.WritableFile.Sync() }

func TestDataSyncFS_FirstSyncOfASegment_IsWholeAndLaterOnesAreNot(t *testing.T) {
	dir, whole := t.TempDir(), 0
	v := dataSyncFS{countingFS{fs.New(), &whole}}
	for i, open := range []func() (types.WritableFile, error){
		func() (types.WritableFile, error) { return v.Create(dir, "a", 1<<20) },
		func() (types.WritableFile, error) { return v.OpenWriter(dir, "a") },
	} {
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		for n := range 5 {
			if _, err := f.WriteAt([]byte("entry"), int64(n)); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if whole != i+1 {
			t.Errorf("opening %d: %d whole syncs so far, want one for each opening", i, whole)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); !errors.Is(err, unix.EBADF) {
			t.Errorf("opening %d: a sync of the closed file returned %v", i, err)
		}
	}
}
