//! Who gets which endpoints, and who is masqueraded (E2.15 to E2.35).

use super::*;
use crate::model::{Backend as Endpoint, Family, Frontend, Protocol, Service};

const POD: Origin = Origin::Pod;
const NODE: Origin = Origin::Node { detector: true };
const OUTSIDE: Origin = Origin::External;
const CLUSTER_IP: &str = "10.96.0.1";
const NODE_IP: &str = "192.168.0.2";
const LB_IP: &str = "1.2.3.4";

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// One service with a ClusterIP, a node port and a load balancer, two endpoints of which the first is local.
fn service(endpoints: u8) -> Service {
    let endpoint = |n: u8| Endpoint { address: [10, 180, n, 1].into(), port: 80, local: n == 0, serving: true };
    let frontend = |address: &str, port, kind| Frontend { address: address.parse().unwrap(), port, kind };
    Service {
        namespace: "ns".into(),
        name: "svc".into(),
        port_name: String::new(),
        protocol: Protocol::Tcp,
        family: Family::V4,
        frontends: vec![
            frontend(CLUSTER_IP, 80, FrontendKind::ClusterIp),
            frontend(NODE_IP, 3001, FrontendKind::NodePort),
            frontend(LB_IP, 80, FrontendKind::LoadBalancer),
        ],
        backends: (0..endpoints).map(endpoint).collect(),
        cluster: (0..u32::from(endpoints)).collect(),
        local: (0..u32::from(endpoints.min(1))).collect(),
        any_usable: endpoints > 0,
        internal_local: false,
        external_local: false,
        affinity_timeout_secs: None,
        source_ranges: Vec::new(),
        source_ranges_deny_all: false,
        health_check_port: None,
        local_ready: 0,
    }
}

fn compile(service: Service, change: impl FnOnce(&mut NodeConfig)) -> Services {
    let mut config = NodeConfig::offline("n");
    config.services.external_cluster_ip = true;
    change(&mut config);
    let state = NodeState { cluster_ips: vec![CLUSTER_IP.parse().unwrap()], services: vec![service], ..NodeState::default() };
    Services::compile(&state, &config)
}

fn tuple(to: &str) -> Tuple {
    let port = if to == NODE_IP { 3001 } else { 80 };
    Tuple { src: ip("10.0.0.2"), dst: ip(to), sport: 4000, dport: port, proto: proto::TCP }
}

/// Endpoints and masquerade, or the reason.
fn ask(services: &Services, to: &str, origin: Origin) -> Result<(usize, bool), DropReason> {
    match services.candidates(&tuple(to), origin, false) {
        Candidates::Backends { backends, masquerade, .. } => Ok((backends.len(), masquerade)),
        Candidates::Refuse(reason, _) | Candidates::Drop(reason, _) => Err(reason),
        Candidates::NotService => panic!("{to} is a service"),
    }
}

#[test]
fn traffic_policies_choose_the_endpoints_and_e2_27_the_source() {
    let plain = compile(service(2), |_| {});
    let external_local = compile(Service { external_local: true, ..service(2) }, |_| {});
    let internal_local = compile(Service { internal_local: true, ..service(2) }, |_| {});
    for (to, origin, of_plain, of_external_local, of_internal_local) in [
        (CLUSTER_IP, POD, (2, false), (2, false), (1, false)),
        (NODE_IP, POD, (2, true), (2, false), (2, true)),
        (LB_IP, POD, (2, true), (2, false), (2, true)),
        (CLUSTER_IP, NODE, (2, true), (2, true), (1, true)),
        (NODE_IP, NODE, (2, true), (2, true), (2, true)),
        (LB_IP, NODE, (2, true), (2, true), (2, true)),
        (CLUSTER_IP, OUTSIDE, (2, true), (2, true), (1, true)),
        (NODE_IP, OUTSIDE, (2, true), (1, false), (2, true)),
        (LB_IP, OUTSIDE, (2, true), (1, false), (2, true)),
    ] {
        assert_eq!(ask(&plain, to, origin), Ok(of_plain), "{to} {origin:?}");
        assert_eq!(ask(&external_local, to, origin), Ok(of_external_local), "{to} {origin:?}, external Local");
        assert_eq!(ask(&internal_local, to, origin), Ok(of_internal_local), "{to} {origin:?}, internal Local");
    }
    for origin in [Origin::Unknown, Origin::Node { detector: false }] {
        assert_eq!(ask(&plain, CLUSTER_IP, origin), Ok((2, false)), "nobody counts as off-cluster");
    }
    let all = compile(service(2), |c| c.masquerade.all = true);
    assert_eq!(ask(&all, CLUSTER_IP, POD), Ok((2, true)));
}

#[test]
fn none_usable_refuses_and_none_local_drops() {
    let none = compile(service(0), |_| {});
    assert_eq!(ask(&none, CLUSTER_IP, POD), Err(DropReason::ServiceBackendNotFound), "E2.13");
    let far = Service { local: Vec::new(), external_local: true, internal_local: true, ..service(2) };
    let far = compile(far, |_| {});
    assert_eq!(ask(&far, CLUSTER_IP, POD), Err(DropReason::ServiceNoLocalBackend), "E2.14");
    assert_eq!(ask(&far, LB_IP, OUTSIDE), Err(DropReason::ServiceNoLocalBackend), "E2.14");
    assert_eq!(ask(&far, LB_IP, POD), Ok((2, false)), "E2.19");
    let inside = compile(service(1), |c| c.services.external_cluster_ip = false);
    assert_eq!(ask(&inside, CLUSTER_IP, OUTSIDE), Err(DropReason::ServiceNotExternal), "E2.7");
}

