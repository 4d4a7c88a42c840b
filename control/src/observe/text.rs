//! Flow events in the words and forms of `hubble observe`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use weir_dataplane::flows::{EventType, Flow, Party, Verdict};
use weir_dataplane::verdict::DropReason;

use crate::sim::hubble::{destination, summary};
use crate::sim::row::end;

/// What the lines of one printer have in common.
#[derive(Clone, Debug)]
pub struct Style {
    /// Where times are told.
    pub zone: TimeZone,
    /// Addresses instead of names.
    pub numeric: bool,
    /// Name the node.
    pub node: bool,
    /// Say what policies said.
    pub policies: bool,
}

/// The columns of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// `Nov 20 15:04:05.000`.
    pub time: String,
    /// The node that decided, where it is wanted.
    pub node: Option<String>,
    /// Sender, or of a reply, who it is for.
    pub source: String,
    /// The other end.
    pub destination: String,
    /// `->`, `<-` for replies, `<>` where nobody knows.
    pub arrow: &'static str,
    /// Event type, or of a drop, the reason.
    pub kind: String,
    /// `FORWARDED` or `DROPPED`.
    pub verdict: String,
    /// The packet in short, and where wanted, what policies said.
    pub summary: String,
}

/// Names the columns of a table.
pub const HEADERS: [&str; 6] = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"];

impl Columns {
    /// The columns of `flow`.
    pub fn new(flow: &Flow, style: &Style) -> Self {
        let is_reply = flow.state.is_reply();
        let (source, destination) = ends(flow, style);
        let (source, destination) = if is_reply == Some(true) { (destination, source) } else { (source, destination) };
        let mut words = flow.packet.as_ref().map(|packet| summary(packet).to_string()).unwrap_or_default();
        if let Some(side) = flow.policy.as_ref().filter(|_| style.policies) {
            words = if words.is_empty() { side.to_string() } else { format!("{words}; {side}") };
        }
        Self {
            time: stamp(flow.time, &style.zone),
            node: style.node.then(|| flow.node.to_string()),
            source,
            destination,
            arrow: match is_reply {
                Some(false) => "->",
                Some(true) => "<-",
                None => "<>",
            },
            kind: flow.reason.map_or_else(|| point(flow.event_type()), drop_text).into(),
            verdict: match flow.verdict() {
                Verdict::Forwarded => "FORWARDED",
                Verdict::Dropped => "DROPPED",
            }
            .into(),
            summary: words,
        }
    }

    /// `Nov 20 15:04:05.000: shop/a:1234 (ID:257) -> shop/b:80 (ID:258) to-endpoint FORWARDED (TCP Flags: SYN)`
    pub fn compact(&self) -> String {
        let Self { time, source, destination, arrow, kind, verdict, summary, .. } = self;
        let node = self.node.as_ref().map(|node| format!(" [{node}]")).unwrap_or_default();
        let summary = if summary.is_empty() { String::new() } else { format!(" ({summary})") };
        format!("{time}{node}: {source} {arrow} {destination} {kind} {verdict}{summary}")
    }

    /// One field a line.
    pub fn dict(&self) -> String {
        let Self { time, source, destination, kind, verdict, summary, .. } = self;
        let node = self.node.as_ref().map(|node| format!("       NODE: {node}\n")).unwrap_or_default();
        format!(
            "  TIMESTAMP: {time}\n{node}     SOURCE: {source}\nDESTINATION: {destination}\n       TYPE: {kind}\n    VERDICT: {verdict}\n    SUMMARY: {summary}"
        )
    }

    /// One row of a table without end, whose widths are not known beforehand.
    pub fn row(&self) -> String {
        let Self { time, source, destination, kind, verdict, summary, .. } = self;
        let node = self.node.as_ref().map(|node| format!("{node:<16}   ")).unwrap_or_default();
        format!("{time:<19}   {node}{source:<32}   {destination:<32}   {kind:<16}   {verdict:<9}   {summary}")
    }
}

