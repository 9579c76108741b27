//! Resources that end by themselves (`envoy.service.discovery.v3.Resource.ttl`): one that is neither given again nor
//! renewed in time is gone as if its control plane had removed it, connected or not. Mostly there is none of them.

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
        // What is said to be gone, or is another control plane's to say, is judged by that.
        let in_use = entry.filter(|entry| matches!(entry.standing, Standing::Acked | Standing::Nacked));
        let Some((giver, entry)) = in_use.and_then(|entry| Some((entry.giver()?, entry))) else { return };
        let drop_good = self.sessions[usize::from(giver)].features.fail_on_data_errors;
        let stays = if drop_good { "" } else { "; the last good one stays in use" };
        let reason = format!("its time to live is over and the control plane has not renewed it{stays}");
        tracing::warn!(kind = %key.kind, name = %key.name, %reason, "a resource has come to its end");
        if entry.missing(giver, Standing::DoesNotExist, reason, drop_good, now) {
            self.changed.push(key);
        }
    }
}
