use std::fmt::Write as _;

use super::*;
use crate::model::NodeConfig;

fn source(text: &str) -> Source {
    Source::new("t.yaml", text.into()).unwrap()
}
fn faults(text: &str) -> Vec<String> {
    source(text).documents().1.iter().map(Fault::to_string).collect()
}
/// A tree as JSON prints it, to compare trees without positions.
fn show(node: &Node<'_>) -> String {
    match &node.value {
        Value::Null => "null".into(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Str(text) => format!("{text:?}"),
        Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(",")),
        Value::Map(entries) => {
            format!("{{{}}}", entries.iter().map(|(k, v)| format!("{:?}:{}", k.name, show(v))).collect::<Vec<_>>().join(","))
        }
    }
}
fn read(text: &str) -> Vec<String> {
    let source = source(text);
    let (documents, faults) = source.documents();
    assert_eq!(faults, [], "{text}");
    documents.iter().map(show).collect()
}

#[test]
fn plain_scalars_mean_what_kubectl_takes_them_for() {
    for (text, expected) in [
        ("on", "true"),
        ("No", "false"),
        ("y", "true"),
        ("'on'", "\"on\""),
        ("~", ""),
        ("null", ""),
        ("80", "80"),
        ("0x1f", "31"),
        ("010", "8"),
        ("1_000", "1000"),
        ("-5", "-5"),
        ("1.5", "1.5"),
        ("1e3", "1000.0"),
        ("172.30.0.041", "\"172.30.0.041\""),
        ("10.0.0.0/8", "\"10.0.0.0/8\""),
        ("fd00::1", "\"fd00::1\""),
        ("2026-01-01", "\"2026-01-01\""),
        ("!!str 80", "\"80\""),
        ("!!int '80'", "80"),
        ("-", "[null]"),
        ("--5", "\"--5\""),
    ] {
        assert_eq!(read(text).join(""), expected, "{text}");
    }
}

#[test]
fn empty_documents_and_comments_are_nothing() {
    assert_eq!(read("# c\n---\na: 1 # c\n---\n# only\n---\n---\nb: [x]\n...\n"), ["{\"a\":1}", "{\"b\":[\"x\"]}"]);
    assert_eq!(read(""), [""; 0]);
    assert_eq!(read("\u{feff}a: 1"), ["{\"a\":1}"]);
}

#[test]
fn yaml_and_json_give_the_same_tree_with_positions() {
    let text = "{\"a\": [1, {\"b\": \"x\"}],\n \"c\": \"q\\u0041\", \"d\": null, \"e\": -1.5, \"f\": true}\n";
    let json = Source::new("t.json", text.into()).unwrap();
    let yaml = source(text);
    let (from_json, _) = json.documents();
    let (from_yaml, _) = parse::documents(&yaml);
    assert_eq!(show(&from_json[0]), show(&from_yaml[0]));
    let b = &from_json[0].map()[0].1.list()[1].map()[0];
    assert_eq!((json.position(b.0.at), json.position(b.1.at)), ((1, 12), (1, 17)));
    assert_eq!(json.position(from_json[0].map()[1].0.at), (2, 2));
    // Several documents one after the other, as `kubectl get -o json` of several calls gives.
    assert_eq!(Source::new("t.json", b"{\"a\":1}\n{\"b\":2} ".to_vec()).unwrap().documents().0.len(), 2);
}

#[test]
fn positions_count_characters_of_lines() {
    let source = source("a: 1\nü: {k: v}\n");
    let (documents, _) = source.documents();
    let inner = &documents[0].map()[1].1.map()[0];
    assert_eq!(source.position(inner.0.at), (2, 5));
    assert_eq!(source.position(inner.1.at), (2, 8));
    assert_eq!(source.word(inner.1.at), "v");
    // Places beyond several blocks of a text, in any order, at the very end and after it.
    let text: String = (0..700).map(|n| if n % 9 == 0 { "ü\n" } else { "€x" }).collect();
    let source = Source::new("t.yaml", text.clone().into_bytes()).unwrap();
    for at in (0..=text.len()).rev().step_by(7).filter(|at| text.is_char_boundary(*at)) {
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        assert_eq!(source.position(at as u32), (line as u32, column as u32), "at {at}");
    }
    assert_eq!(source.position(u32::MAX), source.position(text.len() as u32));
}

#[test]
fn every_broken_document_of_a_file_is_reported() {
    let text = "a: [1, 2\n---\nb: 1\nb: 2\nc: {d: 1, d: 2}\n---\n\"x\n---\nfine: true\n";
    let faults = faults(text);
    assert_eq!(faults.len(), 4, "{faults:#?}");
    assert!(faults[0].starts_with("t.yaml:1:4: YAML: unclosed bracket"), "{faults:#?}");
    assert_eq!(faults[1], "t.yaml:5:11: the key \"d\" stands twice in one map");
    assert_eq!(faults[2], "t.yaml:4:1: the key \"b\" stands twice in one map");
    assert!(faults[3].starts_with("t.yaml:"), "{faults:#?}");
}

