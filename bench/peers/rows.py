"""What is measured, by whom. A row is a name, a function of `measure`, its arguments and the peers that can do it."""

from dataclasses import dataclass, field
from typing import Callable

import measure
import report
import services
import worker_profile
from kernel import Bridge, Flannel, Proxied, Routing, Veth
from services import REMOTE, SERVER
from userspace import OpenVswitch, Testpmd, Weir

# Pods that do nothing, so that with client and server a node has 110.
IDLE_PODS = 108

# Where client and server run, and in which words.
CORES = (((0, 0), "one core"), ((0, 1), "two cores"))

PEERS = {
    "weir": Weir,
    "weir-110": lambda: Weir("weir-110", IDLE_PODS, 1 << 20),
    "veth": Veth,
    "bridge": Bridge,
    "routing": Routing,
    "nftables-1k": lambda: Proxied("nftables", 1000),
    "nftables-10k": lambda: Proxied("nftables", 10_000),
    "iptables-1k": lambda: Proxied("iptables", 1000),
    "iptables-10k": lambda: Proxied("iptables", 10_000),
    "bridge+vxlan": Flannel,
    "testpmd": Testpmd,
    "ovs-afxdp": OpenVswitch,
}


@dataclass
class Row:
    """One line of the table for each of its peers."""

    name: str
    measure: Callable
    peers: tuple
    arguments: dict = field(default_factory=dict)
    # In `--quick` too.
    quick: bool = False
    # By peer, where one needs other arguments than the rest.
    instead: dict = field(default_factory=dict)
    # Rare things need longer rounds.
    secs_min: float = 0

    def run(self, peer, secs):
        return self.measure(peer, max(secs, self.secs_min), **{**self.arguments, **self.instead.get(peer.name, {})})


def rows():
    return [*udp(), *own_share(), *tcp(), *round_trips(), *idle()]


def udp():
    direct = ("weir", "testpmd", "ovs-afxdp", "bridge", "routing", "veth")
    for size in (64, 1400):
        for flows, words in ((1, "1 flow"), (1000, "1,000 flows"), (0, "new flow per packet")):
            load, name = {"size": size, "flows": flows}, f"udp {size} B, {words}"
            main = size == 64 and flows == 1
            yield Row(f"{name}, pod-pod", measure.udp_rate, direct, {**load, "to": SERVER}, main)
            for count in (1000, 10_000):
                of = f"{count // 1000}k"
                proxies = (f"nftables-{of}", f"iptables-{of}")
                yield Row(
                    f"{name}, service of {of}", measure.udp_rate, ("weir", "testpmd", *proxies) if flows == 1 else ("weir", *proxies),
                    {**load, "to": services.address(0), "addresses": count}, size == 64 and flows != 1000 and count == 10_000,
                    # It knows no Services: the same frames to the server itself.
                    {"testpmd": {"to": SERVER, "addresses": 1}})
            yield Row(f"{name}, vxlan", measure.udp_rate, ("weir", "bridge+vxlan"), {**load, "to": REMOTE, "place": "remote"}, main)


def own_share():
    load = {"size": 64, "flows": 1, "to": services.address(0), "addresses": 10_000}
    yield Row(report.OWN, worker_profile.own_share, ("weir",), load, True)


def by_place(name, function, load, quick):
    """A row on one node, and the same between two; `name` says where {} is."""
    yield Row(name.format("same node"), function, ("weir", "bridge", "routing"), {**load, "to": SERVER}, quick[0])
    yield Row(name.format("vxlan"), function, ("weir", "bridge+vxlan"), {**load, "to": REMOTE, "place": "remote"}, quick[1])


def tcp():
    for offloads, words in ((True, "on"), (False, "off")):
        for streams in (1, 8):
            name = f"iperf3 {streams} stream{'s' if streams > 1 else ''}, {{}}, offloads {words}"
            main = streams == 1 and offloads
            yield from by_place(name, measure.tcp_rate, {"streams": streams, "offloads": offloads}, (main, main))


def round_trips():
    for kind, words in (("udp", "udp_rr"), ("tcp", "tcp_rr"), ("connect", "tcp_crr")):
        for cores, where in CORES:
            main = kind == "udp" and where == "two cores"
            yield from by_place(f"{words}, {{}}, pods on {where}", measure.trips, {"kind": kind, "cores": cores}, (main, False))


def idle():
    yield Row("idle, 110 pods", measure.idle, ("weir-110",), {}, True, secs_min=3)
    for cores, where in CORES:
        load = {"kind": "udp", "to": SERVER, "idle_ms": 10, "cores": cores}
        yield Row(report.IDLE.format(where), measure.trips, ("weir-110", "bridge"), load, where == "one core", secs_min=4)
