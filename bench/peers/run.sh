#!/usr/bin/env bash
# The same traffic through Weir and through others, side by side in one run: prints one table and keeps every round in
# target/peers.json. Needs root. Everything happens in namespaces of its own, which are removed at the end, or by the next run.
# usage: bench/peers/run.sh [--quick] [--rows REGEX] [--peers REGEX] [--rounds N] [--secs S] [--list] [--report]
set -euo pipefail
cd "$(dirname "$0")/../.."

[ "$(id -u)" -eq 0 ] || { echo "peers: needs root, for namespaces and AF_XDP" >&2; exit 2; }
bash ci/setup.sh peers
cargo build --release --locked --quiet -p weir-control -p weir-dataplane -p weir-bench --bin weir --bin weir-dataplane --bin flood
exec python3 bench/peers/peers.py "$@"
