package diskguard

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests fill a real, tiny file system until the kernel says ENOSPC, and check that the guard has
// spoken before, that the ballast gives room when it goes, and that it comes back.

func TestGuard_RealFileSystemFillsUp_SpeaksBeforeItIsFull(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			const mb = 1 << 20
			dir := mountTiny(t, kind, 96*mb)
			o := Options{Dir: dir, FloorBytes: 32 * mb, CriticalBytes: 8 * mb, BallastBytes: 16 * mb, Interval: time.Hour}
			before, err := Free(dir)
			if err != nil {
				t.Fatal(err)
			}
			g := open(t, o)
			if g.State() != OK || !g.HasBallast() {
				t.Fatalf("state %v, ballast %v on an empty disk of %d bytes free", g.State(), g.HasBallast(), before)
			}
			if after, err := Free(dir); err != nil || before-after < 16*mb {
				t.Fatalf("the ballast takes %d bytes (error %v), want 16 MiB: it is sparse", before-after, err)
			}

			// Fill in steps of 1 MiB, polling after each, and note when each state was first seen.
			var order []State
			last := OK
			var released, written int
			var full bool
			for written = 0; written < 96 && !full; written++ {
				err := fillOne(filepath.Join(dir, "data"), mb)
				full = errors.Is(err, unix.ENOSPC)
				if err != nil && !full {
					t.Fatal(err)
				}
				hadBallast := g.HasBallast()
				if err := g.Check(); err != nil {
					t.Fatal(err)
				}
				if hadBallast && !g.HasBallast() {
					released = written
				}
				if s := g.State(); s != last {
					order = append(order, s)
					last = s
				}
				if full && g.State() != Critical {
					t.Fatalf("the disk is full and the state is %v", g.State())
				}
			}
			if len(order) != 2 || order[0] != Low || order[1] != Critical {
				t.Fatalf("states seen while filling: %v, want low, critical", order)
			}
			// The ballast bought room: most of its 16 MiB was written after it went.
			if gained := written - released; released == 0 || gained < 12 {
				t.Fatalf("%d MiB could be written after the ballast went (at %d of %d), want at least 12", gained, released, written)
			}

			// Room comes back: so do the state and the ballast.
			if err := errors.Join(os.Remove(filepath.Join(dir, "data")), unixSync(dir)); err != nil {
				t.Fatal(err)
			}
			if err := g.Check(); err != nil || g.State() != OK || !g.HasBallast() {
				t.Fatalf("after the data is gone: error %v, state %v, ballast %v, %d bytes free", err, g.State(), g.HasBallast(), g.Free())
			}
		})
	}
}

// fillOne appends n bytes to path and syncs them, so that delayed allocation cannot hide a full disk.
func fillOne(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, n))
	return errors.Join(err, f.Sync(), f.Close())
}

// unixSync commits the file system of dir, so that blocks of removed files are free.
func unixSync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// mountTiny mounts a file system of the given size for the duration of the test, or skips and says why.
func mountTiny(t *testing.T, kind string, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIPPED: mounting a %s needs root; run the suite as root to test the guard on a full disk", kind)
	}
	dir := t.TempDir()
	var out []byte
	var err error
	switch kind {
	case "tmpfs":
		out, err = exec.Command("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", dir).CombinedOutput()
	case "ext4":
		image := filepath.Join(t.TempDir(), "image")
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
			t.Fatal(err)
		}
		if out, err = exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err == nil {
			out, err = exec.Command("mount", "-o", "loop", image, dir).CombinedOutput()
		}
	}
	if err != nil {
		t.Skipf("SKIPPED: no %s can be mounted here, so the guard is not tested on a full one: %v: %s", kind, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("cannot unmount %s: %v: %s", dir, err, out)
		}
	})
	return dir
}
