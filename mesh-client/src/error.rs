//! The one error of the outbound path: what failed, for which target, why, and what to do next.
//!
//! Refuses to know how a failure is answered: [`Error::http_status`] and [`Error::into_response`] are
//! for those who must answer, [`crate::Channel`] does it for gRPC.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::error::{Blame, Code, Fault, Retry};
use mesh_core::id::{ClusterName, InvalidTarget};
use mesh_core::identity::PeerRefused;
use mesh_core::policy::{Address, PerMillion};

use crate::body::Body;

/// A request that got no answer from the destination.
///
/// Prints as one line: `MESH-1101 no healthy endpoint for reviews:9080 (why). What to do.`
pub struct Error {
    // Boxed: results are moved through every layer, failures are rare.
    inner: Box<Inner>,
}

struct Inner {
    target: Arc<str>,
    cause: Cause,
    attempts: u32,
    // An endpoint may have seen one of the tries.
    seen: bool,
}

/// A shared source of a failure; several waiting requests may see the same failed connection.
pub(crate) type Source = Arc<dyn StdError + Send + Sync>;

/// Why a request failed: the facts of each kind of failure.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The request names no destination that can be dialled.
    #[error("{0}")]
    BadTarget(String),
    /// The control plane knows no such destination.
    #[error("{0}")]
    NoListener(Arc<str>),
    /// Nothing is known of the destination and no control plane could be asked.
    #[error("{0}")]
    ControlPlaneUnreachable(Arc<str>),
    /// No configuration came in time.
    #[error("waited {0:?}")]
    ConfigPending(Duration),
    /// No route takes the request.
    #[error("{method} {path}: no route of {authority} matches")]
    NoRoute {
        /// Method of the request.
        method: http::Method,
        /// The authority that chose the virtual host.
        authority: String,
        /// Path without the query.
        path: String,
    },
    /// The route's cluster is missing or refused.
    #[error("cluster {cluster}: {reason}")]
    NoCluster {
        /// The cluster.
        cluster: ClusterName,
        /// Why it cannot be used.
        reason: Arc<str>,
    },
    /// The route carries an action that a client does not perform.
    #[error("{0}")]
    UnsupportedAction(&'static str),
    /// A composite filter does not know which filters the request is to pass (gRFC A103).
    #[error("filter {filter}: {reason}")]
    NoFilters {
        /// The filter.
        filter: Arc<str>,
        /// Why it does not.
        reason: &'static str,
    },
    /// The cluster has no endpoint to send to.
    #[error("cluster {cluster}: {known} known, {usable} usable{}", taken_out(*out))]
    NoEndpoint {
        /// The cluster.
        cluster: ClusterName,
        /// Endpoints known.
        known: usize,
        /// Of them, those the balancer may use.
        usable: usize,
        /// Of them, those that outlier detection, failure accrual or a health check took out.
        out: usize,
    },
    /// The cluster has subsets, and no endpoint is in the one that the route's metadata asks for.
    #[error("cluster {cluster}: none of {known} endpoints has the metadata that the route asks for")]
    NoSubset {
        /// The cluster.
        cluster: ClusterName,
        /// Endpoints known.
        known: usize,
    },
    /// None of the cluster's names could be looked up, and none ever could.
    #[error("cluster {cluster}: {reason}")]
    Unresolved {
        /// The cluster.
        cluster: ClusterName,
        /// Each name and why.
        reason: Arc<str>,
    },
    /// The address did not accept a connection.
    #[error("{address}: {source}")]
    ConnectFailed {
        /// Where to.
        address: Address,
        /// What the system said.
        source: Source,
    },
    /// Connecting, TLS included, took too long.
    #[error("{address}: no connection within {after:?}")]
    ConnectTimeout {
        /// Where to.
        address: Address,
        /// The connect timeout.
        after: Duration,
    },
    /// Connecting failed a moment ago, and it is too early to try again: the wait between attempts at one endpoint
    /// grows from half a second to 4 s, each a fifth more or less. Code, blame and the rest are those of that failure.
    #[error("{last}, {ago:?} ago; the next attempt is due in {left:?}")]
    BackingOff {
        /// What happened.
        last: Box<Cause>,
        /// How long ago.
        ago: Duration,
        /// When somebody may try again.
        left: Duration,
    },
    /// The TLS handshake failed.
    #[error("{address}: {source}")]
    TlsHandshake {
        /// Where to.
        address: Address,
        /// What TLS said.
        source: Source,
    },
    /// TLS cannot be set up here as the policy says: a file that cannot be read, a name that is none, roots that were not
    /// given yet. That says nothing of the endpoint, and nothing is sent.
    #[error("{address}: {source}")]
    TlsSetup {
        /// Where to.
        address: Address,
        /// What is missing.
        source: Source,
    },
    /// The peer proved another identity than the policy expects.
    #[error("{address}: {refused}")]
    WrongPeerIdentity {
        /// Where to.
        address: Address,
        /// Whom we expected and who answered.
        refused: PeerMismatch,
    },
    /// Policy demands mutual TLS and there is no certificate. Never sent in plaintext instead.
    #[error("{address}: the policy demands mutual TLS")]
    NoIdentity {
        /// Where to.
        address: Address,
    },
    /// The cluster's policy says plaintext, and the endpoint's own demands mutual TLS. Nothing is sent.
    #[error("{address}: the destination's policy says plaintext, and the endpoint's own demands mutual TLS")]
    PlaintextToStrict {
        /// Where to.
        address: Address,
    },
    /// The request's scheme is https, and policy sends plaintext to this endpoint. Nothing is sent.
    #[error("{address}: the request's scheme is https, and policy sends plaintext to this endpoint")]
    HttpsToPlaintext {
        /// Where to.
        address: Address,
    },
    /// The connection broke before the answer.
    #[error("{address}: {source}")]
    ConnectionLost {
        /// Where to.
        address: Address,
        /// What HTTP said.
        source: Source,
        /// Whether any part of the request may have been sent.
        sent: bool,
    },
    /// The peer refused the stream before processing it.
    #[error("{address}: {source}")]
    StreamRefused {
        /// Where to.
        address: Address,
        /// What HTTP said.
        source: Source,
    },
    /// The route's timeout ran out.
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    /// One try took longer than the retry policy gives it.
    #[error("a try took longer than {0:?}")]
    PerTryTimeout(Duration),
    /// No byte moved in either direction for as long as the route, or the retry policy for one try, allows.
    #[error("no byte moved for {0:?}")]
    IdleTimeout(Duration),
    /// The caller's deadline ran out.
    #[error("the caller's deadline passed")]
    Deadline,
    /// A limit of the cluster is reached.
    #[error("cluster {cluster}: {limit} of {allowed} reached")]
    Breaker {
        /// The cluster.
        cluster: ClusterName,
        /// Which limit.
        limit: &'static str,
        /// Its value.
        allowed: u32,
    },
    /// As many connections or streams as allowed are in use, and none became free in time.
    #[error("{address}: as many connections as allowed are in use, and none was free within {after:?}")]
    QueueTimeout {
        /// Where to.
        address: Address,
        /// Longest wait for one ([`ClientBuilder::queue_wait`](crate::ClientBuilder::queue_wait)).
        after: Duration,
    },
    /// Time ran out while the request waited for a connection of which there may be no more. Code and status are those
    /// of the limit of time; the blame is ours, and that try was not sent.
    #[error("{last}; it waited for a connection: all {allowed} of {limit} are in use")]
    Queued {
        /// The limit of time.
        last: Box<Cause>,
        /// Which limit of connections.
        limit: &'static str,
        /// Its value.
        allowed: u32,
    },
    /// No request to the cluster got a connection for so long.
    #[error("cluster {cluster}: no request got a connection within {after:?}")]
    FailFast {
        /// The cluster.
        cluster: ClusterName,
        /// The wait ([`ClientBuilder::fail_fast`](crate::ClientBuilder::fail_fast)).
        after: Duration,
    },
    /// The control plane wants this share of requests dropped (EDS `drop_overloads`).
    #[error("cluster {cluster}: {} in a million are dropped for {category:?}", share.get())]
    Dropped {
        /// The cluster.
        cluster: ClusterName,
        /// What the control plane calls it.
        category: Arc<str>,
        /// How many.
        share: PerMillion,
    },
    /// A local rate limit has no token left.
    #[error("the token bucket is empty")]
    RateLimited(Box<Refusal>),
    /// Client-side throttling refused the request.
    #[error("{percent} % of requests are refused for the failures of the last ones")]
    Throttled {
        /// Share refused.
        percent: u32,
    },
    /// The limit that follows latency is reached.
    #[error("{limit} requests are in flight, as many as their latency allows")]
    ConcurrencyLimited {
        /// The limit now.
        limit: u32,
        /// HTTP status of the refusal.
        status: http::StatusCode,
    },
    /// The client holds its largest number of destinations.
    #[error("this client holds {0} destinations, its limit")]
    TooManyDestinations(usize),
    /// The application's request body failed.
    #[error("{0}")]
    RequestBody(Source),
}

