package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"kvstore/node"
)

// banner tells a newcomer where everything is, who leads, and what to type next.
func banner(w io.Writer, a node.Addresses, members []string, leader string, c *settings, took time.Duration) {
	state := "found"
	if a.Fresh {
		state = "new"
	}
	kvctl, kvbench := "kvctl", "kvbench"
	if isBuilt("bin/kvctl") {
		kvctl, kvbench = "bin/kvctl", "bin/kvbench"
	}
	if a.Native != defaultListen {
		kvctl += " --endpoints " + a.Native
	}
	cluster, reads := "a cluster of one", "linearizable"
	if len(members) > 1 {
		reads += ", by " + c.readMode
		cluster = "of " + strings.Join(members, ", ")
	}
	fmt.Fprintf(w, "KVStore %s (%s, %s/%s, commit %s)          node %s, %s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, commit, c.nodeID, cluster)
	fmt.Fprintf(w, "  native     %-22s binary protocol, fastest\n", a.Native)
	if a.GRPC != "" {
		fmt.Fprintf(w, "  grpc       %-22s kvstore.v1, with reflection and health\n", a.GRPC)
	}
	fmt.Fprintf(w, "  rest       http://%s/api/v1/keys/{key}\n", a.HTTP)
	fmt.Fprintf(w, "  metrics    http://%s/metrics   /livez  /readyz?verbose  /debug/pprof\n", a.Metrics)
	if len(members) > 1 {
		fmt.Fprintf(w, "  cluster    leader %s; other nodes reach this one at %s\n", leader, a.RaftAdvertise)
	}
	fmt.Fprintf(w, "  data       %s (%s)     durability: fsync per group commit     reads: %s\n", c.dataDir, state, reads)
	if c.insecure {
		fmt.Fprintf(w, "  WARNING    --insecure: no TLS, no users. Whoever reaches these ports may read and write everything.\n")
	} else {
		fmt.Fprintf(w, "  note       no TLS, no users: loopback only\n")
	}
	fmt.Fprintf(w, "  ready in %s · next, in a second terminal:\n", took.Round(time.Millisecond))
	fmt.Fprintf(w, "    %s put hello world\n    %s get hello\n    %s status\n", kvctl, kvctl, kvctl)
	fmt.Fprintf(w, "    %s quick%s\n", kvbench, endpointFlag(a.Native))
	fmt.Fprintf(w, "    curl -s http://%s/api/v1/keys/hello\n", a.HTTP)
}

func endpointFlag(native string) string {
	if native == defaultListen {
		return ""
	}
	return " --endpoints " + native
}
