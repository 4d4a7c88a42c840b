"""One set of Services, as Weir's snapshot, as kube-proxy's nftables mode and as its iptables mode would have it.

Service N has the address 10.96.0.0 + 256 + N, UDP port 80 and two endpoints: two ports of the server pod, so that one receiver sees
everything. The ports of 1,000 Services in a row differ; see `flood`, whose flow N goes to Service N modulo their number.
"""

import ipaddress
import json

CLIENT, SERVER, REMOTE = "10.244.1.5", "10.244.1.6", "10.244.2.7"
PODS = "10.244.0.0/16"
FIRST = ipaddress.ip_address("10.96.1.0")
SERVICE_PORT = 80
# The receiver's ports: those of backends, and as many that are sent to directly, so that no two flows become one by translation.
PORT, PORTS = 10000, 2000
DIRECT = PORT + PORTS
# For round trips, beside the load's.
ECHO = 9000


def address(number):
    return str(FIRST + number)


def backends(number):
    port = PORT + 2 * number % PORTS
    return port, port + 1


def snapshot(services, idle_pods):
    """Two nodes, three pods, policies that let the client in, Services, and pods that do nothing."""
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

    def pod(name, node, ip):
        return {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "peers", "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]}, "status": {**ready, "podIPs": [{"ip": ip}]},
        }

    def node(name, cidr, ip):
        return {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": [cidr]}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
        }

    def policy(name):
        return {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": f"to-{name}", "namespace": "peers"},
            "spec": {
                "podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
            },
        }

    items = [
        node("node-a", "10.244.1.0/24", "10.0.0.10"), node("node-b", "10.244.2.0/24", "10.0.0.11"),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "peers"}},
        pod("client", "node-a", CLIENT), pod("server", "node-a", SERVER), pod("remote", "node-b", REMOTE),
        policy("server"), policy("remote"),
    ]
    items += [pod(f"idle-{n}", "node-a", f"10.244.1.{n + 20}") for n in range(idle_pods)]
    for number in range(services):
        name = f"s{number}"
        meta = {"name": name, "namespace": "peers"}
        spec = {"clusterIP": address(number), "ports": [{"name": "load", "port": SERVICE_PORT, "protocol": "UDP"}]}
        items.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
        for port in backends(number):
            items.append({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": f"{name}-{port}", "namespace": "peers", "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [SERVER], "conditions": {"ready": True}}],
                "ports": [{"name": "load", "port": port, "protocol": "UDP"}],
            })
    lines = ",\n".join(json.dumps(item) for item in items)
    return f'{{"apiVersion": "v1", "kind": "List", "items": [\n{lines}\n]}}\n'


def nftables(services):
    """As kube-proxy's nftables mode writes it: one verdict map from address, protocol and port to a chain per Service."""
    lines = ["""
    table ip kube-proxy {
      chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
      chain masquerading {
        meta mark and 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
      }
      map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
      map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
      map service-nodeports { type inet_proto . inet_service : verdict; }
      chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
      chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
    """]
    for number in range(services):
        for port in backends(number):
            lines.append(f"chain ep-{number}-{port} {{ ip saddr {SERVER} jump mark-for-masquerade; meta l4proto udp dnat to {SERVER}:{port}; }}")
        first, second = backends(number)
        lines.append(
            f"chain svc-{number} {{ ip daddr {address(number)} udp dport {SERVICE_PORT} ip saddr != {PODS} jump mark-for-masquerade; "
            f"numgen random mod 2 vmap {{ 0 : goto ep-{number}-{first}, 1 : goto ep-{number}-{second} }}; }}")
    elements = ", ".join(f"{address(n)} . udp . {SERVICE_PORT} : goto svc-{n}" for n in range(services))
    lines.append(f"""
      map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}; }}
      chain services {{
        ip daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
      }}
      chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
      chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; }}
      chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
      chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
    }}
    """)
    return "\n".join(lines)


def iptables(services):
    """As kube-proxy's iptables mode writes it: a rule per Service in KUBE-SERVICES, then its chain, then its endpoint's."""
    chains, rules, targets = [], [], []
    for number in range(services):
        service, vip = f"KUBE-SVC-{number:016X}", address(number)
        of = f'-m comment --comment "peers/s{number}:load'
        chains.append(f":{service} - [0:0]")
        rules.append(f'-A KUBE-SERVICES -d {vip}/32 -p udp {of} cluster IP" -m udp --dport {SERVICE_PORT} -j {service}')
        targets.append(f'-A {service} ! -s {PODS} -d {vip}/32 -p udp {of} cluster IP" -m udp --dport {SERVICE_PORT} -j KUBE-MARK-MASQ')
        for port, chance in zip(backends(number), ("-m statistic --mode random --probability 0.50000000000 ", "")):
            endpoint = f"KUBE-SEP-{number:011X}{port:05d}"
            chains.append(f":{endpoint} - [0:0]")
            targets.append(f'-A {service} {of} -> {SERVER}:{port}" {chance}-j {endpoint}')
            targets.append(f'-A {endpoint} -s {SERVER}/32 {of}" -j KUBE-MARK-MASQ')
            targets.append(f'-A {endpoint} -p udp {of}" -m udp -j DNAT --to-destination {SERVER}:{port}')
    kube = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ")
    return "\n".join([
        "*filter", ":KUBE-FORWARD - [0:0]", ":KUBE-SERVICES - [0:0]", ":KUBE-PROXY-FIREWALL - [0:0]",
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
        "-A FORWARD -j KUBE-FORWARD",
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT", "*nat", *(f":{chain} - [0:0]" for chain in kube), *chains,
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        *rules, "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", *targets, "COMMIT", "",
    ])
