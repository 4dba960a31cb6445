#!/usr/bin/env bash
# Runs a cluster of three nodes on this machine, each a process of its own, until Ctrl-C; `make cluster` builds
# the binaries and calls it. It stands beside the program whose flags it shows: a change of those is a change of
# this.
#
#   cmd/kvstore/cluster.sh          all three nodes; data and logs in ./kvstore-cluster, kept from run to run
#   cmd/kvstore/cluster.sh 2        node-2 alone, in the foreground: to bring back one that was killed
#   cmd/kvstore/cluster.sh 2 join   the same with an empty directory, after `kvctl member remove node-2`
#
#   KVSTORE_CLUSTER_DIR     another place for data and logs
#   KVSTORE_CLUSTER_FLAGS   further flags of kvstore, for all nodes
#
# Ports: 7000, 7010, 7020 between the nodes; 7001, 7011, 7021 binary protocol; 7003, 7013, 7023 REST; 2112,
# 2122, 2132 metrics and health. Needs bash 5.1 or newer and nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

dir=${KVSTORE_CLUSTER_DIR:-./kvstore-cluster}
read -ra extra <<<"${KVSTORE_CLUSTER_FLAGS:-}"
way=(--initial-cluster node-1=127.0.0.1:7000,node-2=127.0.0.1:7010,node-3=127.0.0.1:7020)

# command_of N: sets cmd to the command line of node N.
command_of() {
	local n=$1 port=$((7000 + 10 * ($1 - 1))) metrics=$((2112 + 10 * ($1 - 1)))
	cmd=(bin/kvstore --node-id "node-$n" --data-dir "$dir/node-$n" "${way[@]}"
		--raft-listen "127.0.0.1:$port" --listen "127.0.0.1:$((port + 1))" --grpc-listen "127.0.0.1:$((port + 2))"
		--http-listen "127.0.0.1:$((port + 3))" --metrics-listen "127.0.0.1:$metrics" "${extra[@]}")
}

if [ ! -x bin/kvstore ]; then
	echo "cluster: bin/kvstore is missing: run make cluster, or make build first" >&2
	exit 1
fi
case $* in
'') ;;
[1-3] | [1-3]' join')
	[ -z "${2:-}" ] || way=(--join 127.0.0.1:7003,127.0.0.1:7013,127.0.0.1:7023)
	command_of "$1"
	exec "${cmd[@]}"
	;;
*)
	echo "cluster: unknown arguments '$*': 1, 2 or 3, perhaps with join, or none for all three" >&2
	exit 2
	;;
esac

# get PORT PATH: the answer of an HTTP port of this machine, its status line first; nothing if nobody answers.
get() {
	(
		exec 3<>"/dev/tcp/127.0.0.1/$1" || exit
		printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" >&3
		timeout=5
		while IFS= read -r -t "$timeout" line <&3 || [ -n "${line:-}" ]; do
			printf '%s\n' "$line"
			line=
		done
	) 2>/dev/null || true
}

declare -A node_of=() # pid -> number
pid_of=()             # number -> pid
stopping=
waiting="1 2 3" # nodes that have not served yet

# stop asks all nodes to stop, once: a second SIGTERM would end them at once.
stop() {
	[ -z "$stopping" ] || return 0
	stopping=yes
	echo "cluster: stopping"
	for pid in "${!node_of[@]}"; do
		kill -TERM "$pid" 2>/dev/null || true
	done
}
trap stop INT TERM HUP

# reap waits for a node to end, or for a signal.
reap() {
	local code=0 ended=
	# bash itself would tell of a killed node too, with its whole command line.
	{ wait -n -p ended "${!node_of[@]}" || code=$?; } 2>/dev/null
	[ -n "${ended:-}" ] || return 0 # a signal came
	local n=${node_of[$ended]}
	unset "node_of[$ended]"
	if [ -n "$stopping" ]; then
		[ "$code" -eq 0 ] || echo "cluster: node-$n ended with status $code; see $dir/node-$n.log"
		return 0
	fi
	if [ "$code" -gt 128 ]; then
		echo "cluster: node-$n was ended by signal $((code - 128))"
	else
		echo "cluster: node-$n ended with status $code; the end of $dir/node-$n.log:"
		tail -n 5 "$dir/node-$n.log" | sed 's/^/    /'
	fi
	[ "${#node_of[@]}" -ge "$needed" ] || return 0
	# A directory that the others refuse never comes back.
	local back="cmd/kvstore/cluster.sh $n" end=
	[ "$code" -gt 128 ] || end=$(tail -n 1 "$dir/node-$n.log")
	case $end in
	*' was removed from the cluster'*) back="rm -r $dir/node-$n && $back join" ;;
	*'kvctl member remove'*) back="bin/kvctl member remove node-$n && rm -r $dir/node-$n && $back join" ;;
	esac
	echo "cluster: the others go on. To bring it back, in another terminal: $back"
}

