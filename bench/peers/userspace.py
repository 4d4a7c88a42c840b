"""Weir and the other dataplanes in user space. Those that never sleep are stopped while others are measured."""

import json
import os
import signal
import time

import services
from kernel import Kernel, Peer
from services import CLIENT, SERVER
from shell import FLOOD, STATE, TAG, WEIR, Failed, end, read, run, start, write

# Where the packets are moved; the sender has the other core.
CORE = 1
# A connection per packet for a few rounds. A pod may have a quarter of them.
CONNECTIONS = 16 << 20


class Weir(Peer):
    """Weir's lab: everything that it does for a packet is on, policies and 10,000 Services included."""

    def __init__(self, name="weir", idle_pods=0, connections=CONNECTIONS):
        self.name = name
        self.lab = f"{TAG}x{idle_pods}"
        self.idle_pods = idle_pods
        self.connections = connections
        self.pid = None

    def up(self):
        objects, config = f"{STATE}/{self.lab}.json", f"{STATE}/{self.lab}.yaml"
        write(objects, services.snapshot(10_000, self.idle_pods))
        write(config, json.dumps({
            "apiVersion": "weir.dev/v1alpha1", "kind": "NodeConfig", "node": "node-a",
            "workers": {"count": 1, "cores": [CORE]}, "tables": {"connections": self.connections},
        }))
        run(WEIR, "lab", "up", "-f", objects, "--node", "node-a", "--config", config, "--name", self.lab)
        self.pid = json.loads(run(WEIR, "lab", "status", "--name", self.lab, "-o", "json"))["daemon"]
        tasks = os.listdir(f"/proc/{self.pid}/task")
        self.threads = [task for task in tasks if read(f"/proc/{self.pid}/task/{task}/comm").startswith("worker-")]
        if len(self.threads) != 1:
            raise Failed(f"{len(self.threads)} workers where one was asked for")
        if self.connections == CONNECTIONS:
            self.touch()

    def touch(self):
        """Has the daemon write to its tables once: they are memory that nobody has used, and a node's have been used for days."""
        self.exec("client", FLOOD, "send", "--mac", self.next_hop(SERVER), "--to", SERVER, "--port", "1", "--ports", "1000", "--flows", "0", "--secs", "2")
        # What is on the way still is for nobody and would count as faulty.
        time.sleep(1)

    def down(self):
        run(WEIR, "lab", "down", "--name", self.lab, check=False)

    def wrap(self, place):
        return [WEIR, "lab", "exec", "--name", self.lab, f"peers/{place}", "--"]

    def status(self):
        return json.loads(run(WEIR, "status", "--socket", f"/run/weir/{self.lab}/dataplane.sock", "-o", "json"))


class Spinning(Kernel):
    """A process that moves packets between two veths of a node and never sleeps."""

    def __init__(self, name):
        super().__init__(name)
        self.processes = []

    def plug(self):
        self.add("client", "server", "node")
        for place, address in (("client", CLIENT), ("server", SERVER)):
            self.link(place, "node", f"v{place}", f"{address}/24")

    def mac(self, place, end="eth0"):
        return json.loads(self.exec(place, "ip", "-j", "link", "show", end))[0]["address"]

    def signal(self, number):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def enter(self):
        self.signal(signal.SIGCONT)

    def leave(self):
        self.signal(signal.SIGSTOP)

    def down(self):
        self.enter()
        for process in reversed(self.processes):
            end(process)
        super().down()


class Testpmd(Spinning):
    """DPDK's testpmd over net_af_xdp: a new pair of MACs for each frame, and nothing else."""

    def __init__(self):
        super().__init__("testpmd")

    def up(self):
        self.plug()
        macs = {place: self.mac(place) for place in ("client", "server")}
        for place, other, address in (("client", "server", SERVER), ("server", "client", CLIENT)):
            self.exec(place, "ip", "neigh", "add", address, "lladdr", self.mac("node", f"v{place}"), "dev", "eth0")
        log = f"{STATE}/testpmd.log"
        with open(log, "w", encoding="utf-8") as out:
            self.processes = [start(
                *self.wrap("node"), "dpdk-testpmd", "-l", f"0,{CORE}", "--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--file-prefix", TAG,
                "--vdev", "net_af_xdp0,iface=vclient", "--vdev", "net_af_xdp1,iface=vserver", "--",
                "--forward-mode=mac", f"--eth-peer=0,{macs['client']}", f"--eth-peer=1,{macs['server']}",
                "--nb-cores=1", "--total-num-mbufs=32768", "--auto-start", "--stats-period=3600", log=out)]
        until = time.monotonic() + 15
        while time.monotonic() < until:
            if self.processes[0].poll() is not None:
                break
            try:
                self.exec("client", "ping", "-c", "1", "-W", "1", SERVER)
                return
            except Failed:
                time.sleep(0.2)
        raise Failed(f"testpmd does not forward: {read(log)[-500:]}")


class OpenVswitch(Spinning):
    """Open vSwitch with its datapath in user space, on AF_XDP, as a learning switch."""

    def __init__(self):
        super().__init__("ovs-afxdp")

    def up(self):
        self.plug()
        folder = f"{STATE}/ovs"
        os.makedirs(folder)
        env = {**os.environ, "OVS_RUNDIR": folder, "OVS_LOGDIR": folder, "OVS_DBDIR": folder}
        database, log = f"unix:{folder}/db.sock", f"{folder}/ovs-vswitchd.log"
        run("ovsdb-tool", "create", f"{folder}/conf.db", "/usr/share/openvswitch/vswitch.ovsschema", env=env)

        def vsctl(*argv):
            run("ovs-vsctl", f"--db={database}", "--timeout=15", *argv, env=env)

        self.processes.append(start("ovsdb-server", f"{folder}/conf.db", f"--remote=punix:{folder}/db.sock", env=env))
        while not os.path.exists(f"{folder}/db.sock") and self.processes[0].poll() is None:
            time.sleep(0.05)
        vsctl("--no-wait", "init")
        vsctl("--no-wait", "set", "Open_vSwitch", ".", f"other_config:pmd-cpu-mask={1 << CORE:#x}")
        self.processes.append(start(*self.wrap("node"), "ovs-vswitchd", database, f"--log-file={log}", env=env))
        vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for place in ("client", "server"):
            vsctl("add-port", "br0", f"v{place}", "--", "set", "interface", f"v{place}", "type=afxdp")
            error = run("ovs-vsctl", f"--db={database}", "get", "interface", f"v{place}", "error", env=env).strip()
            if error not in ("[]", '""'):
                raise Failed(f"ovs-vswitchd on v{place}: {error}")
        self.exec("client", "ping", "-c", "3", "-i", "0.5", "-W", "2", SERVER)
