// Command kvbench loads a KVStore cluster and reports throughput, latency and CPU time per operation; it
// also measures fail-over, and the floor of the machine.
//
// What it does. Flags become bench.Options; package bench does the work. Reports go to stdout, progress
// and remarks to stderr.
//
// What it assumes. It writes below its own key prefix, so that it can run beside real data, though it
// takes all the capacity it gets.
//
// What it never does. It deletes nothing, starts and kills no server (that is the command's job that
// `kvbench failover` is given; the empty servers that `kvbench cost` compares with are its own), and calls no run good whose assertions failed: then it exits 1.
package main
