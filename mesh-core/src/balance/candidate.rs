//! The candidates a picker chooses among.

use std::num::NonZeroU32;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use super::Load;
use crate::policy::{Endpoint, Endpoints, Hashing, LocalityEndpoints};

/// What a picker sees of an endpoint.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Share relative to the other candidates.
    pub weight: NonZeroU32,
    // Made with the first request: most endpoints of a large cluster never see one.
    load: OnceLock<Arc<Load>>,
    // Locality and position in the policy.
    place: (u32, u32),
}

impl Candidate {
    /// Its load; `None` = it never had any.
    #[inline]
    pub fn load(&self) -> Option<&Arc<Load>> {
        self.load.get()
    }

    /// Its load, made if there is none yet.
    pub fn load_or_new(&self) -> &Arc<Load> {
        self.load.get_or_init(Arc::default)
    }

    /// Gives it the load it has in another set, unless it has one.
    pub fn share_load(&self, load: &Arc<Load>) {
        // Set before: both have counted, and the one that is there stays.
        let _ = self.load.set(load.clone());
    }

    /// Its requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.load().map_or(0, |load| load.in_flight())
    }
}

/// Some candidates of a set, side by side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Candidates {
    all: Arc<[Candidate]>,
    range: Range<usize>,
    source: Arc<Endpoints>,
    hashing: Hashing,
}

impl Candidates {
    /// All endpoints with their own weights, whatever their health.
    pub fn of(source: Arc<Endpoints>) -> Self {
        let mut all = Vec::new();
        for (l, group) in source.localities.iter().enumerate() {
            let own = group.endpoints.iter().enumerate();
            all.extend(own.map(|(p, endpoint)| Self::candidate(endpoint.weight, None, (l as u32, p as u32))));
        }
        Self::new(all, source)
    }

    pub(super) fn candidate(weight: NonZeroU32, load: Option<Arc<Load>>, place: (u32, u32)) -> Candidate {
        let cell = OnceLock::new();
        if let Some(load) = load {
            // Empty until here: it takes.
            let _ = cell.set(load);
        }
        Candidate { weight, load: cell, place }
    }

    pub(super) fn new(all: Vec<Candidate>, source: Arc<Endpoints>) -> Self {
        Self { range: 0..all.len(), all: all.into(), source, hashing: Hashing::default() }
    }

    /// How balancers that hash place them.
    pub(super) fn hashing(self, hashing: Hashing) -> Self {
        Self { hashing, ..self }
    }

    /// Most requests in flight of one of them where balancers hash, per cent of the mean (Envoy `hash_balance_factor`).
    pub(super) fn balance_factor(&self) -> Option<u32> {
        self.hashing.balance_factor
    }

    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        let range = self.range.start + range.start..self.range.start + range.end;
        Self { range, ..self.clone() }
    }

    /// What policy says of a candidate, and of its locality.
    pub fn policy(&self, index: usize) -> (&LocalityEndpoints, &Endpoint) {
        let (locality, position) = self[index].place;
        let group = &self.source.localities[locality as usize];
        (group, &group.endpoints[position as usize])
    }

    /// Which of the localities of the set's endpoints a candidate is in.
    pub fn locality(&self, index: usize) -> usize {
        self[index].place.0 as usize
    }

    /// The text that hashing balancers place a candidate by: its metadata `hash_key`, else its hostname
    /// if the cluster asks for that, else its address.
    pub fn hash_key(&self, index: usize) -> String {
        let (_, endpoint) = self.policy(index);
        let hostname = endpoint.metadata.hostname.as_ref().filter(|_| self.hashing.use_hostname);
        endpoint.metadata.lb.get("hash_key").or(hostname).cloned().unwrap_or_else(|| endpoint.address.to_string())
    }
}

impl Deref for Candidates {
    type Target = [Candidate];

    #[inline]
    fn deref(&self) -> &[Candidate] {
        &self.all[self.range.clone()]
    }
}
