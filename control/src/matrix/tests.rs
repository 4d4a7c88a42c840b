//! The matrix against the slow and plain evaluation of rules, and its page against a browser.

use std::path::Path;
use std::process::Command;

use fastrand::Rng;
use weir_dataplane::model::{Direction, Ip, proto};
use weir_dataplane::policy::{Query, explain};

use super::*;
use crate::sim::reach::Place;
use crate::sim::reach::tests::{all_spans, cluster, world};
use crate::sim::row::endpoint_of;

#[test]
fn cells_between_pods_say_what_the_rules_read_one_by_one_say() {
    let mut rng = Rng::with_seed(23);
    let (mut compared, mut denied) = (0, 0);
    for _ in 0..40 {
        let text = cluster(&mut rng);
        let (_, _, world) = world(&text);
        let matrix = matrix(&world);
        let class_of = |name: &str| {
            matrix.classes.iter().position(|class| class.family == Family::V4 && class.members.iter().any(|m| m == name)).unwrap()
        };
        let pods: Vec<(String, Ip)> =
            world.state().endpoints.iter().map(|e| (format!("{}/{}", e.namespace, e.name), e.addresses[0].into())).collect();
        // Every pod is on this node once: its tables know the policies that select it.
        let side = |pod: Ip, direction, peer: Ip, protocol, port| {
            let tables = world.home(pod).unwrap();
            let pod = endpoint_of(&tables.state, pod.to_std()).unwrap();
            explain(&tables.state, &tables.runtime, &Query { pod, direction, peer, protocol, port, via_service: false }).allowed
        };
        for (from, src) in &pods {
            for (to, dst) in pods.iter().filter(|(to, _)| to != from) {
                let traffic = matrix.traffic(matrix.cell(class_of(from), class_of(to)).unwrap());
                for (name, protocol) in [("tcp", proto::TCP), ("udp", proto::UDP), ("other", proto::ICMP)] {
                    for port in [1, 80, 81, 8080, 8500, 9000, 9001, 9090] {
                        let port = if name == "other" { 0 } else { port };
                        let allowed =
                            side(*src, Direction::Egress, *dst, protocol, port) && side(*dst, Direction::Ingress, *src, protocol, port);
                        let here = |t: &&Traffic| t.ports.iter().any(|p| p.proto == name && p.first <= port && port <= p.last);
                        let found: Vec<bool> = traffic.iter().filter(here).map(|t| t.passes).collect();
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

#[test]
fn every_cell_says_what_the_tables_say_of_each_two_of_its_members() {
    let mut rng = Rng::with_seed(37);
    let (mut compared, mut by_node) = (0, 0);
    for _ in 0..40 {
        let text = cluster(&mut rng);
        let (_, _, world) = world(&text);
        let matrix = matrix(&world);
        let places: Vec<Place> = groups(&[&world]).into_iter().flat_map(|group| group.places).collect();
        let class_of = |place: &Place| {
            let is = |class: &Class| class.family == place.family && class.members.contains(&place.name);
            matrix.classes.iter().position(is).unwrap()
        };
        let spans = all_spans(&world);
        for from in &places {
            for to in places.iter().filter(|to| to.name != from.name) {
                let Some(cell) = matrix.cell(class_of(from), class_of(to)) else { continue };
                let traffic = matrix.traffic(cell);
                let nodes = if from.homes[0] == to.homes[0] { Nodes::Same } else { Nodes::Other };
                for span in &spans {
                    let ports = Ports::from(span);
                    let here = |t: &&Traffic| t.nodes.is_none_or(|wanted| wanted == nodes);
                    let has =
                        |t: &&Traffic| t.ports.iter().any(|p| p.proto == ports.proto && p.first <= ports.first && ports.last <= p.last);
                    let found: Vec<(&str, bool)> = traffic.iter().filter(here).filter(has).map(|t| (t.verdict, t.passes)).collect();
                    if found.is_empty() && to.kind == Kind::Service {
                        continue;
                    }
                    let outcome = world.reach(&span.flow(from.addresses[0].unwrap(), to.addresses[0].unwrap()));
                    assert_eq!(found, [(outcome.verdict(), outcome.passes())], "{} -> {} {ports:?}\n{text}", from.name, to.name);
                    compared += 1;
                    by_node += usize::from(traffic.iter().any(|t| t.nodes.is_some()));
                }
            }
        }
    }
    assert!(compared > 20_000 && by_node > 500, "{compared} {by_node}");
}

/// Opens a page in headless Chromium.
fn chromium(url: &str, what: &str) -> std::process::Output {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800", "--virtual-time-budget=2000"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    let output = command.arg(what).arg(url).output().expect("chromium is there (ci/setup.sh installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// What a page shows once its scripts ran, without the scripts.
fn shown(page: &Path, fragment: &str) -> String {
    let output = chromium(&format!("file://{}#{fragment}", page.display()), "--dump-dom");
    let dom = String::from_utf8(output.stdout).unwrap();
    dom.split("<script").next().unwrap_or_default().to_owned()
}

#[test]
fn a_browser_shows_a_box_for_every_cell_the_reasons_of_a_clicked_one_and_what_a_filter_leaves() {
    let path = weir_fixtures::root().join("scenarios/denied-by-policy/snapshot.yaml");
    let (_, _, world) = world(&std::fs::read_to_string(path).unwrap());
    let matrix = matrix(&world);
    let html = page(&matrix).unwrap();
    assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("/*DATA*/"));
    let index = |name: &str| matrix.classes.iter().position(|c| c.label == name && c.family == Family::V4).unwrap();
    let (from, to) = (index("shop/frontend"), index("shop/web-0"));
    assert_eq!(matrix.cell(from, to).unwrap().access, Access::Closed);
    let folder = tempfile::tempdir().unwrap();
    let (file, driven, screenshot) =
        (folder.path().join("matrix.html"), folder.path().join("driven.html"), folder.path().join("matrix.png"));
    std::fs::write(&file, &html).unwrap();
    let boxes = |dom: &str| dom.matches("data-cell=").count();
    let chosen = ["shop/frontend → shop/web-0", "fails on peer", "class=\"closed chosen\""];

    let plain = shown(&file, "");
    assert_eq!(boxes(&plain), matrix.cells.len());
    assert!(plain.contains("Click a cell") && chosen[1..].iter().all(|text| !plain.contains(text)), "{plain}");

    // A person types into the filter and clicks.
    let hand = format!(
        "const input = document.getElementById('filter'); input.value = 'shop/frontend'; input.dispatchEvent(new Event('input'));
         document.querySelector('td[data-cell=\"{from},{to}\"]').click(); document.body.dataset.at = location.hash;"
    );
    std::fs::write(&driven, html.replace("</body>", &format!("<script>{hand}</script></body>"))).unwrap();
    let by_hand = shown(&driven, "");
    let named = |class: usize| matrix.classes[class].members.iter().any(|member| member.contains("shop/frontend"));
    let left = matrix.cells.iter().filter(|cell| named(cell.from) || named(cell.to)).count();
    assert!(0 < left && left < matrix.cells.len());
    assert_eq!(boxes(&by_hand), left, "the filter leaves what has the pod on either side");
    assert!(chosen.iter().all(|text| by_hand.contains(text)), "the click does not show the reasons: {by_hand}");

    // What the address says by then shows others the same.
    let link = format!("filter=shop/frontend&cell={from},{to}");
    assert!(by_hand.contains(&format!("data-at=\"#{}\"", link.replace('&', "&amp;"))), "{by_hand}");
    let body = |dom: &str| dom.split_once("<div class=\"map\">").unwrap().1.trim_end().to_owned();
    assert_eq!(body(&shown(&file, &link)), body(&by_hand));

    // Where there are too many cells for reasons, the page says how to ask for one.
    std::fs::write(&driven, page::with_reasons(&matrix, 0).unwrap()).unwrap();
    let without = shown(&driven, &link);
    assert_eq!((boxes(&without), without.contains(chosen[1])), (left, false));
    assert!(without.contains("weir why -f SNAPSHOT --from shop/frontend --to shop/web-0 --proto tcp --port"), "{without}");

    chromium(&format!("file://{}#{link}", file.display()), &format!("--screenshot={}", screenshot.display()));
    let picture = std::fs::read(screenshot).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{} bytes", picture.len());
}
