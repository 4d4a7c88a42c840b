//! The difference against brute force: `weir trace` in both snapshots for every pair of places, port and backend.

use fastrand::Rng;
use weir_fixtures::clusters::{Size, deployments};

use super::*;
use weir_dataplane::model::OnChange;

use crate::sim::reach::tests::{cluster, traced, world};
use crate::sim::reach::{Place, is_served_on};
use crate::sim::trace::{Question, Tracer};

/// One change somewhere in a cluster: a policy, a Service, a pod's labels or a namespace's; or a policy, Service or pod is gone.
fn changed_text(rng: &mut Rng, text: &str) -> String {
    let objects: Vec<&str> = text.split("---\n").collect();
    let kind = ["kind: NetworkPolicy", "kind: Service", "kind: Pod", "kind: Namespace"][rng.usize(..4)];
    let of_kind: Vec<usize> = (0..objects.len()).filter(|n| objects[*n].contains(kind)).collect();
    let Some(chosen) = of_kind.get(rng.usize(..of_kind.len().max(1))) else { return text.to_owned() };
    let mut objects: Vec<String> = objects.iter().map(ToString::to_string).collect();
    match kind {
        "kind: NetworkPolicy" => drop(objects.remove(*chosen)),
        "kind: Service" | "kind: Pod" if rng.u8(..4) == 0 => drop(objects.remove(*chosen)),
        "kind: Namespace" => objects[*chosen] = objects[*chosen].replace("team: x", "team: z"),
        "kind: Service" => objects[*chosen] = objects[*chosen].replace("targetPort: 8080", "targetPort: 81").replace("app: a", "app: b"),
        _ => objects[*chosen] = objects[*chosen].replace("app: b", "app: c").replace("app: a", "app: b"),
    }
    objects.join("---\n")
}

#[test]
fn a_snapshot_does_not_differ_from_itself() {
    let mut rng = Rng::with_seed(3);
    for _ in 0..10 {
        let (_, _, world) = world(&cluster(&mut rng));
        let diff = compare(&world, &world);
        assert!(diff.same && diff.changes.is_empty());
    }
}

#[test]
fn the_difference_equals_brute_force_on_random_clusters() {
    let mut rng = Rng::with_seed(11);
    let mut differing = 0;
    for _ in 0..10 {
        let text = cluster(&mut rng);
        let changed = changed_text(&mut rng, &text);
        let ((old_snapshot, config, old), (new_snapshot, _, new)) = (world(&text), world(&changed));
        let found = compare(&old, &new);
        let tcp = |ports: &[Ports], port| ports.iter().any(|p| p.proto == "tcp" && p.first <= port && port <= p.last);
        let listed = |from: &Place, to: &Place, port| {
            let is = |names: &[String], place: &Place| names.contains(&place.name);
            let together = match (from.kind, to.kind) {
                (Kind::Node, Kind::Service) => is_served_on(&[&old, &new], to, from),
                _ => from.homes[0] == to.homes[0],
            };
            let nodes = if together { Nodes::Same } else { Nodes::Other };
            let here = |c: &&Change| c.nodes.is_none_or(|wanted| wanted == nodes);
            found.changes.iter().filter(here).any(|c| c.family == from.family && is(&c.from, from) && is(&c.to, to) && tcp(&c.ports, port))
        };
        let mut tracers = [Tracer::new(&old_snapshot, &config, 1), Tracer::new(&new_snapshot, &config, 1)];
        let groups = groups(&[&old, &new]);
        let places: Vec<&Place> = groups.iter().flat_map(|g| &g.places).filter(|p| p.family == Family::V4).collect();
        for from in places.iter().filter(|p| p.kind != Kind::Service) {
            for to in places.iter().filter(|to| to.name != from.name && (from.kind, to.kind) != (Kind::Outside, Kind::Outside)) {
                for port in [80, 81, 8080, 9090] {
                    let [old, new] = [0, 1].map(|n| traced(&mut tracers[n], from, to, n, port));
                    assert_eq!(listed(from, to, port), old != new, "{} -> {} {port}\n{text}\n\n{changed}", from.name, to.name);
                    differing += usize::from(old != new);
                }
            }
        }
    }
    assert!(differing > 30, "{differing}");
}

#[test]
fn whoever_is_not_concerned_fares_as_before() {
    let mut rng = Rng::with_seed(17);
    let mut spared = 0;
    for _ in 0..400 {
        let text = cluster(&mut rng);
        let changed = changed_text(&mut rng, &text);
        let [(_, _, old), (_, _, new)] = [&text, &changed].map(|text| world(text));
        let worlds = [&old, &new];
        let groups = groups(&worlds);
        let concerned = concerned(&worlds, &groups);
        let all = compare_concerned(&worlds, &groups, &vec![true; groups.len()]);
        let few = compare_concerned(&worlds, &groups, &concerned);
        assert_eq!(serde_json::to_string(&few).unwrap(), serde_json::to_string(&all).unwrap(), "{text}\n\n{changed}");
        spared += usize::from(concerned.contains(&false) && !all.changes.is_empty());
    }
    assert!(spared > 40, "{spared}");
}

