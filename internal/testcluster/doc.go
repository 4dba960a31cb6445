// Package testcluster runs KVStore as its users do: real binaries as real processes on real disks.
//
// What it does. It builds the commands once per test run (binaries.go), reserves loopback ports (ports.go),
// starts, kills, freezes, stops and restarts a node (node.go) by its process (process.go) or several nodes that
// make a cluster (cluster.go), reads what a node says of itself (status.go), cuts, delays and slows down what
// one node sends to another (network.go), strikes at named places of a node's code (failpoint.go), and makes
// disks that can be filled, hang or lose their power (disk.go), inside a mount namespace that no exit, however
// sudden, leaves behind (isolate.go).
//
// How the network is cut without any privilege: the address by which a node is known to the others, its
// --raft-advertise, is one of the test's own, which passes on what comes to --raft-listen. Who has made a
// connection is read from the kernel's tables of sockets and open files (owner.go), not from what is said
// over it, so that single directions between two nodes can be cut whatever they speak.
//
// What it assumes. Linux, and the Go tool in PATH unless KVSTORE_TEST_BIN names a directory with binaries.
// Disks need root and loop devices; where they can't be had the caller's test is skipped with the reason.
//
// Who owns what. A Node belongs to the test that made it and ends with it: its process, its ports, its data
// directory; so do a Cluster and its Network. Each process is watched by one goroutine on a thread of its own, from start to end. The parent
// death signal ends processes whose test was killed. A Network has one goroutine for each node and a few for
// each connection; all end with the test.
//
// What it never does. It never imports the server's packages: what it knows, a user can know. It never
// signals a process that it did not start, and never waits for a time to pass where it can ask.
package testcluster
