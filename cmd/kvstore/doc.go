// Command kvstore is the server: it reads options, opens a node, prints where it listens, and drains on
// SIGTERM or SIGINT.
//
// What it does. `kvstore [server]` starts a node; every option exists as flag, as KVSTORE_… environment
// variable and as key of the --config file. `kvstore --check-config` checks all of that and exits 0 or 1.
// `kvstore recover` makes a node that has lost the majority of its cluster for good the only voter of it.
// A node whose state must be made anew stops in order and replaces its process by a new one (same program, arguments,
// environment and process id).
// cluster.sh, behind `make cluster`, runs three of it on one machine. It exits 2 for faults of the configuration
// and 1 for a directory that is refused, with the way back in the text.
//
// What it assumes. The data directory is on a local disk whose fsync tells the truth.
//
// Who owns what. The node owns everything that runs; main owns only the signals.
//
// What it never does. It holds no logic of the store. A second signal ends it at once, which loses
// nothing that was acknowledged.
package main
