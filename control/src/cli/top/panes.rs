//! What two readings of the daemon say of the time between them: four lists of figures. Knows no terminal.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use weir_dataplane::admin::figures::{Connection, Runtime, Status};
use weir_dataplane::verdict::DropReason;

use super::super::common::{age, table};
use super::super::connections::{Names, end, state};
use super::super::runtime::{since, worker_report};
use crate::sim::row::protocol;

/// One reading of the daemon.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// When, on the reader's clock.
    pub(super) at: Duration,
    pub(super) status: Status,
    pub(super) runtime: Runtime,
    /// Those that may have moved since the reading before.
    pub(super) connections: Vec<Connection>,
}

/// A figure or a name in a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    /// Per second, or another measure that is best short: `1.2M`.
    Rate(f64),
    /// Exact.
    Count(u64),
    /// Part of a whole, 0 to 1.
    Share(f64),
    /// Seconds.
    Age(u64),
}

impl Cell {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Rate(rate) => short(*rate),
            Self::Count(count) => count.to_string(),
            Self::Share(share) => format!("{:.1}%", share * 100.0),
            Self::Age(secs) => age(*secs),
        }
    }

    /// What a figure is sorted by; a name has none.
    fn figure(&self) -> Option<f64> {
        match self {
            Self::Text(_) => None,
            Self::Rate(figure) | Self::Share(figure) => Some(*figure),
            Self::Count(figure) | Self::Age(figure) => Some(*figure as f64),
        }
    }
}

/// A list of figures.
#[derive(Clone, Debug)]
pub(super) struct Pane {
    pub(super) name: &'static str,
    pub(super) headers: &'static [&'static str],
    /// The column that it is sorted by at first.
    pub(super) sort: usize,
    pub(super) rows: Vec<Vec<Cell>>,
}

impl Pane {
    /// Sorts by a column: figures from the greatest, names from A; the other way round where `reversed`. Rows alike keep the order of
    /// their names.
    pub(super) fn sort(&mut self, column: usize, reversed: bool) {
        let name = |row: &[Cell]| row.iter().map(Cell::text).collect::<Vec<_>>();
        self.rows.sort_by_cached_key(|row| name(row));
        self.rows.sort_by(|a, b| {
            let order = match (a[column].figure(), b[column].figure()) {
                (Some(a), Some(b)) => b.total_cmp(&a),
                _ => a[column].text().cmp(&b[column].text()),
            };
            if reversed { order.reverse() } else { order }
        });
    }

    /// Keeps the rows in which some cell has `text`, in any case.
    pub(super) fn filter(&mut self, text: &str) {
        let text = text.to_lowercase();
        self.rows.retain(|row| row.iter().any(|cell| cell.text().to_lowercase().contains(&text)));
    }

    /// As plain text.
    pub(super) fn text(&self) -> String {
        table(self.headers, self.rows.iter().map(|row| row.iter().map(Cell::text).collect()))
    }
}

/// The sums above all lists.
pub(super) fn head(now: &Reading, before: &Reading) -> [String; 2] {
    let (status, runtime) = (&now.status, since(&now.runtime, &before.runtime));
    let secs = seconds(now, before);
    let workers: Vec<_> = runtime.workers.iter().map(|worker| worker_report(worker, runtime.secs)).collect();
    let busy = workers.iter().map(|worker| worker.busy).sum::<f64>() / workers.len().max(1) as f64;
    let rate = |of: fn(&Status) -> u64| short(of(status).saturating_sub(of(&before.status)) as f64 / secs);
    [
        format!("node {}, generation {}, weir {}, up {}", status.node, status.generation, status.version, age(status.uptime_secs)),
        format!(
            "{} packets/s in, {} out, {} dropped; {} workers {:.1}% busy; {} of {} connections",
            rate(|status| status.packets.received),
            rate(|status| status.workers.iter().map(|worker| worker.tx).sum()),
            rate(|status| status.packets.drop),
            workers.len(),
            busy * 100.0,
            status.connections.used,
            status.connections.max
        ),
    ]
}

/// All lists.
pub(super) fn panes(now: &Reading, before: &Reading, names: &Names<'_>) -> [Pane; 4] {
    [ports(now, before), workers(now, before), flows(now, before, names), drops(now, before)]
}

fn seconds(now: &Reading, before: &Reading) -> f64 {
    now.at.saturating_sub(before.at).as_secs_f64().max(1e-3)
}

