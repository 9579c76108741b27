//! [`Count`]: what is in flight, against limits that may differ from one to the next.

use crate::sync::{AtomicU32, Ordering};

/// How many there are now. Whoever enters leaves again.
#[derive(Debug, Default)]
pub struct Count(AtomicU32);

impl Count {
    /// One more, whatever the limit; tells how many there were before.
    pub fn enter(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// One more, if there are fewer than `most`. Who is refused was never counted, and costs nobody the place that
    /// comes free in that moment.
    #[must_use]
    pub fn enter_below(&self, most: u32) -> bool {
        let one_more = |now: u32| (now < most).then(|| now + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// The same where there may be no limit.
    #[must_use]
    pub fn enter_within(&self, most: Option<u32>) -> bool {
        match most {
            Some(most) => self.enter_below(most),
            None => {
                self.enter();
                true
            }
        }
    }

    /// One less.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_the_last() {
        let count = Count::default();
        assert!(count.enter_below(2) && count.enter_below(2) && !count.enter_below(2));
        assert_eq!(count.get(), 2);
        count.leave();
        assert!(count.enter_below(2));
        assert_eq!((count.enter(), count.get()), (2, 3));
        assert!(!count.enter_within(Some(3)) && count.enter_within(None));
        assert_eq!(count.get(), 4);
    }
}
