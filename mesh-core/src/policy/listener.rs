//! The client side listener: what one dialled destination is bound to
//! (`envoy.config.listener.v3.Listener` with an `api_listener`, gRFC A27).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{
    AdaptiveConcurrency, AdmissionControl, CallerRateLimit, Composite, Fault, InvalidPolicy, LocalRateLimit,
    RouteConfiguration, StatefulSession,
};
use crate::id::ClusterName;

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
    /// Where raw connections go. None = where a `GET /` would.
    pub tcp: Option<TcpForward>,
}

impl Listener {
    /// A listener without filters, limits and raw connections of its own.
    pub fn new(name: impl Into<String>, routes: RouteSource) -> Self {
        Self { name: name.into(), routes, filters: Vec::new(), max_stream_duration: None, tcp: None }
    }
}

/// Where raw connections go (`envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TcpForward {
    // At least one; the sum of the weights fits `u32`.
    clusters: Vec<TcpShare>,
    /// Endpoints tried before connecting fails, each once. Default 1.
    pub max_connect_attempts: NonZeroU32,
    /// A connection over which no byte has gone for so long, either way, is closed. Default 1 h; None = never.
    pub idle_timeout: Option<Duration>,
    /// Balancers that hash keep the connections of one caller at one endpoint (`hash_policy` with `source_ip`, Istio
    /// `useSourceIp`): of whoever sent the request that is being served when they are made, or of this process where none is.
    /// Default false: each goes to any.
    pub by_source: bool,
    /// Balancer metadata that endpoints must have, for clusters with [`Subsets`](super::Subsets).
    pub metadata_match: BTreeMap<String, String>,
}

/// A cluster with its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TcpShare {
    /// The cluster.
    pub name: ClusterName,
    /// Its weight, relative to the sum.
    pub weight: NonZeroU32,
    /// Balancer metadata that endpoints must have; beats the whole's, key by key.
    pub metadata_match: BTreeMap<String, String>,
}

impl TcpShare {
    /// A share whose endpoints may have any metadata.
    pub fn new(name: ClusterName, weight: NonZeroU32) -> Self {
        Self { name, weight, metadata_match: BTreeMap::new() }
    }
}

impl TcpForward {
    /// Envoy's time for silent connections, and what holds where nobody says where raw connections go.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

    /// Every connection to one cluster.
    pub fn to(cluster: ClusterName) -> Self {
        Self::of(vec![TcpShare::new(cluster, NonZeroU32::MIN)])
    }

    /// One of several clusters, drawn by weight once per connection.
    ///
    /// # Errors
    /// The list is empty, or the sum of the weights overflows `u32`.
    pub fn split(clusters: Vec<TcpShare>) -> Result<Self, InvalidPolicy> {
        let total: u64 = clusters.iter().map(|share| u64::from(share.weight.get())).sum();
        if total == 0 || total > u64::from(u32::MAX) {
            let reason = format!("the weights sum to {total}; the sum must be 1 to {}", u32::MAX);
            return Err(InvalidPolicy::new("weighted_clusters", reason));
        }
        Ok(Self::of(clusters))
    }

    fn of(clusters: Vec<TcpShare>) -> Self {
        Self {
            clusters,
            max_connect_attempts: NonZeroU32::MIN,
            idle_timeout: Some(Self::IDLE_TIMEOUT),
            by_source: false,
            metadata_match: BTreeMap::new(),
        }
    }

    /// The clusters in listed order.
    pub fn clusters(&self) -> &[TcpShare] {
        &self.clusters
    }

    /// Gives every cluster another name.
    pub fn rename_clusters(&mut self, to: &dyn Fn(&ClusterName) -> ClusterName) {
        self.clusters.iter_mut().for_each(|share| share.name = to(&share.name));
    }

    /// Sum of the weights; never 0.
    pub fn total(&self) -> u32 {
        self.clusters.iter().map(|share| share.weight.get()).sum()
    }

    /// The place in [`clusters`](Self::clusters) that a draw from `0..total()` falls on.
    pub fn pick(&self, draw: u32) -> usize {
        let mut left = draw % self.total();
        for (place, share) in self.clusters.iter().enumerate() {
            match left.checked_sub(share.weight.get()) {
                None => return place,
                Some(rest) => left = rest,
            }
        }
        unreachable!("the draw is below the sum of the weights")
    }
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
    /// Rate limits by who calls; a server's only.
    CallerRateLimit(CallerRateLimit),
    /// Client-side throttling; `None` = off.
    AdmissionControl(Option<AdmissionControl>),
    /// A limit on requests in flight that follows their latency; `None` = off.
    AdaptiveConcurrency(Option<AdaptiveConcurrency>),
    /// Session affinity (gRFC A55); `None` = only what routes override.
    Session(Option<StatefulSession>),
    /// Filters that each request is given by its headers (gRFC A103).
    Composite(Composite),
    /// A filter that is not known and was marked `is_optional`: skipped, and reported.
    Skipped {
        /// The type URL of its configuration.
        type_url: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, weight: u32) -> TcpShare {
        TcpShare::new(name.into(), NonZeroU32::new(weight).unwrap())
    }

    #[test]
    fn connections_are_drawn_by_weight() {
        let split = TcpForward::split(vec![share("a", 3), share("b", 1)]).unwrap();
        let drawn: Vec<usize> = (0..split.total()).map(|draw| split.pick(draw)).collect();
        assert_eq!(drawn, [0, 0, 0, 1]);
        assert_eq!(TcpForward::to("a".into()).pick(7), 0);
        assert!(TcpForward::split(Vec::new()).is_err());
        assert!(TcpForward::split(vec![share("a", u32::MAX), share("b", 1)]).is_err());
    }
}
