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
    "own_ns_per_packet": ("own ns", 0),
    "worker_user_ns_per_packet": ("worker: user ns", 0),
    "worker_system_ns_per_packet": ("worker: kernel ns", 0),
    "cpu_percent": ("% of a core", 2),
}


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
    used = [figure for figure in FIGURES if any(figure in one for one in entries)] or ["mpps"]
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


def ratio(by, row, figure, peer, other):
    """Median over the rounds of peer to other: both were measured within a few seconds of each other."""
    one, two = by[row, peer], by[row, other]
    if one["taken"] != two["taken"]:
        raise KeyError("not of one run")
    pairs = zip(one["rounds"], two["rounds"])
    return statistics.median(one[figure] / two[figure] for one, two in pairs)


OWN = "udp 64 B, 1 flow, service of 10k, profile of the worker"
IDLE = "first packet after 10 ms of idling, 110 pods, pods on {}"
ONE_CORE = IDLE.format("one core")
SERVICE, FRESH = "udp 64 B, 1 flow, service of 10k", "udp 64 B, new flow per packet, service of 10k"
# What is wanted, in words; how it is worked out from the entries by row and peer; the bound and on which side of it.
GOALS = (
    ("64-byte frames of one flow by a Service, to testpmd's bare MAC forwarding", lambda by: ratio(by, SERVICE, "mpps", "weir", "testpmd"), ">=", 0.95),
    ("a new flow per packet by 10k Services, to nftables", lambda by: ratio(by, FRESH, "mpps", "weir", "nftables-10k"), ">=", 3),
    ("a new flow per packet by 10k Services, to iptables", lambda by: ratio(by, FRESH, "mpps", "weir", "iptables-10k"), ">=", 20),
    ("one iperf3 stream on one node, to the bridge", lambda by: ratio(by, "iperf3 1 stream, same node, offloads on", "gbps", "weir", "bridge"), ">=", 1.2),
    ("Weir's own share, ns a packet", lambda by: by[OWN, "weir"]["own_ns_per_packet"], "<=", 60),
    ("idle with 110 pods, % of a core", lambda by: by["idle, 110 pods", "weir-110"]["cpu_percent"], "<", 1),
    ("first packet after idling, p99, us over the bridge", lambda by: by[ONE_CORE, "weir-110"]["p99_us"] - by[ONE_CORE, "bridge"]["p99_us"], "<", 200),
)


def goals(entries):
    """What was wanted and what came out; a goal without its rows is left out."""
    by = {(one["row"], one["peer"]): one for one in entries}
    lines = []
    for words, work_out, side, bound in GOALS:
        try:
            value = work_out(by)
        except (KeyError, statistics.StatisticsError):
            continue
        met = {">=": value >= bound, "<=": value <= bound, "<": value < bound}[side]
        lines.append(f"{'met   ' if met else 'MISSED'}  {words}: {value:.2f} ({side} {bound})")
    return "\n".join(lines)