#[test]
fn json_faults_have_a_position() {
    let said = |text: &str| Source::new("t.json", text.into()).unwrap().documents().1[0].to_string();
    assert_eq!(said("{\"a\": 1,\n \"b\": }"), "t.json:2:7: JSON: expected value");
    assert_eq!(said("{\"a\": 1,\n \"a\": 2}"), "t.json:2:2: the key \"a\" stands twice in one map");
    let deep = "[".repeat(100_000);
    assert!(said(&deep).contains("recursion limit"), "{}", said(&deep));
}

#[test]
fn aliases_and_merge_keys_expand() {
    let text = "base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\nlist: [*b, &k key]\n*k : v\n";
    assert_eq!(read(text), ["{\"base\":{\"x\":1,\"y\":2},\"use\":{\"y\":3,\"x\":1},\"list\":[{\"x\":1,\"y\":2},\"key\"],\"key\":\"v\"}"]);
    assert_eq!(faults("a: *nobody").len(), 1);
    assert_eq!(faults("a: &a [*a]").len(), 1);
    assert_eq!(faults("a: {<<: 5}"), ["t.yaml:1:9: `<<` merges a map or a list of maps"]);
}

#[test]
fn a_bomb_of_aliases_is_refused_and_fast() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..30 {
        let items = vec![format!("*a{}", n - 1); 10].join(",");
        writeln!(text, "a{n}: &a{n} [{items}]").unwrap();
    }
    let said = faults(&text);
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("aliases expand to more than 100000 nodes"), "{}", said[0]);
}

#[test]
fn deep_nesting_is_refused() {
    for text in ["[".repeat(100_000), "- ".repeat(5_000), "{a: ".repeat(5_000)] {
        let said = faults(&text);
        assert_eq!(said.len(), 1, "{}", &text[..10]);
        assert!(said[0].contains("nest") || said[0].contains("limit") || said[0].contains("deep"), "{}", said[0]);
    }
    // Depth made of aliases, one level a line.
    let mut text = String::from("a0: &a0 [x]\n");
    (1..300).for_each(|n| writeln!(text, "a{n}: &a{n} [*a{}]", n - 1).unwrap());
    assert!(faults(&text)[0].contains("deeper than 128"), "{:?}", faults(&text));
}

#[test]
fn a_text_of_200_mb_is_refused_by_its_size() {
    let fault = Source::new("big.yaml", vec![b' '; 200_000_000]).unwrap_err();
    assert!(fault.to_string().starts_with("big.yaml:1:1: is longer than 195 MB, the most that is read"), "{fault}");
}

#[test]
fn bytes_that_are_no_text_are_refused_where_they_stand() {
    let fault = Source::new("t.yaml", b"a: 1\nb: \xff\n".to_vec()).unwrap_err();
    assert_eq!(fault.to_string(), "t.yaml:2:4: is not UTF-8 text");
}

#[test]
fn node_yaml_reads_with_defaults_and_names_what_does_not_fit() {
    let read = |text: &str| from_source::<NodeConfig>(&source(text)).map_err(|f| f[0].to_string());
    let head = "apiVersion: weir.dev/v1alpha1\nkind: NodeConfig\nnode: node-a\n";
    let config = read(&format!("{head}workers: {{count: 2, idle: poll}}\nservices: {{nodePortCIDRs: [10.0.0.0/8]}}\n")).unwrap();
    assert_eq!((config.workers.count, config.services.node_port_cidrs.len()), (2, 1));
    for (line, expected) in [
        ("workers: {count: two}", "t.yaml:4:18: workers.count: invalid type: string \"two\", expected u16"),
        ("workers: {cuont: 2}", "t.yaml:4:11: workers.cuont: unknown field `cuont`, expected one of `count`, `cores`, `idle`"),
        ("pods:\n- {pod: a/b, interface: on}", "t.yaml:5:25: pods[0].interface: `on` reads as a boolean, not as text: quote it"),
        ("overlay: {mode: gre}", "t.yaml:4:17: overlay.mode: unknown variant `gre`, expected `vxlan` or `native`"),
        ("---\na: 1", "t.yaml:5:1: is a second document; one is expected"),
    ] {
        assert_eq!(read(&format!("{head}{line}\n")).unwrap_err(), expected);
    }
    assert_eq!(read("").unwrap_err(), "t.yaml:1:1: holds no document");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        for name in ["t.yaml", "t.json"] {
            if let Ok(source) = Source::new(name, bytes.clone()) {
                let _ = source.documents();
            }
        }
    }

    #[test]
    fn no_yaml_like_text_makes_the_reader_panic(text in "([\\[\\]{}:,&*#?|>'\"!%@`\\-<~ab1\n ]|---\n|<<: |&a |\\*a ){0,60}") {
        let source = source(&text);
        let (documents, faults) = source.documents();
        for fault in faults {
            proptest::prop_assert!(!fault.to_string().contains('\n'));
        }
        for document in documents {
            let _ = from_node::<NodeConfig>(&source, &document);
        }
    }
}
