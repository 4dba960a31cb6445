// Package batcher gathers writes from many connections into single log entries (group commit).
//
// What it does. Submit copies an operation into its namespace's open entry under its versioned header. One goroutine
// (run) seals an entry and proposes it as soon as a slot is free; there is no linger timer: what
// arrives while the log is busy is the next entry, so batches grow with load by themselves and a lone
// write waits for nobody. When an entry's outcome is known, each of its operations is answered, in log
// order.
//
// Fairness. Operations queue by namespace, each with open entries of its own. While one namespace has work, its entries
// go into the log as they are. While several have, an entry is put together by deficit round robin in bytes: in each
// round a namespace may add EntryBytesTarget divided by the number of those with work, and keeps what it can't use
// because its next operation is larger. So whoever floods costs the others about one entry of waiting, and small writes
// of many namespaces still share an entry. A namespace may fill the queue up to eight times the room that is left
// free, so that one with little waiting always finds room, and only the age of its own queue counts against it. Within
// a namespace, shares keep one connection from pushing the others out.
//
// Order. Operations of one connection in one namespace reach the log in the order of their Submits; those of different
// namespaces have no order among each other.
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
