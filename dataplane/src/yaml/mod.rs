//! The project's only reader of YAML and JSON: text in, trees with positions out.
//!
//! Everything that a person writes comes through here: `node.yaml` of the daemon, snapshots and case files of control. The
//! tree borrows from the text and every node knows where it stands, so that a fault found much later, by whoever knows
//! what the text should mean, still names file, line and column. Scalars mean what kubectl takes them for (YAML 1.1 truth
//! words included). Never trusts its input: size, depth and expansion are bounded, duplicate keys are faults, and one
//! broken document does not hide the faults of the next.

mod from;
mod json;
mod parse;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;

/// Longest text that is read, after decompression: room for 250,000 endpoints as kubectl prints them (100 MB of YAML,
/// 180 MB of JSON).
pub const TEXT_LEN_MAX: usize = 195_000_000;
/// Deepest nesting of lists and maps. Kubernetes' own API stays below 40.
pub const DEPTH_MAX: usize = 128;
/// Most nodes that aliases and merge keys may copy within one document: a bomb grows past this at once.
pub const ALIAS_NODES_MAX: usize = 100_000;

/// A text and its name.
#[derive(Debug)]
pub struct Source {
    file: Arc<str>,
    text: String,
    /// Made when the first place is asked for.
    index: OnceLock<Index>,
}

/// Where lines begin, and how many characters there are before each block: any place is found at once, also in a text that is
/// one long line.
#[derive(Debug)]
struct Index {
    /// Byte offset of each line's start.
    lines: Vec<u32>,
    /// Characters before each [`BLOCK`] of bytes.
    characters: Vec<u32>,
}

/// Bytes between two counts of characters.
const BLOCK: usize = 1024;

/// The characters that begin in these bytes.
fn characters(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u32
}

impl Index {
    fn new(bytes: &[u8]) -> Self {
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u32 + 1);
        let counted = bytes.chunks(BLOCK).scan(0, |sum, block| {
            *sum += characters(block);
            Some(*sum)
        });
        Self { lines: [0].into_iter().chain(ends).collect(), characters: [0].into_iter().chain(counted).collect() }
    }

    /// The characters that begin before the byte at `at`.
    fn characters_before(&self, bytes: &[u8], at: usize) -> u32 {
        self.characters[at / BLOCK] + characters(&bytes[at / BLOCK * BLOCK..at])
    }
}

impl Source {
    /// Takes the bytes of a file. `file` is the name that faults carry.
    ///
    /// # Errors
    /// A fault if the bytes are more than [`TEXT_LEN_MAX`] or no UTF-8.
    pub fn new(file: &str, bytes: Vec<u8>) -> Result<Self, Fault> {
        let file: Arc<str> = file.into();
        let fault = |line, column, message| Fault { file: file.clone(), line, column, object: String::new(), path: String::new(), message };
        if bytes.len() > TEXT_LEN_MAX {
            return Err(fault(1, 1, too_long()));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + good.iter().filter(|b| **b == b'\n').count();
            let start = good.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
            let column = 1 + String::from_utf8_lossy(&good[start..]).chars().count();
            fault(line as u32, column as u32, "is not UTF-8 text".into())
        })?;
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        Ok(Self { file, text, index: OnceLock::new() })
    }

    /// The name that faults carry.
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column, both from 1, of the byte at `at`; columns are characters.
    pub fn position(&self, at: u32) -> (u32, u32) {
        let bytes = self.text.as_bytes();
        let at = (at as usize).min(bytes.len());
        let index = self.index.get_or_init(|| Index::new(bytes));
        // The first line begins at 0.
        let line = index.lines.partition_point(|start| *start as usize <= at);
        let start = index.lines[line - 1] as usize;
        (line as u32, index.characters_before(bytes, at) - index.characters_before(bytes, start) + 1)
    }

    /// A fault at the byte at `at`.
    pub fn fault(&self, at: u32, path: impl Into<String>, message: impl Into<String>) -> Fault {
        let (line, column) = self.position(at);
        Fault { file: self.file.clone(), line, column, object: String::new(), path: path.into(), message: message.into() }
    }

    /// The word as it is written at `at`: what a person typed where the tree holds a boolean or a number.
    pub fn word(&self, at: u32) -> &str {
        let rest = self.text.get(at as usize..).unwrap_or_default();
        let end = rest.find([',', '}', ']', '\n', '\r', ' ', '\t', ':']).unwrap_or(rest.len());
        &rest[..end]
    }

    /// Parses every document. Empty documents are left out; what could be read stands beside what was wrong.
    ///
    /// A file called `.json`, or a text that is JSON, is read as such, which is several times faster.
    pub fn documents(&self) -> (Vec<Node<'_>>, Vec<Fault>) {
        let named_json = self.file.ends_with(".json") || self.file.ends_with(".json.gz");
        if named_json || self.text.trim_start().starts_with(['{', '[']) {
            match json::documents(self) {
                Ok(documents) => return (documents, Vec::new()),
                Err((documents, fault)) if named_json => return (documents, vec![fault]),
                Err(_) => {} // Flow style YAML begins likewise.
            }
        }
        parse::documents(self)
    }
}

