#!/usr/bin/env bash
# Counts the instructions of the main rows under callgrind and compares them with bench/instructions.txt. A time depends on the
# machine and on what else runs there; a count depends on the program and the compiler alone.
#   ci/instructions.sh          compare: a row that takes over 3 % more fails
#   ci/instructions.sh --save   write what was counted as the new baseline
set -euo pipefail
cd "$(dirname "$0")/.."

baseline=bench/instructions.txt
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

cargo build --locked --quiet --profile bench -p weir-bench --bin rounds
for row in established_dnat_vxlan established_decap new_connection policy encap decap lookup_hit; do
  valgrind --quiet --tool=callgrind --callgrind-out-file="$out/$row" --toggle-collect='*counted*' \
    target/release/rounds "$row" 1000 1 >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
  # A round has 16,384 operations.
  awk -v row="$row" '$1 == "totals:" { printf "%s %.1f\n", row, $2 / 16384 }' "$out/$row"
done >"$out/counts"

if [ "${1:-}" = --save ]; then
  { printf '# Instructions an operation, 1,000 flows; %s. Written by ci/instructions.sh --save.\n' "$(rustc --version)"; cat "$out/counts"; } >"$baseline"
fi
awk 'NR == FNR { if ($1 != "#") was[$1] = $2; next }
  { change = was[$1] ? 100 * ($2 / was[$1] - 1) : 0
    printf "%-24s %8.1f instructions, baseline %8.1f, %+5.1f %%\n", $1, $2, was[$1], change
    seen++
    if (!was[$1] || change > 3) bad = bad " " $1
    if (change < -3) better = better " " $1 }
  END { for (row in was) known++
    if (seen == 0 || seen < known) { print "instructions: FAILED: rows are missing" > "/dev/stderr"; exit 1 }
    if (better) print "instructions: better; renew the baseline with --save:" better
    if (bad) { print "instructions: FAILED: more than the baseline allows, or not in it:" bad > "/dev/stderr"; exit 1 } }' "$baseline" "$out/counts"
echo "instructions: no more than they were"
