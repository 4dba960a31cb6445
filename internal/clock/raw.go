package clock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Raw returns what the oscillator below c.Boot shows, on which no time daemon works (CLOCK_MONOTONIC_RAW), if c
// knows it (by a method Raw() time.Duration), and else c.Boot(). Only differences on one machine within one
// boot mean anything; it stands still while the machine is suspended.
func Raw(c Clock) time.Duration {
	if r, ok := c.(interface{ Raw() time.Duration }); ok {
		return r.Raw()
	}
	return c.Boot()
}

// Raw returns CLOCK_MONOTONIC_RAW.
func (System) Raw() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		panic(fmt.Sprintf("BUG: cannot read CLOCK_MONOTONIC_RAW: %v", err)) // there since Linux 2.6.28
	}
	return time.Duration(ts.Nano())
}
