#!/usr/bin/env bash
# Profiles of three nodes under a workload: starts a cluster on loopback, drives it, and leaves CPU, heap, mutex and block
# profiles of the leader and one follower in perf/out/profile-WORKLOAD-TIME/, each with a flame graph (SVG), and the report
# of the load. The CPU profile is made alone, before mutex and block, whose sampling costs CPU time.
#
#   WORKLOAD          put, get, get-uniform, mixed, txn (256 callers; txn 64), pipeline (gets, 16 × 128), lone-put, lone-get,
#                     or another workload of kvbench run with 256 callers (default put)
#   PROFILE_SECONDS   seconds of the CPU profile; mutex and block take half of it (default 10)
#   BENCH_BIN, BENCH_DIR   as for bench.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
workload=${WORKLOAD:-put}
seconds=${PROFILE_SECONDS:-10}
# shellcheck source=perf/lib.sh
. perf/lib.sh

load=(--keys 100000 --value-size 128 --concurrency 256)
case $workload in
get) load+=(--workload get --distribution hot) ;;
get-uniform) load+=(--workload get) ;;
txn) load+=(--workload txn --concurrency 64) ;;
pipeline) load+=(--workload get --concurrency 16 --pipeline 128 --conns 16) ;;
lone-*) load+=(--workload "${workload#lone-}" --concurrency 1) ;;
*) load+=(--workload "$workload") ;;
esac
half=$((seconds / 2 > 0 ? seconds / 2 : 1))
to=$out/profile-$workload-$(date -u +%Y%m%dT%H%M%SZ)

start_cluster 3
mkdir -p "$to"

# A wrong workload fails here, not beside the profiles. It loads the keys, too.
"$bin"/kvbench run --endpoints "$endpoints" "${load[@]}" --duration 1s -o json >/dev/null
leader=$("$bin"/kvctl --endpoints "$endpoints" status -o json | grep -o '"leader_id": *"[^"]*"' | head -n 1 | cut -d'"' -f4)
for ((i = 0; i < 3; i++)); do
	if [[ ${names[i]} == "$leader" ]]; then leader_port=${metrics[i]}; else follower_port=${metrics[i]}; fi
done

# both KIND SECONDS fetches one kind of profile of both nodes at once.
both() {
	local pids=() p
	"$bin"/kvctl debug profile "$1" --seconds "$2" --metrics "127.0.0.1:$leader_port" --file "$to/leader-$1.pprof" >&2 & pids+=($!)
	"$bin"/kvctl debug profile "$1" --seconds "$2" --metrics "127.0.0.1:$follower_port" --file "$to/follower-$1.pprof" >&2 & pids+=($!)
	for p in "${pids[@]}"; do wait "$p"; done
}

say "$workload for $((seconds + 2 * half + 3)) s, profiles of $leader, which leads, and of a follower"
"$bin"/kvbench run --endpoints "$endpoints" --server-pid "$pids" "${load[@]}" --skip-load --duration "$((seconds + 2 * half + 3))s" >"$to/load.txt" 2>&1 &
driver=$!
sleep 1 # kvbench's warm-up
both cpu "$seconds"
both mutex "$half"
both block "$half"
both heap 1
wait "$driver" || { cat "$to/load.txt" >&2; exit 1; }
stop_servers

go build -o "$out/flame" ./perf/flame
for profile in "$to"/*.pprof; do "$out/flame" "$profile" >"${profile%.pprof}.svg"; done

cat "$to/load.txt"
for node in leader follower; do
	echo
	echo "$node, CPU:"
	go tool pprof -top -nodecount 15 "$to/$node-cpu.pprof" 2>/dev/null | tail -n +4
done
echo
echo "profiles and flame graphs: $to"
