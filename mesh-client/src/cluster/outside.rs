//! The endpoints that this client's subset leaves to others, as sessions of other clients know them (gRFC A55, A68): what was made
//! for them goes on from one set to the next while they are in the cluster.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::balance::{Load, Outside};
use mesh_core::policy::{self, Address, Endpoints, LocalityEndpoints};

use super::{Cell, Endpoint, Known, Members, is_still};

/// What was made for endpoints outside, while the set is replaced.
pub(super) struct Kept<'m>(HashMap<&'m Address, (&'m policy::Endpoint, Option<&'m Arc<Load>>, &'m Cell)>);

impl<'m> Kept<'m> {
    pub(super) fn of(before: &'m Members) -> Self {
        let kept = before.ready.outside().into_iter().flat_map(|outside| outside.kept());
        Self(kept.map(|(policy, load, cell)| (&policy.address, (policy, load, cell))).collect())
    }

    /// That of an endpoint which is in the set now, unless it is another one than before.
    pub(super) fn take(&mut self, endpoint: &policy::Endpoint) -> Option<(Cell, Option<Arc<Load>>)> {
        let (policy, ..) = self.0.get(&endpoint.address)?;
        if !is_still(policy, endpoint) {
            return None;
        }
        let (_, load, cell) = self.0.remove(&endpoint.address)?;
        Some((cell.clone(), load.cloned()))
    }

    /// What is outside of a `subset` of these endpoints: that of `before`, if they are the same, and else one that takes over what
    /// was made.
    pub(super) fn around(
        &mut self,
        endpoints: &Arc<Endpoints>,
        subset: &Arc<Endpoints>,
        before: &Members,
    ) -> Option<Arc<Outside<Cell>>> {
        if Arc::ptr_eq(endpoints, subset) || endpoints.iter().count() == subset.iter().count() {
            return None;
        }
        let same = before.ready.outside().filter(|outside| Arc::ptr_eq(outside.source(), endpoints));
        if let Some(same) = same {
            self.0.clear();
            return Some(same.clone());
        }
        let next = Outside::new(endpoints.clone(), Cell::new);
        self.0.retain(|address, (policy, load, cell)| {
            !next.keep(address, *load, cell.clone(), |endpoint| is_still(policy, endpoint))
        });
        Some(Arc::new(next))
    }

    /// Those that are in the cluster no more.
    pub(super) fn left(self) -> impl Iterator<Item = &'m Arc<Endpoint>> {
        self.0.into_values().filter_map(|(_, _, cell)| cell.get())
    }
}

impl Members {
    /// Whether the endpoint at `address` is outside.
    pub(crate) fn leaves_out(&self, address: &Address) -> bool {
        self.ready.find_anywhere(address).is_some_and(|index| self.ready.is_outside(index))
    }

    /// The endpoints with their localities, those outside as well. `known` are those of the set.
    pub(crate) fn everyone<'m>(
        &'m self,
        known: &'m Known<'_>,
    ) -> impl Iterator<Item = (&'m LocalityEndpoints, &'m policy::Endpoint)> {
        let source = self.ready.outside().map_or(&self.source, |outside| outside.source());
        let all = source.localities.iter();
        let all = all.flat_map(|group| group.endpoints.iter().map(move |endpoint| (group, endpoint)));
        all.filter(|(_, endpoint)| {
            self.ready.outside().is_none() || known.contains_key(&endpoint.address) || self.ready.leaves_out(endpoint)
        })
    }
}
