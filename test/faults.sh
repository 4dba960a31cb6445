#!/usr/bin/env bash
# The fault campaign: run after run of TestFaults_…, each a cluster of real processes under all workloads, that meets the
# faults of one scene drawn from a seed of its own. One line per run, also in test/out/faults-SEED.tsv, so that an
# interrupted campaign goes on where it was. A run that fails leaves its log beside and the campaign goes on; the exit
# code is 1 then.
#
#   test/faults.sh             go on until DURATION is spent, then print the sums
#   test/faults.sh --sums      print the sums only
#
#   SEED=1 DURATION=10m        the runs of this campaign follow from the seed; how long all of them may take together
#   FAULT_TIME=25s             how long faults are made in one run
#   SCENES="Network Disks"     only these, in turn; all: see TestFaults_ in test/faults_test.go
#   FAULT_KINDS=kill-any,loss  only faults of these kinds; FAULT_LOADS=bank,unique only these workloads
#
# Needs Go; for disks and namespaces root, loop devices and veth: what is missing is said, and counts as a failed run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
[[ $seed =~ ^[0-9]{1,12}$ ]] || { echo "faults: SEED=$seed is no number of at most 12 digits" >&2; exit 2; }
case ${DURATION:-10m} in
*[!0-9smh]* | '' | [smh]*) echo "faults: DURATION=${DURATION:-} is not like 90s, 10m or 2h" >&2; exit 2 ;;
*h) length=$((${DURATION%h} * 3600)) ;;
*m) d=${DURATION:-10m}; length=$((${d%m} * 60)) ;;
*s) length=${DURATION%s} ;;
*) length=$DURATION ;;
esac

out=test/out
mkdir -p "$out"
[[ -e $out/.gitignore ]] || echo '*' >"$out/.gitignore"
list=$out/faults-$seed.tsv
touch "$list"

# Columns: number, scene, seconds, verdict, commit, and what the run said.
sums() {
	awk -F'\t' '
		{ runs++; seconds += $3; if ($4 != "ok") failed++; commits[$5] = 1
		  n = split($6, part, " ")
		  for (i = 1; i <= n; i++) {
			eq = index(part[i], "="); name = substr(part[i], 1, eq - 1); value = substr(part[i], eq + 1)
			if (name == "kinds" || name == "loads") {
				m = split(value, one, ",")
				for (k = 1; k <= m; k++) { split(one[k], pair, ":"); if (name == "kinds") kind[pair[1]] += pair[2]; else load[pair[1]] += pair[2] }
			} else if (name == "gap" || name == "recovery") { sub(/s.*$/, "", value); if (value + 0 > most[name]) most[name] = value + 0 }
			else sum[name] += value
		  } }
		END {
			printf "%d runs in %d s, %d failed: %d operations, %d unknown, %d checked for linearizability, %d unique writes read back\n", runs, seconds, failed, sum["done"], sum["unknown"], sum["linear"], sum["unique"]
			printf "%d faults, %d kinds that never struck, %d anomalies; longest time without a write %.2f s, longest from the end of a fault to a write %.2f s\n", sum["faults"], sum["never"], sum["anomalies"], most["gap"], most["recovery"]
			for (k in kind) printf "  fault %s: %d\n", k, kind[k] | "sort"
			close("sort")
			for (k in load) printf "  workload %s: %d\n", k, load[k] | "sort"
			close("sort")
			line = "commits:"; for (c in commits) line = line " " c; print line
		}' "$list"
	echo "to go on or repeat: make test-faults SEED=$seed DURATION=…"
}

if [[ ${1:-} == --sums ]]; then
	sums
	exit 0
fi

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || commit=$commit+
go test -c -o "$out/faults.test" ./test
# What the tests build is kept for the next run.
export KVSTORE_TEST_BUILD_DIR=$PWD/$out/bin-faults
rm -rf "$KVSTORE_TEST_BUILD_DIR"
mkdir -p "$KVSTORE_TEST_BUILD_DIR"
export FAULT_TIME=${FAULT_TIME:-25s}
all=$(cd test && "../$out/faults.test" -test.list '^TestFaults_' | sed 's/^TestFaults_//' | tr '\n' ' ')
read -r -a scenes <<<"${SCENES:-$all}"
for scene in "${scenes[@]}"; do
	# A run of none would fail within no time, and never spend DURATION.
	[[ " $all" == *" $scene "* ]] || { echo "faults: SCENES: there is no scene $scene, but: $all" >&2; exit 2; }
done

failed=0
number=$(awk 'END { print NR }' "$list")
while (($(awk -F'\t' '{ n += $3 } END { print n + 0 }' "$list") < length)); do
	number=$((number + 1))
	scene=${scenes[$(((number - 1) % ${#scenes[@]}))]}
	mine=$((10#$seed * 100000 + number))
	log=$out/faults-$mine-$scene.log
	began=$SECONDS
	verdict=ok
	(cd test && KVSTORE_TEST_SEED=$mine "../$out/faults.test" -test.run "^TestFaults_$scene\$" -test.v -test.timeout 15m) >"$log" 2>&1 || verdict=FAILED
	grep -q -- "--- PASS: TestFaults_$scene" "$log" || verdict=FAILED
	said=$(grep -o 'RUN scene=.*' "$log" | tail -n 1 | cut -c5-) || said="scene=$scene seed=$mine said nothing"
	printf '%s\t%s\t%d\t%s\t%s\t%s\n' "$number" "$scene" $((SECONDS - began)) "$verdict" "$commit" "$said" >>"$list"
	printf '%4d %s %s (%d s)\n' "$number" "$verdict" "$said" $((SECONDS - began))
	if [[ $verdict == ok ]]; then
		rm "$log"
	else
		failed=1
		echo "     its log: $log; again: FAULT_TIME=$FAULT_TIME KVSTORE_TEST_SEED=$mine go test ./test -run '^TestFaults_$scene\$' -count=1 -v"
	fi
done
sums
exit "$failed"
