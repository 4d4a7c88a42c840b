//! The runner on small cases: what it counts, what it says of what does not hold.

use super::*;

const HEAD: &str = "id: small\nkind: policy\nsnapshot:\n\
    - {apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}\n\
    - {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a, labels: {app: a}}, spec: {nodeName: n1, containers: [{name: c}]}, \
    status: {podIPs: [{ip: 10.1.0.1}]}}\n\
    - {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: b, labels: {app: b}}, spec: {nodeName: n1, containers: [{name: c}]}, \
    status: {podIPs: [{ip: 10.1.0.2}]}}\n\
    - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: p}, \
    spec: {podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}}\n";

fn run_text(rest: &str, filter: Option<&str>) -> Report {
    let mut report = Report::default();
    run_file("small.yaml", format!("{HEAD}{rest}").into_bytes(), filter, 1, &mut report);
    report
}

#[test]
fn lists_are_cross_products_without_the_pairs_of_one_with_itself() {
    let rest = "expect:\n- {from: [x/a, x/b, 203.0.113.7], to: [x/a, x/b], port: [80], protocol: [TCP], verdict: allow}\n";
    let report = run_text(rest, None);
    assert_eq!((report.passed, report.failed), (4, 0));
    let rest = "expect:\n- {from: x/b, to: x/b, port: 81, protocol: TCP, verdict: allow, self: true}\n";
    assert_eq!(run_text(rest, None).passed, 1);
}

#[test]
fn what_does_not_hold_is_one_line_with_its_cause_and_the_counts_come_last() {
    let report = run_text("expect:\n- {from: x/a, to: x/b, port: [80, 81], protocol: TCP, verdict: allow}\n", None);
    let text = report.print(Format::Text);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines[0].starts_with("small.yaml: small: x/a -> x/b:81/Tcp: expected allow, got deny (egress: not isolated; ingress: "),
        "{text}"
    );
    assert!(lines[0].contains("isolated by x/p, nearest x/p rule 0 fails on port"), "{text}");
    assert_eq!(lines[1..], ["files: 1, cases: 1", "1 passed, 1 failed"]);
    assert!(!report.holds());
}

#[test]
fn steps_follow_each_other_and_objects_come_and_go() {
    let rest = "expect:\n- {from: x/a, to: x/b, port: 81, protocol: TCP, verdict: deny}\n\
        then:\n- delete: [{kind: NetworkPolicy, namespace: x, name: p}]\n  \
        expect:\n  - {from: x/a, to: x/b, port: 81, protocol: TCP, verdict: allow}\n";
    let report = run_text(rest, None);
    assert_eq!((report.passed, report.failed), (2, 0), "{}", report.print(Format::Text));
}

#[test]
fn a_place_that_is_nowhere_and_a_snapshot_that_is_refused_are_failures_not_silence() {
    let report = run_text("expect:\n- {from: x/nobody, to: x/b, port: [80, 81], protocol: TCP, verdict: deny}\n", None);
    assert_eq!((report.passed, report.failed), (0, 2));
    let rest = "- {apiVersion: v1, kind: Pod, metadata: {name: c}, spec: {containers: 7}}\n\
        expect:\n- {from: x/a, to: x/b, port: [80, 81], protocol: TCP, verdict: deny}\n";
    let report = run_text(rest, None);
    assert_eq!((report.passed, report.failed, report.failures.len()), (0, 2, 1));
}

#[test]
fn a_file_that_is_no_case_is_a_failure() {
    let mut report = Report::default();
    run_file("x.yaml", b"a: [".to_vec(), None, 1, &mut report);
    run_file("y.yaml", b"a: 1".to_vec(), None, 1, &mut report);
    assert_eq!((report.files, report.failed), (2, 2));
}

#[test]
fn the_filter_looks_at_ids_and_file_names() {
    let rest = "expect:\n- {from: x/a, to: x/b, port: 80, protocol: TCP, verdict: allow}\n";
    assert_eq!(run_text(rest, Some("mall")).cases, 1);
    assert_eq!((run_text(rest, Some("other")).files, run_text(rest, Some("other")).cases), (0, 0));
}

