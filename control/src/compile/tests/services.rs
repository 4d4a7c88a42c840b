//! Services: frontends, endpoint sets, topology.

use weir_dataplane::model::{Family, Frontend, FrontendKind, Service as Compiled};

use super::*;

/// `one/web` at 10.96.0.1:80, served on port 8080.
fn service() -> Service {
    Service {
        meta: meta("one", "web", ""),
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
        }],
        ..Service::default()
    }
}

/// An endpoint of a slice; `state` holds r(eady), s(erving), t(erminating).
fn served(address: &str, node: &str, state: &str) -> SliceEndpoint {
    SliceEndpoint {
        address: address.parse().unwrap(),
        ready: state.contains('r'),
        serving: state.contains('s'),
        terminating: state.contains('t'),
        node: (!node.is_empty()).then(|| node.into()),
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
    }
}

fn hinted(address: &str, zones: &[&str], nodes: &[&str]) -> SliceEndpoint {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    SliceEndpoint { hint_zones: names(zones), hint_nodes: names(nodes), ..served(address, "", "rs") }
}

fn slice(name: &str, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    EndpointSlice {
        meta: meta("one", name, ""),
        service: Some("web".into()),
        headless: false,
        family: Some(Family::V4),
        endpoints,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
    }
}

/// A Service of two ports and both families with slices, for tests of order.
pub(super) fn add_some(snapshot: &mut Snapshot) {
    let mut web = service();
    web.cluster_ips.push("fd00::1".parse().unwrap());
    web.ports.push(ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, target: TargetPort::Number(53), node_port: None });
    snapshot.services.push(web);
    snapshot.slices.push(slice("s1", vec![served("10.244.1.1", "a", "rs"), served("10.244.2.1", "b", "rs")]));
    snapshot.slices.push(slice("s2", vec![served("10.244.2.1", "b", "st"), served("10.244.2.9", "", "")]));
}

fn with(endpoints: Vec<SliceEndpoint>) -> Snapshot {
    Snapshot { services: vec![service()], slices: vec![slice("s", endpoints)], ..cluster() }
}

fn only(snapshot: &Snapshot) -> Compiled {
    let services = compiled(snapshot, "a").services;
    assert_eq!(services.len(), 1);
    Compiled::clone(&services[0])
}

/// Addresses of a set.
fn set(service: &Compiled, indices: &[u32]) -> Vec<String> {
    indices.iter().map(|&i| service.backends[i as usize].address.to_string()).collect()
}

/// The Cluster and the Local set.
fn sets(snapshot: &Snapshot) -> (Vec<String>, Vec<String>) {
    let service = only(snapshot);
    (set(&service, &service.cluster), set(&service, &service.local))
}

#[test]
fn ready_endpoints_are_used_and_those_of_this_node_are_local_e2_10() {
    let (cluster, local) = sets(&with(vec![served("10.1.0.1", "a", "rs"), served("10.1.0.2", "b", "rs"), served("10.1.0.3", "a", "")]));
    assert_eq!((cluster, local), (vec!["10.1.0.1".into(), "10.1.0.2".into()], vec!["10.1.0.1".into()]));
}

#[test]
fn the_two_sets_fall_back_to_terminating_endpoints_independently_e2_10() {
    let (cluster, local) = sets(&with(vec![served("10.1.0.1", "a", "st"), served("10.1.0.2", "b", "rs"), served("10.1.0.3", "a", "t")]));
    assert_eq!((cluster, local), (vec!["10.1.0.2".into()], vec!["10.1.0.1".into()]));
    let (cluster, local) = sets(&with(vec![served("10.1.0.1", "a", "t"), served("10.1.0.2", "b", "st")]));
    assert_eq!((cluster, local), (vec!["10.1.0.2".into()], vec![]));
}

#[test]
fn usable_endpoints_anywhere_tell_drop_from_refusal_e2_13_e2_14() {
    assert!(only(&with(vec![served("10.1.0.2", "b", "rs")])).any_usable);
    assert!(only(&with(vec![served("10.1.0.2", "b", "st")])).any_usable);
    assert!(!only(&with(vec![served("10.1.0.2", "b", "s"), served("10.1.0.3", "b", "t")])).any_usable);
}

