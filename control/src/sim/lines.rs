//! The lines of `weir replay -o json`, written fast: the bytes that serde makes of a [`Row`](super::row::Row), without making one.

use std::io::{self, Write};

use serde::Serialize;
use weir_dataplane::conntrack::Tuple;
use weir_dataplane::flows::{Flow, PacketHead};
use weir_dataplane::model::Ip;
use weir_dataplane::verdict::DropReason;

use super::bytes::{self, Clock, field, number, quoted, socket, text};
use super::row::protocol;

/// Writes lines.
#[derive(Debug, Default)]
pub struct Lines {
    clock: Clock,
    line: Vec<u8>,
}

impl Lines {
    /// Writes the line of packet number `n`, with its end.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&mut self, out: &mut impl Write, n: u64, flow: &Flow) -> io::Result<()> {
        let packet = flow.packet.as_ref();
        let line = &mut self.line;
        line.clear();
        text(line, r#"{"n":"#);
        number(line, n);
        text(line, r#","time":""#);
        self.clock.timestamp(line, flow.time);
        text(line, r#"","in":"#);
        quoted(line, &flow.in_port);
        name(line, "verdict", Some(flow.outcome.verdict()));
        name(line, "reason", flow.reason.map(DropReason::name));
        name(line, "out", flow.out_port.as_deref());
        end(line, "src", packet.map(|p| (p, source(&p.tuple))));
        end(line, "dst", packet.map(|p| (p, destination(&p.tuple))));
        name(line, "proto", packet.map(|p| protocol(p.tuple.proto)).as_deref());
        field(line, "service");
        match flow.service.as_deref() {
            Some(service) => {
                text(line, r#"{"namespace":"#);
                quoted(line, &service.namespace);
                name(line, "name", Some(&service.name));
                name(line, "port", service.port.as_deref());
                line.push(b'}');
            }
            None => null(line),
        }
        field(line, "backend");
        match flow.backend {
            Some(backend) => {
                line.push(b'"');
                socket(line, backend.ip().into(), backend.port());
                line.push(b'"');
            }
            None => null(line),
        }
        data(line, "policy", flow.policy.as_ref())?;
        count(line, "reason_code", flow.reason.map(|reason| reason.code().into()));
        name(line, "state", flow.state.name());
        for (key, of) in [("snat", source as fn(&Tuple) -> (Ip, u16)), ("dnat", destination)] {
            let changed = packet.zip(flow.after.as_ref()).map(|(packet, after)| (packet, of(after)));
            end(line, key, changed.filter(|(packet, after)| *after != of(&packet.tuple)));
        }
        data(line, "encap", flow.encap.as_ref())?;
        name(line, "decap", flow.decap.as_deref());
        count(line, "mtu", flow.mtu.map(u64::from));
        text(line, "}\n");
        out.write_all(line)
    }
}

fn source(tuple: &Tuple) -> (Ip, u16) {
    (tuple.src, tuple.sport)
}

fn destination(tuple: &Tuple) -> (Ip, u16) {
    (tuple.dst, tuple.dport)
}

fn null(line: &mut Vec<u8>) {
    text(line, "null");
}

fn name(line: &mut Vec<u8>, key: &str, value: Option<&str>) {
    field(line, key);
    match value {
        Some(value) => quoted(line, value),
        None => null(line),
    }
}

fn count(line: &mut Vec<u8>, key: &str, value: Option<u64>) {
    field(line, key);
    match value {
        Some(value) => number(line, value),
        None => null(line),
    }
}

fn end(line: &mut Vec<u8>, key: &str, value: Option<(&PacketHead, (Ip, u16))>) {
    field(line, key);
    let Some((packet, (ip, port))) = value else { return null(line) };
    line.push(b'"');
    bytes::end(line, packet, ip, port);
    line.push(b'"');
}

fn data(line: &mut Vec<u8>, key: &str, value: Option<&impl Serialize>) -> io::Result<()> {
    field(line, key);
    match value {
        Some(value) => Ok(serde_json::to_writer(line, value)?),
        None => {
            null(line);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_dataplane::capture::Capture;
    use weir_dataplane::flows::Namer;
    use weir_dataplane::model::NodeConfig;

    use super::*;
    use crate::compile::compile;
    use crate::sim::node::SimNode;
    use crate::sim::replay::{self, Taken};
    use crate::sim::row::Row;

    #[test]
    fn lines_are_what_serde_makes_of_rows() {
        let shop = weir_fixtures::root().join("clusters/shop");
        let mut captures: Vec<_> = weir_fixtures::scenarios().into_iter().map(|f| (f.join("snapshot.yaml"), f.join("in.pcap"))).collect();
        let shared = weir_fixtures::shared_captures().expect("../shared/pcaps is missing: these captures are shared beside the project");
        let files = std::fs::read_dir(shared).unwrap().map(|file| file.unwrap().path()).filter(|p| p.to_string_lossy().contains(".pcap"));
        captures.extend(files.map(|file| (shop.clone(), file)));
        let mut compared = 0;
        for (snapshot, capture) in captures {
            let snapshot = crate::source::load(&[snapshot]).unwrap();
            let config = NodeConfig::offline("node-a");
            let state = compile(&snapshot, "node-a", &config).unwrap();
            let mut node = SimNode::new(&state, config, 1).unwrap();
            let port_of = replay::port_of(&node, &[]).unwrap();
            let (mut namer, mut lines) = (Namer::new(node.tables().clone()), Lines::default());
            let mut watcher = |taken: &Taken<'_>| {
                let mut line = Vec::new();
                let flow = namer.flow(taken.note.time, taken.fate);
                lines.write(&mut line, taken.note.number, &flow).unwrap();
                let row = Row::new(taken.note.number, &flow);
                assert_eq!(String::from_utf8(line).unwrap(), serde_json::to_string(&row).unwrap() + "\n", "{}", capture.display());
                compared += 1;
                Ok(())
            };
            replay::run(&mut node, Capture::open(&capture).unwrap(), port_of, Some(&mut watcher), |_, _| {}).unwrap();
        }
        assert!(compared > 5_000, "{compared}");
    }
}
