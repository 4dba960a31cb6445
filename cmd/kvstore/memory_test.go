package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

func TestMemorySettings_EverySource_TheNearestCounts(t *testing.T) {
	group := func(limit uint64, err error) func() (uint64, error) {
		return func() (uint64, error) { return limit, err }
	}
	for name, c := range map[string]struct {
		option int64
		env    map[string]string
		group  func() (uint64, error)
		want   memory
		failed bool
	}{
		"nothing":              {group: group(0, memlimit.ErrNoLimit), want: memory{percent: gcPercent}},
		"no control groups":    {group: group(0, memlimit.ErrCgroupsNotSupported), want: memory{percent: gcPercent}},
		"no control group":     {group: group(0, fmt.Errorf("x: %w", memlimit.ErrNoCgroup)), want: memory{percent: gcPercent}},
		"unlimited, version 1": {group: group(math.MaxInt64&^0xfff, nil), want: memory{percent: gcPercent}},
		"control group":        {group: group(1<<30, nil), want: memory{gcPercent, (1 << 30) / 100 * 90, "control group"}},
		"tiny control group":   {group: group(1<<20, nil), want: memory{gcPercent, memoryFloor, "control group"}},
		"option":               {option: 200 << 20, group: group(1<<30, nil), want: memory{gcPercent, 200 << 20, "memory-limit"}},
		"GOMEMLIMIT":           {option: 200 << 20, env: map[string]string{"GOMEMLIMIT": "1GiB"}, group: group(1<<30, nil), want: memory{gcPercent, 0, "GOMEMLIMIT"}},
		"GOGC":                 {option: 200 << 20, env: map[string]string{"GOGC": "off"}, group: group(1<<30, nil), want: memory{-1, 200 << 20, "memory-limit"}},
		"unreadable":           {group: group(0, errors.New("broken")), want: memory{percent: gcPercent}, failed: true},
	} {
		got, err := memorySettings(c.option, func(k string) (string, bool) { v, ok := c.env[k]; return v, ok }, c.group)
		// The share is taken of the whole first.
		if diff := got.limit - c.want.limit; diff > -100 && diff < 100 {
			got.limit = c.want.limit
		}
		if got != c.want || (err != nil) != c.failed {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

func TestMemory_CheckpointSize_FollowsWhatMemoryThereIs(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	system := func(n uint64, err error) func() (uint64, error) { return func() (uint64, error) { return n, err } }
	for name, c := range map[string]struct {
		m       memory
		runtime int64 // what GOMEMLIMIT has set
		system  func() (uint64, error)
		want    int64
	}{
		"limit":             {m: memory{limit: 2 << 30, origin: "control group"}, system: system(64<<30, nil), want: 2 << 30 / 24},
		"small limit":       {m: memory{limit: 100 << 20, origin: "memory-limit"}, system: system(64<<30, nil), want: 32 << 20},
		"large limit":       {m: memory{limit: 32 << 30, origin: "memory-limit"}, want: 256 << 20},
		"machine":           {system: system(4<<30, nil), want: 4 << 30 / 24},
		"large machine":     {system: system(1<<40, nil), want: 256 << 20},
		"nobody knows":      {system: system(0, errors.New("no such file")), want: 128 << 20},
		"GOMEMLIMIT":        {m: memory{origin: "GOMEMLIMIT"}, runtime: 3 << 30, want: 3 << 30 / 24},
		"GOMEMLIMIT is off": {m: memory{origin: "GOMEMLIMIT"}, runtime: math.MaxInt64, system: system(4<<30, nil), want: 4 << 30 / 24},
	} {
		if c.runtime > 0 {
			debug.SetMemoryLimit(c.runtime)
		}
		if got := c.m.checkpointSize(c.system); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestMemory_Apply_SetsTheRuntimeAndWarnsOfOptionsBeyondTheLimit(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) })
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	m := memory{percent: 40, limit: 3 << 30, origin: "memory-limit"}
	m.apply(log, 1<<30)
	if p, l := debug.SetGCPercent(100), debug.SetMemoryLimit(-1); p != 40 || l != 3<<30 || out.Len() > 0 {
		t.Errorf("percent %d, limit %d, %s", p, l, &out)
	}
	if m.apply(log, 4<<30); !strings.Contains(out.String(), "limit=3GiB") || !strings.Contains(out.String(), "options=4GiB") {
		t.Errorf("warned: %s", &out)
	}
	debug.SetMemoryLimit(5 << 30)
	m = memory{percent: -1}
	m.apply(log, 1<<40)
	if p, l := debug.SetGCPercent(100), debug.SetMemoryLimit(-1); p != 40 || l != 5<<30 {
		t.Errorf("what the environment decides was changed: percent %d, limit %d", p, l)
	}
}

// Goal: what a load leaves behind goes back to the system once the load has ended, once.
func TestGiver_LoadHasEnded_MemoryGoesBackOnce(t *testing.T) {
	debug.FreeOSMemory()
	percent := debug.SetGCPercent(-1) // nothing else collects
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	const size = 64 << 20
	g := newGiver(size/2, 1<<20, 0)
	g.due() // what was allocated before counts as a load
	b := make([]byte, size)
	for i := range b {
		b[i] = 1
	}
	if g.due() {
		t.Fatal("due while the load goes on")
	}
	b = nil
	if g.due() {
		t.Fatal("due at the first quiet moment")
	}
	before := releasedBytes()
	if !g.due() {
		t.Fatal("not due after the load")
	}
	debug.FreeOSMemory()
	if n := releasedBytes() - before; n < size/2 {
		t.Errorf("%d bytes went back", n)
	}
	for range 5 {
		if g.due() {
			t.Fatal("due once more")
		}
	}
	few := newGiver(1<<40, 1<<20, 0)
	for range 5 {
		if few.due() {
			t.Fatal("due although there is little to give")
		}
	}
	_ = b
}

func releasedBytes() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}
