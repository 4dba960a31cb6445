package bench

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// followerArgument makes the test binary a follower of the floor instead of running tests.
const followerArgument = "be-a-floor-follower"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == followerArgument {
		if err := FloorFollower(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func follower(t *testing.T) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, followerArgument}
}

// mustBeEmpty: nothing is left in dir, whatever became of the measurement.
func mustBeEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("%d files are left behind, such as %s", len(left), left[0].Name())
	}
}

// Real processes, files and sockets: every test gives figures, and a write that must be durable in two
// processes one after the other takes longer than one of them.
func TestFloor_WithFollowers_EveryTestMeasured(t *testing.T) {
	dir := t.TempDir()
	rep, err := Floor(t.Context(), FloorOptions{Dir: dir, Duration: 30 * time.Millisecond, Follower: follower(t)})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Tests) != FloorTests() {
		t.Errorf("%d tests, want %d", len(rep.Tests), FloorTests())
	}
	for _, x := range rep.Tests {
		if x.Ops == 0 || x.P50 <= 0 || x.P99 < x.P50 || x.Max < x.P99 {
			t.Errorf("%s: %+v", x.Name, x)
		}
	}
	for _, name := range []string{FloorFsync, FloorLoopback, FloorReplicatedSequential, FloorReplicatedOverlapped} {
		if rep.Test(name) == nil {
			t.Errorf("no test %q", name)
		}
	}
	mustBeEmpty(t, dir)
}

func TestFloor_WithoutFollower_LeavesThoseTestsOut(t *testing.T) {
	rep, err := Floor(t.Context(), FloorOptions{Dir: t.TempDir(), Duration: time.Millisecond})
	if err != nil || rep.Test(FloorReplicatedSequential) != nil || rep.Test(FloorFsync) == nil {
		t.Errorf("%+v, %v", rep, err)
	}
}

// A follower that fails is an error with its last words, not a fast follower.
func TestFloorReplicated_FollowerFails_SaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		command []string
		want    string
	}{
		"ends at once": {[]string{"/bin/sh", "-c", "echo no disk here >&2; exit 3"}, "no disk here"},
		"no program":   {[]string{"/nowhere/kvbench"}, "cannot start follower"},
	} {
		dir := t.TempDir()
		_, err := floorReplicated(false)(t.Context(), FloorOptions{Dir: dir, Duration: time.Minute, Follower: c.command})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		mustBeEmpty(t, dir)
	}
}

// A follower that takes everything and never answers must not hang a measurement whose context ends.
func TestFloorReplicated_ContextEnds_ReturnsAndLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	_, err := floorReplicated(true)(ctx, FloorOptions{Dir: dir, Duration: time.Minute, Follower: []string{"/bin/sh", "-c", "exec sleep 60"}})
	if err == nil || !errors.Is(ctx.Err(), context.Canceled) || time.Since(start) > floorStall {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	mustBeEmpty(t, dir)
}

// Without what the leader hands down a follower touches nothing.
func TestFloorFollower_StartedByHand_Refuses(t *testing.T) {
	command := follower(t)
	out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no connection was inherited") {
		t.Errorf("%v: %s", err, out)
	}
}

// Both followers answer with the number of the newest block that they were sent.
func TestFloorGroup_Blocks_ReachBothFollowers(t *testing.T) {
	o := FloorOptions{Dir: t.TempDir(), Follower: follower(t)}
	var g floorGroup
	for range floorFollowers {
		f, err := startFloorFollower(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		g = append(g, f)
	}
	block := make([]byte, floorBlock)
	for seq := uint64(1); seq <= 40; seq++ { // more than a batch of a follower at once
		block[0] = byte(seq)
		if err := g.send(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.await(40, floorFollowers); err != nil {
		t.Fatal(err)
	}
	for i, f := range g {
		if f.acked != 40 {
			t.Errorf("follower %d answered %d, want 40", i, f.acked)
		}
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
}

func TestFloorLog_AtTheEnd_StartsOver(t *testing.T) {
	f, err := namelessLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := floorLog{fd: int(f.Fd()), next: floorFile - floorBlock}
	for _, want := range []int64{floorFile, 2 * floorBlock} {
		n := floorBlock
		if want != floorFile {
			n *= 2
		}
		if err := l.append(make([]byte, n)); err != nil || l.next != want {
			t.Errorf("next is %d, want %d; %v", l.next, want, err)
		}
	}
	if st, err := f.Stat(); err != nil || st.Size() != floorFile {
		t.Errorf("the file has %v bytes, want %d; %v", st.Size(), floorFile, err)
	}
}

func TestFloor_OneTest_AloneOrAnError(t *testing.T) {
	rep, err := Floor(t.Context(), FloorOptions{Dir: t.TempDir(), Duration: time.Millisecond, Tests: []string{FloorFdatasync}})
	if err != nil || len(rep.Tests) != 1 || rep.Test(FloorFdatasync) == nil {
		t.Errorf("%+v, %v", rep, err)
	}
	// That one needs followers.
	if rep, err := Floor(t.Context(), FloorOptions{Duration: time.Millisecond, Tests: []string{FloorReplicatedOverlapped}}); err == nil {
		t.Errorf("no followers, and no error: %+v", rep)
	}
}