#[test]
fn an_endpoint_that_merely_serves_is_a_backend_that_no_set_has_e2_39() {
    let service = only(&with(vec![served("10.1.0.1", "a", "rs"), served("10.1.0.2", "b", "st"), served("10.1.0.3", "b", "")]));
    assert_eq!(service.backends.iter().map(|b| b.serving).collect::<Vec<_>>(), [true, true]);
    assert_eq!(set(&service, &service.cluster), ["10.1.0.1"]);
}

#[test]
fn hints_for_this_node_go_before_those_for_its_zone_e2_23() {
    let endpoints =
        |first: &[&str]| vec![hinted("10.1.0.1", &["z1"], first), hinted("10.1.0.2", &["z1"], &["b"]), hinted("10.1.0.3", &["z2"], &["b"])];
    assert_eq!(sets(&with(endpoints(&["a"]))).0, ["10.1.0.1"]);
    // None is meant for this node: the zone decides.
    assert_eq!(sets(&with(endpoints(&["b"]))).0, ["10.1.0.1", "10.1.0.2"]);
}

#[test]
fn hints_are_ignored_if_one_ready_endpoint_has_none_or_none_is_for_us_e2_24() {
    let here = || hinted("10.1.0.1", &["z1"], &[]);
    assert_eq!(sets(&with(vec![here(), hinted("10.1.0.2", &[], &[])])).0.len(), 2);
    assert_eq!(sets(&with(vec![hinted("10.1.0.1", &["z3"], &[]), hinted("10.1.0.2", &["z2"], &[])])).0.len(), 2);
    // An endpoint that is not ready has no say.
    assert_eq!(sets(&with(vec![here(), hinted("10.1.0.2", &["z2"], &[]), served("10.1.0.3", "", "")])).0, ["10.1.0.1"]);
}

#[test]
fn a_node_without_a_zone_ignores_hints_for_zones_e2_24() {
    let mut snapshot = with(vec![hinted("10.1.0.1", &["z1"], &[]), hinted("10.1.0.2", &["z2"], &[])]);
    snapshot.nodes.iter_mut().for_each(|n| n.meta.labels.clear());
    assert_eq!(sets(&snapshot).0.len(), 2);
}

#[test]
fn hints_have_no_say_in_the_fallback_nor_in_the_local_set_e2_25() {
    let falling = |address, zone: &str| SliceEndpoint { hint_zones: vec![zone.into()], ..served(address, "a", "st") };
    assert_eq!(sets(&with(vec![falling("10.1.0.1", "z1"), falling("10.1.0.2", "z2")])).0.len(), 2);
    let ready = |address, zone: &str| SliceEndpoint { hint_zones: vec![zone.into()], ..served(address, "a", "rs") };
    let (cluster, local) = sets(&with(vec![ready("10.1.0.1", "z1"), ready("10.1.0.2", "z2")]));
    assert_eq!((cluster.len(), local.len()), (1, 2));
}

#[test]
fn slices_are_joined_and_duplicates_collapse_to_the_local_one_e2_8() {
    let mut snapshot = with(vec![served("10.1.0.1", "", "rs"), served("10.1.0.2", "b", "rs")]);
    snapshot.slices.push(slice("t", vec![served("10.1.0.1", "a", "rs")]));
    let (cluster, local) = sets(&snapshot);
    assert_eq!((cluster.len(), local), (2, vec!["10.1.0.1".into()]));
}

#[test]
fn slices_match_by_service_namespace_port_name_protocol_and_family_e2_8() {
    let other = |change: fn(&mut EndpointSlice)| {
        let mut snapshot = with(vec![served("10.1.0.1", "a", "rs")]);
        change(&mut snapshot.slices[0]);
        only(&snapshot).backends.len()
    };
    assert_eq!(other(|_| {}), 1);
    assert_eq!(other(|s| s.service = Some("other".into())), 0);
    assert_eq!(other(|s| s.service = None), 0);
    assert_eq!(other(|s| s.meta.namespace = "two".into()), 0);
    assert_eq!(other(|s| s.ports[0].name = String::new()), 0);
    assert_eq!(other(|s| s.ports[0].protocol = Protocol::Udp), 0);
    assert_eq!(other(|s| s.family = None), 0);
    assert_eq!(other(|s| s.headless = true), 0);
}

#[test]
fn slices_may_serve_one_name_on_different_numbers_e2_9() {
    let mut snapshot = with(vec![served("10.1.0.1", "a", "rs")]);
    let mut second = slice("t", vec![served("10.1.0.2", "a", "rs")]);
    second.ports[0].port = 9090;
    snapshot.slices.push(second);
    let ports: Vec<_> = only(&snapshot).backends.iter().map(|b| b.port).collect();
    assert_eq!(ports, [8080, 9090]);
}

