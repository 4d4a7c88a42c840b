//! The field table says what the loader does, and all of it.

use std::fmt::Write as _;
use std::path::Path;

use crate::source::fields::{self, Class, Section};
use crate::source::read::Reading;
use weir_dataplane::yaml::Source;

fn kinds() -> impl Iterator<Item = &'static Section> {
    fields::table().iter().filter(|section| !section.version.is_empty())
}

/// What the check says of a JSON object.
fn check(kind: &str, text: String) -> Vec<String> {
    let source = Source::new("t.json", text.into()).unwrap();
    let (documents, faults) = source.documents();
    assert_eq!(faults, []);
    let reading = Reading::new(&source, String::new());
    fields::check(&reading, &documents[0], kind);
    reading.faults.into_inner().iter().map(|f| format!("{}: {}", f.path, f.message)).collect()
}

/// `a.b.c` with `value` as nested JSON maps.
fn nest(path: &str, value: &str) -> String {
    path.replace('*', "somethingNew").rsplit('.').fold(value.to_owned(), |inner, name| format!("{{\"{name}\": {inner}}}"))
}

/// Rows whose last names contain dots, as annotations do, are not paths of plain names.
#[test]
fn every_field_of_the_table_is_treated_as_it_says() {
    for section in kinds() {
        for row in &section.rows {
            let odd = "{\"anything\": [1]}";
            let said = check(section.kind, nest(&row.path, if row.class == Class::NoConcern { odd } else { "\"x\"" }));
            let path = row.path.replace('*', "somethingNew");
            match row.class {
                Class::Refused => assert_eq!(said, [format!("{path}: is not supported: {}", row.why)], "{}", section.kind),
                _ => assert_eq!(said, [""; 0], "{} {}", section.kind, row.path),
            }
            for nothing in ["null", "0", "\"\"", "false", "[]", "{}"] {
                assert_eq!(check(section.kind, nest(&row.path, nothing)), [""; 0], "{} {} {nothing}", section.kind, row.path);
            }
        }
    }
}

#[test]
fn a_field_that_is_in_no_row_is_unknown_at_every_level() {
    for section in kinds() {
        for row in &section.rows {
            let parents = row.path.match_indices('.').map(|(n, _)| &row.path[..n]).chain([""]);
            for parent in parents {
                let open = section
                    .rows
                    .iter()
                    .any(|r| r.path.strip_suffix(".*") == Some(parent) || (r.path == parent && r.class == Class::NoConcern));
                let path = format!("{parent}.surelyUnknown");
                let path = path.trim_start_matches('.');
                let said = check(section.kind, nest(path, "1"));
                let expected: &[String] = &[format!("{path}: is not a field of {}", section.kind)];
                assert_eq!(said, if open { &[] } else { expected }, "{} {path}", section.kind);
            }
        }
    }
}

#[test]
fn no_cell_of_the_table_is_empty_and_every_witness_exists() {
    let rows: usize = include_str!("../fields.txt").lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '@'])).count();
    let parsed: usize = include_str!("../fields.txt").lines().filter(|l| l.contains('|') && !l.starts_with('#')).count();
    assert_eq!(rows, parsed);
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance");
    let tests =
        [include_str!("mod.rs"), include_str!("api_server.rs"), include_str!("bad_input.rs"), include_str!("field_table.rs")].concat();
    for section in kinds() {
        for row in &section.rows {
            assert!(!row.why.is_empty() && !row.shown.is_empty(), "{} {}", section.kind, row.path);
            let is_test = tests.contains(&format!("fn {}(", row.shown));
            let is_case =
                ["policy", "policy-cluster", "services"].iter().any(|f| cases.join(f).join(format!("{}.yaml", row.shown)).exists());
            assert!(is_test || is_case, "{} {}: no test or case is called {}", section.kind, row.path, row.shown);
        }
    }
}

/// The table as people read it.
fn markdown() -> String {
    let mut text = String::from(
        "# Every field of the Kubernetes API that Weir meets, and what it does with it\n\nMade from `control/src/source/fields.txt` by `UPDATE=1 cargo test -p weir-control field_table`; do not edit. Lists are written\nwithout `[]`; `*` is every other name. A field that is in no row is an error that names it. What is of no concern is so with\neverything below it. Rules: `semantics/kubernetes.md`. A witness is a case of the conformance suite or a test of the loader.\n",
    );
    for section in kinds() {
        let _ = write!(
            text,
            "\n## {} ({})\n\n| field | what happens | rule, or why | witness |\n|---|---|---|---|\n",
            section.kind, section.version
        );
        for row in &section.rows {
            let _ = writeln!(text, "| `{}` | {} | {} | {} |", row.path, row.class.word(), row.why, row.shown);
        }
    }
    text
}

#[test]
fn the_printed_table_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/api-fields.md");
    let text = markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let printed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(printed == text, "{} is out of date: run with UPDATE=1", path.display());
}
