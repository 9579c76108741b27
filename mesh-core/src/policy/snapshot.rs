//! One destination's consistent configuration (the idea of gRFC A74): listener, routes, clusters and
//! endpoints published together, unchanged parts sharing their `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{
    Cluster, Domain, Endpoints, Forward, HeaderPolicy, InboundListener, Listener, RetryPolicy, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteSource, VirtualHost,
};
use crate::id::ClusterName;

/// Everything a client knows of one destination at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The listener.
    pub listener: Arc<Listener>,
    /// Its routes.
    pub routes: Arc<RouteConfiguration>,
    /// Every cluster the routes name, known or failed.
    pub clusters: BTreeMap<ClusterName, ClusterState>,
}

impl Snapshot {
    /// A destination whose every request goes to one cluster, which finds its endpoints by itself: what there
    /// is to know where nobody configures routes.
    pub fn of_one_cluster(name: &str, cluster: Cluster, retry: Option<RetryPolicy>) -> Self {
        let action = RouteAction::Forward(Box::new(Forward::to(cluster.name.clone())));
        let route = Route { name: name.to_owned(), ..Route::new(RouteMatch::any(), action) };
        let host = VirtualHost {
            name: name.to_owned(),
            domains: vec![Domain::new("*").expect("a lone star is a domain")],
            routes: vec![route],
            headers: HeaderPolicy::default(),
            retry,
        };
        let routes = Arc::new(RouteConfiguration {
            name: name.to_owned(),
            virtual_hosts: vec![host],
            headers: HeaderPolicy::default(),
            retry_budget: None,
        });
        let listener = Listener {
            name: name.to_owned(),
            routes: RouteSource::Inline(routes.clone()),
            filters: Vec::new(),
            max_stream_duration: None,
        };
        let name = cluster.name.clone();
        let state = ClusterState::Ready { cluster: Arc::new(cluster), endpoints: Arc::default() };
        Self { listener: Arc::new(listener), routes, clusters: [(name, state)].into() }
    }
}

/// A cluster of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// Known, with its endpoints (none is a legal number of them).
    Ready {
        /// The cluster.
        cluster: Arc<Cluster>,
        /// Its endpoints; empty for clusters that find their own.
        endpoints: Arc<Endpoints>,
    },
    /// The control plane does not know it or it was refused: requests fail with
    /// [`Code::NO_CLUSTER`](crate::error::Code::NO_CLUSTER).
    Failed(Arc<str>),
}

/// What is known of a dialled destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationState {
    /// Asked for; nothing known yet.
    Pending,
    /// Known.
    Ready(Arc<Snapshot>),
    /// Known not to exist, or refused with nothing good before it. The text says why and what to do.
    Failed(Arc<str>),
    /// Nothing is known of it and no control plane could be asked. The text says which one and why; a later state
    /// follows as soon as one can.
    Unreachable(Arc<str>),
}

/// What is known of a listening address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InboundState {
    /// Asked for; nothing known yet. The server accepts nothing (it fails closed).
    Pending,
    /// Known.
    Ready(Arc<InboundListener>),
    /// Refused, or the control plane knows nothing of it, with nothing good before.
    Failed(Arc<str>),
}
