"""The kernel's own ways from pod to pod, each in namespaces of its own."""

import json

import services
from services import CLIENT, REMOTE, SERVER
from shell import TAG, run

# What VXLAN leaves of 1500; also within a node, as Flannel sets it.
MTU = "1450"
# Seconds in which rules must be loaded: nft took 46 for 10,000 Services, all of them its own.
LOADING = 180


class Peer:
    """A network with the places client and server, or client and remote."""

    name = ""
    # Threads whose own time is told beside a rate.
    threads = ()

    def up(self):
        raise NotImplementedError

    def down(self):
        raise NotImplementedError

    def wrap(self, place):
        """What goes before a command to run it in a place."""
        raise NotImplementedError

    def enter(self):
        """Called before it is measured."""

    def leave(self):
        """Called after it was measured: until `enter` it takes no core."""

    def exec(self, place, *argv, **more):
        return run(*self.wrap(place), *argv, **more)

    def next_hop(self, address):
        """The MAC that the client sends to for a destination."""
        self.exec("client", "ping", "-c", "1", "-W", "1", address, check=False)
        route = json.loads(self.exec("client", "ip", "-j", "route", "get", address))[0]
        for entry in json.loads(self.exec("client", "ip", "-j", "neigh", "show", "to", route.get("gateway", address))):
            if "lladdr" in entry:
                return entry["lladdr"]
        raise RuntimeError(f"nobody answers for {address}")


class Kernel(Peer):
    """Namespaces joined by plain kernel means."""

    def __init__(self, name):
        self.name = name

    def space(self, place):
        return f"{TAG}-{self.name}-{place}"

    def wrap(self, place):
        return ["ip", "netns", "exec", self.space(place)]

    def add(self, *places):
        for place in places:
            run("ip", "netns", "add", self.space(place))
            self.exec(place, "ip", "link", "set", "lo", "up")

    def link(self, place, node, port, address, end="eth0", mtu=MTU):
        """A veth from a place to a port of a node."""
        run("ip", "link", "add", port, "mtu", mtu, "netns", self.space(node), "type", "veth",
            "peer", "name", end, "mtu", mtu, "netns", self.space(place))
        if address:
            self.exec(place, "ip", "addr", "add", address, "dev", end)
        self.exec(place, "ip", "link", "set", end, "up")
        self.exec(node, "ip", "link", "set", port, "up")

    def bridge(self, node, *ports, name="br0"):
        self.exec(node, "ip", "link", "add", name, "type", "bridge")
        for port in ports:
            self.exec(node, "ip", "link", "set", port, "master", name)
        self.exec(node, "ip", "link", "set", name, "up")

    def down(self):
        for line in run("ip", "netns", "list").splitlines():
            if line.startswith(f"{TAG}-{self.name}-"):
                run("ip", "netns", "del", line.split()[0], check=False)


class Veth(Kernel):
    """One veth from client to server: what sender and receiver alone can do."""

    def __init__(self):
        super().__init__("veth")

    def up(self):
        self.add("client", "server")
        self.link("client", "server", "eth0", f"{CLIENT}/24")
        self.exec("server", "ip", "addr", "add", f"{SERVER}/24", "dev", "eth0")


class Bridge(Kernel):
    """One bridge on the node: the shortest way that the kernel has."""

    def __init__(self):
        super().__init__("bridge")

    def up(self):
        self.add("client", "server", "node")
        for place, address in (("client", CLIENT), ("server", SERVER)):
            self.link(place, "node", f"v{place}", f"{address}/24")
        self.bridge("node", "vclient", "vserver")


class Routing(Kernel):
    """Each pod on a link of its own, routed by the node, as Calico does."""

    def __init__(self, name="routing"):
        super().__init__(name)

    def up(self):
        self.add("client", "server", "node")
        self.exec("node", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for place, address in (("client", CLIENT), ("server", SERVER)):
            self.link(place, "node", f"v{place}", f"{address}/32")
            self.exec("node", "ip", "route", "add", f"{address}/32", "dev", f"v{place}")
            self.exec("node", "ip", "addr", "add", "169.254.1.1/32", "dev", f"v{place}")
            self.exec(place, "ip", "route", "add", "169.254.1.1", "dev", "eth0")
            self.exec(place, "ip", "route", "add", "default", "via", "169.254.1.1")


class Proxied(Routing):
    """Routing with Services, by the rules that kube-proxy writes."""

    def __init__(self, mode, count):
        super().__init__(f"{mode}-{count // 1000}k")
        self.mode, self.count = mode, count

    def up(self):
        super().up()
        if self.mode == "nftables":
            self.exec("node", "nft", "-f", "-", text=services.nftables(self.count), timeout=LOADING)
        else:
            self.exec("node", f"{self.mode}-legacy-restore", "-w", "10", text=services.iptables(self.count), timeout=LOADING)


class Flannel(Kernel):
    """Two nodes on one wire, each with a bridge for its pods and a VXLAN device that the other's pods are routed to."""

    def __init__(self):
        super().__init__("bridge+vxlan")

    def up(self):
        self.add("client", "remote", "nodea", "nodeb", "wire")
        nodes = (("nodea", "client", CLIENT, 1, 10), ("nodeb", "remote", REMOTE, 2, 11))
        for node, place, address, net, host in nodes:
            self.link(node, "wire", f"p{node}", f"10.0.0.{host}/24", end="eth1", mtu="1500")
            self.exec(node, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            self.exec(node, "ip", "link", "add", "flannel.1", "address", f"02:00:00:00:00:{host}", "type", "vxlan", "id", "1",
                      "dstport", "8472", "local", f"10.0.0.{host}", "dev", "eth1", "nolearning")
            self.exec(node, "ip", "addr", "add", f"10.244.{net}.0/32", "dev", "flannel.1")
            self.exec(node, "ip", "link", "set", "flannel.1", "up")
            other, its_host = 3 - net, 21 - host
            self.exec(node, "ip", "neigh", "add", f"10.244.{other}.0", "lladdr", f"02:00:00:00:00:{its_host}", "dev", "flannel.1")
            self.exec(node, "bridge", "fdb", "add", f"02:00:00:00:00:{its_host}", "dev", "flannel.1", "dst", f"10.0.0.{its_host}")
            self.exec(node, "ip", "route", "add", f"10.244.{other}.0/24", "via", f"10.244.{other}.0", "dev", "flannel.1", "onlink")
            self.link(place, node, "vpod", f"{address}/24")
            self.bridge(node, "vpod", name="cni0")
            self.exec(node, "ip", "addr", "add", f"10.244.{net}.1/24", "dev", "cni0")
            self.exec(place, "ip", "route", "add", "default", "via", f"10.244.{net}.1")
        self.bridge("wire", "pnodea", "pnodeb")
