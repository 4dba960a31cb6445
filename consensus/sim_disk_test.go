package consensus

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
)

// simDisk is what one life of a simulated node has on its disk: files in a directory of its own, the log's
// metadata, and the state machine's checkpoint. A crash leaves an image, which the next life begins with;
// whatever the crashed life's goroutines still write goes to a disk that nobody reads any more.
type simDisk struct {
	// Immutable.
	dir string

	mu sync.Mutex
	// Guarded by mu.
	rnd        *rand.Rand
	syncMax    time.Duration          // an fsync takes up to this
	hang       chan struct{}          // not nil: fsyncs wait for it
	syncing    bool                   // an fsync is taking its time
	prompt     int                    // fsyncs take no time, see promptly
	unsynced   map[string][]simUndone // per segment, oldest first
	meta       types.PersistentState
	stable     map[string][]byte
	checkpoint simState
	durable    Durable
	over       bool // the life is: fsyncs take no time
}

// simUndone undoes a write that was not synced.
type simUndone struct {
	off int64
	old []byte
}

func newSimDisk(dir string, rnd *rand.Rand, syncMax time.Duration) (*simDisk, error) {
	d := &simDisk{dir: dir, rnd: rnd, syncMax: syncMax, unsynced: map[string][]simUndone{}, stable: map[string][]byte{}}
	return d, os.MkdirAll(d.logDir(), 0o700)
}

func (d *simDisk) logDir() string { return filepath.Join(d.dir, "log") }

// image writes what a crash at this instant leaves into a new directory. Of what was not synced the oldest
// writes may be there, the last of them torn. REQUIRES: the life's network is silent already, so that nobody
// was told of what comes too late.
func (d *simDisk) image(dir string) (*simDisk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	n, err := newSimDisk(dir, d.rnd, d.syncMax)
	if err != nil {
		return nil, err
	}
	n.meta, n.stable = d.meta, maps.Clone(d.stable)
	n.meta.Segments = slices.Clone(d.meta.Segments)
	n.checkpoint, n.durable = d.checkpoint, d.durable
	files, err := os.ReadDir(d.logDir())
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name := f.Name()
		if name != voteFileName && name != "peers" && !strings.HasSuffix(name, ".wal") {
			continue // a file that was to replace one of these
		}
		b, err := os.ReadFile(filepath.Join(d.logDir(), name))
		if errors.Is(err, os.ErrNotExist) {
			continue // a segment that was just deleted
		}
		if err != nil {
			return nil, err
		}
		kept := d.rnd.IntN(len(d.unsynced[name]) + 1)
		for i := len(d.unsynced[name]) - 1; i >= kept; i-- {
			u := d.unsynced[name][i]
			torn := 0
			if i == kept {
				torn = d.rnd.IntN(len(u.old) + 1)
			}
			copy(b[u.off+int64(torn):], u.old[torn:])
		}
		if err := os.WriteFile(filepath.Join(n.logDir(), name), b, 0o600); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// stall makes fsyncs wait from now on; the function ends that.
func (d *simDisk) stall() (release func()) {
	c := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hang != nil {
		return func() {}
	}
	d.hang = c
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.hang = nil
		d.mu.Unlock()
		close(c)
	})
}

// wait is the time that one fsync takes.
func (d *simDisk) wait() {
	d.mu.Lock()
	took, hang := time.Duration(d.rnd.Int64N(int64(d.syncMax)+1)), d.hang
	if d.prompt > 0 || d.over {
		d.mu.Unlock()
		return
	}
	d.syncing = true
	d.mu.Unlock()
	time.Sleep(took)
	if hang != nil {
		<-hang
	}
	d.mu.Lock()
	d.syncing = false
	d.mu.Unlock()
}

// promptly runs f while fsyncs take no time; false if the disk hangs. raft-wal holds a mutex during an fsync,
// and false time stands still while somebody waits for a mutex: whoever deletes from the log must not meet one.
func (d *simDisk) promptly(f func()) bool {
	for {
		d.mu.Lock()
		switch {
		case d.hang != nil:
			d.mu.Unlock()
			return false
		case !d.syncing:
			d.prompt++
			d.mu.Unlock()
			f()
			d.mu.Lock()
			d.prompt--
			d.mu.Unlock()
			return true
		}
		d.mu.Unlock()
		time.Sleep(100 * time.Microsecond)
	}
}

// simFS is the log's view of the disk.
type simFS struct {
	types.VFS
	d *simDisk
}

func newSimFS(d *simDisk) simFS { return simFS{fs.New(), d} }

func (v simFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := v.VFS.Create(dir, name, size)
	if err != nil {
		return nil, err
	}
	return &simFile{WritableFile: f, d: v.d, name: name}, nil
}

func (v simFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return &simFile{WritableFile: f, d: v.d, name: name}, nil
}

func (v simFS) Delete(_, name string) error {
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	delete(v.d.unsynced, name)
	return os.Remove(filepath.Join(v.d.logDir(), name)) // no fsync: the directory is in memory
}

type simFile struct {
	types.WritableFile
	d    *simDisk
	name string
}

func (f *simFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	old := make([]byte, len(b))
	if _, err := f.ReadAt(old, off); err != nil {
		clear(old) // behind the end of the file
	}
	f.d.unsynced[f.name] = append(f.d.unsynced[f.name], simUndone{off, old})
	return f.WritableFile.WriteAt(b, off)
}

// Sync makes what was written durable once the time of an fsync is over.
func (f *simFile) Sync() error {
	f.d.mu.Lock()
	n := len(f.d.unsynced[f.name])
	f.d.mu.Unlock()
	f.d.wait()
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.unsynced[f.name] = slices.Clone(f.d.unsynced[f.name][min(n, len(f.d.unsynced[f.name])):])
	return nil
}

// simMeta is the log's metadata.
type simMeta struct{ d *simDisk }

func (m simMeta) Load(string) (types.PersistentState, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	s := m.d.meta
	s.Segments = slices.Clone(s.Segments)
	return s, nil
}

func (m simMeta) CommitState(s types.PersistentState) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	s.Segments = slices.Clone(s.Segments)
	m.d.meta = s
	return nil
}

func (m simMeta) GetStable(key []byte) ([]byte, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return slices.Clone(m.d.stable[string(key)]), nil
}

func (m simMeta) SetStable(key, value []byte) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.d.stable[string(key)] = slices.Clone(value)
	return nil
}

func (simMeta) Close() error { return nil }
