"""Runs every row through every peer in interleaved rounds; see run.sh and ../README.md."""

import argparse
import datetime
import re
import signal
import subprocess
import sys
import time
import traceback

import measure
import report
import rows as table
import shell

FAULTS = (shell.Failed, RuntimeError, ValueError, KeyError, OSError, subprocess.SubprocessError)

# Seconds that a round may take beside those that it measures; one that hangs must not take the others with it.
PATIENCE = 25


def too_long(*_):
    where = "".join(traceback.format_stack(limit=4)[:-1])
    raise shell.Failed(f"a round did not end in time\n{where}")


def arguments():
    parser = argparse.ArgumentParser(prog="bench/peers/run.sh", description="The same traffic through Weir and through others, side by side.")
    parser.add_argument("--quick", action="store_true", help="the main rows, 2 rounds of 1 s: under 4 minutes")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only these rows; the others stay in target/peers.json as they are")
    parser.add_argument("--peers", default="", metavar="REGEX", help="only these peers")
    parser.add_argument("--rounds", type=int, help="rounds [5]")
    parser.add_argument("--secs", type=float, help="seconds of a round [1.5]")
    parser.add_argument("--list", action="store_true", help="name the rows and their peers")
    parser.add_argument("--report", action="store_true", help="print what target/peers.json has and measure nothing")
    given = parser.parse_args()
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.secs = given.secs or (1.0 if given.quick else 1.5)
    return given


def bring_up(names):
    """The peers that start, and why the others do not."""
    peers, missing = {}, {}
    start = time.monotonic()
    for name in names:
        peer = table.PEERS[name]()
        try:
            peer.up()
            peer.leave()
            peers[name] = peer
            print(f"{time.monotonic() - start:5.1f} s: {name} is up", file=sys.stderr, flush=True)
        except FAULTS as error:
            missing[name] = str(error)
            print(f"peers: {name} does not start: {error}", file=sys.stderr, flush=True)
            try:
                peer.down()
            except FAULTS as again:
                print(f"peers: {name}: {again}", file=sys.stderr)
    return peers, missing


def run_rounds(row, peers, given):
    """Rounds of a row: each peer once, then again."""
    samples, failed = {}, {}
    start = time.monotonic()
    for _ in range(given.rounds):
        for name in row.peers:
            peer = peers.get(name)
            if not peer:
                continue
            others = measure.calm()
            peer.enter()
            signal.alarm(int(max(given.secs, row.secs_min)) + PATIENCE)
            try:
                figures = row.run(peer, given.secs)
                samples.setdefault(name, []).append({**figures, "others_cores": others})
            except FAULTS as error:
                failed[name] = str(error)
                print(f"peers: {row.name} by {name}: {error}", file=sys.stderr, flush=True)
            finally:
                signal.alarm(0)
                peer.leave()
    print(f"{time.monotonic() - start:5.1f} s: {row.name}", file=sys.stderr, flush=True)
    return samples, failed


def main():
    given = arguments()
    everything = table.rows()
    if given.list:
        for row in everything:
            print(f"{row.name}: {', '.join(row.peers)}")
        return 0
    order = [row.name for row in everything]
    if given.report:
        print(report.table(report.load()), report.goals(report.load()), sep="\n\n")
        return 0
    rows = [row for row in everything if re.search(given.rows, row.name) and (row.quick or not given.quick)]
    for row in rows:
        row.peers = tuple(name for name in row.peers if re.search(given.peers, name))
    names = [name for name in table.PEERS if any(name in row.peers for row in rows)]
    taken = {
        "commit": shell.run("git", "-C", shell.ROOT, "describe", "--always", "--dirty", check=False).strip(),
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "secs": given.secs,
    }
    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers: ended before its time"))
    entries, peers, missing = [], {}, {}
    shell.begin()
    try:
        if any("new flow" in row.name for row in rows):
            shell.widen_conntrack()
        peers, missing = bring_up(names)
        for row in rows:
            samples, failed = run_rounds(row, peers, given)
            for name in row.peers:
                if samples.get(name):
                    entries.append(report.entry(row.name, name, samples[name], **taken))
                else:
                    entries.append(report.entry(row.name, name, [], failed=missing.get(name) or failed.get(name, ""), **taken))
            print(report.table([one for one in entries if one["row"] == row.name]), flush=True)
    finally:
        for peer in peers.values():
            try:
                peer.down()
            except FAULTS as error:
                print(f"peers: {peer.name}: {error}", file=sys.stderr)
        shell.clean()
        if entries:
            report.save(entries, order)
    print(f"\nmedians of {given.rounds} interleaved rounds of {given.secs} s (lowest-highest); CPU of all cores, whoever used them")
    loud = [one for one in entries if any(r["others_cores"] > measure.QUIET for r in one["rounds"])]
    for one in loud:
        print(f"not quiet: before a round of {one['row']} by {one['peer']} others used {max(r['others_cores'] for r in one['rounds'])} cores")
    print(report.goals(report.load()))
    for name, reason in missing.items():
        print(f"{name} did not start: {reason}")
    return 1 if "weir" in missing else 0


sys.exit(main())
