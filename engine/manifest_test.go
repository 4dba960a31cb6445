package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// fileDigests names all files below dir with their lengths and checksums, but for the sparse value logs' bytes.
func fileDigests(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum := uint32(0)
		if filepath.Ext(path) != ".vlog" {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = crc32.Checksum(b, castagnoli)
		}
		files = append(files, path+" "+strconv.FormatInt(info.Size(), 10)+" "+strconv.FormatUint(uint64(sum), 16))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// manifestDamages are ways to lose what a MANIFEST names; most of them Badger takes for the left-over of a crash.
var manifestDamages = map[string]func(b []byte) []byte{
	"is empty":               func(b []byte) []byte { return nil },
	"has its magic alone":    func(b []byte) []byte { return b[:manifestMagicBytes] },
	"ends in its head":       func(b []byte) []byte { return b[:manifestHeadBytes-1] },
	"ends behind its head":   func(b []byte) []byte { return b[:manifestHeadBytes] },
	"is cut in half":         func(b []byte) []byte { return b[:len(b)/2] },
	"has lost its last byte": func(b []byte) []byte { return b[:len(b)-1] },
	"ends in zeros": func(b []byte) []byte {
		return append(b[:len(b)-24], make([]byte, 24)...)
	},
	"has a flipped bit in its last frame": func(b []byte) []byte {
		b[len(b)-1] ^= 1
		return b
	},
	"has a first frame that reaches beyond its end": func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[manifestMagicBytes:], uint32(len(b)))
		return b
	},
}