#[test]
fn families_are_independent_e2_2() {
    let mut snapshot = with(vec![served("10.1.0.1", "a", "rs")]);
    snapshot.services[0].cluster_ips.push("fd00::1".parse().unwrap());
    let services = compiled(&snapshot, "a").services;
    let seen: Vec<_> = services.iter().map(|s| (s.family, s.frontends.len(), s.backends.len())).collect();
    assert_eq!(seen, [(Family::V4, 1, 1), (Family::V6, 1, 0)]);
}

#[test]
fn headless_external_name_and_foreign_services_are_not_proxied_e2_1() {
    for change in [(|s| s.headless = true) as fn(&mut Service), |s| s.other_proxy = true, |s| s.kind = ServiceType::ExternalName] {
        let mut snapshot = with(vec![]);
        change(&mut snapshot.services[0]);
        let state = compiled(&snapshot, "a");
        assert!(state.services.is_empty() && state.cluster_ips.is_empty());
    }
}

#[test]
fn every_kind_of_address_is_a_frontend_e2_3_e2_30() {
    let mut snapshot = with(vec![]);
    snapshot.nodes[1].addresses.push("192.168.9.9".parse().unwrap());
    let service = &mut snapshot.services[0];
    service.external_ips = vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    service.load_balancer_ips = vec!["192.0.2.2".parse().unwrap()];
    service.ports[0].node_port = Some(30080);
    let frontends = |snapshot: &Snapshot, config: &NodeConfig| {
        let services = compile(snapshot, "a", config).unwrap().services;
        services[0].frontends.iter().map(|f: &Frontend| (f.address.to_string(), f.port, f.kind)).collect::<Vec<_>>()
    };
    let mut config = NodeConfig::offline("a");
    let mut expected = vec![
        ("10.0.0.1".to_owned(), 30080, FrontendKind::NodePort),
        ("10.96.0.1".to_owned(), 80, FrontendKind::ClusterIp),
        ("192.0.2.1".to_owned(), 80, FrontendKind::ExternalIp),
        ("192.0.2.2".to_owned(), 80, FrontendKind::LoadBalancer),
    ];
    assert_eq!(frontends(&snapshot, &config), expected);
    config.services.node_port_cidrs = vec!["192.168.0.0/16".parse().unwrap()];
    expected.remove(0);
    expected.insert(2, ("192.168.9.9".to_owned(), 30080, FrontendKind::NodePort));
    expected.sort_by_key(|(address, ..)| address.parse::<IpAddr>().unwrap());
    assert_eq!(frontends(&snapshot, &config), expected);
}

