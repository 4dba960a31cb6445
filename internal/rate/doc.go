// Package rate keeps requests to a number a second.
//
// What it does: a Bucket says at once whether something may be done now, or how long to wait before it may. It is the
// generic cell rate algorithm: one number, the time until which the rate is spent, in place of tokens and a timer.
//
// What it assumes: the caller's clock, in nanoseconds, goes on evenly; each call brings its reading.
//
// Who owns what: a Bucket may be used by any number of goroutines once it is set up; it takes no lock.
//
// What it never does: wait itself, or let more than a second's worth be caught up on after a pause.
package rate
