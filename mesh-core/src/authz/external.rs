//! The port to external authorizers: who decides about the requests that a CUSTOM policy's rules match.
//!
//! Refuses to know how they are asked.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::id::SpiffeId;
use crate::matcher::remove_header;
use crate::policy::{AuthorizerProvider, CheckedBody};

/// Decides about requests that a CUSTOM policy's rules match. What it lets pass still has to pass the DENY and the
/// ALLOW policies.
///
/// ```
/// use http::StatusCode;
/// use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, Refusal};
///
/// /// Lets those pass who know the word.
/// #[derive(Debug)]
/// struct Password;
///
/// impl ExternalAuthorizer for Password {
///     fn check(&self, request: CheckRequest) -> Checking<'_> {
///         Box::pin(async move {
///             Ok(match request.headers.get("x-password") {
///                 Some(word) if word == "sesame" => CheckResponse::allowed(),
///                 _ => CheckResponse::Denied(Refusal::new(StatusCode::UNAUTHORIZED)),
///             })
///         })
///     }
/// }
/// ```
pub trait ExternalAuthorizer: fmt::Debug + Send + Sync + 'static {
    /// Decides about one request. Dropping the answer's future gives the question up. It is asked in
    /// [`RequestContext::of_question`](crate::context::RequestContext::of_question) of the request: what is called for it
    /// goes into its trace, and neither ends at its deadline nor counts as a retry.
    fn check(&self, request: CheckRequest) -> Checking<'_>;

    /// How much of a request's body it is to be told. Default: nothing of it.
    fn body(&self) -> Option<CheckedBody> {
        None
    }
}

/// A question under way.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<CheckResponse, Unavailable>> + Send + 'a>>;

/// Who is asked for a provider.
pub trait ExternalAuthorizers: Send + Sync + 'static {
    /// The authorizer of a provider; `None` = there is nobody to ask, and what its policies match is denied. Asked once
    /// for each change of policy.
    fn authorizer(&self, provider: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>>;
}

/// What an authorizer is told of a request. Printed it shows neither values of headers nor query or body: tokens stand
/// there.
#[derive(Clone)]
#[non_exhaustive]
pub struct CheckRequest {
    /// The caller's verified identity.
    pub caller: Option<SpiffeId>,
    /// Our own.
    pub own: Option<SpiffeId>,
    /// The caller's address; `None` = not known.
    pub source: Option<SocketAddr>,
    /// The address that was reached.
    pub destination: SocketAddr,
    /// Method.
    pub method: Method,
    /// Authority; empty = not known.
    pub authority: String,
    /// Path, in normal form, and query.
    pub path_and_query: String,
    /// Version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// The TLS server name that was asked for; empty = none or not known.
    pub server_name: String,
    /// The body or its beginning, if [`ExternalAuthorizer::body`] asks for it.
    pub body: Option<CheckBody>,
}

/// What an authorizer is told of a body. Printed it shows how much that is.
#[derive(Clone, PartialEq, Eq)]
pub struct CheckBody {
    /// Its bytes, as many as were asked for at most.
    pub bytes: Bytes,
    /// Whether there is more.
    pub partial: bool,
}

impl CheckRequest {
    /// A question about a method and a path at an address; the rest is not known until it is set.
    pub fn new(method: Method, path_and_query: impl Into<String>, destination: SocketAddr) -> Self {
        Self {
            caller: None,
            own: None,
            source: None,
            destination,
            method,
            authority: String::new(),
            path_and_query: path_and_query.into(),
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            server_name: String::new(),
            body: None,
        }
    }
}

impl fmt::Debug for CheckRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckRequest")
            .field("caller", &self.caller)
            .field("own", &self.own)
            .field("source", &self.source)
            .field("destination", &self.destination)
            .field("method", &self.method)
            .field("authority", &self.authority)
            .field("path", &self.path_and_query.split('?').next().unwrap_or_default())
            .field("version", &self.version)
            .field("headers", &self.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>())
            .field("server_name", &self.server_name)
            .field("body", &self.body)
            .finish()
    }
}

impl fmt::Debug for CheckBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckBody({} bytes{})", self.bytes.len(), if self.partial { " of more" } else { "" })
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResponse {
    /// The request may pass.
    Allowed {
        /// Changes of the request's headers, which the other policies and the application see.
        request: Vec<HeaderChange>,
        /// Changes of the answer's headers, which the caller sees.
        response: Vec<HeaderChange>,
    },
    /// It may not.
    Denied(Refusal),
}

