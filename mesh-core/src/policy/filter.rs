//! HTTP filters: what they do, and how routes make them differ (gRFC A39).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

use super::{Composite, HeaderMatcher, HeaderWrite, PerMillion, ShareUnit};
use crate::id::ClusterName;

/// Usual instance name of the fault filter.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";

/// Filters that differ in one place, by instance name. A name that no filter has is without effect; the
/// most specific place replaces the others. What holds in many places is there once.
pub type FilterOverrides = BTreeMap<String, Arc<FilterOverride>>;

/// How a filter differs in one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FilterOverride {
    /// It is off.
    Disabled,
    /// It is on, whatever a place further out says, and as it is configured further out: in an entry of a split as the route has
    /// it, unless that turns it off; else as the filter itself.
    Enabled,
    /// Fault injection.
    Fault(Fault),
    /// Local rate limit. Routes and entries that share this one `Arc`, as those do whose virtual host or table says it over xDS,
    /// have one bucket.
    RateLimit(LocalRateLimit),
    /// Session affinity.
    Session(StatefulSession),
    /// Another tree of a composite filter, in the place of its own (`ExtensionWithMatcherPerRoute`).
    Composite(Composite),
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
    /// What that header counts in (Envoy: the denominator of the share). Default: per cent. Over xDS the share is one
    /// of this denominator: what is no whole number of it, such as half a per cent, is sent in the next finer one, and the
    /// header counts in that.
    pub unit: ShareUnit,
}

impl FaultDelay {
    /// A delay of `duration`.
    pub fn of(duration: Duration, share: PerMillion) -> Self {
        Self { duration: Some(duration), share, unit: ShareUnit::default() }
    }
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
    /// What that header counts in (Envoy: the denominator of the share). Default: per cent. Over xDS the share is one
    /// of this denominator: what is no whole number of it, such as half a per cent, is sent in the next finer one, and the
    /// header counts in that.
    pub unit: ShareUnit,
}

impl FaultAbort {
    /// An abort with `status`.
    pub fn with(status: AbortStatus, share: PerMillion) -> Self {
        Self { status: Some(status), share, unit: ShareUnit::default() }
    }
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
    /// Answers of a server say what is left in `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset` (third
    /// draft of the RateLimit headers; Envoy `enable_x_ratelimit_headers`); of a client's, refusals alone. Default false.
    pub quota_headers: bool,
    /// A refusal with status 429 says in `retry-after` when there is a token again, unless `response_headers` say it.
    /// Default false.
    pub retry_after: bool,
}

/// Rate limits by who calls (Linkerd `HTTPLocalRateLimitPolicy`), of a server. A request beyond its limit gets 429, and
/// RESOURCE_EXHAUSTED if it is gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CallerRateLimit {
    /// Requests a second of each identity, with a burst of as many; callers without an identity share one limit. None =
    /// unlimited.
    pub each: Option<NonZeroU32>,
    /// Identities with another limit.
    pub groups: Vec<CallerGroup>,
}

/// Callers that share a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CallerGroup {
    /// Their SPIFFE IDs. Of two groups with one caller the later one counts.
    pub callers: Vec<String>,
    /// Requests a second of all of them together, with a burst of as many.
    pub per_second: NonZeroU32,
}

impl TokenBucket {
    /// So many tokens a second, with a burst of as many.
    pub fn per_second(rate: NonZeroU32) -> Self {
        Self { max_tokens: rate.get(), tokens_per_fill: rate.get(), fill_interval: Duration::from_secs(1) }
    }
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

/// Client-side throttling (Envoy `admission_control`): as the success rate falls below a threshold, a growing share
/// of requests is refused before it is sent. Of `requests` in the window, of which `successes` were answered well, the share
/// refused is `max(0, (requests - successes / threshold) / (requests + 1)) ^ (1 / aggression)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AdmissionControl {
    /// How long a request counts; at least 1 s. Default 30 s.
    pub window: Duration,
    /// Success rate below which requests are refused; at least 1 %. Default 95 %.
    pub threshold: PerMillion,
    /// How fast the refused share grows, in millionths; at least 1,000,000, which is linear and the default.
    pub aggression: u32,
    /// Below so many requests a second none is refused. Default 0.
    pub min_rps: u32,
    /// The refused share is never larger. Default 80 %.
    pub max_rejection: PerMillion,
    /// HTTP statuses that are successes. Empty = all below 500, the default.
    pub http_success: Vec<Range<u16>>,
    /// gRPC status codes that are successes, 0 to 16. Empty = those that fewer requests would not change, the
    /// default: all but DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE and DATA_LOSS.
    pub grpc_success: Vec<u32>,
}

impl Default for AdmissionControl {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            threshold: PerMillion::new(950_000),
            aggression: 1_000_000,
            min_rps: 0,
            max_rejection: PerMillion::new(800_000),
            http_success: Vec::new(),
            grpc_success: Vec::new(),
        }
    }
}

/// A limit on requests in flight that follows their latency (Envoy `adaptive_concurrency`, gradient controller): it
/// shrinks as latency rises above the least latency seen under little load, and grows again as it falls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AdaptiveConcurrency {
    /// HTTP status of a refusal, 400 to 599. Default 503.
    pub status: u16,
    /// The latency that stands for all of a period. Default the median.
    pub percentile: PerMillion,
    /// Time between two calculations of the limit; above 0.
    pub interval: Duration,
    /// The limit is never lower; above 0. Default 3.
    pub min_limit: u32,
    /// The limit is never higher, unless [`min_limit`](Self::min_limit) is; above 0. Default 1000.
    pub max_limit: u32,
    /// The least latency.
    pub min_rtt: MinRtt,
    /// Rise above the least latency that is not held against anybody. Default 25 %.
    pub buffer: PerMillion,
}

/// Where the least latency is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MinRtt {
    /// It is this; above 0.
    Fixed(Duration),
    /// It is measured now and then, under a low limit.
    Measured {
        /// Time between two measurements; above 0.
        interval: Duration,
        /// Requests measured; above 0. Default 50.
        requests: u32,
        /// Up to this share of the interval is added to it at random. Default 15 %.
        jitter: PerMillion,
        /// The limit meanwhile, and at first; above 0. Default 3.
        concurrency: u32,
    },
}

impl Default for AdaptiveConcurrency {
    /// Envoy's defaults; the two intervals, which have none, are those of its documentation: 100 ms and 60 s.
    fn default() -> Self {
        Self {
            status: 503,
            percentile: PerMillion::new(500_000),
            interval: Duration::from_millis(100),
            min_limit: 3,
            max_limit: 1000,
            min_rtt: MinRtt::Measured {
                interval: Duration::from_secs(60),
                requests: 50,
                jitter: PerMillion::new(150_000),
                concurrency: 3,
            },
            buffer: PerMillion::new(250_000),
        }
    }
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
