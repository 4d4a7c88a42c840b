//! What `weir conntrack` and `weir nat` share: which connections are wanted, and how their ends are named.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use weir_dataplane::admin::figures::{Connection, ConnectionSide};
use weir_dataplane::model::{NodeState, Service, proto};

use super::common::{endpoint, parse_protocol};

/// Which connections; what is given must all hold.
#[derive(Debug, clap::Args)]
pub(super) struct ConnectionFilter {
    /// Only of this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(short, long, value_name = "PROTO", value_parser = parse_protocol)]
    proto: Option<u8>,
    /// Only opened from this address or range
    #[arg(short, long, visible_alias = "orig-src", value_name = "ADDRESS", value_parser = parse_range)]
    src: Option<IpNet>,
    /// Only opened to this address or range, as the opener sent it: of a Service, the Service's
    #[arg(short, long, visible_alias = "orig-dst", value_name = "ADDRESS", value_parser = parse_range)]
    dst: Option<IpNet>,
    /// Only opened from this port
    #[arg(long, value_name = "N")]
    sport: Option<u16>,
    /// Only opened to this port
    #[arg(long, value_name = "N")]
    dport: Option<u16>,
    /// Only where an end is in this address or range, before or after translation
    #[arg(short, long, value_name = "ADDRESS", value_parser = parse_range)]
    address: Option<IpNet>,
    /// Only where an end has this port, before or after translation
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Only in this state: ESTABLISHED, TIME_WAIT, …; REPLIED, UNREPLIED and ASSURED hold for every protocol
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only where an end is this pod, before or after translation
    #[arg(long, value_name = "NAMESPACE/POD")]
    pub(super) pod: Option<String>,
}

impl ConnectionFilter {
    /// Tells whether a connection is wanted. `names` must know the pods where [`pod`](Self::pod) is asked for.
    pub(super) fn wants(&self, connection: &Connection, names: &Names<'_>) -> bool {
        let Connection { original, reply, .. } = connection;
        let ends = [(original.src, original.sport), (original.dst, original.dport), (reply.src, reply.sport), (reply.dst, reply.dport)];
        let within = |range: &Option<IpNet>, address: &IpAddr| range.is_none_or(|range| range.contains(address));
        self.proto.is_none_or(|proto| proto == connection.protocol)
            && within(&self.src, &original.src)
            && within(&self.dst, &original.dst)
            && self.sport.is_none_or(|port| port == original.sport)
            && self.dport.is_none_or(|port| port == original.dport)
            && self.address.is_none_or(|range| ends.iter().any(|(address, _)| range.contains(address)))
            && self.port.is_none_or(|port| ends.iter().any(|(_, of)| *of == port))
            && self.state.as_ref().is_none_or(|state| states(connection).iter().any(|s| s.eq_ignore_ascii_case(state)))
            && self.pod.as_ref().is_none_or(|pod| ends.iter().any(|(address, _)| names.pod(*address) == Some(pod)))
    }
}

/// Every word that says how a connection is.
fn states(connection: &Connection) -> Vec<&str> {
    let replied = if connection.replied { "REPLIED" } else { "UNREPLIED" };
    let assured = connection.assured.then_some("ASSURED");
    connection.state.as_deref().into_iter().chain([replied]).chain(assured).collect()
}

/// The one word that says most of how a connection is.
pub(super) fn state(connection: &Connection) -> String {
    states(connection)[0].to_owned()
}

/// Parses an address, or a range of them.
fn parse_range(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "neither an address nor a range (10.0.0.0/8)".to_owned())
}

/// Who has an address, as the state in force says.
#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    pods: HashMap<IpAddr, String>,
    services: HashMap<(IpAddr, u8, u16), &'a Service>,
}

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ServiceName {
    namespace: String,
    name: String,
    /// `null` where it has no name.
    port: Option<String>,
}

impl<'a> Names<'a> {
    pub(super) fn new(state: &'a NodeState) -> Self {
        let mut names = Self::default();
        for pod in state.endpoints.iter().filter(|pod| !pod.host_network) {
            names.pods.extend(pod.addresses.iter().map(|address| (*address, format!("{}/{}", pod.namespace, pod.name))));
        }
        for service in &state.services {
            let protocol = service.protocol.number();
            names.services.extend(service.frontends.iter().map(|f| ((f.address, protocol, f.port), service.as_ref())));
        }
        names
    }

