//! Typed reading of a tree: each fault is noted with its place and path, and reading goes on.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::hash::Hash;
use std::ops::RangeInclusive;

use weir_dataplane::model::Protocol;
use weir_dataplane::yaml::{Fault, Node, Source, Value, truth_word};

use super::objects::{Labels, Operator, Requirement, Selector};
use super::syntax;

/// The first item that stands in the list before.
pub(super) fn twice<T: Hash + Eq>(items: &[T]) -> Option<&T> {
    let mut before = HashSet::with_capacity(items.len());
    items.iter().find(|item| !before.insert(*item))
}

/// One object being read: where its faults and warnings go.
pub(super) struct Reading<'s> {
    pub(super) source: &'s Source,
    /// `kind namespace/name`.
    pub(super) object: String,
    pub(super) faults: RefCell<Vec<Fault>>,
    pub(super) warnings: RefCell<Vec<String>>,
}

impl<'s> Reading<'s> {
    pub(super) fn new(source: &'s Source, object: String) -> Self {
        Self { source, object, faults: RefCell::default(), warnings: RefCell::default() }
    }

    pub(super) fn fault(&self, at: u32, path: String, message: impl Into<String>) {
        let mut fault = self.source.fault(at, path, message);
        fault.object.clone_from(&self.object);
        self.faults.borrow_mut().push(fault);
    }
}

