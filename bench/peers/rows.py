"""What is measured, by whom. A row is a name, a function of `measure`, its arguments and the peers that can do it."""

from dataclasses import dataclass, field
from typing import Callable

import measure
import services
import worker_profile
from kernel import Bridge, Flannel, Proxied, Routing, Veth
from services import CLIENT, REMOTE, SERVER
from userspace import OpenVswitch, Testpmd, Weir

# Pods that do nothing, so that with client and server a node has 110.
IDLE_PODS = 108

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
    name: str
    measure: Callable
    peers: tuple
    arguments: dict = field(default_factory=dict)
    # In `--quick` too.
    quick: bool = False
    # By peer, where one needs other arguments than the rest.
    instead: dict = field(default_factory=dict)

    def run(self, peer, secs):
        return self.measure(peer, secs, **{**self.arguments, **self.instead.get(peer.name, {})})


def rows():
    return [*udp(), *own_share(), *tcp(), *round_trips(), *idle()]


def udp():
    for size in (64, 1400):
        for flows, words in ((1, "1 flow"), (1000, "1,000 flows"), (0, "new flow per packet")):
            load = {"size": size, "flows": flows}
            short = size == 64 and flows == 1
            yield Row(f"udp {size} B, {words}, pod-pod", measure.udp_rate, ("weir", "testpmd", "ovs-afxdp", "bridge", "routing", "veth"), {**load, "to": SERVER}, short)
            for count in (1000, 10_000):
                thousands = f"{count // 1000}k"
                peers = ("weir", "testpmd", f"nftables-{thousands}", f"iptables-{thousands}")
                # testpmd knows no Services: the same frames, to the server itself.
                bare = {"testpmd": {"to": SERVER, "addresses": 1}}
                yield Row(
                    f"udp {size} B, {words}, service of {thousands}", measure.udp_rate, peers if flows == 1 else (peers[0], *peers[2:]),
                    {**load, "to": services.address(0), "addresses": count}, size == 64 and flows < 2 and count == 10_000, bare)
            yield Row(f"udp {size} B, {words}, vxlan", measure.udp_rate, ("weir", "bridge+vxlan"), {**load, "to": REMOTE, "place": "remote"}, short)


def own_share():
    load = {"size": 64, "flows": 1, "to": services.address(0), "addresses": 10_000}
    yield Row("udp 64 B, 1 flow, service of 10k, profile of the worker", worker_profile.own_share, ("weir",), load, True)


def tcp():
    for offloads, words in ((True, "on"), (False, "off")):
        for streams in (1, 8):
            load = {"streams": streams, "offloads": offloads}
            plural = "s" if streams > 1 else ""
            quick = streams == 1 and offloads
            yield Row(f"iperf3 {streams} stream{plural}, same node, offloads {words}", measure.tcp_rate, ("weir", "bridge", "routing"), {**load, "to": SERVER}, quick)
            yield Row(f"iperf3 {streams} stream{plural}, vxlan, offloads {words}", measure.tcp_rate, ("weir", "bridge+vxlan"), {**load, "to": REMOTE, "place": "remote"}, quick)


def round_trips():
    for kind, words in (("udp", "udp_rr"), ("tcp", "tcp_rr"), ("connect", "tcp_crr")):
        for cores, where in (((0, 0), "one core"), ((0, 1), "two cores")):
            quick = kind == "udp" and cores == (0, 0)
            yield Row(f"{words}, same node, pods on {where}", measure.trips, ("weir", "bridge", "routing"), {"kind": kind, "to": SERVER, "cores": cores}, quick)
            yield Row(f"{words}, vxlan, pods on {where}", measure.trips, ("weir", "bridge+vxlan"), {"kind": kind, "to": REMOTE, "place": "remote", "cores": cores})


def idle():
    yield Row("idle, 110 pods", measure.idle, ("weir-110",), {}, True)
    for cores, where in (((0, 0), "one core"), ((0, 1), "two cores")):
        yield Row(f"first packet after 20 ms of idling, 110 pods, pods on {where}", measure.trips, ("weir-110", "bridge"), {"kind": "udp", "to": SERVER, "idle_ms": 20, "cores": cores}, cores == (0, 0))
