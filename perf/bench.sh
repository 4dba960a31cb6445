#!/usr/bin/env bash
# The benchmark report of this machine: its floor, then a real node under put, get and mixed load at 1, 16
# and 256 callers. Tables go to stdout, JSON lines to perf/out/. Needs bash and what `make build` needs.
#
#   BENCH_SECONDS   measured seconds of each run (default 5)
#   BENCH_DIR       where the data lies: the disk that is measured (default perf/out)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${BENCH_SECONDS:-5}
out=perf/out
dir=${BENCH_DIR:-$out}
mkdir -p "$out" "$dir"
[[ -e $out/.gitignore ]] || echo '*' >"$out/.gitignore"
[[ -x bin/kvstore && -x bin/kvbench ]] || make build >&2

work=$(mktemp -d "$dir/bench.XXXXXX")
report=$out/bench-$(date -u +%Y%m%dT%H%M%SZ).jsonl
server=

# Ends our own server, by its process id, and removes its data.
finish() {
	local code=$?
	trap - EXIT
	if [[ -n $server ]]; then
		kill -TERM "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
	if ((code != 0)) && [[ -s $work/server.log ]]; then
		echo "bench: failed; the server's last words:" >&2
		tail -n 30 "$work/server.log" >&2
	fi
	rm -rf "$work"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# free_port sets $port to a loopback port on which nobody listens, each time another one.
port=$((20000 + RANDOM % 10000))
free_port() {
	while port=$((port + 1)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
}

# ready asks the node's /readyz.
ready() {
	local line=
	{ exec 3<>"/dev/tcp/127.0.0.1/$metrics"; } 2>/dev/null || return 1
	printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
	IFS= read -r -t 2 line <&3 || true
	exec 3<&- 3>&-
	[[ $line == *' 200 '* ]]
}

free_port; native=$port
free_port; grpc=$port
free_port; http=$port
free_port; raft=$port
free_port; metrics=$port

echo "bench: floor of $dir" >&2
bin/kvbench floor --dir "$dir" -o json >>"$report"

bin/kvstore --data-dir "$work/data" --listen "127.0.0.1:$native" --grpc-listen "127.0.0.1:$grpc" \
	--http-listen "127.0.0.1:$http" --raft-listen "127.0.0.1:$raft" --metrics-listen "127.0.0.1:$metrics" \
	>"$work/server.log" 2>&1 &
server=$!
for ((i = 0; ; i++)); do
	if ready; then break; fi
	if ! kill -0 "$server" 2>/dev/null; then
		echo "bench: the server ended before it was ready" >&2
		exit 1
	fi
	if ((i == 300)); then
		echo "bench: the server was not ready after 30 seconds" >&2
		exit 1
	fi
	sleep 0.1
done

load=()
for workload in put get mixed; do
	for callers in 1 16 256; do
		echo "bench: $workload, $callers callers, ${seconds}s" >&2
		bin/kvbench run --endpoints "127.0.0.1:$native" --server-pid "$server" --workload "$workload" --reads 0.95 \
			--value-size 128 --concurrency "$callers" --duration "${seconds}s" "${load[@]}" -o json >>"$report"
		# The first run that reads has loaded the keys.
		[[ $workload == put ]] || load=(--skip-load)
	done
done

bin/kvbench report "$report"
echo
echo "values of 128 B, 100000 keys, mixed = 95 % reads, closed loop, one node, fsync on; JSON: $report"
