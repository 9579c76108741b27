//! HTTP filters: what they do, and how routes make them differ (gRFC A39).

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

use super::{HeaderMatcher, HeaderWrite, PerMillion};
use crate::id::ClusterName;

/// Usual instance name of the fault filter.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";

/// Filters that differ in one place, by instance name. A name that no filter has is without effect; the
/// most specific place replaces the others.
pub type FilterOverrides = BTreeMap<String, FilterOverride>;

/// How a filter differs in one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FilterOverride {
    /// It is off.
    Disabled,
    /// Fault injection.
    Fault(Fault),
    /// Local rate limit.
    RateLimit(LocalRateLimit),
    /// Session affinity.
    Session(StatefulSession),
}

/// Fault injection (gRFC A33, Istio `fault`). Delay first, then abort, each drawn by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Fault {
    /// Wait before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answer instead of forwarding.
    pub abort: Option<FaultAbort>,
    /// Only requests of which all hold.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests to this cluster. None = any.
    pub cluster: Option<ClusterName>,
    /// Faults at the same time in the process; further requests go unharmed. None = unlimited.
    pub max_active: Option<u32>,
}

/// A delay and its share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FaultDelay {
    /// How long. None = as many milliseconds as the request's `x-envoy-fault-delay-request` says.
    pub duration: Option<Duration>,
    /// Share of requests. Where the request decides, a ceiling on its
    /// `x-envoy-fault-delay-request-percentage`.
    pub share: PerMillion,
}

/// An abort and its share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FaultAbort {
    /// The answer. None = what the request's `x-envoy-fault-abort-request` (an HTTP status) or
    /// `x-envoy-fault-abort-grpc-request` says.
    pub status: Option<AbortStatus>,
    /// Share of requests. Where the request decides, a ceiling on its
    /// `x-envoy-fault-abort-request-percentage`.
    pub share: PerMillion,
}

/// The answer of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortStatus {
    /// HTTP status, 200 to 599.
    Http(u16),
    /// gRPC status code, 1 to 16.
    Grpc(u32),
}

/// Local rate limit (Envoy `local_ratelimit`): a token bucket of this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LocalRateLimit {
    /// The bucket. None = nothing is limited.
    pub bucket: Option<TokenBucket>,
    /// Share of requests that take a token. Envoy's default none.
    pub enabled: PerMillion,
    /// Share of requests without a token that are refused; the others are only counted. Envoy's default
    /// none.
    pub enforced: PerMillion,
    /// Status of a refusal, 400 to 599. Default 429.
    pub status: u16,
    /// A refused gRPC request gets RESOURCE_EXHAUSTED and not UNAVAILABLE. Default false.
    pub resource_exhausted: bool,
    /// Headers of a refusal.
    pub response_headers: Vec<HeaderWrite>,
    /// Headers of a request that went without a token because the limit was not enforced.
    pub request_headers: Vec<HeaderWrite>,
    /// Each connection has a bucket of its own. Default false: one for all.
    pub per_connection: bool,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TokenBucket {
    /// Tokens it holds at most and at first; above 0.
    pub max_tokens: u32,
    /// Tokens added each time; above 0.
    pub tokens_per_fill: u32,
    /// Time between; at least 50 ms, Envoy's floor.
    pub fill_interval: Duration,
}

/// Session affinity (gRFC A55): requests of one session go to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct StatefulSession {
    /// Where the session is kept.
    pub source: SessionSource,
    /// A request whose endpoint is gone fails with 503. Default false: it goes to another.
    pub strict: bool,
}

/// Where a session is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionSource {
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
        /// Only requests whose path is at or below it (RFC 6265). Empty = any.
        path: String,
        /// Its life; zero = a session cookie.
        ttl: Duration,
    },
    /// A header of request and response.
    Header(#[serde(serialize_with = "as_text")] HeaderName),
}

fn as_text<S: serde::Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}