fn ports(now: &Reading, before: &Reading) -> Pane {
    let secs = seconds(now, before);
    let rows = now.status.ports.iter().map(|port| {
        let old = before.status.ports.iter().find(|old| old.name == port.name).cloned().unwrap_or_default();
        let rate = |now: u64, before: u64| Cell::Rate(now.saturating_sub(before) as f64 / secs);
        vec![
            Cell::Text(port.pod.clone().unwrap_or_else(|| port.name.clone())),
            Cell::Text(port.kind.clone()),
            rate(port.rx_packets, old.rx_packets),
            rate(port.rx_bytes * 8, old.rx_bytes * 8),
            rate(port.tx_packets, old.tx_packets),
            rate(port.tx_bytes * 8, old.tx_bytes * 8),
            Cell::Count(port.rx_packets),
            Cell::Count(port.tx_packets),
        ]
    });
    let headers = &["PORT", "KIND", "RX PPS", "RX BIT/S", "TX PPS", "TX BIT/S", "RX PACKETS", "TX PACKETS"];
    Pane { name: "ports", headers, sort: 2, rows: rows.collect() }
}

fn workers(now: &Reading, before: &Reading) -> Pane {
    let runtime = since(&now.runtime, &before.runtime);
    let rows = runtime.workers.iter().map(|worker| {
        let report = worker_report(worker, runtime.secs);
        vec![
            Cell::Text(format!("core {}", report.core)),
            Cell::Share(report.busy),
            Cell::Rate(report.rx_rate),
            Cell::Rate(report.tx_rate),
            Cell::Rate(report.drop_rate),
            Cell::Rate(report.vectors_per_call.unwrap_or_default()),
            Cell::Rate(report.clocks_per_packet.unwrap_or_default()),
        ]
    });
    let headers = &["WORKER", "BUSY", "RX PPS", "TX PPS", "DROP PPS", "VECTORS/CALL", "CLOCKS/PACKET"];
    Pane { name: "workers", headers, sort: 0, rows: rows.collect() }
}

fn flows(now: &Reading, before: &Reading, names: &Names<'_>) -> Pane {
    type Key = (u8, IpAddr, u16, IpAddr, u16);
    let key = |c: &Connection| -> Key { (c.protocol, c.original.src, c.original.sport, c.original.dst, c.original.dport) };
    let sums = |c: &Connection| (c.original.packets + c.reply.packets, c.original.bytes + c.reply.bytes);
    let old: HashMap<Key, &Connection> = before.connections.iter().map(|connection| (key(connection), connection)).collect();
    let secs = seconds(now, before);
    let rows = now.connections.iter().filter_map(|connection| {
        let (packets, bytes) = sums(connection);
        let (old_packets, old_bytes) = match old.get(&key(connection)) {
            // One with less is a later connection of the same name.
            Some(old) if sums(old).0 <= packets => sums(old),
            _ if connection.age_secs as f64 <= secs => (0, 0),
            // It was silent at the reading before, and how much it had is not known.
            _ => return None,
        };
        let name = |address: IpAddr, port: u16| match names.pod(address) {
            Some(pod) => format!("{pod}:{port}"),
            None => end(connection.protocol, address, port),
        };
        let asked = names.service(connection.protocol, &connection.original);
        (packets > old_packets).then(|| {
            vec![
                Cell::Text(protocol(connection.protocol).into_owned()),
                Cell::Text(name(connection.original.src, connection.original.sport)),
                Cell::Text(name(connection.reply.src, connection.reply.sport)),
                Cell::Text(asked.map_or_else(|| "-".into(), |service| service.to_string())),
                Cell::Text(state(connection)),
                Cell::Rate((packets - old_packets) as f64 / secs),
                Cell::Rate(bytes.saturating_sub(old_bytes) as f64 * 8.0 / secs),
                Cell::Count(packets),
                Cell::Age(connection.age_secs),
            ]
        })
    });
    let headers = &["PROTO", "CLIENT", "SERVER", "SERVICE", "STATE", "PPS", "BIT/S", "PACKETS", "AGE"];
    Pane { name: "flows", headers, sort: 6, rows: rows.collect() }
}

fn drops(now: &Reading, before: &Reading) -> Pane {
    let secs = seconds(now, before);
    let mut rows = Vec::new();
    for (how, reasons, old) in [("drop", &now.status.drops, &before.status.drops), ("reject", &now.status.rejects, &before.status.rejects)]
    {
        rows.extend(reasons.iter().map(|(reason, count)| {
            let words = DropReason::ALL.iter().find(|known| known.name() == reason).map(|known| known.words());
            vec![
                Cell::Text(reason.clone()),
                Cell::Text(how.into()),
                Cell::Rate(count.saturating_sub(old.get(reason).copied().unwrap_or_default()) as f64 / secs),
                Cell::Count(*count),
                Cell::Text(words.unwrap_or_default().into()),
            ]
        }));
    }
    Pane { name: "drops", headers: &["REASON", "HOW", "PPS", "PACKETS", "WHY"], sort: 2, rows }
}

