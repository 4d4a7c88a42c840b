#!/usr/bin/env bash
# Weir in two minutes: a capture explained without root; then, as root, a cluster out of network namespaces, a request through a
# Service to a node behind VXLAN, and one that a policy denies, with the policy named. Takes everything down again.
set -euo pipefail
cd "$(dirname "$0")/.."

name=demo$$
cluster=fixtures/clusters/shop
scenario=fixtures/scenarios/denied-by-policy

ended() {
  status=$?
  trap - EXIT
  [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true
  [ ! -x target/release/weir ] || target/release/weir lab down --name "$name" >/dev/null 2>&1 || true
  if [ $status -eq 0 ]; then echo; echo "demo: all of it worked, and all of it is gone again"; else echo; echo "demo: FAILED (exit $status)"; fi
  exit $status
}
trap ended EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "${*//target\/release\//}" >&2; "$@"; }

say "Install what is missing, and build"
bash ci/setup.sh
cargo build --release --locked --quiet --bins
weir=target/release/weir

say "1. A capture, replayed through the real pipeline by a user without any right: who was dropped, and why?"
plain=$(mktemp -d)
cp $scenario/{snapshot.yaml,in.pcap} target/release/weir "$plain"
chmod -R a+rX "$plain"
without_rights=()
[ "$(id -u)" -ne 0 ] || without_rights=(setpriv --reuid 65534 --regid 65534 --clear-groups)
(cd "$plain" && run "${without_rights[@]}" ./weir replay -f snapshot.yaml --node node-a --pcap in.pcap)
rm -rf "$plain"
if [ "$(id -u)" -ne 0 ]; then
  trap - EXIT
  echo; echo "demo: this much works without root; the rest is a cluster out of network namespaces with AF_XDP: run it as root"
  exit 0
fi

say "2. A cluster for real: pods of node-a behind Weir, node-b a plain Linux kernel"
run $weir lab up -f "$cluster" --node node-a --name "$name"
folder=$(mktemp -d); echo "the database on node-b answers" > "$folder/index.html"
$weir lab exec --name "$name" shop/db-0 -- timeout 300 python3 -m http.server 5432 --directory "$folder" >/dev/null 2>&1 &
server=$!
for _ in $(seq 50); do $weir lab exec --name "$name" shop/db-0 -- curl -s --max-time 1 http://127.0.0.1:5432/ >/dev/null && break; sleep 0.1; done

say "3. shop/web-0 asks the Service shop/db: ClusterIP to a pod on the other node, over VXLAN"
run $weir lab exec --name "$name" shop/web-0 -- curl -sS --max-time 5 http://10.96.0.30:5432/

say "4. monitoring/prober asks the same, and a policy denies it"
if run $weir lab exec --name "$name" monitoring/prober -- curl -sS --max-time 2 http://10.96.0.30:5432/; then
  echo "demo: the policy did not deny" >&2
  exit 1
fi
socket=/run/weir/$name/dataplane.sock
run $weir status --socket "$socket" -o json | jq -c '{packets, drops}'
denied=$($weir status --socket "$socket" -o json | jq '.drops.POLICY_DENIED // 0')
[ "$denied" -gt 0 ] || { echo "demo: nobody counted the denial" >&2; exit 1; }
run $weir trace -f "$cluster" --node node-a --from monitoring/prober --to svc/shop/db --port 5432
named=$($weir trace -f "$cluster" --node node-a --from monitoring/prober --to svc/shop/db --port 5432 -o json | jq -r '.egress.isolated_by[].name')
[ "$named" = prober-egress ] || { echo "demo: the policy is not named" >&2; exit 1; }

say "5. Down again"
kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; server=
rm -rf "$folder"
run $weir lab down --name "$name"
