// Package batcher gathers writes from many connections into single log entries (group commit).
//
// What it does. Submit copies an operation into the open entry under its versioned header. One goroutine
// (run) seals the open entry and proposes it as soon as a slot is free; there is no linger timer: what
// arrives while the log is busy is the next entry, so batches grow with load by themselves and a lone
// write waits for nobody. When an entry's outcome is known, each of its operations is answered, in log
// order.
//
// What it assumes. The Proposer calls done exactly once for each entry that it took, in proposal order,
// and never changes or reuses the entry's bytes. Whoever submits has checked the operation (wire
// validation, permission, leadership): the batcher looks into no body.
//
// Who owns what. Submit may be called from any event loop and never blocks. The open entry and the queue
// are guarded by one mutex, held for one copy of the operation. A sealed entry's bytes belong to the log.
//
// What it never does. It knows neither Raft nor the store, never retries (an entry whose outcome is
// unknown stays unknown), and never lets its queue outgrow Options.QueueBytesMax.
package batcher
