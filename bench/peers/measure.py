"""One figure of one peer, measured for some seconds. Everything returns what a round is in peers.json."""

import json
import os
import subprocess
import time

import services
from shell import FLOOD, Failed, bound, end

HZ = os.sysconf("SC_CLK_TCK")
# The sender's core; whoever moves packets in user space has the other one.
CORE = "0"
# New flows that a round's numbers leave room for in each of its seconds: more than the sender can make. Numbers whose source ports
# and backends are the same are 64,007,000 apart (`flood`): so many rounds later that who was first has been forgotten (30 s). Until
# then the later one rightly gets another source port on its way to the same backend.
FRESH_PER_SEC = 1_500_000
_next_flow = 0
# More than this of a core for others makes a round doubtful.
QUIET = 0.25


def busy():
    """Seconds that all cores spent on anything but idling."""
    with open("/proc/stat", encoding="utf-8") as stat:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / HZ


def calm():
    """Waits a little for the machine to be quiet, and tells how many cores others use while no peer is measured."""
    for _ in range(20):
        before, start = busy(), time.monotonic()
        time.sleep(0.1)
        others = (busy() - before) / (time.monotonic() - start)
        if others <= QUIET:
            break
    return round(others, 2)


class Running:
    """A command of ours in a place: it is awaited at the end, and ended before that if something fails."""

    def __init__(self, peer, place, *argv):
        self.argv = argv
        self.process = subprocess.Popen(
            bound(*peer.wrap(place), *argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)
        self.process.stdout.close()
        self.process.stderr.close()

    def ready(self):
        """Waits until it says that it listens."""
        if self.process.stdout.readline().strip() != "listening":
            raise Failed(f"{' '.join(self.argv)}: {self.process.stderr.read().strip()}")

    def result(self, timeout):
        try:
            out, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(self.argv)}: nothing within {timeout} s") from error
        if self.process.returncode:
            raise Failed(errors.strip())
        return json.loads(out.strip().splitlines()[-1])


def udp_rate(peer, secs, size, flows, to, addresses=1, place="server"):
    """Frames of `size` bytes as fast as they go; `flows` = 0: each begins a new flow."""
    global _next_flow
    first = _next_flow if flows == 0 else 0
    _next_flow += int(FRESH_PER_SEC * (secs + 1)) if flows == 0 else 0
    target = ["--to", to, "--addresses", str(addresses)]
    target += ["--port", str(services.SERVICE_PORT)] if addresses > 1 else ["--port", str(services.DIRECT), "--ports", str(services.PORTS)]
    mac = peer.next_hop(to)
    listen = ["--port", str(services.PORT), "--ports", str(2 * services.PORTS), "--from", services.CLIENT, "--bytes", str(size), "--secs", str(secs)]
    for thread in peer.threads:
        listen += ["--thread", str(thread)]
    with Running(peer, place, FLOOD, "sink", *listen) as sink:
        sink.ready()
        send = ["taskset", "-c", CORE, FLOOD, "send", "--mac", mac, *target, "--bytes", str(size), "--flows", str(flows), "--first", str(first), "--secs", str(secs + 30)]
        with Running(peer, "client", *send) as sender:
            seen = sink.result(secs + 15)
            if sender.process.poll() is not None:
                sender.result(1)
    packets = seen["packets"]
    if packets < 100:
        raise Failed(f"{packets} packets arrived in {secs} s")
    figures = {
        "mpps": packets / seen["secs"] / 1e6,
        "gbps": packets * size * 8 / seen["secs"] / 1e9,
        "cpu_ns_per_packet": seen["busy_ticks"] / HZ * 1e9 / packets,
        "checked": seen["checked"],
    }
    if peer.threads:
        figures["worker_user_ns_per_packet"] = seen["thread_user_ticks"] / HZ * 1e9 / packets
        figures["worker_system_ns_per_packet"] = seen["thread_system_ticks"] / HZ * 1e9 / packets
    return figures


# The kernel's own default: what the machine has set need not be.
CONGESTION = "cubic"


def tcp_rate(peer, secs, streams, offloads, to, place="server"):
    """iperf3's bulk TCP. CPU is per 1,398 bytes that arrived, however the kernel cut them."""
    changed = {pod: [] if offloads else segmentation(peer, pod) for pod in ("client", place)}
    try:
        for pod, features in changed.items():
            switch(peer, pod, features, "off")
        return iperf(peer, secs, streams, to, place)
    finally:
        for pod, features in changed.items():
            switch(peer, pod, features, "on")


def segmentation(peer, pod):
    """The offloads that are on in a pod."""
    words = {"tso": "tcp-segmentation-offload: on", "gso": "generic-segmentation-offload: on", "gro": "generic-receive-offload: on"}
    shown = peer.exec(pod, "ethtool", "-k", "eth0")
    return [short for short, line in words.items() if line in shown]


def switch(peer, pod, features, to):
    if features:
        peer.exec(pod, "ethtool", "-K", "eth0", *(word for feature in features for word in (feature, to)))


def iperf(peer, secs, streams, to, place):
    with Running(peer, place, "iperf3", "-s", "-1", "-J") as server:
        time.sleep(0.3)
        before = busy()
        out = json.loads(peer.exec("client", "iperf3", "-C", CONGESTION, "-c", to, "-t", str(secs), "-P", str(streams), "-J", timeout=secs + 20))
        spent = busy() - before
        end(server.process)
    received = out["end"]["sum_received"]
    if not received["bytes"]:
        raise Failed("nothing arrived")
    return {
        "gbps": received["bits_per_second"] / 1e9,
        "cpu_ns_per_packet": spent * 1e9 / (received["bytes"] / 1398),
        "retransmits": out["end"]["sum_sent"].get("retransmits"),
    }


def trips(peer, secs, kind, to, place="server", cores=None, idle_ms=0):
    """Round trips one at a time; `cores`: where client and server run, else where the scheduler likes."""
    def pinned(n):
        return ["taskset", "-c", str(cores[n])] if cores else []

    with Running(peer, place, *pinned(1), FLOOD, "echo", str(services.ECHO)) as echo:
        echo.ready()
        before = busy()
        with Running(peer, "client", *pinned(0), FLOOD, "trips", kind, f"{to}:{services.ECHO}", "--secs", str(secs), "--idle-ms", str(idle_ms)) as client:
            seen = client.result(secs + 10)
        spent = busy() - before
    figures = {"p50_us": seen["p50_us"], "p99_us": seen["p99_us"], "max_us": seen["max_us"], "trips": seen["trips"], "lost": seen["lost"]}
    if not idle_ms:
        figures["per_sec"] = seen["per_sec"]
        figures["cpu_ns_per_packet"] = spent * 1e9 / seen["trips"] / 2
    return figures


def idle(peer, secs):
    """What the daemon takes of a core while nothing happens, all its threads together."""
    def spent():
        total = 0
        for task in os.listdir(f"/proc/{peer.pid}/task"):
            with open(f"/proc/{peer.pid}/task/{task}/schedstat", encoding="utf-8") as stat:
                total += int(stat.read().split()[0])
        return total

    before, start = spent(), time.monotonic()
    time.sleep(secs)
    return {"cpu_percent": (spent() - before) / (time.monotonic() - start) / 1e7}
