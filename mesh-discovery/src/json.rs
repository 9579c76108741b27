//! A JSON value together with its path, so that every complaint can say where. Unknown members are never
//! looked at.

use std::time::Duration;

use serde_json::{Map, Value};

/// A value and where it stands; a missing member reads as null.
pub(crate) struct At<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> At<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The member `name`, null if it is missing.
    pub(crate) fn at(&self, name: &str) -> At<'a> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        At { value: self.value.get(name).unwrap_or(&Value::Null), path }
    }

    /// The members of an object whose names are data and not fields.
    pub(crate) fn entries(&self) -> Result<impl Iterator<Item = (&'a str, At<'a>)>, Invalid> {
        let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let path = self.path.clone();
        Ok(self.object()?.iter().map(move |(name, value)| {
            let path = if plain(name) { format!("{path}.{name}") } else { format!("{path}[{name:?}]") };
            (name.as_str(), At { value, path })
        }))
    }

    /// The member `name` unless it is missing or null.
    pub(crate) fn optional(&self, name: &str) -> Option<At<'a>> {
        Some(self.at(name)).filter(|at| !at.value.is_null())
    }

    pub(crate) fn required(&self, name: &str) -> Result<At<'a>, Invalid> {
        self.object()?;
        self.optional(name).ok_or_else(|| self.at(name).invalid("it is missing"))
    }

    pub(crate) fn string(&self) -> Result<&'a str, Invalid> {
        self.value.as_str().ok_or_else(|| self.invalid("it must be a string"))
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>, Invalid> {
        self.value.as_object().ok_or_else(|| self.invalid("it must be an object"))
    }

    pub(crate) fn items(&self) -> Result<Vec<At<'a>>, Invalid> {
        let items = self.value.as_array().ok_or_else(|| self.invalid("it must be a list"))?;
        let item = |(i, value)| At { value, path: format!("{}[{i}]", self.path) };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// The member `name` as text, if it is there and not empty.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Invalid> {
        let text = self.optional(name).map(|at| at.string().map(str::to_owned)).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The member `name` as true or false, if it is there.
    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Invalid> {
        let Some(at) = self.optional(name) else { return Ok(None) };
        at.value.as_bool().map(Some).ok_or_else(|| at.invalid("it must be true or false"))
    }

    /// The member `name` as protobuf's JSON duration: seconds with a final `s`.
    pub(crate) fn duration(&self, name: &str) -> Result<Option<Duration>, Invalid> {
        let Some(at) = self.optional(name) else { return Ok(None) };
        let seconds = at.string()?.strip_suffix('s').and_then(|n| n.parse::<f64>().ok());
        seconds
            .and_then(|n| Duration::try_from_secs_f64(n).ok())
            .map(Some)
            .ok_or_else(|| at.invalid("it must be a duration such as \"600s\""))
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> Invalid {
        Invalid::new(if self.path.is_empty() { "$" } else { &self.path }, reason)
    }
}

/// A document that cannot be used: where and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct Invalid {
    pub(crate) path: String,
    pub(crate) reason: String,
}

impl Invalid {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    /// The document as a whole.
    pub(crate) fn whole(reason: impl Into<String>) -> Self {
        Self::new("$", reason)
    }
}

/// How often files are read unless the bootstrap says otherwise (gRFC A29, A65).
pub(crate) const DEFAULT_REFRESH: Duration = Duration::from_secs(600);

/// The member `refresh_interval`; zero is no interval, so it means the default.
pub(crate) fn refresh_interval(config: &At<'_>) -> Result<Duration, Invalid> {
    Ok(config.duration("refresh_interval")?.filter(|interval| !interval.is_zero()).unwrap_or(DEFAULT_REFRESH))
}

/// Two file names of which one makes no sense without the other.
pub(crate) fn both_or_neither(at: &At<'_>, first: &str, second: &str) -> Result<Option<(String, String)>, Invalid> {
    match (at.text(first)?, at.text(second)?) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(at.at(second).invalid(format!("it is needed together with {first}"))),
        (None, Some(_)) => Err(at.at(first).invalid(format!("it is needed together with {second}"))),
    }
}