#[test]
fn two_services_in_one_place_are_refused_with_file_and_line_e2_3() {
    let at = |line| Origin { file: "shop.yaml".into(), line, column: 1 };
    let mut snapshot = with(vec![]);
    snapshot.services[0].meta.origin = at(7);
    let mut second = service();
    second.meta = Meta { origin: at(30), ..meta("two", "again", "") };
    snapshot.services.insert(0, second);
    let error = compile(&snapshot, "a", &NodeConfig::offline("a")).unwrap_err();
    let expected =
        "shop.yaml:30:1: Service two/again: spec.ports: is reached at 10.96.0.1, TCP port 80, where Service one/web is (shop.yaml:7:1)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn source_ranges_of_the_other_family_guard_nothing_of_this_one_e2_32() {
    let mut snapshot = with(vec![]);
    snapshot.services[0].source_ranges = vec!["fd00::/8".parse().unwrap()];
    assert!(only(&snapshot).source_ranges.is_empty());
    snapshot.services[0].source_ranges.push("10.0.0.9/8".parse().unwrap());
    let service = only(&snapshot);
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn the_health_check_counts_distinct_local_ready_addresses_over_all_ports_e2_36() {
    let mut snapshot = with(vec![
        served("10.1.0.1", "a", "rs"),
        served("10.1.0.2", "a", "rst"),
        served("10.1.0.3", "a", "s"),
        served("10.1.0.4", "b", "rs"),
    ]);
    let web = &mut snapshot.services[0];
    web.health_check_node_port = Some(31000);
    web.ports.push(ServicePort { name: "more".into(), port: 81, ..web.ports[0].clone() });
    let mut more = slice("t", vec![served("10.1.0.1", "a", "rs"), served("10.1.0.5", "a", "rs")]);
    more.ports[0].name = "more".into();
    snapshot.slices.push(more);
    let services = compiled(&snapshot, "a").services;
    assert_eq!(services.iter().map(|s| s.local_ready).collect::<Vec<_>>(), [2, 2]);
}

/// `cluster()` with a Service that selects `app=web` and has no slice.
fn from_pods() -> Snapshot {
    let mut web = service();
    web.selector = labels("app=web");
    Snapshot { services: vec![web], ..cluster() }
}

#[test]
fn without_a_slice_ready_pods_of_the_namespace_are_endpoints_e2_11_e2_12() {
    let mut snapshot = from_pods();
    assert_eq!(sets(&snapshot).0, ["10.244.1.1", "10.244.2.1"]);
    snapshot.pods[1].terminating = true;
    assert_eq!(sets(&snapshot).0, ["10.244.2.1"], "who terminates is not ready, though it serves");
    snapshot.pods[1].terminating = false;
    snapshot.pods[0].ready = false;
    assert_eq!(sets(&snapshot).0, ["10.244.1.1"]);
    snapshot.pods[1].terminating = true;
    assert_eq!(sets(&snapshot).0, ["10.244.1.1"], "the only one left terminates and serves");
    snapshot.services[0].publish_not_ready_addresses = true;
    assert_eq!(sets(&snapshot).0, ["10.244.1.1", "10.244.2.1"]);
    snapshot.pods[1].finished = true;
    assert_eq!(sets(&snapshot).0, ["10.244.2.1"]);
}

#[test]
fn without_a_slice_a_pod_without_an_address_is_no_endpoint_also_on_the_host_network_e2_12() {
    let mut snapshot = from_pods();
    snapshot.pods[0].host_network = true;
    snapshot.pods[0].addresses.clear();
    assert_eq!(sets(&snapshot).0, ["10.244.1.1"]);
}

#[test]
fn a_slice_however_empty_keeps_pods_out_e2_8() {
    let mut snapshot = from_pods();
    snapshot.slices = vec![slice("s", vec![])];
    assert!(sets(&snapshot).0.is_empty());
}

#[test]
fn named_target_ports_are_resolved_on_each_pod_e2_9() {
    let mut snapshot = from_pods();
    snapshot.services[0].ports[0].target = TargetPort::Name("http".into());
    for (pod, port) in [(0, 8080), (1, 9090)] {
        snapshot.pods[pod].ports.push(ContainerPort { name: Some("http".into()), protocol: Protocol::Tcp, port });
    }
    let backends: Vec<_> = only(&snapshot).backends.iter().map(|b| (b.address.to_string(), b.port)).collect();
    assert_eq!(backends, [("10.244.1.1".into(), 9090), ("10.244.2.1".into(), 8080)]);
    snapshot.pods[0].ports[0].protocol = Protocol::Udp;
    assert_eq!(only(&snapshot).backends.len(), 1, "a pod without that name and protocol is no endpoint");
}

#[test]
fn without_a_slice_traffic_distribution_gives_the_hints_e2_22() {
    let mut snapshot = from_pods();
    snapshot.services[0].traffic_distribution = Some(TrafficDistribution::SameZone);
    assert_eq!(sets(&snapshot).0, ["10.244.1.1"]);
    snapshot.pods[1].meta.labels.clear();
    assert_eq!(sets(&snapshot).0, ["10.244.2.1"], "none in this zone: all");
    let mut snapshot = from_pods();
    snapshot.nodes[0].meta.labels = snapshot.nodes[1].meta.labels.clone();
    for (wanted, chosen) in [(TrafficDistribution::SameZone, 2), (TrafficDistribution::SameNode, 1)] {
        snapshot.services[0].traffic_distribution = Some(wanted);
        assert_eq!(sets(&snapshot).0.len(), chosen, "{wanted:?} where both nodes are in one zone");
    }
}

#[test]
fn a_pod_of_no_node_has_no_hint_and_so_no_hint_counts_e2_24() {
    let mut snapshot = from_pods();
    snapshot.services[0].traffic_distribution = Some(TrafficDistribution::SameNode);
    assert_eq!(sets(&snapshot).0, ["10.244.1.1"]);
    snapshot.pods[1].node = None;
    assert_eq!(sets(&snapshot).0, ["10.244.1.1", "10.244.2.1"]);
}