/// How a rate limit wants its refusals answered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// HTTP status.
    pub status: http::StatusCode,
    /// gRPC status.
    pub grpc_status: i32,
    /// Headers of the answer.
    pub headers: http::HeaderMap,
}

/// Whom a TLS client expected and who answered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMismatch {
    /// A mesh peer with another SPIFFE ID.
    #[error(transparent)]
    Spiffe(PeerRefused),
    /// An ordinary TLS server with other names.
    #[error("the certificate is for {got}; the policy expects {expected}")]
    Names {
        /// Names accepted.
        expected: String,
        /// Names of the certificate.
        got: String,
    },
}

impl Error {
    pub(crate) fn new(target: impl Into<Arc<str>>, cause: Cause, attempts: u32) -> Self {
        Self { inner: Box::new(Inner { target: target.into(), cause, attempts, seen: false }) }
    }

    /// An endpoint may have seen one of the tries, whatever ended the last one.
    pub(crate) fn seen(mut self, seen: bool) -> Self {
        self.inner.seen = seen;
        self
    }

    /// The facts of the failure.
    pub fn cause(&self) -> &Cause {
        &self.inner.cause
    }

    /// The destination as the application named it.
    pub fn target(&self) -> &str {
        &self.inner.target
    }

    /// How often the request was tried; 0 if it never got that far.
    pub fn attempts(&self) -> u32 {
        self.inner.attempts
    }

