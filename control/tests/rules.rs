//! No rule of Kubernetes' semantics is without a witness: each stands in the table of `fixtures/cases/README.md` with cases and tests
//! that name its number themselves, or in ARCHITECTURE.md among those that leave nothing to test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file with this extension below a folder.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The rules that a text names, as `E1.21` or, in the name of a test, as `e1_21`.
fn named(text: &str) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for (at, _) in text.match_indices(['E', 'e']) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_ascii_alphanumeric()) {
            continue;
        }
        let mut numbers = text[at + 1..].splitn(2, ['.', '_']);
        let (Some(part), Some(rest)) = (numbers.next(), numbers.next()) else { continue };
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if matches!(part, "0" | "1" | "2") && !number.is_empty() {
            rules.insert(format!("E{part}.{number}"));
        }
    }
    rules
}

/// What the witnesses of our own say, by their names: cases by title and reference, tests by name, documentation and body.
fn witnesses() -> BTreeMap<String, String> {
    let mut said = BTreeMap::new();
    for file in files("fixtures/cases", "yaml") {
        for case in read(file).split("\n---\n") {
            let line = |key: &str| case.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            said.insert(line("id: ").to_owned(), [line("title: "), line("ref: ")].join(" "));
        }
    }
    for file in files("fixtures/scenarios", "md") {
        said.insert(file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned(), read(file));
    }
    for folder in ["control", "dataplane"] {
        for file in files(folder, "rs") {
            let text = read(file);
            for (at, _) in text.match_indices("fn ") {
                let start = text[..at].rfind("\n\n").unwrap_or(0);
                if text[start..at].contains("#[test]") {
                    let indent = at - text[..at].rfind('\n').unwrap_or(0) - 1;
                    let end = text[at..].find(&format!("\n{}}}\n", " ".repeat(indent))).map_or(text.len(), |end| at + end);
                    let name = text[at + 3..].split('(').next().unwrap_or_default();
                    said.insert(name.to_owned(), text[start..end].to_owned());
                }
            }
        }
    }
    let oracle = files("control/tests/oracle", "rs").into_iter().map(read);
    said.insert("oracle".into(), oracle.collect());
    said
}

#[test]
fn every_rule_has_a_witness_that_names_it_or_leaves_nothing_to_test() {
    let semantics = read("../shared/semantics/kubernetes.md");
    let rules: BTreeSet<String> =
        semantics.lines().filter_map(|line| Some(format!("E{}", line.strip_prefix("- E")?.split(' ').next()?))).collect();
    assert!(rules.len() > 100, "{rules:?}");

    let said = witnesses();
    let upstream: BTreeSet<String> =
        files("../shared/conformance", "yaml").iter().map(|f| f.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let mut faults = Vec::new();
    let mut held = BTreeSet::new();
    for line in read("fixtures/cases/README.md").lines().filter(|line| line.starts_with("| E")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (rule, by) = (cells[0], cells.last().unwrap());
        if !held.insert(rule.to_owned()) || !rules.contains(rule) {
            faults.push(format!("{rule}: stands twice, or is no rule"));
        }
        let mut names_it = false;
        for witness in by.split(", ").map(|witness| witness.trim_matches('`')) {
            match said.get(witness) {
                Some(text) if named(text).contains(rule) => names_it = true,
                Some(_) => faults.push(format!("{rule}: {witness} does not name it")),
                None if upstream.contains(witness) => {}
                None => faults.push(format!("{rule}: no case or test is called {witness}")),
            }
        }
        if !names_it {
            faults.push(format!("{rule}: none of ours names it"));
        }
    }
    let architecture = read("ARCHITECTURE.md");
    let silent = architecture.split("\n- ").find(|item| item.starts_with("Rules that leave nothing to test")).expect("the list of those");
    let silent = named(silent.split("\n\n").next().unwrap());
    faults.extend(held.intersection(&silent).map(|rule| format!("{rule}: has a witness and leaves nothing to test")));
    let known: BTreeSet<String> = held.union(&silent).cloned().collect();
    faults.extend(rules.symmetric_difference(&known).map(|rule| format!("{rule}: has no witness, or is no rule")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