/// Both ends: `namespace/pod:port (ID:n)`, or an address and whose it is.
fn ends(flow: &Flow, style: &Style) -> (String, String) {
    let Some(packet) = &flow.packet else { return (flow.in_port.to_string(), flow.out_port.as_deref().unwrap_or("<>").to_owned()) };
    let tuple = &packet.tuple;
    let (dst, dport) = destination(flow, tuple);
    let one = |party: Option<&Party>, ip, port| {
        let address = end(packet, ip, port);
        match party {
            Some(Party { identity, pod: Some(pod), .. }) => {
                let port = if packet.has_ports() { format!(":{port}") } else { String::new() };
                let name = if style.numeric { address } else { format!("{pod}{port}") };
                format!("{name} (ID:{identity})")
            }
            Some(Party { labels, .. }) => {
                let whose = labels.first().and_then(|label| label.strip_prefix("reserved:")).unwrap_or("unknown");
                format!("{address} ({whose})")
            }
            None => address,
        }
    };
    (one(flow.source.as_deref(), tuple.src, tuple.sport), one(flow.destination.as_deref(), dst, dport))
}

fn stamp(time: u64, zone: &TimeZone) -> String {
    let Ok(timestamp) = Timestamp::from_nanosecond(time.into()) else { return time.to_string() };
    timestamp.to_zoned(zone.clone()).strftime("%b %e %H:%M:%S%.3f").to_string()
}

fn point(event: EventType) -> &'static str {
    match event {
        EventType::Drop => "drop",
        EventType::ToEndpoint => "to-endpoint",
        EventType::ToStack => "to-stack",
        EventType::ToOverlay => "to-overlay",
        EventType::ToNetwork | EventType::Trace => "to-network",
    }
}

