//! Resources that end by themselves (`envoy.service.discovery.v3.Resource.ttl`): one that is neither given again nor
//! renewed in time is gone, connected or not, and out of use, as in Envoy. A deletion may be an accident, by which the last
//! good one stays; an end that came with the resource is none. Mostly there is none of them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::{Ads, Codec, Standing};
use crate::xds::kind::{Key, Kind};

/// When which of them end.
#[derive(Default)]
pub(super) struct Ends {
    by_key: HashMap<Key, Instant>,
    in_order: BTreeSet<(Instant, Key)>,
}

impl Ends {
    /// A resource has been given or renewed: it lives so long from now; none = it stays.
    pub(super) fn renew(&mut self, kind: Kind, name: &str, ttl: Option<Duration>, now: Instant) {
        // Beyond what the clock can tell is for ever.
        let end = ttl.and_then(|ttl| now.checked_add(ttl));
        if end.is_none() && self.by_key.is_empty() {
            return;
        }
        let key = Key::new(kind, name);
        self.forget(&key);
        if let Some(end) = end {
            self.by_key.insert(key.clone(), end);
            self.in_order.insert((end, key));
        }
    }

    /// Nobody wants it any more.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some((key, end)) = self.by_key.remove_entry(key) {
            self.in_order.remove(&(end, key));
        }
    }

    /// When the first one ends.
    pub(super) fn first(&self) -> Option<Instant> {
        self.in_order.first().map(|(end, _)| *end)
    }

    fn take_due(&mut self, now: Instant) -> Option<Key> {
        self.first().filter(|end| *end <= now)?;
        let (_, key) = self.in_order.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

impl<C: Codec> Ads<C> {
    /// Whether a resource ends by itself.
    pub(crate) fn ends(&self, key: &Key) -> bool {
        self.ends.by_key.contains_key(key)
    }

    /// Lets go what has come to its end.
    pub(super) fn end_due(&mut self, now: Instant) {
        while let Some(key) = self.ends.take_due(now) {
            self.end(key, now);
        }
    }

    fn end(&mut self, key: Key, now: Instant) {
        let entry = self.entries[key.kind.index()].get_mut(&key.name);
        let Some((giver, entry)) = entry.and_then(|entry| Some((entry.giver()?, entry))) else { return };
        let reason = "its time to live is over and the control plane has not renewed it".to_owned();
        tracing::warn!(kind = %key.kind, name = ?key.name, %reason, "a resource has come to its end");
        // Whether there is another one is another control plane's to say, which has been asked.
        let is_open = matches!(entry.standing, Standing::Requested | Standing::TimedOut);
        if is_open {
            entry.good = None;
        }
        if is_open || entry.missing_unsaid(giver, Standing::DoesNotExist, reason, true, now) {
            self.changed.push(key);
        }
    }
}
