//! The difference against brute force: `weir trace` in both snapshots for every pair of places, port and backend.

use fastrand::Rng;

use super::*;
use crate::sim::reach::Place;
use crate::sim::reach::tests::{cluster, traced, world};
use crate::sim::trace::Tracer;

/// One change somewhere in a cluster: a policy, a Service or a pod's labels.
fn changed_text(rng: &mut Rng, text: &str) -> String {
    let objects: Vec<&str> = text.split("---\n").collect();
    let kind = ["kind: NetworkPolicy", "kind: Service", "kind: Pod"][rng.usize(..3)];
    let of_kind: Vec<usize> = (0..objects.len()).filter(|n| objects[*n].contains(kind)).collect();
    let Some(chosen) = of_kind.get(rng.usize(..of_kind.len().max(1))) else { return text.to_owned() };
    let mut objects: Vec<String> = objects.iter().map(ToString::to_string).collect();
    match kind {
        "kind: NetworkPolicy" => drop(objects.remove(*chosen)),
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
            found.changes.iter().any(|c| c.family == from.family && is(&c.from, from) && is(&c.to, to) && tcp(&c.ports, port))
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
