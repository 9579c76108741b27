//! The composite filter of a client (gRFC A103): which filters a request passes is decided by its headers.
//!
//! Chains are made ready with the router, whichever a request will choose; their limits live on while their policy there is
//! equal, as those of other filters do. Refuses to know how filters are passed.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::matcher::{MatchTree, RequestView};
use mesh_core::policy::{self, ExecuteFilters, HttpFilterKind, PerMillion};
use tokio::time::Instant;

use super::fault::Faults;
use super::filters::{Compiler, Filter, Place, Policy};
use crate::error::Cause;
use crate::explain::FilterExplanation;

/// A composite filter, compiled.
pub(crate) struct Composite {
    name: Arc<str>,
    /// `None` = no filter.
    tree: MatchTree<Option<Chain>>,
}

struct Chain {
    share: PerMillion,
    /// `None` = one of them is a server's.
    filters: Option<Box<[Filter]>>,
}

/// How often a limit was met in one composite: two chains with equal ones have one each.
type Met = HashMap<(String, Policy), usize>;

/// What a composite's parts have in common.
#[derive(Clone, Copy)]
struct Whole<'c> {
    place: &'c Place,
    cluster: Option<&'c ClusterName>,
}

impl Compiler<'_> {
    /// The composite `name` of a place; `None` = it does nothing.
    pub(super) fn composite(
        &mut self,
        policy: &policy::Composite,
        name: &str,
        place: &Place,
        cluster: Option<&ClusterName>,
    ) -> Option<Arc<Composite>> {
        self.composite_of(policy, name, Whole { place, cluster }, &mut Met::new())
    }

    /// The same of the listener, made once.
    pub(super) fn listeners_composite(
        &mut self,
        policy: &policy::Composite,
        name: &str,
        cluster: Option<&ClusterName>,
    ) -> Option<Filter> {
        let cluster = cluster.filter(|_| policy.has(&|kind| matches!(kind, HttpFilterKind::AdaptiveConcurrency(_))));
        let key = (name.to_owned(), cluster.cloned());
        let made = match self.composites.get(&key) {
            Some(made) => made.clone(),
            None => {
                let made = self.composite(policy, name, &None, cluster)?;
                self.composites.insert(key, made.clone());
                made
            }
        };
        Some(Filter::Composite(made))
    }

    fn composite_of(
        &mut self,
        policy: &policy::Composite,
        name: &str,
        whole: Whole<'_>,
        met: &mut Met,
    ) -> Option<Arc<Composite>> {
        let mut chain = |chain: Option<&ExecuteFilters>| {
            let ExecuteFilters { filters, share, .. } = chain?;
            let known = !chain?.are_a_servers() && filters.iter().all(|filter| is_a_clients(&filter.kind));
            let mut ready = || {
                let each = filters.iter().filter_map(|filter| self.part(&filter.kind, name, &filter.name, whole, met));
                each.collect()
            };
            Some(Chain { share: *share, filters: known.then(&mut ready) })
        };
        let tree = MatchTree::new(policy.matcher.as_deref()?, &mut chain);
        Some(Arc::new(Composite { name: name.into(), tree }))
    }

    /// A filter of the composite `outer`.
    fn part(
        &mut self,
        kind: &HttpFilterKind,
        outer: &str,
        name: &str,
        whole: Whole<'_>,
        met: &mut Met,
    ) -> Option<Filter> {
        // No other filter has this name.
        let name = format!("{outer}\0{name}");
        let policy = match kind {
            HttpFilterKind::Fault(fault) => return Some(Filter::Fault(Faults::new(fault.as_ref()?))),
            HttpFilterKind::Composite(inner) => {
                return self.composite_of(inner, &name, whole, met).map(Filter::Composite);
            }
            HttpFilterKind::RateLimit(policy) => Policy::RateLimit(policy.clone()),
            HttpFilterKind::AdmissionControl(policy) => Policy::Throttle(policy.clone()?),
            HttpFilterKind::AdaptiveConcurrency(policy) => Policy::Concurrency(policy.clone()?, whole.cluster.cloned()),
            _ => return None,
        };
        let number = met.entry((name.clone(), policy.clone())).or_default();
        *number += 1;
        self.limit(whole.place.clone(), &format!("{name}\0{number}"), policy)
    }
}

/// Whether a client knows what to do with it. Sessions are looked for where the cluster is chosen.
fn is_a_clients(kind: &HttpFilterKind) -> bool {
    matches!(
        kind,
        HttpFilterKind::Fault(_)
            | HttpFilterKind::RateLimit(_)
            | HttpFilterKind::AdmissionControl(_)
            | HttpFilterKind::AdaptiveConcurrency(_)
            | HttpFilterKind::Session(_)
            | HttpFilterKind::Composite(_)
    )
}

impl Composite {
    /// The filters that a request passes here; none if it is to pass none, or is not one of the share that does.
    pub(crate) fn choose(&self, request: &RequestView<'_>) -> Result<&[Filter], Cause> {
        match self.tree.find(request) {
            Some(Some(chain)) if chain.share == PerMillion::ALL || chain.share.hit((request.draw)()) => {
                chain.filters.as_deref().ok_or_else(|| self.failed(OF_SERVERS))
            }
            Some(_) => Ok(&[]),
            None => Err(self.failed(NOTHING)),
        }
    }

    #[cold]
    fn failed(&self, reason: &'static str) -> Cause {
        Cause::NoFilters { filter: self.name.split('\0').next().unwrap_or_default().into(), reason }
    }

    /// What it would do to a request to `cluster`, without doing it.
    pub(super) fn explain(&self, request: &RequestView<'_>, cluster: &ClusterName, now: Instant) -> FilterExplanation {
        let chain = match self.tree.find(request) {
            None => return FilterExplanation::Composite { share: PerMillion::NONE, filters: None },
            Some(None) => return FilterExplanation::Composite { share: PerMillion::NONE, filters: Some(Vec::new()) },
            Some(Some(chain)) => chain,
        };
        let each = |filters: &[Filter]| filters.iter().map(|filter| filter.explain(request, cluster, now)).collect();
        FilterExplanation::Composite { share: chain.share, filters: chain.filters.as_deref().map(each) }
    }

    /// Why it would surely fail a request.
    pub(super) fn fails(&self, request: &RequestView<'_>) -> Option<Cause> {
        match self.tree.find(request) {
            None => Some(self.failed(NOTHING)),
            Some(Some(chain)) if chain.share == PerMillion::ALL => match &chain.filters {
                Some(filters) => filters.iter().find_map(|filter| filter.fails(request)),
                None => Some(self.failed(OF_SERVERS)),
            },
            Some(_) => None,
        }
    }
}

const NOTHING: &str = "its matcher finds nothing for the request, and has no word for that";
const OF_SERVERS: &str = "the filters that it finds for the request are a server's";
