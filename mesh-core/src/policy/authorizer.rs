//! Whom a CUSTOM policy asks (Istio `extensionProviders`): where, how, and what holds without an answer.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

use super::HeaderWrite;

/// Whom a CUSTOM policy asks (Istio `extensionProviders`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AuthorizerProvider {
    /// Name. An application that has an authorizer of this name is asked before anybody else.
    pub name: String,
    /// The service that is asked. None = nobody but the application can be asked.
    pub service: Option<AuthorizerService>,
}

impl AuthorizerProvider {
    /// A provider that only the application can know.
    pub fn named(name: impl Into<String>) -> Box<Self> {
        Box::new(Self { name: name.into(), service: None })
    }
}

/// A service that is asked about requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AuthorizerService {
    /// How it is asked.
    pub protocol: AuthorizerProtocol,
    /// `host:port`, as applications dial it.
    pub target: String,
    /// Time for an answer. Default 600 s.
    pub timeout: Duration,
    /// Let requests pass if there is no answer. Default false.
    pub fail_open: bool,
    /// Status of the denial if there is no answer. Default 403.
    pub status_on_error: u16,
    /// How much of a request's body it is told. None = nothing of it.
    pub body: Option<CheckedBody>,
}

/// How an external authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorizerProtocol {
    /// By `envoy.service.auth.v3.Authorization` over gRPC (Istio `envoyExtAuthzGrpc`).
    Grpc,
    /// By a request with the method, path and host of the one in question; 200 lets it pass (Istio `envoyExtAuthzHttp`).
    Http(Box<HttpCheck>),
}

/// What an authorizer that is asked over plain HTTP is told, and what is taken from its answer
/// (`envoy.extensions.filters.http.ext_authz.v3.HttpService`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HttpCheck {
    /// Stands before the request's path. Default nothing.
    pub path_prefix: String,
    /// Headers of the request that it is told beside `authorization`. Default none.
    pub request_headers: Vec<NamePattern>,
    /// Headers that it is told besides, in the place of the request's. Their action does not matter.
    pub added_headers: Vec<HeaderWrite>,
    /// Headers of its yes that the application sees, in the place of the request's. Default none.
    pub upstream_on_allow: Vec<NamePattern>,
    /// Headers of its yes that the caller sees, beside those of the answer. Default none.
    pub downstream_on_allow: Vec<NamePattern>,
    /// Headers of its no that the caller sees, beside `location` and `www-authenticate`. Default, and if there is none
    /// here: all.
    pub downstream_on_deny: Vec<NamePattern>,
}

/// Names of headers as Istio writes them: one (`x-user`), those with a beginning (`x-auth-*`) or with an end (`*-id`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct NamePattern(String);

impl NamePattern {
    /// Whether a header is one of them.
    pub fn holds(&self, name: &HeaderName) -> bool {
        let (pattern, name) = (self.0.as_str(), name.as_str());
        match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (Some(end), _) => name.ends_with(end),
            (None, Some(beginning)) => name.starts_with(beginning),
            (None, None) => name == pattern,
        }
    }

    /// As it is written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NamePattern {
    type Err = InvalidNamePattern;

    fn from_str(text: &str) -> Result<Self, InvalidNamePattern> {
        let stem = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        // An asterisk may be part of a name, but nobody means that here.
        if stem.contains('*') || HeaderName::from_str(stem).is_err() {
            return Err(InvalidNamePattern(text.to_owned()));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// A text that is no [`NamePattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a header, nor one with an asterisk at its beginning or its end")]
pub struct InvalidNamePattern(String);

/// How much of a request's body an external authorizer is told (Istio `includeRequestBodyInCheck`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CheckedBody {
    /// Bytes at most; above 0, and no more than [`MOST`](Self::MOST).
    pub max_bytes: NonZeroU32,
    /// Of a longer body the beginning. Default false: its request gets 413 and is not asked about.
    pub allow_partial: bool,
    /// Over gRPC, as bytes; otherwise as text, in which what is no UTF-8 is lost. Default false.
    pub as_bytes: bool,
}

impl CheckedBody {
    /// Most bytes of a body that an authorizer may be told, 64 MiB: they are held in memory meanwhile.
    pub const MOST: u32 = 64 << 20;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_whole_by_their_beginning_or_by_their_end() {
        let held = |pattern: &str| {
            let pattern: NamePattern = pattern.parse().unwrap();
            let names = ["x-user", "x-user-id", "x-auth", "id"];
            names.into_iter().filter(|name| pattern.holds(&HeaderName::from_static(name))).collect::<Vec<_>>()
        };
        assert_eq!(held("X-User"), ["x-user"]);
        assert_eq!(held("x-user*"), ["x-user", "x-user-id"]);
        assert_eq!(held("*-ID"), ["x-user-id"]);
        for bad in ["", "*", "**", "a*b", "*a*", "a b", ":path"] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
        }
    }
}
