//! [`Views`]: what scopes with the same [`View`] see is made once, where it is large: of ten thousand endpoints that takes ten
//! milliseconds for each scope otherwise.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Key;
use crate::translate::{Dialect, NodeScope, View};
use crate::xds::encoded::Version;
use crate::xds::{Kind, Resources};

/// So many are remembered at most, each as a few bytes: what makes them different, names and labels, is what clients say, at any
/// length.
const MOST: usize = 10_000;

/// The versions of what was made since the last publication began.
#[derive(Default)]
pub(super) struct Views {
    known: Mutex<HashMap<Mark, Version>>,
    /// Nobody who does not know them finds two that have one mark.
    marks: [RandomState; 2],
}

/// A [`Seen`] as it is remembered.
type Mark = [u64; 2];

/// What was made, and for whom.
#[derive(Hash)]
pub(super) struct Seen {
    /// The address of what it was made from, to which the view's compare.
    of: usize,
    kind: Kind,
    name: Arc<str>,
    view: View,
    dialect: Dialect,
    secrets: Option<Arc<str>>,
}

impl Seen {
    /// What a node of `scope` sees of it; `None` if that is not shared.
    pub(super) fn by(resources: &dyn Resources, scope: &NodeScope, key: &Key) -> Option<Self> {
        let view = resources.view(scope, key.kind, &key.name)?;
        let of = std::ptr::from_ref(resources).cast::<()>().addr();
        let (dialect, secrets) = (scope.dialect, scope.secrets.clone());
        Some(Self { of, kind: key.kind, name: key.name.clone(), view, dialect, secrets })
    }
}

impl Views {
    fn mark(&self, seen: &Seen) -> Mark {
        self.marks.each_ref().map(|mark| mark.hash_one(seen))
    }

    pub(super) fn get(&self, seen: &Seen) -> Option<Version> {
        let mark = self.mark(seen);
        self.known.lock().get(&mark).copied()
    }

    pub(super) fn insert(&self, seen: &Seen, version: Version) {
        let mark = self.mark(seen);
        let mut known = self.known.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(mark, version);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.lock().len()
    }

    /// Forgets all of it. Addresses come again: with each publication, and once what it is made from exists, there is nothing
    /// that stands for another one.
    pub(super) fn clear(&self) {
        *self.known.lock() = HashMap::new();
    }
}
