#!/usr/bin/env bash
# The whole test suite, as CI runs it: format, lints, docs, unit, property, scenario and namespace tests.
# Needs root (namespaces, AF_XDP) and ../shared (conformance cases and captures).
set -euo pipefail
cd "$(dirname "$0")/.."

started=$SECONDS
step() { printf '\n== %s (%ds)\n' "$1" $((SECONDS - started)); }
trap 'status=$?; [ $status -eq 0 ] || printf "\ntest: FAILED after %ds (exit %d)\n" $((SECONDS - started)) $status' EXIT

step "setup"
bash ci/setup.sh
[ "$(id -u)" -eq 0 ] || { echo "test: the namespace tests need root" >&2; exit 2; }

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

step "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

step "unit, property, scenario and namespace tests"
cargo test --workspace --locked --no-fail-fast

step "connection table: all interleavings of its protocol (loom), random ones of a larger table (shuttle)"
cargo test --package weir-dataplane --lib --locked --quiet --features loom loom_
cargo test --package weir-dataplane --lib --locked --quiet --features shuttle shuttle_

printf '\ntest: everything passed in %ds\n' $((SECONDS - started))
