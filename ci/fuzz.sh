#!/usr/bin/env bash
# Asks the oracle much more than the test suite does: random clusters and packets, tables against the plain evaluators.
#
#   WEIR_PAIRS=100000000   questions (from, to, protocol, port)
#   WEIR_SEED=N            first seed; the default is another one every day
#
# Prints counts and seeds. A difference fails and is printed as a minimal case file; WEIR_SEED=<its seed> WEIR_PAIRS=1 repeats it.
set -euo pipefail
cd "$(dirname "$0")/.."

export WEIR_PAIRS="${WEIR_PAIRS:-100000000}"
export WEIR_SEED="${WEIR_SEED:-$(date +%Y%m%d)000000}"
export RUST_BACKTRACE="${RUST_BACKTRACE:-0}"

printf 'fuzz: %s questions from seed %s on\n' "$WEIR_PAIRS" "$WEIR_SEED"
# No link-time optimisation: it costs more minutes than it saves.
export CARGO_PROFILE_RELEASE_LTO=off
cargo test --release --locked --package weir-control --test oracle -- --nocapture
printf 'fuzz: no difference in %ds\n' "$SECONDS"
