//! Who gets which endpoints, and who is masqueraded (E2.15 to E2.35).

use super::*;
use crate::model::{Backend as Endpoint, Frontend, Service};

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
        frontends: vec![
            frontend(CLUSTER_IP, 80, FrontendKind::ClusterIp),
            frontend(NODE_IP, 3001, FrontendKind::NodePort),
            frontend(LB_IP, 80, FrontendKind::LoadBalancer),
        ],
        backends: (0..endpoints).map(endpoint).collect(),
        cluster: (0..u32::from(endpoints)).collect(),
        local: (0..u32::from(endpoints.min(1))).collect(),
        any_usable: endpoints > 0,
        ..Service::default()
    }
}

fn compile(service: Service, change: impl FnOnce(&mut NodeConfig)) -> Services {
    let mut config = NodeConfig::offline("n");
    config.services.external_cluster_ip = true;
    change(&mut config);
    let state = NodeState { cluster_ips: vec![CLUSTER_IP.parse().unwrap()], services: vec![service.into()], ..NodeState::default() };
    Services::compile(&state, &config, None, &|_| None)
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
    let services = compile(guarded, |_| {});
    assert_eq!(ask(&services, LB_IP, POD), Err(DropReason::LbSourceRange));
    assert!(ask(&services, NODE_IP, POD).is_ok(), "E2.31");
    let from_range = Tuple { src: ip("203.0.113.2"), ..tuple(LB_IP) };
    assert!(matches!(services.candidates(&from_range, OUTSIDE, false), Candidates::Backends { .. }));
}

