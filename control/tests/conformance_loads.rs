//! The conformance cases of `../shared/conformance` load and hold, those of kind `validation` are judged as they say, and so do our own.

use std::path::{Path, PathBuf};

use weir_control::conformance::{self, Format};
use weir_control::source::{self, Decoded};
use weir_dataplane::yaml::{Node, Source, Value};

fn case_files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance");
    let folders = std::fs::read_dir(&root).unwrap_or_else(|error| panic!("the conformance cases are missing: {}: {error}", root.display()));
    let mut files: Vec<PathBuf> = folders
        .map(|folder| folder.unwrap().path())
        .filter(|path| path.is_dir())
        .flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() > 200, "only {} cases in {}", files.len(), root.display());
    files
}

/// Every list of objects in a case: the snapshot and what later steps apply.
fn object_lists<'n, 'a>(node: &'n Node<'a>, found: &mut Vec<&'n [Node<'a>]>) {
    for (key, value) in node.map() {
        if matches!(key.name.as_ref(), "snapshot" | "apply") {
            found.push(value.list());
        } else {
            object_lists(value, found);
        }
    }
    node.list().iter().for_each(|item| object_lists(item, found));
}

#[test]
fn every_conformance_case_holds_and_so_do_our_own() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let report = conformance::run(&[here.join("../../shared/conformance"), here.join("../fixtures/cases")], None, 1).unwrap();
    let text = report.print(Format::Text);
    println!("{}", text.lines().last().unwrap_or_default());
    assert!(report.holds(), "{text}");
}

#[test]
fn every_snapshot_of_the_conformance_cases_loads() {
    let mut failed = Vec::new();
    for file in case_files() {
        let source = Source::new(&file.display().to_string(), std::fs::read(&file).unwrap()).unwrap();
        let (documents, faults) = source.documents();
        assert_eq!(faults, [], "{}", file.display());
        let mut lists = Vec::new();
        object_lists(&documents[0], &mut lists);
        let Some((first, later)) = lists.split_first() else { continue };
        let mut snapshot = match source::load_nodes(&source, first.iter()) {
            Ok(snapshot) => snapshot,
            Err(faults) => {
                failed.push(faults.to_string());
                continue;
            }
        };
        assert!(snapshot.foreign.is_empty(), "{}: {:?}", file.display(), snapshot.foreign);
        for node in later.iter().flat_map(|list| list.iter()) {
            match source::decode(&source, node) {
                Ok(Decoded::Object(object, _)) => drop(snapshot.apply(*object)),
                other => failed.push(format!("{other:?}")),
            }
        }
        failed.extend(snapshot.check().iter().map(ToString::to_string));
    }
    assert!(failed.is_empty(), "{} cases do not load:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_validation_case_is_judged_as_it_says() {
    let (mut judged, mut failed) = (0, Vec::new());
    for file in case_files() {
        let source = Source::new(&file.display().to_string(), std::fs::read(&file).unwrap()).unwrap();
        let (documents, _) = source.documents();
        for item in documents[0].field("invalid").map(Node::list).unwrap_or_default() {
            let (object, expected) = (item.field("object").unwrap(), item.field("valid").unwrap());
            let verdict = source::load_nodes(&source, [object]);
            judged += 1;
            if expected.value != Value::Bool(verdict.is_ok()) {
                let reason = item.field("reason").and_then(Node::str).unwrap_or_default();
                failed.push(format!("{}: {reason}: {:?}", file.display(), verdict.map(|_| "valid").map_err(|f| f.to_string())));
            }
        }
    }
    assert!(judged >= 33, "only {judged} validation cases");
    assert!(failed.is_empty(), "{} of {judged}:\n{}", failed.len(), failed.join("\n"));
}
