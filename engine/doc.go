// Package engine is the state machine of one Raft group and the versioned store below it. Apply turns
// committed log entries into records; readers see one published state at a time, of the present or of the
// kept past; checkpoints make the state durable behind the log's back. A whole state travels to another node
// as a snapshot, which takes the place of the one there.
//
// What it assumes: the Raft log is the only write-ahead log, and every entry that Apply gets is durable
// there (or on a majority) and comes again, byte for byte, after a crash. A local file system whose journal
// keeps the order of names (ext4, xfs), an fdatasync that means it, and enough free space: Badger maps its
// logs sparsely and a full disk kills the process. One process per directory.
//
// Who owns what: one goroutine, the applier, calls Apply and ApplyConfiguration and is the only one to
// write. Everything else may be called from any goroutine. One goroutine of the store, the checkpointer,
// syncs, writes CHECKPOINT and moves the read fence; it ends with Close. An installed snapshot replaces the
// store: then a goroutine of the engine ends the old one, and Close waits for it. Badger's own goroutines
// flush and compact; a panic in one of them can't be caught and ends the process (DESIGN.md has the cases). A
// scrub runs on its caller's goroutine.
//
// What it never does: read a clock, a random number or an option inside Apply; believe Badger about what is
// durable; let a value into Badger's value log; delete damaged state (it returns ErrDamaged and leaves the
// choice to the node); answer for an entry that it can't apply; decide about leadership, or propose anything.
//
// DESIGN.md tells why it is built so, what happens in each crash, and which defects of Badger it works around.
package engine
