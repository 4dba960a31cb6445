#!/usr/bin/env bash
# The durability campaign: power cuts of all three nodes, kill -9 at random instants, crashes inside the install of a
# snapshot, in batches of real clusters under load. Each batch that passed is a line in test/out/crashes.tsv, with its
# seed, so that an interrupted campaign goes on where it was; a batch that fails ends it and leaves its log beside.
#
#   test/crashes.sh            go on until the counts below are reached, then print the sums
#   test/crashes.sh --sums     print the sums only
#
#   CUTS=200 KILLS=200 INSTALLS=50   how many of each
#   MINUTES=60                       stop after the batch that goes beyond this; call it again to go on
#
# Needs Go, and for the power cuts root and loop devices. Remove test/out to begin anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=test/out
list=$out/crashes.tsv
mkdir -p "$out"
[[ -e $out/.gitignore ]] || echo '*' >"$out/.gitignore"
touch "$list"

# total KIND COLUMN adds up a column (3 crashes, 4 acknowledged writes) of the batches of one kind.
total() { awk -F'\t' -v kind="$1" -v column="$2" '$2 == kind { n += $column } END { print n + 0 }' "$list"; }

sums() {
	local kind
	printf '%-10s %8s %8s %14s\n' kind batches crashes acknowledged
	for kind in cuts kills installs; do
		printf '%-10s %8d %8d %14d\n' "$kind" "$(awk -F'\t' -v k="$kind" '$2 == k' "$list" | wc -l)" "$(total "$kind" 3)" "$(total "$kind" 4)"
	done
	echo "Each batch ended with every acknowledged write read back on every node; one that misses any does not count, and ends the campaign."
	echo "commits: $(cut -f1 "$list" | sort -u | tr '\n' ' ')"
}

if [[ ${1:-} == --sums ]]; then
	sums
	exit 0
fi

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
go build -buildvcs=false -o "$out/bin/" ./cmd/kvstore ./cmd/kvctl ./cmd/kvbench
go test -c -o "$out/crashes.test" ./test
export KVSTORE_TEST_BIN=$PWD/$out/bin

# batch KIND COUNT VARIABLE TEST runs one batch and writes its line.
batch() {
	local kind=$1 count=$2 seed log acked
	seed=$((RANDOM * 32768 * 32768 + RANDOM * 32768 + RANDOM))
	log=$out/$kind-$seed.log
	echo "$kind: $(total "$kind" 3) so far, $count more with seed $seed" >&2
	if ! (cd test && env "$3=$count" KVSTORE_TEST_SEED="$seed" ../"$out/crashes.test" -test.run "$4" -test.v -test.timeout 30m) >"$log" 2>&1; then
		tail -n 40 "$log" >&2
		echo "crashes: this batch failed: $3=$count KVSTORE_TEST_SEED=$seed go test ./test -run '$4'; all of its output: $log" >&2
		exit 1
	fi
	if grep -q '^--- SKIP' "$log"; then
		echo "crashes: this machine can't do $kind: $(grep -m1 -A1 '^--- SKIP' "$log" | tail -n 1)" >&2
		exit 1
	fi
	acked=$(grep -o '[0-9]* writes acknowledged' "$log" | awk '{ n += $1 } END { print n + 0 }')
	printf '%s\t%s\t%d\t%d\t%s\n' "$commit" "$kind" "$count" "$acked" "$seed" >>"$list"
	rm "$log"
}

# next KIND TARGET SIZE VARIABLE TEST runs one batch unless the target is reached; false: it is.
next() {
	local left=$(($2 - $(total "$1" 3)))
	((left > 0)) || return 1
	batch "$1" $((left < $3 ? left : $3)) "$4" "$5"
}

while :; do
	ran=''
	next cuts "${CUTS:-200}" 10 CLUSTER_CUTS '^TestCluster_PowerCutOfAllUnderLoad' && ran=1
	next kills "${KILLS:-200}" 20 CLUSTER_KILLS '^TestCluster_KilledUnderLoad' && ran=1
	next installs "${INSTALLS:-50}" 12 INSTALL_STEPS '^TestInstall_KilledAtEachStep' && ran=1
	[[ -n $ran ]] || break
	if ((SECONDS > ${MINUTES:-60} * 60)); then
		echo "crashes: out of time; call it again to go on" >&2
		break
	fi
done
sums
