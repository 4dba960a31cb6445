package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Crash tests: a second process of this test binary applies the made-up log with checkpoints all the time,
// and is killed. What it had told to be durable must be there, and replaying the log above the checkpoint
// must lead to the model's state. For a power cut, everything in memtable logs that was not
// fdatasynced is then lost, in several ways. (Files that Badger syncs itself are left as they are; a test
// with a real block device covers those.)

const (
	crashDirEnv    = "KVSTORE_TEST_STORE_CRASH_DIR"
	crashSeedEnv   = "KVSTORE_TEST_STORE_CRASH_SEED"
	crashSyncedEnv = "KVSTORE_TEST_STORE_CRASH_SYNCED"
)

// crashOptions checkpoint every few milliseconds and copy each memtable log into synced before its
// fdatasync. The copy is what the disk surely holds once the fdatasync has returned; taken before, it can
// only be less than that.
func crashOptions(t testing.TB, dir, synced string) Options {
	o := storeOptions(t, dir)
	o.CheckpointInterval, o.CheckpointBytes = 5*time.Millisecond, 256<<10
	o.hooks.largeStore = true                      // what is damaged shall reach Badger
	o.HistoryWindow = 20 * 1000 * time.Microsecond // 20 entries: the discard ts follows closely.
	o.hooks.beforeSync = func(path string) {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		target := filepath.Join(synced, filepath.Base(path))
		if err == nil {
			err = os.WriteFile(target+".new", b, 0o600)
		}
		if err == nil {
			err = os.Rename(target+".new", target)
		}
		if err != nil {
			panic(err)
		}
	}
	return o
}