/// What Hubble prints for a reason (cilium `pkg/monitor/api/drop.go`); its name where Cilium has none like it.
fn drop_text(reason: DropReason) -> &'static str {
    match reason.code() {
        132 => "Invalid source ip",
        133 => "Policy denied",
        134 => "Invalid packet",
        135 => "CT: Truncated or invalid header",
        136 => "Fragmentation needed",
        139 => "Unsupported L3 protocol",
        142 => "Unknown L4 protocol",
        151 => "Stale or unroutable IP",
        155 => "CT: Map insertion failed",
        156 => "Invalid IPv6 extension header",
        157 => "IP fragmentation not supported",
        158 => "Service backend not found",
        160 => "No tunnel/encapsulation endpoint (datapath BUG!)",
        166 => "Unsupported L2 protocol",
        167 => "No mapping for NAT masquerade",
        169 => "FIB lookup failed",
        170 => "Encapsulation traffic is prohibited",
        175 => "First logical datagram fragment not found",
        177 => "Denied by LB src range check",
        181 => "Policy denied by denylist",
        182 => "VLAN traffic disallowed by VLAN filter",
        183 => "Incorrect VNI from VTEP",
        196 => "TTL exceeded",
        198 => "Rate limited",
        203 => "Endpoint not ready",
        _ => reason.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_dataplane::conntrack::{FlowDir, Tuple};
    use weir_dataplane::events::CtState;
    use weir_dataplane::flows::{End, Filter, Labels, Outcome, PacketHead, PodName, Term, Test};
    use weir_dataplane::model::{Ip, MacAddr, proto};

    const STYLE: Style = Style { zone: TimeZone::UTC, numeric: false, node: false, policies: false };

    fn party(name: &str, identity: u32) -> Party {
        let pod = PodName { namespace: "shop".into(), name: name.into() };
        Party { identity, labels: vec![format!("k8s:app={name}")], pod: Some(pod) }
    }

    /// The first packet of `shop/a` to the service of `shop/b`.
    fn flow() -> Flow {
        let ip = |last: u32| Ip::v4(0x0af4_0100 | last);
        let tuple = Tuple { src: ip(5), dst: Ip::v4(0x0a60_000a), sport: 1234, dport: 80, proto: proto::TCP };
        let packet = PacketHead {
            tuple,
            src_mac: MacAddr::default(),
            dst_mac: MacAddr::default(),
            len: 60,
            tcp_flags: weir_dataplane::wire::tcp::SYN,
            icmp_type: 0,
            icmp_code: 0,
            later_fragment: false,
        };
        Flow {
            time: 1_795_187_045_000_000_000,
            node: "node-a".into(),
            generation: 1,
            outcome: Outcome::Forward,
            reason: None,
            in_port: "shop/a".into(),
            out_port: Some("shop/b".into()),
            state: CtState::New,
            packet: Some(packet),
            after: Some(Tuple { dst: ip(6), dport: 8080, ..tuple }),
            source: Some(party("a", 257).into()),
            destination: Some(party("b", 258).into()),
            service: None,
            backend: Some("10.244.1.6:8080".parse().unwrap()),
            policy: None,
            encap: None,
            decap: None,
            mtu: None,
        }
    }

    #[test]
    fn lines_are_those_of_hubble_observe() {
        let line = |flow: &Flow| Columns::new(flow, &STYLE).compact();
        let mut flow = flow();
        assert_eq!(line(&flow), "Nov 20 15:04:05.000: shop/a:1234 (ID:257) -> shop/b:8080 (ID:258) to-endpoint FORWARDED (TCP Flags: SYN)");
        (flow.reason, flow.outcome, flow.out_port) = (Some(DropReason::PolicyDenied), Outcome::Drop, None);
        assert_eq!(line(&flow), "Nov 20 15:04:05.000: shop/a:1234 (ID:257) -> shop/b:8080 (ID:258) Policy denied DROPPED (TCP Flags: SYN)");
        let numeric = Style { numeric: true, node: true, ..STYLE };
        let line = Columns::new(&flow, &numeric).compact();
        assert!(line.contains(" [node-a]: 10.244.1.5:1234 (ID:257) -> 10.244.1.6:8080 (ID:258) "), "{line}");
    }

    #[test]
    fn a_reason_of_our_own_is_named_and_not_taken_for_the_nearest_of_ciliums() {
        for reason in DropReason::ALL {
            let (nearest, _) = crate::sim::hubble::cilium(*reason);
            assert_eq!(drop_text(*reason) == reason.name(), nearest != reason.code(), "{}", reason.name());
        }
    }

    #[test]
    fn replies_stand_behind_the_arrow_and_the_world_has_no_name() {
        let mut flow = flow();
        let packet = flow.packet.as_mut().unwrap();
        packet.tuple = flow.after.unwrap().inverse();
        flow.after = Some(Tuple { src: Ip::v4(0x0a60_000a), sport: 80, ..packet.tuple });
        (flow.state, flow.source) = (CtState::Established(FlowDir::Reply), flow.destination.take());
        flow.destination = Some(Party { identity: 2, labels: vec!["reserved:world".into()], pod: None }.into());
        let line = Columns::new(&flow, &STYLE).compact();
        assert!(line.contains(": 10.244.1.5:1234 (world) <- shop/b:8080 (ID:258) to-endpoint"), "{line}");
    }

    #[test]
    fn filters_look_at_names_labels_and_both_sides_of_a_translation() {
        let flow = flow();
        let names = |text: &str| vec![PodName { namespace: "shop".into(), name: text.into() }];
        for (not, test, wanted) in [
            (false, Test::Pod(End::From, names("a")), true),
            (false, Test::Pod(End::To, names("a")), false),
            (false, Test::Pod(End::Either, names("b")), true),
            (true, Test::Pod(End::Either, names("b")), false),
            (false, Test::Namespace(End::To, vec!["shop".into()]), true),
            (false, Test::Label(End::From, vec![Labels::parse("app=a")]), true),
            (false, Test::Label(End::From, vec![Labels::parse("k8s:app")]), true),
            (false, Test::Label(End::From, vec![Labels::parse("app=a,tier=x")]), false),
            (false, Test::Ip(End::To, vec!["10.96.0.10/32".parse().unwrap()]), true),
            (false, Test::Ip(End::To, vec!["10.244.1.6/32".parse().unwrap()]), true),
            (false, Test::Ip(End::From, vec!["10.244.1.6/32".parse().unwrap()]), false),
            (false, Test::Port(End::To, vec![(8080, 8080)]), true),
            (false, Test::Port(End::From, vec![(80, 80)]), false),
            (false, Test::Verdict(vec![Verdict::Dropped]), false),
            (false, Test::Type(vec![EventType::Trace]), true),
            (false, Test::Type(vec![EventType::ToOverlay]), false),
            (false, Test::TcpFlags(vec![weir_dataplane::wire::tcp::SYN]), true),
            (false, Test::Protocol(vec![proto::UDP]), false),
        ] {
            let filter = Filter(vec![Term { not, test }]);
            assert_eq!(filter.wants(&flow), wanted, "{filter:?}");
        }
    }
}
