package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"

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

// memoryWant is the most that the caches and buffers which have an option keep, in bytes: the newest state up to three times
// checkpoint-size, and each memtable once.
func (c *settings) memoryWant() int64 {
	return c.cache + c.logCache + c.feedMemory + 3*c.checkpointBytes + c.memtable*int64(c.memtables)
}
