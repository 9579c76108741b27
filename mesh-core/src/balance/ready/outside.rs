//! Endpoints that a client's subset leaves to others, for the sessions that began there: found by address, and by nothing else.
//!
//! They have no pool, priority or share, and nothing is made of one before a session names it. Their indices come after
//! those of the set.

use std::sync::{Arc, OnceLock};

use super::ReadySet;
use crate::balance::labelled::Left;
use crate::balance::{Candidate, Candidates, Load};
use crate::policy::{Address, Endpoint, Endpoints, LocalityEndpoints};

/// The endpoints of a cluster as they are kept for sessions beside sets that have a part of them each. `E` as in [`ReadySet`].
///
/// One serves all sets of the same endpoints, so that what is kept for one of them is the same everywhere.
pub struct Outside<E> {
    source: Arc<Endpoints>,
    make: fn() -> E,
    // By address; made when an address is looked up.
    slots: OnceLock<Box<[Slot<E>]>>,
}

/// Where an endpoint is in the policy, and what is kept for it if a session has named it.
struct Slot<E> {
    place: (u32, u32),
    // Boxed: most are empty.
    kept: OnceLock<Box<Kept<E>>>,
}

struct Kept<E> {
    candidate: Candidate,
    own: E,
}

/// What is outside of one set.
pub(super) struct Others<E> {
    all: Arc<Outside<E>>,
    // Who of them would be in the set, had the client all endpoints.
    left: Left,
}

impl<E> Outside<E> {
    /// Of all these endpoints, those in sets as well. `make` gives what the caller keeps for one that a session names.
    pub fn new(source: Arc<Endpoints>, make: fn() -> E) -> Self {
        Self { source, make, slots: OnceLock::new() }
    }

    /// All endpoints.
    pub fn source(&self) -> &Arc<Endpoints> {
        &self.source
    }

    /// Takes over what was kept for an endpoint by another one like this. False: it is not to `stay`, for it is gone or is not
    /// the same any more.
    pub fn keep(
        &self,
        address: &Address,
        load: Option<&Arc<Load>>,
        own: E,
        stays: impl FnOnce(&Endpoint) -> bool,
    ) -> bool {
        let Some(rank) = self.rank(address).filter(|rank| stays(self.policy(*rank).1)) else { return false };
        let slot = &self.slots()[rank];
        let candidate = Candidates::candidate(self.policy(rank).1.weight, load.cloned(), slot.place);
        slot.kept.set(Box::new(Kept { candidate, own })).is_ok()
    }

    /// Those that sessions have named: what policy says of them, their loads, and what is kept for them.
    pub fn kept(&self) -> impl Iterator<Item = (&Endpoint, Option<&Arc<Load>>, &E)> {
        let slots = self.slots.get().into_iter().flatten();
        slots.filter_map(|slot| {
            let Kept { candidate, own } = &**slot.kept.get()?;
            Some((super::policy(&self.source, slot.place).1, candidate.load(), own))
        })
    }

    /// Whether an address was looked up.
    #[cfg(test)]
    pub(in crate::balance) fn slots_made(&self) -> bool {
        self.slots.get().is_some()
    }

    fn slots(&self) -> &[Slot<E>] {
        self.slots.get_or_init(|| {
            let groups = (0..).zip(&self.source.localities);
            let places = groups.flat_map(|(l, group)| (0..group.endpoints.len() as u32).map(move |p| (l, p)));
            let mut slots: Vec<_> = places.map(|place| Slot { place, kept: OnceLock::new() }).collect();
            let address = |slot: &Slot<E>| &super::policy(&self.source, slot.place).1.address;
            // Of several with one address the first counts, as in a set.
            slots.sort_by(|a, b| address(a).cmp(address(b)));
            slots.dedup_by(|b, a| address(a) == address(b));
            slots.into()
        })
    }

    fn rank(&self, address: &Address) -> Option<usize> {
        let of = |slot: &Slot<E>| super::policy(&self.source, slot.place).1.address.cmp(address);
        self.slots().binary_search_by(of).ok()
    }

    fn policy(&self, rank: usize) -> (&LocalityEndpoints, &Endpoint) {
        super::policy(&self.source, self.slots()[rank].place)
    }

