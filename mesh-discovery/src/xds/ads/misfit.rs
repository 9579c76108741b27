//! Resources that are good by themselves and cannot be joined with another, as a listener and the routes that it names.
//! That is known once both are held: whoever reads them says so before the response is answered, which is refused then. The
//! value stays held, for the other may be mended, and what holds it again meanwhile is refused again.
//!
//! Refuses to know what is joined with what.

use std::collections::BTreeMap;

use super::entry::Misfit;
use super::{Ads, Codec};
use crate::xds::kind::Key;

impl<C: Codec> Ads<C> {
    /// All that do not fit now. For every settling, before the last response is [concluded](Self::conclude).
    pub(crate) fn misfits(&mut self, misfits: BTreeMap<Key, Misfit>) {
        let before = std::mem::replace(&mut self.misfits, misfits);
        let Self { entries, misfits, open, clock, .. } = self;
        for key in before.keys().filter(|key| !misfits.contains_key(*key)) {
            if let Some(entry) = entries[key.kind.index()].get_mut(&key.name) {
                entry.fits();
            }
        }
        for (key, misfit) in misfits {
            let Some(entry) = entries[key.kind.index()].get_mut(&key.name) else { continue };
            let Some(is_new) = entry.misfits(misfit, *clock) else { continue };
            match open.as_mut().filter(|round| round.held(key, entry.round)) {
                Some(round) => round.object(&key.name, &misfit.reason, is_new),
                None if is_new => {
                    tracing::warn!(kind = %key.kind, name = ?key.name, reason = &*misfit.reason, "two resources do not fit");
                }
                None => {}
            }
        }
    }

    /// Whether the response that is worked off brought this, and not a former one.
    pub(crate) fn has_just_come(&self, key: &Key) -> bool {
        self.open.as_ref().is_some_and(|round| round.brought(key))
    }
}
