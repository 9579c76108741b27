//! [`Uses`]: of the versions that a client was sent under each name, those that it may use, by the clusters that they name.
//!
//! ```text
//! sent ─ accepted ──→ that one alone
//!      ├ refused ───→ those before it; it as well, unless it came alone: of what came together some may be good
//!      └ taken away → as before, until the client accepts a response without it or asks for it no longer
//! ```
//! Who refuses nothing uses what it was sent last; this is for the others, who go on with something older.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::xds::Kind;
use crate::xds::federated;
use crate::xds::naming::Naming;

/// So many versions are told apart that name different clusters. With more it may be any.
const APART: usize = 4;

/// Of one type.
#[derive(Default)]
pub(super) struct Uses {
    by_name: BTreeMap<Arc<str>, Use>,
    /// Whether the client has something from an earlier stream, and nobody knows under which names.
    came_back: bool,
    /// Whether it has something of another type, and may have something of this one that it refused and does not speak of.
    may_have: bool,
}

/// Under one name.
#[derive(Default)]
struct Use {
    /// Of what it was sent last.
    last: Naming,
    /// Of what it was sent before and may use still.
    older: Vec<Naming>,
}

/// Clusters that may be in use, and their endpoints.
#[derive(Default)]
pub(super) struct Needed {
    clusters: HashSet<String>,
    endpoints: HashSet<String>,
}

impl Uses {
    /// The client has something of this type from an earlier stream, where it asked for everything.
    pub(super) fn come_back(&mut self) {
        self.came_back = true;
    }

    /// The client has something from an earlier stream, though it may say nothing of what is under these names, for it refused
    /// what it was sent there.
    pub(super) fn may_have_more<'a>(&mut self, not_accepted: impl Iterator<Item = &'a Arc<str>>) {
        self.may_have = true;
        for name in not_accepted {
            self.by_name.entry(name.clone()).or_default().older = vec![Naming::Anything];
        }
    }

    /// Whether it may have something that it was not sent on this stream.
    pub(super) fn are_unknown<'a>(&self, mut names: impl Iterator<Item = &'a Arc<str>>) -> bool {
        self.came_back && names.any(|name| !self.by_name.contains_key(name))
    }

    /// The client has something under this name from an earlier stream.
    pub(super) fn has_already(&mut self, name: &Arc<str>) {
        self.by_name.insert(name.clone(), Use { last: Naming::Nothing, older: vec![Naming::Anything] });
    }

    /// What it has is this.
    pub(super) fn is_that(&mut self, name: &Arc<str>, naming: &Naming) {
        if let Some(used) = self.by_name.get_mut(name) {
            *used = Use { last: naming.clone(), older: Vec::new() };
        }
    }

    pub(super) fn sent(&mut self, name: &Arc<str>, naming: &Naming) {
        if let Some(used) = self.by_name.get_mut(name) {
            used.keep_last();
            used.last = naming.clone();
        } else if self.came_back || self.may_have || *naming != Naming::Nothing {
            let older = if self.came_back || self.may_have { vec![Naming::Anything] } else { Vec::new() };
            self.by_name.insert(name.clone(), Use { last: naming.clone(), older });
        }
    }

    pub(super) fn accepted(&mut self, name: &Arc<str>) {
        if let Some(used) = self.by_name.get_mut(name) {
            used.older = Vec::new();
        }
    }

    /// What it was sent last was in a response that it refused, and `alone` there.
    pub(super) fn refused(&mut self, name: &Arc<str>, alone: bool) {
        if let Some(used) = self.by_name.get_mut(name).filter(|_| alone) {
            used.last = Naming::Nothing;
        }
    }

    /// The client asks for a name no longer.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.by_name.remove(name);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Arc<str>) -> bool) {
        self.by_name.retain(|name, _| keep(name));
    }

    /// Adds the clusters that are named under names that `count`; false = it may be any.
    pub(super) fn add_to(&self, needed: &mut Needed, counts: impl Fn(&Arc<str>) -> bool) -> bool {
        let counted = self.by_name.iter().filter(|(name, _)| counts(name)).map(|(_, used)| used);
        for naming in counted.flat_map(|used| used.older.iter().chain([&used.last])) {
            let Some(names) = naming.names() else { return false };
            names.iter().for_each(|name| needed.add(name.as_str()));
        }
        true
    }
}

impl Use {
    /// Another one is sent over the last.
    fn keep_last(&mut self) {
        let last = std::mem::take(&mut self.last);
        if last == Naming::Nothing || self.older.contains(&last) {
            return;
        }
        self.older.push(last);
        if self.older.len() > APART || self.older.contains(&Naming::Anything) {
            self.older = vec![Naming::Anything];
        }
    }
}

impl Needed {
    fn add(&mut self, cluster: &str) {
        self.endpoints.insert(spelled(&federated::endpoints_of(cluster)));
        self.clusters.insert(spelled(cluster));
    }

    /// Whether a cluster, or the endpoints of one, may be in use.
    pub(super) fn contains(&self, kind: Kind, name: &str) -> bool {
        let needed = if kind == Kind::Endpoints { &self.endpoints } else { &self.clusters };
        !needed.is_empty() && needed.contains(&spelled(name))
    }
}

/// A name in the one of its [two spellings](federated::read) that is compared.
fn spelled(name: &str) -> String {
    if name.starts_with("xdstp:") { name.replace("%2A", "*") } else { name.to_owned() }
}