    fn at(&self, rank: usize) -> &Kept<E> {
        let slot = &self.slots()[rank];
        slot.kept.get_or_init(|| {
            let candidate = Candidates::candidate(self.policy(rank).1.weight, None, slot.place);
            Box::new(Kept { candidate, own: (self.make)() })
        })
    }
}

impl<E> std::fmt::Debug for Outside<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("kept", &self.kept().count()).finish_non_exhaustive()
    }
}

impl<E> ReadySet<E> {
    /// This set with what is outside of it: who of `outside` is `left` and not in the set.
    #[must_use]
    pub fn with_outside(self, outside: Option<Arc<Outside<E>>>, left: Left) -> Self {
        Self { others: outside.map(|all| Others { all, left }), ..self }
    }

    /// The endpoints some of which are outside; `None` = the set has all.
    pub fn outside(&self) -> Option<&Arc<Outside<E>>> {
        self.others.as_ref().map(|others| &others.all)
    }

    /// Whether an endpoint that is not in the set belongs to what is outside.
    pub fn leaves_out(&self, endpoint: &Endpoint) -> bool {
        self.others.as_ref().is_some_and(|others| others.left.has(endpoint))
    }

    /// The index of the endpoint at `address`, in the set or outside.
    pub fn find_anywhere(&self, address: &Address) -> Option<usize> {
        self.find(address).or_else(|| {
            let Others { all, left } = self.others.as_ref()?;
            let rank = all.rank(address).filter(|rank| left.has(all.policy(*rank).1))?;
            Some(self.known() + rank)
        })
    }

    /// The same of one for which something is kept.
    pub fn find_kept(&self, address: &Address) -> Option<usize> {
        let has_any = || self.outside().is_some_and(|outside| outside.slots.get().is_some());
        let index = if has_any() { self.find_anywhere(address) } else { self.find(address) }?;
        let is_kept = |(outside, rank): (&Outside<E>, usize)| outside.slots()[rank].kept.get().is_some();
        self.beyond(index).is_none_or(is_kept).then_some(index)
    }

    /// Whether this is the index of an endpoint outside.
    pub fn is_outside(&self, index: usize) -> bool {
        index >= self.known()
    }

    /// What policy says of an endpoint, and of its locality.
    pub fn policy(&self, index: usize) -> (&LocalityEndpoints, &Endpoint) {
        match self.beyond(index) {
            None => self.candidates.policy(index),
            Some((outside, rank)) => outside.policy(rank),
        }
    }

    /// Which of the localities of the endpoints one is in: the same number in the set and outside.
    pub fn locality(&self, index: usize) -> usize {
        match self.beyond(index) {
            None => self.candidates.locality(index),
            Some((outside, rank)) => outside.slots()[rank].place.0 as usize,
        }
    }

    /// What a picker would see of an endpoint.
    pub fn candidate(&self, index: usize) -> &Candidate {
        match self.beyond(index) {
            None => &self.candidates[index],
            Some((outside, rank)) => &outside.at(rank).candidate,
        }
    }

    /// The load of an endpoint; `None` = it never had any.
    pub fn load(&self, index: usize) -> Option<&Arc<Load>> {
        match self.beyond(index) {
            None => self.candidates[index].load(),
            Some((outside, rank)) => outside.slots()[rank].kept.get()?.candidate.load(),
        }
    }

    /// What is kept for an endpoint.
    pub fn endpoint(&self, index: usize) -> &E {
        match self.beyond(index) {
            None => &self.endpoints[index],
            Some((outside, rank)) => &outside.at(rank).own,
        }
    }

    /// Whether there is an endpoint of this index.
    pub(in crate::balance) fn is_known(&self, index: usize) -> bool {
        let outside = || self.outside().and_then(|outside| outside.slots.get()).map_or(0, |slots| slots.len());
        index < self.known() || index - self.known() < outside()
    }

    /// Where an index is among those outside; none of the set's is.
    #[inline]
    fn beyond(&self, index: usize) -> Option<(&Outside<E>, usize)> {
        let rank = index.checked_sub(self.known())?;
        Some((self.outside().expect("only what is outside has such an index"), rank))
    }
}
