//! The compiled verdict equals the rule-by-rule one, on random states.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::*;
use crate::runtime::Runtime;
use crate::tables::Tables;

const NAMES: [&str; 2] = ["http", "dns"];

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let spec = prop_oneof![
        Just(PortSpec::Any),
        (0u16..6, 0u16..4).prop_map(|(first, more)| PortSpec::Range(first, first + more)),
        Just(PortSpec::Range(0, u16::MAX)),
        Just(PortSpec::Range(u16::MAX, u16::MAX)),
        (0usize..2).prop_map(|n| PortSpec::Named(NAMES[n].into())),
    ];
    (prop::option::of(protocol()), spec).prop_map(|(protocol, port)| PortMatch { protocol, port })
}

fn selection() -> impl Strategy<Value = Selection> {
    let net = |(a, len): (u8, u8)| ipnet::IpNet::new(std::net::Ipv4Addr::new(10, 0, 0, a).into(), len).unwrap().trunc();
    let subset = |max: u32| prop::collection::btree_set(0..max, 0..=max as usize).prop_map(|s| s.into_iter().collect::<Vec<_>>());
    prop_oneof![
        3 => (subset(2), subset(4)).prop_map(|(namespaces, identities)| Selection::Pods {
            namespaces, identities, namespace_text: Some(String::new()), pod_text: String::new(),
        }),
        1 => subset(2).prop_map(|nodes| Selection::Nodes { nodes, text: String::new() }),
        2 => ((0u8..32, 27u8..=32), prop::collection::vec((0u8..32, 28u8..=32), 0..2)).prop_map(move |(cidr, except)| Selection::Block {
            cidr: net(cidr),
            except: except.into_iter().map(net).collect(),
        }),
    ]
}

fn rules(tier: Tier) -> impl Strategy<Value = Option<Vec<Rule>>> {
    let action = match tier {
        Tier::NetworkPolicy => prop_oneof![Just(Action::Allow), Just(Action::Allow), Just(Action::Allow)],
        _ => prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Pass)],
    };
    let peers = prop::option::of(prop::collection::vec(0u32..8, 0..3));
    let ports = prop::option::of(prop::collection::vec(port_match(), 1..3));
    let rule = (action, peers, ports).prop_map(|(action, peers, ports)| Rule { name: None, action, peers, ports });
    prop::option::of(prop::collection::vec(rule, 0..4))
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Tier::Admin), Just(Tier::NetworkPolicy), Just(Tier::NetworkPolicy), Just(Tier::Baseline)].prop_flat_map(|tier| {
        (0u32..8, 0i32..3, rules(tier), rules(tier)).prop_map(move |(subject, priority, ingress, egress)| Policy {
            kind: PolicyKind::NetworkPolicy,
            namespace: None,
            name: "p".into(),
            tier,
            priority,
            subject,
            ingress,
            egress,
        })
    })
}

