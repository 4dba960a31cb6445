#!/usr/bin/env bash
# Makes cmd/kvstore/default.pgo, by which the Go compiler optimizes the server: CPU profiles of the leader and of a
# follower of three nodes, under each workload that counts, put together. Run it with nothing else on the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. perf/lib.sh

seconds=${SECONDS_EACH:-12}
profiles=()
for load in "put 256" "get 256" "mixed 256" "txn 64" "put 1"; do
	read -r workload callers <<<"$load"
	say "$workload, $callers callers"
	start_cluster 3 "pgo-$workload-$callers"
	args=(--endpoints "$endpoints" --keys 100000 --value-size 128 --workload "$workload" --concurrency "$callers")
	"$bin"/kvbench run "${args[@]}" --duration 1s -o json >/dev/null
	"$bin"/kvbench run "${args[@]}" --skip-load --duration "$((seconds + 2))s" -o json >/dev/null &
	driver=$!
	sleep 1
	profilers=()
	for port in "${metrics[@]}"; do
		file=$work/$workload-$callers-$port.pprof
		"$bin"/kvctl debug profile cpu --seconds "$seconds" --metrics "127.0.0.1:$port" --file "$file" >/dev/null &
		profilers+=($!)
		profiles+=("$file")
	done
	wait "${profilers[@]}"
	wait "$driver"
	stop_servers
done
go run ./perf/pgo "${profiles[@]}" >"$work/default.pgo"
mv "$work/default.pgo" cmd/kvstore/default.pgo
say "cmd/kvstore/default.pgo: $(wc -c <cmd/kvstore/default.pgo) bytes"
