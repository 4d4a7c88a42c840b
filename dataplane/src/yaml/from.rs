//! Trees into types by serde, for files whose form a type states (`node.yaml`, case files).

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

use super::{Fault, Key, Node, Source, Value};

/// What serde found wrong, with the place once it is known.
#[derive(Debug)]
pub(super) struct FromError {
    message: String,
    at: Option<u32>,
    /// From the inside out.
    path: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Field(String),
    Index(usize),
}

impl FromError {
    fn within(mut self, at: u32, step: Step) -> Self {
        self.at.get_or_insert(at);
        self.path.push(step);
        self
    }

    pub(super) fn into_fault(self, source: &Source, root: &Node<'_>) -> Fault {
        let mut path = String::new();
        for step in self.path.iter().rev() {
            match step {
                Step::Field(name) if path.is_empty() => path.push_str(name),
                Step::Field(name) => {
                    path.push('.');
                    path.push_str(name);
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        source.fault(self.at.unwrap_or(root.at), path, self.message)
    }
}

impl fmt::Display for FromError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for FromError {}
impl de::Error for FromError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), at: None, path: Vec::new() }
    }
}

/// Lends a node to serde.
#[derive(Clone, Copy)]
pub(super) struct NodeDeserializer<'n> {
    source: &'n Source,
    node: &'n Node<'n>,
}

impl<'n> NodeDeserializer<'n> {
    pub(super) fn new(source: &'n Source, node: &'n Node<'n>) -> Self {
        Self { source, node }
    }
    fn on(self, node: &'n Node<'n>) -> Self {
        Self { node, ..self }
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = FromError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FromError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(*truth),
            Value::Int(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Str(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { of: self, items, index: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries { of: self, entries, value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FromError> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    /// Text where text is wanted: a plain truth word or number is named as what it reads as.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FromError> {
        match self.node.value {
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                let word = self.source.word(self.node.at);
                Err(de::Error::custom(format!("`{word}` reads as {}, not as text: quote it", self.node.kind())))
            }
            _ => self.deserialize_any(visitor),
        }
    }
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FromError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, FromError> {
        match &self.node.value {
            Value::Str(text) => visitor.visit_enum(text.as_ref().into_deserializer()),
            // A truth word may well name a variant (`off`).
            Value::Bool(_) => visitor.visit_enum(self.source.word(self.node.at).into_deserializer()),
            Value::Map(entries) => visitor.visit_enum(MapAccessDeserializer::new(Entries { of: self, entries, value: None })),
            _ => Err(de::Error::custom(format!("expected a word, found {}", self.node.kind()))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, FromError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct identifier ignored_any
    }
}

struct Items<'n> {
    of: NodeDeserializer<'n>,
    items: &'n [Node<'n>],
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = FromError;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FromError> {
        let Some(item) = self.items.get(self.index) else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(self.of.on(item)).map(Some).map_err(|error| error.within(item.at, Step::Index(index)))
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.index)
    }
}

struct Entries<'n> {
    of: NodeDeserializer<'n>,
    entries: &'n [(Key<'n>, Node<'n>)],
    value: Option<&'n (Key<'n>, Node<'n>)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = FromError;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FromError> {
        let Some((entry, rest)) = self.entries.split_first() else { return Ok(None) };
        (self.entries, self.value) = (rest, Some(entry));
        let key: StrDeserializer<'_, FromError> = entry.0.name.as_ref().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.within(entry.0.at, Step::Field(entry.0.name.to_string())))
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FromError> {
        let Some((key, node)) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(self.of.on(node)).map_err(|error| error.within(node.at, Step::Field(key.name.to_string())))
    }
}
