package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"kvstore/internal/config"
)

const (
	// gcPercent is how much garbage may stand beside what lives before it is collected, in percent. What a node keeps is in large
	// blocks without pointers: a collection is cheap (0.1 % of the time under puts of 256 callers on three nodes), and memory
	// is what it saves. There 50 held 370 to 460 MB where 100 held 650 to 740, at the same CPU time; 25 saved little more.
	gcPercent = 50
	// memoryShare is the part of the control group's limit that the Go runtime may fill, in percent: the rest is for what
	// it does not count, such as memory maps that the kernel has not written back.
	memoryShare = 90
	// memoryFloor is the least limit that is accepted: below it a node would collect garbage all the time.
	memoryFloor = 64 << 20

	// checkpointShare of the memory is checkpoint-size by itself: the newest state then takes an eighth at most. Twice as much
	// costs a sixth less CPU time for a put where keys are written over and over (ADR 27), so it is worth having where there is room.
	checkpointShare = 24
	// checkpointSizeLeast and checkpointSizeMost bound it; checkpointSizeMin is the least that the option may say.
	checkpointSizeLeast = 32 << 20
	checkpointSizeMost  = 256 << 20
	checkpointSizeMin   = 1 << 20
	// checkpointSizeBlind is for where nobody knows of any memory.
	checkpointSizeBlind = 128 << 20
)

// memory is how the Go runtime keeps its heap.
type memory struct {
	percent int   // of the garbage collector; negative: the environment decides
	limit   int64 // soft, in bytes; 0: none, or the environment decides
	origin  string
}

// memorySettings derives it. What the environment says by GOGC and GOMEMLIMIT counts more than option, which is --memory-limit (0: not
// given), and that more than the limit of the control group, which group tells.
func memorySettings(option int64, env func(string) (string, bool), group func() (uint64, error)) (memory, error) {
	m := memory{percent: gcPercent}
	if v, set := env("GOGC"); set && v != "" {
		m.percent = -1
	}
	if v, set := env("GOMEMLIMIT"); set && v != "" {
		m.origin = "GOMEMLIMIT"
		return m, nil
	}
	if option > 0 {
		m.limit, m.origin = option, "memory-limit"
		return m, nil
	}
	limit, err := group()
	switch {
	case errors.Is(err, memlimit.ErrNoLimit), errors.Is(err, memlimit.ErrCgroupsNotSupported), errors.Is(err, memlimit.ErrNoCgroup):
		return m, nil
	case err != nil:
		return m, fmt.Errorf("cannot read the memory limit of the control group (set --memory-limit): %w", err)
	case limit >= math.MaxInt64/memoryShare: // version 1 writes a number near the largest for "none"
		return m, nil
	}
	m.limit, m.origin = max(int64(limit)*memoryShare/100, memoryFloor), "control group"
	return m, nil
}

// apply sets the runtime, and warns where the options alone, of which want is the sum, would fill the limit.
func (m *memory) apply(log *slog.Logger, want int64) {
	if m.percent >= 0 {
		debug.SetGCPercent(m.percent)
	}
	if m.limit > 0 {
		debug.SetMemoryLimit(m.limit)
		if want > m.limit {
			log.Warn("the memory limit is below what the options let this node keep: lower cache-size, checkpoint-size, memtable-size, log-cache-size or feed-memory-bytes",
				"limit", config.FormatBytes(m.limit), "from", m.origin, "options", config.FormatBytes(want))
		}
	}
}

// checkpointSize is checkpoint-size where the option leaves it open: by the limit, or by the machine's memory, which system tells, where
// there is none.
func (m *memory) checkpointSize(system func() (uint64, error)) int64 {
	total := m.limit
	if m.origin == "GOMEMLIMIT" {
		if total = debug.SetMemoryLimit(-1); total == math.MaxInt64 {
			total = 0 // "off"
		}
	}
	if total == 0 {
		all, err := system()
		if err != nil || all == 0 {
			return checkpointSizeBlind
		}
		total = int64(min(all, math.MaxInt64))
	}
	return min(max(total/checkpointShare, checkpointSizeLeast), checkpointSizeMost)
}

// memoryWant is the most that the caches and buffers which have an option keep, in bytes: the newest state up to three times
// checkpoint-size, and each memtable once.
func (c *settings) memoryWant() int64 {
	return c.cache + c.logCache + c.feedMemory + 3*c.checkpointBytes + c.memtable*int64(c.memtables)
}

// Once a load has ended nothing is allocated, so nothing is collected, and the runtime gives memory back slowly: a node that had
// loaded ten million records kept 1.0 GB, of which 0.2 GB was in use.
const (
	// givenBackLeast is how much must be to give: below it the next load would only have to fetch it again.
	givenBackLeast = 256 << 20
	// quietBytes is what a node that is idle allocates in quietTime at most; it is quiet after two such times.
	quietBytes = 4 << 20
	quietTime  = time.Second
)

// giver gives memory back to the system when a load has ended.
type giver struct {
	least, quiet uint64 // as givenBackLeast and quietBytes
	every        time.Duration
	samples      []metrics.Sample
	allocated    uint64
	times        int // for so many times the process was quiet
}

func newGiver(least, quiet uint64, every time.Duration) *giver {
	return &giver{least: least, quiet: quiet, every: every, samples: []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
	}}
}

// run looks until ctx ends.
func (g *giver) run(ctx context.Context) {
	ticker := time.NewTicker(g.every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if g.due() {
				debug.FreeOSMemory() // a collection, and all that is free goes back: some 100 ms of CPU time for a gigabyte
			}
		case <-ctx.Done():
			return
		}
	}
}

// due tells whether there is enough to give back, and nobody who would need it at once. It says so once in each quiet time.
func (g *giver) due() bool {
	metrics.Read(g.samples)
	value := func(i int) uint64 { return g.samples[i].Value.Uint64() }
	before := g.allocated
	g.allocated = value(0)
	if g.allocated-before > g.quiet {
		g.times = 0
		return false
	}
	g.times++
	free, objects, live := value(1), value(2), value(3)
	return g.times == 2 && free+objects-min(objects, live) >= g.least
}