fn choose(services: &Services, tuple: &Tuple, affinity: &Affinity, now: u32, random: &mut fastrand::Rng) -> Backend {
    match services.select(tuple, POD, || false, affinity, |_| 0, now, random) {
        Selection::Backend(chosen) => chosen.backend,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_choice_is_uniform_e2_15() {
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
fn what_is_foreseen_comes_true_where_the_choice_depends_on_nothing_else() {
    let (affinity, mut random) = (Affinity::new(16, 1), fastrand::Rng::with_seed(3));
    for scheduler in [Scheduler::Random, Scheduler::SourceHash, Scheduler::Maglev] {
        let services = compile(service(10), |c| c.services.scheduler = scheduler);
        let mut ahead = random.clone();
        for sport in 0..100 {
            let tuple = Tuple { sport, ..tuple(CLUSTER_IP) };
            let foreseen = services.foresee(&tuple, POD, &mut ahead);
            assert_eq!(foreseen.map(|chosen| chosen.backend), Some(choose(&services, &tuple, &affinity, 0, &mut random)), "{scheduler:?}");
        }
    }
    let sticky = compile(Service { affinity_timeout_secs: Some(100), ..service(10) }, |_| {});
    let counting = compile(service(10), |c| c.services.scheduler = Scheduler::LeastConnections);
    for services in [sticky, counting] {
        assert_eq!(services.foresee(&tuple(CLUSTER_IP), POD, &mut random), None);
    }
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
fn an_endpoint_that_was_gone_has_no_client_when_it_comes_back_e2_34() {
    let sticky = Arc::new(Service { affinity_timeout_secs: Some(100), ..service(50) });
    let compile = |service: &Arc<Service>, before: Option<&Services>| {
        let state = NodeState { services: vec![service.clone()], ..NodeState::default() };
        Services::compile(&state, &NodeConfig::offline("n"), before, &|_| None)
    };
    let (affinity, mut random) = (Affinity::new(1024, 1), fastrand::Rng::with_seed(7));
    let mut choose = |services: &Services| choose(services, &tuple(CLUSTER_IP), &affinity, 1000, &mut random);
    let first = compile(&sticky, None);
    let given = choose(&first);
    let at = sticky.backends.iter().position(|b| Ip::from(b.address) == given.address).unwrap() as u32;
    let without = |gone: u32| Arc::new(Service { cluster: (0..50).filter(|i| *i != gone).collect(), ..(*sticky).clone() });

    // Others go and come, and so does what merely serves: nothing is forgotten.
    let second = compile(&without((at + 1) % 50), Some(&first));
    let third = compile(&sticky, Some(&second));
    assert_eq!([&second, &third].map(&mut choose), [given, given]);

    let fourth = compile(&without(at), Some(&third));
    let fifth = compile(&sticky, Some(&fourth));
    // One of 50; with this seed not by chance.
    assert_ne!(choose(&fifth), given);
}

#[test]
fn a_remembered_endpoint_counts_only_where_the_traffic_policy_admits_it_e2_35() {
    let services = compile(Service { affinity_timeout_secs: Some(100), external_local: true, ..service(50) }, |_| {});
    let (affinity, mut random) = (Affinity::new(1024, 1), fastrand::Rng::with_seed(5));
    let anywhere = choose(&services, &tuple(CLUSTER_IP), &affinity, 1000, &mut random);
    let local = services.services[0].local.backends[0];
    assert_ne!(anywhere, local);
    let from_outside = services.select(&tuple(NODE_IP), OUTSIDE, || false, &affinity, |_| 0, 1001, &mut random);
    assert!(matches!(from_outside, Selection::Backend(chosen) if chosen.backend == local), "{from_outside:?}");
}

#[test]
fn each_port_of_a_service_remembers_clients_by_itself_e2_34() {
    let ports = ["a", "b"].map(|name| {
        let port = if name == "a" { 80 } else { 81 };
        let frontends = vec![Frontend { address: CLUSTER_IP.parse().unwrap(), port, kind: FrontendKind::ClusterIp }];
        Arc::new(Service { port_name: name.into(), frontends, affinity_timeout_secs: Some(100), ..service(50) })
    });
    let state = NodeState { services: ports.to_vec(), ..NodeState::default() };
    let services = Services::compile(&state, &NodeConfig::offline("n"), None, &|_| None);
    let (affinity, mut random) = (Affinity::new(1024, 1), fastrand::Rng::with_seed(6));
    let chosen = [80, 81].map(|dport| {
        let tuple = Tuple { dport, ..tuple(CLUSTER_IP) };
        let first = choose(&services, &tuple, &affinity, 1000, &mut random);
        assert_eq!(choose(&services, &tuple, &affinity, 1001, &mut random), first);
        first
    });
    // Of 50 endpoints; with this seed not by chance.
    assert_ne!(chosen[0], chosen[1]);
}

/// Of 10,000 clients, how many of those that need not move do so when one backend of a hundred leaves.
fn disruption(scheduler: Scheduler) -> (u32, u32) {
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
        if matches!(scheduler, Scheduler::SourceHash | Scheduler::Maglev) {
            assert_eq!(choose(&before, &tuple, &affinity, 0, &mut random), old, "the same client, the same backend");
        }
        *load.entry(old).or_insert(0) += 1;
        orphans += u32::from(old == gone);
        moved += u32::from(old != new && old != gone);
    }
    assert!(load.values().all(|n| (50..200).contains(n)), "{scheduler:?}: {load:?}");
    (moved, orphans)
}

#[test]
fn hashing_schedulers_move_few_clients_when_one_backend_of_a_hundred_leaves() {
    // Source hash moves nobody who need not move, Maglev about one in a hundred, chance nearly all (new connections; open ones
    // stay with every scheduler).
    for (scheduler, expected) in [(Scheduler::SourceHash, 0..=0), (Scheduler::Maglev, 0..=300), (Scheduler::Random, 9_500..=10_000)] {
        let (moved, orphans) = disruption(scheduler);
        println!("{scheduler:?}: {moved} of 10,000 clients move beside the {orphans} whose backend left");
        assert!(expected.contains(&moved), "{scheduler:?}: {moved}");
    }
}

/// Services by the fewest connections, which `open` tells by counter.
fn by_connections(endpoints: std::ops::Range<u32>, before: Option<&Services>, open: &dyn Fn(u32) -> u32) -> Services {
    let mut config = NodeConfig::offline("n");
    config.services.scheduler = Scheduler::LeastConnections;
    let mut service = service(endpoints.end as u8);
    service.backends.drain(..endpoints.start as usize);
    service.cluster = (0..endpoints.len() as u32).collect();
    let state = NodeState { services: vec![service.into()], ..NodeState::default() };
    Services::compile(&state, &config, before, &|counter| (counter < 1000).then(|| open(counter)))
}

#[test]
fn the_fewest_connections_win_and_equals_share() {
    let services = by_connections(0..10, None, &|_| 0);
    let (affinity, mut random) = (Affinity::new(16, 1), fastrand::Rng::with_seed(4));
    let mut open: HashMap<u32, u32> = HashMap::new();
    for n in 1..=1000u32 {
        let connections = |counter| open.get(&counter).copied().unwrap_or(0);
        let Selection::Backend(Chosen { counter, .. }) =
            services.select(&tuple(CLUSTER_IP), POD, || false, &affinity, connections, 0, &mut random)
        else {
            panic!("a backend is chosen");
        };
        *open.entry(counter).or_insert(0) += 1;
        let (least, most) = (open.values().min().unwrap(), open.values().max().unwrap());
        assert!(most - least <= 1 || open.len() < 10, "after {n}: {open:?}");
    }
    assert!(open.len() == 10 && open.values().all(|n| *n == 100), "{open:?}");
}

#[test]
fn backends_keep_their_counters_and_a_used_one_is_never_given_to_another() {
    let numbers = |services: &Services| services.services[0].numbers.to_vec();
    let first = by_connections(0..4, None, &|_| 0);
    // The first leaves with a connection open, two come.
    let second = by_connections(1..6, Some(&first), &|counter| u32::from(counter == numbers(&first)[0]));
    assert_eq!(numbers(&second)[..3], numbers(&first)[1..]);
    assert!(!numbers(&second).contains(&numbers(&first)[0]));
    // Even with none open its counter waits for a generation: workers may still count there.
    let third = by_connections(2..7, Some(&second), &|_| 0);
    assert!(!numbers(&third)[4..].iter().any(|n| numbers(&second).contains(n)));
    let distinct: HashSet<u32> = numbers(&third).into_iter().collect();
    assert_eq!(distinct.len(), 5);
}

#[test]
fn a_service_that_did_not_change_is_shared_with_the_generation_before() {
    let named = |name: &str, endpoints| {
        let frontends = vec![Frontend { address: [10, 96, 0, name.len() as u8].into(), port: 80, kind: FrontendKind::ClusterIp }];
        Arc::new(Service { name: name.into(), frontends, ..service(endpoints) })
    };
    let config = NodeConfig::offline("n");
    let compile = |services: Vec<Arc<Service>>, before: Option<&Services>| {
        Services::compile(&NodeState { services, ..NodeState::default() }, &config, before, &|_| None)
    };
    let first = compile(vec![named("a", 1), named("bb", 2), named("ccc", 3), named("eeee", 4)], None);
    let second = compile(vec![named("bb", 2), named("ccc", 9), named("ddddd", 1), named("eeee", 4)], Some(&first));
    assert!(Arc::ptr_eq(&first.services[1], &second.services[0]) && Arc::ptr_eq(&first.services[3], &second.services[3]));
    assert_eq!(second.services[1].cluster.backends.len(), 9);
    assert_eq!(second.services[2].service.name, "ddddd");
}