#[test]
fn json_and_junit_carry_the_same_counts() {
    let report = run_text("expect:\n- {from: x/a, to: x/b, port: [80, 81], protocol: TCP, verdict: allow}\n", None);
    let json: serde_json::Value = serde_json::from_str(&report.print(Format::Json)).unwrap();
    assert_eq!((json["passed"].as_u64(), json["failed"].as_u64()), (Some(1), Some(1)));
    assert_eq!(json["failures"][0]["expected"], "allow");
    let xml = report.print(Format::Junit);
    assert!(xml.contains("<testsuite name=\"weir test\" tests=\"1\" failures=\"1\">"), "{xml}");
    assert!(xml.contains("x/a -&gt; x/b:81/Tcp"), "{xml}");
}

const SERVICE: &str = "id: service\nkind: services\n\
    config: {this_node: n1, cluster_cidrs: [10.1.0.0/16], masquerade_all: false, nodeport_addresses: [], service_cidrs: [10.96.0.0/16]}\n\
    snapshot:\n\
    - {apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}\n\
    - {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 80}]}}\n\
    - {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: s}}, \
    addressType: IPv4, endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}], ports: [{port: 80}]}\n";

fn run_service(rest: &str) -> Report {
    let mut report = Report::default();
    run_file("service.yaml", format!("{SERVICE}{rest}").into_bytes(), None, 1, &mut report);
    report
}

#[test]
fn flows_are_compared_by_verdict_endpoints_and_translation() {
    let flow = |to: &str, expect: &str| {
        run_service(&format!("flows:\n- {{name: f, from: 10.1.0.9, to: '{to}', protocol: TCP, expect: {{{expect}}}}}\n")).passed
    };
    assert_eq!(flow("10.96.0.1:80", "verdict: forward, endpoints: ['10.1.0.2:80', '10.1.0.1:80'], snat: none"), 1);
    assert_eq!(flow("10.96.0.1:80", "verdict: forward, endpoints: ['10.1.0.2:80'], snat: none"), 0);
    assert_eq!(flow("10.96.0.1:80", "verdict: forward, endpoints: ['10.1.0.2:80', '10.1.0.1:80'], snat: node-ip"), 0);
    assert_eq!(flow("10.96.0.1:81", "verdict: reject"), 1);
    assert_eq!(flow("10.96.0.2:80", "verdict: drop"), 1);
    assert_eq!(flow("203.0.113.1:80", "verdict: pass"), 1);
}

#[test]
fn affinity_is_compared_with_the_clients_connection_before() {
    let steps =
        "steps: [{at: 0, from: 10.1.0.9, to: '10.96.0.1:80', expect: any}, {at: 9, from: 10.1.0.9, to: '10.96.0.1:80', expect: WORD}]";
    let run = |word: &str| run_service(&format!("affinity:\n- {{name: a, {}}}\n", steps.replace("WORD", word)));
    assert_eq!((run("same").passed, run("other").passed), (2, 1));
}

const PACKETS: &str = "id: packets\nkind: conntrack\n\
    config: {this_node: n1, cluster_cidrs: [10.1.0.0/16], masquerade_all: false, nodeport_addresses: [], service_cidrs: [10.96.0.0/16]}\n\
    snapshot:\n\
    - {apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}\n\
    packets:\n";

fn run_packets(rest: &str) -> Report {
    let mut report = Report::default();
    run_file("packets.yaml", format!("{PACKETS}{rest}").into_bytes(), None, 1, &mut report);
    report
}

#[test]
fn a_port_that_translation_chose_stands_for_itself_later() {
    let there = "- {'n': 1, proto: UDP, from: '10.1.0.9:700', to: '203.0.113.1:53', expect: {verdict: forward, from: '10.0.0.1:*'}}\n";
    let back = "- {'n': 2, proto: UDP, from: '203.0.113.1:53', to: '10.0.0.1:*', expect: {verdict: forward, to: '10.1.0.9:700'}}\n";
    let report = run_packets(&format!("{there}{back}"));
    assert_eq!((report.passed, report.failed), (2, 0), "{}", report.print(Format::Text));
    assert_eq!(run_packets(back).failed, 1, "nothing is known of the port yet");
}

