//! The client side listener: what one dialled destination is bound to
//! (`envoy.config.listener.v3.Listener` with an `api_listener`, gRFC A27).

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{AdaptiveConcurrency, AdmissionControl, Fault, LocalRateLimit, RouteConfiguration, StatefulSession};

/// One dialled destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Listener {
    /// Resource name: the destination as dialled.
    pub name: String,
    /// Where the routes are.
    pub routes: RouteSource,
    /// HTTP filters in order; the router is implied as the last.
    pub filters: Vec<HttpFilter>,
    /// Longest life of a stream when the route says nothing (`common_http_protocol_options`). None = unlimited.
    pub max_stream_duration: Option<Duration>,
}

/// Where a listener's routes come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteSource {
    /// A route configuration of this name, asked for over RDS.
    Named(String),
    /// Written inside the listener.
    Inline(Arc<RouteConfiguration>),
}

/// One HTTP filter of either side's listener, before the router.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HttpFilter {
    /// Instance name: the key of per-route overrides.
    pub name: String,
    /// What it does.
    pub kind: HttpFilterKind,
}

/// The filters this model knows (gRFC A39 names the extension rules).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HttpFilterKind {
    /// Fault injection (gRFC A33); `None` = only what routes override.
    Fault(Option<Fault>),
    /// Local rate limit.
    RateLimit(LocalRateLimit),
    /// Client-side throttling; `None` = off.
    AdmissionControl(Option<AdmissionControl>),
    /// A limit on requests in flight that follows their latency; `None` = off.
    AdaptiveConcurrency(Option<AdaptiveConcurrency>),
    /// Session affinity (gRFC A55); `None` = only what routes override.
    Session(Option<StatefulSession>),
    /// A filter that is not known and was marked `is_optional`: skipped, and reported.
    Skipped {
        /// The type URL of its configuration.
        type_url: String,
    },
}
