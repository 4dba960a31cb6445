// Package feed keeps the changes of one group in the order in which they were made, and hands them to watchers.
//
// What it does: Append takes the events of each applied entry, Publish shows them. They go into a ring in memory and
// into append-only segment files, which together are one stream of bytes; a position in it is an offset. A Watcher is a
// cursor on the stream with a filter. One that keeps up is told the offsets of what it wants by an index of all
// watchers; one that doesn't reads ring and segments by itself until it has caught up. What retention has removed is
// ErrCompacted for those who had not read it.
//
// What it assumes: Append and Publish are called by one goroutine, for each entry of the log, also one without events.
// The caller keeps a checkpoint and calls Sync before that becomes durable: what Open finds behind the checkpoint is cut
// off, since the log brings it again.
//
// Who owns what: Append copies. What a Watcher gives are views, valid during the call.
//
// What it never does: let a watcher slow Append, whether it reads or not; lose, repeat or reorder an event of a watcher
// that was not told ErrCompacted; read the state: what was there before a change is for others to look up.
//
// DESIGN.md has the reasons.
package feed