fn state() -> impl Strategy<Value = NodeState> {
    let named = prop::collection::btree_set((0usize..2, protocol(), 0u16..6), 0..3);
    let identity = (0u32..2, named).prop_map(|(namespace, named)| Identity {
        namespace,
        labels: Default::default(),
        named_ports: named.into_iter().map(|(n, protocol, port)| NamedPort { name: NAMES[n].into(), protocol, port }).collect(),
    });
    let endpoint = (0u32..2, 0u32..4, prop::bool::weighted(0.1));
    (
        prop::collection::vec(identity, 4),
        prop::collection::vec(endpoint, 6),
        prop::collection::vec(selection(), 8),
        prop::collection::vec(policy(), 0..5),
    )
        .prop_map(|(identities, endpoints, selections, policies)| {
            let node = |n: u8| Node { name: format!("n{n}"), addresses: vec![[10, 0, 0, 16 + n].into()], ..Node::default() };
            let endpoints = endpoints.into_iter().zip(0u8..).map(|((node, identity, host_network), n)| Endpoint {
                namespace: "ns".into(),
                name: format!("pod{n}"),
                node,
                addresses: vec![if host_network { [10, 0, 0, 16 + node as u8].into() } else { [10, 0, 0, n].into() }],
                host_network,
                identity,
            });
            NodeState {
                nodes: vec![node(0), node(1)],
                namespaces: vec!["a".into(), "b".into()],
                endpoints: Arc::new(endpoints.collect()),
                identities: Arc::new(identities.into_iter().map(Arc::new).collect()),
                selections,
                policies,
                ..NodeState::default()
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn compiled_verdicts_equal_the_rules_read_one_by_one(state in state(), enforce in any::<bool>()) {
        let mut config = NodeConfig::offline("n0");
        if enforce {
            config.policy.own_node_egress = OwnNodeEgress::Enforce;
        }
        let runtime = Runtime::offline(&state, config);
        let tables = Tables::compile(&state, &runtime, 1);
        let local = state.endpoints.iter().enumerate().filter(|(_, e)| e.node == 0 && !e.host_network);
        for (pod, endpoint) in local {
            for direction in [Direction::Ingress, Direction::Egress] {
                for peer in (0u8..20).chain([31, 77]) {
                    for (protocol, port) in [6, 17, 132].into_iter().flat_map(|p| [0, 1, 2, 3, 5, 8, u16::MAX].map(|port| (p, port))).chain([(1, 0)]) {
                        for via_service in [false, true] {
                            let peer = Ip::v4(u32::from_be_bytes([10, 0, 0, peer]));
                            let query = Query { pod: pod as u32, direction, peer, protocol, port, via_service };
                            let slow = explain(&state, &runtime, &query);
                            let fast = tables.judge(endpoint.addresses[0].into(), direction, peer, protocol, port, via_service);
                            prop_assert_eq!(fast.allowed, slow.allowed, "{:?} {:?}", query, slow);
                            let named = fast.rule.map(|rule| tables.policies.site(rule));
                            let rules = slow.by.iter().chain(&slow.denied_by).map(|r| r.rule as u32).collect::<Vec<_>>();
                            prop_assert!(named.is_none_or(|site| rules.contains(&site.rule)), "{:?} is not in {:?}", named, slow);
                            prop_assert_eq!(slow.nearest.is_some(), !slow.allowed && slow.denied_by.is_none());
                        }
                    }
                }
            }
        }
    }
}

/// One pod `a` on this node and `b`, `c` on another; `b` may come in by TCP 80 to 90, everybody by the port called `dns`.
#[test]
fn one_policy_admits_what_its_rules_say_and_nothing_else() {
    let pod = |name: &str, node, n, identity| Endpoint {
        namespace: "ns".into(),
        name: name.into(),
        node,
        addresses: vec![[10, 0, 0, n].into()],
        host_network: false,
        identity,
    };
    let identity = |label: &str, named_ports| Identity { namespace: 0, labels: [("app".into(), label.into())].into(), named_ports };
    let dns = NamedPort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 };
    let pods = |identities: &[u32], text: &str| Selection::Pods {
        namespaces: vec![0],
        identities: identities.to_vec(),
        namespace_text: None,
        pod_text: text.into(),
    };
    let rule = |peers, port: PortMatch| Rule { name: None, action: Action::Allow, peers, ports: Some(vec![port]) };
    let state = NodeState {
        nodes: vec![Node { addresses: vec![[10, 1, 0, 1].into()], ..Node::default() }, Node::default()],
        namespaces: vec!["ns".into()],
        identities: Arc::new([identity("a", vec![dns]), identity("b", vec![]), identity("c", vec![])].map(Arc::new).into()),
        endpoints: vec![pod("a", 0, 1, 0), pod("b", 1, 2, 1), pod("c", 1, 3, 2)].into(),
        selections: vec![pods(&[0], "app=a"), pods(&[1], "app=b")],
        policies: vec![Policy {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some("ns".into()),
            name: "p".into(),
            tier: Tier::NetworkPolicy,
            priority: 0,
            subject: 0,
            ingress: Some(vec![
                rule(Some(vec![1]), PortMatch { protocol: Some(Protocol::Tcp), port: PortSpec::Range(80, 90) }),
                rule(None, PortMatch { protocol: Some(Protocol::Udp), port: PortSpec::Named("dns".into()) }),
            ]),
            egress: None,
        }],
        ..NodeState::default()
    };
    let runtime = Runtime::offline(&state, NodeConfig::offline("n"));
    let tables = Tables::compile(&state, &runtime, 1);
    let ip = |text: &str| Ip::from(text.parse::<std::net::IpAddr>().unwrap());
    let ingress = |from: &str, proto, port| tables.judge(ip("10.0.0.1"), Direction::Ingress, ip(from), proto, port, false);
    for (from, proto, port, rule) in [
        ("10.0.0.2", 6, 79, None),
        ("10.0.0.2", 6, 80, Some(0)),
        ("10.0.0.2", 6, 90, Some(0)),
        ("10.0.0.2", 6, 91, None),
        ("10.0.0.2", 17, 80, None),
        ("10.0.0.3", 6, 80, None),
        ("10.0.0.2", 1, 0, None),
        ("10.0.0.3", 17, 5353, Some(1)),
        ("203.0.113.9", 17, 5353, Some(1)),
    ] {
        let judged = ingress(from, proto, port);
        assert_eq!(judged.rule.map(|r| tables.policies.site(r).rule), rule, "{from} {proto} {port}");
        assert_eq!(judged.reason, rule.is_none().then_some(DropReason::PolicyDenied), "{from} {proto} {port}");
    }
    assert_eq!(ingress("10.1.0.1", 6, 22), Judgement::ALLOWED, "E1.31: the own node");
    assert_eq!(ingress("10.0.0.1", 6, 22), Judgement::ALLOWED, "E1.34: the pod itself");
    assert_eq!(tables.judge(ip("10.0.0.1"), Direction::Egress, ip("10.0.0.2"), 6, 22, false), Judgement::ALLOWED, "not isolated");
    let nearest = |peer: &str, protocol, port| {
        let query = Query { pod: 0, direction: Direction::Ingress, peer: ip(peer), protocol, port, via_service: false };
        let nearest = explain(&state, &runtime, &query).nearest.unwrap();
        (nearest.rule, nearest.fails.to_string(), nearest.detail)
    };
    assert_eq!(nearest("10.0.0.2", 6, 8080), (Some(0), "port".into(), "8080 is not in 80-90".into()));
    assert_eq!(nearest("10.0.0.3", 6, 80), (Some(0), "peer".into(), "the pod has app=c, not the label app=b".into()));
}