/// Three digits and a unit: `7`, `1.2k`, `34.5M`.
fn short(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G"] {
        if value < 999.95 {
            return if unit.is_empty() { format!("{value:.0}") } else { format!("{value:.1}{unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1}T")
}

/// Two readings a second apart, to test with.
#[cfg(test)]
pub(super) fn readings() -> [Reading; 2] {
    use weir_dataplane::admin::figures::{ConnectionCounts, PacketCounts, PortStatus, StageRuntime, WorkerRuntime, WorkerStatus};
    use weir_dataplane::counters::{Stage, StageCounters};

    let reading = |secs: u64| {
        let packets = secs * 1_500;
        let stage = |stage, vectors, clocks| StageRuntime { stage, counters: StageCounters { calls: secs * 100, vectors, clocks } };
        let stages = vec![stage(Stage::Receive, packets, packets * 400), stage(Stage::Idle, 0, packets * 1_200)];
        let port = |name: &str, kind: &str, pod: Option<&str>, rx_packets, tx_packets| PortStatus {
            name: name.into(),
            kind: kind.into(),
            mode: "copy".into(),
            pod: pod.map(Into::into),
            rx_packets,
            rx_bytes: rx_packets * 100,
            tx_packets,
            tx_bytes: tx_packets * 100,
        };
        let mut connection = super::super::connections::through_a_service();
        (connection.original.packets, connection.original.bytes) = (packets / 2, packets * 50);
        let status = Status {
            node: "node-a".into(),
            version: "0.1.0".into(),
            generation: 3,
            uptime_secs: 3_600 + secs,
            workers: vec![WorkerStatus {
                core: 1,
                rx: packets,
                tx: packets - secs,
                batches: secs * 100,
                generation: 3,
                ..WorkerStatus::default()
            }],
            ports: vec![port("eth1", "uplink", None, packets / 3, packets / 2), port("veth7", "pod", Some("shop/web-0"), packets / 2, 7)],
            packets: PacketCounts { received: packets, forward: packets - secs, drop: secs, ..PacketCounts::default() },
            drops: [("POLICY_DENIED".into(), secs), ("TTL_EXCEEDED".into(), 3)].into(),
            rejects: [("SERVICE_BACKEND_NOT_FOUND".into(), secs * 2)].into(),
            connections: ConnectionCounts { used: 1, max: 1_048_576 },
            ..Status::default()
        };
        let runtime = Runtime {
            secs: secs as f64,
            workers: vec![WorkerRuntime {
                core: 1,
                rx: packets,
                tx: packets - secs,
                drop: secs,
                busy: packets * 400,
                system_calls: Default::default(),
                stages,
            }],
        };
        Reading { at: Duration::from_secs(secs), status, runtime, connections: vec![connection] }
    };
    [reading(1), reading(2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_between_two_readings() {
        let [before, now] = readings();
        let [ports, workers, flows, drops] = panes(&now, &before, &Names::default());
        assert_eq!(ports.rows[0][2..6], [Cell::Rate(500.0), Cell::Rate(400_000.0), Cell::Rate(750.0), Cell::Rate(600_000.0)]);
        assert_eq!(workers.rows[0][1..4], [Cell::Share(0.25), Cell::Rate(1_500.0), Cell::Rate(1_499.0)]);
        assert_eq!(flows.rows[0][5..7], [Cell::Rate(750.0), Cell::Rate(600_000.0)]);
        assert_eq!(
            drops.rows[0][..4],
            ["POLICY_DENIED".into(), "drop".into()]
                .map(Cell::Text)
                .into_iter()
                .chain([Cell::Rate(1.0), Cell::Count(2)])
                .collect::<Vec<_>>()
        );
        assert_eq!(head(&now, &before)[1], "1.5k packets/s in, 1.5k out, 1 dropped; 1 workers 25.0% busy; 1 of 1048576 connections");
    }

    #[test]
    fn a_flow_whose_past_is_unknown_has_no_rate_and_a_new_one_has() {
        let [mut before, mut now] = readings();
        before.connections.clear();
        assert!(flows(&now, &before, &Names::default()).rows.is_empty(), "it is 61 s old");
        now.connections[0].age_secs = 0;
        assert_eq!(flows(&now, &before, &Names::default()).rows[0][5], Cell::Rate(1_505.0));
        before.connections = now.connections.clone();
        assert!(flows(&now, &before, &Names::default()).rows.is_empty(), "it did not move");
    }

    #[test]
    fn figures_sort_from_the_greatest_and_names_from_the_first() {
        let [before, now] = readings();
        let mut drops = drops(&now, &before);
        let first = |pane: &Pane| pane.rows[0][0].text();
        drops.sort(2, false);
        assert_eq!(first(&drops), "SERVICE_BACKEND_NOT_FOUND");
        drops.sort(2, true);
        assert_eq!(first(&drops), "TTL_EXCEEDED");
        drops.sort(0, false);
        assert_eq!(first(&drops), "POLICY_DENIED");
        drops.filter("ttl");
        assert_eq!(drops.rows.len(), 1);
    }

    #[test]
    fn short_figures_have_a_unit() {
        for (value, text) in [(0.0, "0"), (999.4, "999"), (999.96, "1.0k"), (1_250_000.0, "1.2M"), (2e13, "20.0T")] {
            assert_eq!(short(value), text);
        }
    }
}