func TestOpen_ManifestHasLostItsEnd_IsDamageAndNothingIsRemoved(t *testing.T) {
	for _, closed := range []bool{true, false} {
		dir := t.TempDir()
		s := mustOpenStore(t, storeOptions(t, dir))
		mustApply(t, s, 1, 1, 3000) // several memtables of 1 MiB
		if err := s.checkpointNow(context.Background()); err != nil {
			t.Fatal(err)
		}
		if closed {
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
		}
		cp, _, err := readCheckpoint(s.dir)
		if err != nil || cp.Manifest.Length <= manifestHeadBytes {
			t.Fatalf("the checkpoint marks %+v, %v", cp.Manifest, err)
		}
		whole, err := os.ReadFile(filepath.Join(s.genDir, badger.ManifestFilename))
		if err != nil {
			t.Fatal(err)
		}
		if closed && int64(len(whole)) != cp.Manifest.Length {
			t.Fatalf("%d of %d bytes are marked after a clean end", cp.Manifest.Length, len(whole))
		}
		copied := t.TempDir()
		genDir := generationDir(groupDir(copied, 1), 1)
		if closed {
			copyTree(t, dir, copied)
		} else {
			// Badger runs: of its files only those that the check needs, and a table that is to stay.
			if err := os.MkdirAll(genDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := writeCheckpoint(groupDir(copied, 1), &cp); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(genDir, "000001.sst"), []byte("table"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// A generation that is stale stays too.
		if err := os.MkdirAll(generationDir(groupDir(copied, 1), 2), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, damage := range manifestDamages {
			b := damage(bytes.Clone(whole[:cp.Manifest.Length]))
			if err := os.WriteFile(filepath.Join(genDir, badger.ManifestFilename), b, 0o600); err != nil {
				t.Fatal(err)
			}
			before := fileDigests(t, copied)
			o := storeOptions(t, copied)
			o.hooks.openBadger = func(string) error { t.Errorf("%s: Badger was opened", name); return errors.New("injected") }
			if s, err := openStore(o); !errors.Is(err, ErrDamaged) {
				t.Errorf("MANIFEST %s, closed %v: error %v, want ErrDamaged", name, closed, err)
				if err == nil {
					_ = s.close()
				}
			} else if !closed {
				t.Logf("%s: %v", name, err)
			}
			if after := fileDigests(t, copied); !slices.Equal(before, after) {
				t.Errorf("MANIFEST %s: the files were\n%q, and are\n%q", name, before, after)
			}
			if _, err := os.Stat(generationDir(groupDir(copied, 1), 2)); err != nil {
				t.Error(err)
			}
		}
		if !closed {
			continue
		}
		if err := os.WriteFile(filepath.Join(genDir, badger.ManifestFilename), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		mustHold(t, mustOpenStore(t, storeOptions(t, copied)), 3000)
	}
}

// What a crash leaves is no damage: a write under way behind the mark, and a file that replaced the marked one.
func TestCheckManifest_GrownTornBehindTheMarkOrReplaced_IsNoDamage(t *testing.T) {
	frame := func(text string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
		b = binary.BigEndian.AppendUint32(b, crc32.Checksum([]byte(text), castagnoli))
		return append(b, text...)
	}
	file := func(frames ...string) []byte {
		b := []byte("Bdgr\x00\x00\x00\x08")
		for _, text := range frames {
			b = append(b, frame(text)...)
		}
		return b
	}
	dir := t.TempDir()
	path := filepath.Join(dir, badger.ManifestFilename)
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	marked := file("", "one", "two")
	var m manifestMarker
	for _, b := range [][]byte{file("", "one"), append(bytes.Clone(marked), "\x00\x00"...)} {
		write(b)
		if _, err := m.next(path, fdatasync); err != nil {
			t.Fatal(err)
		}
	}
	if m.mark.Length != int64(len(marked)) || m.mark.Sum != crc32.Checksum(marked, castagnoli) {
		t.Fatalf("marked %+v of %d bytes", m.mark, len(marked))
	}
	third := frame("three")
	for n := range len(third) + 1 {
		write(append(bytes.Clone(marked), third[:n]...))
		if err := checkManifest(dir, m.mark); err != nil {
			t.Fatalf("%d bytes of the next frame: %v", n, err)
		}
	}
	write(file("both"))
	if err := checkManifest(dir, m.mark); err != nil {
		t.Fatalf("replaced: %v", err)
	}
	if mark, err := m.next(path, fdatasync); err != nil || mark.Length != int64(len(file("both"))) {
		t.Fatalf("replaced: marked %+v, %v", mark, err)
	}
	write(marked)
	if err := checkManifest(dir, ManifestMark{}); err != nil {
		t.Fatalf("no mark: %v", err)
	}
}

// A process that is stopped leaves its files as a kill would: at each of many moments they have to pass.
func TestCheckManifest_StoppedAtAnyMoment_IsNeverDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	moments := 400
	if testing.Short() {
		moments = 60
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStoreCrashChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, crashSeedEnv+"="+strconv.FormatUint(seed, 10), crashSyncedEnv+"="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
	group := groupDir(dir, 1)
	marks := map[int64]int{}
	for seen := 0; seen < moments; {
		time.Sleep(time.Duration(rng.IntN(8_000)) * time.Microsecond)
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
			t.Fatalf("the child isn't stopped: %v, %v", status, err)
		}
		cp, found, err := readCheckpoint(group)
		if err != nil {
			t.Fatal(err)
		}
		if found && cp.Index > 0 {
			if err := checkManifest(generationDir(group, cp.Generation), cp.Manifest); err != nil {
				t.Fatalf("moment %d, entry %d: %v", seen, cp.Index, err)
			}
			marks[cp.Manifest.Length]++
			seen++
		}
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if len(marks) < 3 {
		t.Fatalf("MANIFEST hardly grew: moments by its length %v", marks)
	}
	t.Logf("%d moments, %d lengths of MANIFEST", moments, len(marks))
}

func BenchmarkManifestMark(b *testing.B) {
	path := filepath.Join(b.TempDir(), badger.ManifestFilename)
	content := append([]byte("Bdgr\x00\x00\x00\x08"), make([]byte, 8)...)
	payload := bytes.Repeat([]byte("x"), 100)
	for range 3000 {
		content = binary.BigEndian.AppendUint32(content, uint32(len(payload)))
		content = binary.BigEndian.AppendUint32(content, crc32.Checksum(payload, castagnoli))
		content = append(content, payload...)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	b.Run("unchanged", func(b *testing.B) {
		var m manifestMarker
		for b.Loop() {
			if _, err := m.next(path, fdatasync); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			var m manifestMarker
			if _, err := m.next(path, fdatasync); err != nil {
				b.Fatal(err)
			}
		}
	})
}
