//! YAML text to trees, on the events of serde-saphyr's parser.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Tag, options};

use super::{ALIAS_NODES_MAX, DEPTH_MAX, Fault, Key, Node, Source, Value, truth_word};

/// A list or map whose end has not come yet.
struct Open<'a> {
    at: u32,
    anchor: usize,
    kind: OpenKind<'a>,
}
enum OpenKind<'a> {
    List(Vec<Node<'a>>),
    Map { entries: Vec<(Key<'a>, Node<'a>)>, key: Option<Key<'a>>, merges: Vec<Node<'a>> },
}

/// A finished node that aliases may name, with its number of nodes and depth.
struct Anchored<'a> {
    node: Node<'a>,
    count: usize,
    depth: usize,
}

/// Maps with more keys than this are checked for duplicates by hash.
const SCAN_KEYS_MAX: usize = 16;

pub(super) fn documents(source: &Source) -> (Vec<Node<'_>>, Vec<Fault>) {
    let mut parser = Parser::new_from_str_with_options(
        source.text(),
        options! { emit_comments: false, flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX },
    );
    let mut builder = Builder::new(source);
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    loop {
        match parser.next() {
            None => break,
            Some(Ok((Event::DocumentStart(..), _))) => builder = Builder::new(source),
            Some(Ok((Event::DocumentEnd, _))) => {
                faults.append(&mut builder.faults);
                documents.extend(builder.root.take().filter(|node| node.value != Value::Null));
            }
            Some(Ok((event, span))) => {
                let at = span.start.byte_offset().unwrap_or(0) as u32;
                if builder.event(event, at) {
                    continue;
                }
                faults.append(&mut builder.faults);
                builder = Builder::new(source);
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
            Some(Err(error)) => {
                faults.append(&mut builder.faults);
                builder = Builder::new(source);
                let mark = error.marker();
                let mut fault = source.fault(0, "", format!("YAML: {}", error.info()));
                (fault.line, fault.column) = (mark.line().max(1) as u32, mark.col() as u32 + 1);
                faults.push(fault);
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
        }
    }
    (documents, faults)
}

/// Builds one document.
struct Builder<'a> {
    source: &'a Source,
    stack: Vec<Open<'a>>,
    anchors: HashMap<usize, Anchored<'a>>,
    copied: usize,
    root: Option<Node<'a>>,
    faults: Vec<Fault>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Source) -> Self {
        Self { source, stack: Vec::new(), anchors: HashMap::new(), copied: 0, root: None, faults: Vec::new() }
    }

    fn fault(&mut self, at: u32, message: impl Into<String>) {
        let fault = self.source.fault(at, "", message);
        self.faults.push(fault);
    }

    /// Takes one event; `false` if the document must be given up.
    fn event(&mut self, event: Event<'a>, at: u32) -> bool {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(Open { kind: OpenKind::Map { key: key @ None, .. }, .. }) = self.stack.last_mut() {
                    *key = Some(Key { at, plain: style == ScalarStyle::Plain, name: text.clone() });
                    if anchor != 0 {
                        self.anchors.insert(anchor, Anchored { node: Node { at, value: Value::Str(text) }, count: 1, depth: 0 });
                    }
                    return true;
                }
                let value = self.scalar(text, style, tag.as_deref(), at);
                self.finish(Node { at, value }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(Open { at, anchor, kind: OpenKind::List(Vec::new()) }),
            Event::MappingStart(_, anchor, _) => {
                self.open(Open { at, anchor, kind: OpenKind::Map { entries: Vec::new(), key: None, merges: Vec::new() } })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.stack.pop() else { return true };
                let value = match open.kind {
                    OpenKind::List(items) => Value::List(items),
                    OpenKind::Map { mut entries, merges, .. } => {
                        self.duplicates(&entries);
                        if !self.merge(&mut entries, merges) {
                            return false;
                        }
                        Value::Map(entries)
                    }
                };
                self.finish(Node { at: open.at, value }, open.anchor)
            }
            Event::Alias(id) => self.alias(id, at),
            _ => true,
        }
    }

    fn open(&mut self, open: Open<'a>) -> bool {
        if let Some(Open { kind: OpenKind::Map { key: None, .. }, .. }) = self.stack.last() {
            self.fault(open.at, "a list or map cannot be a key");
            return false;
        }
        self.stack.push(open);
        true
    }

    /// Puts a finished node into whatever is open.
    fn finish(&mut self, node: Node<'a>, anchor: usize) -> bool {
        if anchor != 0 {
            let (count, depth) = measure(&node);
            if !self.copy(count, node.at) {
                return false;
            }
            self.anchors.insert(anchor, Anchored { node: node.clone(), count, depth });
        }
        match self.stack.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, key, merges }) => match key.take() {
                Some(key) if key.plain && key.name == "<<" => merges.push(node),
                Some(key) => entries.push((key, node)),
                None => {}
            },
        }
        true
    }

    fn alias(&mut self, id: usize, at: u32) -> bool {
        let Some(Anchored { node, count, depth }) = self.anchors.get(&id) else {
            self.fault(at, "an alias inside the very node that it names");
            return false;
        };
        let (node, count, depth) = (Node { at, value: node.value.clone() }, *count, *depth);
        if let Some(Open { kind: OpenKind::Map { key: key @ None, .. }, .. }) = self.stack.last_mut() {
            let Value::Str(name) = node.value else {
                self.fault(at, "only text can be a key");
                return false;
            };
            *key = Some(Key { at, plain: false, name });
            return true;
        }
        if self.stack.len() + depth > DEPTH_MAX {
            self.fault(at, format!("aliases nest deeper than {DEPTH_MAX} levels"));
            return false;
        }
        self.copy(count, at) && self.finish(node, 0)
    }

    /// Accounts for nodes copied on behalf of aliases.
    fn copy(&mut self, count: usize, at: u32) -> bool {
        self.copied = self.copied.saturating_add(count);
        let within = self.copied <= ALIAS_NODES_MAX;
        if !within {
            self.fault(at, format!("aliases expand to more than {ALIAS_NODES_MAX} nodes"));
        }
        within
    }

    /// Merge keys (`<<: *base`, YAML 1.1): entries of the merged maps that the map itself does not have.
    fn merge(&mut self, entries: &mut Vec<(Key<'a>, Node<'a>)>, merges: Vec<Node<'a>>) -> bool {
        for merge in merges {
            let at = merge.at;
            let maps = if let Value::List(maps) = merge.value { maps } else { vec![merge] };
            for map in maps {
                let Value::Map(merged) = map.value else {
                    self.fault(at, "`<<` merges a map or a list of maps");
                    return false;
                };
                if !self.copy(entries.len(), at) {
                    return false;
                }
                for entry in merged {
                    if !entries.iter().any(|(key, _)| key.name == entry.0.name) {
                        entries.push(entry);
                    }
                }
            }
        }
        true
    }

    fn duplicates(&mut self, entries: &[(Key<'a>, Node<'a>)]) {
        duplicate_keys(entries, |at, message| self.fault(at, message));
    }

    /// A scalar as go-yaml resolves it for Kubernetes: plain ones may be null, boolean or number.
    fn scalar(&mut self, text: Cow<'a, str>, style: ScalarStyle, tag: Option<&Tag>, at: u32) -> Value<'a> {
        let core = tag.and_then(Tag::core_suffix);
        if tag.is_some() && core.is_none() {
            self.fault(at, "a tag that is not of YAML's core");
        }
        if style != ScalarStyle::Plain && core.is_none_or(|c| c == "str") || core == Some("str") {
            return Value::Str(text);
        }
        plain(text)
    }
}

