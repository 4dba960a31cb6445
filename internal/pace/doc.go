// Package pace keeps work to a number of bytes per second.
//
// What it does: a bucket of tokens (a leaky one, told as the time when all that was handed out has been paid for),
// shared by any number of callers, in the order in which they ask.
//
// What it assumes: callers wait as long as Due says before they go on, each in its own way.
//
// Who owns what: a Pace may be shared by any number of goroutines.
//
// What it never does: wait itself, or let more than Burst's worth be caught up on after a pause.
package pace
