//! Which VirtualService holds for a client and a host.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{NodeScope, Options, names};
use crate::model::{Model, Object, VirtualService};

type Entry = Arc<Object<VirtualService>>;

/// VirtualServices that apply between services, by host.
#[derive(Debug, Default)]
pub(super) struct VirtualServices {
    /// By full host, oldest first.
    exact: HashMap<String, Vec<Entry>>,
    /// Wildcards by suffix, longest first.
    wildcards: BTreeMap<std::cmp::Reverse<(usize, String)>, Vec<Entry>>,
}

impl VirtualServices {
    pub(super) fn build(model: &Model, options: &Options) -> Self {
        let mut index = Self::default();
        let mut all: Vec<&Entry> = model.virtual_services.values().filter(|vs| vs.spec.mesh).collect();
        all.sort_by_key(|vs| vs.seniority());
        for entry in all {
            for host in &entry.spec.hosts {
                let host = names::complete(host, entry.namespace(), options);
                let list = match host.strip_prefix('*') {
                    Some(suffix) => {
                        index.wildcards.entry(std::cmp::Reverse((suffix.len(), suffix.to_owned()))).or_default()
                    }
                    None => index.exact.entry(host).or_default(),
                };
                list.push(entry.clone());
            }
        }
        index
    }

    /// The one VirtualService for a client and a full host: the most specific host first, then the
    /// narrowest visibility, then age.
    pub(super) fn find(&self, scope: &NodeScope, host: &str) -> Option<&Entry> {
        let wildcards = self.wildcards.iter().filter(|(suffix, _)| host.ends_with(&suffix.0.1)).map(|(_, list)| list);
        let visible = |list: &'_ Vec<Entry>| -> Option<usize> {
            let tier = |vs: &Entry| vs.spec.export_to.tier(&scope.namespace, vs.namespace());
            let seen = list.iter().enumerate().filter(|(_, vs)| vs.spec.export_to.visible_to(&scope.namespace));
            // The list is in order of age, and `min_by_key` keeps the first of equals.
            seen.min_by_key(|(_, vs)| tier(vs)).map(|(at, _)| at)
        };
        self.exact.get(host).into_iter().chain(wildcards).find_map(|list| visible(list).map(|at| &list[at]))
    }

    /// Every host that some VirtualService speaks of.
    pub(super) fn hosts(&self) -> impl Iterator<Item = String> {
        let wildcards = self.wildcards.keys().map(|suffix| format!("*{}", suffix.0.1));
        self.exact.keys().cloned().chain(wildcards)
    }

    /// Hosts that more than one VirtualService claims, with those that claim them, oldest first.
    pub(super) fn contested(&self) -> impl Iterator<Item = (String, &[Entry])> {
        let exact = self.exact.iter().map(|(host, list)| (host.clone(), list.as_slice()));
        let wildcards = self.wildcards.iter().map(|(suffix, list)| (format!("*{}", suffix.0.1), list.as_slice()));
        exact.chain(wildcards).filter(|(_, list)| list.len() > 1)
    }
}
