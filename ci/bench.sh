#!/usr/bin/env bash
# A bounded part of the benches, as CI runs it, and what must hold on any machine: instruction counts against their baseline, and
# ratios within one process. Absolute times mean nothing on a shared machine and are no gate.
set -euo pipefail
cd "$(dirname "$0")/.."

export WEIR_BENCH_FLOWS_MAX="${WEIR_BENCH_FLOWS_MAX:-1000000}"
bash ci/setup.sh
bash ci/instructions.sh

echo "bench: the whole path to $WEIR_BENCH_FLOWS_MAX flows"
cargo bench --locked --quiet -p weir-bench --bench pipeline -- '^(pipeline(_hashbrown)?|hostile)/'

# Nanoseconds per packet: the median of a round of 16,384 packets.
nanos() { jq '.median.point_estimate / 16384' "target/criterion/$1/new/estimates.json"; }
failed=0
# must A FACTOR B WHAT: A is at least FACTOR times B.
must() { jq -ne "$1 >= $2 * $3" >/dev/null || { echo "bench: FAILED: $4" >&2; failed=1; }; }

for flows in 1000 100000 1000000; do
  [ "$flows" -le "$WEIR_BENCH_FLOWS_MAX" ] || continue
  ours=$(nanos "pipeline/established_dnat_vxlan/$flows"); map=$(nanos "pipeline_hashbrown/established_dnat_vxlan/$flows")
  printf '%8d flows: %6.1f ns a packet, %6.1f on hashbrown\n' "$flows" "$ours" "$map"
  # From 100,000 flows on the batches must pay: below, everything is in the cache whatever the table.
  case $flows in
    100000) must "$map" 1.5 "$ours" "less than 1.5 times as fast as on a hash map" ;;
    1000000) must "$map" 2.5 "$ours" "less than 2.5 times as fast as on a hash map" ;;
  esac
done

flows=$((WEIR_BENCH_FLOWS_MAX < 100000 ? WEIR_BENCH_FLOWS_MAX : 100000))
benign=$(nanos "hostile/benign_miss/$flows")
for attack in colliding_under_key_0 colliding_under_the_key syn_flood first_fragments later_fragments malformed; do
  cost=$(nanos "hostile/$attack/$flows")
  printf '%-24s %6.1f ns a packet, %.1f times a benign miss\n' "$attack" "$cost" "$(jq -n "$cost / $benign")"
  must "$benign * 2" 1 "$cost" "$attack costs over twice a benign miss"
done
[ $failed -eq 0 ] || exit 1
echo "bench: as fast as it was"
