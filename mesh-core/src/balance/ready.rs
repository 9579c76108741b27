//! The usable endpoints of a cluster: those of the first priority that has any.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::{Candidate, Draw, Load, Picker, picker_for};
use crate::policy::{Balancer, Endpoint, Endpoints, LocalityBalancing, LocalityEndpoints};

/// The endpoints that may get requests and the picker over them. `E` is what the caller keeps for an
/// endpoint (its connections, say).
///
/// Usable are endpoints the control plane calls healthy or says nothing of (gRFC A27). The lowest
/// priority with a usable endpoint is taken whole; the others wait.
#[derive(Debug)]
pub struct ReadySet<E> {
    endpoints: Box<[E]>,
    candidates: Arc<[Candidate]>,
    picker: Box<dyn Picker>,
    priority: u32,
    known: usize,
}

impl<E> ReadySet<E> {
    /// Chooses the usable endpoints and builds the picker. `attach` gives what the caller keeps for an
    /// endpoint and the counter of its requests, which must outlive this set to stay right.
    pub fn build(
        endpoints: &Endpoints,
        balancer: &Balancer,
        locality: &LocalityBalancing,
        draw: &mut Draw<'_>,
        mut attach: impl FnMut(&LocalityEndpoints, &Endpoint) -> (E, Arc<Load>),
    ) -> Self {
        let priority = usable(endpoints).map(|(group, _)| group.priority).min().unwrap_or(0);
        let level = || usable(endpoints).filter(|(group, _)| group.priority == priority);
        let weights = if locality.weighted {
            weights_by_locality(level())
        } else {
            level().map(|(_, endpoint)| endpoint.weight).collect()
        };
        let (mut kept, mut candidates) = (Vec::with_capacity(weights.len()), Vec::with_capacity(weights.len()));
        for ((group, endpoint), weight) in level().zip(weights) {
            let (own, load) = attach(group, endpoint);
            kept.push(own);
            candidates.push(Candidate { weight, load });
        }
        let candidates: Arc<[Candidate]> = candidates.into();
        Self {
            endpoints: kept.into(),
            picker: picker_for(balancer, candidates.clone(), draw),
            candidates,
            priority,
            known: endpoints.iter().count(),
        }
    }

    /// Picks an endpoint for a request: its index (to be put into `tried` for the next try) and what is
    /// kept for it. `None` only if the set is empty; endpoints in `tried` come last.
    pub fn pick(&self, tried: &[usize], hash: Option<u64>, draw: &mut Draw<'_>) -> Option<(usize, &E)> {
        let index = self.picker.pick(tried, hash, draw)?;
        Some((index, &self.endpoints[index]))
    }

    /// What is kept for the endpoints, by index.
    pub fn endpoints(&self) -> &[E] {
        &self.endpoints
    }

    /// Weights and loads, by index.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// How many are usable.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether none is usable.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The priority in use; 0 if none is usable.
    pub fn priority(&self) -> u32 {
        self.priority
    }

    /// How many endpoints the cluster has, usable or not.
    pub fn known(&self) -> usize {
        self.known
    }
}

fn usable(endpoints: &Endpoints) -> impl Iterator<Item = (&LocalityEndpoints, &Endpoint)> {
    endpoints
        .localities
        .iter()
        .flat_map(|group| group.endpoints.iter().map(move |endpoint| (group, endpoint)))
        .filter(|(_, endpoint)| endpoint.health.is_usable())
}

/// Each locality's weight shared out among its usable endpoints by their own weights.
fn weights_by_locality<'e>(level: impl Iterator<Item = (&'e LocalityEndpoints, &'e Endpoint)>) -> Vec<NonZeroU32> {
    let shares: Vec<f64> = level
        .map(|(group, endpoint)| {
            let usable = group.endpoints.iter().filter(|e| e.health.is_usable());
            let sum: f64 = usable.map(|e| f64::from(e.weight.get())).sum();
            f64::from(group.weight.get()) * f64::from(endpoint.weight.get()) / sum
        })
        .collect();
    let largest = shares.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    // A million steps: finer than any weight a person writes, and their sum stays far from overflow.
    let scale = |share: f64| NonZeroU32::new((share / largest * 1e6).round() as u32).unwrap_or(NonZeroU32::MIN);
    shares.into_iter().map(scale).collect()
}