fn too_long() -> String {
    format!("is longer than {} MB, the most that is read: split it, or leave out kinds that are no concern here", TEXT_LEN_MAX / 1_000_000)
}

/// Reads one document into a type that says what may stand in it.
///
/// # Errors
/// Every syntax fault, or else the first field that does not fit, with its position and path.
pub fn from_source<T: DeserializeOwned>(source: &Source) -> Result<T, Vec<Fault>> {
    let (documents, faults) = source.documents();
    if !faults.is_empty() {
        return Err(faults);
    }
    match &documents[..] {
        [document] => from_node(source, document).map_err(|fault| vec![fault]),
        [] => Err(vec![source.fault(0, "", "holds no document")]),
        [_, second, ..] => Err(vec![source.fault(second.at, "", "is a second document; one is expected")]),
    }
}

/// Reads a part of a tree into a type that says what may stand in it.
///
/// # Errors
/// The first field that does not fit, with its position and path.
pub fn from_node<T: DeserializeOwned>(source: &Source, node: &Node<'_>) -> Result<T, Fault> {
    T::deserialize(from::NodeDeserializer::new(source, node)).map_err(|error| error.into_fault(source, node))
}

/// A part of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<'a> {
    /// Where it stands: byte offset in the text.
    pub at: u32,
    /// What it is.
    pub value: Value<'a>,
}

/// What a node is, after YAML 1.1's rules for plain scalars as Kubernetes' tools apply them.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Nothing: `null`, `~`, or an empty place.
    Null,
    /// `true`, `yes`, `on`, …
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Str(Cow<'a, str>),
    /// A list.
    List(Vec<Node<'a>>),
    /// A map, in the order of the text; keys are unique.
    Map(Vec<(Key<'a>, Node<'a>)>),
}

/// A key of a map. Always text: kubectl turns numbers into text here too.
#[derive(Clone, Debug, PartialEq)]
pub struct Key<'a> {
    /// Where it stands.
    pub at: u32,
    /// Unquoted, so that a truth word would not be text for kubectl.
    pub plain: bool,
    /// Its text.
    pub name: Cow<'a, str>,
}

impl<'a> Node<'a> {
    /// The value of `key`, if this is a map that has it and it is not null.
    pub fn field(&self, key: &str) -> Option<&Node<'a>> {
        self.map().iter().find(|(k, _)| k.name == key).map(|(_, node)| node).filter(|node| node.value != Value::Null)
    }
    /// The entries; none if this is no map.
    pub fn map(&self) -> &[(Key<'a>, Node<'a>)] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }
    /// The items; none if this is no list.
    pub fn list(&self) -> &[Node<'a>] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }
    /// The text, if this is text.
    pub fn str(&self) -> Option<&str> {
        if let Value::Str(text) = &self.value { Some(text) } else { None }
    }
    /// What it is, in words of a message.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// Tells whether a plain scalar is a boolean in YAML 1.1, which Kubernetes' tools read.
pub fn truth_word(word: &str) -> Option<bool> {
    match word {
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// One thing that is wrong with one place of one file. Prints as one line: `file:line:column: object: path: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file as it was named; empty for what came from no file.
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// `kind namespace/name`; empty where there is none yet.
    pub object: String,
    /// `spec.ingress[0].ports[0].endPort`; empty for the whole.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        }
        for part in [&self.object, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        // One fault is one line, whatever the text quoted in it.
        self.message.split(['\n', '\r']).filter(|l| !l.is_empty()).enumerate().try_for_each(|(n, line)| {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(line)
        })
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests;
