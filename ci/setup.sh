#!/usr/bin/env bash
# Installs what building and testing need on Debian 12: packages, and the crates that Cargo.lock names. Safe to run again.
# usage: ci/setup.sh [peers]      peers: also what bench/peers runs beside Weir
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  # libxdp and libbpf (built by xsk-rs, for a test) and the redirect program
  gcc libc6-dev make clang llvm m4 pkg-config libelf-dev zlib1g-dev libbpf-dev
  # the filters of weir capture
  libpcap-dev
  # what the tests, the demo and the benches run in their own namespaces
  iproute2 bpftool iputils-ping ethtool tcpdump iperf3 netcat-openbsd curl nftables python3 procps jq strace
  # instructions are counted (ci/instructions.sh)
  valgrind
  # the matrix page is looked at in a browser
  chromium
  # and what a replay writes in Wireshark
  tshark
)
[ "${1:-}" != peers ] || packages+=(dpdk-dev librte-net-af-xdp23 openvswitch-switch iptables linux-perf)

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "setup: run as root once, to install: ${missing[*]}" >&2
    exit 2
  fi
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Prometheus asks for every panel of the dashboard. Its two programs alone: the package would start a server at boot.
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "setup: run as root once, to install: prometheus" >&2
    exit 2
  fi
  echo "setup: installing prometheus"
  folder=$(mktemp -d)
  apt-get update -qq
  (cd "$folder" && apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb |
    tar -x --directory /usr/local/bin --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool)
  rm -r "$folder"
fi

command -v cargo >/dev/null || { echo "setup: no cargo on the PATH; install a Rust toolchain (1.95 or later) first" >&2; exit 2; }
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
cargo fetch --locked --quiet
echo "setup: everything is there"
