"""Running commands, namespaces of a run, and what a run that was killed left behind."""

import os
import re
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WEIR = f"{ROOT}/target/release/weir"
FLOOD = f"{ROOT}/target/release/flood"
# Every namespace, lab and folder of a run has its process number in its name.
TAG = f"peers{os.getpid()}"
STATE = f"/run/{TAG}"
# A failure is one line here.
os.environ["RUST_BACKTRACE"] = "0"
CONNTRACK = {
    # The kernel's table must hold every flow of a run: by default it throws flows away from 262,144 on. Of all namespaces.
    "/proc/sys/net/netfilter/nf_conntrack_max": 8 << 20,
    "/sys/module/nf_conntrack/parameters/hashsize": 2 << 20,
}


class Failed(Exception):
    """A command said no; the message is what it said."""


def bound(*argv):
    """The command, made to end with this process however that ends."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


def run(*argv, check=True, timeout=60, text=None, env=None):
    try:
        done = subprocess.run(bound(*argv), input=text, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(argv)}: nothing within {timeout} s") from error
    if check and done.returncode:
        raise Failed(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def start(*argv, env=None, log=subprocess.DEVNULL, stdin=subprocess.DEVNULL):
    return subprocess.Popen(bound(*argv), stdin=stdin, stdout=log, stderr=subprocess.STDOUT, text=True, env=env)


def end(process, timeout=10):
    """Ends a process of ours and waits for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(text))


def begin():
    """Makes the run's folder, and cleans up after runs that cannot do that themselves any more."""
    for name in os.listdir("/run"):
        number = re.fullmatch(r"peers(\d+)", name)
        if number and not os.path.exists(f"/proc/{number[1]}"):
            clean(name)
    os.makedirs(STATE)


def clean(tag=TAG):
    """Removes all that a run made. Processes in its namespaces are its own: they end first."""
    for lab in sorted(os.listdir("/run/weir")) if os.path.isdir("/run/weir") else ():
        if re.fullmatch(rf"{tag}(x\d+)?", lab):
            run(WEIR, "lab", "down", "--name", lab, check=False)
    for line in run("ip", "netns", "list").splitlines():
        space = line.split()[0]
        if space.startswith(f"{tag}-"):
            for pid in run("ip", "netns", "pids", space, check=False).split():
                run("kill", "-KILL", pid, check=False)
            run("ip", "netns", "del", space, check=False)
    for path in CONNTRACK:
        saved = f"/run/{tag}/{os.path.basename(path)}"
        if os.path.exists(saved):
            write(path, read(saved))
    for folder in (f"/run/{tag}", f"/run/dpdk/{tag}"):
        shutil.rmtree(folder, ignore_errors=True)


def widen_conntrack():
    """Makes room in the kernel's connection table; `clean` puts back what was."""
    for path, value in CONNTRACK.items():
        saved = f"{STATE}/{os.path.basename(path)}"
        if os.path.exists(path) and not os.path.exists(saved):
            write(saved, read(path))
            write(path, value)
