//! Subsets by metadata (Envoy `lb_subset_config`): the endpoints that a route's `metadata_match` leaves.
//!
//! Pure, and asked when endpoints or routes change, never for a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::{Endpoint, Endpoints, LocalityEndpoints, SubsetFallback, Subsets};

/// Balancer metadata (`envoy.lb`), wanted or had.
type Labels = BTreeMap<String, String>;

/// The endpoints for requests whose route wants `wanted`: those that have all of it, if its keys are those of a
/// selector and there are any; otherwise what policy falls back to. Health does not count: a subset whose endpoints are
/// all ill is there, and fails, as in Envoy. All localities stay, in their order, empty ones as well.
pub fn labelled(endpoints: &Arc<Endpoints>, subsets: &Subsets, wanted: &Labels) -> Arc<Endpoints> {
    match Left::of(endpoints, subsets, wanted) {
        Left::All => endpoints.clone(),
        left => only(endpoints, |endpoint| left.has(endpoint)),
    }
}

/// Who is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// Everybody.
    All,
    /// Those that have all of it.
    With(Labels),
    /// Nobody.
    None,
}

impl Left {
    /// Who of `endpoints` is; see [`labelled`].
    pub fn of(endpoints: &Endpoints, subsets: &Subsets, wanted: &Labels) -> Self {
        // Without selectors there are no subsets, nor anything to fall back to (Envoy).
        if subsets.selectors.is_empty() {
            return Self::All;
        }
        // Sorted, both of them.
        let selected = !wanted.is_empty() && subsets.selectors.iter().any(|keys| keys.iter().eq(wanted.keys()));
        if selected && endpoints.iter().any(|endpoint| has(endpoint, wanted)) {
            return Self::With(wanted.clone());
        }
        match &subsets.fallback {
            SubsetFallback::Fail => Self::None,
            SubsetFallback::Any => Self::All,
            SubsetFallback::Default(default) => Self::With(default.clone()),
        }
    }

    /// Whether this one is.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::All => true,
            Self::With(wanted) => has(endpoint, wanted),
            Self::None => false,
        }
    }
}

/// What a route wants together with what its entry of a split wants, which beats it key by key.
pub fn merged(route: &Labels, entry: &Labels) -> Labels {
    let all = route.iter().chain(entry);
    all.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn has(endpoint: &Endpoint, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| endpoint.metadata.lb.get(key) == Some(value))
}

fn only(endpoints: &Endpoints, keep: impl Fn(&Endpoint) -> bool) -> Arc<Endpoints> {
    let localities = endpoints.localities.iter().map(|group| {
        let LocalityEndpoints { locality, priority, weight, endpoints } = group;
        let endpoints = endpoints.iter().filter(|endpoint| keep(endpoint)).cloned().collect();
        LocalityEndpoints { locality: locality.clone(), priority: *priority, weight: *weight, endpoints }
    });
    Arc::new(Endpoints {
        cluster: endpoints.cluster.clone(),
        localities: localities.collect(),
        drops: endpoints.drops.clone(),
        overprovisioning_factor: endpoints.overprovisioning_factor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Address, EndpointMetadata};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// Endpoints on the ports 1, 2, ... with these labels, in two localities.
    fn endpoints(of: &[&[(&str, &str)]]) -> Arc<Endpoints> {
        let mut all = Endpoints::at("c", []);
        all.localities.push(LocalityEndpoints { priority: 1, ..all.localities[0].clone() });
        for (place, pairs) in of.iter().enumerate() {
            let metadata = Arc::new(EndpointMetadata { lb: labels(pairs), ..EndpointMetadata::default() });
            let address = Address::Socket(([10, 0, 0, 1], place as u16 + 1).into());
            all.localities[place % 2].endpoints.push(Endpoint { metadata, ..Endpoint::new(address) });
        }
        Arc::new(all)
    }

    fn subsets(selectors: &[&[&str]], fallback: SubsetFallback) -> Subsets {
        let selectors = selectors.iter().map(|keys| keys.iter().map(|key| (*key).to_owned()).collect()).collect();
        Subsets { fallback, selectors }
    }

    #[test]
    fn the_keys_must_be_a_selectors_and_somebody_must_have_the_values() {
        let all = endpoints(&[
            &[("stage", "prod"), ("version", "1")],
            &[("stage", "prod"), ("version", "2")],
            &[("stage", "dev"), ("version", "1")],
            &[],
        ]);
        let selectors: &[&[&str]] = &[&["stage"], &["stage", "version"]];
        let default = SubsetFallback::Default(labels(&[("version", "2")]));
        let ports = |fallback: &SubsetFallback, wanted: &[(&str, &str)]| {
            let left = labelled(&all, &subsets(selectors, fallback.clone()), &labels(wanted));
            assert_eq!(left.localities.len(), 2, "localities keep their places");
            let mut ports: Vec<u16> = left
                .iter()
                .map(|e| match e.address {
                    Address::Socket(at) => at.port(),
                    _ => unreachable!("sockets only"),
                })
                .collect();
            ports.sort_unstable();
            ports
        };
        for (wanted, found) in [
            (&[("stage", "prod")][..], Some(&[1, 2][..])),
            (&[("stage", "prod"), ("version", "1")], Some(&[1])),
            // No such values, no such selector, part of a selector, nothing wanted.
            (&[("stage", "test")], None),
            (&[("stage", "dev"), ("version", "2")], None),
            (&[("version", "1")], None),
            (&[], None),
        ] {
            for (fallback, instead) in
                [(SubsetFallback::Fail, &[][..]), (SubsetFallback::Any, &[1, 2, 3, 4]), (default.clone(), &[2])]
            {
                assert_eq!(ports(&fallback, wanted), found.unwrap_or(instead), "{wanted:?}, else {fallback:?}");
            }
        }
    }

    #[test]
    fn without_selectors_there_are_no_subsets() {
        let all = endpoints(&[&[("stage", "prod")], &[]]);
        let left = labelled(&all, &subsets(&[], SubsetFallback::Fail), &labels(&[("stage", "prod")]));
        assert!(Arc::ptr_eq(&all, &left), "not even a copy");
    }

    #[test]
    fn an_entry_of_a_split_beats_its_route_key_by_key() {
        let route = labels(&[("stage", "prod"), ("version", "1")]);
        assert_eq!(merged(&route, &labels(&[("version", "2")])), labels(&[("stage", "prod"), ("version", "2")]));
    }
}
