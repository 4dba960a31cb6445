#!/usr/bin/env bash
# Whether the latencies hold their targets at half of the highest rate: starts three nodes on loopback, drives them, and prints
# the table of docs/performance.md, "Latency at half the rate". JSON goes to perf/out/.
#
#   LATENCY_SECONDS    measured seconds at half of each rate (default 10)
#   LATENCY_PAGE       a page whose part between the markers is replaced, such as docs/performance.md (default: none)
#   BENCH_BIN, BENCH_DIR   as for bench.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=perf/lib.sh
. perf/lib.sh
report=$out/latency-$(date -u +%Y%m%dT%H%M%SZ).json
into=()
[[ -z ${LATENCY_PAGE:-} ]] || into=(--into "$LATENCY_PAGE")

start_cluster 3
"$bin"/kvbench latency --endpoints "$endpoints" --duration "${LATENCY_SECONDS:-10}s" \
	--commit "$(git rev-parse HEAD 2>/dev/null || echo unknown)" "${into[@]}" -o json >"$report"
stop_servers
"$bin"/kvbench report "$report"
echo "JSON: $report"
