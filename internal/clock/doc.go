// Package clock is how the project reads time, so that tests can hold it in their hands.
//
// What it does: Clock tells the wall time (for stamps that people see and for expiry) and the time since
// boot (for leases and deadlines). System reads the machine's clocks, Manual is moved by a test.
//
// What it assumes: Linux. The time since boot is CLOCK_BOOTTIME, which goes on while the machine sleeps.
// CLOCK_MONOTONIC, behind Go's own time.Since, stands still then: a leader whose machine was suspended
// for a minute would take its read lease for valid after waking.
//
// Who owns what: a Clock may be shared by any number of goroutines.
//
// What it never does: bound the difference between two machines' clocks. Wall times of two nodes may be
// compared only with that in mind, and boot times of two machines (or of two boots) never.
package clock
