//! JSON text to trees, on serde_json.
//!
//! serde_json tells no positions, but it lends unescaped strings out of the text itself: where such a key or string lies
//! in memory is where it stands in the file. A number or boolean takes the position of its key, or of what stands before
//! it in a list.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use super::parse::duplicate_keys;
use super::{Fault, Key, Node, Source, Value};

/// All documents of a text, or those before the first fault together with it.
pub(super) fn documents(source: &Source) -> Result<Vec<Node<'_>>, (Vec<Node<'_>>, Fault)> {
    let place = Place { start: source.text().as_ptr() as usize, last: Cell::new(0), duplicate: Cell::new(None) };
    let mut json = serde_json::Deserializer::from_str(source.text());
    let mut documents = Vec::new();
    while json.end().is_err() {
        let read = place.deserialize(&mut json);
        if let Some((at, message)) = place.duplicate.take() {
            return Err((documents, source.fault(at, "", message)));
        }
        match read {
            Ok(Node { value: Value::Null, .. }) => {}
            Ok(node) => documents.push(node),
            Err(error) => {
                let mut fault = source.fault(0, "", "");
                (fault.line, fault.column) = (error.line().max(1) as u32, error.column().max(1) as u32);
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or_default();
                fault.message = format!("JSON: {text}");
                return Err((documents, fault));
            }
        }
    }
    Ok(documents)
}

/// Where in the text the reader is, as far as it is known.
struct Place {
    start: usize,
    last: Cell<u32>,
    duplicate: Cell<Option<(u32, String)>>,
}

impl Place {
    /// Notes that `lent` was just read; its opening quote is one byte before.
    fn at(&self, lent: &str) -> u32 {
        let at = (lent.as_ptr() as usize).wrapping_sub(self.start).saturating_sub(1) as u32;
        self.last.set(at);
        at
    }
}

impl<'de> DeserializeSeed<'de> for &Place {
    type Value = Node<'de>;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Place {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: Error>(self) -> Result<Node<'de>, E> {
        Ok(Node { at: self.last.get(), value: Value::Null })
    }
    fn visit_bool<E: Error>(self, truth: bool) -> Result<Node<'de>, E> {
        Ok(Node { at: self.last.get(), value: Value::Bool(truth) })
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<Node<'de>, E> {
        Ok(Node { at: self.last.get(), value: Value::Int(number) })
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Node<'de>, E> {
        let value = i64::try_from(number).map_or(Value::Float(number as f64), Value::Int);
        Ok(Node { at: self.last.get(), value })
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<Node<'de>, E> {
        Ok(Node { at: self.last.get(), value: Value::Float(number) })
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node { at: self.at(text), value: Value::Str(Cow::Borrowed(text)) })
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node { at: self.last.get(), value: Value::Str(Cow::Owned(text.to_owned())) })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node<'de>, A::Error> {
        let at = self.last.get();
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node { at, value: Value::List(items) })
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node<'de>, A::Error> {
        let mut entries: Vec<(Key<'de>, Node<'de>)> = Vec::new();
        let before = self.last.get();
        while let Some(Node { at, value: Value::Str(name) }) = access.next_key_seed(self)? {
            let node = access.next_value_seed(self)?;
            entries.push((Key { at, plain: false, name }, node));
        }
        duplicate_keys(&entries, |at, message| self.duplicate.set(Some((at, message))));
        let at = entries.first().map_or(before, |(key, _)| key.at);
        Ok(Node { at, value: Value::Map(entries) })
    }
}
