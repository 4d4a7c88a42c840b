//! What the daemon counts, in Prometheus' text format (version 0.0.4).
//!
//! Names follow Prometheus' practice: base units as suffix, counters end in `_total`, sums over a label make sense. No label
//! grows with traffic.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use crate::admin::figures::Status;
use crate::model::NodeState;

/// All metrics of a daemon that works by `state`.
pub(super) fn text(status: &Status, state: &NodeState) -> String {
    let mut page = Page(String::new());
    let build = vec![("version", status.version.as_str()), ("node", status.node.as_str())];
    page.family("weir_build_info", "gauge", "Version of the daemon and the Node that it serves; always 1.", [(build, 1)]);
    let packets = &status.packets;
    let verdicts = [("forward", packets.forward), ("host", packets.host), ("reply", packets.reply), ("drop", packets.drop)];
    let verdicts = verdicts.map(|(verdict, count)| (vec![("verdict", verdict)], count));
    page.family("weir_packets_total", "counter", "Packets by how they ended; the sum is what was received.", verdicts);
    let by_reason = |reasons: &'_ BTreeMap<String, u64>| -> Vec<(Vec<(&'static str, String)>, u64)> {
        reasons.iter().map(|(reason, count)| (vec![("reason", reason.clone())], *count)).collect()
    };
    page.family("weir_drops_total", "counter", "Packets discarded, by reason.", by_reason(&status.drops));
    page.family("weir_rejects_total", "counter", "Packets answered by a reset or an ICMP error, by reason.", by_reason(&status.rejects));
    let kernel = &status.kernel;
    let lost = [("ring_full", kernel.rx_ring_full), ("no_frame", kernel.rx_dropped), ("invalid_descriptor", kernel.invalid_descriptors)];
    let lost = lost.map(|(reason, count)| (vec![("reason", reason)], count));
    page.family("weir_kernel_drops_total", "counter", "Packets that the kernel could not hand over, by reason.", lost);
    page.one("weir_connections", "gauge", "Tracked connections.", status.connections.used);
    page.one("weir_connections_max", "gauge", "Connections that can be tracked.", status.connections.max);
    let frames = &status.frames;
    let used = frames.total.saturating_sub(frames.free).saturating_sub(frames.lost);
    let states = [("free", frames.free), ("used", used), ("lost", frames.lost)].map(|(state, count)| (vec![("state", state)], count));
    page.family("weir_frames", "gauge", "Frames of all workers' memory, by where they are.", states);
    let workers = |of: fn(&crate::admin::figures::WorkerStatus) -> u64| -> Vec<(Vec<(&'static str, String)>, u64)> {
        status.workers.iter().map(|worker| (vec![("core", worker.core.to_string())], of(worker))).collect()
    };
    page.family("weir_worker_receive_packets_total", "counter", "Packets received, by worker.", workers(|w| w.rx));
    page.family("weir_worker_transmit_packets_total", "counter", "Packets sent, by worker.", workers(|w| w.tx));
    page.family("weir_worker_lost_events_total", "counter", "Flow events that no reader took in time.", workers(|w| w.events_lost));
    page.family("weir_worker_batches_total", "counter", "Batches of at least one packet, by worker.", workers(|w| w.batches));
    let calls = status.workers.iter().flat_map(|worker| {
        let core = worker.core.to_string();
        worker.system_calls.by_name().map(|(call, count)| (vec![("core", core.clone()), ("call", call.into())], count))
    });
    let calls: Vec<_> = calls.collect();
    page.family("weir_worker_system_calls_total", "counter", "System calls to move packets and to sleep, by worker and purpose.", calls);
    let ports = ["uplink", "host", "pod"].map(|kind| (vec![("kind", kind)], status.ports.iter().filter(|p| p.kind == kind).count() as u64));
    page.family("weir_ports", "gauge", "Attached ports, by kind.", ports);
    let mut services: BTreeMap<_, bool> = BTreeMap::new();
    for port in &state.services {
        *services.entry((&port.namespace, &port.name)).or_default() |= port.any_usable;
    }
    let silent = services.values().filter(|usable| !**usable).count() as u64;
    page.one("weir_services", "gauge", "Services that have an address.", services.len() as u64);
    page.one("weir_services_without_endpoints", "gauge", "Services of which no endpoint can be chosen.", silent);
    page.one("weir_policies", "gauge", "Policies in force, of all kinds.", state.policies.len() as u64);
    page.one("weir_generation", "gauge", "Number of the state in force; 0 before the first one.", status.generation.into());
    page.one("weir_uptime_seconds", "gauge", "Time since the daemon started.", status.uptime_secs);
    page.0
}

struct Page(String);

impl Page {
    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help, [(Vec::<(&str, &str)>::new(), value)]);
    }

    fn family<L: Display>(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (Vec<(&'static str, L)>, u64)>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let _ = match labels.is_empty() {
                true => writeln!(self.0, "{name} {value}"),
                false => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
            };
        }
    }
}

fn escaped(value: &impl Display) -> String {
    value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admin::figures::{ConnectionCounts, FrameCounts, KernelCounts, PacketCounts, SystemCallCounts, WorkerStatus};
    use crate::model::Service;

    fn port_of(name: &str, port: u16, any_usable: bool) -> Arc<Service> {
        Arc::new(Service { namespace: "shop".into(), name: name.into(), port_name: port.to_string(), any_usable, ..Service::default() })
    }

    #[test]
    fn every_sample_has_its_family_and_the_verdicts_sum_up() {
        let status = Status {
            node: "node-a".into(),
            version: "0.1\"0".into(),
            generation: 3,
            packets: PacketCounts { received: 10, forward: 4, host: 3, reply: 2, drop: 1 },
            drops: [("POLICY_DENIED".into(), 1)].into(),
            connections: ConnectionCounts { used: 7, max: 100 },
            frames: FrameCounts { total: 64, free: 60, ..FrameCounts::default() },
            kernel: KernelCounts { rx_dropped: 6, ..KernelCounts::default() },
            workers: vec![WorkerStatus {
                core: 2,
                rx: 10,
                tx: 9,
                batches: 5,
                generation: 3,
                system_calls: SystemCallCounts { send: 4, ..SystemCallCounts::default() },
                ..WorkerStatus::default()
            }],
            ..Status::default()
        };
        let services = [(80, false), (81, true)].map(|(port, any_usable)| port_of("web", port, any_usable)).into_iter();
        let services = services.chain([port_of("db", 5432, false)]).collect();
        let text = text(&status, &NodeState { services, ..NodeState::default() });
        for line in [
            "# TYPE weir_packets_total counter",
            "weir_packets_total{verdict=\"forward\"} 4",
            "weir_drops_total{reason=\"POLICY_DENIED\"} 1",
            "weir_connections 7",
            "weir_frames{state=\"used\"} 4",
            "weir_worker_receive_packets_total{core=\"2\"} 10",
            "weir_build_info{version=\"0.1\\\"0\",node=\"node-a\"} 1",
            "weir_kernel_drops_total{reason=\"no_frame\"} 6",
            "weir_worker_system_calls_total{core=\"2\",call=\"send\"} 4",
            "weir_services 2",
            "weir_services_without_endpoints 1",
            "weir_generation 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let packets = text.lines().filter(|l| l.starts_with("weir_packets_total{"));
        let sum: u64 = packets.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sum, 10);
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}
