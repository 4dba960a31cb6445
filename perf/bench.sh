#!/usr/bin/env bash
# The benchmark report of this machine: its floor, then one node and a cluster of three under load at 1, 16
# and 256 callers, then fail-over; with BENCH_ETCD=1 three nodes of etcd under the same load; then a
# node of many records beside one of few, what gRPC and REST cost beside empty servers, and reads that three nodes share beside those of one. Tables and
# the verdict on the targets go to stdout, JSON lines to perf/out/. Needs bash and what `make build` needs.
#
#   BENCH_SECONDS   measured seconds of each run (default 5)
#   BENCH_NODES     sizes to measure (default "1 3")
#   BENCH_ROUNDS    rounds of two seconds for each part of the comparisons of doors and of reads (default 5; 0: none)
#   BENCH_GROWTH    records of the node that is compared with one of 100,000 (default 10,000,000; 0: none)
#   BENCH_KILLS     leaders to kill for the fail-over (default 10; 0: none)
#   BENCH_BIN       the binaries to measure (default bin, built if they are not there)
#   BENCH_DIR       where the data lies: the disk that is measured (default perf/out)
#   BENCH_ETCD      1: etcd beside (default 0). Building it needs the network once; `make bench-peers` compares by turns
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${BENCH_SECONDS:-5}
kills=${BENCH_KILLS:-10}
rounds=${BENCH_ROUNDS:-5}
growth=${BENCH_GROWTH:-10000000}
# shellcheck source=perf/lib.sh
. perf/lib.sh

report=$out/bench-$(date -u +%Y%m%dT%H%M%SZ).jsonl

# drive DRIVER… measures what $endpoints name: the driver is a command that takes the flags of `kvbench run`.
# $rows holds "WORKLOAD CALLERS [FLAG…]" lines.
drive() {
	local workload callers flags load=()
	while read -r workload callers flags; do
		say "$title: $workload, $callers callers${flags:+, $flags}, ${seconds}s"
		# shellcheck disable=SC2086 # flags are words
		"$@" --endpoints "$endpoints" --server-pid "$pids" --workload "$workload" --reads 0.95 --value-size 128 \
			--keys 100000 --concurrency "$callers" --duration "${seconds}s" $flags "${load[@]}" </dev/null >>"$report"
		# The first run that reads has loaded the keys.
		[[ $workload == put ]] || load=(--skip-load)
	done <<<"$rows"
}

rows_basic=$'put 1\nput 16\nput 256\nget 1\nget 16\nget 256'
rows_all=$rows_basic$'\nmixed 1\nmixed 16\nmixed 256'

say "floor of $dir"
"$bin"/kvbench floor --dir "$dir" -o json >>"$report"

for nodes in ${BENCH_NODES:-1 3}; do
	title="$nodes node(s)"
	rows=$rows_all$'\nget 256 --distribution hot\nget 16 --pipeline 128 --conns 16\ntxn 64'
	((nodes == 1)) || rows+=$'\nycsb-a 256'
	start_cluster "$nodes"
	drive "$bin"/kvbench run -o json --metrics "$metrics_endpoints"
	if ((nodes > 1 && kills > 0)); then
		say "$title: fail-over, $kills kills"
		"$bin"/kvbench failover --endpoints "$endpoints" --kills "$kills" --kill "perf/kill-node.sh '$work' \$KVBENCH_LEADER_PID" \
			-o json >>"$report"
	fi
	stop_servers
	rm -rf "$work"/kvstore-*/
done

if [[ " ${BENCH_NODES:-1 3} " == *" 3 "* && ${BENCH_ETCD:-0} == 1 ]] && build_peers; then
	title="etcd, 3 nodes"
	rows=$rows_basic$'\nmixed 256'
	start_etcd
	drive "$peers" run --system etcd
	stop_servers
fi

if ((growth > 0)); then
	start_cluster 1
	few=$endpoints few_pids=$pids
	start_cluster 1 many
	say "a node with $growth records beside one with 100000"
	"$bin"/kvbench growth --endpoints "$endpoints" --server-pid "$pids" --small "$few" --small-pid "$few_pids" --keys "$growth" -o json >>"$report"
	stop_servers
	rm -rf "$work"/kvstore-*/
fi

if ((rounds > 0)); then
	# A new node: how much lies in a store must not decide what a door costs.
	start_cluster 1
	lone=$endpoints lone_pids=$pids
	say "doors of one node: $rounds rounds"
	"$bin"/kvbench cost --endpoints "$endpoints" --grpc "$grpc_endpoints" --rest "$rest_endpoints" --server-pid "$pids" --rounds "$rounds" \
		-o json >>"$report"
	if [[ " ${BENCH_NODES:-1 3} " == *" 3 "* ]]; then
		start_cluster 3
		say "reads of three nodes and of one: $rounds rounds"
		"$bin"/kvbench reads --endpoints "$endpoints" --server-pid "$pids" --lone "$lone" --lone-pid "$lone_pids" --rounds "$rounds" \
			-o json >>"$report"
	fi
	stop_servers
fi

echo
"$bin"/kvbench report "$report"
echo
echo "values of 128 B, 100000 keys, mixed = 95 % reads, closed loop, fsync on, servers and load on this machine; JSON: $report"