// TestStoreCrashChild is the process that is killed; by itself it does nothing.
func TestStoreCrashChild(t *testing.T) {
	dir := os.Getenv(crashDirEnv)
	if dir == "" {
		t.Skip("only as a child of the crash tests")
	}
	seed, err := strconv.ParseUint(os.Getenv(crashSeedEnv), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openStore(crashOptions(t, dir, os.Getenv(crashSyncedEnv)))
	if err != nil {
		t.Fatal(err)
	}
	// Teller: owned by this process; ends with it.
	go func() {
		for last := uint64(0); ; {
			if err := s.waitDurable(context.Background(), last+1); err != nil {
				panic(err)
			}
			cp, _ := s.durable()
			last = cp.Index
			fmt.Printf("durable %d\n", last)
		}
	}()
	cp, _ := s.recovered()
	for i := cp.Index + 1; ; i++ {
		if err := applyEntry(s, i, testEntry(seed, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// runAndKill runs the child until the wanted number of checkpoints and some random time have passed,
// kills it, and returns the last index that it told to be durable.
func runAndKill(t *testing.T, dir, synced string, seed uint64, checkpoints int, extra time.Duration) (durable uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStoreCrashChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, crashSeedEnv+"="+strconv.FormatUint(seed, 10), crashSyncedEnv+"="+synced)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var other []string
	for seen := 0; lines.Scan(); {
		text, ok := strings.CutPrefix(lines.Text(), "durable ")
		if !ok {
			other = append(other, lines.Text())
			continue
		}
		if durable, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
		if seen++; seen == checkpoints {
			time.AfterFunc(extra, func() {
				if err := cmd.Process.Kill(); err != nil {
					t.Errorf("cannot kill the child: %v", err)
				}
			})
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child ended by itself: %v\n%s\n%s", err, strings.Join(other, "\n"), stderr.String())
	}
	return durable
}

const pageBytes = 4096

// cutPower loses, in each memtable log, what was not synced: page by page as keep says, and whole files
// that were never synced.
func cutPower(t *testing.T, rng *rand.Rand, genDir, synced, mode string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(genDir, "*"+memSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		old, err := os.ReadFile(filepath.Join(synced, filepath.Base(path)))
		if errors.Is(err, os.ErrNotExist) {
			switch {
			case mode == "old" || rng.IntN(3) == 0:
				err = os.Remove(path)
			case rng.IntN(2) == 0:
				err = os.Truncate(path, 0)
			default:
				err = os.WriteFile(path, lossy(rng, now, make([]byte, len(now)), mode), 0o600)
			}
		} else if err == nil && len(now) > 0 {
			if len(old) < len(now) {
				old = append(old, make([]byte, len(now)-len(old))...)
			}
			err = os.WriteFile(path, lossy(rng, now, old, mode), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// lossy mixes the pages of what was written and of what was synced.
func lossy(rng *rand.Rand, now, old []byte, mode string) []byte {
	mixed := bytes.Clone(old[:len(now)])
	if mode == "old" {
		return mixed
	}
	for at := 0; at < len(now); at += pageBytes {
		end := min(at+pageBytes, len(now))
		if rng.IntN(2) == 0 {
			copy(mixed[at:end], now[at:end])
		}
	}
	return mixed
}

func TestStore_KilledOrPowerCutWhileCheckpointing_NothingDurableIsLost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rounds := 6
	if testing.Short() {
		rounds = 3
	}
	dir := t.TempDir()
	for round := range rounds {
		mode := [...]string{"old", "mixed", "kill"}[round%3]
		// Badger begins to count its logs anew when it finds none. A copy of an earlier round would stand for a
		// log of that name that was never synced, and bring back what has been deleted since: no disk does that.
		synced := t.TempDir()
		durable := runAndKill(t, dir, synced, seed, 3+rng.IntN(20), time.Duration(rng.IntN(10_000))*time.Microsecond)
		if mode != "kill" {
			cutPower(t, rng, generationDir(groupDir(dir, 1), 1), synced, mode)
		}
		s := mustOpenStore(t, crashOptions(t, dir, synced))
		cp, _ := s.recovered()
		if cp.Index < durable {
			t.Fatalf("round %d (%s): recovered %d, the process had told that %d is durable", round, mode, cp.Index, durable)
		}
		want := modelAt(seed, cp.Index)
		for i := cp.Index; i <= cp.Index+150; i++ {
			if i > cp.Index {
				mustApply(t, s, seed, i, i)
				want.apply(testEntry(seed, i))
			}
			if i-cp.Index > 3 && i%50 != 0 {
				continue
			}
			got, p, err := contents(s, 0)
			if err != nil || p != testPoint(i) {
				t.Fatalf("round %d (%s): at %+v, %v; want %+v", round, mode, p, err, testPoint(i))
			}
			if d := difference(got, want); d != "" {
				t.Fatalf("round %d (%s): after replay of %d to %d: %s", round, mode, cp.Index+1, i, d)
			}
		}
		st, err := s.stats()
		if err != nil || st.BadgerErrors+st.BadgerWarnings > 0 {
			t.Fatalf("round %d (%s): %d errors, %d warnings, %v", round, mode, st.BadgerErrors, st.BadgerWarnings, err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d (%s): durable at least %d, recovered %d", round, mode, durable, cp.Index)
	}
}

// The method must be able to see a loss: with the checkpoint's syncs left out, the same power cut loses what
// the checkpoint claims, and the store says so instead of going on.
func TestStore_PowerCutWithoutFdatasync_LossIsNoticed(t *testing.T) {
	dir := t.TempDir()
	o := storeOptions(t, dir)
	o.hooks.syncFile = func(*os.File) error { return nil }
	s := mustOpenStore(t, o)
	mustApply(t, s, 1, 1, 50)
	if err := s.checkpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	image := t.TempDir()
	copyTree(t, dir, image)
	cutPower(t, rand.New(rand.NewPCG(1, 1)), generationDir(groupDir(image, 1), 1), t.TempDir(), "old")
	if _, err := openStore(storeOptions(t, image)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("error %v, want ErrDamaged", err)
	}
}

// Damage that makes Badger panic in a goroutine of its own can't be caught: the process dies. The count of
// openings on disk is what ends that.
func TestOpen_DamageThatKillsTheProcess_IsDamageAfterThreeDeaths(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenStore(t, storeOptions(t, dir))
	mustApply(t, s, 1, 1, 1000)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(s.genDir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables %v, %v", tables, err)
	}
	for _, path := range tables {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()/2); err != nil {
			t.Fatal(err)
		}
	}
	deaths := 0
	for {
		// The third death is counted by the one who finds its trace.
		if n, err := readOpening(filepath.Join(s.dir, openingFile)); err != nil {
			t.Fatal(err)
		} else if n >= openFailuresMax-1 && deaths >= openFailuresMax {
			break
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestStoreCrashChild$", "-test.count=1")
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, crashSeedEnv+"=1", crashSyncedEnv+"="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Fatalf("the child lived:\n%s", out)
		}
		if deaths++; deaths > openFailuresMax {
			t.Fatalf("%d deaths and no end; the last:\n%s", deaths, out)
		}
	}
	if _, err := openStore(storeOptions(t, dir)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("error %v, want ErrDamaged", err)
	}
	t.Logf("%d deaths", deaths)
}
