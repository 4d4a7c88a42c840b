"""Runs every row through every peer in interleaved rounds; see run.sh and README.md."""

import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.getcwd()
WEIR = f"{ROOT}/target/release/weir"
LOAD = f"{ROOT}/target/release/load"
TAG = f"peers{os.getpid()}"
HZ = os.sysconf("SC_CLK_TCK")
CLIENT, SERVER, REMOTE, SERVICE = "10.244.1.5", "10.244.1.6", "10.244.2.7", "10.96.0.10"
# A UDP payload of 22 bytes makes a frame of 64 bytes without its checksum.
PAYLOAD = "22"


def run(*argv, check=True, timeout=60):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Peer:
    """A network with the places client, server and, where it spans two nodes, remote."""

    name = ""
    worker = None

    def wrap(self, place):
        raise NotImplementedError

    def exec(self, place, *argv, **more):
        return run(*self.wrap(place), *argv, **more)

    def start(self, place, *argv):
        return subprocess.Popen([*self.wrap(place), *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Weir(Peer):
    name = "weir"

    def up(self):
        run(WEIR, "lab", "up", "-f", "bench/peers/cluster.yaml", "--node", "node-a", "--name", TAG)
        for pid in run("pgrep", "-f", f"weir-dataplane.*{TAG}", check=False).split():
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/comm", encoding="utf-8") as comm:
                    if comm.read().startswith("worker-"):
                        self.worker = f"/proc/{pid}/task/{task}/stat"

    def down(self):
        run(WEIR, "lab", "down", "--name", TAG, check=False)

    def wrap(self, place):
        return [WEIR, "lab", "exec", "--name", TAG, f"peers/{place}", "--"]


class Kernel(Peer):
    """Namespaces joined by plain kernel means."""

    def __init__(self, name):
        self.name = name
        self.spaces = []

    def space(self, place):
        return f"{TAG}-{self.name}-{place}"

    def wrap(self, place):
        return ["ip", "netns", "exec", self.space(place)]

    def add(self, *places):
        for place in places:
            run("ip", "netns", "add", self.space(place))
            self.spaces.append(place)
            self.exec(place, "ip", "link", "set", "lo", "up")

    def link(self, place, node, port, address):
        """A veth from eth0 of a place to a port of a node."""
        run("ip", "link", "add", port, "netns", self.space(node), "type", "veth", "peer", "name", "eth0", "netns", self.space(place))
        self.exec(place, "ip", "addr", "add", address, "dev", "eth0")
        self.exec(place, "ip", "link", "set", "eth0", "up")
        self.exec(node, "ip", "link", "set", port, "up")

    def down(self):
        for place in self.spaces:
            run("ip", "netns", "del", self.space(place), check=False)


class Bridge(Kernel):
    """One bridge on the node: the shortest way that the kernel has."""

    def __init__(self):
        super().__init__("bridge")

    def up(self):
        self.add("client", "server", "node")
        self.exec("node", "ip", "link", "add", "br0", "type", "bridge")
        self.exec("node", "ip", "link", "set", "br0", "up")
        for place, address in (("client", CLIENT), ("server", SERVER)):
            self.link(place, "node", f"v{place}", f"{address}/24")
            self.exec("node", "ip", "link", "set", f"v{place}", "master", "br0")


class Routing(Kernel):
    """Each pod on a link of its own, routed by the node, as Calico does."""

    def __init__(self, name="routing"):
        super().__init__(name)

    def up(self):
        self.add("client", "server", "node")
        self.exec("node", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/default/proxy_arp")
        for place, address in (("client", CLIENT), ("server", SERVER)):
            self.link(place, "node", f"v{place}", f"{address}/32")
            self.exec("node", "ip", "route", "add", f"{address}/32", "dev", f"v{place}")
            self.exec("node", "ip", "addr", "add", "169.254.1.1/32", "dev", f"v{place}")
            self.exec(place, "ip", "route", "add", "169.254.1.1", "dev", "eth0")
            self.exec(place, "ip", "route", "add", "default", "via", "169.254.1.1")


class Nftables(Routing):
    """Routing with a Service in the shape of kube-proxy's nftables mode: a verdict map, and masquerade marks."""

    def __init__(self):
        super().__init__("nftables")

    def up(self):
        super().up()
        rules = f"""
        table ip kube-proxy {{
          chain endpoint {{
            ip saddr {SERVER} meta mark set meta mark or 0x4000
            meta l4proto udp dnat to {SERVER}:9000
          }}
          chain service {{
            ip saddr != 10.244.0.0/16 meta mark set meta mark or 0x4000
            numgen random mod 1 vmap {{ 0 : goto endpoint }}
          }}
          map service-ips {{
            type ipv4_addr . inet_proto . inet_service : verdict
            elements = {{ {SERVICE} . udp . 9000 : goto service }}
          }}
          chain services {{
            ip daddr . meta l4proto . th dport vmap @service-ips
          }}
          chain prerouting {{
            type nat hook prerouting priority dstnat; policy accept;
            jump services
          }}
          chain postrouting {{
            type nat hook postrouting priority srcnat; policy accept;
            meta mark and 0x4000 != 0 masquerade
          }}
          chain forward {{
            type filter hook forward priority filter; policy accept;
            ct state invalid drop
          }}
        }}
        """
        done = subprocess.run([*self.wrap("node"), "nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())


class Vxlan(Kernel):
    """A bridge and a VXLAN device on each of two nodes: Flannel's way."""

    def __init__(self):
        super().__init__("bridge+vxlan")

    def space(self, place):
        return f"{TAG}-vxlan-{place}"

    def up(self):
        self.add("client", "remote", "nodea", "nodeb")
        run("ip", "link", "add", "eth1", "netns", self.space("nodea"), "type", "veth", "peer", "name", "eth1", "netns", self.space("nodeb"))
        nodes = (("nodea", "client", f"{CLIENT}/16", 10), ("nodeb", "remote", f"{REMOTE}/16", 11))
        for node, place, address, host in nodes:
            self.exec(node, "ip", "addr", "add", f"10.0.0.{host}/24", "dev", "eth1")
            self.exec(node, "ip", "link", "set", "eth1", "up")
            self.exec(node, "ip", "link", "add", "br0", "type", "bridge")
            remote = 21 - host
            self.exec(node, "ip", "link", "add", "vx0", "type", "vxlan", "id", "1", "dstport", "8472", "remote", f"10.0.0.{remote}", "dev", "eth1")
            self.link(place, node, "vpod", address)
            for port in ("vx0", "vpod"):
                self.exec(node, "ip", "link", "set", port, "master", "br0", "up")
            self.exec(node, "ip", "link", "set", "br0", "up")
            self.exec(place, "ip", "link", "set", "eth0", "mtu", "1450")


def busy():
    """Ticks that all cores spent on anything but idling."""
    with open("/proc/stat", encoding="utf-8") as stat:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.readline().split()[1:9])
    return user + nice + system + irq + soft + steal


def own(peer):
    """Ticks that Weir's worker spent outside system calls."""
    if not peer.worker:
        return None
    with open(peer.worker, encoding="utf-8") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[11])


def arrived(peer, place):
    for line in peer.exec(place, "cat", "/proc/net/dev").splitlines():
        name, _, rest = line.partition(":")
        if name.strip() not in ("lo", "Inter-|   Receive", "face |bytes") and rest and int(rest.split()[1]) > 0:
            return int(rest.split()[1])
    return 0


def udp_rate(peer, place, target, secs):
    port = target.split(":")[1]
    with peer.start(place, LOAD, "sink", port, str(secs + 2)) as sink:
        time.sleep(0.3)
        before, ticks, mine = arrived(peer, place), busy(), own(peer)
        start = time.monotonic()
        peer.exec("client", LOAD, "send", target, PAYLOAD, str(secs))
        took = time.monotonic() - start
        ticks, mine_after = busy() - ticks, own(peer)
        packets = arrived(peer, place) - before
        sink.terminate()
    if packets < 1000:
        raise RuntimeError(f"{packets} packets arrived")
    result = {"mpps": packets / took / 1e6, "gbps": packets * 64 * 8 / took / 1e9, "cpu_ns_per_packet": ticks / HZ * 1e9 / packets}
    if mine is not None:
        result["own_ns_per_packet"] = (mine_after - mine) / HZ * 1e9 / packets
    return result


def tcp_rate(peer, place, target, secs):
    with peer.start(place, "timeout", str(secs + 10), "iperf3", "-s", "-1") as server:
        time.sleep(0.5)
        ticks = busy()
        try:
            out = json.loads(peer.exec("client", "iperf3", "-c", target, "-t", str(secs), "-J", timeout=secs + 15))
        finally:
            server.terminate()
        ticks = busy() - ticks
    received = out["end"]["sum_received"]
    # Per 1448 bytes that arrived, however the kernel cut them.
    packets = received["bytes"] / 1448
    return {"gbps": received["bits_per_second"] / 1e9, "cpu_ns_per_packet": ticks / HZ * 1e9 / packets}


def round_trip(peer, place, target, secs):
    with peer.start(place, LOAD, "echo", target.split(":")[1], str(secs + 2)) as echo:
        time.sleep(0.3)
        ticks = busy()
        p50, p99 = map(float, peer.exec("client", LOAD, "ping", target, str(secs)).split())
        ticks = busy() - ticks
        echo.terminate()
    return {"p50_us": p50, "p99_us": p99, "cpu_ns_per_packet": ticks / HZ * 1e9 / (secs * 1e6 / p50)}


ROWS = [
    ("udp 64 B, 1 flow, pod to pod", udp_rate, "server", f"{SERVER}:9000", ("weir", "bridge", "routing")),
    ("udp 64 B, 1 flow, service", udp_rate, "server", f"{SERVICE}:9000", ("weir", "nftables")),
    ("udp 64 B, 1 flow, vxlan", udp_rate, "remote", f"{REMOTE}:9000", ("weir", "bridge+vxlan")),
    ("iperf3 1 stream, same node", tcp_rate, "server", SERVER, ("weir", "bridge", "routing")),
    ("iperf3 1 stream, vxlan", tcp_rate, "remote", REMOTE, ("weir", "bridge+vxlan")),
    ("udp round trip, same node", round_trip, "server", f"{SERVER}:9001", ("weir", "bridge", "routing")),
    ("udp round trip, vxlan", round_trip, "remote", f"{REMOTE}:9001", ("weir", "bridge+vxlan")),
]
FIGURES = ("mpps", "gbps", "p50_us", "p99_us", "cpu_ns_per_packet", "own_ns_per_packet")


def show(value, rounds, figure):
    if value is None:
        return "-"
    digits = {"mpps": 3, "gbps": 2, "p50_us": 1, "p99_us": 1}.get(figure, 0)
    low, high = min(rounds), max(rounds)
    return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def main():
    quick = "--quick" in sys.argv[1:]
    secs, rounds = (1, 2) if quick else (3, 5)
    peers, missing, results = {}, {}, {}
    try:
        for peer in (Weir(), Bridge(), Routing(), Nftables(), Vxlan()):
            peers[peer.name] = peer
            try:
                peer.up()
                peer.exec("client", "ping", "-c", "1", "-W", "2", REMOTE if "vxlan" in peer.name else SERVER)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                missing[peer.name] = str(error)
        for _ in range(rounds):
            for row, measure, place, target, names in ROWS:
                for name in names:
                    if name in missing:
                        continue
                    try:
                        results.setdefault((row, name), []).append(measure(peers[name], place, target, secs))
                    except (RuntimeError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
                        print(f"peers: {row} by {name}: {error}", file=sys.stderr)
    finally:
        for peer in peers.values():
            peer.down()

    report = []
    for (row, name), samples in results.items():
        entry = {"row": row, "peer": name}
        for figure in FIGURES:
            values = [sample[figure] for sample in samples if figure in sample]
            entry[figure] = statistics.median(values) if values else None
        entry["rounds"] = samples
        report.append(entry)
    order = {row[0]: n for n, row in enumerate(ROWS)}
    report.sort(key=lambda entry: order[entry["row"]])
    os.makedirs("target", exist_ok=True)
    with open("target/peers.json", "w", encoding="utf-8") as out:
        json.dump(report, out, indent=1)

    heads = ("row", "peer", "Mpps", "Gbit/s", "p50 us", "p99 us", "CPU ns/packet", "Weir's own ns/packet")
    lines = [heads]
    for entry in report:
        cells = [show(entry[f], [s[f] for s in entry["rounds"] if f in s] or [0], f) for f in FIGURES]
        lines.append((entry["row"], entry["peer"], *cells))
    widths = [max(len(line[n]) for line in lines) for n in range(len(heads))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(f"medians of {rounds} interleaved rounds of {secs} s (lowest-highest); CPU of all cores, whoever used them")
    for name, reason in missing.items():
        print(f"{name} did not start: {reason}")
    return 1 if "weir" in missing else 0


sys.exit(main())
