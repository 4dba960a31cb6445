package record

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// WriteFileAtomic promises the old file or the new one, never between. The tests look at the order of
// its system calls (the order is the promise), fail each of them in turn, and read beside a writer.

func TestWriteFileAtomic_RealFile_ReadsBackWithItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity")
	// A leftover of a crashed write, longer than ours and with another mode.
	if err := os.WriteFile(path+tempSuffix, bytes.Repeat([]byte("junk"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", "", "the third is longer"} {
		if err := WriteFileAtomic(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(path, 100)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, want 0600 and not that of the leftover", info.Mode())
		}
	}
	if _, err := os.Stat(path + tempSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the temporary file is still there: %v", err)
	}
}

func TestReadFile_DamagedFiles_AreRefusedByKind(t *testing.T) {
	whole := Append(nil, []byte("payload"))
	flipped := bytes.Clone(whole)
	flipped[HeaderSize] ^= 1
	for name, c := range map[string]struct {
		content  []byte
		maxBytes int
		want     error
	}{
		"empty":        {nil, 100, ErrTorn},
		"cut":          {whole[:len(whole)-1], 100, ErrTorn},
		"flipped":      {flipped, 100, ErrCorrupt},
		"more behind":  {append(bytes.Clone(whole), 0), 100, ErrCorrupt},
		"two records":  {append(bytes.Clone(whole), whole...), 100, ErrCorrupt},
		"above limit":  {whole, 6, ErrTooLarge},
		"at the limit": {whole, 7, nil},
		"foreign key":  {sealed(3, []byte("x")), 100, ErrKey},
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadFile(path, c.maxBytes); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
	if _, err := ReadFile(filepath.Join(t.TempDir(), "absent"), 100); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: error %v, want os.ErrNotExist", err)
	}
}

func TestWriteFileAtomic_Always_SyncsBytesBeforeTheNameAndTheNameBeforeReturning(t *testing.T) {
	fs := &faultyFileSystem{}
	if err := writeFileAtomic(fs.fileSystem(), filepath.Join(t.TempDir(), "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"create f.tmp", "write", "sync", "close", "rename f.tmp f", "syncdir"}
	if !slices.Equal(fs.calls, want) {
		t.Fatalf("calls %q, want %q", fs.calls, want)
	}
}

func TestWriteFileAtomic_EachStepFails_OldFileStaysOrOutcomeIsUnknown(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "close", "rename", "syncdir"} {
		path := filepath.Join(t.TempDir(), "f")
		if err := WriteFileAtomic(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		fs := &faultyFileSystem{failAt: step}
		err := writeFileAtomic(fs.fileSystem(), path, []byte("new"), 0o600)
		if !errors.Is(err, errInjected) {
			t.Fatalf("%s: error %v, want the injected one", step, err)
		}
		if got := errors.Is(err, ErrUnsynced); got != (step == "syncdir") {
			t.Fatalf("%s: ErrUnsynced is %v: %v", step, got, err)
		}
		if step != "syncdir" {
			if got, err := ReadFile(path, 100); err != nil || string(got) != "old" {
				t.Fatalf("%s: the file holds %q, %v; want the old payload", step, got, err)
			}
		}
		if _, err := os.Stat(path + tempSuffix); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: the temporary file is still there: %v", step, err)
		}
	}
}

func TestWriteFileAtomic_ReadBesideAWriter_SeesOldOrNewAndNothingBetween(t *testing.T) {
	path := filepath.Join(t.TempDir(), "CHECKPOINT")
	payload := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", i), 1000) }
	if err := WriteFileAtomic(path, payload(0), 0o600); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	result := make(chan error, 1)
	// Reader: owned by this test; ends when done is set.
	go func() {
		for last := ""; !done.Load(); {
			got, err := ReadFile(path, 1<<20)
			if err != nil {
				result <- err
				return
			}
			if now := string(got[:8]); now < last || strings.Repeat(now, 1000) != string(got) {
				result <- fmt.Errorf("read a mixture or an older file: %s after %s", now, last)
				return
			} else {
				last = now
			}
		}
		result <- nil
	}()
	for i := 1; i <= 100; i++ {
		if err := WriteFileAtomic(path, payload(i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done.Store(true)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

var errInjected = errors.New("injected failure")

// faultyFileSystem is the real one, with its calls recorded and one of them failing.
type faultyFileSystem struct {
	failAt string
	calls  []string
}

func (f *faultyFileSystem) step(name string, args ...string) error {
	for i := range args {
		args[i] = filepath.Base(args[i])
	}
	f.calls = append(f.calls, strings.Join(append([]string{name}, args...), " "))
	if f.failAt == name {
		return errInjected
	}
	return nil
}

func (f *faultyFileSystem) fileSystem() fileSystem {
	return fileSystem{
		create: func(path string, perm os.FileMode) (syncFile, error) {
			if err := f.step("create", path); err != nil {
				return nil, err
			}
			file, err := osFileSystem.create(path, perm)
			return &faultyFile{f, file}, err
		},
		rename: func(source, target string) error {
			if err := f.step("rename", source, target); err != nil {
				return err
			}
			return os.Rename(source, target)
		},
		remove: os.Remove,
		syncDir: func(dir string) error {
			if err := f.step("syncdir"); err != nil {
				return err
			}
			return SyncDir(dir)
		},
	}
}

type faultyFile struct {
	fs   *faultyFileSystem
	file syncFile
}

func (f *faultyFile) Write(b []byte) (int, error) {
	if err := f.fs.step("write"); err != nil {
		return 0, err
	}
	return f.file.Write(b)
}

func (f *faultyFile) Sync() error {
	if err := f.fs.step("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Close() error {
	return errors.Join(f.fs.step("close"), f.file.Close())
}

func TestWriteFileAtomicBefore_ErrorOrNone_LeavesTheOldFileOrTheNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteFileAtomic(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for want, before := range map[string]error{"old": refused, "new": nil} {
		err := WriteFileAtomicBefore(path, []byte("new"), 0o600, func() error {
			if got, err := ReadFile(path, 10); err != nil || string(got) != "old" {
				t.Errorf("before: %q, %v", got, err)
			}
			if got, err := ReadFile(path+tempSuffix, 10); err != nil || string(got) != "new" {
				t.Errorf("before, under the temporary name: %q, %v", got, err)
			}
			return before
		})
		if !errors.Is(err, before) {
			t.Errorf("%v, want %v", err, before)
		}
		if got, err := ReadFile(path, 10); err != nil || string(got) != want {
			t.Errorf("after: %q, %v; want %q", got, err, want)
		}
		if err := WriteFileAtomic(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
