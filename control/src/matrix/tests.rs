//! The matrix against the slow and plain evaluation of rules, and its page against a browser.

use std::process::Command;

use fastrand::Rng;
use weir_dataplane::model::{Direction, Ip};
use weir_dataplane::policy::{Query, explain};

use super::*;
use crate::sim::reach::tests::{cluster, world};
use crate::sim::row::endpoint_of;

#[test]
fn cells_between_pods_say_what_the_rules_read_one_by_one_say() {
    let mut rng = Rng::with_seed(23);
    let (mut compared, mut denied) = (0, 0);
    for _ in 0..40 {
        let text = cluster(&mut rng);
        let (_, _, world) = world(&text);
        let matrix = matrix(&world);
        let class_of = |name: &str| matrix.classes.iter().position(|class| class.members.iter().any(|m| m == name)).unwrap();
        let pods: Vec<(String, Ip)> =
            world.state().endpoints.iter().map(|e| (format!("{}/{}", e.namespace, e.name), e.addresses[0].into())).collect();
        // Every pod is on this node once: its tables know the policies that select it.
        let side = |pod: Ip, direction, peer: Ip, protocol, port| {
            let tables = world.nodes().iter().find(|t| t.owner(pod).local_pod().is_some()).unwrap();
            let pod = endpoint_of(&tables.state, pod.to_std()).unwrap();
            explain(&tables.state, &tables.runtime, &Query { pod, direction, peer, protocol, port, via_service: false }).allowed
        };
        for (from, src) in &pods {
            for (to, dst) in pods.iter().filter(|(to, _)| to != from) {
                let cell = matrix.cell(class_of(from), class_of(to)).unwrap();
                for (name, protocol) in [("tcp", proto::TCP), ("udp", proto::UDP), ("other", proto::ICMP)] {
                    for port in [1, 80, 81, 8080, 8500, 9000, 9001, 9090] {
                        let port = if name == "other" { 0 } else { port };
                        let allowed =
                            side(*src, Direction::Egress, *dst, protocol, port) && side(*dst, Direction::Ingress, *src, protocol, port);
                        let here = |t: &&Traffic| t.ports.iter().any(|p| p.proto == name && p.first <= port && port <= p.last);
                        let found: Vec<bool> = cell.traffic.iter().filter(here).map(|t| t.passes).collect();
                        assert_eq!(found, [allowed], "{from} -> {to} {name} {port}\n{text}");
                        compared += 1;
                        denied += usize::from(!allowed);
                    }
                }
            }
        }
    }
    assert!(compared > 10_000 && denied > 2_000, "{compared} {denied}");
}

/// Opens the page at `hash` in headless Chromium and gives what it shows; `None` where there is no Chromium.
fn shown(page: &std::path::Path, hash: &str, screenshot: &std::path::Path) -> Option<String> {
    let url = format!("file://{}#{hash}", page.display());
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800", "--virtual-time-budget=2000"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    let Ok(output) = command.arg("--dump-dom").arg(&url).output() else {
        eprintln!("NOT TESTED: the matrix page, for there is no chromium (apt-get install chromium)");
        return None;
    };
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800", "--virtual-time-budget=2000"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    let taken = command.arg(format!("--screenshot={}", screenshot.display())).arg(&url).output().unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_browser_shows_a_box_for_every_cell_and_the_reasons_of_the_chosen_one() {
    let path = weir_fixtures::root().join("scenarios/denied-by-policy/snapshot.yaml");
    let (_, _, world) = world(&std::fs::read_to_string(path).unwrap());
    let matrix = matrix(&world);
    let html = page(&matrix).unwrap();
    assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("/*DATA*/"));
    let index = |name: &str| matrix.classes.iter().position(|c| c.label == name && c.family == Family::V4).unwrap();
    let (from, to) = (index("shop/frontend"), index("shop/web-0"));
    assert_eq!(matrix.cell(from, to).unwrap().access, Access::Closed);
    let folder = tempfile::tempdir().unwrap();
    let (file, screenshot) = (folder.path().join("matrix.html"), folder.path().join("matrix.png"));
    std::fs::write(&file, html).unwrap();
    let Some(dom) = shown(&file, &format!("{from},{to}"), &screenshot) else { return };
    let body = dom.split("<script").next().unwrap_or_default();
    assert_eq!(body.matches("data-cell=").count(), matrix.cells.len());
    for text in ["shop/frontend → shop/web-0", "fails on peer", "class=\"closed chosen\""] {
        assert!(dom.contains(text), "the page does not show {text:?}");
    }
    let picture = std::fs::read(screenshot).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{} bytes", picture.len());
}