#[test]
fn source_ranges_guard_load_balancer_addresses_alone() {
    let guarded = Service { source_ranges: vec!["203.0.113.0/25".parse().unwrap()], ..service(1) };
    let services = compile(guarded.clone(), |_| {});
    assert_eq!(ask(&services, LB_IP, POD), Err(DropReason::LbSourceRange));
    assert!(ask(&services, NODE_IP, POD).is_ok(), "E2.31");
    let from_range = Tuple { src: ip("203.0.113.2"), ..tuple(LB_IP) };
    assert!(matches!(services.candidates(&from_range, OUTSIDE, false), Candidates::Backends { .. }));
    let deny_all = compile(Service { source_ranges_deny_all: true, ..guarded }, |_| {});
    assert!(matches!(deny_all.candidates(&from_range, OUTSIDE, false), Candidates::Drop(DropReason::LbSourceRange, _)));
}

fn choose(services: &Services, tuple: &Tuple, affinity: &Affinity, now: u32, random: &mut fastrand::Rng) -> Backend {
    match services.select(tuple, POD, false, affinity, now, random) {
        Selection::Backend { backend, .. } => backend,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_choice_is_uniform() {
    let services = compile(service(10), |_| {});
    let (affinity, mut random) = (Affinity::new(16, 1), fastrand::Rng::with_seed(1));
    let mut counts = HashMap::new();
    for _ in 0..10_000 {
        *counts.entry(choose(&services, &tuple(CLUSTER_IP), &affinity, 0, &mut random)).or_insert(0i64) += 1;
    }
    // Chi-square with 9 degrees of freedom: above 27.9 once in a thousand seeds.
    let chi_square: i64 = counts.values().map(|n| (n - 1000) * (n - 1000)).sum::<i64>() / 1000;
    assert!(counts.len() == 10 && chi_square < 28, "{chi_square}: {counts:?}");
}

#[test]
fn a_client_keeps_its_endpoint_until_it_is_idle_too_long_or_the_endpoint_is_gone() {
    let sticky = Service { affinity_timeout_secs: Some(100), ..service(50) };
    let services = compile(sticky.clone(), |_| {});
    let (affinity, mut random) = (Affinity::new(1024, 1), fastrand::Rng::with_seed(2));
    let first = choose(&services, &tuple(CLUSTER_IP), &affinity, 1000, &mut random);
    for (to, at) in [(CLUSTER_IP, 1001), (NODE_IP, 1099), (CLUSTER_IP, 1198)] {
        assert_eq!(choose(&services, &tuple(to), &affinity, at, &mut random), first, "E2.34 at {at}");
    }
    let later = (0..5).map(|n| choose(&services, &tuple(CLUSTER_IP), &affinity, 1298 + n * 100, &mut random));
    assert!(later.into_iter().any(|backend| backend != first), "idle for the whole timeout");
    let kept = choose(&services, &tuple(CLUSTER_IP), &affinity, 5000, &mut random);
    let without = sticky.backends.iter().position(|b| Ip::from(b.address) == kept.address).unwrap() as u32;
    let services = compile(Service { cluster: (0..50).filter(|i| *i != without).collect(), ..sticky }, |_| {});
    assert_ne!(choose(&services, &tuple(CLUSTER_IP), &affinity, 5001, &mut random), kept);
}

#[test]
fn hashing_schedulers_move_few_clients_when_one_backend_of_a_hundred_leaves() {
    for scheduler in [Scheduler::SourceHash, Scheduler::Maglev] {
        let before = compile(service(100), |c| c.services.scheduler = scheduler);
        let after = compile(Service { cluster: (0..99).collect(), ..service(100) }, |c| c.services.scheduler = scheduler);
        let (affinity, mut random) = (Affinity::new(16, 1), fastrand::Rng::with_seed(3));
        let gone = Backend { address: Ip::from(std::net::IpAddr::from([10, 180, 99, 1])), port: 80 };
        let (mut moved, mut orphans) = (0, 0);
        let mut load = HashMap::new();
        for client in 0..10_000u32 {
            let tuple = Tuple { src: Ip::v4(0x0a00_0000 + client), ..tuple(CLUSTER_IP) };
            let old = choose(&before, &tuple, &affinity, 0, &mut random);
            let new = choose(&after, &tuple, &affinity, 0, &mut random);
            assert_eq!(choose(&before, &tuple, &affinity, 0, &mut random), old, "the same client, the same backend");
            *load.entry(old).or_insert(0) += 1;
            orphans += u32::from(old == gone);
            moved += u32::from(old != new && old != gone);
        }
        assert!(moved <= 300, "{scheduler:?}: {moved} of 10,000 moved beside {orphans} that had to");
        assert!(load.values().all(|n| (50..200).contains(n)), "{scheduler:?}: {load:?}");
    }
}
