//! Consistent hashing on a ring (gRFC A42, A76; Envoy `RING_HASH`).

use std::fmt::Write as _;

use twox_hash::XxHash64;

use super::weights::Excluded;
use super::{Candidates, Draw, Pick, Picker};

/// Places each candidate on a ring of hashes in proportion to its weight; a request goes to the next
/// candidate clockwise from its own hash. When a candidate comes or goes, only its share moves.
///
/// The ring is built as Envoy and gRPC build it, and of localities' weights as gRPC does (gRFC A42, A113) and an Envoy that
/// is asked to, so that all of them agree where a key belongs. A request without a hash goes to a random place.
#[derive(Debug)]
pub struct RingHash {
    // Sorted by hash.
    ring: Box<[(u64, u32)]>,
    len: usize,
}

/// Largest ring whatever the settings: 1 MiB. One of Envoy's 8,388,608 would take a thread that serves requests
/// seconds to make, and a request long to walk; gRPC stops at 4096. More candidates than this get one entry each.
const LARGEST: u64 = crate::policy::LARGEST_RING;

impl RingHash {
    /// A ring of at least `min_size` entries, and at most `max_size` where that leaves one entry for
    /// each candidate.
    pub fn new(candidates: &Candidates, min_size: u64, max_size: u64) -> Self {
        let len = candidates.len();
        let sum: f64 = candidates.iter().map(|c| f64::from(c.weight.get())).sum();
        let lightest = candidates.iter().map(|c| c.weight.get()).min().map_or(1.0, |least| f64::from(least) / sum);
        let most = max_size.clamp(len as u64, LARGEST.max(len as u64)) as f64;
        let least = (min_size as f64).min(most);
        // The lightest gets a whole number of entries.
        let scale = ((lightest * least).ceil() / lightest).min(most);
        let mut ring = Vec::with_capacity(scale.ceil() as usize);
        let (mut made, mut wanted) = (0.0, 0.0);
        let mut key = String::new();
        for (index, candidate) in candidates.iter().enumerate() {
            key.clear();
            key.push_str(&candidates.hash_key(index));
            key.push('_');
            let own = key.len();
            wanted += scale * f64::from(candidate.weight.get()) / sum;
            let mut count = 0;
            // At least one, which rounding at the largest size could take away.
            while made < wanted || count == 0 {
                key.truncate(own);
                // Writing to a string does not fail.
                let _ = write!(key, "{count}");
                ring.push((XxHash64::oneshot(0, key.as_bytes()), index as u32));
                (count, made) = (count + 1, made + 1.0);
            }
        }
        ring.sort_unstable();
        Self { ring: ring.into(), len }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ring.len()
    }

    #[cfg(test)]
    pub(super) fn entries(&self, index: usize) -> usize {
        self.ring.iter().filter(|(_, other)| *other as usize == index).count()
    }
}

impl Picker for RingHash {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let hash = pick.hash.unwrap_or_else(|| draw(u64::MAX));
        let start = self.ring.partition_point(|(place, _)| *place < hash);
        let excluded = Excluded::new(pick.tried, self.len);
        let clockwise = self.ring[start..].iter().chain(&self.ring[..start]);
        clockwise.map(|(_, index)| *index as usize).find(|index| !excluded.contains(*index))
    }

    fn may_ramp(&self) -> bool {
        false
    }
}
