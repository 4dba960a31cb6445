// Package test holds the black-box tests of KVStore: a real process, a real disk, real sockets, and
// faults. README.md lists which fault each test brings, what must hold, and how to run it alone.
//
// What it does. Each test starts the kvstore binary through internal/testcluster, as one node or as a cluster of
// three, works on it through the Go client, REST, kvctl or raw bytes, hurts it, and compares what is left with
// what was acknowledged (ledger_test.go), or asks whether all answers fit one order (register_test.go,
// linear_test.go).
//
// What it assumes. What internal/testcluster assumes. Random tests print their seed, and take it back from
// KVSTORE_TEST_SEED; the schedule of goroutines and disks is not repeated by it, the choices are.
//
// Who owns what. A test owns its nodes and its disks; nothing is shared between tests but the binaries.
//
// What it never does. It never looks into the server's memory, and never sleeps where it can wait for an
// event: pauses are part of a fault (a random instant of a kill), never of a check.
package test
