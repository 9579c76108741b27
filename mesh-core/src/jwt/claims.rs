//! What a token says.

use std::fmt;

use serde_json::{Map, Value};

use super::Refusal;

/// The claims of a token. Its `Debug` shows their names and no values: they say who somebody is.
#[derive(Clone, PartialEq)]
pub struct Claims {
    json: Map<String, Value>,
    // Made once: rules of a policy ask for it again and again.
    principal: Option<Box<str>>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claims ")?;
        f.debug_set().entries(self.json.keys()).finish()
    }
}

impl Claims {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut claims = Self { json: serde_json::from_slice(bytes).ok()?, principal: None };
        claims.principal = match (claims.issuer(), claims.subject()) {
            (Some(issuer), Some(subject)) if !issuer.is_empty() && !subject.is_empty() => {
                Some(format!("{issuer}/{subject}").into())
            }
            _ => None,
        };
        Some(claims)
    }

    /// All of them, as the token has them.
    pub fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    /// `iss`.
    pub fn issuer(&self) -> Option<&str> {
        self.json.get("iss")?.as_str()
    }

    /// `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.json.get("sub")?.as_str()
    }

    /// `iss/sub`, Istio's request principal; `None` if either is missing or empty.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// `azp`, whom it was issued to.
    pub fn presenter(&self) -> Option<&str> {
        self.json.get("azp")?.as_str()
    }

    /// `aud`, which is a text or a list of texts.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.json.get("aud").into_iter().flat_map(texts)
    }

    /// The claim that keys lead to.
    pub fn get(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.json.get(first)?, |value, key| value.as_object()?.get(key))
    }

    /// The texts of a claim: its own, or those of a list. `scope` and `permission` are split at blanks, as Istio
    /// does.
    pub fn texts(&self, path: &[String]) -> impl Iterator<Item = &str> {
        let split = matches!(path, [only] if only == "scope" || only == "permission");
        let value = self.get(path);
        let text = value.and_then(Value::as_str).into_iter();
        let text = text.flat_map(move |text| text.split(move |c: char| split && c == ' '));
        text.filter(move |part| !split || !part.is_empty()).chain(value.into_iter().flat_map(listed))
    }

    /// A claim by a name with dots, which lead into objects unless a claim is called just that.
    pub(super) fn named(&self, name: &str) -> Option<&Value> {
        let within = || {
            let mut keys = name.split('.');
            let first = self.json.get(keys.next()?)?;
            keys.try_fold(first, |value, key| value.as_object()?.get(key))
        };
        self.json.get(name).or_else(within)
    }

    /// The same with texts of these names as lists of their words; `None` = there are no such texts.
    pub(super) fn split(&self, names: &[String]) -> Option<Self> {
        let mut split = None;
        for name in names {
            if let Some(Value::String(text)) = self.json.get(name) {
                let words = text.split(' ').filter(|word| !word.is_empty()).collect();
                split.get_or_insert_with(|| self.clone()).json.insert(name.clone(), words);
            }
        }
        split
    }

    /// A NumericDate (RFC 7519, 2): seconds since the epoch, fractions allowed.
    pub(super) fn time(&self, name: &str) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.json.get(name) else { return Ok(None) };
        value.as_f64().filter(|at| *at >= 0.0).map(Some).ok_or(Refusal::Lifetime)
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_str().into_iter().chain(listed(value))
}

fn listed(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(Value::as_str)
}
