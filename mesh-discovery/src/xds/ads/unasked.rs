//! What an earlier run held and this one has not asked for. It serves nobody: whoever asks gets the word of the control plane,
//! which is there. It is for the next run alone, which may begin while that is away; a process that runs for a moment and asks
//! for little would take the rest from it otherwise.

use tokio::time::Instant;

use crate::xds::kind::Key;
use crate::xds::saved::{Record, Saved};

#[derive(Default)]
pub(super) struct Unasked {
    records: Saved,
    /// When the first of them is too old.
    until: Option<Instant>,
}

impl Unasked {
    pub(super) fn add(&mut self, records: impl Iterator<Item = (Key, Record)>) {
        self.records.extend(records);
        self.until = self.records.values().filter_map(|record| record.until).min();
    }

    /// Somebody asks for it of a control plane that speaks: from now on its word counts.
    pub(super) fn remove(&mut self, key: &Key) {
        self.records.remove(key);
    }

    /// Forgets all but what is to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.records.retain(|key, _| keep(key));
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            self.records.retain(|_, record| record.until.is_none_or(|until| until > now));
            self.add(std::iter::empty());
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.records.iter()
    }
}
