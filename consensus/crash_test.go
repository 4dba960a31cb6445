package consensus

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The crash test runs this test binary as a child that proposes numbered commands as fast as it can,
// checkpoints and compacts all the while, and prints each number once it is acknowledged. The parent
// kills it with SIGKILL at a random instant, again and again on one directory, and then checks that
// every acknowledged command was applied, once and in order.
const crashDirEnv = "KVSTORE_CONSENSUS_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		if err := crashChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func crashChild(dir string) error {
	m, err := loadMachine(dir)
	if err != nil {
		return err
	}
	o := testOptions(dir)
	o.Logger = nil
	o.SegmentBytes = 64 << 10 // a rotation every few writes
	o.TrailingLogs = 2
	o.SnapshotThreshold = 8
	o.SnapshotInterval = 5 * time.Millisecond
	g, err := Open(context.Background(), o, m)
	if err != nil {
		return err
	}
	<-g.Ready()
	next := 0
	for _, e := range m.state.Entries {
		next = number(string(e.Data)) + 1
	}
	out := bufio.NewWriter(os.Stdout)
	acked := make(chan int, 64)
	go func() { // ends with the process
		for n := range acked {
			_, _ = fmt.Fprintln(out, n)
			if len(acked) == 0 {
				_ = out.Flush()
			}
		}
	}()
	slots := make(chan struct{}, 4)
	for ; ; next++ {
		slots <- struct{}{}
		n := next
		data := fmt.Appendf(nil, "%d %s", n, strings.Repeat("v", n%5000))
		err := g.Propose(data, func(_ any, err error) {
			if err == nil {
				acked <- n
			}
			<-slots
		})
		if err != nil {
			return err
		}
	}
}

func number(data string) int {
	n, err := strconv.Atoi(strings.Fields(data)[0])
	if err != nil {
		panic(err)
	}
	return n
}

func TestCrash_KilledAgainAndAgain_EveryAcknowledgedCommandAppliedOnce(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	acked := -1
	for range rounds {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashDirEnv+"="+dir)
		var stderr strings.Builder
		child.Stderr = &stderr
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		progress := 0
		for lines.Scan() {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				break // the line that the kill cut
			}
			acked = max(acked, n)
			if progress++; progress == 1 {
				time.AfterFunc(time.Duration(rnd.IntN(120))*time.Millisecond, func() { _ = child.Process.Kill() })
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
		_ = child.Wait() // killed
		if progress == 0 {
			t.Fatalf("the child made no progress: %s", stderr.String())
		}

		m := openMachine(t, dir)
		o := testOptions(dir)
		o.SegmentBytes = 64 << 10
		g := openGroup(t, o, m)
		commands := m.commands()
		for i, c := range commands {
			if number(c) != i {
				t.Fatalf("command %d is at place %d", number(c), i)
			}
		}
		if len(commands) <= acked {
			t.Fatalf("acknowledged up to %d, but only %d commands are there", acked, len(commands))
		}
		s := g.Status()
		t.Logf("%d commands, acknowledged up to %d, log %d to %d, tail %+v", len(commands), acked, s.FirstIndex, s.LastIndex, g.logs.tail)
		closeGroup(t, g)
	}
}
