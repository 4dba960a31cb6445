// Command etcdbench drives etcd with the loop and the report of kvbench, so that the figures of both can be
// set side by side.
//
// What it does. It puts etcd's own Go client behind bench.Target and runs a workload of package bench. Its
// module also pins the server to compare with: `go build go.etcd.io/etcd/server/v3` in this folder.
//
// What it assumes. The etcd cluster is empty and without users, and started by whoever calls this.
//
// What it never does. It is no part of the build: it is a module of its own, so that etcd's dependencies
// stay out of the store's.
package main