#[test]
fn what_a_packet_becomes_is_compared_in_verdict_addresses_and_state() {
    let packet = |expect: &str| {
        let text = "- {'n': 1, proto: TCP, from: '10.1.0.9:700', to: '10.1.0.8:80', tcp: {flags: S}, expect: {WHAT}}\n";
        let other = "- {'n': 2, proto: UDP, from: '10.1.0.8:1', to: '10.1.0.9:1', expect: {verdict: forward}}\n";
        run_packets(&format!("{}{other}", text.replace("WHAT", expect))).failed
    };
    assert_eq!(packet("verdict: forward, to: '10.1.0.8:80', state: SYN_SENT"), 0);
    assert_eq!(packet("verdict: drop, also: forward"), 0);
    assert_eq!(packet("verdict: drop"), 1);
    assert_eq!(packet("verdict: forward, to: '10.1.0.8:81'"), 1);
    assert_eq!(packet("verdict: forward, state: ESTABLISHED"), 1);
    assert_eq!(packet("verdict: forward, track: invalid"), 1);
}

#[test]
fn time_passes_and_entries_with_it() {
    let first = "- {'n': 1, proto: TCP, from: '10.1.0.9:700', to: '203.0.113.1:80', tcp: {flags: S}, expect: {verdict: forward}}\n";
    let late = "- {'n': 2, at: 999999, proto: TCP, from: '10.1.0.9:700', to: '203.0.113.1:80', tcp: {flags: A, seq: 1, ack: 1}, \
        expect: {verdict: drop, track: invalid}}\n";
    let report = run_packets(&format!("{first}{late}"));
    assert_eq!((report.passed, report.failed), (2, 0), "{}", report.print(Format::Text));
}

#[test]
fn a_key_that_means_nothing_is_a_failure_not_silence() {
    let expect = |more: &str| {
        let report = run_text(&format!("expect:\n- {{from: x/a, to: x/b, port: 80, protocol: TCP, verdict: allow{more}}}\n"), None);
        (report.passed, report.failed, report.print(Format::Text))
    };
    let (passed, failed, _) = expect(", source: upstream, upstream_says: deny, note: n, ref: [r]");
    assert_eq!((passed, failed), (1, 0));
    let (passed, failed, text) = expect(", sorce: upstream");
    assert_eq!((passed, failed), (0, 1));
    assert!(text.contains("expect[0].sorce: is no key of the case format"), "{text}");
    let report = run_packets("- {'n': 1, proto: UDP, from: '10.1.0.9:1', to: '10.1.0.8:1', expect: {verdict: forward, stat: X}}\n");
    assert_eq!((report.passed, report.failed), (0, 1));
}

#[test]
fn flows_that_share_a_name_for_their_port_have_one_each_and_answers_find_theirs() {
    let out = |n: u32, from: &str, more: &str| {
        format!(
            "- {{'n': {n}, proto: UDP, from: '{from}:700', to: '203.0.113.1:53', expect: {{verdict: forward, from: '10.0.0.1:*'{more}}}}}\n"
        )
    };
    let back = |n: u32, to: &str| {
        format!("- {{'n': {n}, proto: UDP, from: '203.0.113.1:53', to: '10.0.0.1:*', expect: {{verdict: forward, to: '{to}:700'}}}}\n")
    };
    let two = [out(1, "10.1.0.9", ""), out(2, "10.1.0.8", ", distinct: from the first"), out(3, "10.1.0.9", "")].concat();
    let report = run_packets(&[two.clone(), back(4, "10.1.0.9"), back(5, "10.1.0.8")].concat());
    assert_eq!((report.passed, report.failed), (5, 0), "{}", report.print(Format::Text));
    assert_eq!(run_packets(&[two, back(4, "10.1.0.7")].concat()).failed, 1);
}

#[test]
fn only_flows_to_where_a_service_is_or_was_are_cleaned_up_e2_39() {
    let entry =
        |port: u16, keep: bool| format!("{{protocol: UDP, orig_dst: 10.96.0.2, orig_dport: {port}, reply_src: 10.1.0.1, keep: {keep}}}");
    let service =
        "- {apiVersion: v1, kind: Service, metadata: {name: u}, spec: {clusterIP: 10.96.0.2, ports: [{port: 53, protocol: UDP}]}}";
    let text = format!(
        "then:\n- apply:\n  {service}\n  conntrack: [{}, {}]\n- delete: [{{kind: Service, namespace: '', name: u}}]\n  conntrack: [{}, {}]\n",
        entry(53, false),
        entry(54, true),
        entry(53, false),
        entry(54, true),
    );
    let report = run_service(&text);
    assert_eq!((report.passed, report.failed), (4, 0), "{}", report.print(Format::Text));
}
