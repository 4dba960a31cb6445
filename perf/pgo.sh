#!/usr/bin/env bash
# Makes cmd/kvstore/default.pgo, by which the Go compiler optimizes the server: the CPU profiles that profile.sh leaves of
# the leader and a follower of three nodes, under each workload that counts, put together. Run it with nothing else on
# the machine.
#
#   PROFILE_SECONDS, BENCH_BIN, BENCH_DIR   as for profile.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profiles=()
for workload in put get get-uniform mixed txn lone-put; do
	left=$(WORKLOAD=$workload perf/profile.sh | sed -n 's/^profiles and flame graphs: //p')
	profiles+=("$left"/{leader,follower}-cpu.pprof)
done
merged=$(mktemp)
trap 'rm -f "$merged"' EXIT
go run ./perf/pgo "${profiles[@]}" >"$merged"
cat "$merged" >cmd/kvstore/default.pgo
echo "cmd/kvstore/default.pgo: $(wc -c <cmd/kvstore/default.pgo) bytes"