# A new cluster is founded by all three; one that exists goes on with two.
needed=3
[ ! -d "$dir/node-1" ] && [ ! -d "$dir/node-2" ] && [ ! -d "$dir/node-3" ] || needed=2
mkdir -p "$dir"
# Job control gives each node a process group of its own: Ctrl-C reaches this script alone, which then stops
# them in order.
set -m
started=$SECONDS
for n in 1 2 3; do
	command_of "$n"
	echo "--- $(date '+%F %T') ${cmd[*]}" >>"$dir/node-$n.log"
	"${cmd[@]}" </dev/null >>"$dir/node-$n.log" 2>&1 &
	node_of[$!]=$n
	pid_of[n]=$!
done
set +m
echo "cluster: started three nodes; waiting until they serve (logs: $dir/node-N.log)"

told=$SECONDS
while [ -n "$waiting" ] && [ -z "$stopping" ]; do
	left=
	for n in $waiting; do
		[ -n "${node_of[${pid_of[n]}]:-}" ] || continue # it has ended
		answer=$(get $((2112 + 10 * (n - 1))) '/readyz?verbose')
		# Ready, and ours: another cluster may have the ports.
		if [[ ${answer%%$'\n'*} != *' 200 '* || $(get $((7003 + 10 * (n - 1))) /api/v1/admin/status) != *"\"pid\":${pid_of[n]},"* ]]; then
			left="$left $n"
		fi
		if [ -n "$left" ] && [ $((SECONDS - told)) -ge 10 ]; then
			told=$SECONDS
			echo "cluster: still waiting for node-$n: $(grep -F '[-]' <<<"$answer" | head -n 1 || true)"
		fi
	done
	waiting=$left
	for pid in "${!node_of[@]}"; do
		kill -0 "$pid" 2>/dev/null || reap
	done
	if [ "${#node_of[@]}" -lt "$needed" ] && [ -z "$stopping" ]; then
		stop
		failed=yes
	fi
	[ -z "$waiting" ] || sleep 0.1 || true
done

if [ -z "$stopping" ]; then
	first=${node_of[$(printf '%s\n' "${!node_of[@]}" | head -n 1)]}
	leader=$(get $((7003 + 10 * (first - 1))) /api/v1/admin/status | sed -n 's/.*"leader_id":"\([^"]*\)".*/\1/p')
	echo
	echo "KVStore: ${#node_of[@]} of three nodes on this machine, ready in $((SECONDS - started)) s, leader ${leader:-unknown}          data and logs in $dir"
	for n in 1 2 3; do
		[ -n "${node_of[${pid_of[n]}]:-}" ] || continue
		port=$((7000 + 10 * (n - 1)))
		printf '  node-%s     native 127.0.0.1:%s   rest http://127.0.0.1:%s   metrics http://127.0.0.1:%s/metrics   pid %s\n' \
			"$n" $((port + 1)) $((port + 3)) $((2112 + 10 * (n - 1))) "${pid_of[n]}"
	done
	echo "  note       no TLS, no users: loopback only"
	echo "  next, in a second terminal:"
	echo "    export KVCTL_ENDPOINTS=127.0.0.1:7001,127.0.0.1:7011,127.0.0.1:7021"
	echo "    bin/kvctl put hello world && bin/kvctl get hello && bin/kvctl status"
	echo "    bin/kvbench run --endpoints \$KVCTL_ENDPOINTS --workload ycsb-a --duration 10s"
	echo "    curl -s http://127.0.0.1:7013/api/v1/keys/hello          any node answers"
	echo "    kill -9 PID of one node: the other two go on; cmd/kvstore/cluster.sh N brings it back"
	echo "  Ctrl-C stops all three; make cluster continues with the same data"
fi

while [ "${#node_of[@]}" -gt 0 ]; do
	reap
done
if [ -n "$stopping" ] && [ -z "${failed:-}" ]; then
	echo "cluster: all nodes have stopped"
	exit 0
fi
echo "cluster: no node runs any more" >&2
exit 1
