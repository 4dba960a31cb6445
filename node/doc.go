// Package node joins the parts of one KVStore process: doors, batcher, log and engine.
//
// What it does. Open takes the data directory, opens the shard (one Raft group with its batcher and its
// engine), waits until it may serve, and opens the doors; Close undoes that in the opposite order. Service
// is where all doors meet: it checks a request (principal, limits, disk, leadership), hands writes to the
// batcher, and answers reads from the engine.
//
// What it assumes. The packages between wire and node know nothing of each other; whatever joins two of
// them stands here, in small adapters (shard.go). Callers give validated Options.
//
// Who owns what. Node owns every part that it opened and closes it. A Shard owns its group, batcher,
// engine and expiry loop; a node has one shard today and nothing here assumes that it will never have
// more: no state is kept at package level, and requests carry a group id. The read pool owns the
// goroutines that touch the engine's tables on behalf of event loops.
//
// What it never does. It never answers a write before the log has it and the engine has applied it, never
// serves a linearizable read without having led at a moment after the request arrived, and never turns an
// unknown outcome into a certain one.
package node
