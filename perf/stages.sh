#!/usr/bin/env bash
# Where the time of one put and of one get goes: starts three nodes on loopback, drives them, and prints the tables of
# docs/performance.md, "Where the time goes". JSON goes to perf/out/.
#
#   STAGES_SECONDS    measured seconds of each run (default 20: a checkpoint comes every few seconds, and belongs to a put)
#   STAGES_PAGE       a page whose part between the markers is replaced, such as docs/performance.md (default: none)
#   BENCH_BIN, BENCH_DIR   as for bench.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=perf/lib.sh
. perf/lib.sh
report=$out/stages-$(date -u +%Y%m%dT%H%M%SZ).json
into=()
[[ -z ${STAGES_PAGE:-} ]] || into=(--into "$STAGES_PAGE")

start_cluster 3
"$bin"/kvbench stages --endpoints "$endpoints" --server-pid "$pids" --metrics "$metrics_endpoints" --duration "${STAGES_SECONDS:-20}s" \
	--commit "$(git rev-parse HEAD 2>/dev/null || echo unknown)" "${into[@]}" -o json >"$report"
stop_servers
"$bin"/kvbench report "$report"
echo "JSON: $report"