    /// The status a proxy in front of the application would have answered.
    pub fn http_status(&self) -> http::StatusCode {
        match &self.inner.cause {
            Cause::RateLimited(refusal) => refusal.status,
            Cause::ConcurrencyLimited { status, .. } => *status,
            cause => cause.code().http_status(),
        }
    }

    /// Headers that policy wants in an answer to this failure.
    pub(crate) fn headers(&self) -> Option<&http::HeaderMap> {
        match &self.inner.cause {
            Cause::RateLimited(refusal) => Some(&refusal.headers),
            _ => None,
        }
    }

    /// The gRPC status code of this failure.
    pub fn grpc_status(&self) -> i32 {
        match &self.inner.cause {
            Cause::RateLimited(refusal) => refusal.grpc_status,
            cause => cause.code().grpc_status(),
        }
    }

    /// An answer for gateways: the status, and the failure as one line of text.
    pub fn into_response(self) -> http::Response<Body> {
        let mut response = http::Response::new(Body::from(format!("{self}\n")));
        *response.status_mut() = self.http_status();
        if let Some(headers) = self.headers() {
            *response.headers_mut() = headers.clone();
        }
        let text = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, text);
        response
    }
}

/// Labels have nothing to do with these.
fn taken_out(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", {count} taken out for failures (outlier detection, health checks)"),
    }
}

