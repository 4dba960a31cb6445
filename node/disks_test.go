package node

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/consensus"
	"kvstore/internal/diskguard"
)

// The rules of disks.go over tables; test/disk_test.go fills real disks of real nodes.

func TestJudgeDisks_EveryMix_GivesWhatAMajorityCanStore(t *testing.T) {
	for _, c := range []struct {
		voters string // of node-1 (self), node-2, …: o ok, l low, c critical, ? silent
		level  diskguard.State
		needed bool
	}{
		{"o", diskguard.OK, true},
		{"l", diskguard.Low, true},
		{"c", diskguard.Critical, true},
		{"ooo", diskguard.OK, false},
		{"loo", diskguard.OK, false}, // the others are a majority: self may refuse
		{"coo", diskguard.OK, false},
		{"olo", diskguard.OK, true},
		{"oll", diskguard.Low, true},
		{"llo", diskguard.Low, true},
		{"lll", diskguard.Low, true},
		{"ocl", diskguard.Low, true},
		{"occ", diskguard.Critical, true},
		{"lcc", diskguard.Critical, true},
		{"o??", diskguard.OK, true},       // nobody is short of space: not for the disks to say
		{"ol?", diskguard.Low, true},      // the silent one can't be counted on
		{"oc?", diskguard.Critical, true}, // neither for deletes
		{"oo?", diskguard.OK, true},
		{"l?o", diskguard.Low, true}, // a follower that is needed as long as the third is silent
		{"ooocc", diskguard.OK, true},
		{"loooc", diskguard.OK, false},
		{"oolcc", diskguard.Low, true},
		{"ollcc", diskguard.Low, true},
		{"olccc", diskguard.Critical, true},
	} {
		var all []voterDisk
		for i, k := range c.voters {
			v := voterDisk{id: "node-" + string(rune('1'+i)), known: k != '?'}
			v.state = map[rune]diskguard.State{'o': diskguard.OK, 'l': diskguard.Low, 'c': diskguard.Critical}[k]
			all = append(all, v)
		}
		level, needed, short := judgeDisks("node-1", all)
		if level != c.level || needed != c.needed {
			t.Errorf("%s: %s, needed %v; want %s, %v", c.voters, level, needed, c.level, c.needed)
		}
		if n := strings.Count(c.voters, "l") + strings.Count(c.voters, "c"); len(short) != n {
			t.Errorf("%s: short of space are %v, want %d", c.voters, short, n)
		}
	}
	if _, needed, _ := judgeDisks("learner", []voterDisk{{id: "node-1", known: true}}); needed {
		t.Error("a learner is needed for a majority")
	}
}

// testDisks are disks over an injected measurement.
func testDisks(t *testing.T) (*disks, *atomic.Uint64, *diskguard.Guard) {
	t.Helper()
	free := new(atomic.Uint64)
	free.Store(1 << 30)
	g, err := diskguard.Open(diskguard.Options{
		Dir: t.TempDir(), FloorBytes: 8 << 20, CriticalBytes: 2 << 20, BallastBytes: -1, Interval: time.Hour,
		Stat: func(string) (uint64, error) { return free.Load(), nil }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return newDisks(g), free, g
}

func TestStoring_LowFollower_StoresOnlyWhereItIsNeededAndUpToABound(t *testing.T) {
	d, free, g := testDisks(t)
	log := new(consensus.Metrics)
	d.log.Store(log)
	voters := func(second diskguard.State) {
		t.Helper()
		d.look("node-1", []voterDisk{{"node-1", d.own(), true}, {"node-2", second, true}, {"node-3", diskguard.OK, true}})
	}
	to := func(bytes uint64, second diskguard.State) {
		t.Helper()
		free.Store(bytes)
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
		voters(second)
	}
	is := func(stores bool, told diskguard.State, when string) {
		t.Helper()
		if err := d.storing(1); (err == nil) != stores || d.told() != told {
			t.Errorf("%s: %v, and it tells others that it is %s", when, err, d.told())
		}
	}
	const bound = 8 << 20 / 8
	to(1<<30, diskguard.OK)
	log.AppendedBytes.Add(100 << 20)
	voters(diskguard.OK)
	is(true, diskguard.OK, "with space")

	to(4<<20, diskguard.OK)
	is(false, diskguard.Low, "low, and the others are a majority")
	if d.writable() != diskguard.Low {
		t.Errorf("as a leader it would take what is %s", d.writable())
	}
	voters(diskguard.Low)
	is(true, diskguard.Low, "low and needed")
	log.AppendedBytes.Add(bound)
	is(true, diskguard.Low, "at the bound")
	log.AppendedBytes.Add(1)
	is(false, diskguard.Critical, "beyond the bound")
	if d.writable() != diskguard.Low {
		t.Errorf("as a leader, beyond the bound, it would take what is %s", d.writable())
	}

	to(1<<30, diskguard.OK)
	is(true, diskguard.OK, "with space again")
	to(4<<20, diskguard.Low)
	is(true, diskguard.Low, "low again: the bound begins anew")
	to(1<<20, diskguard.Low)
	is(false, diskguard.Critical, "critical")
}

func TestRoom_LeavesTheFloorFree(t *testing.T) {
	d, free, _ := testDisks(t)
	free.Store(18 << 20)
	if err := d.room(10 << 20); err != nil {
		t.Error(err)
	}
	if err := d.room(10<<20 + 1); err == nil {
		t.Error("a snapshot is let in that leaves less than the floor")
	}
	if err := d.room(-1); err != nil {
		t.Error(err)
	}
}
