#!/usr/bin/env bash
# Ends a node of bench.sh with SIGKILL and returns when its process is gone. The node's keeper starts it again.
#   kill-node.sh DIR PID    DIR holds a NAME.pid for each process that bench.sh started; another PID is refused
set -euo pipefail
dir=$1 pid=$2
for file in "$dir"/*.pid; do
	if [[ $(<"$file") == "$pid" ]]; then
		touch "${file%.pid}.killed"
		kill -KILL "$pid"
		while kill -0 "$pid" 2>/dev/null; do sleep 0.002; done
		exit 0
	fi
done
echo "kill-node: process $pid is none of those that this run started" >&2
exit 1