impl Cause {
    /// Whether no connection to the endpoint came about: a failure of that one, and not of policy or of a limit.
    pub(crate) fn is_unreached(&self) -> bool {
        match self {
            Self::ConnectFailed { .. }
            | Self::ConnectTimeout { .. }
            | Self::TlsHandshake { .. }
            | Self::WrongPeerIdentity { .. } => true,
            Self::BackingOff { last, .. } => last.is_unreached(),
            _ => false,
        }
    }

    /// Whether the cluster had nobody to take it: its endpoints could not be reached, not for as long as one is to wait for that, or
    /// there is none.
    pub(crate) fn met_nobody(&self) -> bool {
        use Cause::{FailFast, NoEndpoint, NoSubset, Unresolved};
        let none = matches!(self, NoEndpoint { .. } | NoSubset { .. } | Unresolved { .. } | FailFast { .. });
        none || self.is_unreached()
    }

    /// Whether it is for what this process lacks that no connection can be made, whoever is at the other end.
    pub(crate) fn is_ours(&self) -> bool {
        match self {
            Self::NoIdentity { .. } | Self::TlsSetup { .. } => true,
            Self::BackingOff { last, .. } => last.is_ours(),
            _ => false,
        }
    }

    /// What failed, in the words of the first half of the line.
    fn what(&self) -> &'static str {
        match self {
            Self::BadTarget(_) => "no usable destination in the request",
            Self::NoListener(_) => "unknown destination",
            Self::ControlPlaneUnreachable(_) => "no control plane to ask",
            Self::ConfigPending(_) => "no configuration yet",
            Self::NoRoute { .. } => "no matching route",
            Self::NoCluster { .. } => "no usable cluster",
            Self::UnsupportedAction(_) => "unsupported route action",
            Self::NoFilters { .. } => "no known filters",
            Self::NoEndpoint { .. } => "no healthy endpoint",
            Self::NoSubset { .. } => "no endpoint in the subset",
            Self::Unresolved { .. } => "no address known",
            Self::ConnectFailed { .. } => "connection failed",
            Self::ConnectTimeout { .. } => "connection timed out",
            Self::BackingOff { last, .. } | Self::Queued { last, .. } => last.what(),
            Self::TlsHandshake { .. } => "TLS failed",
            Self::TlsSetup { .. } => "TLS cannot be set up",
            Self::WrongPeerIdentity { .. } => "wrong peer identity",
            Self::NoIdentity { .. } => "no certificate of our own",
            Self::PlaintextToStrict { .. } => "plaintext to a strict peer",
            Self::HttpsToPlaintext { .. } => "https to a plaintext endpoint",
            Self::ConnectionLost { .. } => "connection lost",
            Self::StreamRefused { .. } => "stream refused",
            Self::Timeout(_) | Self::PerTryTimeout(_) | Self::IdleTimeout(_) => "timeout",
            Self::Deadline => "deadline exceeded",
            Self::Breaker { .. }
            | Self::QueueTimeout { .. }
            | Self::FailFast { .. }
            | Self::ConcurrencyLimited { .. }
            | Self::TooManyDestinations(_) => "limit reached",
            Self::Dropped { .. } => "dropped",
            Self::RateLimited(_) => "rate limited",
            Self::Throttled { .. } => "throttled",
            Self::RequestBody(_) => "the request body failed",
        }
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::BadTarget(_) => Code::BAD_TARGET,
            Self::NoListener(_) => Code::NO_LISTENER,
            Self::ControlPlaneUnreachable(_) => Code::CONTROL_PLANE_UNREACHABLE,
            Self::ConfigPending(_) => Code::CONFIG_PENDING,
            Self::NoRoute { .. } => Code::NO_ROUTE,
            Self::NoCluster { .. } => Code::NO_CLUSTER,
            Self::UnsupportedAction(_) => Code::UNSUPPORTED_ACTION,
            Self::NoFilters { .. } => Code::NO_FILTERS,
            Self::NoEndpoint { .. } | Self::NoSubset { .. } => Code::NO_ENDPOINT,
            Self::Unresolved { .. } => Code::NAME_UNRESOLVED,
            Self::ConnectFailed { .. } => Code::CONNECT_FAILED,
            Self::ConnectTimeout { .. } => Code::CONNECT_TIMEOUT,
            Self::BackingOff { last, .. } | Self::Queued { last, .. } => last.code(),
            Self::TlsHandshake { .. } | Self::TlsSetup { .. } => Code::TLS_HANDSHAKE,
            Self::WrongPeerIdentity { .. } => Code::WRONG_PEER_IDENTITY,
            Self::NoIdentity { .. } => Code::NO_IDENTITY,
            Self::PlaintextToStrict { .. } => Code::PLAINTEXT_TO_STRICT,
            Self::HttpsToPlaintext { .. } => Code::HTTPS_TO_PLAINTEXT,
            Self::ConnectionLost { .. } => Code::CONNECTION_LOST,
            Self::StreamRefused { .. } => Code::STREAM_REFUSED,
            Self::Timeout(_) | Self::PerTryTimeout(_) | Self::IdleTimeout(_) => Code::TIMEOUT,
            Self::Deadline => Code::DEADLINE,
            Self::Breaker { .. } | Self::QueueTimeout { .. } | Self::FailFast { .. } | Self::TooManyDestinations(_) => {
                Code::BREAKER_OPEN
            }
            Self::Dropped { .. } => Code::DROPPED,
            Self::RateLimited(_) => Code::RATE_LIMITED,
            Self::Throttled { .. } => Code::THROTTLED,
            Self::ConcurrencyLimited { .. } => Code::CONCURRENCY_LIMITED,
            Self::RequestBody(_) => Code::REQUEST_BODY,
        }
    }

    /// Whose doing it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::BadTarget(_) | Self::Deadline | Self::RequestBody(_) => Blame::Caller,
            Self::NoListener(_)
            | Self::ControlPlaneUnreachable(_)
            | Self::ConfigPending(_)
            | Self::NoRoute { .. }
            | Self::NoCluster { .. }
            | Self::UnsupportedAction(_)
            | Self::NoFilters { .. }
            | Self::NoSubset { .. }
            | Self::PlaintextToStrict { .. }
            | Self::HttpsToPlaintext { .. } => Blame::Configuration,
            Self::NoIdentity { .. }
            | Self::TlsSetup { .. }
            | Self::Breaker { .. }
            | Self::QueueTimeout { .. }
            | Self::Queued { .. }
            | Self::FailFast { .. }
            | Self::Dropped { .. }
            | Self::RateLimited(_)
            | Self::Throttled { .. }
            | Self::ConcurrencyLimited { .. }
            | Self::TooManyDestinations(_) => Blame::Local,
            Self::NoEndpoint { .. }
            | Self::Unresolved { .. }
            | Self::ConnectFailed { .. }
            | Self::ConnectTimeout { .. }
            | Self::TlsHandshake { .. }
            | Self::WrongPeerIdentity { .. }
            | Self::ConnectionLost { .. }
            | Self::StreamRefused { .. }
            | Self::Timeout(_)
            | Self::PerTryTimeout(_)
            | Self::IdleTimeout(_) => Blame::Upstream,
            Self::BackingOff { last, .. } => last.blame(),
        }
    }

    /// Whether sending again is safe after the one try that ended so. [`Error`] knows of those before it, too.
    pub fn retry(&self) -> Retry {
        match self {
            // It was not sent; but for whom the time is over, it is.
            Self::Queued { last, .. } if matches!(**last, Self::Deadline) => Retry::Never,
            Self::Queued { .. } => Retry::Safe,
            Self::BadTarget(_)
            | Self::NoListener(_)
            | Self::NoRoute { .. }
            | Self::NoCluster { .. }
            | Self::UnsupportedAction(_)
            | Self::NoFilters { .. }
            | Self::HttpsToPlaintext { .. }
            | Self::Deadline
            | Self::RequestBody(_) => Retry::Never,
            Self::ConnectionLost { sent: true, .. }
            | Self::Timeout(_)
            | Self::PerTryTimeout(_)
            | Self::IdleTimeout(_) => Retry::Unsafe,
            Self::ControlPlaneUnreachable(_)
            | Self::ConfigPending(_)
            | Self::NoEndpoint { .. }
            | Self::NoSubset { .. }
            | Self::Unresolved { .. }
            | Self::ConnectFailed { .. }
            | Self::ConnectTimeout { .. }
            | Self::BackingOff { .. }
            | Self::TlsHandshake { .. }
            | Self::TlsSetup { .. }
            | Self::WrongPeerIdentity { .. }
            | Self::NoIdentity { .. }
            | Self::PlaintextToStrict { .. }
            | Self::ConnectionLost { sent: false, .. }
            | Self::StreamRefused { .. }
            | Self::Breaker { .. }
            | Self::QueueTimeout { .. }
            | Self::FailFast { .. }
            | Self::Dropped { .. }
            | Self::RateLimited(_)
            | Self::Throttled { .. }
            | Self::ConcurrencyLimited { .. }
            | Self::TooManyDestinations(_) => Retry::Safe,
        }
    }
}

