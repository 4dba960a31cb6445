// Package node joins the parts of one KVStore process: doors, batcher, log and engine.
//
// What it does. Open takes the data directory, finds the node's way into its cluster (alone, founding, or
// joining), opens the shard (one Raft group with its batcher and its engine), and opens the doors; Close hands
// the leadership over and undoes the rest in the opposite order. Service is where all doors meet: it checks a
// request (principal, limits, disk, leadership), hands writes to the batcher, answers reads from the engine, and
// passes on to the leader what only that may execute (forward.go), through a breaker for each node (peers.go). The keeper keeps the membership true
// (keeper.go) and the leadership where it is wished (balance.go), admin changes it (admin.go, change.go). Recover makes
// a survivor the cluster when a majority is lost for good (recover.go), and the keeper finishes that (recovery.go).
// Every node tells the others of its disk and its digests (health.go): leaders take only what a majority can store
// (disks.go), and a node whose state is another than that of a majority (digests.go), or damaged (scrub.go finds what
// nobody reads), takes it out of service and makes it anew at its next start, for which it asks (quarantine.go,
// rebuild.go).
//
// What it assumes. The packages between wire and node know nothing of each other; whatever joins two of
// them stands here, in small adapters (shard.go, statemachine.go). Callers give validated Options. Nodes reach
// each other at the addresses that they advertise, over a network that may lose, delay and repeat.
//
// Who owns what. Node owns every part that it opened and closes it. A Shard owns its group, batcher, engine,
// forwarder, keeper, health, scrubber and expiry loop; a node has one shard today and nothing here assumes that it will never have
// more: no state is kept at package level, and requests carry a group id. The read pool owns the goroutines that
// touch the engine's tables on behalf of event loops; streams own those that send watches and streamed listings
// (stream.go, watch.go, streamscan.go); the board owns the questions to other nodes, admin its
// calls; backups takes and restores copies on the goroutines of the doors that ask, one of each at a time (backup.go).
//
// What it never does. It never answers a write before the log has it and the engine has applied it, never serves
// a linearizable read without a proof, of a moment after the request arrived, that it has applied enough, never
// turns an unknown outcome into a certain one, never passes a request on twice unless the first attempt surely did
// nothing, never deletes a state before another has taken its place, and never lets a data directory pass for
// another one. DESIGN.md tells more.
package node