    /// `namespace/name` of the pod that has an address.
    pub(super) fn pod(&self, address: IpAddr) -> Option<&String> {
        self.pods.get(&address)
    }

    /// The Service port that is reached there.
    pub(super) fn service(&self, protocol: u8, side: &ConnectionSide) -> Option<ServiceName> {
        let service = self.services.get(&(side.dst, protocol, side.dport))?;
        let port = Some(service.port_name.clone()).filter(|name| !name.is_empty());
        Some(ServiceName { namespace: service.namespace.clone(), name: service.name.clone(), port })
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let port = self.port.as_ref().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{}/{}{port}", self.namespace, self.name)
    }
}

/// Puts connections in the order in which people look for them: by protocol, then by who opened them to whom.
pub(super) fn sort(connections: &mut [Connection]) {
    connections.sort_by_key(|c| {
        let ConnectionSide { src, dst, sport, dport, .. } = c.original;
        (c.protocol, src, sport, dst, dport)
    });
}

/// `address:port`, an ICMP echo's identifier after a comma, the address alone for what has neither.
pub(super) fn end(protocol: u8, address: IpAddr, port: u16) -> String {
    match protocol {
        proto::TCP | proto::UDP | proto::SCTP => endpoint(address, port),
        proto::ICMP | proto::ICMPV6 => format!("{address},id={port}"),
        _ => address.to_string(),
    }
}

/// A connection to test with: a client's, by way of a Service, to a backend.
#[cfg(test)]
pub(super) fn through_a_service() -> Connection {
    let side = |src: &str, dst: &str, sport, dport| ConnectionSide {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        sport,
        dport,
        packets: 5,
        bytes: 420,
    };
    Connection {
        protocol: proto::TCP,
        state: Some("ESTABLISHED".into()),
        age_secs: 61,
        timeout_secs: 431_999,
        original: side("10.244.1.5", "10.96.0.10", 40000, 80),
        reply: side("10.244.2.7", "10.244.1.5", 8080, 40000),
        replied: true,
        assured: true,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        filter: ConnectionFilter,
    }

    #[test]
    fn filters_say_what_conntrack_users_expect() {
        let mut names = Names::default();
        names.pods.insert("10.244.2.7".parse().unwrap(), "shop/web-0".into());
        for (arguments, wanted) in [
            (&[][..], true),
            (&["-a", "10.96.0.10"], true),
            (&["-a", "10.244.0.0/16"], true),
            (&["-a", "10.96.0.11"], false),
            (&["--port", "8080", "-p", "TCP"], true),
            (&["-p", "6"], true),
            (&["-p", "udp"], false),
            (&["--src", "10.244.1.5", "--dst", "10.96.0.0/24"], true),
            // The backend is not what the opener asked for.
            (&["--dst", "10.244.2.7"], false),
            (&["--dport", "80", "--sport", "40000"], true),
            (&["--dport", "8080"], false),
            (&["--state", "established"], true),
            (&["--state", "ASSURED"], true),
            (&["--state", "UNREPLIED"], false),
            (&["--pod", "shop/web-0"], true),
            (&["--pod", "shop/web-1"], false),
        ] {
            let line = Line::parse_from([&["x"], arguments].concat());
            assert_eq!(line.filter.wants(&through_a_service(), &names), wanted, "{arguments:?}");
        }
        assert!(Line::try_parse_from(["x", "--src", "10.0.0"]).is_err());
    }

    #[test]
    fn the_order_does_not_depend_on_where_an_entry_lies() {
        let mut connections: Vec<Connection> = [40003, 40001, 40002]
            .map(|sport| {
                let mut connection = through_a_service();
                connection.original.sport = sport;
                connection
            })
            .into();
        connections[0].protocol = proto::ICMP;
        sort(&mut connections);
        let order: Vec<(u8, u16)> = connections.iter().map(|c| (c.protocol, c.original.sport)).collect();
        assert_eq!(order, [(proto::ICMP, 40003), (proto::TCP, 40001), (proto::TCP, 40002)]);
    }

    #[test]
    fn ends_are_written_as_their_protocol_has_them() {
        let address = "fd00::1".parse().unwrap();
        assert_eq!(end(proto::TCP, address, 80), "[fd00::1]:80");
        assert_eq!(end(proto::ICMPV6, address, 7), "fd00::1,id=7");
        assert_eq!(end(47, address, 0), "fd00::1");
    }
}
