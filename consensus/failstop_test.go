package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
)

// faultyFS lets a test decide upon each write and sync of a segment. Nil functions let everything pass.
type faultyFS struct {
	types.VFS
	armed atomic.Bool
	// write returns how many of the bytes reach the file, and the error after which the rest does not.
	write func(name string, size int) (int, error)
	sync  func(name string) error
	// created are the segments made since armed. Not guarded: raft-wal makes one at a time.
	created []string
}

func (v *faultyFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if v.armed.Load() {
		v.created = append(v.created, name)
	}
	f, err := v.VFS.Create(dir, name, size)
	return &faultyFile{f, v, name}, err
}

func (v *faultyFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	return &faultyFile{f, v, name}, err
}

type faultyFile struct {
	types.WritableFile
	v    *faultyFS
	name string
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.v.armed.Load() && f.v.write != nil {
		if n, err := f.v.write(f.name, len(b)); err != nil {
			n, _ = f.WritableFile.WriteAt(b[:n], off)
			return n, err
		}
	}
	return f.WritableFile.WriteAt(b, off)
}

func (f *faultyFile) Sync() error {
	if f.v.armed.Load() && f.v.sync != nil {
		if err := f.v.sync(f.name); err != nil {
			return err
		}
	}
	return f.WritableFile.Sync()
}

// TestGroup_AnyFailureOfTheLog_EndsEverythingAndNothingThatItTouchedIsAcknowledged proposes one command after
// the other while the disk fails in one way or another, and starts again on a disk that is well.
func TestGroup_AnyFailureOfTheLog_EndsEverythingAndNothingThatItTouchedIsAcknowledged(t *testing.T) {
	for _, c := range []struct {
		name string
		arm  func(v *faultyFS, meta *atomic.Pointer[error])
		want string // in what Fatal gets
	}{
		{"short write, disk full", func(v *faultyFS, _ *atomic.Pointer[error]) {
			v.write = func(_ string, size int) (int, error) { return size / 2, syscall.ENOSPC }
		}, syscall.ENOSPC.Error()},
		{"write of all but the end, then EIO", func(v *faultyFS, _ *atomic.Pointer[error]) {
			v.write = func(_ string, size int) (int, error) { return size - 1, syscall.EIO }
		}, syscall.EIO.Error()},
		{"everything is written, and yet an error", func(v *faultyFS, _ *atomic.Pointer[error]) {
			v.write = func(_ string, size int) (int, error) { return size, syscall.EIO }
		}, syscall.EIO.Error()},
		{"EIO once, in fsync", func(v *faultyFS, _ *atomic.Pointer[error]) {
			var once atomic.Bool
			v.sync = func(string) error {
				if once.Swap(true) {
					return nil // "well" again: the pages may be dropped
				}
				return syscall.EIO
			}
		}, syscall.EIO.Error()},
		{"disk full, in fsync", func(v *faultyFS, _ *atomic.Pointer[error]) {
			v.sync = func(string) error { return syscall.ENOSPC }
		}, syscall.ENOSPC.Error()},
		{"EIO in the first fsync after a rotation", func(v *faultyFS, _ *atomic.Pointer[error]) {
			v.sync = func(name string) error {
				if slices.Contains(v.created, name) {
					return syscall.EIO
				}
				return nil
			}
		}, syscall.EIO.Error()},
		{"short first write after a rotation", func(v *faultyFS, _ *atomic.Pointer[error]) {
			v.write = func(name string, size int) (int, error) {
				if slices.Contains(v.created, name) {
					return size / 3, syscall.ENOSPC
				}
				return 0, nil
			}
		}, syscall.ENOSPC.Error()},
		{"EIO in the metadata of a rotation", func(_ *faultyFS, meta *atomic.Pointer[error]) {
			err := error(syscall.EIO)
			meta.Store(&err)
		}, "segment is sealed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			o := testOptions(dir)
			o.SegmentBytes = 64 << 10
			vfs := &faultyFS{VFS: fs.New()}
			var meta atomic.Pointer[error]
			o.vfs = vfs
			o.meta = func(m types.MetaStore) types.MetaStore { return erringMeta{m, &meta} }
			fatal := make(chan error, 10)
			var failed atomic.Bool
			o.Fatal = func(err error) { failed.Store(true); fatal <- err }
			m := openMachine(t, dir)
			g := openGroup(t, o, m)
			var acked []string
			var stop error
			answers := make(chan error, 1)
			pending := false
			for i := 0; stop == nil; i++ {
				if i == 3 {
					c.arm(vfs, &meta)
					vfs.armed.Store(true)
				}
				data := fmt.Sprintf("%03d %s", i, strings.Repeat("v", 4000))
				err := g.Propose([]byte(data), func(_ any, err error) {
					if err == nil && failed.Load() {
						t.Error("acknowledged after the failure")
					}
					answers <- err
				})
				if errors.Is(err, ErrHalted) { // the rotation's failure may come between two writes
					stop = <-fatal
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-answers:
					if err != nil {
						t.Fatal(err)
					}
					acked = append(acked, data)
				case stop = <-fatal:
					pending = true
				case <-time.After(testWait):
					t.Fatal("neither an answer nor Fatal")
				}
			}
			if !strings.Contains(stop.Error(), c.want) {
				t.Errorf("Fatal got %v, want %q", stop, c.want)
			}
			vfs.armed.Store(false) // the disk "recovers": it must not help
			meta.Store(nil)
			if err := g.Propose([]byte("later"), func(any, error) {}); !errors.Is(err, ErrHalted) {
				t.Errorf("Propose on a halted group = %v", err)
			}
			closeGroup(t, g)
			if pending {
				if err := <-answers; !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotProposed) {
					t.Errorf("what the failure touched was answered with %v", err)
				}
			}
			if got := m.commands(); !slices.Equal(got, acked) || len(fatal) != 0 {
				t.Errorf("%d applied, %d acknowledged, %d more calls of Fatal", len(got), len(acked), len(fatal))
			}
			o.vfs, o.meta, o.Fatal = nil, nil, nil
			m = openMachine(t, dir)
			g = openGroup(t, o, m)
			got := m.commands()
			if len(got) < len(acked) || len(got) > len(acked)+1 || !slices.Equal(got[:len(acked)], acked) {
				t.Errorf("%d acknowledged, %d there after the restart", len(acked), len(got))
			}
			for range 20 { // over a rotation
				mustPropose(t, g, strings.Repeat("w", 4000))
			}
			closeGroup(t, g)
		})
	}
}

