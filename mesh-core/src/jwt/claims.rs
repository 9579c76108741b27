//! What a token says.

use serde_json::{Map, Value};

use super::Refusal;

/// The claims of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self)
    }

    /// `iss`.
    pub fn issuer(&self) -> Option<&str> {
        self.0.get("iss")?.as_str()
    }

    /// `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.0.get("sub")?.as_str()
    }

    /// `iss/sub`, Istio's request principal; `None` if either is missing or empty.
    pub fn principal(&self) -> Option<String> {
        let (issuer, subject) = (self.issuer()?, self.subject()?);
        (!issuer.is_empty() && !subject.is_empty()).then(|| format!("{issuer}/{subject}"))
    }

    /// `aud`, which is a text or a list of texts.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.0.get("aud").into_iter().flat_map(texts)
    }

    /// The claim that keys lead to.
    pub fn get(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(first)?, |value, key| value.as_object()?.get(key))
    }

    /// The texts of a claim: its own, or those of a list. `scope` and `permission` are split at blanks, as Istio
    /// does.
    pub fn texts(&self, path: &[String]) -> Vec<&str> {
        let split = matches!(path, [only] if only == "scope" || only == "permission");
        match self.get(path) {
            Some(Value::String(text)) if split => text.split(' ').filter(|part| !part.is_empty()).collect(),
            Some(value) => texts(value).collect(),
            None => Vec::new(),
        }
    }

    /// A NumericDate (RFC 7519, 2): seconds since the epoch, fractions allowed.
    pub(super) fn time(&self, name: &str) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        value.as_f64().filter(|at| *at >= 0.0).map(Some).ok_or(Refusal::Lifetime)
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    value.as_str().into_iter().chain(list.iter().filter_map(Value::as_str))
}
