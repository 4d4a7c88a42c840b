#!/usr/bin/env bash
# A bounded part of the benches, as CI runs it: the whole pipeline beside the same path on a hash map, at sizes that fit any machine.
# Absolute times mean nothing on a shared machine; the ratio within one process does, and it is the gate.
set -euo pipefail
cd "$(dirname "$0")/.."

export WEIR_BENCH_FLOWS_MAX="${WEIR_BENCH_FLOWS_MAX:-1000000}"
bash ci/setup.sh
cargo bench --locked --quiet -p weir-bench --bench pipeline

# Nanoseconds per packet: the median of a round of 16,384 packets.
nanos() { jq '.median.point_estimate / 16384' "target/criterion/$1/established_dnat_vxlan/$2/new/estimates.json"; }
for flows in 1000 100000 1000000; do
  [ "$flows" -le "$WEIR_BENCH_FLOWS_MAX" ] || continue
  ours=$(nanos pipeline "$flows"); map=$(nanos pipeline_hashbrown "$flows")
  printf '%8d flows: %6.1f ns a packet, %6.1f on hashbrown\n' "$flows" "$ours" "$map"
  # From 100,000 flows on the batches must pay: below, everything is in the cache whatever the table.
  if [ "$flows" -ge 100000 ] && ! jq -ne "$map >= 1.5 * $ours" >/dev/null; then
    echo "bench: FAILED: the pipeline is less than 1.5 times as fast as on a hash map" >&2
    exit 1
  fi
done
echo "bench: as fast as it was"