impl CheckResponse {
    /// Yes, and nothing changes.
    pub fn allowed() -> Self {
        Self::Allowed { request: Vec::new(), response: Vec::new() }
    }
}

/// The answer to a request that an authorizer denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status; for gRPC its equivalent.
    pub status: StatusCode,
    /// Headers, such as `location` or `set-cookie`.
    pub headers: HeaderMap,
    /// Body; gRPC callers get it as the status message if it is short text.
    pub body: Bytes,
}

impl Refusal {
    /// A refusal without headers or body.
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// One change of headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderChange {
    /// In the place of what is there.
    Set(HeaderName, HeaderValue),
    /// Beside what is there.
    Append(HeaderName, HeaderValue),
    /// Only where the header is not there.
    SetIfAbsent(HeaderName, HeaderValue),
    /// Only in the place of what is there.
    SetIfPresent(HeaderName, HeaderValue),
    /// Away with it.
    Remove(HeaderName),
}

impl HeaderChange {
    /// How many an authorizer may ask for with one answer.
    pub const MOST: usize = 100;

    /// The header.
    pub fn name(&self) -> &HeaderName {
        match self {
            Self::Set(name, _)
            | Self::Append(name, _)
            | Self::SetIfAbsent(name, _)
            | Self::SetIfPresent(name, _)
            | Self::Remove(name) => name,
        }
    }

    /// Applies a list of changes, in order. What is replaced or taken away goes under each name by which an application
    /// may know it: `x_user` with `x-user`, which are one to what reads headers as CGI does. Values are marked as
    /// sensitive, for they tell who the caller is: nothing prints them, and HPACK keeps them out of its table.
    pub fn apply(changes: &[Self], headers: &mut HeaderMap) {
        let secret = |value: &HeaderValue| {
            let mut value = value.clone();
            value.set_sensitive(true);
            value
        };
        for change in changes {
            match change {
                Self::Set(name, value) => {
                    remove_header(headers, name);
                    headers.insert(name, secret(value));
                }
                Self::Append(name, value) => {
                    headers.append(name, secret(value));
                }
                Self::SetIfAbsent(name, value) if !headers.contains_key(name) => {
                    headers.insert(name, secret(value));
                }
                Self::SetIfPresent(name, value) if headers.contains_key(name) => {
                    remove_header(headers, name);
                    headers.insert(name, secret(value));
                }
                Self::SetIfAbsent(..) | Self::SetIfPresent(..) => {}
                Self::Remove(name) => remove_header(headers, name),
            }
        }
    }
}

/// There is no answer of an authorizer. The request is denied unless the provider fails open.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the external authorizer gives no answer: {reason}")]
pub struct Unavailable {
    /// Why.
    pub reason: String,
    /// Let the request pass all the same (Istio `failOpen`).
    pub fail_open: bool,
    /// Status of the denial.
    pub status: StatusCode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_authorizer_sets_is_nobody_elses_under_another_spelling() {
        let name = || HeaderName::from_static("x-user");
        let jane = HeaderValue::from_static("jane");
        for (change, left) in [
            (HeaderChange::Set(name(), jane.clone()), "x-other=1 x-user=jane"),
            (HeaderChange::SetIfPresent(name(), jane.clone()), "x-other=1 x-user=jane"),
            (HeaderChange::Remove(name()), "x-other=1"),
            // The control: these leave what the caller says.
            (HeaderChange::SetIfAbsent(name(), jane.clone()), "x-other=1 x-user=eve x_user=eve"),
            (HeaderChange::Append(name(), jane), "x-other=1 x-user=eve x-user=jane x_user=eve"),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [("x-user", "eve"), ("x_user", "eve"), ("x-other", "1")] {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            HeaderChange::apply(std::slice::from_ref(&change), &mut headers);
            // What it sets is nobody's to print; what others sent is as it was.
            assert!(headers.values().all(|value| value.is_sensitive() == (value == "jane")), "{change:?}");
            let mut seen: Vec<_> =
                headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
            seen.sort();
            assert_eq!(seen.join(" "), left, "{change:?}");
        }
    }
}
