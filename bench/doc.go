// Package bench measures a KVStore from outside: workload generators, drivers, histograms and reports,
// fail-over, and the floor of the machine beneath (disk flush, loopback, memory, the smallest replicated
// write).
//
// What it does. Run loads keys, drives a Target with a Workload for a fixed time and returns a Report. The
// closed loop keeps Concurrency × Pipeline operations in flight. The open loop (Rate) sends on a schedule
// that does not wait for answers and counts latency from the instant when an operation was due, so that a
// stall of the server shows in every operation that it delayed (coordinated omission). YCSB A to F follow
// the core workloads of Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010. Connect goes through
// the binary protocol, gRPC or REST. Cost sets the CPU time of the latter two beside that of empty servers, and Reads
// that of reads which all nodes share beside one node's, and Growth a store with many records beside one with few: by turns and in ratios of one round, since a shared machine is
// never the same for long.
// Failover writes at a steady pace while its caller kills one leader after the other, and reads back what was
// acknowledged. Results sets reports side by side and compares them with the targets of three nodes.
//
// What it assumes. Linux: CPU clocks of processes, fdatasync and fallocate come from there. The clock of
// this machine is monotonic. An operation belongs to the measurement when it was due inside the window
// after the warm-up; its latency counts even when the answer comes later.
//
// Who owns what. Each worker goroutine owns its generator; the recorder is shared and sharded; all
// goroutines of Run and Failover end before those return. Floor starts two processes, its followers, and has
// seen them end when it returns; StartEcho starts one, which its caller stops.
//
// What it never does. It imports no server code, starts and kills no server but empty ones to compare with, keeps no state between runs but
// the keys that it wrote below Options.KeyPrefix, and calls no failed or unknown outcome a success.
package bench
