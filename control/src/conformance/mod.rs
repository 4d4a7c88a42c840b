//! Runs case files: ordinary objects and what must hold of them (`weir test`).
//!
//! A case is judged by what the daemon runs: the compiled tables, and for connection tracking real packets through the
//! pipeline. Nothing here knows a rule of Kubernetes.

mod case;
mod judge;
mod keys;
mod objects;
mod packets;
mod report;
#[cfg(test)]
mod tests;
mod world;

use std::path::{Path, PathBuf};

use anyhow::Context;
use weir_dataplane::yaml::{Node, Source, from_node};

use self::case::{Head, Step};
use self::objects::Objects;
pub use self::report::{Failure, Format, Report};
use crate::sim::scenario;

/// Runs every case under `paths`: files, or folders with all that is below them.
///
/// # Errors
/// A path that cannot be read, or that holds no case.
pub fn run(paths: &[PathBuf], filter: Option<&str>, seed: u64) -> anyhow::Result<Report> {
    let mut files = Vec::new();
    for path in paths {
        let before = files.len();
        collect(path, &mut files)?;
        anyhow::ensure!(files.len() > before, "{}: no case file (.yaml, .yml or .json) is here", path.display());
    }
    files.sort();
    files.dedup();
    let mut report = Report::default();
    for file in &files {
        if file.is_dir() {
            run_scenario(file, filter, &mut report);
            continue;
        }
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        run_file(&file.display().to_string(), bytes, filter, seed, &mut report);
    }
    Ok(report)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let reading = || format!("cannot read {}", path.display());
    if !std::fs::metadata(path).with_context(reading)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if scenario::is_scenario(path) {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let is_case = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["yaml", "yml", "json"].contains(&e));
        if path.is_dir() || is_case {
            collect(&path, files)?;
        }
    }
    Ok(())
}

/// Replays a scenario folder and compares it with its goldens. Its seed is its own.
fn run_scenario(folder: &Path, filter: Option<&str>, report: &mut Report) {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = folder.display().to_string();
    if filter.is_some_and(|text| !file.contains(text)) {
        return;
    }
    (report.files, report.cases) = (report.files + 1, report.cases + 1);
    let mut tally = report.tally(&file, &name);
    match scenario::run(folder, false) {
        Err(why) => tally.broken(1, &why),
        Ok(compared) => {
            (0..compared.passed).for_each(|_| tally.pass());
            for difference in compared.differences {
                tally.fail((&difference.at, "-"), difference.expected, difference.got, String::new());
            }
        }
    }
}

/// Runs the cases of one file, one a document.
fn run_file(file: &str, bytes: Vec<u8>, filter: Option<&str>, seed: u64, report: &mut Report) {
    let source = match Source::new(file, bytes) {
        Ok(source) => source,
        Err(fault) => return report.broken_file(file, &fault.to_string()),
    };
    let (documents, faults) = source.documents();
    if let Some(fault) = faults.first() {
        return report.broken_file(file, &fault.to_string());
    }
    let mut selected = false;
    for document in &documents {
        let head: Head = match from_node(&source, document).and_then(|head| keys::check(&source, document).map(|()| head)) {
            Ok(head) => head,
            Err(fault) => {
                selected = true;
                report.broken_case(file, "?", 1, &fault.to_string());
                continue;
            }
        };
        if filter.is_some_and(|text| !head.id.contains(text) && !file.contains(text)) {
            continue;
        }
        selected = true;
        report.cases += 1;
        run_case(file, &source, document, &head, seed, report);
    }
    report.files += usize::from(selected);
}

/// Judges the case's own lists, then those of each item of `then` after its changes.
fn run_case(file: &str, source: &Source, document: &Node<'_>, head: &Head, seed: u64, report: &mut Report) {
    let mut objects = Objects::default();
    objects.apply(document.field("snapshot").map_or(&[], |n| n.list()));
    let then = document.field("then").map_or(&[][..], |n| n.list());
    let mut sequence = judge::Sequences::new(seed);
    for (index, node) in std::iter::once(document).chain(then).enumerate() {
        if index > 0 {
            objects.apply(node.field("apply").map_or(&[], |n| n.list()));
            objects.delete(node.field("delete").map_or(&[], |n| n.list()));
        }
        let at = if index == 0 { head.id.clone() } else { format!("{} (then {index})", head.id) };
        let step: Step = match from_node(source, node) {
            Ok(step) => step,
            Err(fault) => {
                report.broken_case(file, &at, 1, &fault.to_string());
                continue;
            }
        };
        let mut tally = report.tally(file, &at);
        judge::step(source, node, head, &step, &objects, &mut sequence, &mut tally);
    }
}