/// A node of the tree together with the way to it.
#[derive(Clone, Copy)]
pub(super) struct At<'p> {
    reading: &'p Reading<'p>,
    pub(super) node: &'p Node<'p>,
    parent: Option<&'p At<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Index(usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if matches!((self.step, parent.step), (Step::Field(_), Step::Field(_) | Step::Index(_))) {
                f.write_char('.')?;
            }
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl<'p> At<'p> {
    pub(super) fn root(reading: &'p Reading<'p>, node: &'p Node<'p>) -> Self {
        Self { reading, node, parent: None, step: Step::Root }
    }

    /// The text that is being read.
    pub(super) fn source(&self) -> &'p Source {
        self.reading.source
    }

    /// Notes what is wrong here.
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.reading.fault(self.node.at, self.to_string(), message);
    }

    /// Notes that `key` of this map is wrong or missing.
    pub(super) fn fault_of(&self, key: &str, message: impl Into<String>) {
        match self.field(key) {
            Some(field) => field.fault(message),
            None => {
                let path = self.to_string();
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                self.reading.fault(self.node.at, path, message);
            }
        }
    }

    /// Notes what is legal but surely not meant here.
    pub(super) fn warn(&self, message: &str) {
        let mut fault = self.reading.source.fault(self.node.at, self.to_string(), message);
        fault.object.clone_from(&self.reading.object);
        self.reading.warnings.borrow_mut().push(fault.to_string());
    }

    /// The field `key`; `None` if it is absent or null.
    pub(super) fn field<'q>(&'q self, key: &'q str) -> Option<At<'q>> {
        let node = self.node.field(key)?;
        Some(At { reading: self.reading, node, parent: Some(self), step: Step::Field(key) })
    }

    /// The field `key`, which must be a map.
    pub(super) fn map<'q>(&'q self, key: &'q str) -> Option<At<'q>> {
        self.field(key).filter(|field| field.is_map())
    }

    /// Tells whether this is a map, and notes a fault if not.
    pub(super) fn is_map(&self) -> bool {
        let map = matches!(self.node.value, Value::Map(_));
        if !map {
            self.fault(format!("must be a map, not {}", self.node.kind()));
        }
        map
    }

    /// Reads each item of the list `key`; `None` if the list is absent or null.
    pub(super) fn list<T>(&self, key: &str, mut item: impl FnMut(At<'_>) -> Option<T>) -> Option<Vec<T>> {
        let field = self.field(key)?;
        let Value::List(nodes) = &field.node.value else {
            field.fault(format!("must be a list, not {}", field.node.kind()));
            return None;
        };
        let items = nodes.iter().enumerate();
        Some(items.filter_map(|(n, node)| item(At { reading: self.reading, node, parent: Some(&field), step: Step::Index(n) })).collect())
    }

    /// Notes a fault where the list `key` is there and has not as many items as it may have.
    pub(super) fn count(&self, key: &str, range: RangeInclusive<usize>) {
        if let Some(list) = self.field(key) {
            let count = list.node.list().len();
            if !range.contains(&count) {
                list.fault(format!("has {count} items; {} to {} are allowed", range.start(), range.end()));
            }
        }
    }

    /// The text of this node.
    pub(super) fn text(&self) -> Option<&'p str> {
        match &self.node.value {
            Value::Str(text) => return Some(text),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                let word = self.reading.source.word(self.node.at);
                if word.is_empty() || word.starts_with(['"', '\'']) {
                    self.fault(format!("must be text, not {}", self.node.kind()));
                } else {
                    self.fault(format!("must be text, but `{word}` reads as {}: quote it", self.node.kind()));
                }
            }
            _ => self.fault(format!("must be text, not {}", self.node.kind())),
        }
        None
    }

    /// The text of the field `key`; `None` if it is absent, null or empty.
    pub(super) fn str<'q>(&'q self, key: &'q str) -> Option<&'q str> {
        self.field(key)?.text().filter(|text| !text.is_empty())
    }

    /// The name of an object of the field `key`; `None` if it is absent, null, empty, or no name (a fault).
    pub(super) fn name(&self, key: &str) -> Option<String> {
        self.str(key)?;
        self.field(key)?.parse(syntax::name)
    }

    /// The boolean of the field `key`.
    pub(super) fn bool(&self, key: &str) -> Option<bool> {
        let field = self.field(key)?;
        if let Value::Bool(truth) = field.node.value {
            return Some(truth);
        }
        field.fault(format!("must be true or false, not {}", field.node.kind()));
        None
    }

    /// The number of this node, within `range`.
    pub(super) fn number(&self, range: RangeInclusive<i64>) -> Option<i64> {
        match self.node.value {
            Value::Int(number) if range.contains(&number) => return Some(number),
            Value::Int(number) => self.fault(format!("{number} is out of range: {} to {}", range.start(), range.end())),
            _ => self.fault(format!("must be a whole number, not {}", self.node.kind())),
        }
        None
    }

    /// The number of the field `key`, within `range`.
    pub(super) fn int(&self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.field(key)?.number(range)
    }

    /// The port number of the field `key`; 0 counts as absent where `zero` says so.
    pub(super) fn port(&self, key: &str, zero: bool) -> Option<u16> {
        let first = i64::from(!zero);
        self.int(key, first..=65535).map(|n| n as u16).filter(|n| *n != 0)
    }

    /// The value of the field `key` among `words`; `None` if it is absent or empty, or none of them (a fault).
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.str(key)?;
        let known = words.iter().find(|(word, _)| *word == text);
        if known.is_none() {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.fault_of(key, format!("{text:?} is not one of {}", words.join(", ")));
        }
        known.map(|(_, value)| *value)
    }

    /// The field `protocol`; TCP where there is none (E0.2, E0.4).
    pub(super) fn protocol(&self) -> Protocol {
        self.word("protocol", &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)]).unwrap_or(Protocol::Tcp)
    }

    /// Parses the text of this node.
    pub(super) fn parse<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text()?;
        parse(text).map_err(|message| self.fault(message)).ok()
    }

    /// The field `key` as labels: keys and values of label syntax.
    pub(super) fn labels(&self, key: &str) -> Labels {
        let Some(field) = self.map(key) else { return Labels::new() };
        let mut labels = Labels::new();
        for (name, node) in field.node.map() {
            let at = At { reading: self.reading, node, parent: Some(&field), step: Step::Field(&name.name) };
            if name.plain && truth_word(&name.name).is_some() {
                at.fault(format!("the key `{}` reads as a boolean: quote it", name.name));
                continue;
            }
            if let Err(message) = syntax::label_key(&name.name) {
                self.reading.fault(name.at, at.to_string(), message);
                continue;
            }
            let value = if node.value == Value::Null { Some(String::new()) } else { at.parse(syntax::label_value) };
            labels.extend(value.map(|value| (Cow::clone(&name.name).into_owned(), value)));
        }
        labels
    }

    /// The field `key` as a label selector; `None` if it is absent or null (E1.19).
    pub(super) fn selector(&self, key: &str) -> Option<Selector> {
        self.map(key).map(|field| field.as_selector())
    }

    /// This map as a label selector.
    pub(super) fn as_selector(&self) -> Selector {
        let expressions = self.list("matchExpressions", |item| item.requirement());
        Selector { match_labels: self.labels("matchLabels"), expressions: expressions.unwrap_or_default() }
    }

    fn requirement(&self) -> Option<Requirement> {
        if !self.is_map() {
            return None;
        }
        let key = match self.str("key") {
            Some(key) => {
                if let Err(message) = syntax::label_key(key) {
                    self.fault_of("key", message);
                }
                key
            }
            None => {
                self.fault_of("key", "is required");
                return None;
            }
        };
        let operators = [Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist].map(|o| (o.word(), o));
        if self.str("operator").is_none() {
            self.fault_of("operator", "is required: In, NotIn, Exists or DoesNotExist");
        }
        let operator = self.word("operator", &operators)?;
        let values = self.list("values", |item| item.parse(syntax::label_value)).unwrap_or_default();
        let wants_values = matches!(operator, Operator::In | Operator::NotIn);
        let stated = self.field("values").is_some_and(|v| !v.node.list().is_empty());
        if wants_values != stated {
            let verb = if wants_values { "needs at least one value" } else { "takes no values" };
            self.fault_of("values", format!("operator {} {verb}", operator.word()));
        }
        Some(Requirement { key: key.to_owned(), operator, values })
    }
}
