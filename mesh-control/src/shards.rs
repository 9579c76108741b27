//! [`Shards`]: a map whose copies share what did not change, for tables that are published whole and
//! change a little at a time.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// How many parts a table has: a copy costs this many references, a change one part.
const PARTS: usize = 256;

/// A map in parts. Copies are cheap, and so is finding where two copies of one map differ.
#[derive(Clone, Debug)]
pub(crate) struct Shards<K, V> {
    parts: Vec<Part<K, V>>,
    /// Says in which part a key is; maps that share it are copies of one.
    state: Arc<RandomState>,
    len: usize,
}

type Part<K, V> = Arc<HashMap<K, V>>;

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.parts[self.part(key)].get(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let part = self.part(&key);
        let old = Arc::make_mut(&mut self.parts[part]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let part = self.part(key);
        // Not copied for nothing.
        self.parts[part].get(key)?;
        self.len -= 1;
        Arc::make_mut(&mut self.parts[part]).remove(key)
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// In no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Keys under which `self` has another value than `before`, or one of them has none.
    pub(crate) fn differing<'a>(&'a self, before: &'a Self, same: impl Fn(&V, &V) -> bool) -> Vec<&'a K> {
        let copies = Arc::ptr_eq(&self.state, &before.state);
        let shared = |(mine, other): &(&Part<K, V>, &Part<K, V>)| copies && Arc::ptr_eq(mine, other);
        let mut found = Vec::new();
        for (mine, other) in self.parts.iter().zip(&before.parts).filter(|pair| !shared(pair)) {
            let changed = |(key, value): &(&K, &V)| !before.get(*key).is_some_and(|old| same(old, value));
            found.extend(mine.iter().filter(changed).map(|(key, _)| key));
            found.extend(other.keys().filter(|key| self.get(*key).is_none()));
        }
        found
    }

    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // A remainder below the number of parts.
        (self.state.hash_one(key) % PARTS as u64) as usize
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Part::default();
        Self { parts: std::iter::repeat_n(empty, PARTS).collect(), state: Arc::default(), len: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_knows_where_two_differ(
            first in proptest::collection::vec((0u16..50, 0u8..3), 0..60),
            then in proptest::collection::vec((0u16..50, proptest::option::of(0u8..3)), 0..60),
            copies in any::<bool>(),
        ) {
            let mut model: HashMap<u16, u8> = first.iter().copied().collect();
            let fill = |mut map: Shards<u16, u8>, model: &HashMap<u16, u8>| {
                model.iter().for_each(|(key, value)| _ = map.insert(*key, *value));
                map
            };
            let before = fill(Shards::default(), &model);
            let old = model.clone();
            let mut now = if copies { before.clone() } else { fill(Shards::default(), &model) };
            for (key, value) in then {
                let (mine, expected) = match value {
                    Some(value) => (now.insert(key, value), model.insert(key, value)),
                    None => (now.remove(&key), model.remove(&key)),
                };
                prop_assert_eq!(mine, expected);
            }
            prop_assert_eq!(now.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(), model.clone());
            prop_assert_eq!(now.len(), model.len());
            let mut differing: Vec<u16> = now.differing(&before, u8::eq).into_iter().copied().collect();
            differing.sort_unstable();
            let expected: Vec<u16> = (0..50).filter(|key| old.get(key) != model.get(key)).collect();
            prop_assert_eq!(differing, expected);
        }
    }
}
