//! What an earlier run held and a snapshot on disk kept: which of it may serve, and when it is let go.

use std::collections::HashMap;

use super::{Ads, Codec, SAVED};
use crate::xds::kind::Key;
use crate::xds::saved::{Record, Saved};

impl<C: Codec> Ads<C> {
    /// Takes what an earlier run held; none of it begins to serve once it is too old. Of each authority that is what one control
    /// plane gave, the one that was heard of last: what runs that asked for different things heard of two is not joined.
    pub(crate) fn restore(&mut self, saved: Saved) {
        let mut heard: HashMap<(u16, u64), (u64, usize)> = HashMap::new();
        for (key, record) in &saved {
            let Some(authority) = self.authority_of(&key.name) else { continue };
            let (last, count) = heard.entry((authority, record.giver)).or_default();
            (*last, *count) = (record.confirmed.max(*last), *count + 1);
        }
        // In the same second, whose is more.
        let mut heard: Vec<_> = heard.into_iter().map(|(of, heard)| (heard, of)).collect();
        heard.sort_unstable();
        self.saved_givers = heard.into_iter().map(|(_, of)| of).collect();
        let (saved, others): (Saved, Saved) = saved.into_iter().partition(|(key, record)| {
            self.authority_of(&key.name).is_none_or(|authority| self.saved_givers[&authority] == record.giver)
        });
        self.unasked.add(others.into_iter());
        self.saved_is_due = true;
        self.keep(saved);
    }

    /// Who gave what an earlier run held of an authority.
    pub(crate) fn saved_giver(&self, authority: u16) -> Option<u64> {
        self.saved_givers.get(&authority).copied()
    }

    /// Whether there is something of an earlier run.
    pub(crate) fn is_restored(&self) -> bool {
        self.saved.is_some()
    }

    /// Lets go what an earlier run held, once everything wanted has been answered by who vouches for it; what is of an
    /// authority whose control plane does not yet may still be of use. Asked after every response, so it looks through all of
    /// that only when a control plane has come to vouch for what it gives, or the last of it has been answered for.
    pub(super) fn let_saved_go(&mut self) {
        if self.saved.is_none() || !self.is_confirmed() {
            return;
        }
        while let Some(key) = self.restored.first() {
            if self.entry(key).is_some_and(|entry| entry.is_from(SAVED)) {
                return;
            }
            self.restored.pop_first();
            self.saved_is_due = true;
        }
        if !std::mem::take(&mut self.saved_is_due) {
            return;
        }
        let (saved, gone): (Saved, Saved) = self.saved.take().unwrap_or_default().into_iter().partition(|(key, _)| {
            let authority = self.authority_of(&key.name).map(|index| &self.authorities[usize::from(index)]);
            authority.is_some_and(|authority| !self.sessions[usize::from(authority.active_server())].vouches())
        });
        self.unasked.add(gone.into_iter().filter(|(key, _)| !self.entries[key.kind.index()].contains_key(&key.name)));
        self.keep(saved);
    }

    pub(super) fn keep(&mut self, saved: Saved) {
        self.saved_until = saved.values().filter_map(|record| record.until).min();
        self.saved = Some(saved).filter(|saved| !saved.is_empty());
        if self.saved.is_none() {
            self.restored.clear();
        }
    }

    /// What an earlier run held that no control plane has spoken of, whether it may still serve or not.
    pub(crate) fn saved(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.saved.iter().flatten().chain(self.unasked.iter())
    }

    /// Whether the next response is a reason to look through that.
    #[cfg(test)]
    pub(crate) fn looks_through_saved(&self) -> bool {
        self.saved_is_due
    }

    /// How much is in use that no control plane of this run has given.
    pub(crate) fn saved_in_use(&self) -> usize {
        self.entries().filter(|(.., entry)| entry.is_from(SAVED)).count()
    }
}
