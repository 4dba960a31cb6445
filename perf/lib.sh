# Shared by the scripts of this folder that start servers: sourced, not run. The sourcing script has set `set -euo
# pipefail` and stands in the project's root.
#
#   BENCH_BIN   the binaries to measure (default bin, built if they are not there)
#   BENCH_DIR   where the data lies: the disk that is measured (default perf/out)

out=perf/out
bin=${BENCH_BIN:-bin}
dir=${BENCH_DIR:-$out}
mkdir -p "$out" "$dir"
[[ -e $out/.gitignore ]] || echo '*' >"$out/.gitignore"
if [[ ! -x $bin/kvstore || ! -x $bin/kvbench || ! -x $bin/kvctl ]]; then
	[[ $bin == bin ]] || { echo "no kvstore, kvbench and kvctl in $bin" >&2; exit 2; }
	make build >&2
fi
work=$(mktemp -d "$dir/bench.XXXXXX")
keepers=()

say() { echo "$(basename "$0" .sh): $*" >&2; }

# keep NAME COMMAND… runs a server with its process id in $work/NAME.pid, and again only when kill-node.sh
# has ended it, two seconds later: by then the others have elected. Ends with the server on SIGTERM. Runs in
# the background; the script ends it, not the terminal.
keep() {
	local name=$1 pid='' stopping=''
	shift
	trap - EXIT
	trap '' INT
	trap 'stopping=1; [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true' TERM
	while :; do
		"$@" >>"$work/$name.log" 2>&1 &
		pid=$!
		# The signal may have come before there was a process to pass it on to.
		[[ -z $stopping ]] || kill -TERM "$pid" 2>/dev/null || true
		echo "$pid" >"$work/$name.new"
		mv "$work/$name.new" "$work/$name.pid"
		# A signal ends wait early; wait once more then, until the server itself has ended.
		while kill -0 "$pid" 2>/dev/null; do wait "$pid" 2>/dev/null || true; done
		pid=''
		[[ -z $stopping && -e $work/$name.killed ]] || break
		rm "$work/$name.killed"
		sleep 2 &
		wait $! || true
		[[ -z $stopping ]] || break
	done
	rm -f "$work/$name.pid"
}

# stop_servers ends our own servers in order, through their keepers, and waits for them.
stop_servers() {
	local k
	for k in "${keepers[@]}"; do kill -TERM "$k" 2>/dev/null || true; done
	for k in "${keepers[@]}"; do wait "$k" 2>/dev/null || true; done
	keepers=()
}

finish() {
	local code=$?
	trap - EXIT
	stop_servers
	if ((code != 0)); then
		local log
		for log in "$work"/*.log; do
			[[ -s $log ]] || continue
			say "failed; the last words in $(basename "$log"):"
			tail -n 20 "$log" >&2
		done
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

# ready PORT asks a node's /readyz.
ready() {
	local line=
	{ exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || return 1
	printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
	IFS= read -r -t 2 line <&3 || true
	exec 3<&- 3>&-
	[[ $line == *' 200 '* ]]
}

# pids_of NAMES… sets $pids to their process ids with commas, waiting for their keepers to write them.
pids_of() {
	local name
	pids=
	for name in "$@"; do
		for ((i = 0; i < 100; i++)); do [[ -s $work/$name.pid ]] && break || sleep 0.05; done
		if [[ ! -s $work/$name.pid ]]; then
			say "$name did not start"
			exit 1
		fi
		pids+=${pids:+,}$(<"$work/$name.pid")
	done
}

# start_cluster N [LABEL] starts a new cluster of N nodes and waits until all are ready. Sets $endpoints, $grpc_endpoints,
# $rest_endpoints, $metrics_endpoints and $pids, and of each node in order its name in names and its metrics port in
# metrics. Two clusters at once of the same size need labels.
start_cluster() {
	local n=$1 label=${2:-$1} i name native=() grpc=() http=() raft=() members='' found=()
	names=() metrics=()
	for ((i = 0; i < n; i++)); do
		name=kvstore-$label-$((i + 1)) names+=("$name")
		free_port; native+=("$port")
		free_port; grpc+=("$port")
		free_port; http+=("$port")
		free_port; metrics+=("$port")
		free_port; raft+=("$port")
		members+=${members:+,}$name=127.0.0.1:$port
	done
	((n == 1)) || found=(--initial-cluster "$members")
	endpoints= grpc_endpoints= rest_endpoints= metrics_endpoints=
	for ((i = 0; i < n; i++)); do
		endpoints+=${endpoints:+,}127.0.0.1:${native[i]}
		grpc_endpoints+=${grpc_endpoints:+,}127.0.0.1:${grpc[i]}
		rest_endpoints+=${rest_endpoints:+,}127.0.0.1:${http[i]}
		metrics_endpoints+=${metrics_endpoints:+,}127.0.0.1:${metrics[i]}
		keep "${names[i]}" "$bin"/kvstore --node-id "${names[i]}" --data-dir "$work/${names[i]}" "${found[@]}" \
			--listen "127.0.0.1:${native[i]}" --grpc-listen "127.0.0.1:${grpc[i]}" --http-listen "127.0.0.1:${http[i]}" \
			--raft-listen "127.0.0.1:${raft[i]}" --metrics-listen "127.0.0.1:${metrics[i]}" &
		keepers+=($!)
	done
	pids_of "${names[@]}"
	local deadline=$((SECONDS + 30))
	for ((i = 0; i < n; i++)); do
		until ready "${metrics[i]}"; do
			if [[ ! -e $work/${names[i]}.pid ]]; then
				say "${names[i]} ended before it was ready"
				exit 1
			fi
			if ((SECONDS > deadline)); then
				say "${names[i]} was not ready after 30 seconds"
				exit 1
			fi
			sleep 0.1
		done
	done
}

# build_peers builds the driver of the peers, which is a node of etcd too, and sets $peers; says so and fails where it
# cannot, as without the network at the first time.
build_peers() {
	# A copy of the module files, since the store's own may have moved on: building must not change the tree.
	cp bench/peers/go.mod "$out/peers.mod"
	cp bench/peers/go.sum "$out/peers.sum"
	say "building bench/peers"
	if ! go build -C bench/peers -trimpath -buildvcs=false -mod=mod "-modfile=$PWD/$out/peers.mod" -o "$PWD/$out/peers" . >&2; then
		say "the peers are left out: their driver cannot be built"
		return 1
	fi
	peers=$out/peers
}

# start_etcd starts three nodes of etcd with its default settings. Sets $endpoints and $pids; the driver waits for
# the leader.
start_etcd() {
	local i client=() between=() members='' nodes=()
	for i in 0 1 2; do
		nodes+=("etcd-$((i + 1))")
		free_port; client+=("$port")
		free_port; between+=("$port")
		members+=${members:+,}${nodes[i]}=http://127.0.0.1:$port
	done
	endpoints=
	for i in 0 1 2; do
		endpoints+=${endpoints:+,}127.0.0.1:${client[i]}
		keep "${nodes[i]}" "$peers" etcd --name "${nodes[i]}" --data-dir "$work/${nodes[i]}" \
			--listen "127.0.0.1:${client[i]}" --listen-peer "127.0.0.1:${between[i]}" --initial-cluster "$members" &
		keepers+=($!)
	done
	pids_of "${nodes[@]}"
}

# start_redis starts a redis-server that keeps everything in memory and nothing on disk. Sets $endpoints and $pids.
start_redis() {
	free_port
	endpoints=127.0.0.1:$port
	keep redis redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --dir "$work" --daemonize no &
	keepers+=($!)
	pids_of redis
}
