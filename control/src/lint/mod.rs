//! What is legal in a snapshot and surely not meant: object, line, why, and what to do.
//!
//! Reads the objects, and asks the compiled tables where a rule's effect matters. Each check is a function; none changes
//! anything. [`packets`] adds what only a capture can tell.

mod objects;
pub mod packets;
mod policies;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::sim::reach::World;
use crate::source::objects::{Meta, Snapshot};

/// Something that was surely not meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file as the user named it.
    pub file: String,
    /// Line of the object, from 1.
    pub line: u32,
    /// `NetworkPolicy shop/web`.
    pub object: String,
    /// The field in it, or nothing.
    pub field: String,
    /// Which check: a stable name.
    pub check: &'static str,
    /// What is amiss.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Finding {
    fn new(check: &'static str, kind: &str, meta: &Meta, field: String, why: String, fix: String) -> Self {
        let (file, line) = (meta.origin.file.to_string(), meta.origin.line);
        Self { file, line, object: format!("{kind} {meta}"), field, check, why, fix }
    }

    /// `file:line: object: field: why` and, indented, the fix.
    pub fn text(&self) -> String {
        let Self { file, line, object, field, check, why, fix } = self;
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        format!("{file}:{line}: {object}: {field}{why} [{check}]\n    fix: {fix}\n")
    }
}

/// Checks a snapshot; sorted by file and line.
pub fn lint(snapshot: &Snapshot, world: &World) -> Vec<Finding> {
    let mut findings = policies::check(snapshot, world);
    findings.extend(objects::check(snapshot, world));
    findings.sort();
    findings.dedup();
    findings
}
