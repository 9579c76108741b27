//! Reads a [`Node`] into a spec: a serde deserializer that knows where it is, so that an error and an
//! unknown field name their path and line.
//!
//! As in the Kubernetes API a null member counts as absent.

use std::cell::RefCell;
use std::fmt;

use mesh_core::suggest::nearest;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::node::{Node, Value};

/// Something written that has no effect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub(crate) path: String,
    pub(crate) why: Why,
}

impl Ignored {
    /// Whether it is a slip for the field `known`.
    pub(crate) fn meant(&self, known: &str) -> bool {
        matches!(self.why, Why::Unknown(Some(meant)) if meant == known)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// No spec knows the field; with a known one of nearly the same name.
    Unknown(Option<&'static str>),
    /// An entry of a mapping has no value.
    Empty,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(None) => f.write_str("unknown field"),
            Self::Unknown(Some(known)) => write!(f, "unknown field, did you mean {known}?"),
            Self::Empty => f.write_str("there is no value here"),
        }
    }
}

/// A value that does not fit its field.
#[derive(Debug)]
pub(crate) struct FieldError {
    pub(crate) path: String,
    pub(crate) message: String,
}

/// Reads `node`, which stands at `path`.
pub(crate) fn decode<T: DeserializeOwned>(node: &Node, path: &str) -> Result<(T, Vec<Ignored>), FieldError> {
    let ignored = RefCell::new(Vec::new());
    let place = Place { parent: None, step: Step::Root(path) };
    let value =
        T::deserialize(Reader { node, place: &place, ignored: &ignored }).map_err(|error| error.located(&place))?;
    Ok((value, ignored.into_inner()))
}

enum Step<'a> {
    Root(&'a str),
    Member(&'a str),
    Index(usize),
}

struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root(path) => f.write_str(path),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Member(name) => {
                let first = self.parent.is_some_and(|p| matches!(p.step, Step::Root("")) && p.parent.is_none());
                if first { f.write_str(name) } else { write!(f, ".{name}") }
            }
        }
    }
}

#[derive(Debug)]
struct DecodeError {
    at: Option<String>,
    message: String,
}

impl DecodeError {
    /// Notes the place, unless a deeper one is known.
    fn placed(mut self, place: &Place<'_>) -> Self {
        self.at.get_or_insert_with(|| place.to_string());
        self
    }

    fn located(self, place: &Place<'_>) -> FieldError {
        FieldError { path: self.at.unwrap_or_else(|| place.to_string()), message: self.message }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { at: None, message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::custom(format!("{} is needed, not {}", needed(wanted), name(found)))
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::custom(format!("{} is out of range: {} is needed", name(found), needed(wanted)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("{field:?} is missing"))
    }
}

/// What a field takes, in the words of who writes it and not of the type that reads it.
fn needed(wanted: &dyn Expected) -> String {
    let text = wanted.to_string();
    match text.as_str() {
        "i8" | "i16" | "i32" | "i64" | "i128" => "a whole number".into(),
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "u128" | "usize" => "a whole number, not negative,".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" => "text".into(),
        "a sequence" => "a list".into(),
        "a map" => "a mapping of names to values".into(),
        _ if text.starts_with("struct ") => "a mapping of fields".into(),
        _ => text,
    }
}

fn name(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => {
            let short: String = text.chars().take(40).collect();
            let dots = if short.len() < text.len() { "…" } else { "" };
            format!("the text {short:?}{dots}")
        }
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a mapping".into(),
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        other => other.to_string(),
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    place: &'a Place<'a>,
    ignored: &'a RefCell<Vec<Ignored>>,
}

impl<'a> Reader<'a> {
    fn ignore(self, name: &str, why: Why) {
        let place = Place { parent: Some(self.place), step: Step::Member(name) };
        self.ignored.borrow_mut().push(Ignored { path: place.to_string(), why });
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::UInt(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), reader: self }),
            Value::Map(entries) => visitor.visit_map(Members { entries: entries.iter(), reader: self, pending: None }),
        };
        result.map_err(|error| error.placed(self.place))
    }

    /// A whole number. In quotes it is one too, as in protobuf's JSON, which is what Istio reads.
    fn whole<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Text(text) => match (text.parse(), text.parse()) {
                (Ok(number), _) => visitor.visit_i64(number),
                (_, Ok(number)) => visitor.visit_u64(number),
                _ => return self.visit(visitor),
            }
            .map_err(|error: DecodeError| error.placed(self.place)),
            _ => self.visit(visitor),
        }
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Map(entries) => {
                for (name, _) in entries.iter().filter(|(name, _)| !fields.contains(&name.as_str())) {
                    self.ignore(name, Why::Unknown(nearest(name, fields.iter().copied())));
                }
            }
            // A derived struct would take the items for its fields, in order.
            Value::List(_) => return Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => {}
        }
        self.visit(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if let Value::Map(entries) = &self.node.value {
            for (name, _) in entries.iter().filter(|(_, node)| node.value == Value::Null) {
                self.ignore(name, Why::Empty);
            }
        }
        self.visit(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.whole(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.whole(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.whole(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.whole(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i128 u8 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct enum identifier
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    reader: Reader<'a>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, DecodeError> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let place = Place { parent: Some(self.reader.place), step: Step::Index(index) };
        let reader = Reader { node, place: &place, ignored: self.reader.ignored };
        seed.deserialize(reader).map(Some).map_err(|error| error.placed(&place))
    }
}

struct Members<'a> {
    entries: std::slice::Iter<'a, (String, Node)>,
    reader: Reader<'a>,
    pending: Option<&'a (String, Node)>,
}

impl<'de> de::MapAccess<'de> for Members<'_> {
    type Error = DecodeError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, DecodeError> {
        self.pending = self.entries.find(|(_, node)| node.value != Value::Null);
        match self.pending {
            Some((name, _)) => seed.deserialize(name.as_str().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, DecodeError> {
        let (name, node) = self.pending.take().expect("serde asks for a value after its key");
        let place = Place { parent: Some(self.reader.place), step: Step::Member(name) };
        let reader = Reader { node, place: &place, ignored: self.reader.ignored };
        seed.deserialize(reader).map_err(|error| error.placed(&place))
    }
}
