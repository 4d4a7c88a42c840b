"""What of a worker's time is Weir's own: samples of its thread under load, by the function that they fell into."""

import os
import re
import threading
import time
from collections import Counter

import measure
from shell import STATE, run

HZ = 4999
# Where the worker waits for packets, as llvm-symbolizer names it, inlined or not.
WAITING = re.compile(r"(^|::)rest(::h[0-9a-f]+)?\n[^\n]*/dataplane/src/worker\.rs:", re.MULTILINE)


def own_share(peer, secs, **load):
    """The load of a row, and beside it ns a packet in Weir's own code, in waiting for packets, and in system calls."""
    data = f"{STATE}/perf.data"
    recorder = threading.Thread(target=record, args=(peer.threads[0], secs, data))
    recorder.start()
    figures = measure.udp_rate(peer, secs + 1, **load)
    recorder.join()
    ticks = classify(peer.pid, data)
    per_packet = {what: count / HZ * 1e9 / (figures["mpps"] * 1e6 * secs) for what, count in ticks.items()}
    return {
        **figures,
        "own_ns_per_packet": per_packet.get("own", 0.0),
        "waiting_ns_per_packet": per_packet.get("waiting", 0.0),
        "kernel_ns_per_packet": per_packet.get("kernel", 0.0),
    }


def record(thread, secs, data):
    # Past the first packets.
    time.sleep(1)
    run("perf", "record", "-q", "-e", "cpu-clock", "-F", str(HZ), "-t", str(thread), "-o", data, "--", "sleep", str(secs), timeout=secs + 20)


def classify(pid, data):
    """Samples in the kernel, in waiting, and in Weir's own code, memory functions included."""
    binary = os.readlink(f"/proc/{pid}/exe")
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if binary in line)
    ticks, places = Counter(), Counter()
    for line in run("perf", "script", "-i", data, "-F", "ip,dso").splitlines():
        address, _, dso = line.strip().partition(" ")
        if "kernel" in dso or "guest" in dso or dso == "([unknown])":
            ticks["kernel"] += 1
        elif os.path.basename(binary) in dso:
            places[int(address, 16) - base] += 1
        elif "vdso" in dso:
            # The clock: waiting looks at it all the time, the rest once a batch, which is about 2 ns a packet.
            ticks["waiting"] += 1
        else:
            ticks["own"] += 1
    addresses = [f"{place:#x}" for place in places]
    answers = run("llvm-symbolizer", f"--obj={binary}", "--inlining", "--functions", text="\n".join(addresses) + "\n").strip("\n").split("\n\n")
    for count, answer in zip(places.values(), answers, strict=True):
        ticks["waiting" if WAITING.search(answer) else "own"] += count
    return ticks
