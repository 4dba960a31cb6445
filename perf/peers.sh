#!/usr/bin/env bash
# Three nodes of KVStore beside three of etcd and a Redis, by turns in the same closed loop: the tables of
# docs/performance.md, with a verdict on each target. They go to stdout, JSON lines to perf/out/. etcd is the version that
# bench/peers/go.mod pins; Redis is the redis-server in PATH (apt-get install redis-server) and is left out if there is none.
#
#   PEERS_PAIRS     turns of each side for each row (default 5)
#   PEERS_SECONDS   measured seconds of each turn (default 2)
#   PEERS_GROWTH    records of the node that is compared with one of 100,000 (default 10,000,000: takes minutes and
#                   gigabytes of disk; 0: none)
#   PEERS_PAGE      a page whose part between the markers is replaced, such as docs/performance.md (default: none)
#   BENCH_BIN, BENCH_DIR   as for bench.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
growth=${PEERS_GROWTH:-10000000}
# shellcheck source=perf/lib.sh
. perf/lib.sh
report=$out/peers-$(date -u +%Y%m%dT%H%M%SZ).jsonl
build_peers

if ((growth > 0)); then
	start_cluster 1 few
	few=$endpoints few_pids=$pids
	start_cluster 1 many
	say "a node with $growth records beside one with 100000"
	"$bin"/kvbench growth --endpoints "$endpoints" --server-pid "$pids" --small "$few" --small-pid "$few_pids" --keys "$growth" -o json >>"$report"
	stop_servers
	rm -rf "$work"/kvstore-*/
fi

start_etcd
compare=(--etcd "$endpoints" --etcd-pid "$pids")
if command -v redis-server >/dev/null; then
	start_redis
	compare+=(--redis "$endpoints" --redis-pid "$pids" --redis-benchmark "$(command -v redis-benchmark || true)")
fi
start_cluster 3
"$peers" compare "${compare[@]}" --kvstore "$endpoints" --kvstore-pid "$pids" --metrics "$metrics_endpoints" --dir "$work" \
	--pairs "${PEERS_PAIRS:-5}" --duration "${PEERS_SECONDS:-2}s" --commit "$(git rev-parse HEAD 2>/dev/null || echo unknown)" >>"$report"
stop_servers

echo
"$peers" table "$report"
[[ -z ${PEERS_PAGE:-} ]] || "$peers" table --into "$PEERS_PAGE" "$report"
echo
echo "JSON: $report"
