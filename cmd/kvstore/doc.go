// Command kvstore is the server: it reads options, opens a node, prints where it listens, and drains on
// SIGTERM or SIGINT.
//
// What it does. `kvstore [server]` starts a node; every option exists as flag, as KVSTORE_… environment
// variable and as key of the --config file. `kvstore --check-config` checks all of that and exits 0 or 1.
//
// What it assumes. The data directory is on a local disk whose fsync tells the truth.
//
// Who owns what. The node owns everything that runs; main owns only the signals.
//
// What it never does. It holds no logic of the store. A second signal ends it at once, which loses
// nothing that was acknowledged.
package main