#[test]
fn open_connections_fare_as_packets_of_theirs_do_once_the_other_snapshot_is_in_force() {
    let mut rng = Rng::with_seed(29);
    let mut met: BTreeMap<Held, u32> = BTreeMap::new();
    let mut texts = [String::new(), String::new()];
    for round in 0..48 {
        let on_change = [OnChange::Keep, OnChange::Cut, OnChange::Drain][round % 3];
        if round % 3 == 0 {
            let text = cluster(&mut rng);
            let shut = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x, name: shut}\nspec: {podSelector: {}}\n---\n";
            texts = match rng.bool() {
                true => [text.clone(), text + shut],
                false => [changed_text(&mut rng, &text), text],
            };
        }
        let loaded = texts.each_ref().map(|text| world(text));
        let [(old_snapshot, ..), (new_snapshot, ..)] = &loaded;
        let mut config = loaded[0].1.clone();
        config.policy.on_change = on_change;
        let [old, new] = [old_snapshot, new_snapshot].map(|snapshot| World::new(snapshot, &config).unwrap());
        let mut tracer = Tracer::new(old_snapshot, &config, 1);
        let places = named(&[&old, &new]).into_iter().filter(|place| place.addresses.iter().all(Option::is_some));
        let places: Vec<Place> = places.filter(|place| place.family == Family::V4).collect();
        let mut asked = Vec::new();
        for from in places.iter().filter(|from| from.kind == Kind::Pod) {
            for to in places.iter().filter(|to| to.name != from.name) {
                for port in [80, 8080] {
                    let address = |place: &Place| crate::sim::place::Place::Address(place.addresses[0].unwrap().to_std());
                    let (from, to, port) = (address(from), address(to), Some(port));
                    let question = Question { from, to, proto: proto::TCP, port, sport: 50_000, family: None, seed: 1 };
                    let answer = tracer.trace(&question).unwrap();
                    if matches!(answer.verdict, "forward" | "host") {
                        asked.push((question, answer));
                    }
                }
            }
        }
        tracer.publish(new_snapshot);
        for (question, answer) in asked {
            let backend = answer.backend.as_ref().map(|backend| backend.parse().unwrap());
            let snat = answer.snat.as_ref().map(|snat| snat.parse().unwrap());
            let end = End { verdict: answer.verdict, reason: None, backend, snat };
            let flow = crate::why::flow_of(&answer.packet, proto::TCP).unwrap();
            let held = new.held(&old, &flow, &end, answer.service.is_some());
            let now = tracer.trace(&question).unwrap();
            let expected: &[&str] = match held {
                Held::LivesOn => &["forward", "host"],
                Held::Reset => &["reject"],
                Held::Cut | Held::Forgotten | Held::Unroutable => &["drop"],
            };
            assert!(expected.contains(&now.verdict), "{on_change:?} {held:?}: {answer:?}\nbecame {now:?}\n{}\n\n{}", texts[0], texts[1]);
            let refused = !new.reach(&flow).ends.iter().any(|other| other.passes() && other.backend == end.backend);
            *met.entry(held).or_default() += u32::from(refused);
        }
    }
    assert!([Held::LivesOn, Held::Cut, Held::Reset].iter().all(|held| met.get(held).is_some_and(|count| *count > 10)), "{met:?}");
}

#[test]
fn a_changed_policy_of_a_cluster_twice_as_large_is_asked_about_at_most_some_twice_as_often() {
    let asked = |times: u32| {
        let size = Size {
            services: 200 * times,
            endpoints_per_service: 0,
            pods: 200 * times,
            nodes: 20 * times,
            policies: 60 * times,
            namespaces: 10,
        };
        let text = deployments(&size);
        let changed = text.replacen("\"port\":8083", "\"port\":999", 1);
        assert_ne!(text, changed);
        let [old, new] = [&text, &changed].map(|text| {
            let snapshot = crate::source::load_text("cluster.json", text).unwrap();
            World::new(&snapshot, &weir_dataplane::model::NodeConfig::offline("node-0")).unwrap()
        });
        assert!(!compare(&old, &new).changes.is_empty());
        old.asked.load(std::sync::atomic::Ordering::Relaxed)
    };
    let [one, two] = [asked(1), asked(2)];
    // 2,074 and 2,396 where only those are asked about whom the policy selects; 39,314 and 83,256 where everybody is.
    assert!(one > 100 && one < 8000 && two < 2 * one, "{one} {two}");
}