/// Number of nodes and levels below the top one. Nodes are at most [`DEPTH_MAX`] deep.
fn measure(node: &Node<'_>) -> (usize, usize) {
    let children = node.list().iter().chain(node.map().iter().map(|(_, child)| child));
    children.fold((1, 0), |(count, depth), child| {
        let (c, d) = measure(child);
        (count + c, depth.max(d + 1))
    })
}

/// Reports each key that stands before in the same map.
pub(super) fn duplicate_keys(entries: &[(Key<'_>, Node<'_>)], mut report: impl FnMut(u32, String)) {
    let mut say = |key: &Key<'_>| report(key.at, format!("the key {:?} stands twice in one map", key.name));
    if entries.len() <= SCAN_KEYS_MAX {
        for (n, (key, _)) in entries.iter().enumerate() {
            if entries[..n].iter().any(|(before, _)| before.name == key.name) {
                say(key);
            }
        }
        return;
    }
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    entries.iter().filter(|(key, _)| !seen.insert(key.name.as_ref())).for_each(|(key, _)| say(key));
}

fn plain(text: Cow<'_, str>) -> Value<'_> {
    if matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(truth) = truth_word(&text) {
        return Value::Bool(truth);
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        if let Some(number) = int(&text) {
            return Value::Int(number);
        }
        if let Some(number) = float(&text) {
            return Value::Float(number);
        }
    }
    Value::Str(text)
}

/// Go's `ParseInt(text, 0, 64)`: `0x`, `0o`, `0b`, a leading 0 for octal, underscores between digits.
fn int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = if digits.contains('_') { Cow::Owned(digits.replace('_', "")) } else { Cow::Borrowed(digits) };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits.as_ref()),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

fn float(text: &str) -> Option<f64> {
    match text.trim_start_matches(['+', '-']) {
        ".inf" | ".Inf" | ".INF" => return Some(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY }),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let number = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if number && text.bytes().any(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}
