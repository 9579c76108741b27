//! One destination's consistent configuration (the idea of gRFC A74): listener, routes, clusters and
//! endpoints published together, unchanged parts sharing their `Arc`.

use std::ops::Index;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use smallvec::SmallVec;

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
    /// Every cluster that the routes name, and raw connections go to, known or failed.
    pub clusters: Clusters,
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
        let listener = Listener::new(name, RouteSource::Inline(routes.clone()));
        let name = cluster.name.clone();
        let state = ClusterState::Ready { cluster: Arc::new(cluster), endpoints: Arc::default() };
        Self { listener: Arc::new(listener), routes, clusters: [(name, state)].into() }
    }
}

/// The clusters of a snapshot by name, sorted. Most snapshots have one, which lies within them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clusters(SmallVec<[(ClusterName, ClusterState); 1]>);

impl Clusters {
    /// The cluster of that name.
    pub fn get(&self, name: &ClusterName) -> Option<&ClusterState> {
        self.place(name).ok().map(|place| &self.0[place].1)
    }

    /// The same to be changed.
    pub fn get_mut(&mut self, name: &ClusterName) -> Option<&mut ClusterState> {
        self.place(name).ok().map(|place| &mut self.0[place].1)
    }

    /// Whether there is a cluster of that name.
    pub fn contains_key(&self, name: &ClusterName) -> bool {
        self.place(name).is_ok()
    }

    /// Puts a cluster in, or in the place of the one of that name. Moves those after it: many at once are collected.
    pub fn insert(&mut self, name: ClusterName, state: ClusterState) {
        match self.place(&name) {
            Ok(place) => self.0[place].1 = state,
            Err(place) => self.0.insert(place, (name, state)),
        }
    }

    /// Every cluster, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ClusterName, &ClusterState)> {
        self.0.iter().map(|(name, state)| (name, state))
    }

    /// Every name.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &ClusterName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// Every cluster.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &ClusterState> {
        self.0.iter().map(|(_, state)| state)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn place(&self, name: &ClusterName) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(name))
    }
}

/// Of several of one name the last counts.
impl FromIterator<(ClusterName, ClusterState)> for Clusters {
    fn from_iter<I: IntoIterator<Item = (ClusterName, ClusterState)>>(clusters: I) -> Self {
        let mut all: SmallVec<[_; 1]> = clusters.into_iter().collect();
        all.reverse();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.dedup_by(|(a, _), (b, _)| a == b);
        // A process has thousands of snapshots: no room is kept for more.
        all.shrink_to_fit();
        Self(all)
    }
}

impl<const N: usize> From<[(ClusterName, ClusterState); N]> for Clusters {
    fn from(clusters: [(ClusterName, ClusterState); N]) -> Self {
        clusters.into_iter().collect()
    }
}

impl Index<&ClusterName> for Clusters {
    type Output = ClusterState;

    fn index(&self, name: &ClusterName) -> &ClusterState {
        self.get(name).expect("no cluster of that name in the snapshot")
    }
}

impl Serialize for Clusters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
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
    /// Nothing is known of it and no control plane could be asked, or the one that was is late (gRFC A88). The text
    /// says which one and why; a later state follows as soon as one answers.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn state(text: &str) -> ClusterState {
        ClusterState::Failed(text.into())
    }

    #[test]
    fn clusters_are_a_sorted_map_in_which_the_last_of_a_name_counts() {
        let mut clusters =
            Clusters::from([("b".into(), state("1")), ("a".into(), state("2")), ("b".into(), state("3"))]);
        let text = |clusters: &Clusters| serde_json::to_string(clusters).unwrap();
        assert_eq!(text(&clusters), r#"{"a":{"failed":"2"},"b":{"failed":"3"}}"#);
        clusters.insert("a".into(), state("4"));
        clusters.insert("c".into(), state("5"));
        *clusters.get_mut(&"b".into()).unwrap() = state("6");
        assert_eq!(text(&clusters), r#"{"a":{"failed":"4"},"b":{"failed":"6"},"c":{"failed":"5"}}"#);
        assert_eq!((clusters.len(), clusters.is_empty(), &clusters[&"c".into()]), (3, false, &state("5")));
        assert!(clusters.contains_key(&"a".into()) && !clusters.contains_key(&"d".into()));
        assert_eq!(clusters.get(&"d".into()), None);
        assert!(clusters.keys().map(ClusterName::as_str).eq(["a", "b", "c"]) && clusters.values().len() == 3);
    }
}