// erringMeta fails CommitState with err once there is one.
type erringMeta struct {
	types.MetaStore
	err *atomic.Pointer[error]
}

func (m erringMeta) CommitState(s types.PersistentState) error {
	if err := m.err.Load(); err != nil {
		return *err
	}
	return m.MetaStore.CommitState(s)
}

func TestDeleteRange_Fails_EndsEverything(t *testing.T) {
	for _, end := range []string{"head", "tail"} {
		t.Run(end, func(t *testing.T) {
			var meta atomic.Pointer[error]
			s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) {
				o.meta = func(m types.MetaStore) types.MetaStore { return erringMeta{m, &meta} }
				o.durable = func() (Durable, bool) { return Durable{Index: 30, Term: 3}, end == "head" }
			})
			defer s.mustClose(t)
			appendEntries(t, s, 40, 4000)
			err := error(syscall.EIO)
			meta.Store(&err)
			low, high := uint64(1), uint64(20)
			if end == "tail" {
				low, high = 35, 40
			}
			if err := s.DeleteRange(low, high); !errors.Is(err, syscall.EIO) {
				t.Errorf("DeleteRange = %v", err)
			}
			meta.Store(nil)
			if err := s.StoreLog(testEntry(41, 10)); !errors.Is(err, syscall.EIO) {
				t.Errorf("StoreLog after the failure = %v", err)
			}
		})
	}
}

// A node that cannot write its vote neither votes nor stands, also not a moment later.
func TestGroup_VoteCannotBeWritten_FatalAndNoVote(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	c.write("a")
	c.converge()
	leader := c.leader()
	others := c.others(leader)
	block := map[*testNode]string{}
	before := map[*testNode][]byte{}
	for _, n := range others {
		vote := filepath.Join(n.dir, "log", voteFileName)
		block[n] = filepath.Join(vote+".tmp", "in the way")
		if err := os.MkdirAll(block[n], 0o700); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(vote)
		if err != nil {
			t.Fatal(err)
		}
		before[n] = b
	}
	leader.kill()
	// Who stands first writes its term, and fails.
	eventually(t, "Fatal is called", func() bool { return others[0].fatal.Load() != nil || others[1].fatal.Load() != nil })
	for _, n := range others {
		if err := n.fatal.Load(); err != nil && !strings.Contains((*err).Error(), "vote file") {
			t.Errorf("%s: Fatal got %v", n.id, *err)
		}
		if _, ok := n.g.LeaderTerm(); ok {
			t.Errorf("%s leads without a vote of its own", n.id)
		}
		if b, err := os.ReadFile(filepath.Join(n.dir, "log", voteFileName)); err != nil || !bytes.Equal(b, before[n]) {
			t.Errorf("%s: the vote file has changed (%v)", n.id, err)
		}
	}
	for _, n := range others {
		n.fatal.Store(nil)
		n.kill()
		n.fatal.Store(nil) // the second one may have followed
		if err := os.RemoveAll(filepath.Dir(block[n])); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range append(others, leader) {
		n.start()
	}
	c.write("b")
	c.converge("a", "b")
}

// raft answers an entry that it cannot read, and a term that it cannot store, with a panic. Its goroutine is held
// until Close, and ends then without seeing the error.
func TestGetLog_DamageWhileRaftRuns_CloseEndsTheReaderWithoutAnAnswer(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.LogCacheBytes = -1
	fatal := make(chan error, 10)
	o.Fatal = func(err error) { fatal <- err }
	g := openGroup(t, o, openMachine(t, dir))
	mustPropose(t, g, strings.Repeat("v", 4000))
	path := tailFile(t, o.Dir)
	used := usedBytes(t, path)
	edit(t, path, func(b []byte) { b[used-1000] ^= 1 })
	last := g.Status().LastIndex
	var answered atomic.Bool
	ended := make(chan struct{})
	go func() { // ends with Close
		defer close(ended)
		_ = g.logs.GetLog(last, &raft.Log{})
		answered.Store(true)
	}()
	if err := receive(t, "Fatal", fatal); !errors.Is(err, errDamaged) {
		t.Errorf("Fatal got %v", err)
	}
	closeGroup(t, g)
	<-ended
	if answered.Load() {
		t.Error("the reader was answered")
	}
}
