"""peers.json, the table, and the goals, from the rounds."""

import json
import os
import statistics

from shell import ROOT

PATH = f"{ROOT}/target/peers.json"
FIGURES = {
    # name in peers.json: head of its column, digits
    "mpps": ("Mpps", 3),
    "gbps": ("Gbit/s", 2),
    "p50_us": ("p50 us", 1),
    "p99_us": ("p99 us", 1),
    "per_sec": ("per s", 0),
    "cpu_ns_per_packet": ("CPU ns/packet", 0),
    "worker_user_ns_per_packet": ("worker: user", 0),
    "worker_system_ns_per_packet": ("kernel ns", 0),
    "cpu_percent": ("% of a core", 2),
}
# What issue and design ask for: row, figure, peer, against, how many times at least (or, below 0, at most).
GOALS = [
    ("udp 64 B, 1 flow, service of 10k", "mpps", "testpmd", ">= 0.95 of testpmd's bare MAC forwarding", lambda weir, peer: weir / peer, 0.95),
    ("udp 64 B, new flow per packet, service of 10k", "mpps", "nftables-10k", ">= 3 x nftables", lambda weir, peer: weir / peer, 3),
    ("udp 64 B, new flow per packet, service of 10k", "mpps", "iptables-10k", ">= 20 x iptables", lambda weir, peer: weir / peer, 20),
    ("iperf3 1 stream, same node, offloads on", "gbps", "bridge", ">= 1.2 x the bridge", lambda weir, peer: weir / peer, 1.2),
]


def load():
    try:
        with open(PATH, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return []


def entry(row, peer, rounds, **more):
    """What peers.json has of a row and a peer: medians of its rounds, beside them the rounds themselves."""
    result = {"row": row, "peer": peer}
    for figure in FIGURES:
        values = [one[figure] for one in rounds if one.get(figure) is not None]
        if values:
            result[figure] = statistics.median(values)
    return {**result, **more, "rounds": rounds}


def save(new, order):
    """Puts entries in the place of those of the same row and peer, and keeps the others."""
    fresh = {(one["row"], one["peer"]) for one in new}
    merged = [one for one in load() if (one["row"], one["peer"]) not in fresh] + new
    place = {row: n for n, row in enumerate(order)}
    merged = sorted((one for one in merged if one["row"] in place), key=lambda one: place[one["row"]])
    os.makedirs(os.path.dirname(PATH), exist_ok=True)
    with open(f"{PATH}.new", "w", encoding="utf-8") as out:
        json.dump(merged, out, indent=1)
    os.replace(f"{PATH}.new", PATH)
    return merged


def table(entries):
    """One line for each row and peer: median, and lowest to highest in brackets."""
    used = [figure for figure in FIGURES if any(figure in one for one in entries)]
    lines = [("row", "peer", *(FIGURES[figure][0] for figure in used))]
    for one in entries:
        cells = []
        for figure in used:
            values = [r[figure] for r in one["rounds"] if r.get(figure) is not None]
            digits = FIGURES[figure][1]
            cells.append(f"{one[figure]:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})" if values else "-")
        if "failed" in one:
            cells = [one["failed"].splitlines()[0]]
        lines.append((one["row"], one["peer"], *cells))
    widths = [max((len(line[n]) for line in lines if len(line) == len(lines[0])), default=0) for n in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
