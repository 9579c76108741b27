//! Announced processes, found by service, address and label. A copy with one change shares the rest.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use super::instances::{Instance, includes};
use crate::registry::{Key, Registration};
use crate::shards::Shards;

/// A process that announced itself.
#[derive(Debug)]
pub(super) struct Announced {
    key: Key,
    pub(super) registration: Arc<Registration>,
    pub(super) instance: Instance,
}

/// The announced processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcements {
    by_service: Shards<(String, String), List>,
    by_address: Shards<SocketAddr, List>,
    /// By namespace, label and value.
    by_label: Shards<(String, String, String), List>,
}

/// Sorted by key.
type List = Arc<Vec<Arc<Announced>>>;

impl Announced {
    pub(super) fn new(registration: Arc<Registration>, instance: Instance) -> Self {
        Self { key: Key::of(&registration), registration, instance }
    }
}

impl Announcements {
    /// Takes a process in; one of the same key is replaced.
    pub(super) fn insert(&mut self, announced: Announced) {
        let announced = Arc::new(announced);
        let registration = announced.registration.clone();
        insert(&mut self.by_service, service(&registration), &announced);
        insert(&mut self.by_address, registration.address, &announced);
        labels(&registration).for_each(|label| insert(&mut self.by_label, label, &announced));
    }

    pub(super) fn remove(&mut self, registration: &Registration) {
        let key = Key::of(registration);
        remove(&mut self.by_service, &service(registration), &key);
        remove(&mut self.by_address, &registration.address, &key);
        labels(registration).for_each(|label| remove(&mut self.by_label, &label, &key));
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Announced> {
        self.by_service.values().flat_map(|list| list.iter()).map(|announced| &**announced)
    }

    /// Those of a service, in order of port and address.
    pub(super) fn of_service(&self, namespace: &str, service: &str) -> &[Arc<Announced>] {
        self.by_service.get(&(namespace.to_owned(), service.to_owned())).map_or(&[], |list| list)
    }

    /// Whatever is announced at an address, by whomever.
    pub(super) fn at(&self, address: SocketAddr) -> impl Iterator<Item = &Registration> {
        self.by_address.get(&address).into_iter().flat_map(|list| list.iter()).map(|announced| &*announced.registration)
    }

    /// Those of a namespace whose labels include all of `wanted`.
    pub(super) fn selected<'a>(&'a self, namespace: &str, wanted: &'a BTreeMap<String, String>) -> Vec<&'a Announced> {
        let label = |(key, value): (&String, &String)| (namespace.to_owned(), key.clone(), value.clone());
        let lists = wanted.iter().map(|pair| self.by_label.get(&label(pair)).map_or(&[][..], |list| list));
        if let Some(shortest) = lists.min_by_key(|list| list.len()) {
            let all = shortest.iter().map(|announced| &**announced);
            return all.filter(|announced| includes(&announced.registration.labels, wanted)).collect();
        }
        let mut all: Vec<_> = self.iter().filter(|announced| announced.registration.namespace == namespace).collect();
        all.sort_unstable_by_key(|announced| &announced.key);
        all
    }
}

fn service(registration: &Registration) -> (String, String) {
    (registration.namespace.clone(), registration.service.clone())
}

fn labels(registration: &Registration) -> impl Iterator<Item = (String, String, String)> {
    let namespace = &registration.namespace;
    registration.labels.iter().map(move |(key, value)| (namespace.clone(), key.clone(), value.clone()))
}

fn insert<K: Hash + Eq + Clone>(lists: &mut Shards<K, List>, at: K, announced: &Arc<Announced>) {
    let mut list = lists.remove(&at).unwrap_or_default();
    let members = Arc::make_mut(&mut list);
    match members.binary_search_by(|known| known.key.cmp(&announced.key)) {
        Ok(known) => members[known] = announced.clone(),
        Err(place) => members.insert(place, announced.clone()),
    }
    lists.insert(at, list);
}

fn remove<K: Hash + Eq + Clone>(lists: &mut Shards<K, List>, at: &K, key: &Key) {
    let Some(mut list) = lists.remove(at) else { return };
    let members = Arc::make_mut(&mut list);
    if let Ok(known) = members.binary_search_by(|known| known.key.cmp(key)) {
        members.remove(known);
    }
    if !list.is_empty() {
        lists.insert(at.clone(), list);
    }
}
