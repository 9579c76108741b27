//! Parts of a cluster by the metadata of its endpoints (Envoy load balancer subsets): which one a route's requests go
//! to is settled with the configuration, and who is in it with the endpoints.
//!
//! A part has a picker of its own and nothing else: connections, load, health and limits are the cluster's.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use mesh_core::balance::{Left, ReadySet, labelled, subset};
use mesh_core::policy::{Address, Endpoints, PerMillion};
use tokio::time::Instant;

use super::{Cluster, Known, Members};
use crate::env::Env;

/// Balancer metadata that a route wants.
pub(crate) type Labels = BTreeMap<String, String>;

/// Where the requests of a route go: a cluster, or a part of it.
#[derive(Clone)]
pub(crate) struct Backend {
    cluster: Arc<Cluster>,
    // None = all of it, whatever the route wants.
    part: Option<Arc<Part>>,
}

/// A part of a cluster, while a route wants it.
struct Part {
    wanted: Labels,
    members: ArcSwap<Members>,
}

/// The parts of a cluster that routes want.
#[derive(Default)]
pub(super) struct Parts(Vec<Weak<Part>>);

impl Backend {
    /// All of a cluster.
    pub(crate) fn whole(cluster: Arc<Cluster>) -> Self {
        Self { cluster, part: None }
    }

    /// What this cluster has for a route that wants `wanted`.
    pub(crate) fn part(&self, wanted: &Labels, env: &Env) -> Self {
        let cluster = &self.cluster;
        if cluster.policy.subsets.is_none() {
            return Self::whole(cluster.clone());
        }
        let mut parts = cluster.parts.lock();
        let known = parts.living().find(|part| part.wanted == *wanted);
        let part = known.unwrap_or_else(|| {
            let whole = cluster.members();
            let subset = subset(&whole.source, &cluster.policy, env.number);
            let members = ArcSwap::new(cluster.left_of(&whole, &subset, &whole.known(), wanted, None, env));
            let part = Arc::new(Part { wanted: wanted.clone(), members });
            // Routes may come and go without a change of endpoints.
            parts.forget();
            parts.0.push(Arc::downgrade(&part));
            part
        });
        Self { cluster: cluster.clone(), part: Some(part) }
    }

    /// The endpoints now; a request keeps them for all its tries.
    pub(crate) fn members(&self) -> Arc<Members> {
        Guard::into_inner(self.glance())
    }

    /// The same for a glance at them: aggregates ask each of their clusters for every request.
    fn glance(&self) -> Guard<Arc<Members>> {
        self.part.as_ref().map_or(&self.cluster.members, |part| &part.members).load()
    }

    /// How much of the requests it can take; see [`ReadySet::availability`]. All while its names are looked up for the first time:
    /// requests wait for that, as they do outside an aggregate (gRFC A74).
    pub(crate) fn availability(&self) -> Option<PerMillion> {
        let ready = &self.glance().ready;
        // Asked only where there is nobody, for that is a lock.
        if ready.known() == 0 && self.cluster.is_looked_up_first() {
            return Some(PerMillion::ALL);
        }
        ready.availability()
    }

    /// Whether any endpoint may be used.
    pub(crate) fn is_usable(&self) -> bool {
        !self.glance().ready.is_empty()
    }

    /// Whether all that may be used could not be connected to when that was last tried.
    pub(crate) fn is_away(&self) -> bool {
        self.glance().ready.is_away()
    }

    /// Whether one that may be used can be reached as far as is known.
    pub(crate) fn is_reachable(&self, env: &Env) -> bool {
        self.glance().ready.is_reachable(env.since_epoch(Instant::now()))
    }
}

impl Deref for Backend {
    type Target = Arc<Cluster>;

    fn deref(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}

impl Parts {
    fn living(&self) -> impl Iterator<Item = Arc<Part>> {
        self.0.iter().filter_map(Weak::upgrade)
    }

    /// Those that no route wants any more.
    fn forget(&mut self) {
        self.0.retain(|part| part.strong_count() > 0);
    }

    /// The cluster has other endpoints, or the same in other health; `subset` of them are used.
    pub(super) fn follow(&mut self, cluster: &Cluster, whole: &Arc<Members>, subset: &Arc<Endpoints>, env: &Env) {
        self.forget();
        if self.0.is_empty() {
            return;
        }
        let known = whole.known();
        let left = |part: &Part| {
            let before = part.members.load();
            cluster.left_of(whole, subset, &known, &part.wanted, Some(&**before), env)
        };
        self.living().for_each(|part| part.members.store(left(&part)));
    }

    /// The endpoint at `address` has said what its load is, and all of `whole` has heard it.
    pub(super) fn reported(&self, address: &Address, whole: &Arc<Members>, now: Duration) {
        for part in self.living() {
            let members = part.members.load();
            // Where a part is everything, it is that very set.
            if !Arc::ptr_eq(&members, whole) {
                members.reported(address, now);
            }
        }
    }
}

impl Cluster {
    /// What is left of `whole`, that is of its `subset`, for a route that wants `wanted`, and had `before`.
    ///
    /// Requests may make endpoints meanwhile: those of a part are the whole's, made there and looked up there.
    fn left_of(
        &self,
        whole: &Arc<Members>,
        subset: &Arc<Endpoints>,
        known: &Known<'_>,
        wanted: &Labels,
        before: Option<&Members>,
        env: &Env,
    ) -> Arc<Members> {
        let Some(subsets) = &self.policy.subsets else { return whole.clone() };
        let left = labelled(subset, subsets, wanted);
        if Arc::ptr_eq(subset, &left) {
            return whole.clone();
        }
        let ready = ReadySet::build(
            left.clone(),
            self.policy.clone(),
            env.picker_for(&self.policy.balancer),
            env.since_epoch(Instant::now()),
            &mut |below| env.draw(below),
            |endpoint| {
                let index = known[&endpoint.address];
                // Made here if nobody has yet: what one picker adds to a load, the others must see.
                let load = whole.ready.candidates()[index].load_or_new().clone();
                (whole.ready.endpoints()[index].clone(), Some(load))
            },
        );
        let ready = match before {
            Some(before) => ready.following(&before.ready),
            None => ready,
        };
        let outside = whole.ready.outside().cloned();
        let left_outside = outside.as_ref().map_or(Left::None, |all| Left::of(all.source(), subsets, wanted));
        let ready = ready.with_outside(outside, left_outside);
        // By locality and category, and those are the same.
        Arc::new(Members { source: left, ready, reported: whole.reported.clone() })
    }
}
