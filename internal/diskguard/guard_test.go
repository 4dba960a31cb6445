package diskguard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The rules are tested as a table of measurements over an injected StatFunc; the ballast is a real file
// throughout. mount_test.go repeats the story on real file systems that really fill up.

const (
	testFloor    = 1000 << 10
	testCritical = 400 << 10
	testBallast  = 64 << 10
)

// disk is an injected StatFunc: what is free, apart from the ballast's real blocks.
type disk struct {
	free   atomic.Uint64
	broken atomic.Bool
}

var errBroken = errors.New("statfs fails")

func (d *disk) stat(string) (uint64, error) {
	if d.broken.Load() {
		return 0, errBroken
	}
	return d.free.Load(), nil
}

func testOptions(t *testing.T, d *disk) Options {
	return Options{
		Dir:           t.TempDir(),
		FloorBytes:    testFloor,
		CriticalBytes: testCritical,
		BallastBytes:  testBallast,
		Interval:      time.Hour, // the test polls
		Stat:          d.stat,
	}
}

func open(t *testing.T, o Options) *Guard {
	t.Helper()
	g, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

func TestCheck_SequenceOfMeasurements_FollowsTheDiagram(t *testing.T) {
	const k = 1 << 10
	steps := []struct {
		freeKB      uint64
		wantState   State
		wantBallast bool
		why         string
	}{
		{5000, OK, true, "plenty"},
		{1000, OK, true, "at the floor is not below it"},
		{999, Low, true, "below the floor"},
		{1001, Low, true, "above the floor, within the gap"},
		{1249, Low, true, "just below 1.25 floor"},
		{1250, OK, true, "at 1.25 floor"},
		{1001, OK, true, "within the gap from above"},
		{400, Low, true, "at the critical level is not below it"},
		{399, Low, false, "below it: the ballast goes first"},
		{463, Low, false, "the ballast's blocks are back"},
		{399, Critical, false, "below it again, and nothing is left to release"},
		{499, Critical, false, "within the gap above critical"},
		{500, Low, false, "at 1.25 critical"},
		{399, Critical, false, "and back"},
		{1250, OK, false, "from critical straight to OK, but no room for the ballast yet"},
		{1313, OK, false, "one KB too little for it"},
		{1314, OK, true, "room for 1.25 floor and the ballast"},
		{100, Low, false, "from OK straight below critical"},
		{100, Critical, false, "and the release was not enough"},
	}
	var d disk
	d.free.Store(steps[0].freeKB * k)
	o := testOptions(t, &d)
	g := open(t, o)
	for i, s := range steps {
		d.free.Store(s.freeKB * k)
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(filepath.Join(o.Dir, ballastName))
		if g.State() != s.wantState || g.HasBallast() != s.wantBallast || (err == nil) != s.wantBallast {
			t.Fatalf("step %d, %d KB free (%s): state %v, ballast %v, file error %v; want %v, %v",
				i, s.freeKB, s.why, g.State(), g.HasBallast(), err, s.wantState, s.wantBallast)
		}
	}
	if g.Free() != 100*k {
		t.Fatalf("Free is %d, want the last measurement", g.Free())
	}
}

func TestCheck_MeasurementFails_RefusesWritesUntilItWorksAgain(t *testing.T) {
	var d disk
	d.free.Store(1100 << 10) // inside the gap: a detour through Low would stick
	g := open(t, testOptions(t, &d))
	d.broken.Store(true)
	if err := g.Check(); !errors.Is(err, errBroken) || g.State() != Low {
		t.Fatalf("error %v, state %v; want the error and low", err, g.State())
	}
	d.broken.Store(false)
	if err := g.Check(); err != nil || g.State() != OK {
		t.Fatalf("error %v, state %v; want ok as before the failure", err, g.State())
	}
	d.free.Store(1)
	for range 2 {
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
	}
	d.broken.Store(true)
	if err := g.Check(); !errors.Is(err, errBroken) || g.State() != Critical {
		t.Fatalf("error %v, state %v; want critical to stay critical", err, g.State())
	}
}

func TestOpen_BallastFromAnEarlierRun_IsKeptOnlyWhenWhole(t *testing.T) {
	for name, c := range map[string]struct {
		prepare  func(path string) error
		wantKept bool
	}{
		"whole":      {func(path string) error { return newBallastFile(filepath.Dir(path), testBallast).make() }, true},
		"other size": {func(path string) error { return newBallastFile(filepath.Dir(path), testBallast/2).make() }, false},
		"sparse": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, testBallast))
		}, false},
	} {
		var d disk
		d.free.Store(testFloor) // enough to be OK, not enough to make a new one
		o := testOptions(t, &d)
		if err := c.prepare(filepath.Join(o.Dir, ballastName)); err != nil {
			t.Fatal(err)
		}
		if g := open(t, o); g.HasBallast() != c.wantKept {
			t.Errorf("%s: ballast kept: %v, want %v", name, g.HasBallast(), c.wantKept)
		}
		if _, err := os.Stat(filepath.Join(o.Dir, ballastName)); (err == nil) != c.wantKept {
			t.Errorf("%s: file error %v, want it kept: %v", name, err, c.wantKept)
		}
	}
}

func TestClose_ThenOpen_KeepsTheBallast(t *testing.T) {
	var d disk
	d.free.Store(10 * testFloor)
	o := testOptions(t, &d)
	g := open(t, o)
	g.Close()
	g.Close()
	d.free.Store(testFloor)
	if g := open(t, o); !g.HasBallast() {
		t.Fatal("the ballast of the first run is gone")
	}
}

