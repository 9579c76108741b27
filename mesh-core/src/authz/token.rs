//! A condition on what the tokens of a request say, compiled. It is written as a condition on the metadata of the filter
//! that checks them, in one of two ways:
//!
//! ```text
//! envoy.filters.http.jwt_authn   payload_in_metadata of the provider, claim, ...                   the payload itself
//! istio_authn                    request.auth.principal | .audiences | .presenter                  iss/sub, aud, azp
//!                                request.auth.claims, claim, ...                                   its texts
//! ```
//!
//! Istio's knows texts and lists of texts. Of several tokens each one is asked: where they disagree nothing is known,
//! for nobody can tell for whom the request is made.

use serde_json::Value;

use super::condition::Truth;
use crate::jwt::{Claims, Token, Tokens};
use crate::matcher::TextCondition;
use crate::policy::{MetadataMatch, MetadataValue};

#[derive(Debug)]
pub(super) struct TokenCondition {
    of: Of,
    test: Test,
    invert: bool,
}

#[derive(Debug)]
enum Of {
    Principal,
    Audiences,
    Presenter,
    Claim(Box<[String]>),
    Payload { key: Box<str>, path: Box<[String]> },
}

#[derive(Debug)]
enum Test {
    Present(bool),
    Bool(bool),
    Text(TextCondition),
    AnyText(TextCondition),
    OneOf(Box<[Test]>),
}

impl TokenCondition {
    /// `None` = it is about something that nobody here finds out.
    pub(super) fn new(policy: &MetadataMatch) -> Option<Self> {
        let (first, rest) = policy.path.split_first()?;
        let of = match (policy.filter.as_str(), first.as_str(), rest) {
            ("istio_authn", "request.auth.principal", []) => Of::Principal,
            ("istio_authn", "request.auth.audiences", []) => Of::Audiences,
            ("istio_authn", "request.auth.presenter", []) => Of::Presenter,
            ("istio_authn", "request.auth.claims", [_, ..]) => Of::Claim(rest.into()),
            (MetadataMatch::JWT_AUTHN, key, _) => Of::Payload { key: key.into(), path: rest.into() },
            _ => return None,
        };
        Some(Self { of, test: Test::new(&policy.value), invert: policy.invert })
    }

    pub(super) fn judge(&self, tokens: &Tokens) -> Truth {
        let mut each = tokens.iter().filter(|token| self.is_about(token)).map(|token| self.holds(Some(token)));
        let first = each.next().unwrap_or_else(|| self.holds(None));
        let (every, some) = each.fold((first, first), |(every, some), holds| (every && holds, some || holds));
        Truth::of_readings(every, some)
    }

    fn is_about(&self, token: &Token) -> bool {
        match &self.of {
            Of::Payload { key, .. } => !key.is_empty() && *token.key == **key,
            Of::Principal | Of::Audiences | Of::Presenter | Of::Claim(_) => true,
        }
    }

    fn holds(&self, token: Option<&Token>) -> bool {
        let claims = token.map(|token| &*token.claims);
        let holds = match &self.of {
            Of::Principal => self.test.texts(&|| claims.and_then(Claims::principal).into_iter()),
            Of::Audiences => self.test.texts(&|| claims.into_iter().flat_map(Claims::audiences)),
            Of::Presenter => self.test.texts(&|| claims.and_then(Claims::presenter).into_iter()),
            Of::Claim(path) => self.test.texts(&|| claims.into_iter().flat_map(|claims| claims.texts(path))),
            Of::Payload { path, .. } => match token.map(Token::payload) {
                Some(_) if path.is_empty() => self.test.object(),
                payload => self.test.value(payload.and_then(|payload| payload.get(path))),
            },
        };
        holds != self.invert
    }
}

impl Test {
    fn new(value: &MetadataValue) -> Self {
        match value {
            MetadataValue::Present(present) => Self::Present(*present),
            MetadataValue::Bool(value) => Self::Bool(*value),
            MetadataValue::Text(text) => Self::Text(TextCondition::new(text)),
            MetadataValue::AnyText(text) => Self::AnyText(TextCondition::new(text)),
            MetadataValue::OneOf(list) => Self::OneOf(list.iter().map(Self::new).collect()),
        }
    }

    /// Of texts, as Istio's filter notes what it finds.
    fn texts<'c, I: Iterator<Item = &'c str>>(&self, texts: &impl Fn() -> I) -> bool {
        match self {
            Self::Present(want) => texts().any(|text| !text.is_empty()) == *want,
            Self::Bool(_) => false,
            Self::Text(condition) | Self::AnyText(condition) => texts().any(|text| condition.holds(text.as_bytes())),
            Self::OneOf(list) => list.iter().any(|test| test.texts(texts)),
        }
    }

    /// Of a value, as Envoy's matchers take it.
    fn value(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Present(want) => value.is_some() == *want,
            Self::Bool(want) => value.and_then(Value::as_bool) == Some(*want),
            Self::Text(condition) => value.and_then(Value::as_str).is_some_and(|text| condition.holds(text.as_bytes())),
            Self::AnyText(condition) => value
                .and_then(Value::as_array)
                .is_some_and(|list| list.iter().filter_map(Value::as_str).any(|text| condition.holds(text.as_bytes()))),
            Self::OneOf(list) => list.iter().any(|test| test.value(value)),
        }
    }

    /// Of the payload as a whole, which is there and has no value of its own.
    fn object(&self) -> bool {
        match self {
            Self::Present(want) => *want,
            Self::OneOf(list) => list.iter().any(Self::object),
            Self::Bool(_) | Self::Text(_) | Self::AnyText(_) => false,
        }
    }
}