impl From<InvalidTarget> for Error {
    /// What was dialled is not a destination.
    fn from(invalid: InvalidTarget) -> Self {
        Self::new(invalid.input(), Cause::BadTarget(invalid.to_string()), 0)
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        self.inner.cause.code()
    }

    fn blame(&self) -> Blame {
        self.inner.cause.blame()
    }

    fn retry(&self) -> Retry {
        match self.inner.cause.retry() {
            Retry::Safe if self.inner.seen => Retry::Unsafe,
            retry => retry,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { target, cause, attempts, .. } = &*self.inner;
        let code = cause.code();
        write!(f, "{code} {} for {target} ({cause}", cause.what())?;
        if *attempts > 1 {
            write!(f, "; {attempts} tries")?;
        }
        let remedy = code.remedy();
        let (first, rest) = remedy.split_at(remedy.chars().next().map_or(0, char::len_utf8));
        write!(f, "). {}{rest}.", first.to_uppercase())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.cause.source()
    }
}

/// The first error of a type in a chain of sources.
pub(crate) fn find<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // `io::Error` skips the error it wraps when asked for its source.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_for_whom_why_and_what_to_do_in_one_line() {
        let of = |out| Cause::NoEndpoint { cluster: "outbound|9080||reviews".into(), known: 3, usable: 0, out };
        let told = of(2).to_string();
        assert!(
            told.ends_with("3 known, 0 usable, 2 taken out for failures (outlier detection, health checks)"),
            "{told}"
        );
        let cause = of(0);
        let error = Error::new("reviews:9080", cause, 0);
        assert_eq!(
            error.to_string(),
            "MESH-1101 no healthy endpoint for reviews:9080 (cluster outbound|9080||reviews: 3 known, 0 usable). \
             Check that the service has ready endpoints and that the subset's labels match."
        );
        assert_eq!(error.http_status(), 503);
        assert_eq!((error.blame(), error.retry()), (Blame::Upstream, Retry::Safe));
    }

    #[test]
    fn becomes_an_answer_for_gateways() {
        let response = Error::new("reviews:9080", Cause::Timeout(Duration::from_secs(1)), 2).into_response();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    }
}
