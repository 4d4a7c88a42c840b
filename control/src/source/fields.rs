//! Which fields of the API are honoured, which are no concern to a dataplane, and which are refused.
//!
//! `fields.txt` is the one place where this is decided: the loader checks every object against it, and the table in
//! `fixtures/api-fields.md` is made from it. A field that is not in it is unknown, and an error.

use std::fmt::Write as _;
use std::sync::OnceLock;

use hashbrown::HashMap;
use weir_dataplane::yaml::{Node, Value};

use super::read::Reading;

const TEXT: &str = include_str!("fields.txt");

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Read, under these rules.
    Honoured,
    /// Read in part; the rest is refused by name.
    Partly,
    /// Nothing that a dataplane does depends on it.
    NoConcern,
    /// Stating it is an error.
    Refused,
}

impl Class {
    /// As the table says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Partly => "honoured in part, else refused",
            Self::NoConcern => "no concern",
            Self::Refused => "refused",
        }
    }
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Path without indices; `*` stands for every other name.
    pub path: String,
    /// What is done with the field.
    pub class: Class,
    /// Rules, or why not.
    pub why: &'static str,
    /// The test or conformance case that shows it; for no concern and refused the tests of the loader itself.
    pub shown: &'static str,
}

/// A section of `fields.txt`: a kind, or a part that several kinds include.
#[derive(Debug)]
pub struct Section {
    /// The kind.
    pub kind: &'static str,
    /// Its apiVersion; empty for a part.
    pub version: &'static str,
    /// Its rows, includes resolved.
    pub rows: Vec<Row>,
}

/// The whole table, kind by kind.
pub fn table() -> &'static [Section] {
    static TABLE: OnceLock<Vec<Section>> = OnceLock::new();
    TABLE.get_or_init(|| parse(TEXT))
}

/// Reads `fields.txt`. A line that does not fit is left out; a test sees to it that there is none.
fn parse(text: &'static str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(head) = line.strip_prefix("@ ") {
            let (kind, version) = head.split_once(' ').unwrap_or((head, ""));
            sections.push(Section { kind, version, rows: Vec::new() });
            continue;
        }
        let mut columns = line.split('|').map(str::trim);
        let (Some(path), Some(class)) = (columns.next(), columns.next()) else { continue };
        let (why, shown) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
        let rows: Vec<Row> = if let Some(part) = class.strip_prefix('@') {
            let part = sections.iter().find(|s| s.kind == part && s.version.is_empty());
            let rows = part.map(|p| p.rows.as_slice()).unwrap_or_default();
            rows.iter().map(|row| Row { path: format!("{path}.{}", row.path), ..row.clone() }).collect()
        } else {
            let class = match class {
                "honoured" => Class::Honoured,
                "partly" => Class::Partly,
                "none" => Class::NoConcern,
                "refused" => Class::Refused,
                _ => continue,
            };
            let shown = match class {
                Class::NoConcern | Class::Refused => "every_field_of_the_table_is_treated_as_it_says",
                Class::Honoured | Class::Partly => shown,
            };
            vec![Row { path: path.to_owned(), class, why, shown }]
        };
        if let Some(section) = sections.last_mut() {
            // What a kind says itself goes before what it includes.
            let new: Vec<Row> = rows.into_iter().filter(|row| section.rows.iter().all(|known| known.path != row.path)).collect();
            section.rows.extend(new);
        }
    }
    sections
}

/// Names within a map, and what is below each.
#[derive(Default)]
struct Tree {
    class: Option<(Class, &'static str)>,
    names: HashMap<String, Tree>,
}

impl Tree {
    fn of(rows: &[Row]) -> Self {
        let mut root = Self::default();
        for row in rows {
            let mut tree = &mut root;
            for name in row.path.split('.') {
                tree = tree.names.entry(name.to_owned()).or_default();
            }
            tree.class = Some((row.class, row.why));
        }
        root
    }
}

fn trees() -> &'static HashMap<&'static str, Tree> {
    static TREES: OnceLock<HashMap<&'static str, Tree>> = OnceLock::new();
    TREES.get_or_init(|| table().iter().filter(|s| !s.version.is_empty()).map(|s| (s.kind, Tree::of(&s.rows))).collect())
}

/// Notes a fault for every field of `node` that is unknown or refused.
pub(super) fn check(reading: &Reading<'_>, node: &Node<'_>, kind: &str) {
    if let Some(tree) = trees().get(kind) {
        Walk { reading, kind, path: Vec::new() }.node(node, tree);
    }
}

struct Walk<'w> {
    reading: &'w Reading<'w>,
    kind: &'w str,
    path: Vec<Step<'w>>,
}

enum Step<'w> {
    Field(&'w str),
    Index(usize),
}

impl<'w> Walk<'w> {
    fn node(&mut self, node: &'w Node<'w>, tree: &Tree) {
        match &node.value {
            Value::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    self.path.push(Step::Index(n));
                    self.node(item, tree);
                    self.path.pop();
                }
            }
            Value::Map(entries) if !tree.names.is_empty() => {
                for (key, child) in entries {
                    self.path.push(Step::Field(&key.name));
                    self.field(key.at, &key.name, child, tree);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, at: u32, name: &str, child: &'w Node<'w>, parent: &Tree) {
        if child.value == Value::Null {
            // Null is absent, whatever the name (`creationTimestamp: null`), but a name must still be known.
            if parent.names.contains_key(name) || parent.names.contains_key("*") {
                return;
            }
        }
        let Some(tree) = parent.names.get(name).or_else(|| parent.names.get("*")) else {
            let known = nearest(name, parent);
            let hint = known.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
            return self.fault(at, format!("is not a field of {}{hint}", self.kind));
        };
        match tree.class {
            Some((Class::Refused, why)) if !is_zero(child) => self.fault(at, format!("is not supported: {why}")),
            Some((Class::Honoured | Class::Partly, _)) | None => self.node(child, tree),
            Some(_) => {}
        }
    }

    fn fault(&self, at: u32, message: String) {
        let mut path = String::new();
        for step in &self.path {
            // Writing to a String cannot fail.
            let _ = match step {
                Step::Index(index) => write!(path, "[{index}]"),
                Step::Field(name) if path.is_empty() => write!(path, "{name}"),
                Step::Field(name) => write!(path, ".{name}"),
            };
        }
        self.reading.fault(at, path, message);
    }
}

/// Tells whether a value says nothing: what Go leaves in a field that nobody set.
fn is_zero(node: &Node<'_>) -> bool {
    match &node.value {
        Value::Null | Value::Bool(false) | Value::Int(0) => true,
        Value::Str(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        Value::Bool(true) | Value::Int(_) | Value::Float(_) => false,
    }
}

/// The known name that differs only in case, or by at most two letters while two at least are the same.
fn nearest<'t>(name: &str, parent: &'t Tree) -> Option<&'t str> {
    let mut names: Vec<&str> = parent.names.keys().map(String::as_str).filter(|known| *known != "*").collect();
    names.sort_unstable();
    names
        .into_iter()
        .map(|known| (distance(&known.to_lowercase(), &name.to_lowercase()), known))
        .filter(|(d, _)| *d == 0 || *d <= 2 && *d + 2 <= name.len())
        .min()
        .map(|(_, n)| n)
}

/// Edits between two short words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    const WORD_LEN_MAX: usize = 64;
    if a.len() > WORD_LEN_MAX || b.len() > WORD_LEN_MAX {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = if x == y { diagonal } else { 1 + diagonal.min(row[j]).min(row[j + 1]) };
            diagonal = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}
