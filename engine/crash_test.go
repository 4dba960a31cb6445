package engine

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	engineCrashDirEnv  = "KVSTORE_TEST_ENGINE_CRASH_DIR"
	engineCrashSeedEnv = "KVSTORE_TEST_ENGINE_CRASH_SEED"
)

func engineCrashOptions(t testing.TB, dir string) Options {
	o := engineOptions(t, dir)
	o.MemtableBytes = 1 << 20
	o.CheckpointInterval = 3 * time.Millisecond
	o.HistoryWindow = time.Millisecond
	o.ChunkThresholdBytes, o.ChunkBytes = 8<<10, 4<<10
	return o
}

// TestEngineCrashChild is the process that is killed; by itself it does nothing. It makes the same log as its
// parent, since both know the seed, and applies what its directory hasn't got.
func TestEngineCrashChild(t *testing.T) {
	dir := os.Getenv(engineCrashDirEnv)
	if dir == "" {
		t.Skip("only as a child of TestEngine_KilledInMidApply_ReplaysToTheSameState")
	}
	seed, err := strconv.ParseUint(os.Getenv(engineCrashSeedEnv), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Open(engineCrashOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	// The log is made by a second engine: its results steer the workload.
	// Its directory lies in the parent's, who removes it: a killed process cleans up nothing.
	makerDir, err := os.MkdirTemp(dir, "maker")
	if err != nil {
		t.Fatal(err)
	}
	maker := mustOpen(t, engineOptions(t, makerDir))
	w := newWorkload(seed)
	for {
		index, entry := w.next()
		w.learn(maker.Apply(index, 1, entry))
		e.Apply(index, 1, entry)
		fmt.Printf("applied %d\n", index)
	}
}

func TestEngine_KilledInMidApply_ReplaysToTheSameState(t *testing.T) {
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 7))
	plain := mustOpen(t, engineOptions(t, t.TempDir()))
	w := newWorkload(seed)
	var log [][]byte
	dir := t.TempDir()
	for range 4 {
		reached := runAndKillEngine(t, dir, seed, uint64(len(log)), 30+rng.IntN(150))
		for uint64(len(log)) < reached {
			index, entry := w.next()
			w.learn(plain.Apply(index, 1, entry))
			log = append(log, entry)
		}
		e := mustOpen(t, engineCrashOptions(t, dir))
		from := e.Applied().Index
		if from > reached+1 {
			t.Fatalf("the checkpoint has index %d, the child had reached %d", from, reached)
		}
		// The checkpoint may hold one entry that the child had no time to tell.
		for uint64(len(log)) < from {
			index, entry := w.next()
			w.learn(plain.Apply(index, 1, entry))
			log = append(log, entry)
		}
		for index := from + 1; index <= uint64(len(log)); index++ {
			e.Apply(index, 1, log[index-1])
		}
		t.Logf("killed at %d, checkpoint at %d", reached, from)
		wantEqualEngines(t, plain, e)
		wantEqualTables(t, plain, e)
		if err := e.VerifyDigest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// runAndKillEngine runs the child until it has applied more entries than before, and kills it.
func runAndKillEngine(t *testing.T, dir string, seed, before uint64, more int) (reached uint64) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestEngineCrashChild$")
	cmd.Env = append(os.Environ(), engineCrashDirEnv+"="+dir, engineCrashSeedEnv+"="+strconv.FormatUint(seed, 10))
	var stderr strings.Builder
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
	killed := false
	for lines.Scan() {
		n, ok := strings.CutPrefix(lines.Text(), "applied ")
		if !ok {
			other = append(other, lines.Text())
			continue
		}
		if reached, err = strconv.ParseUint(n, 10, 64); err != nil {
			t.Fatal(err)
		}
		if reached >= before+uint64(more) && !killed {
			killed = true
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); !killed {
		t.Fatalf("the child ended by itself: %v\n%s\n%s", err, strings.Join(other, "\n"), stderr.String())
	}
	return reached
}
