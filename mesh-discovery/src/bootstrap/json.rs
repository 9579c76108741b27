//! A JSON value together with its path, so that every complaint can say where.

use std::time::Duration;

use serde_json::{Map, Value};

use super::InvalidBootstrap;

/// A value and where it stands; a missing member reads as null.
pub(super) struct At<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> At<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The member `name`, null if it is missing.
    pub(super) fn at(&self, name: &str) -> At<'a> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        At { value: self.value.get(name).unwrap_or(&Value::Null), path }
    }

    /// The member `name` unless it is missing or null.
    pub(super) fn optional(&self, name: &str) -> Option<At<'a>> {
        Some(self.at(name)).filter(|at| !at.value.is_null())
    }

    pub(super) fn required(&self, name: &str) -> Result<At<'a>, InvalidBootstrap> {
        self.object()?;
        self.optional(name).ok_or_else(|| self.at(name).invalid("it is missing"))
    }

    pub(super) fn string(&self) -> Result<&'a str, InvalidBootstrap> {
        self.value.as_str().ok_or_else(|| self.invalid("it must be a string"))
    }

    pub(super) fn object(&self) -> Result<&'a Map<String, Value>, InvalidBootstrap> {
        self.value.as_object().ok_or_else(|| self.invalid("it must be an object"))
    }

    pub(super) fn items(&self) -> Result<Vec<At<'a>>, InvalidBootstrap> {
        let items = self.value.as_array().ok_or_else(|| self.invalid("it must be a list"))?;
        let item = |(i, value)| At { value, path: format!("{}[{i}]", self.path) };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// The member `name` as text, if it is there and not empty.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, InvalidBootstrap> {
        let text = self.optional(name).map(|at| at.string().map(str::to_owned)).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The member `name` as protobuf's JSON duration: seconds with a final `s`.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, InvalidBootstrap> {
        let Some(at) = self.optional(name) else { return Ok(None) };
        let seconds = at.string()?.strip_suffix('s').and_then(|n| n.parse::<f64>().ok());
        seconds
            .and_then(|n| Duration::try_from_secs_f64(n).ok())
            .map(Some)
            .ok_or_else(|| at.invalid("it must be a duration such as \"600s\""))
    }

    pub(super) fn invalid(&self, reason: impl Into<String>) -> InvalidBootstrap {
        InvalidBootstrap::new(if self.path.is_empty() { "$" } else { &self.path }, reason)
    }
}

/// Two file names of which one makes no sense without the other.
pub(super) fn both_or_neither(
    at: &At<'_>,
    first: &str,
    second: &str,
) -> Result<Option<(String, String)>, InvalidBootstrap> {
    match (at.text(first)?, at.text(second)?) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(at.at(second).invalid(format!("it is needed together with {first}"))),
        (None, Some(_)) => Err(at.at(first).invalid(format!("it is needed together with {second}"))),
    }
}
