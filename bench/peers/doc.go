// Command peers drives KVStore and the stores that one would else pick, etcd and Redis, in the same closed loop, by turns,
// and says what became of the targets that are ratios between them.
//
// What it does. compare puts each peer's own Go client (etcd's client v3, rueidis) behind bench.Target and measures row
// after row in pairs: a turn of ours, a turn of the peer's, the order changing with each pair. Figures are medians of the
// pairs, ratios those of one pair. table makes the tables of docs/performance.md of the result. run measures one peer as
// `kvbench run` measures ours; etcd is a node of etcd, of the version that go.mod pins.
//
// What it assumes. All servers run on this machine, are new, and serve nobody else; whoever calls starts and stops them
// (perf/peers.sh). Those that have no turn stand idle meanwhile.
//
// What it never does. It is no part of the build: it is a module of its own, so that the peers' dependencies stay out of
// the store's.
package main
