#!/usr/bin/env bash
# The same traffic through Weir and through the kernel's own ways, side by side in one run: prints one table and writes
# target/peers.json. Needs root. Everything happens in namespaces of its own, which are removed at the end.
# usage: bench/peers/run.sh [--quick]
set -euo pipefail
cd "$(dirname "$0")/../.."

[ "$(id -u)" -eq 0 ] || { echo "peers: needs root, for namespaces and AF_XDP" >&2; exit 2; }
cargo build --release --locked --quiet -p weir-control -p weir-dataplane -p weir-bench --bins
exec python3 bench/peers/peers.py "$@"
