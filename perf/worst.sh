#!/usr/bin/env bash
# The figures of this machine's worst days, three nodes with default settings: fail-over after kill -9 of the leader,
# planned transfers of the leadership, put latency with one follower stopped, restart of a node with a gigabyte of
# data, and overload. Tables go to stdout, JSON lines to perf/out/. Needs what bench.sh needs; root for the control
# group of the overload's load generator, which is else not confined.
#
#   WORST_PARTS     what to measure (default "failover transfer stopped restart overload")
#   WORST_KILLS     kills, and transfers (default 100)
#   WORST_SECONDS   measured seconds of each run (default 10)
#   BENCH_BIN, BENCH_DIR   as for bench.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts=" ${WORST_PARTS:-failover transfer stopped restart overload} "
kills=${WORST_KILLS:-100}
seconds=${WORST_SECONDS:-10}
# shellcheck source=perf/lib.sh
. perf/lib.sh
report=$out/worst-$(date -u +%Y%m%dT%H%M%SZ).jsonl

wants() { [[ $parts == *" $1 "* ]]; }

# field NAME takes the number behind a name out of JSON on stdin, the first that there is.
field() { grep -o "\"$1\":[0-9.]*" | head -n 1 | cut -d: -f2; }

# follower sets $follower to the pid of a node that does not lead.
follower() {
	local leader name
	leader=$("$bin"/kvctl --endpoints "$endpoints" status -o json | grep -o '"leader_id": *"[^"]*"' | head -n 1 | cut -d'"' -f4)
	for name in "${names[@]}"; do
		[[ $name == "$leader" ]] || { follower=$(<"$work/$name.pid") follower_name=$name; return; }
	done
}

start_cluster 3

if wants failover; then
	say "fail-over: $kills kills"
	"$bin"/kvbench failover --endpoints "$endpoints" --kills "$kills" --kill "perf/kill-node.sh '$work' \$KVBENCH_LEADER_PID" -o json >>"$report"
	tail -n 1 "$report" | { read -r line; echo "fail-over, $kills kills: next write after p50 $(field p50 <<<"$line") us, p99 $(field p99 <<<"$line") us, lost $(field lost <<<"$line")"; }
	pids_of "${names[@]}"
fi

if wants transfer; then
	say "planned transfers: $kills"
	"$bin"/kvbench failover --endpoints "$endpoints" --kills "$kills" --settle 300ms --kill "'$bin'/kvctl --endpoints '$endpoints' move-leader >/dev/null" -o json >>"$report"
	tail -n 1 "$report" | { read -r line; echo "planned transfer, $kills times: longest write across it p50 $(field write_p50 <<<"$line") us, p99 $(field write_p99 <<<"$line") us, lost $(field lost <<<"$line")"; }
fi

if wants stopped; then
	run=("$bin"/kvbench run --endpoints "$endpoints" --workload put --concurrency 16 --duration "${seconds}s" --skip-load -o json)
	for round in 1 2 3; do
		say "puts of 16 callers, round $round: all nodes, then one follower stopped"
		whole=$("${run[@]}" | tee -a "$report" | field p99)
		follower
		kill -STOP "$follower"
		less=$("${run[@]}" | tee -a "$report" | field p99)
		kill -CONT "$follower"
		echo "put of 16 callers, p99: $whole us with all nodes, $less us with a follower stopped"
		sleep 3
	done
fi

if wants restart; then
	say "restart: loading a gigabyte"
	"$bin"/kvbench run --endpoints "$endpoints" --workload get --keys 1000000 --value-size 1000 --duration 1s --key-prefix big/ -o json 2>/dev/null >>"$report"
	for round in 1 2 3; do
		follower
		before=$follower
		perf/kill-node.sh "$work" "$follower"
		while [[ $(<"$work/$follower_name.pid") == "$before" ]]; do sleep 0.005; done
		begun=$(date +%s%3N)
		for i in "${!names[@]}"; do
			[[ ${names[i]} != "$follower_name" ]] || until ready "${metrics[i]}"; do sleep 0.01; done
		done
		echo "restart of $follower_name after kill -9, $(du -sm "$work/$follower_name" | cut -f1) MB on disk: ready after $(($(date +%s%3N) - begun)) ms"
	done
fi

if wants overload; then
	cores=(--cores 0.5)
	[[ $(id -u) == 0 ]] || { cores=(); say "not root: the load generator is not confined"; }
	pids_of "${names[@]}"
	"$bin"/kvbench overload --endpoints "$endpoints" --server-pid "$pids" --duration "${seconds}s" "${cores[@]}" | tee -a "$out/overload.txt"
fi
stop_servers
echo "JSON: $report"
