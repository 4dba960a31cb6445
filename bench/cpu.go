package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTimes are CPU times since the start of each process, user and system together.
type cpuTimes struct {
	client time.Duration
	// server is the sum over all server processes; valid only when serverKnown.
	server      time.Duration
	serverKnown bool
}

// readCPU adds up the server's processes; when one of them cannot be read, the sum is unknown.
func readCPU(serverPIDs []int) cpuTimes {
	var c cpuTimes
	if d, err := ProcessCPU(os.Getpid()); err == nil {
		c.client = d
	}
	for _, pid := range serverPIDs {
		d, err := ProcessCPU(pid)
		if err != nil {
			return cpuTimes{client: c.client}
		}
		c.server += d
		c.serverKnown = true
	}
	return c
}

// ProcessCPU returns the CPU time (user and system) that process pid has used since its start, to the
// nanosecond: it reads the process's CPU clock, since /proc/PID/stat counts in ticks of 10 ms.
func ProcessCPU(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3): the id of a process's clock is its complemented pid over the clock's kind,
	// 2 for CPUCLOCK_SCHED.
	const cpuClockSched = 2
	if pid <= 0 || pid > 1<<28 {
		return 0, fmt.Errorf("cannot read CPU clock: %d is no process id", pid)
	}
	id := int32(^pid)<<3 | cpuClockSched
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0, fmt.Errorf("cannot read CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// IsServerProcess reports whether pid is a KVStore server of this machine: a pid that a server tells may
// belong to another machine or to another container's numbering.
func IsServerProcess(pid int) bool {
	if pid <= 0 {
		return false
	}
	comm, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "comm"))
	return err == nil && strings.HasPrefix(string(comm), "kvstore")
}