func TestOpen_FullDiskWithBallast_ReleasesIt(t *testing.T) {
	var d disk
	d.free.Store(1)
	o := testOptions(t, &d)
	if err := newBallastFile(o.Dir, testBallast).make(); err != nil {
		t.Fatal(err)
	}
	g := open(t, o)
	if g.State() != Low || g.HasBallast() {
		t.Fatalf("state %v, ballast %v; want low without it", g.State(), g.HasBallast())
	}
}

func TestOpen_NegativeBallast_KeepsNone(t *testing.T) {
	var d disk
	d.free.Store(10 * testFloor)
	o := testOptions(t, &d)
	if err := newBallastFile(o.Dir, testBallast).make(); err != nil {
		t.Fatal(err)
	}
	o.BallastBytes = -1
	g := open(t, o)
	if _, err := os.Stat(filepath.Join(o.Dir, ballastName)); g.HasBallast() || !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("ballast %v, file error %v; want none", g.HasBallast(), err)
	}
	d.free.Store(1)
	if err := g.Check(); err != nil || g.State() != Critical {
		t.Fatalf("error %v, state %v; want critical at once", err, g.State())
	}
}

func TestMakeBallast_NoPreallocation_FillsTheFileOrWaitsBeforeTryingAgain(t *testing.T) {
	b := newBallastFile(t.TempDir(), 3<<20)
	b.preallocate = func(*os.File, int64) error { return unix.EOPNOTSUPP }
	if err := b.make(); err != nil {
		t.Fatal(err)
	}
	if kept, err := b.adopt(); err != nil || !kept {
		t.Fatalf("adopted %v, error %v: the written ballast has not all its blocks", kept, err)
	}

	var d disk
	d.free.Store(1)
	g := open(t, testOptions(t, &d))
	tries := 0
	g.mu.Lock()
	g.ballast.preallocate = func(f *os.File, size int64) error {
		if tries++; tries == 1 {
			return errors.Join(f.Truncate(1), unix.ENOSPC)
		}
		return fallocate(f, size)
	}
	g.mu.Unlock()
	d.free.Store(10 * testFloor)
	for poll := range ballastRetryPolls + 2 {
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
		if poll <= ballastRetryPolls {
			if _, err := os.Stat(g.ballast.path); tries != 1 || !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("poll %d: %d tries, file error %v; want one try that left nothing", poll, tries, err)
			}
		}
	}
	if tries != 2 || !g.HasBallast() {
		t.Fatalf("%d tries, ballast %v; want it made at the second", tries, g.HasBallast())
	}
}

func TestOpen_FaultyOptions_ListsEveryFault(t *testing.T) {
	_, err := Open(Options{FloorBytes: 10, CriticalBytes: 10, Interval: 1})
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"Dir", "CriticalBytes", "Interval"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not name %s: %v", part, err)
		}
	}
	if _, err := Open(Options{Dir: filepath.Join(t.TempDir(), "absent")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent directory: error %v, want os.ErrNotExist", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ballastName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("a directory in the ballast's place is accepted")
	}
}

func TestGuard_PollsByItself_AndIsReadWithoutLocks(t *testing.T) {
	var d disk
	d.free.Store(10 * testFloor)
	o := testOptions(t, &d)
	o.Interval = time.Millisecond
	polled := make(chan struct{}, 1)
	o.Stat = func(dir string) (uint64, error) {
		select {
		case polled <- struct{}{}:
		default:
		}
		return d.stat(dir)
	}
	g := open(t, o)
	var wg sync.WaitGroup
	var stop atomic.Bool
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				_, _ = g.State(), g.Free()
			}
		})
	}
	d.free.Store(1)
	for g.State() != Critical {
		<-polled // blocks for ever, and so fails, if nobody polls
	}
	stop.Store(true)
	wg.Wait()
	g.Close()
	d.free.Store(10 * testFloor)
	if g.State() != Critical {
		t.Fatal("a closed guard still moves")
	}
	if n := testing.AllocsPerRun(100, func() { _ = g.State() }); n != 0 {
		t.Fatalf("State allocates %v times", n)
	}
}

func TestState_String_NamesEach(t *testing.T) {
	if got := fmt.Sprint(OK, Low, Critical, State(7)); got != "ok low critical state(7)" {
		t.Fatal(got)
	}
}

func TestRoom_MeasuresNowAndKeepsTheFloor(t *testing.T) {
	var d disk
	d.free.Store(5000 << 10)
	o := testOptions(t, &d)
	g := open(t, o)
	for _, c := range []struct {
		freeKB, need uint64
		ok           bool
	}{
		{5000, 4000 << 10, true},
		{5000, 4000<<10 + 1, false},
		{1000, 0, true},
		{999, 0, false},
		{0, 1, false},
		{5000, 1<<64 - 1, false}, // no sum overflows
	} {
		d.free.Store(c.freeKB << 10) // without a poll
		err := g.Room(c.need)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrNoRoom) {
			t.Errorf("room for %d bytes with %d KB free and a floor of %d KB: %v", c.need, c.freeKB, testFloor>>10, err)
		}
	}
	d.broken.Store(true)
	if err := g.Room(1); !errors.Is(err, errBroken) {
		t.Errorf("room on a disk that can't be measured: %v", err)
	}
}
