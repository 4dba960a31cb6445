// Package testcluster runs KVStore as its users do: real binaries as real processes on real disks.
//
// What it does. It builds the commands once per test run (binaries.go), reserves loopback ports (ports.go),
// starts, kills, stops and restarts a node (node.go) by its process (process.go), reads what a node says of
// itself (status.go), and makes disks that can be filled or lose their power (disk.go), inside a mount
// namespace that no exit, however sudden, leaves behind (isolate.go).
//
// What it assumes. Linux, and the Go tool in PATH unless KVSTORE_TEST_BIN names a directory with binaries.
// Disks need root and loop devices; where they can't be had the caller's test is skipped with the reason.
//
// Who owns what. A Node belongs to the test that made it and ends with it: its process, its ports, its data
// directory. Each process is watched by one goroutine on a thread of its own, from start to end. The parent
// death signal ends processes whose test was killed.
//
// What it never does. It never imports the server's packages: what it knows, a user can know. It never
// signals a process that it did not start, and never waits for a time to pass where it can ask.
package testcluster
